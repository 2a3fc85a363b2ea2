//! What Kubernetes is told about this node beside its lease: the condition `NetworkUnavailable`, that
//! a startup taint can go, and events for people.
//!
//! The rights that the original has are enough for the condition. Those for taints (`patch` of
//! `nodes`) and events (`create` of `events`) are optional; where one is missing, the store says so and
//! the rest goes on.

pub mod chronicle;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use fabric::status::{LeaseState, Status};
use store::{KubeEvent, KubeNode};
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
    tokio::select! {
        never = keep_condition(node, board), if wanted.condition => match never {},
        never = remove_taints(node, taints, board), if !taints.is_empty() => match never {},
        never = report(node, board) => match never {},
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

/// Makes events of what a person should know. One that the API does not take is kept until it does: the
/// lost interface may well be the way to the API.
async fn report(node: &KubeNode, board: &Board) -> Infallible {
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
                Ok(_) => drop(unsaid.pop_front()),
                Err(error) => retry.pause(&error).await,
            }
        }
        tokio::select! {
            // The sender lives in the board.
            _ = status.changed() => {}
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
