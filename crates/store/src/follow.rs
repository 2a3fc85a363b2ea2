//! The follower: turns a list and a watch into the whole set of leases at every moment.
//!
//! The watch is opened before the list is made, so that nothing falls between the two. A watch that
//! is lost goes on from where it was; where that is impossible (compaction, a restored backup) all
//! is listed again. While the store is away the last set stays published as it is.

use std::convert::Infallible;

use fabric::lease::LeaseSet;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::health::Health;
use crate::registry::{self, Batch, Event, Registry, Revision, Watch, WatchEnd};

/// Publishes the leases of a registry for as long as it is polled.
pub(crate) async fn follow<R: Registry>(
    registry: &R,
    leases: &watch::Sender<Option<LeaseSet>>,
    health: &Health,
) -> Infallible {
    let mut follower = Follower {
        registry,
        leases,
        health,
        set: LeaseSet::default(),
        reached: None,
        backoff: Backoff::new(),
    };
    // What is the same again is not said again.
    let (mut last_error, mut last_reason) = (String::new(), String::new());
    loop {
        match follower.run().await {
            WatchEnd::Lost(error) => {
                health.failed(&error);
                let error = error.to_string();
                if error != last_error {
                    warn!(error, "lost sight of the leases, the last known ones stay in force");
                    last_error = error;
                }
            }
            WatchEnd::StartOver(reason) => {
                follower.reached = None;
                if reason != last_reason {
                    info!(reason, "listing the leases again");
                    last_reason = reason;
                }
            }
        }
        tokio::time::sleep(follower.backoff.delay()).await;
    }
}

struct Follower<'a, R> {
    registry: &'a R,
    leases: &'a watch::Sender<Option<LeaseSet>>,
    health: &'a Health,
    set: LeaseSet,
    /// The moment of `set`; none if it has to be listed.
    reached: Option<Revision>,
    backoff: Backoff,
}

impl<R: Registry> Follower<'_, R> {
    /// Follows until the watch ends.
    async fn run(&mut self) -> WatchEnd {
        match self.try_run().await {
            Err(end) => end,
            Ok(never) => match never {},
        }
    }

    async fn try_run(&mut self) -> Result<Infallible, WatchEnd> {
        let mut watch = self.registry.watch(self.reached).await?;
        let mut reached = match self.reached {
            Some(reached) => reached,
            None => {
                let (listing, revision) = registry::gather(self.registry).await?;
                self.set = listing.leases;
                // A set that is as it was wakes nobody.
                if self.leases.borrow().as_ref() != Some(&self.set) {
                    self.publish();
                }
                revision
            }
        };
        self.reached = Some(reached);
        self.backoff.reset();
        self.health.answered();
        loop {
            let batch = watch.next().await?;
            let changed;
            (reached, changed) = self.apply(batch, reached);
            self.reached = Some(reached);
            if changed {
                self.publish();
            }
            self.backoff.reset();
            self.health.answered();
        }
    }

    /// Brings the set from one moment to that of the batch; says whether that changed it.
    fn apply(&mut self, batch: Batch, reached: Revision) -> (Revision, bool) {
        let mut changed = false;
        for event in batch.events {
            // What the list has seen already may come once more, since the watch is the older one.
            changed |= match event {
                Event::Put(record) if record.modified > reached.number => record.enter(&mut self.set),
                Event::Delete { key, at } if at > reached.number => registry::forget(&key, &mut self.set),
                Event::Put(_) | Event::Delete { .. } => false,
            };
        }
        let number = batch.revision.number.max(reached.number);
        (Revision { number, ..batch.revision }, changed)
    }

    fn publish(&self) {
        self.leases.send_replace(Some(self.set.clone()));
    }
}
