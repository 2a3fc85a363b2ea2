//! [`Board`]: where every part of the daemon writes what it knows, and the writer of `status.json`.
//!
//! Each field of [`Status`] has one task that writes it. Readiness is a list of steps still to be
//! taken; the last one taken makes the node ready.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use fabric::status::{Failure, Peer, Repair, Status, UnixSeconds};
use tokio::sync::watch;

use crate::whole_file;

/// How many repairs are remembered.
const REPAIRS: usize = 50;
/// How many failures of one topic are listed.
const FAILURES: usize = 20;
/// How long the writer gathers changes. Not longer, however long writing takes: a file that lags behind says
/// what is not true.
const GATHER: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(2);
/// After how long a status that could not be written is tried again.
const WRITE_AGAIN: Duration = Duration::from_secs(1);

/// A step on the way to readiness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// The network configuration was read.
    Network,
    /// The interface to the other nodes was chosen.
    Interface,
    /// The node has a lease.
    Lease,
    /// The node's own devices and rules are in the kernel.
    Node,
    /// The data path of the udp backend is open, or the network needs none.
    DataPath,
    /// The first complete set of peers is in the kernel.
    Peers,
    /// `subnet.env` is written.
    SubnetFile,
}

impl Step {
    const ALL: [Step; 7] = [
        Step::Network,
        Step::Interface,
        Step::Lease,
        Step::Node,
        Step::DataPath,
        Step::Peers,
        Step::SubnetFile,
    ];

    fn words(self) -> &'static str {
        match self {
            Step::Network => "the network configuration from the store",
            Step::Interface => "an interface to the other nodes",
            Step::Lease => "a lease for this node",
            Step::Node => "this node's devices and firewall rules in the kernel",
            Step::DataPath => "the data path between this node's device and its UDP socket",
            Step::Peers => "the first complete set of peers in the kernel",
            Step::SubnetFile => "the subnet file",
        }
    }
}

/// The status under construction; a cheap handle.
#[derive(Debug, Clone)]
pub struct Board {
    status: watch::Sender<Status>,
    awaited: watch::Sender<BTreeSet<Step>>,
    /// Held by whoever writes the file, on whatever thread.
    writing: Arc<Mutex<()>>,
}

impl Board {
    /// The board of a daemon that has just started.
    pub fn new(store: &str) -> Board {
        let now = now();
        let mut status = Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started: now,
            written: now,
            awaited: Step::ALL.iter().map(|step| step.words().to_owned()).collect(),
            ..Status::default()
        };
        store.clone_into(&mut status.store.name);
        status.store.since = now;
        let awaited = watch::Sender::new(BTreeSet::from(Step::ALL));
        Board { status: watch::Sender::new(status), awaited, writing: Arc::default() }
    }

    /// The status as it is and becomes.
    pub fn subscribe(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// The other nodes, as the status has them.
    pub fn peers(&self) -> Arc<Vec<Peer>> {
        Arc::clone(&self.status.borrow().peers)
    }

    /// Changes the status.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        self.status.send_modify(change);
    }

    /// Changes what nobody waits for: the file gets it with the next change that somebody does.
    pub fn silently(&self, change: impl FnOnce(&mut Status)) {
        self.status.send_if_modified(|status| {
            change(status);
            false
        });
    }

    /// A step is taken; taking it again changes nothing.
    pub fn done(&self, step: Step) {
        let mut left = BTreeSet::new();
        let changed = self.awaited.send_if_modified(|awaited| {
            let changed = awaited.remove(&step);
            left.clone_from(awaited);
            changed
        });
        if !changed {
            return;
        }
        self.update(|status| {
            status.awaited = left.iter().map(|step| step.words().to_owned()).collect();
            status.ready = left.is_empty();
        });
        tracing::debug!(done = step.words(), left = left.len(), "a step towards readiness");
    }

    /// Waits until every step is taken.
    pub async fn ready(&self) {
        // The sender lives in `self`.
        let _ = self.awaited.subscribe().wait_for(BTreeSet::is_empty).await;
    }

    /// Waits until a step is taken.
    pub async fn wait_for(&self, step: Step) {
        // The sender lives in `self`.
        let _ = self.awaited.subscribe().wait_for(|awaited| !awaited.contains(&step)).await;
    }

    /// Replaces the failures of a topic, (what, remedy) each; those that were there keep their date.
    pub fn failing(&self, topic: &str, failures: impl IntoIterator<Item = (String, String)>) {
        let failures: Vec<_> = failures.into_iter().take(FAILURES).collect();
        self.status.send_if_modified(|status| {
            let (before, others): (Vec<_>, Vec<_>) =
                std::mem::take(&mut status.failures).into_iter().partition(|failure| failure.topic == topic);
            let now = now();
            let after: Vec<Failure> = failures
                .into_iter()
                .map(|(what, remedy)| {
                    let since = before.iter().find(|old| old.what == what).map_or(now, |old| old.since);
                    Failure { topic: topic.to_owned(), since, what, remedy }
                })
                .collect();
            let changed = before != after;
            status.failures = others;
            status.failures.extend(after);
            changed
        });
    }

    /// Notes what was put right.
    pub fn repaired(&self, repairs: impl IntoIterator<Item = Repair>) {
        self.status.send_if_modified(|status| {
            let before = status.repairs.len();
            status.repairs.extend(repairs);
            let surplus = status.repairs.len().saturating_sub(REPAIRS);
            let changed = status.repairs.len() != before;
            status.repairs.drain(..surplus);
            changed
        });
    }

    /// Keeps `path` equal to the status until dropped, not more often than writing it deserves, and off
    /// the loop.
    pub async fn write_to(&self, path: &Path) -> Infallible {
        let mut changes = self.status.subscribe();
        let mut file = whole_file::Kept::new("cannot say how we are", 20, GATHER);
        loop {
            // In place: a copy would have ten thousand peers in memory twice.
            self.status.send_if_modified(|status| {
                status.written = now();
                false
            });
            changes.mark_unchanged();
            let (board, to) = (self.clone(), path.to_owned());
            file.write(move || board.write(&to)).await;
            tokio::select! {
                // The sender lives in `self`.
                _ = changes.changed() => {}
                () = file.try_again(WRITE_AGAIN) => {}
            }
        }
    }

    /// Writes the status once, as the last word.
    pub fn last_word(&self, path: &Path) {
        self.update(|status| status.written = now());
        // There is nobody left to tell.
        let _ = self.write(path);
    }

    /// Of a copy, which shares the peers: nobody who changes the status waits for the writing.
    fn write(&self, path: &Path) -> anyhow::Result<()> {
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let status = self.status.borrow().clone();
        whole_file::write(path, |to| serde_json::to_writer(to, &status).map_err(std::io::Error::from))
    }
}

/// This moment.
pub fn now() -> UnixSeconds {
    unix(SystemTime::now())
}

/// A moment, as the status has it.
pub fn unix(time: SystemTime) -> UnixSeconds {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_step_makes_ready_and_the_others_are_named() {
        let board = Board::new("etcd");
        let status = board.subscribe();
        for step in Step::ALL {
            assert!(!status.borrow().ready);
            board.done(step);
            board.done(step);
        }
        assert!(status.borrow().ready);
        assert!(status.borrow().awaited.is_empty());
    }

    #[test]
    fn failures_keep_their_date_and_topics_stay_apart() {
        let board = Board::new("etcd");
        let failure = |what: &str| (what.to_owned(), String::new());
        board.failing("kernel", [failure("a"), failure("b")]);
        board.update(|status| status.failures[1].since = 7);
        board.failing("subnet file", [failure("c")]);
        board.failing("kernel", [failure("b")]);
        let what = |board: &Board| {
            let status = board.subscribe();
            let failures: Vec<_> =
                status.borrow().failures.iter().map(|f| (f.what.clone(), f.since)).collect();
            failures
        };
        assert_eq!(what(&board).iter().map(|(what, _)| what.as_str()).collect::<Vec<_>>(), ["c", "b"]);
        assert_eq!(what(&board)[1].1, 7);
        board.failing("kernel", []);
        assert_eq!(what(&board).len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_file_follows_the_board() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("status.json");
        let board = Board::new("etcd http://127.0.0.1:2379");
        let writer = {
            let (board, path) = (board.clone(), path.clone());
            async move { board.write_to(&path).await }
        };
        tokio::spawn(writer);
        let read = || serde_json::from_slice::<Status>(&std::fs::read(&path).ok()?).ok();
        board.repaired((0..60).map(|number| Repair {
            at: number,
            change: "ip link set flannel.1 up".to_owned(),
            more: 0,
            why: "it was down".to_owned(),
        }));
        tokio::time::timeout(Duration::from_secs(5), async {
            while read().is_none_or(|status| status.repairs.len() != REPAIRS) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .expect("the file has the repairs within 5 s");
        assert_eq!(read().unwrap().repairs.last().unwrap().at, 59, "the newest are kept");
    }
}
