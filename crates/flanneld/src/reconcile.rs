//! The reconciler: keeps the kernel equal to the leases.
//!
//! A **pass** observes what is in the kernel, computes what should be there, applies the difference
//! and collects every failure. It needs no memory of what was done before, so it is right after a
//! restart, a lost notification, a flushed table. When one is due is decided in [`crate::schedule`].
//!
//! A changed lease does not wait for a pass. Its **quick answer** is the difference between the plans
//! for just the leases that changed, applied at once without looking; the next pass checks it.
//!
//! Nothing here waits for the kernel, which may hold its lock for long: one [`Worker`] looks, another makes
//! changes. Those take turns: many quick answers are given in steps, a pass makes its changes in slices
//! ([`crate::pass`]), one step or slice at a time, and answers come before slices.
//!
//! What is superfluous is removed only once the first complete set of leases has come from the store:
//! a set remembered from the last run, or none yet, says nothing about who has left.

mod report;
mod worker;

use std::time::Duration;

use fabric::dataplane::{self, Change, Prune};
use fabric::host::RouteStyle;
use fabric::lease::LeaseSet;
use fabric::plan::Intent;
use ipnet::IpNet;
use kernel::{Failure, Kernel, KernelError};
use tokio::sync::watch;
use tokio::task::JoinError;
use tokio::time::Instant;

use crate::board::{Board, Step};
use crate::notifications::Heard;
use crate::pass::{self, Findings, Known, Pass, Question, Remaining};
use crate::reconcile::report::Report;
use crate::reconcile::worker::Worker;
use crate::repair::{self, Harm};
use crate::retry::jitter;
use crate::schedule::Schedule;

/// More changed leases than this are left to a pass, which is cheaper then.
const BULK: usize = 4096;
/// How many of them are answered before anything else gets its turn.
const STEP: usize = 128;
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
    pub kernel_changed: watch::Receiver<Heard>,
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
    /// Makes changes.
    hand: Worker<K, Made>,
    /// Looks at the same kernel, also while changes are made.
    eye: Worker<K, Result<Box<Findings>, KernelError>>,
    inputs: Inputs,
    manner: Manner,
    board: Board,
    report: Report,
    schedule: Schedule,
    leases: LeaseSet,
    /// Those that quick answers have got to, or that a pass takes care of.
    answered: LeaseSet,
    known: Known,
    /// What the last pass made of the intent; none until one succeeded for the node's own objects.
    made: Option<Intent>,
    route_style: RouteStyle,
    /// Whether leases or intent changed since the last pass began, so that differences found are of
    /// our own making.
    unsettled: bool,
    pass: Option<Pass>,
    passes_with_peers: u32,
    /// Whether the pass has enough changes to be worth giving their memory back.
    bulky: bool,
    heard: Heard,
}

/// Changes that have been tried, and what came of them.
#[derive(Debug)]
struct Made {
    origin: Origin,
    changes: Vec<Change>,
    failures: Vec<Failure>,
}

/// Whose changes they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Answer,
    Pass,
}

/// Why the loop wakes.
enum Wake {
    Intent,
    Leases,
    Made(Made),
    /// Leases wait for their answers.
    Unanswered,
    Looked(Result<Box<Findings>, KernelError>),
    /// Changes of a pass wait to be made.
    Unmade,
    KernelChanged,
    Due,
    /// At work on the kernel.
    Panicked(JoinError),
    /// Whoever made the inputs is gone.
    Over,
}

impl<K: Kernel + Send + 'static> Reconciler<K> {
    /// A reconciler that has done nothing yet. It changes the kernel by the first handle, and looks at
    /// the same one by the second.
    pub fn new((hand, eye): (K, K), mut inputs: Inputs, manner: Manner, board: Board) -> Reconciler<K> {
        let remembered = inputs.remembered.take();
        let known = if remembered.is_some() { Known::Remembered } else { Known::Nothing };
        let leases = remembered.unwrap_or_default();
        Reconciler {
            hand: Worker::new(hand),
            eye: Worker::new(eye),
            inputs,
            manner,
            report: Report::new(board.clone()),
            board,
            schedule: Schedule::new(Instant::now(), manner.interval),
            answered: leases.clone(),
            leases,
            known,
            made: None,
            route_style: RouteStyle::default(),
            unsettled: true,
            pass: None,
            passes_with_peers: 0,
            bulky: false,
            heard: Heard::default(),
        }
    }

    /// Runs until dropped, or until the inputs end. What is in the kernel stays there.
    pub async fn run(&mut self) {
        loop {
            match self.wake().await {
                Wake::Leases => self.take_leases(),
                Wake::Intent => {
                    self.unsettled = true;
                    // Answers would be those to the intent of before.
                    self.made = None;
                    self.schedule.at_once(Instant::now());
                }
                Wake::Made(made) => self.conclude(made),
                Wake::Unanswered => self.answer(),
                Wake::Looked(looked) => self.looked(looked),
                Wake::Unmade => self.go_on(),
                Wake::KernelChanged => self.hear(),
                Wake::Due => self.begin_pass(),
                Wake::Panicked(panicked) => return tracing::error!(%panicked, "at work on the kernel"),
                Wake::Over => return,
            }
            // The rest of the daemon has its turn after each step.
            tokio::task::yield_now().await;
        }
    }

    /// Waits until what a run that was dropped had begun to change is changed.
    pub async fn rest(self) {
        self.hand.rest().await;
    }

    /// Waits for something to do. Every branch is a watch channel, the clock, or a worker that is waited for
    /// again: dropping one that was not chosen loses nothing.
    async fn wake(&mut self) -> Wake {
        let Inputs { intent, leases, kernel_changed, .. } = &mut self.inputs;
        let free = self.hand.is_free();
        let unanswered = free && self.made.is_some() && !self.answered.is_same(&self.leases);
        let unmade = free && self.pass.as_ref().is_some_and(|pass| pass.making.is_some());
        let idle = free && self.pass.is_none();
        let due = self.schedule.due();
        tokio::select! {
            biased;
            changed = intent.changed() => if changed.is_ok() { Wake::Intent } else { Wake::Over },
            changed = leases.changed() => if changed.is_ok() { Wake::Leases } else { Wake::Over },
            made = self.hand.done() => made.map_or_else(Wake::Panicked, Wake::Made),
            () = std::future::ready(()), if unanswered => Wake::Unanswered,
            looked = self.eye.done() => looked.map_or_else(Wake::Panicked, Wake::Looked),
            () = std::future::ready(()), if unmade => Wake::Unmade,
            () = tokio::time::sleep_until(due), if idle => Wake::Due,
            changed = kernel_changed.changed() => if changed.is_ok() { Wake::KernelChanged } else { Wake::Over },
        }
    }

    /// Takes note that the kernel changed.
    fn hear(&mut self) {
        let heard = *self.inputs.kernel_changed.borrow_and_update();
        if heard.of_others == self.heard.of_others {
            self.schedule.kernel_echoed(Instant::now());
        } else {
            self.schedule.kernel_changed(Instant::now());
        }
        self.heard = heard;
    }

    /// Takes a new set of leases over, to be answered quickly where few changed.
    fn take_leases(&mut self) {
        let Some(next) = self.inputs.leases.borrow_and_update().clone() else { return };
        self.unsettled = true;
        self.leases = next;
        if self.known != Known::Complete || self.made.is_none() {
            self.known = Known::Complete;
            return self.leave_to_a_pass();
        }
        let bulk = self.answered.distance(&self.leases, BULK + 1) > BULK;
        if bulk || self.best_style() != self.route_style {
            self.leave_to_a_pass();
        }
    }

    /// Leases that have no quick answer wait for the next pass.
    fn leave_to_a_pass(&mut self) {
        self.answered = self.leases.clone();
        self.schedule.at_once(Instant::now());
    }

    /// Answers the next of the leases that changed, without a look at the kernel.
    fn answer(&mut self) {
        let Some(intent) = &self.made else { return };
        let next = self.answered.towards(&self.leases, STEP);
        let last = std::mem::replace(&mut self.answered, next);
        let (before, after) = last.differences(&self.answered);
        let (plan_before, plan_after) = intent.plans_between(&last, &self.answered);
        let answer = dataplane::between(&plan_before.dataplane, &plan_after.dataplane);
        self.report.nodes(&before, &after, intent.host.own);
        answer.iter().for_each(|change| tracing::debug!("{change}"));
        if let Some(pass) = &mut self.pass {
            pass.touched.by(&answer);
        }
        self.make(Origin::Answer, answer);
    }

    fn make(&mut self, origin: Origin, changes: Vec<Change>) {
        self.hand.begin(move |kernel| {
            let failures = kernel.apply(&changes);
            Made { origin, changes, failures }
        });
    }

    /// Draws the conclusions from changes that have been tried.
    fn conclude(&mut self, Made { origin, changes, failures }: Made) {
        self.report.made(&changes, &failures);
        let now = Instant::now();
        match origin {
            Origin::Answer if failures.is_empty() => self.schedule.leases_changed(now),
            // The pass sees what is left to do, and reports what goes on failing.
            Origin::Answer => self.schedule.at_once(now),
            Origin::Pass => {
                // What was done is looked at once more.
                self.schedule.kernel_echoed(now);
                self.pass.iter_mut().for_each(|pass| pass.failures.extend_from_slice(&failures));
            }
        }
    }

    /// Begins a pass by a look.
    fn begin_pass(&mut self) {
        let began = Instant::now();
        let intent = self.inputs.intent.borrow_and_update().clone();
        self.schedule.began();
        // Nothing is wanted before there is a lease; the intent wakes us.
        let Some(intent) = intent else { return self.schedule.passed(began, began, false, jitter()) };
        self.route_style = self.best_style();
        self.answered = self.leases.clone();
        let unsettled = std::mem::replace(&mut self.unsettled, false);
        let question = Question {
            intent,
            leases: self.leases.clone(),
            former_networks: self.inputs.former_networks.clone(),
            route_style: self.route_style,
            prune: if self.known == Known::Complete { Prune::Yes } else { Prune::NotYet },
            unsettled,
            known_peers: self.board.peers(),
        };
        self.eye.begin(move |kernel| pass::look(kernel, question).map(Box::new));
        self.pass = Some(Pass::begun(began, self.known, unsettled));
    }

    /// Takes over what a look found.
    fn looked(&mut self, looked: Result<Box<Findings>, KernelError>) {
        let Some(pass) = &mut self.pass else { return };
        let findings = match looked {
            Ok(findings) => findings,
            Err(error) => {
                self.report.blind(&error);
                let began = pass.began;
                self.unsettled |= pass.unsettled;
                self.pass = None;
                return self.schedule.passed(began, Instant::now(), true, jitter());
            }
        };
        let Findings { intent, mut changes, peers, desired } = *findings;
        pass.touched.drop_from(&mut changes);
        if pass.unsettled || self.unsettled {
            self.report.update(&changes, self.leases.len());
        } else {
            self.report.repair(&changes);
        }
        self.report.peers(peers, &self.leases);
        self.report.desired(desired);
        self.bulky |= changes.len() >= pass::MANY;
        pass.making = Some((intent, Remaining::new(changes)));
    }

    /// Makes the next changes of the pass, or ends it when all are made.
    fn go_on(&mut self) {
        let Some(Pass { touched, making: Some((_, remaining)), .. }) = &mut self.pass else { return };
        if let Some(slice) = remaining.slice(touched) {
            return self.make(Origin::Pass, slice);
        }
        let Some(Pass { began, known, failures, making: Some((intent, _)), .. }) = self.pass.take() else {
            return;
        };
        // Settings that a container may not write are right already, or harmless as they are: nothing
        // waits for them.
        let (read_only, failures): (Vec<_>, Vec<_>) = failures.into_iter().partition(repair::is_read_only);
        let harm = repair::harm(&failures);
        self.report.refused(failures, read_only);
        self.passed(known, intent, harm);
        if std::mem::take(&mut self.bulky) {
            // Those changes were as large as all that the look took.
            tokio::task::spawn_blocking(kernel::memory::give_back);
        }
        let now = Instant::now();
        self.schedule.passed(began, now, harm > Harm::None, jitter());
        self.report.passed(now - began);
    }

    /// Draws the conclusions from a pass that began when so much was `known`.
    fn passed(&mut self, known: Known, intent: Intent, harm: Harm) {
        let node_stands = harm < Harm::Node;
        if node_stands {
            self.board.done(Step::Node);
        }
        if node_stands && known != Known::Nothing {
            self.passes_with_peers += 1;
            if harm == Harm::None || self.passes_with_peers >= PASSES_UNTIL_READY {
                self.board.done(Step::Peers);
            }
        }
        // Another intent has come meanwhile: there is nothing yet that answers could build on.
        let same = self.inputs.intent.borrow().as_ref().is_some_and(|now| now.is_asked_alike(&intent));
        self.made = (node_stands && same).then_some(intent);
        if harm == Harm::None && known == Known::Complete {
            // Once: from now on they may be those of another flannel on this host.
            self.inputs.former_networks.clear();
        }
    }

    /// How routes are best written for the leases there are.
    fn best_style(&self) -> RouteStyle {
        if self.manner.next_hop_objects {
            self.route_style.suited_to(self.leases.len())
        } else {
            RouteStyle::Plain
        }
    }
}

#[cfg(test)]
mod tests;
