//! What only Kubernetes offers: this node as an object that others read.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::SystemTime;

use fabric::config::NetworkConfig;
use fabric::lease::Lease;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tracing::warn;

use super::client::Ask;
use super::record::{self, Families};
use super::{Kube, STRATEGIC_MERGE, encoded, failure, object, time};
use crate::StoreError;

/// How often a change of the Node is tried that somebody else was faster with.
const ATTEMPTS: usize = 5;
/// The API takes no longer messages of events.
const LONGEST_MESSAGE: usize = 1024;

const PATCH_NODES: &str =
    "to take taints off, flannel needs the right to patch nodes: add it to its ClusterRole";
const CREATE_EVENTS: &str =
    "to tell what happens, flannel needs the right to create events: add it to its ClusterRole";

/// This node in the API. Clones share their connection with the [`crate::Store`] that they came from.
///
/// Each call is one try, bounded in time; an error is worth another try unless it is said otherwise.
#[derive(Debug, Clone)]
pub struct KubeNode {
    pub(super) kube: Arc<Kube>,
}

/// The addresses that somebody wrote on the node for it to use (`…/node-public-ip`, `…/node-public-ipv6`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PublicAddresses {
    /// Takes the place of `-public-ip`.
    pub ipv4: Option<Ipv4Addr>,
    /// Takes the place of `-public-ipv6`.
    pub ipv6: Option<Ipv6Addr>,
}

/// Something that a person should know of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubeEvent {
    /// Whether somebody should look.
    pub is_warning: bool,
    /// One word for programs, `FlannelLeaseConflict`.
    pub reason: String,
    /// Words for people.
    pub message: String,
}

impl KubeNode {
    /// The node's name: `NODE_NAME`, or the node of the pod that we run in.
    pub async fn name(&self) -> Result<String, StoreError> {
        self.kube.name().await.map(str::to_owned)
    }

    /// The addresses that somebody wrote on the node for it to use. One that cannot be read is logged and
    /// left out. A Node that is not there yet has none.
    pub async fn public_addresses(&self) -> Result<PublicAddresses, StoreError> {
        let Some(node) = self.kube.note(self.kube.ask_for_own_node().await)? else {
            return Ok(PublicAddresses::default());
        };
        let (ipv4, ipv6) = node.node_addresses();
        let complain = |why| warn!("not used: {why}");
        Ok(PublicAddresses {
            ipv4: ipv4.unwrap_or_else(|why| {
                complain(why);
                None
            }),
            ipv6: ipv6.unwrap_or_else(|why| {
                complain(why);
                None
            }),
        })
    }

    /// What this node has told the others in its last run, if anything: for the Ethernet addresses of its
    /// devices. Costs one request, unlike [`crate::Store::list`].
    pub async fn published(&self) -> Result<Option<Lease>, StoreError> {
        let text = self.kube.network_config().await?;
        let config =
            NetworkConfig::from_json(&text).map_err(|error| StoreError::Options(error.to_string()))?;
        let Some(answer) = self.kube.note(self.kube.get_own_node().await)? else { return Ok(None) };
        let Ok(node) = object::object(&answer) else { return Ok(None) };
        let read = record::read(&node, &self.kube.prefix, Families::from(&config));
        Ok(read.and_then(|read| read.lease))
    }

    /// The addresses by which the cluster knows the node (`InternalIP`), as its kubelet found them.
    pub async fn internal_addresses(&self) -> Result<Vec<IpAddr>, StoreError> {
        let node = self.node().await?;
        let addresses = node["status"]["addresses"].as_array().into_iter().flatten();
        let internal = addresses.filter(|address| address["type"] == "InternalIP");
        Ok(internal.filter_map(|address| address["address"].as_str()?.parse().ok()).collect())
    }

    /// Sets the node's condition `NetworkUnavailable`. Writes nothing where it says so already.
    pub async fn set_network_unavailable(
        &self,
        unavailable: bool,
        reason: &str,
        message: &str,
    ) -> Result<(), StoreError> {
        let name = self.kube.name().await?;
        let status = if unavailable { "True" } else { "False" };
        let node = self.node().await?;
        let known = node["status"]["conditions"].as_array().and_then(|conditions| {
            conditions.iter().find(|condition| condition["type"] == "NetworkUnavailable")
        });
        let says = |key: &str, text: &str| known.is_some_and(|known| known[key] == text);
        if says("status", status) && says("reason", reason) && says("message", message) {
            return Ok(());
        }
        let now = time::format(SystemTime::now());
        let since =
            known.filter(|_| says("status", status)).and_then(|known| known["lastTransitionTime"].as_str());
        let condition = json!({
            "type": "NetworkUnavailable",
            "status": status,
            "reason": reason,
            "message": message,
            "lastHeartbeatTime": now,
            "lastTransitionTime": since.unwrap_or(&now),
        });
        let patch = json!({ "status": { "conditions": [condition] } });
        let written = self.kube.patch_status(name, "set the condition NetworkUnavailable of", &patch).await;
        self.kube.note(written).map(drop)
    }

    /// Takes all taints with this key off the node; says whether that was possible. It is not where we lack
    /// the right to patch nodes: that is logged once, and tried again ten minutes later at the earliest.
    pub async fn remove_taint(&self, key: &str) -> Result<bool, StoreError> {
        let name = self.kube.name().await?;
        for _ in 0..ATTEMPTS {
            let node = self.node().await?;
            let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
            let kept: Vec<&Value> = taints.iter().filter(|taint| taint["key"] != key).collect();
            if kept.len() == taints.len() {
                return Ok(true);
            }
            // The version has the server refuse this where somebody has changed the Node since.
            let patch = json!({
                "metadata": { "resourceVersion": node["metadata"]["resourceVersion"] },
                "spec": { "taints": kept },
            });
            let ask = Ask {
                attempted: format!("take the taint {key:?} off the node {name:?}"),
                method: Method::PATCH,
                path: format!("/api/v1/nodes/{}", encoded(name)),
                body: Some((STRATEGIC_MERGE, patch.to_string())),
                right: PATCH_NODES,
            };
            match self.kube.if_permitted(&ask).await {
                Err(failure) if failure.is(StatusCode::CONFLICT) => {}
                outcome => return self.kube.note(outcome).map(|done| done.is_some()),
            }
        }
        Err(StoreError::Refused {
            attempted: format!("take the taint {key:?} off the node {name:?}"),
            endpoint: self.kube.client.server(),
            cause: format!("somebody else has changed the Node {ATTEMPTS} times in a row"),
            remedy: None,
        })
    }

    /// Publishes an event of the node; says whether that was possible. It is not where we lack the right to
    /// create events: that is logged once, and tried again ten minutes later at the earliest. How often
    /// something is told is the caller's to limit.
    pub async fn publish_event(&self, event: &KubeEvent) -> Result<bool, StoreError> {
        let name = self.kube.name().await?;
        let (now, exactly) = (time::format(SystemTime::now()), time::format_micros(SystemTime::now()));
        let mut end = event.message.len().min(LONGEST_MESSAGE);
        while !event.message.is_char_boundary(end) {
            end -= 1;
        }
        let unique = exactly.bytes().filter(u8::is_ascii_digit).map(char::from).collect::<String>();
        let body = json!({
            "apiVersion": "v1",
            "kind": "Event",
            // Events of what is in no namespace live in this one.
            "metadata": { "name": format!("{name}.{unique}"), "namespace": "default" },
            "involvedObject": { "apiVersion": "v1", "kind": "Node", "name": name, "uid": name },
            "type": if event.is_warning { "Warning" } else { "Normal" },
            "reason": event.reason,
            "message": &event.message[..end],
            "source": { "component": "flanneld", "host": name },
            "reportingComponent": "flanneld",
            "reportingInstance": name,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        });
        let ask = Ask {
            attempted: format!("publish the event {} of the node {name:?}", event.reason),
            method: Method::POST,
            path: "/api/v1/namespaces/default/events".to_owned(),
            body: Some(("application/json", body.to_string())),
            right: CREATE_EVENTS,
        };
        let outcome = self.kube.if_permitted(&ask).await;
        self.kube.note(outcome).map(|done| done.is_some())
    }

    /// The whole Node.
    async fn node(&self) -> Result<Value, StoreError> {
        let answer = self.kube.note(self.kube.get_own_node().await)?;
        let answer = match answer {
            Some(answer) => answer,
            None => return Err(super::keep::no_node(&self.kube, self.kube.name().await?)),
        };
        serde_json::from_slice(&answer).map_err(|error| {
            failure::nonsense("read our node", &self.kube.client.server(), &error.to_string()).error
        })
    }
}
