//! Leases from the Kubernetes API: each Node is one.
//!
//! Who has which podCIDR is decided by whoever hands them out (a controller-manager as a rule); a node
//! only says how to reach it, in annotations of its own Node (`record`). So nothing is allocated here,
//! nothing expires, and a lease ends when its Node is deleted.
//!
//! All Nodes are watched, but only what a lease depends on is read and kept (`object`, `table`): ten
//! thousand Nodes are 150 MB in the API, and 5 MB here.

mod access;
mod allocate;
mod client;
mod failure;
mod follow;
mod framing;
mod keep;
mod kubeconfig;
mod node;
mod object;
mod options;
mod protobuf;
mod record;
mod table;
mod time;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use fabric::config::NetworkConfig;
use fabric::lease::LeaseSet;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::{OnceCell, watch};
use tokio::time::Instant;
use tracing::warn;

use crate::health::Health;
use crate::{Listing, StoreError};
pub(crate) use allocate::allocate;
use client::{Ask, Client};
use failure::Failure;
pub(crate) use keep::{acquire, keep};
pub use node::{KubeEvent, KubeNode, PublicAddresses};
pub use options::KubeOptions;
use record::{Families, OwnNode};
use table::Table;

/// After how long something that we were not permitted to do is tried again.
const FORBIDDEN_FOR: Duration = Duration::from_secs(600);

const STRATEGIC_MERGE: &str = "application/strategic-merge-patch+json";
const READ_NODE: &str = "flannel needs the right to get nodes: see the ClusterRole in its manifest";
const READ_POD: &str = "flannel needs the right to get pods (see the ClusterRole in its manifest), or set NODE_NAME in its DaemonSet";
const PATCH_STATUS: &str =
    "flannel needs the right to patch nodes/status: see the ClusterRole in its manifest";

/// The store in the Kubernetes API.
#[derive(Debug)]
pub(crate) struct Kube {
    options: KubeOptions,
    prefix: String,
    client: Client,
    name: OnceCell<String>,
    pub(crate) health: Health,
    /// Our own Node as the follower sees it: none until it has seen all, none inside if there is none.
    seen: watch::Sender<Option<Option<OwnNode>>>,
    /// Who misses podCIDRs, as the follower sees it.
    missing: watch::Sender<allocate::Missing>,
    /// Our Node as it was left when our lease was acquired.
    acquired: Mutex<Option<OwnNode>>,
    /// What we were not permitted to do, until when it is not tried again.
    forbidden: Mutex<HashMap<&'static str, Instant>>,
}

impl Kube {
    pub(crate) fn new(options: KubeOptions) -> Result<Kube, StoreError> {
        let prefix = options.prefix()?;
        if options.node_name.is_empty() && (options.pod_name.is_empty() || options.pod_namespace.is_empty()) {
            return Err(StoreError::Options(
                "-kube-subnet-mgr: nothing says which node this is: set NODE_NAME (or, in a pod, POD_NAME and \
                 POD_NAMESPACE)"
                    .to_owned(),
            ));
        }
        access_check(&options)?;
        let name = OnceCell::new_with(Some(options.node_name.clone()).filter(|name| !name.is_empty()));
        Ok(Kube {
            client: Client::new(options.clone()),
            options,
            prefix,
            name,
            health: Health::new(),
            seen: watch::Sender::new(None),
            missing: watch::Sender::default(),
            acquired: Mutex::default(),
            forbidden: Mutex::default(),
        })
    }

    pub(crate) fn describe(&self) -> String {
        format!("the Kubernetes API at {}, annotations {}…", self.client.server(), self.prefix)
    }

    /// The server may be reached at another address tomorrow.
    pub(crate) fn identity(&self) -> String {
        format!("the Kubernetes API, annotations {}…", self.prefix)
    }

    pub(crate) fn reconnect(&self) {
        self.client.reconnect();
    }

    /// The network configuration: a file, in a pod from a ConfigMap.
    pub(crate) async fn network_config(&self) -> Result<String, StoreError> {
        let path = &self.options.net_config_path;
        std::fs::read_to_string(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => StoreError::NoNetworkConfig {
                place: path.display().to_string(),
                remedy: "mount the ConfigMap kube-flannel-cfg there, or name the file with -net-config-path",
            },
            _ => StoreError::File {
                attempted: "read the network configuration",
                path: path.clone(),
                cause: error.to_string(),
            },
        })
    }

    pub(crate) fn refuse_config(&self) -> StoreError {
        StoreError::Options(format!(
            "with Kubernetes the network configuration is the file {}: change that, in a cluster the ConfigMap \
             kube-flannel-cfg, and restart flanneld",
            self.options.net_config_path.display()
        ))
    }

    pub(crate) async fn follow(&self, leases: &watch::Sender<Option<LeaseSet>>) -> std::convert::Infallible {
        follow::follow(self, leases).await
    }

    /// The leases of this moment.
    pub(crate) async fn list(&self) -> Result<Listing, StoreError> {
        let text = self.network_config().await?;
        let config =
            NetworkConfig::from_json(&text).map_err(|error| StoreError::Options(error.to_string()))?;
        let mut table = Table::new(self.prefix.clone(), Families::from(&config));
        let listed = follow::list(self, ("", ""), &mut |object| {
            table.insert(object);
        })
        .await;
        self.note(listed)?;
        Ok(Listing { leases: table.leases().clone(), ..Listing::default() })
    }

    /// Our Node's name.
    async fn name(&self) -> Result<&str, StoreError> {
        let name = self.name.get_or_try_init(|| self.ask_for_name()).await;
        name.map(String::as_str)
    }

    /// Our Node's name, if nobody has to be asked.
    fn known_name(&self) -> Option<String> {
        self.name.get().cloned()
    }

    async fn ask_for_name(&self) -> Result<String, StoreError> {
        let KubeOptions { pod_namespace, pod_name, .. } = &self.options;
        let attempted = format!("ask for the node of the pod '{pod_namespace}/{pod_name}'");
        let path = format!("/api/v1/namespaces/{}/pods/{}", encoded(pod_namespace), encoded(pod_name));
        let answer = self.note(self.client.call(&Ask::get(&attempted, path, READ_POD)).await)?;
        let pod: Value = serde_json::from_slice(&answer).unwrap_or_default();
        match pod["spec"]["nodeName"].as_str() {
            Some(name) if !name.is_empty() => Ok(name.to_owned()),
            _ => Err(StoreError::Refused {
                attempted,
                endpoint: self.client.server(),
                cause: format!("node name not present in pod spec '{pod_namespace}/{pod_name}'"),
                remedy: Some("set NODE_NAME in the DaemonSet"),
            }),
        }
    }

    /// Our Node as it is now; none if there is none.
    async fn ask_for_own_node(&self) -> Result<Option<OwnNode>, Failure> {
        let Some(answer) = self.get_own_node().await? else { return Ok(None) };
        self.own_node(&answer).map(Some)
    }

    async fn get_own_node(&self) -> Result<Option<Bytes>, Failure> {
        let name = self.name().await.map_err(|error| Failure { error, status: None, after: None })?;
        let path = format!("/api/v1/nodes/{}", encoded(name));
        match self.client.call(&Ask::get(format!("read the node {name:?}"), path, READ_NODE)).await {
            Err(failure) if failure.is(StatusCode::NOT_FOUND) => Ok(None),
            outcome => outcome.map(Some),
        }
    }

    fn own_node(&self, answer: &[u8]) -> Result<OwnNode, Failure> {
        match object::object(answer) {
            Ok(object) => Ok(OwnNode::new(&object, &self.prefix)),
            Err(why) => Err(failure::nonsense("read our node", &self.client.server(), &why)),
        }
    }

    /// Writes annotations of our Node; the Node as it is then.
    async fn annotate(&self, values: &BTreeMap<&'static str, Option<String>>) -> Result<OwnNode, Failure> {
        let name = self.name().await.map_err(|error| Failure { error, status: None, after: None })?;
        let annotations: serde_json::Map<String, Value> =
            values.iter().map(|(name, value)| (format!("{}{name}", self.prefix), json!(value))).collect();
        let patch = json!({ "metadata": { "annotations": annotations } });
        let answer = self.patch_status(name, "write our lease into", &patch).await?;
        self.own_node(&answer)
    }

    /// Compatibility: by way of the status, since flannel's account may patch nothing else.
    async fn patch_status(&self, name: &str, attempted: &str, patch: &Value) -> Result<Bytes, Failure> {
        let ask = Ask {
            attempted: format!("{attempted} the node {name:?}"),
            method: Method::PATCH,
            path: format!("/api/v1/nodes/{}/status", encoded(name)),
            body: Some((STRATEGIC_MERGE, patch.to_string())),
            right: PATCH_STATUS,
        };
        self.client.call(&ask).await
    }

    /// Does something that we need not be permitted to do; says whether it was done. Being forbidden is
    /// logged once, with the right that is missing, and not tried again for a while.
    async fn if_permitted(&self, ask: &Ask) -> Result<Option<Bytes>, Failure> {
        if self.forbidden().get(ask.right).is_some_and(|until| Instant::now() < *until) {
            return Ok(None);
        }
        match self.client.call(ask).await {
            Err(failure) if failure.is(StatusCode::FORBIDDEN) => {
                let known = self.forbidden().insert(ask.right, Instant::now() + FORBIDDEN_FOR);
                if known.is_none() {
                    warn!("{}", failure.error);
                }
                Ok(None)
            }
            outcome => outcome.map(Some),
        }
    }

    fn note<T>(&self, outcome: Result<T, Failure>) -> Result<T, StoreError> {
        match outcome {
            Ok(value) => self.health.note(Ok(value)),
            Err(failure) => {
                // What was refused was answered: the server is there.
                match failure.status {
                    Some(StatusCode::NOT_FOUND | StatusCode::CONFLICT) => self.health.answered(),
                    _ => self.health.failed(&failure.error),
                }
                Err(failure.error)
            }
        }
    }

    fn forbidden(&self) -> std::sync::MutexGuard<'_, HashMap<&'static str, Instant>> {
        self.forbidden.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn acquired(&self) -> std::sync::MutexGuard<'_, Option<OwnNode>> {
        self.acquired.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says at once what is wrong with a kubeconfig, rather than with every call.
fn access_check(options: &KubeOptions) -> Result<(), StoreError> {
    kubeconfig::Access::find(options).map(drop).map_err(StoreError::Options)
}

/// A text as a part of a path, or the value in a query.
fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                encoded.push(char::from(byte))
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// A handle on our Node.
pub(crate) fn node_of(kube: &Arc<Kube>) -> KubeNode {
    KubeNode { kube: Arc::clone(kube) }
}

#[cfg(test)]
mod mock;
#[cfg(test)]
mod tests;
