//! What only Kubernetes offers: this node as an object that others read.

use std::net::{Ipv4Addr, Ipv6Addr};

use fabric::lease::Lease;

use crate::StoreError;

/// This node in the API. Clones share their connection with the [`crate::Store`] that they came from.
///
/// Each call is one try, bounded in time; an error is worth another try unless it is said otherwise.
#[derive(Debug, Clone)]
pub struct KubeNode {}

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
        Err(not_yet())
    }

    /// The addresses that somebody wrote on the node for it to use. One that cannot be read is logged and
    /// left out.
    pub async fn public_addresses(&self) -> Result<PublicAddresses, StoreError> {
        Err(not_yet())
    }

    /// What this node has told the others in its last run, if anything: for the Ethernet addresses of its
    /// devices. Costs one request, unlike [`crate::Store::list`].
    pub async fn published(&self) -> Result<Option<Lease>, StoreError> {
        Err(not_yet())
    }

    /// Sets the node's condition `NetworkUnavailable`. Writes nothing where it says so already.
    pub async fn set_network_unavailable(
        &self,
        _unavailable: bool,
        _reason: &str,
        _message: &str,
    ) -> Result<(), StoreError> {
        Err(not_yet())
    }

    /// Takes all taints with this key off the node; says whether that was possible. It is not where we lack
    /// the right to patch nodes: that is logged once, and tried again ten minutes later at the earliest.
    pub async fn remove_taint(&self, _key: &str) -> Result<bool, StoreError> {
        Err(not_yet())
    }

    /// Publishes an event of the node; says whether that was possible. It is not where we lack the right to
    /// create events: that is logged once, and tried again ten minutes later at the earliest. How often
    /// something is told is the caller's to limit.
    pub async fn publish_event(&self, _event: &KubeEvent) -> Result<bool, StoreError> {
        Err(not_yet())
    }
}

fn not_yet() -> StoreError {
    StoreError::Options("-kube-subnet-mgr: the Kubernetes API is not asked by this build yet".to_owned())
}
