//! How a node comes by its lease and holds on to it: by what its Node says.
//!
//! The podCIDRs are given to the Node by somebody else; we only write down how to reach us, and write
//! it again when it has changed, when somebody has changed or removed it, and when the Node was deleted
//! and created again, perhaps with other podCIDRs.

use std::convert::Infallible;
use std::time::Duration;

use fabric::config::NetworkConfig;
use fabric::lease::{Attributes, Lease, LeaseSet, Subnets};
use http::StatusCode;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use super::Kube;
use super::failure::Failure;
use super::record::{self, Families, OwnNode};
use crate::backoff::Backoff;
use crate::registration::Surroundings;
use crate::{AcquireError, Claim, Kept, KeptState, StoreError};

/// Somebody who changes our annotations more often than this is not answered each time.
const REWRITE_EVERY: Duration = Duration::from_secs(10);

/// How often a Node that has no lease for us is looked at, beside the watch.
const ASK_AGAIN: Duration = Duration::from_secs(30);

const NO_NODE: &str =
    "the kubelet makes it when it registers; if it goes by another name, set NODE_NAME to that";
const NO_POD_CIDR: &str = "let the controller-manager hand them out (--allocate-node-cidrs and --cluster-cidr, with \
     kubeadm --pod-network-cidr), or set spec.podCIDR of the Node, or run flanneld with --allocate-node-cidrs";
const OUTSIDE: &str = "make the Network of net-conf.json contain the controller-manager's --cluster-cidr";

/// Leases what the Node has been given. One try.
pub(crate) async fn acquire(kube: &Kube, claim: &Claim) -> Result<Lease, AcquireError> {
    let name = kube.name().await?;
    let mut node = kube.note(kube.ask_for_own_node().await)?.ok_or_else(|| no_node(kube, name))?;
    let subnets = usable(&node, &claim.config).map_err(|(why, remedy)| AcquireError::NoPodCidr {
        node: name.to_owned(),
        why,
        remedy,
    })?;
    for family in missing_families(&subnets, &claim.config) {
        warn!(node = name, "the node has no {family} podCIDR, so its pods have no {family}");
    }
    let (published, complaints) = node.overwritten(&claim.attributes);
    complaints.iter().for_each(|complaint| warn!(node = name, "{complaint}"));
    if published != claim.attributes {
        let addresses: Vec<String> = published.public_addresses().map(|ip| ip.to_string()).collect();
        info!("overriding our public address with {} from an annotation of the node", addresses.join(" "));
    }
    let missing = node.missing(&published);
    if !missing.is_empty() {
        node = kube.note(kube.annotate(&missing).await)?;
    }
    let created = node.created;
    *kube.acquired() = Some(node);
    Ok(Lease { subnets, attributes: published, created })
}

pub(super) fn no_node(kube: &Kube, name: &str) -> StoreError {
    StoreError::Refused {
        attempted: format!("read the node {name:?}"),
        endpoint: kube.client.server(),
        cause: "there is no Node of that name".to_owned(),
        remedy: Some(NO_NODE),
    }
}

/// The pod subnets of a Node that this network can use, or what is wrong and what to do about it.
fn usable(node: &OwnNode, config: &NetworkConfig) -> Result<Subnets, (String, &'static str)> {
    let cidrs = node.pod_cidrs.iter().map(String::as_str);
    let subnets = record::subnets(cidrs, Families::from(config)).map_err(|why| (why, NO_POD_CIDR))?;
    if subnets == Subnets::default() {
        let why = match node.pod_cidrs.is_empty() {
            true => "pod cidr not assigned: its spec.podCIDR is empty".to_owned(),
            false => format!(
                "pod cidr not assigned: its podCIDR {} is of a family that net-conf.json does not enable",
                node.pod_cidrs.join(" ")
            ),
        };
        return Err((why, NO_POD_CIDR));
    }
    // Compatibility: the original looks at this only after it has told its peers.
    if let (Some(network), Some(subnet)) = (&config.ipv4, subnets.ipv4)
        && !network.network.contains(&subnet)
    {
        let network = network.network;
        return Err((
            format!(
                "subnet {network} specified in the flannel net config doesn't contain its PodCIDR {subnet}"
            ),
            OUTSIDE,
        ));
    }
    if let (Some(network), Some(subnet)) = (&config.ipv6, subnets.ipv6)
        && !network.network.contains(&subnet)
    {
        let network = network.network;
        return Err((
            format!(
                "subnet {network} specified in the flannel net config doesn't contain its IPv6 PodCIDR {subnet}"
            ),
            OUTSIDE,
        ));
    }
    Ok(subnets)
}

fn missing_families(subnets: &Subnets, config: &NetworkConfig) -> Vec<&'static str> {
    let ipv4 = (config.ipv4.is_some() && subnets.ipv4.is_none()).then_some("IPv4");
    let ipv6 = (config.ipv6.is_some() && subnets.ipv6.is_none()).then_some("IPv6");
    ipv4.into_iter().chain(ipv6).collect()
}

/// Keeps a lease for as long as it is polled.
pub(crate) async fn keep(
    kube: &Kube,
    lease: Lease,
    mut around: Surroundings,
    own: watch::Sender<Kept>,
) -> Infallible {
    let mut seen = kube.seen.subscribe();
    let mut keeper = Keeper {
        kube,
        config: around.config.clone(),
        kept: Kept { lease, state: KeptState::Held, expires: None },
        node: kube.acquired().clone().map(Some),
        written: None,
        last_error: String::new(),
    };
    let (mut backoff, mut again) = (Backoff::new(), Backoff::new());
    let mut attributes_may_change = true;
    loop {
        let wanted = around.attributes.borrow_and_update().clone();
        let leases = around.leases.borrow_and_update().clone();
        let until = match keeper.settle(&wanted, leases.as_ref()).await {
            Ok(true) => {
                backoff.reset();
                // Somebody else writes too: not as fast as both of us can.
                let soon =
                    keeper.written.replace(Instant::now()).is_some_and(|last| last.elapsed() < REWRITE_EVERY);
                if soon {
                    tokio::time::sleep(again.delay()).await;
                } else {
                    again.reset();
                }
                None
            }
            Ok(false) => {
                backoff.reset();
                (keeper.kept.state != KeptState::Held).then(|| Instant::now() + ASK_AGAIN)
            }
            Err(failure) => {
                keeper.note_failure(&failure);
                Some(Instant::now() + backoff.delay().max(failure.after.unwrap_or_default()))
            }
        };
        let kept = &keeper.kept;
        own.send_if_modified(|published| {
            let changed = published != kept;
            if changed {
                published.clone_from(kept);
            }
            changed
        });
        loop {
            tokio::select! {
                () = async { match until { Some(at) => tokio::time::sleep_until(at).await, None => std::future::pending().await } } => break,
                changed = around.attributes.changed(), if attributes_may_change => match changed {
                    Ok(()) => break,
                    Err(_) => attributes_may_change = false,
                },
                _ = seen.changed() => {
                    keeper.node = seen.borrow_and_update().clone();
                    break;
                },
                changed = around.leases.changed() => {
                    let rival = keeper.rival(around.leases.borrow_and_update().as_ref());
                    if changed.is_err() {
                        return std::future::pending().await;
                    }
                    let known = match &keeper.kept.state {
                        KeptState::TakenByAnother { by } => Some(by.clone()),
                        _ => None,
                    };
                    if rival != known {
                        break;
                    }
                },
            }
        }
    }
}

struct Keeper<'a> {
    kube: &'a Kube,
    config: NetworkConfig,
    kept: Kept,
    /// Our Node as it was last seen or written; none if it has not been, none inside if there is none.
    node: Option<Option<OwnNode>>,
    /// When we wrote last.
    written: Option<Instant>,
    last_error: String,
}

impl Keeper<'_> {
    /// Looks at our Node and does what it takes to make it say what we want; says whether something had
    /// to be written.
    async fn settle(&mut self, wanted: &Attributes, leases: Option<&LeaseSet>) -> Result<bool, Failure> {
        let node = match self.node.clone() {
            Some(Some(node)) => Some(node),
            // That it is gone is asked for again: the watch may be behind.
            Some(None) | None => self.kube.ask_for_own_node().await?,
        };
        self.node = Some(node.clone());
        let Some(node) = node else {
            let name = self.kube.known_name().unwrap_or_default();
            self.lose(format!("the Node {name} has been deleted; its lease is back when it registers again"));
            return Ok(false);
        };
        match usable(&node, &self.config) {
            Ok(subnets) => self.move_to(subnets),
            Err((why, remedy)) => {
                self.lose(format!("the node's {why}; {remedy}"));
                return Ok(false);
            }
        }
        self.kept.lease.created = node.created;
        let (published, _) = node.overwritten(wanted);
        let missing = node.missing(&published);
        if !missing.is_empty() {
            info!(
                "writing our lease into the node: {}",
                missing.keys().copied().collect::<Vec<_>>().join(", ")
            );
            self.node = Some(Some(self.kube.annotate(&missing).await?));
        }
        self.kept.lease.attributes = published;
        self.last_error.clear();
        self.kept.state = match self.rival(leases) {
            Some(by) => {
                if !matches!(self.kept.state, KeptState::TakenByAnother { .. }) {
                    let addresses: Vec<String> = by.public_addresses().map(|ip| ip.to_string()).collect();
                    warn!(subnets = %self.kept.lease.subnets, by = addresses.join(", "),
                        "an older node has our podCIDR; we keep quiet until it is gone");
                }
                KeptState::TakenByAnother { by }
            }
            None => {
                if self.kept.state != KeptState::Held {
                    info!(subnets = %self.kept.lease.subnets, "our lease is ours again");
                }
                KeptState::Held
            }
        };
        Ok(!missing.is_empty())
    }

    fn move_to(&mut self, subnets: Subnets) {
        if self.kept.lease.subnets != subnets {
            warn!(before = %self.kept.lease.subnets, now = %subnets, "the node has been given another podCIDR");
            self.kept.lease.subnets = subnets;
        }
    }

    /// What the other node says of itself, if an older one has our podCIDRs.
    fn rival(&self, leases: Option<&LeaseSet>) -> Option<Attributes> {
        let leases = leases?;
        let is_skipped = leases.skipped.contains_key(&self.kube.known_name()?);
        let holder = leases.get(&self.kept.lease.subnets)?;
        let is_other =
            holder.created != self.kept.lease.created || holder.attributes != self.kept.lease.attributes;
        (is_skipped && is_other).then(|| holder.attributes.clone())
    }

    fn lose(&mut self, reason: String) {
        let state = KeptState::Lost { reason: reason.clone() };
        if self.kept.state != state {
            warn!(reason, "our lease is lost");
            self.kept.state = state;
        }
    }

    /// A server that is away takes nothing from us; what it refuses has to be told.
    fn note_failure(&mut self, failure: &Failure) {
        let error = failure.error.to_string();
        if self.last_error != error {
            warn!(error, "our lease cannot be written into the node; trying again");
            self.last_error = error;
        }
        match failure.status {
            // It may just have been deleted.
            Some(StatusCode::NOT_FOUND) => self.node = None,
            Some(_) => {}
            None => self.kube.health.failed(&failure.error),
        }
    }
}
