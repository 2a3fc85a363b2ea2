//! An HTTP/1.1 client for the API server: short calls over a connection that is kept, and answers that
//! go on and on over connections of their own.
//!
//! Every connection is made from scratch: files are read, names resolved, addresses tried. So a server
//! that was replaced, a token or an authority that was rotated is met with the next connection. One
//! that is dead without saying so is found out by TCP: the kernel asks for a sign of life, and gives up
//! on what is not acknowledged.

use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustix::net::sockopt;
use rustls::pki_types::ServerName;
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tracing::debug;

use super::failure::{self, Failure};
use super::kubeconfig::Access;
use super::options::KubeOptions;
use crate::anchored::Anchored;
use crate::connect;

/// How long a connection may take: name, TCP and TLS together.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// How long a call may take, waiting for a server that asks for patience included.
const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// How long an answer over the connection of an earlier call may take: it may be dead, and a new one not.
const IDLE_DEADLINE: Duration = Duration::from_secs(4);
/// How long the head of a long answer may take. A busy server keeps such requests in a queue.
const STREAM_DEADLINE: Duration = Duration::from_secs(20);
/// How long a server that is too busy is left alone where it does not say.
const PATIENCE: Duration = Duration::from_secs(1);
/// When the kernel asks for a sign of life, how often, and when it gives up on the connection.
const QUIET: Duration = Duration::from_secs(10);
const SIGN_OF_LIFE_EVERY: Duration = Duration::from_secs(5);
const UNACKNOWLEDGED_MILLISECONDS: u32 = 20_000;
/// The answer to a call is an object, and the server takes none that is larger.
const LARGEST_ANSWER: usize = 8 << 20;
/// What is read from a connection at once, at most.
const READ_BUFFER: usize = 64 << 10;

/// What is asked of the server.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    /// As a verb, for errors: `read the node "n1"`.
    pub(super) attempted: String,
    pub(super) method: Method,
    /// With the query, without the path of the server's URL.
    pub(super) path: String,
    /// The media type and the content.
    pub(super) body: Option<(&'static str, String)>,
    /// What we have to be permitted, for errors: `get nodes`.
    pub(super) right: &'static str,
}

impl Ask {
    pub(super) fn get(attempted: impl Into<String>, path: impl Into<String>, right: &'static str) -> Ask {
        Ask { attempted: attempted.into(), method: Method::GET, path: path.into(), body: None, right }
    }
}

/// A client of one API server.
#[derive(Debug)]
pub(super) struct Client {
    options: KubeOptions,
    /// The connection of the last call.
    idle: Mutex<Option<Connection>>,
    /// How often this host has moved to other addresses.
    moves: watch::Sender<u64>,
}

#[derive(Debug)]
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    access: Access,
    uri: Uri,
}

/// An answer that is read as it comes.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) body: Incoming,
    /// In protobuf, not in JSON.
    pub(super) is_protobuf: bool,
    pub(super) server: String,
    /// The connection would end with this.
    _sender: SendRequest<Full<Bytes>>,
}

impl Client {
    pub(super) fn new(options: KubeOptions) -> Client {
        Client { options, idle: Mutex::default(), moves: watch::Sender::new(0) }
    }

    /// The server, as far as it is known without asking.
    pub(super) fn server(&self) -> String {
        Access::find(&self.options).map(|access| access.server).unwrap_or_else(|_| "nowhere".to_owned())
    }

    /// Ends all connections, since this host has moved to other addresses.
    pub(super) fn reconnect(&self) {
        self.moves.send_modify(|moves| *moves += 1);
    }

    /// A short call: the whole answer.
    pub(super) async fn call(&self, ask: &Ask) -> Result<Bytes, Failure> {
        let deadline = Instant::now() + CALL_DEADLINE;
        loop {
            let failure = match tokio::time::timeout_at(deadline, self.call_once(ask)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(failure)) => failure,
                Err(_) => return Err(failure::too_late(&ask.attempted, &self.server(), CALL_DEADLINE)),
            };
            let Some(wait) = failure.is_busy().then(|| failure.after.unwrap_or(PATIENCE)) else {
                return Err(failure);
            };
            if Instant::now() + wait >= deadline {
                return Err(failure);
            }
            debug!(error = %failure.error, ?wait, "the API server asks for patience");
            tokio::time::sleep(wait).await;
        }
    }

    /// An answer without an end, or a long one.
    pub(super) async fn stream(&self, ask: &Ask) -> Result<Stream, Failure> {
        let opening = async {
            let mut connection = self.connect(&ask.attempted).await?;
            let answer = connection.send(ask, PROTOBUF_OR_JSON).await?;
            let server = connection.access.server.clone();
            if !answer.status().is_success() {
                let (head, body) = answer.into_parts();
                let body = whole(body).await.unwrap_or_default();
                return Err(refused(ask, &server, head.status, &head.headers, &body));
            }
            let kind = answer.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
            let is_protobuf = kind.is_some_and(|kind| kind.starts_with(PROTOBUF));
            Ok(Stream { body: answer.into_body(), is_protobuf, server, _sender: connection.sender })
        };
        match tokio::time::timeout(STREAM_DEADLINE, opening).await {
            Ok(outcome) => outcome,
            Err(_) => Err(failure::too_late(&ask.attempted, &self.server(), STREAM_DEADLINE)),
        }
    }

    /// One call; a second time over a new connection where that may help.
    async fn call_once(&self, ask: &Ask) -> Result<Bytes, Failure> {
        let idle = self.idle().take().filter(|connection| !connection.sender.is_closed());
        if let Some(connection) = idle {
            match tokio::time::timeout(IDLE_DEADLINE, self.call_over(connection, ask)).await {
                Ok(Err(failure))
                    if failure.status.is_none() || failure.status == Some(StatusCode::UNAUTHORIZED) =>
                {
                    debug!(error = %failure.error, "asking the API server again, over a new connection");
                }
                Ok(outcome) => return outcome,
                Err(_) => debug!("no answer over the connection of the last call, trying a new one"),
            }
        }
        self.call_over(self.connect(&ask.attempted).await?, ask).await
    }

    async fn call_over(&self, mut connection: Connection, ask: &Ask) -> Result<Bytes, Failure> {
        let server = connection.access.server.clone();
        let (head, body) = connection.send(ask, "application/json").await?.into_parts();
        let body = whole(body).await.map_err(|cause| failure::lost(&ask.attempted, &server, &cause))?;
        if !head.status.is_success() {
            let failure = refused(ask, &server, head.status, &head.headers, &body);
            if head.status != StatusCode::UNAUTHORIZED {
                self.keep(connection);
            }
            return Err(failure);
        }
        self.keep(connection);
        Ok(body)
    }

    fn keep(&self, connection: Connection) {
        *self.idle() = Some(connection);
    }

    async fn connect(&self, attempted: &str) -> Result<Connection, Failure> {
        let access = Access::find(&self.options).map_err(|why| failure::misconfigured(attempted, "", why))?;
        let server = access.server.clone();
        match tokio::time::timeout(CONNECT_DEADLINE, self.connect_to(attempted, access)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(failure::too_late(attempted, &server, CONNECT_DEADLINE)),
        }
    }

    async fn connect_to(&self, attempted: &str, access: Access) -> Result<Connection, Failure> {
        let server = access.server.clone();
        let lost = |cause: String| failure::lost(attempted, &server, &cause);
        let misconfigured = |why: String| failure::misconfigured(attempted, &server, why);
        let uri: Uri = access.server.parse().map_err(|error| misconfigured(format!("no URL: {error}")))?;
        let moves = self.moves.subscribe();
        let is_tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => {
                return Err(misconfigured(
                    "its URL begins neither with https:// nor with http://".to_owned(),
                ));
            }
        };
        let stream = connect::connect(&uri).await.map_err(|error| lost(error.to_string()))?;
        watch_over(&stream).map_err(|error| lost(error.to_string()))?;
        // TLS by itself reads four kilobytes at a time, and a Node is four times as large.
        let stream = BufReader::with_capacity(READ_BUFFER / 2, Anchored::new(stream, moves));
        let sender = if is_tls {
            let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
            let name = access.server_name.clone().unwrap_or_else(|| host.to_owned());
            let name = ServerName::try_from(name.clone())
                .map_err(|_| misconfigured(format!("{name:?} is no name that a certificate can be for")))?;
            let config = access.tls().map_err(misconfigured)?;
            let stream = TlsConnector::from(config).connect(name, stream).await;
            let stream = stream.map_err(|error| lost(failure::causes(&error)))?;
            greet(TokioIo::new(stream)).await
        } else {
            greet(TokioIo::new(stream)).await
        };
        let sender = sender.map_err(|error| lost(failure::causes(&error)))?;
        Ok(Connection { sender, access, uri })
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Option<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    async fn send(&mut self, ask: &Ask, accept: &str) -> Result<Response<Incoming>, Failure> {
        let server = self.access.server.clone();
        let request =
            self.request(ask, accept).map_err(|why| failure::misconfigured(&ask.attempted, &server, why))?;
        let lost = |error: hyper::Error| failure::lost(&ask.attempted, &server, &failure::causes(&error));
        self.sender.ready().await.map_err(lost)?;
        self.sender.send_request(request).await.map_err(lost)
    }

    fn request(&self, ask: &Ask, accept: &str) -> Result<Request<Full<Bytes>>, String> {
        let authority = self.uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let path = format!("{}{}", self.uri.path().trim_end_matches('/'), ask.path);
        let mut request = Request::builder()
            .method(ask.method.clone())
            .uri(path)
            .header(header::HOST, host)
            .header(header::USER_AGENT, USER_AGENT)
            .header(header::ACCEPT, accept);
        if let Some(value) = self.access.authorization()? {
            let mut value = header::HeaderValue::from_str(&value).map_err(|_| {
                "the token has letters that no header can have; is the file a token?".to_owned()
            })?;
            value.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, value);
        }
        let body = match &ask.body {
            Some((kind, text)) => {
                request = request.header(header::CONTENT_TYPE, *kind);
                Bytes::from(text.clone())
            }
            None => Bytes::new(),
        };
        request.body(Full::new(body)).map_err(|error| format!("no request can be made of it: {error}"))
    }
}

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const PROTOBUF_OR_JSON: &str = "application/vnd.kubernetes.protobuf, application/json;q=0.9";
const USER_AGENT: &str = concat!("flannel-rs/", env!("CARGO_PKG_VERSION"));

async fn greet<T>(stream: TokioIo<T>) -> hyper::Result<SendRequest<Full<Bytes>>>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::Builder::new().max_buf_size(READ_BUFFER).handshake(stream).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            debug!(%error, "a connection to the API server has ended");
        }
    });
    Ok(sender)
}

/// Has the kernel find out when nobody is left at the other end.
fn watch_over(stream: &TcpStream) -> rustix::io::Result<()> {
    let socket = stream.as_fd();
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, QUIET)?;
    sockopt::set_tcp_keepintvl(socket, SIGN_OF_LIFE_EVERY)?;
    sockopt::set_tcp_keepcnt(socket, 3)?;
    sockopt::set_tcp_user_timeout(socket, UNACKNOWLEDGED_MILLISECONDS)
}

async fn whole(body: Incoming) -> Result<Bytes, String> {
    match Limited::new(body, LARGEST_ANSWER).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) => Err(failure::causes(error.as_ref())),
    }
}

fn refused(ask: &Ask, server: &str, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Failure {
    let after = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    failure::refused((&ask.attempted, ask.right), server, (status, after.map(Duration::from_secs)), body)
}
