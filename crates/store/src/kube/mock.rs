//! An API server that says exactly what a test has it say.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::channel::{Channel, Sender};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::KubeOptions;

pub(super) const PREFIX: &str = "flannel.alpha.coreos.com/";
/// How long anything in a test may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// A request that has come, to be answered.
pub(super) struct Asked {
    pub(super) method: String,
    /// With the query.
    pub(super) path: String,
    pub(super) token: String,
    pub(super) body: Value,
    answer: tokio::sync::oneshot::Sender<Response<Body>>,
}

type Body = BoxBody<Bytes, Infallible>;

/// An answer that goes on.
pub(super) struct Watcher(Sender<Bytes, Infallible>);

/// The server. Requests come out of it, in order.
pub(super) struct Mock {
    pub(super) address: std::net::SocketAddr,
    asked: mpsc::UnboundedReceiver<Asked>,
    connections: Arc<Mutex<VecDeque<tokio::task::JoinHandle<()>>>>,
    listener: tokio::task::JoinHandle<()>,
    dir: tempfile::TempDir,
}

impl Mock {
    pub(super) async fn start() -> Mock {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, asked) = mpsc::unbounded_channel();
        let connections: Arc<Mutex<VecDeque<_>>> = Arc::default();
        let opened = Arc::clone(&connections);
        let listener = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let sender = sender.clone();
                let service = service_fn(move |request| answer(request, sender.clone()));
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                opened.lock().unwrap().push_back(tokio::spawn(async move { drop(connection.await) }));
            }
        });
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("net-conf.json"),
            r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}"#,
        )
        .unwrap();
        std::fs::write(dir.path().join("token"), "first").unwrap();
        Mock { address, asked, connections, listener, dir }
    }

    /// As a pod sees it, but for TLS.
    pub(super) fn options(&self) -> KubeOptions {
        let kubeconfig = self.dir.path().join("config");
        let text = format!(
            "{{current-context: a, clusters: [{{name: a, cluster: {{server: 'http://{}'}}}}], contexts: [{{name: a, \
             context: {{cluster: a, user: a}}}}], users: [{{name: a, user: {{tokenFile: token}}}}]}}",
            self.address
        );
        std::fs::write(&kubeconfig, text).unwrap();
        let mut options = KubeOptions::from_environment(|_| None);
        options.kubeconfig_file = Some(kubeconfig);
        options.net_config_path = self.dir.path().join("net-conf.json");
        options.node_name = "n1".to_owned();
        options
    }

    pub(super) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join(name), text).unwrap();
    }

    /// The next request.
    pub(super) async fn next(&mut self) -> Asked {
        tokio::time::timeout(PATIENCE, self.asked.recv()).await.expect("no request came").unwrap()
    }

    /// The next request, which must be this one.
    pub(super) async fn expect(&mut self, method: &str, path: &str) -> Asked {
        let asked = self.next().await;
        assert_eq!(asked.method, method, "{}", asked.path);
        assert!(asked.path.starts_with(path), "{} is not {path}…", asked.path);
        asked
    }

    /// Whether a request waits.
    pub(super) fn is_quiet(&self) -> bool {
        self.asked.is_empty()
    }

    /// Ends all connections without a word.
    pub(super) fn cut(&self) {
        self.connections.lock().unwrap().drain(..).for_each(|connection| connection.abort());
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        self.listener.abort();
        self.cut();
    }
}

async fn answer(
    request: Request<Incoming>,
    sender: mpsc::UnboundedSender<Asked>,
) -> Result<Response<Body>, hyper::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let (answer, answered) = tokio::sync::oneshot::channel();
    let token = head.headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
    let asked = Asked {
        method: head.method.to_string(),
        path: head.uri.to_string(),
        token: token.unwrap_or_default(),
        body: serde_json::from_slice(&body).unwrap_or_default(),
        answer,
    };
    let _ = sender.send(asked);
    match answered.await {
        Ok(response) => Ok(response),
        // A test that has dropped the request does not answer it.
        Err(_) => std::future::pending().await,
    }
}

impl Asked {
    pub(super) fn answer(self, body: impl Into<String>) {
        self.refuse(200, body);
    }

    pub(super) fn refuse(self, status: u16, body: impl Into<String>) {
        self.refuse_for(status, body, None);
    }

    pub(super) fn refuse_for(self, status: u16, body: impl Into<String>, seconds: Option<u64>) {
        let mut response = Response::builder().status(StatusCode::from_u16(status).unwrap());
        if let Some(seconds) = seconds {
            response = response.header("Retry-After", seconds);
        }
        let body = Full::new(Bytes::from(body.into())).boxed();
        let _ = self.answer.send(response.body(body).unwrap());
    }

    /// Answers with the beginning of a watch.
    pub(super) fn watch(self) -> Watcher {
        let (sender, body) = Channel::new(64);
        let _ = self.answer.send(Response::new(body.boxed()));
        Watcher(sender)
    }
}

impl Watcher {
    pub(super) async fn say(&mut self, kind: &str, object: &Value) {
        let line = format!("{}\n", json!({ "type": kind, "object": object }));
        self.0.send_data(Bytes::from(line)).await.expect("nobody reads the watch");
    }

    /// The end of the nodes that were there at the beginning.
    pub(super) async fn complete(&mut self, version: u32) {
        let annotations = json!({ "k8s.io/initial-events-end": "true" });
        let metadata = json!({ "resourceVersion": version.to_string(), "annotations": annotations });
        self.say("BOOKMARK", &json!({ "kind": "Node", "metadata": metadata, "spec": {}, "status": {} }))
            .await;
    }

    /// Until nobody reads it any more.
    pub(super) async fn closed(mut self) {
        let blank = || Bytes::from_static(b"\n");
        let closed = async {
            while self.0.send_data(blank()).await.is_ok() {
                tokio::task::yield_now().await
            }
        };
        tokio::time::timeout(PATIENCE, closed).await.expect("the watch is still read");
    }
}

/// A Node with a vxlan lease: `n<number>`, 10.0.<number>.0/24, at 192.0.2.<number>.
pub(super) fn node(number: u8) -> Value {
    let mut node = bare(number);
    for (name, value) in [
        ("kube-subnet-manager", "true"),
        ("backend-type", "vxlan"),
        ("backend-data", r#"{"VNI":1}"#),
        ("public-ip", &format!("192.0.2.{number}")),
    ] {
        node["metadata"]["annotations"][format!("{PREFIX}{name}")] = value.into();
    }
    node
}

/// A Node that nobody has annotated yet.
pub(super) fn bare(number: u8) -> Value {
    json!({
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": {
            "name": format!("n{number}"),
            "uid": format!("uid-{number}"),
            "resourceVersion": "5",
            "creationTimestamp": format!("2026-01-01T00:00:{number:02}Z"),
        },
        "spec": { "podCIDR": format!("10.0.{number}.0/24"), "podCIDRs": [format!("10.0.{number}.0/24")] },
        "status": { "images": [] },
    })
}
