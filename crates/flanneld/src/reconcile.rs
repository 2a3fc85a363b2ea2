//! The reconciler: keeps the kernel equal to the leases.
//!
//! A **pass** observes what is in the kernel, computes what should be there, applies the difference
//! and collects every failure. It needs no memory of what was done before, so it is right after a
//! restart, a lost notification, a flushed table. When one is due is decided in [`crate::schedule`].
//!
//! A changed lease does not wait for a pass. Its **quick answer** is the difference between the plans
//! for just the leases that changed, applied at once without looking; the next pass checks it.
//!
//! What is superfluous is removed only once the first complete set of leases has come from the store:
//! a set remembered from the last run, or none yet, says nothing about who has left.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use fabric::backend::Path;
use fabric::dataplane::{self, Change, Prune};
use fabric::host::RouteStyle;
use fabric::lease::{Lease, LeaseSet, Subnets};
use fabric::plan::{Intent, Plan};
use fabric::status;
use ipnet::IpNet;
use kernel::{Failure, Kernel, Scope};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::board::{self, Board, Step};
use crate::repair;
use crate::schedule::Schedule;

/// With how many IPv4 leases routes are written by next-hop objects: from there on it is quicker.
const NEXT_HOPS_FROM: usize = 500;
/// With how many it goes back to plain routes; lower, so that a node does not swing between them.
const NEXT_HOPS_TO: usize = 400;
/// More changed leases than this are left to a pass, which is cheaper then.
const BULK: usize = 4096;
/// With so many leases a pass takes enough memory to be worth giving back after it.
const MANY: usize = 1000;
/// With more changes refused than this, something fundamental is wrong, and they are not told apart.
const REFUSALS: usize = 100;
/// A peer that the kernel keeps refusing does not keep the node from becoming ready: after so many
/// passes over the complete set of leases it is, and the failure is in the status.
const PASSES_UNTIL_READY: u32 = 4;

/// What the reconciler listens to.
#[derive(Debug)]
pub struct Inputs {
    /// What the node wants; none until it has a lease. Facts that the reconciler observes itself
    /// (underlay routes, route style) are filled in by it.
    pub intent: watch::Receiver<Option<Intent>>,
    /// The leases of the store; none until the first list is complete.
    pub leases: watch::Receiver<Option<LeaseSet>>,
    /// The leases of the last run, for until then.
    pub remembered: Option<LeaseSet>,
    /// Networks of the last run that are no more: what is left of them is taken away.
    pub former_networks: Vec<IpNet>,
    /// Changes whenever the kernel says that something changed.
    pub kernel_changed: watch::Receiver<u64>,
}

/// How the reconciler goes about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Manner {
    /// After how long a pass comes though nothing seems to have happened.
    pub interval: Duration,
    /// Whether routes may use next-hop objects: the kernel has them, and nobody asked for plain ones.
    pub next_hop_objects: bool,
}

/// Keeps the kernel equal to the leases.
#[derive(Debug)]
pub struct Reconciler<K> {
    kernel: K,
    inputs: Inputs,
    manner: Manner,
    board: Board,
    schedule: Schedule,
    leases: LeaseSet,
    known: Known,
    /// What the last pass made of the intent; none until one succeeded for the node's own objects.
    made: Option<Intent>,
    /// Whether leases or intent changed since the last pass, so that differences found by the next one
    /// are of our own making.
    unsettled: bool,
    /// What the kernel refused in the last pass; the next will want it again.
    refused: Vec<Change>,
    passes_with_peers: u32,
}

/// What is known about the leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Known {
    /// Nothing yet.
    Nothing,
    /// What they were at the end of the last run.
    Remembered,
    /// All of them.
    Complete,
}

/// Why the loop wakes.
enum Wake {
    Intent,
    Leases,
    KernelChanged,
    Due,
    /// Whoever made the inputs is gone.
    Over,
}

impl<K: Kernel> Reconciler<K> {
    /// A reconciler that has done nothing yet.
    pub fn new(kernel: K, mut inputs: Inputs, manner: Manner, board: Board) -> Reconciler<K> {
        let remembered = inputs.remembered.take();
        Reconciler {
            kernel,
            inputs,
            manner,
            board,
            schedule: Schedule::new(Instant::now(), manner.interval),
            known: if remembered.is_some() { Known::Remembered } else { Known::Nothing },
            leases: remembered.unwrap_or_default(),
            made: None,
            unsettled: true,
            refused: Vec::new(),
            passes_with_peers: 0,
        }
    }

    /// Runs until dropped, or until the inputs end. What is in the kernel stays there.
    pub async fn run(mut self) {
        loop {
            match self.wake().await {
                Wake::Leases => self.take_leases(),
                Wake::Intent => {
                    self.unsettled = true;
                    self.schedule.at_once(Instant::now());
                }
                Wake::KernelChanged => self.schedule.kernel_changed(Instant::now()),
                Wake::Due => self.pass(),
                Wake::Over => return,
            }
        }
    }

    /// Waits for something to do. Every branch is a watch channel or the clock: dropping one that was
    /// not chosen loses nothing.
    async fn wake(&mut self) -> Wake {
        let Inputs { intent, leases, kernel_changed, .. } = &mut self.inputs;
        let due = self.schedule.due();
        tokio::select! {
            biased;
            changed = intent.changed() => if changed.is_ok() { Wake::Intent } else { Wake::Over },
            changed = leases.changed() => if changed.is_ok() { Wake::Leases } else { Wake::Over },
            () = tokio::time::sleep_until(due) => Wake::Due,
            changed = kernel_changed.changed() => if changed.is_ok() { Wake::KernelChanged } else { Wake::Over },
        }
    }

    /// Takes a new set of leases over, with a quick answer where few changed.
    fn take_leases(&mut self) {
        let Some(next) = self.inputs.leases.borrow_and_update().clone() else { return };
        let now = Instant::now();
        self.unsettled = true;
        let last = std::mem::replace(&mut self.leases, next);
        let Some(intent) = self.made.as_ref().filter(|_| self.known == Known::Complete) else {
            self.known = Known::Complete;
            return self.schedule.at_once(now);
        };
        let (before, after) = last.differences(&self.leases);
        let restyled = self.route_style() != intent.host.route_style;
        if restyled || before.len() + after.len() > BULK {
            return self.schedule.at_once(now);
        }
        let (plan_before, plan_after) = intent.plans_between(&last, &self.leases);
        let answer = dataplane::between(&plan_before.dataplane, &plan_after.dataplane);
        log_peers(&before, &after, intent.host.own);
        answer.iter().for_each(|change| tracing::debug!("{change}"));
        let failures = self.kernel.apply(&answer);
        if failures.is_empty() {
            self.schedule.leases_changed(now);
        } else {
            // The pass sees what is left to do, and reports what goes on failing.
            self.schedule.at_once(now);
        }
    }

    /// Observes, plans, compares, applies, reports.
    fn pass(&mut self) {
        let began = Instant::now();
        let intent = self.inputs.intent.borrow_and_update().clone();
        let failed = match intent {
            // Nothing is wanted before there is a lease; the intent wakes us.
            None => false,
            Some(intent) => self.pass_for(intent),
        };
        self.give_back_memory();
        self.schedule.passed(began, Instant::now(), failed, jitter());
    }

    fn give_back_memory(&self) {
        if self.leases.len() >= MANY {
            kernel::memory::give_back();
        }
    }

    /// One pass; says whether anything failed.
    fn pass_for(&mut self, mut intent: Intent) -> bool {
        // The same objects whoever the peers are: their sysctls are what to ask the kernel for.
        let node = intent.plan(&LeaseSet::default()).dataplane;
        let ownership = intent.ownership().after(&self.inputs.former_networks);
        let scope = Scope {
            links: ownership.links().collect(),
            sysctls: node.sysctls.into_keys().collect(),
            tables: ownership.tables().to_vec(),
        };
        let observed = match self.kernel.observe(&scope) {
            Ok(observed) => observed,
            Err(error) => {
                tracing::warn!(%error, "cannot observe the kernel");
                self.board.failing("kernel", [(error.to_string(), repair::remedy(None, &error).to_owned())]);
                return true;
            }
        };
        intent.host.look_at(&observed, &ownership);
        intent.host.route_style = self.route_style();
        if self.unsettled {
            // What it took to read the leases is free by now, and would add to what the plan takes.
            self.give_back_memory();
        }
        let Plan { dataplane: wanted, peers } = intent.plan(&self.leases);
        let prune = if self.known == Known::Complete { Prune::Yes } else { Prune::NotYet };
        let changes = dataplane::changes(&wanted, &observed, &ownership, prune);
        // Lest they stay in memory beside the changes that say the same.
        drop((wanted, observed));

        self.note_changes(&changes);
        let failures = self.kernel.apply(&changes);
        self.note_failures(&failures);
        self.note_peers(&peers, intent.host.own);
        let node_stands = !failures.iter().any(|failure| concerns_node(&failure.change));
        if node_stands {
            self.board.done(Step::Node);
        }
        if node_stands && self.known != Known::Nothing {
            self.passes_with_peers += 1;
            if failures.is_empty() || self.passes_with_peers >= PASSES_UNTIL_READY {
                self.board.done(Step::Peers);
            }
        }
        self.made = node_stands.then_some(intent);
        let failed = !failures.is_empty();
        if !failed && prune == Prune::Yes {
            // Once: from now on they may be those of another flannel on this host.
            self.inputs.former_networks.clear();
        }
        self.unsettled = false;
        self.refused = failures.into_iter().map(|failure| failure.change).collect();
        failed
    }

    fn route_style(&self) -> RouteStyle {
        let before = self.made.as_ref().map(|intent| intent.host.route_style).unwrap_or_default();
        let enough = if before == RouteStyle::NextHopObjects { NEXT_HOPS_TO } else { NEXT_HOPS_FROM };
        if self.manner.next_hop_objects && self.leases.len() >= enough {
            RouteStyle::NextHopObjects
        } else {
            RouteStyle::Plain
        }
    }

    /// Logs what is about to be done. Where nothing else has changed, it is a repair.
    fn note_changes(&self, changes: &[Change]) {
        changes.iter().for_each(|change| tracing::debug!("{change}"));
        if self.unsettled {
            if !changes.is_empty() {
                let leases = self.leases.len();
                tracing::info!(changes = changes.len(), leases, "bringing the kernel up to date");
            }
            return;
        }
        if self.refused.len() > REFUSALS {
            return;
        }
        let new: Vec<_> = changes.iter().filter(|change| !self.refused.contains(change)).collect();
        let repairs = repair::repairs(&new, board::now());
        for repair in &repairs {
            tracing::warn!(why = repair.why, more = repair.more, "put right: {}", repair.change);
        }
        self.board.repaired(repairs);
    }

    /// Says what the kernel refused: in the log what is new, in the status all.
    fn note_failures(&self, failures: &[Failure]) {
        let words = |Failure { change, error, .. }: &Failure| format!("`{}`: {error}", first_line(change));
        let news = failures.iter().take(REFUSALS).filter(|failure| !self.refused.contains(&failure.change));
        for failure in news.take(3) {
            tracing::warn!("{}", words(failure));
        }
        if failures.len() > 3 && failures.len() != self.refused.len() {
            tracing::warn!("{} changes failed in all; they are tried again", failures.len());
        }
        let remedy = |failure: &Failure| repair::remedy(Some(&failure.change), &failure.error).to_owned();
        self.board
            .failing("kernel", failures.iter().take(20).map(|failure| (words(failure), remedy(failure))));
    }

    /// Says in the status how each peer is reached.
    fn note_peers(&self, peers: &Paths, own: Subnets) {
        let mut others = self.leases.iter().filter(|lease| lease.subnets != own).collect::<Vec<_>>();
        others.sort_unstable_by_key(|lease| lease.subnets);
        let unchanged = {
            let status = self.board.subscribe();
            let status = status.borrow();
            status.peers.len() == others.len()
                && status.skipped.len() == self.leases.skipped.len()
                && status.peers.iter().zip(&others).all(|(is, lease)| *is == peer(peers, lease))
                && status.skipped.iter().all(|is| self.leases.skipped.get(&is.key) == Some(&is.reason))
        };
        if unchanged {
            return;
        }
        self.board.update(|status| {
            status.peers = others.iter().map(|lease| peer(peers, lease)).collect();
            let skipped = self.leases.skipped.iter();
            status.skipped = skipped
                .map(|(key, reason)| status::Skipped { key: key.clone(), reason: reason.clone() })
                .collect();
        });
        for (key, reason) in &self.leases.skipped {
            tracing::warn!(key, reason, "skipping a record of the store");
        }
        for (subnets, path) in peers {
            if let Err(reason) = path {
                tracing::warn!(%subnets, reason, "a peer cannot be reached");
            }
        }
    }
}

/// How each peer is reached: [`Plan::peers`].
type Paths = BTreeMap<Subnets, Result<Path, String>>;

fn peer(peers: &Paths, lease: &Lease) -> status::Peer {
    let (path, refused) = match peers.get(&lease.subnets) {
        Some(Ok(path)) => ((*path).into(), None),
        Some(Err(reason)) => (status::PeerPath::None, Some(reason.clone())),
        None => (status::PeerPath::None, None),
    };
    status::Peer {
        ipv4: lease.subnets.ipv4,
        ipv6: lease.subnets.ipv6,
        public_ipv4: lease.attributes.public_ipv4,
        public_ipv6: lease.attributes.public_ipv6,
        path,
        refused,
    }
}

/// Whether a change is about the node itself, without which it carries no traffic at all. A sysctl
/// that cannot be written (a container with a read-only /proc/sys) is most often right already for
/// somebody else's reasons; it is reported, and does not hold the node back.
fn concerns_node(change: &Change) -> bool {
    matches!(
        change,
        Change::CreateLink(_)
            | Change::DeleteLink(_)
            | Change::SetMtu(..)
            | Change::SetMac(..)
            | Change::SetUp(_)
            | Change::AddAddress(..)
            | Change::SetTable(_)
    )
}

/// One line for each node that came, went or changed.
fn log_peers(before: &LeaseSet, after: &LeaseSet, own: Subnets) {
    for lease in after.iter().filter(|lease| lease.subnets != own) {
        let verb = if before.get(&lease.subnets).is_some() { "changed" } else { "came" };
        let at = addresses(lease);
        tracing::info!(subnets = %lease.subnets, at, "a node {verb}");
    }
    for lease in before.iter().filter(|lease| lease.subnets != own && after.get(&lease.subnets).is_none()) {
        tracing::info!(subnets = %lease.subnets, at = addresses(lease), "a node left");
    }
}

fn addresses(lease: &Lease) -> String {
    let addresses: Vec<_> = lease.attributes.public_addresses().map(|ip| ip.to_string()).collect();
    addresses.join(" ")
}

/// The text of a change without the body of a table.
pub(crate) fn first_line(change: &Change) -> String {
    if let Change::SetTable(table) = change {
        return format!("nft replace table {}", table.name);
    }
    change.to_string()
}

/// A random number from 0 to 1.
pub(crate) fn jitter() -> f64 {
    let random = RandomState::new().hash_one(0u8);
    random as f64 / u64::MAX as f64
}

#[cfg(test)]
mod tests;
