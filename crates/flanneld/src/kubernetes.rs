//! What Kubernetes is told about this node beside its lease: the condition `NetworkUnavailable`, that
//! a startup taint can go, and events for people.
//!
//! The rights that the original has are enough for the condition. Those for taints (`patch` of
//! `nodes`) and events (`create` of `events`) are optional; where one is missing, the store says so and
//! the rest goes on.

pub mod chronicle;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::IpAddr;
use std::time::Duration;

use fabric::status::{External, LeaseState, Status};
use store::{KubeEvent, KubeNode};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::availability::{Availability, Condition};
use crate::board::Board;
use crate::retry::Retry;
use chronicle::{Chronicle, Event, Weight};

/// How long the last event before the end may take.
const LAST_WORD: Duration = Duration::from_secs(2);
/// How many events wait for an API that is away.
const UNSAID: usize = 10;
/// After how long the node is looked at though nothing is known to have changed: somebody may have
/// written another condition, or a taint.
const LOOK_AGAIN: Duration = Duration::from_secs(600);

/// What the operator wants Kubernetes to be told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Whether the condition `NetworkUnavailable` is kept.
    pub condition: bool,
    /// Keys of taints that go when the node is ready.
    pub startup_taints: Vec<String>,
    /// Whether podCIDRs are handed out to Nodes that have none.
    pub allocate: bool,
}

/// Tells Kubernetes how this node is, until dropped.
pub async fn tell(node: &KubeNode, wanted: &Wanted, board: &Board) -> Infallible {
    let taints = &wanted.startup_taints;
    let (say, said) = mpsc::channel(1);
    tokio::select! {
        never = keep_condition(node, board), if wanted.condition => match never {},
        never = remove_taints(node, taints, board), if !taints.is_empty() => match never {},
        never = report(node, board, said) => match never {},
        never = question_interface(node, board, say) => match never {},
    }
}

/// Tells why flanneld ends, which it does not do by itself unless something is wrong.
pub async fn last_word(node: &KubeNode, error: &anyhow::Error) {
    let event = KubeEvent {
        is_warning: true,
        reason: "FlannelCannotStart".to_owned(),
        message: format!("{error:#}"),
    };
    if let Ok(Err(error)) = tokio::time::timeout(LAST_WORD, node.publish_event(&event)).await {
        tracing::debug!(%error, "cannot tell why flanneld ends");
    }
}

/// Keeps the condition equal to what the status says, also of a Node that was deleted and made anew.
async fn keep_condition(node: &KubeNode, board: &Board) -> Infallible {
    let mut status = board.subscribe();
    let (mut availability, mut lease) = (Availability::default(), None);
    let mut wanted: Option<Condition> = None;
    let mut unsaid = false;
    let mut retry = Retry::new("set the node's condition NetworkUnavailable");
    loop {
        let again = {
            let status = status.borrow_and_update();
            let (news, again) = availability.look(&status, Instant::now());
            unsaid |= news.is_some() || returned(&mut lease, &status);
            wanted = news.or(wanted);
            again
        };
        if unsaid && let Some(Condition { unavailable, reason, message }) = &wanted {
            match node.set_network_unavailable(*unavailable, reason, message).await {
                Ok(()) => {
                    tracing::debug!(unavailable, reason, "the node's condition NetworkUnavailable is set");
                    board.failing("node condition", []);
                    retry = Retry::new("set the node's condition NetworkUnavailable");
                    unsaid = false;
                }
                Err(error) => {
                    board.failing("node condition", [(error.to_string(), String::new())]);
                    retry.pause(&error).await;
                    continue;
                }
            }
        }
        tokio::select! {
            // The sender lives in the board.
            _ = status.changed() => {}
            () = until(again) => {}
            () = tokio::time::sleep(LOOK_AGAIN) => unsaid = true,
        }
    }
}

/// Takes the startup taints off a node that is ready, again if the node was made anew.
async fn remove_taints(node: &KubeNode, keys: &[String], board: &Board) -> Infallible {
    board.ready().await;
    let mut status = board.subscribe();
    let mut lease = None;
    let mut retry = Retry::new("remove the startup taint");
    loop {
        let mut failed = false;
        for key in keys {
            match node.remove_taint(key).await {
                Ok(true) => board.failing("startup taint", []),
                // Not permitted, which the store has logged with what is missing.
                Ok(false) => {
                    let what = format!("the taint {key} may not be removed from this node");
                    let remedy = "allow flannel's ClusterRole the verb patch of nodes";
                    board.failing("startup taint", [(what, remedy.to_owned())]);
                }
                Err(error) => {
                    board.failing("startup taint", [(error.to_string(), String::new())]);
                    retry.pause(&error).await;
                    failed = true;
                }
            }
        }
        if failed {
            continue;
        }
        returned(&mut lease, &status.borrow_and_update());
        let anew = async {
            // The sender lives in the board.
            while status.changed().await.is_ok() && !returned(&mut lease, &status.borrow_and_update()) {}
        };
        // Either way it is time to look at the taints again.
        let _ = tokio::time::timeout(LOOK_AGAIN, anew).await;
    }
}

/// Says where the interface that was chosen without being told is not the one that the cluster knows the
/// node by, as on virtual machines whose default route leads through a NAT that they all have.
async fn question_interface(node: &KubeNode, board: &Board, say: mpsc::Sender<Event>) -> Infallible {
    board.ready().await;
    let (mut status, mut questioned) = (board.subscribe(), None);
    let mut retry = Retry::new("read the node's addresses");
    loop {
        let external = status.borrow_and_update().external.clone();
        if external != questioned
            && let Some(external) = &external
        {
            match node.internal_addresses().await {
                Ok(internal) => {
                    if let Some(message) = odd(external, &internal) {
                        tracing::warn!("{message}");
                        let event = Event { weight: Weight::Warning, reason: "FlannelOddInterface", message };
                        // The receiver ends with us.
                        let _ = say.send(event).await;
                    }
                }
                Err(error) => {
                    retry.pause(&error).await;
                    continue;
                }
            }
        }
        questioned = external;
        // The sender lives in the board.
        let _ = status.changed().await;
    }
}

/// What is odd about an interface, if it was not named by anybody.
fn odd(external: &External, internal: &[IpAddr]) -> Option<String> {
    if ["-iface", "-public-ip"].into_iter().any(|flag| external.reason.contains(flag)) {
        return None;
    }
    let stranger = external.public.iter().find(|ip| {
        let mut of_family = internal.iter().filter(|known| known.is_ipv4() == ip.is_ipv4()).peekable();
        of_family.peek().is_some() && !of_family.any(|known| known == *ip)
    })?;
    let known: Vec<String> = internal.iter().map(ToString::to_string).collect();
    Some(format!(
        "other nodes are told to reach this one at {stranger} on {}, but the cluster knows it as {}: if they do not reach \
         it, name the interface (-iface, -iface-can-reach) or annotate the node with node-public-ip",
        external.link,
        known.join(" ")
    ))
}

/// Makes events of what a person should know. One that the API does not take is kept until it does: the
/// lost interface may well be the way to the API.
async fn report(node: &KubeNode, board: &Board, mut said: mpsc::Receiver<Event>) -> Infallible {
    let (mut status, mut chronicle) = (board.subscribe(), Chronicle::new(Instant::now()));
    let mut unsaid = VecDeque::new();
    let mut retry = Retry::new("make an event of the node");
    loop {
        let (events, again) = chronicle.look(&status.borrow_and_update(), Instant::now());
        unsaid.extend(events);
        // The oldest is what began it, the newest are worth least.
        unsaid.truncate(UNSAID);
        while let Some(Event { weight, reason, message }) = unsaid.front() {
            let is_warning = *weight == Weight::Warning;
            let event = KubeEvent { is_warning, reason: (*reason).to_owned(), message: message.clone() };
            match node.publish_event(&event).await {
                Ok(_) => {
                    unsaid.pop_front();
                    retry = Retry::new("make an event of the node");
                }
                Err(error) => retry.pause(&error).await,
            }
        }
        tokio::select! {
            // The sender lives in the board.
            _ = status.changed() => {}
            Some(event) = said.recv() => unsaid.extend(chronicle.admit(event, Instant::now())),
            () = until(again) => {}
        }
    }
}

/// Whether the lease is held that was not held before, as when the Node was deleted and made anew.
fn returned(before: &mut Option<LeaseState>, status: &Status) -> bool {
    let now = status.lease.as_ref().map(|lease| lease.state);
    let before = std::mem::replace(before, now);
    now == Some(LeaseState::Held) && before.is_some_and(|before| before != LeaseState::Held)
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_the_cluster_does_not_know_is_odd_unless_somebody_named_it() {
        let external = |public: &[&str], reason: &str| External {
            link: "eth0".to_owned(),
            public: public.iter().map(|ip| ip.parse().unwrap()).collect(),
            reason: reason.to_owned(),
            ..External::default()
        };
        let known: Vec<IpAddr> = vec!["192.168.56.11".parse().unwrap()];
        let by_route = "the default route goes through it";
        let said = odd(&external(&["10.0.2.15"], by_route), &known).unwrap();
        assert!(said.contains("10.0.2.15 on eth0") && said.contains("192.168.56.11"), "{said}");
        assert_eq!(
            odd(&external(&["192.168.56.11", "fd00::1"], by_route), &known),
            None,
            "of a family unknown"
        );
        for named in ["-iface=eth0", "it has -public-ip=10.0.2.15", "-iface-can-reach=10.0.2.2"] {
            assert_eq!(odd(&external(&["10.0.2.15"], named), &known), None, "{named}");
        }
        assert_eq!(odd(&external(&["10.0.2.15"], by_route), &[]), None);
    }
}
