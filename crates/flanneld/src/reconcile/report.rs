//! What is said of answers and passes: in the log what is new, in the status all of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fabric::dataplane::{Change, Kind};
use fabric::lease::{Lease, LeaseSet, Subnets};
use fabric::status::{self, Peer};
use kernel::{Failure, KernelError};

use crate::board::{self, Board};
use crate::repair;

/// With more changes refused than this, something fundamental is wrong, and they are not told apart.
const REFUSALS: usize = 100;

/// Says what the reconciler does, and remembers what it need not say again.
#[derive(Debug)]
pub(super) struct Report {
    board: Board,
    /// What the kernel refused in the last pass; the next will want it again.
    refused: Vec<Change>,
}

impl Report {
    pub(super) fn new(board: Board) -> Report {
        Report { board, refused: Vec::new() }
    }

    /// One line for each node that came, went or changed.
    pub(super) fn nodes(&self, before: &LeaseSet, after: &LeaseSet, own: Subnets) {
        for lease in after.iter().filter(|lease| lease.subnets != own) {
            let verb = if before.get(&lease.subnets).is_some() { "changed" } else { "came" };
            tracing::info!(subnets = %lease.subnets, at = addresses(lease), "a node {verb}");
        }
        for lease in before.iter().filter(|lease| lease.subnets != own && after.get(&lease.subnets).is_none())
        {
            tracing::info!(subnets = %lease.subnets, at = addresses(lease), "a node left");
        }
    }

    /// A pass could not look.
    pub(super) fn blind(&self, error: &KernelError) {
        tracing::warn!(%error, "cannot observe the kernel");
        self.board.failing("node", [(error.to_string(), repair::remedy(None, error).to_owned())]);
    }

    /// A pass is about to make these changes, which follow from other leases or another intent.
    pub(super) fn update(&self, changes: &[Change], leases: usize) {
        list(changes);
        if !changes.is_empty() {
            tracing::info!(changes = changes.len(), leases, "bringing the kernel up to date");
        }
    }

    /// A pass is about to make these changes, though neither leases nor intent have changed.
    pub(super) fn repair(&self, changes: &[Change]) {
        list(changes);
        if self.refused.len() > REFUSALS {
            return;
        }
        let new: Vec<_> = changes.iter().filter(|change| !self.refused.contains(change)).collect();
        let repairs = repair::repairs(&new, board::now());
        for repair in &repairs {
            tracing::warn!(why = repair.why, more = repair.more, "put right: {}", repair.change);
        }
        self.board.repaired(repairs);
        let counts = by_kind(new.into_iter());
        self.board.silently(|status| add(&mut status.reconciler.repaired, counts));
    }

    /// How many objects are wanted in the kernel.
    pub(super) fn desired(&self, desired: BTreeMap<Kind, usize>) {
        let desired = desired.into_iter().map(|(kind, count)| (kind.name().to_owned(), count as u64));
        self.board.silently(|status| status.reconciler.desired = desired.collect());
    }

    /// How each peer is reached, and which records of the store are skipped.
    pub(super) fn peers(&self, peers: Arc<Vec<Peer>>, leases: &LeaseSet) {
        let unchanged = {
            let status = self.board.subscribe();
            let status = status.borrow();
            status.peers == peers
                && status.skipped.len() == leases.skipped.len()
                && status.skipped.iter().all(|is| leases.skipped.get(&is.key) == Some(&is.reason))
        };
        if unchanged {
            return;
        }
        for (key, reason) in &leases.skipped {
            tracing::warn!(key, reason, "skipping a record of the store");
        }
        for peer in &*peers {
            if let Some(reason) = &peer.refused {
                let subnets = Subnets { ipv4: peer.ipv4, ipv6: peer.ipv6 };
                tracing::warn!(%subnets, reason, "a peer cannot be reached");
            }
        }
        self.board.update(|status| {
            status.peers = peers;
            let skipped = leases.skipped.iter();
            status.skipped = skipped
                .map(|(key, reason)| status::Skipped { key: key.clone(), reason: reason.clone() })
                .collect();
        });
    }

    /// What was made of `changes`, of an answer or of a slice of a pass.
    pub(super) fn made(&self, changes: &[Change], failures: &[Failure]) {
        let mut made = by_kind(changes.iter());
        for failure in failures {
            made.entry(failure.change.kind().name()).and_modify(|count| *count -= 1);
        }
        self.board.silently(|status| add(&mut status.reconciler.changed, made));
    }

    /// What the kernel refused in a pass.
    pub(super) fn refused(&mut self, failures: Vec<Failure>, read_only: Vec<Failure>) {
        for Failure { change, error, .. } in self.news(&read_only) {
            tracing::info!("left as it is: `{}`: {error}", repair::first_line(change));
        }
        self.failures(&failures);
        self.refused = failures.into_iter().chain(read_only).map(|failure| failure.change).collect();
    }

    /// A pass has ended.
    pub(super) fn passed(&self, took: Duration) {
        self.board.silently(|status| {
            status.reconciler.passes += 1;
            status.reconciler.pass_microseconds += took.as_micros() as u64;
            status.reconciler.last_pass = board::now();
        });
    }

    /// Those that the pass before did not have.
    fn news<'a>(&self, failures: &'a [Failure]) -> impl Iterator<Item = &'a Failure> {
        failures.iter().filter(|failure| !self.refused.contains(&failure.change))
    }

    /// Apart whether only peers or the node as a whole suffer.
    fn failures(&self, failures: &[Failure]) {
        let words =
            |Failure { change, error, .. }: &Failure| format!("`{}`: {error}", repair::first_line(change));
        for failure in self.news(&failures[..failures.len().min(REFUSALS)]).take(3) {
            tracing::warn!("{}", words(failure));
        }
        if failures.len() > 3 && failures.len() != self.refused.len() {
            tracing::warn!("{} changes failed in all; they are tried again", failures.len());
        }
        let remedy = |failure: &Failure| repair::remedy(Some(&failure.change), &failure.error).to_owned();
        for (topic, of_node) in [("node", true), ("kernel", false)] {
            let of_topic =
                failures.iter().filter(|failure| repair::concerns_node(&failure.change) == of_node);
            self.board.failing(topic, of_topic.map(|failure| (words(failure), remedy(failure))));
        }
        let counts = by_kind(failures.iter().map(|failure| &failure.change));
        self.board.silently(|status| {
            status.reconciler.failed.clear();
            add(&mut status.reconciler.failed, counts);
        });
    }
}

fn list(changes: &[Change]) {
    changes.iter().for_each(|change| tracing::debug!("{change}"));
}

fn by_kind<'a>(changes: impl Iterator<Item = &'a Change>) -> BTreeMap<&'static str, u64> {
    let mut counts = BTreeMap::new();
    changes.for_each(|change| *counts.entry(change.kind().name()).or_default() += 1);
    counts
}

fn add(counts: &mut BTreeMap<String, u64>, more: BTreeMap<&'static str, u64>) {
    for (kind, count) in more {
        *counts.entry(kind.to_owned()).or_default() += count;
    }
}

fn addresses(lease: &Lease) -> String {
    let addresses: Vec<_> = lease.attributes.public_addresses().map(|ip| ip.to_string()).collect();
    addresses.join(" ")
}
