//! A connection to an API server.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use lab::Namespace;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio_rustls::TlsConnector;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(30);

/// A connection over which one request after the other goes.
#[derive(Debug)]
pub struct Connection {
    worker: tokio::runtime::Runtime,
    sender: SendRequest<Full<Bytes>>,
    server: SocketAddr,
}

impl Connection {
    /// Connects from within a namespace.
    pub(crate) fn open(
        namespace: &Namespace,
        server: SocketAddr,
        tls: Arc<ClientConfig>,
    ) -> Result<Connection> {
        let stream = namespace
            .within(|| TcpStream::connect_timeout(&server, LIMIT))?
            .with_context(|| format!("connecting to {server}"))?;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let worker = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let greet = async {
            let stream = tokio::net::TcpStream::from_std(stream)?;
            let name = ServerName::IpAddress(server.ip().into());
            let stream = TlsConnector::from(tls).connect(name, stream).await?;
            let (sender, connection) = handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            anyhow::Ok(sender)
        };
        let sender = worker
            .block_on(async { tokio::time::timeout(LIMIT, greet).await })
            .with_context(|| format!("no answer from {server}"))??;
        Ok(Connection { worker, sender, server })
    }

    /// Sends a request; fails with the server's reason unless it agrees. An answer that is not JSON
    /// comes back as a string.
    pub fn send(&mut self, method: &str, path: &str, kind: &str, body: String) -> Result<Value> {
        let request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header("Host", self.server.to_string())
            .header("Content-Type", kind)
            .header("Accept", "application/json")
            .body(Full::new(Bytes::from(body)))?;
        let ask = async {
            self.sender.ready().await?;
            let answer = self.sender.send_request(request).await?;
            let status = answer.status();
            anyhow::Ok((status, answer.into_body().collect().await?.to_bytes()))
        };
        let (status, body) = self
            .worker
            .block_on(async { tokio::time::timeout(LIMIT, ask).await })
            .with_context(|| format!("{method} {path}: no answer"))?
            .with_context(|| format!("{method} {path}"))?;
        let text = String::from_utf8_lossy(&body);
        let answer: Value = serde_json::from_str(&text).unwrap_or_else(|_| text.as_ref().into());
        if !status.is_success() {
            bail!("{method} {path}: {status}: {}", answer["message"].as_str().unwrap_or(&text));
        }
        Ok(answer)
    }
}
