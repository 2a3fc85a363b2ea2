//! `/healthz`, `/readyz` and `/metrics` over HTTP.
//!
//! | path | status | first line of the body |
//! |---|---|---|
//! | `/healthz` | 200 | `flanneld is running` |
//! | `/readyz` | 200 once ready, else 503 | `flanneld is ready` / `flanneld is not ready yet` |
//! | `/metrics` | 200 | see [`crate::metrics`] |
//!
//! The words and codes of the first two are the original's. While not ready, the lines that follow say
//! what is still awaited and what is wrong. A node that was ready and cannot carry traffic any more is not
//! ready until it can. The server is up before anything is waited for, so that a liveness probe does not
//! kill a slow start.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Context;
use bytes::Bytes;
use fabric::status::Status;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::availability::impairment;
use crate::metrics::{self, Sources};

/// Binds the address of the health server.
///
/// Compatibility: `0.0.0.0` means every address of both families, as in Go.
pub async fn bind(ip: IpAddr, port: u16) -> anyhow::Result<TcpListener> {
    if ip == IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        && let Ok(listener) = TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await
    {
        return Ok(listener);
    }
    let address = SocketAddr::from((ip, port));
    TcpListener::bind(address).await.with_context(|| {
        format!("serving health on {address}: choose another with -healthz-ip and -healthz-port, or stop what uses it")
    })
}

/// Serves until dropped.
pub async fn serve(listener: TcpListener, sources: Sources) -> Infallible {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: worth a pause, never the daemon.
                tracing::warn!(%error, "cannot accept a health request");
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                continue;
            }
        };
        let sources = sources.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let sources = sources.clone();
                async move { Ok::<_, Infallible>(answer(request.uri().path(), sources).await) }
            });
            // A client that hangs up is not our concern.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(path: &str, sources: Sources) -> Response<Full<Bytes>> {
    if path != "/metrics" {
        return probe(path, &sources.status.borrow());
    }
    match tokio::task::spawn_blocking(move || sources.page()).await {
        Ok(page) => response(StatusCode::OK, page, metrics::CONTENT_TYPE),
        Err(panicked) => response(StatusCode::INTERNAL_SERVER_ERROR, panicked.to_string(), TEXT),
    }
}

fn probe(path: &str, status: &Status) -> Response<Full<Bytes>> {
    let (code, body) = match path {
        "/healthz" => (StatusCode::OK, "flanneld is running".to_owned()),
        "/readyz" if status.ready && impairment(status).is_none() => {
            (StatusCode::OK, "flanneld is ready".to_owned())
        }
        "/readyz" => {
            let mut body = "flanneld is not ready yet".to_owned();
            status.awaited.iter().for_each(|what| body += &format!("\nawaited: {what}"));
            status.failures.iter().for_each(|failure| body += &format!("\nwrong: {}", failure.what));
            (StatusCode::SERVICE_UNAVAILABLE, body)
        }
        _ => (StatusCode::NOT_FOUND, "404 page not found\n".to_owned()),
    };
    response(code, body, TEXT)
}

/// Compatibility: what the original's server infers for a text.
const TEXT: &str = "text/plain; charset=utf-8";

fn response(code: StatusCode, body: String, kind: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use fabric::status::Failure;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn get(port: u16, path: &str) -> (String, String) {
        let mut stream = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    }

    #[tokio::test]
    async fn probes_get_the_originals_words() {
        let (status, receiver) = tokio::sync::watch::channel(Status::default());
        let listener = bind(Ipv4Addr::UNSPECIFIED.into(), 0).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let dir = tempfile::tempdir().unwrap();
        let store = store::Store::file(dir.path()).unwrap();
        let sources = Sources { status: receiver, store, ipam_dir: dir.path().to_owned() };
        tokio::spawn(serve(listener, sources));
        assert_eq!(get(port, "/healthz").await, ("HTTP/1.1 200 OK".into(), "flanneld is running".into()));
        status.send_modify(|status| status.awaited = vec!["a lease".to_owned()]);
        assert_eq!(
            get(port, "/readyz").await,
            ("HTTP/1.1 503 Service Unavailable".into(), "flanneld is not ready yet\nawaited: a lease".into())
        );
        status.send_modify(|status| status.ready = true);
        assert_eq!(get(port, "/readyz").await, ("HTTP/1.1 200 OK".into(), "flanneld is ready".into()));
        assert_eq!(get(port, "/").await.0, "HTTP/1.1 404 Not Found");
        let (code, page) = get(port, "/metrics").await;
        assert_eq!(code, "HTTP/1.1 200 OK");
        assert!(page.contains("\nflannel_ready 1\n") && page.ends_with("# EOF\n"), "{page}");
        let lost = Failure {
            topic: "interface".to_owned(),
            what: "eth0 is lost".to_owned(),
            since: 0,
            remedy: String::new(),
        };
        status.send_modify(|status| {
            status.awaited.clear();
            status.failures = vec![lost];
        });
        let (code, body) = get(port, "/readyz").await;
        assert_eq!(code, "HTTP/1.1 503 Service Unavailable");
        assert_eq!(body, "flanneld is not ready yet\nwrong: eth0 is lost");
    }

    #[tokio::test]
    async fn a_port_in_use_is_refused_with_the_remedy() {
        let first = bind(Ipv4Addr::LOCALHOST.into(), 0).await.unwrap();
        let error = bind(Ipv4Addr::LOCALHOST.into(), first.local_addr().unwrap().port()).await.unwrap_err();
        assert!(error.to_string().contains("-healthz-port"), "{error:#}");
    }
}
