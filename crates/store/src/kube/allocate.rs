//! Hands out podCIDRs to Nodes where no controller-manager does (`-allocate-node-cidrs`).
//!
//! Whoever sees a Node without podCIDRs takes a lock, a Lease of the API: the node itself at once, the
//! others after a while, so that as a rule nobody gets in anybody's way, and a cluster in which nothing
//! is missing has no traffic for it. The holder lists all Nodes and gives all that miss podCIDRs theirs.
//!
//! Never two Nodes the same, even if a holder falls asleep, loses the lock and wakes up again, whatever
//! the clocks say: what is about to be given is first written into the lock, on condition that it is
//! still ours. The next holder finds it there and gives it to the same Node, or knows that this Node (by
//! its UID) is no more. A Node's podCIDRs cannot be changed, which the server sees to; a write that comes
//! late is about another version of the Node, and is refused.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::{Duration, SystemTime};

use fabric::allocation;
use fabric::config::NetworkConfig;
use fabric::lease::{Attributes, Lease, LeaseSet, Subnets};
use http::{Method, StatusCode};
use ipnet::IpNet;
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::{info, warn};

use super::client::Ask;
use super::failure::{self, Failure};
use super::{Kube, STRATEGIC_MERGE, encoded, follow, time};
use crate::backoff::{self, Backoff};

/// The lock's name.
const LOCK: &str = "flannel-node-cidrs";
/// Where it is outside of pods.
const NAMESPACE: &str = "kube-flannel";
/// What is about to be given, in the lock: JSON, podCIDRs by the UIDs of Nodes.
const ABOUT_TO: &str = "flannel-rs/about-to-give";
/// How long a holder may be silent before it is taken for dead.
const SILENT: Duration = Duration::from_secs(15);
/// How many Nodes are given podCIDRs at once: the lock has to hold them.
const BATCH: usize = 200;
/// How long a Node may be without before somebody else than itself helps it, at least and at most.
const OTHERS_WAIT: Duration = Duration::from_secs(2);
const OTHERS_SPREAD: Duration = Duration::from_secs(10);
const ITSELF_SPREAD: Duration = Duration::from_millis(200);
/// After how long it is looked at again where we may not do it.
const FORBIDDEN: Duration = Duration::from_secs(600);

const LOCK_RIGHT: &str = "to hand out podCIDRs, flannel needs the rights to get, create and update leases \
     (coordination.k8s.io) in its namespace: add them to its Role";
const NODE_RIGHT: &str =
    "to hand out podCIDRs, flannel needs the right to patch nodes: add it to its ClusterRole";

/// Who misses podCIDRs, as the follower sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Missing {
    pub(super) nodes: usize,
    /// Whether this node is one of them.
    pub(super) ours: bool,
}

/// A Node, as far as podCIDRs go.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Member {
    name: String,
    uid: String,
    version: String,
    pod_cidrs: Vec<String>,
}

/// What a Node is to get.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Gift {
    member: Member,
    subnets: Subnets,
}

/// Why a round came to nothing.
enum Hitch {
    /// Somebody else is at it, or was faster.
    Elsewhere,
    /// We may not.
    Forbidden,
    Failed(Failure),
}

impl From<Failure> for Hitch {
    fn from(failure: Failure) -> Hitch {
        match failure.status {
            Some(StatusCode::CONFLICT) => Hitch::Elsewhere,
            _ => Hitch::Failed(failure),
        }
    }
}

/// Hands out podCIDRs for as long as it is polled.
pub(crate) async fn allocate(kube: &Kube, config: &NetworkConfig) -> Infallible {
    let mut missing = kube.missing.subscribe();
    let mut giver = Giver { kube, config, lock: None };
    let mut backoff = Backoff::new();
    loop {
        let now = *missing.borrow_and_update();
        if now.nodes == 0 {
            // The sender lives in `kube`.
            let _ = missing.changed().await;
            continue;
        }
        let pause = match now.ours {
            true => backoff::up_to(ITSELF_SPREAD),
            false => OTHERS_WAIT + backoff::up_to(OTHERS_SPREAD),
        };
        tokio::time::sleep(pause).await;
        if missing.borrow().nodes == 0 {
            continue;
        }
        match giver.round().await {
            Ok(0) => tokio::time::sleep(OTHERS_WAIT).await,
            Ok(given) => {
                info!(given, "handed out podCIDRs");
                backoff.reset();
                // Until the watch has told.
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Err(Hitch::Elsewhere) => tokio::time::sleep(backoff.delay()).await,
            Err(Hitch::Forbidden) => tokio::time::sleep(FORBIDDEN).await,
            Err(Hitch::Failed(failure)) => {
                warn!("{}", failure.error);
                tokio::time::sleep(backoff.delay().max(failure.after.unwrap_or_default())).await;
            }
        }
    }
}

struct Giver<'a> {
    kube: &'a Kube,
    config: &'a NetworkConfig,
    /// The version of the lock that somebody else holds, and since when we see that.
    lock: Option<(String, Instant)>,
}

impl Giver<'_> {
    /// Takes the lock, gives what is missing, lets go of the lock; how many Nodes were given theirs.
    async fn round(&mut self) -> Result<usize, Hitch> {
        let mut lock = self.take().await?;
        let outcome = self.give(&mut lock).await;
        // What could not be given stays written in the lock.
        lock["spec"]["holderIdentity"] = "".into();
        let released = self.write(&mut lock).await;
        let given = outcome?;
        released?;
        Ok(given)
    }

    async fn give(&self, lock: &mut Value) -> Result<usize, Hitch> {
        let mut members = Vec::new();
        follow::list(self.kube, ("", ""), &mut |object| {
            members.push(Member {
                name: object.metadata.name.clone().into_owned(),
                uid: object.metadata.uid.clone().into_owned(),
                version: object.metadata.resource_version.clone().into_owned(),
                pod_cidrs: object.pod_cidrs().map(str::to_owned).collect(),
            });
        })
        .await?;
        let gifts = gifts(&members, &promised(lock), self.config);
        let Gifts { gifts, none_left } = gifts;
        if let Some(why) = none_left {
            warn!("nodes stay without podCIDRs: {why}");
        }
        if gifts.is_empty() {
            promise(lock, &[]);
            return Ok(0);
        }
        promise(lock, &gifts);
        self.write(lock).await?;
        let mut kept = Vec::new();
        let mut failed = None;
        for gift in &gifts {
            if let Err(hitch) = self.hand_over(gift).await {
                kept.push(gift.clone());
                failed = Some(hitch);
            }
        }
        promise(lock, &kept);
        match failed {
            Some(hitch) if kept.len() == gifts.len() => Err(hitch),
            _ => Ok(gifts.len() - kept.len()),
        }
    }

    /// Gives a Node its podCIDRs, on condition that it is the one that we saw.
    async fn hand_over(&self, gift: &Gift) -> Result<(), Hitch> {
        let Gift { member, subnets } = gift;
        let path = format!("/api/v1/nodes/{}", encoded(&member.name));
        let mut version = member.version.clone();
        let cidrs: Vec<String> = subnets.iter().map(|subnet| subnet.to_string()).collect();
        for _ in 0..5 {
            let patch = json!({
                "metadata": { "uid": member.uid, "resourceVersion": version },
                "spec": { "podCIDR": cidrs.first(), "podCIDRs": cidrs },
            });
            let ask = Ask {
                attempted: format!("give the node {:?} its podCIDR {subnets}", member.name),
                method: Method::PATCH,
                path: path.clone(),
                body: Some((STRATEGIC_MERGE, patch.to_string())),
                right: NODE_RIGHT,
            };
            match self.kube.if_permitted(&ask).await {
                Ok(Some(_)) => {
                    info!(node = member.name, %subnets, "handed out a podCIDR");
                    return Ok(());
                }
                Ok(None) => return Err(Hitch::Forbidden),
                // It is no more, and needs none.
                Err(failure) if failure.is(StatusCode::NOT_FOUND) => return Ok(()),
                // Its kubelet has written too: once more if it is still the same, and still without.
                Err(failure) if failure.is(StatusCode::CONFLICT) => {
                    let ask =
                        Ask::get(format!("read the node {:?}", member.name), path.clone(), super::READ_NODE);
                    let node = match self.kube.client.call(&ask).await {
                        Err(failure) if failure.is(StatusCode::NOT_FOUND) => return Ok(()),
                        answer => answer?,
                    };
                    let node: Value = serde_json::from_slice(&node).unwrap_or_default();
                    let has_some = node["spec"]["podCIDR"].as_str().is_some_and(|cidr| !cidr.is_empty());
                    if node["metadata"]["uid"] != member.uid.as_str() || has_some {
                        return Ok(());
                    }
                    version = node["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
                }
                Err(failure) => return Err(failure.into()),
            }
        }
        Err(Hitch::Elsewhere)
    }

    /// Takes the lock: the Lease as it is then.
    async fn take(&mut self) -> Result<Value, Hitch> {
        let us = self.us().await?;
        let ask = Ask::get("read the lock for handing out podCIDRs", self.path(LOCK), LOCK_RIGHT);
        let found = match self.kube.if_permitted(&ask).await {
            Ok(Some(answer)) => Some(serde_json::from_slice::<Value>(&answer).unwrap_or_default()),
            Ok(None) => return Err(Hitch::Forbidden),
            Err(failure) if failure.is(StatusCode::NOT_FOUND) => None,
            Err(failure) => return Err(failure.into()),
        };
        let Some(mut lock) = found else {
            let lock = json!({
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": { "name": LOCK },
                "spec": { "holderIdentity": us, "leaseDurationSeconds": SILENT.as_secs(),
                    "acquireTime": now(), "renewTime": now() },
            });
            return self.send(Method::POST, &self.path(""), &lock).await;
        };
        let holder = lock["spec"]["holderIdentity"].as_str().unwrap_or_default();
        if !holder.is_empty() && holder != us {
            // By our own clock: how long it has not changed while we looked.
            let version = lock["metadata"]["resourceVersion"].as_str().unwrap_or_default();
            match &self.lock {
                Some((known, since)) if known == version => {
                    if since.elapsed() < SILENT {
                        return Err(Hitch::Elsewhere);
                    }
                    warn!(holder, "whoever hands out podCIDRs has fallen silent, taking over");
                }
                _ => {
                    self.lock = Some((version.to_owned(), Instant::now()));
                    return Err(Hitch::Elsewhere);
                }
            }
        }
        self.lock = None;
        lock["spec"]["holderIdentity"] = us.into();
        lock["spec"]["acquireTime"] = now().into();
        self.write(&mut lock).await?;
        Ok(lock)
    }

    /// Writes the lock, on condition that nobody else has.
    async fn write(&self, lock: &mut Value) -> Result<(), Hitch> {
        lock["spec"]["renewTime"] = now().into();
        *lock = self.send(Method::PUT, &self.path(LOCK), lock).await?;
        Ok(())
    }

    async fn send(&self, method: Method, path: &str, lock: &Value) -> Result<Value, Hitch> {
        let ask = Ask {
            attempted: "write the lock for handing out podCIDRs".to_owned(),
            method,
            path: path.to_owned(),
            body: Some(("application/json", lock.to_string())),
            right: LOCK_RIGHT,
        };
        let answer = self.kube.if_permitted(&ask).await?.ok_or(Hitch::Forbidden)?;
        serde_json::from_slice(&answer).map_err(|error| {
            let server = self.kube.client.server();
            Hitch::Failed(failure::nonsense(&ask.attempted, &server, &error.to_string()))
        })
    }

    fn path(&self, name: &str) -> String {
        let namespace = &self.kube.options.pod_namespace;
        let namespace = if namespace.is_empty() { NAMESPACE } else { namespace };
        let slash = if name.is_empty() { "" } else { "/" };
        format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases{slash}{name}", encoded(namespace))
    }

    /// As whom we hold the lock. Two runs of one node are two.
    async fn us(&self) -> Result<String, Hitch> {
        let name = self.kube.name().await;
        let name = name.map_err(|error| Hitch::Failed(Failure { error, status: None, after: None }))?;
        Ok(format!("{name}_{}", std::process::id()))
    }
}

fn now() -> String {
    time::format_micros(SystemTime::now())
}

/// What the lock says that is about to be given: podCIDRs by UID. What cannot be read is nothing.
fn promised(lock: &Value) -> BTreeMap<String, Subnets> {
    let text = lock["metadata"]["annotations"][ABOUT_TO].as_str().unwrap_or("{}");
    let cidrs: BTreeMap<String, Vec<IpNet>> = serde_json::from_str(text).unwrap_or_default();
    cidrs.into_iter().map(|(uid, cidrs)| (uid, subnets(&cidrs))).collect()
}

fn promise(lock: &mut Value, gifts: &[Gift]) {
    let cidrs: BTreeMap<&str, Vec<IpNet>> =
        gifts.iter().map(|gift| (gift.member.uid.as_str(), gift.subnets.iter().collect())).collect();
    lock["metadata"]["annotations"][ABOUT_TO] = json!(cidrs).to_string().into();
}

fn subnets(cidrs: &[IpNet]) -> Subnets {
    let mut subnets = Subnets::default();
    for cidr in cidrs {
        match cidr {
            IpNet::V4(net) => subnets.ipv4 = Some(net.trunc()),
            IpNet::V6(net) => subnets.ipv6 = Some(net.trunc()),
        }
    }
    subnets
}

#[derive(Debug, PartialEq, Eq)]
struct Gifts {
    gifts: Vec<Gift>,
    /// Why not all Nodes get something.
    none_left: Option<String>,
}

/// What is to be given to whom: what was promised to Nodes that still miss it, then what is free.
fn gifts(members: &[Member], promised: &BTreeMap<String, Subnets>, config: &NetworkConfig) -> Gifts {
    let mut taken = LeaseSet::default();
    let take = |taken: &mut LeaseSet, subnets: Subnets| {
        taken.insert(Lease { subnets, attributes: Attributes::default(), created: 0 });
    };
    for member in members {
        // Each by itself: Nodes may share one and not the other.
        let cidrs = member.pod_cidrs.iter().filter_map(|text| text.parse::<IpNet>().ok());
        cidrs.for_each(|cidr| take(&mut taken, subnets(&[cidr])));
    }
    let mut missing: Vec<&Member> = members.iter().filter(|member| member.pod_cidrs.is_empty()).collect();
    missing.sort_by_key(|member| (!promised.contains_key(&member.uid), &member.name));
    let mut gifts = Vec::new();
    // A promise to a Node that is not (or no longer) without is void.
    for member in missing.iter().take(BATCH) {
        if let Some(subnets) = promised.get(&member.uid) {
            subnets.iter().for_each(|subnet| take(&mut taken, self::subnets(&[subnet])));
            gifts.push(Gift { member: (*member).clone(), subnets: *subnets });
        }
    }
    for member in missing.iter().take(BATCH).skip(gifts.len()) {
        match allocation::choose(config, &taken, &mut |_| 0) {
            Ok(subnets) => {
                subnets.iter().for_each(|subnet| take(&mut taken, self::subnets(&[subnet])));
                gifts.push(Gift { member: (*member).clone(), subnets });
            }
            Err(error) => return Gifts { gifts, none_left: Some(error.to_string()) },
        }
    }
    Gifts { gifts, none_left: None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn config() -> NetworkConfig {
        NetworkConfig::from_json(
            r#"{"Network":"10.0.0.0/20","SubnetLen":24,"EnableIPv6":true,"IPv6Network":"fd00::/56"}"#,
        )
        .unwrap()
    }

    fn member(name: &str, pod_cidrs: &[&str]) -> Member {
        Member {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            version: "1".to_owned(),
            pod_cidrs: pod_cidrs.iter().map(|cidr| (*cidr).to_owned()).collect(),
        }
    }

    fn shown(gifts: &Gifts) -> Vec<String> {
        gifts.gifts.iter().map(|gift| format!("{} {}", gift.member.name, gift.subnets)).collect()
    }

    #[test]
    fn whoever_misses_gets_what_nobody_has_or_is_promised() {
        let members = [member("a", &[]), member("b", &["10.0.1.0/24", "fd00:0:0:7::/64"]), member("c", &[])];
        let found = gifts(&members, &BTreeMap::new(), &config());
        assert_eq!(shown(&found), ["a 10.0.2.0/24 fd00:0:0:1::/64", "c 10.0.3.0/24 fd00:0:0:2::/64"]);
        let subnets = |key: &str| key.parse::<Subnets>().unwrap();
        let promised = BTreeMap::from([
            ("uid-c".to_owned(), subnets("10.0.2.0-24&fd00:0:0:1::-64")),
            ("uid-gone".to_owned(), subnets("10.0.3.0-24&fd00:0:0:2::-64")),
        ]);
        let found = gifts(&members, &promised, &config());
        assert_eq!(shown(&found), ["c 10.0.2.0/24 fd00:0:0:1::/64", "a 10.0.3.0/24 fd00:0:0:2::/64"]);
    }

    #[test]
    fn a_promise_is_read_as_it_was_written_and_nonsense_is_none() {
        let subnets = "10.0.2.0-24&fd00:0:0:1::-64".parse().unwrap();
        let mut lock = json!({ "metadata": { "name": LOCK } });
        promise(&mut lock, &[Gift { member: member("a", &[]), subnets }]);
        assert_eq!(promised(&lock), BTreeMap::from([("uid-a".to_owned(), subnets)]));
        lock["metadata"]["annotations"][ABOUT_TO] = "[1".into();
        assert!(promised(&lock).is_empty());
    }

    proptest! {
        #[test]
        fn no_two_nodes_ever_get_the_same(
            nodes in proptest::collection::vec((0u8..30, proptest::option::of(0u8..16)), 0..40),
        ) {
            let members: Vec<Member> = nodes
                .iter()
                .enumerate()
                .map(|(index, (name, subnet))| {
                    let cidrs: Vec<String> = subnet.iter().map(|third| format!("10.0.{third}.0/24")).collect();
                    let cidrs: Vec<&str> = cidrs.iter().map(String::as_str).collect();
                    member(&format!("{name}-{index}"), &cidrs)
                })
                .collect();
            let missing = members.iter().filter(|member| member.pod_cidrs.is_empty()).count();
            let found = gifts(&members, &BTreeMap::new(), &config());
            let mut taken: Vec<String> = members.iter().flat_map(|member| member.pod_cidrs.clone()).collect();
            taken.sort();
            taken.dedup();
            for gift in &found.gifts {
                let ipv4 = gift.subnets.ipv4.unwrap().to_string();
                prop_assert!(!taken.contains(&ipv4), "{ipv4} twice");
                taken.push(ipv4);
            }
            prop_assert_eq!(found.gifts.len() < missing, found.none_left.is_some());
        }
    }
}
