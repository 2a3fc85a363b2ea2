//! How a node holds on to its lease.

use std::convert::Infallible;
use std::time::{Duration, SystemTime};

use fabric::config::NetworkConfig;
use fabric::lease::{Attributes, Lease, LeaseSet};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use super::{overlapping, term};
use crate::backoff::{self, Backoff};
use crate::registry::{Expiry, Record, Registry, Written};
use crate::{Kept, KeptState, StoreError, Terms};

/// How often a store that answers is asked whether a subnet has become free, beside the watch.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// What a node keeps its lease in.
pub(crate) struct Surroundings {
    /// The network.
    pub(crate) config: NetworkConfig,
    /// What the node says of itself.
    pub(crate) attributes: watch::Receiver<Attributes>,
    /// All leases.
    pub(crate) leases: watch::Receiver<Option<LeaseSet>>,
}

/// Keeps a lease for as long as it is polled.
pub(crate) async fn keep<R: Registry>(
    registry: &R,
    terms: Terms,
    lease: Lease,
    mut around: Surroundings,
    own: watch::Sender<Kept>,
) -> Infallible {
    let mut keeper = Keeper {
        registry,
        terms,
        config: around.config.clone(),
        key: lease.subnets.key(),
        written: vec![lease.attributes.clone()],
        found: Some(lease.clone()),
        kept: Kept { lease, state: KeptState::Held, expires: None },
        modified: 0,
        expiry: Expiry::Unknown,
        ends: None,
    };
    let mut backoff = Backoff::new();
    loop {
        let wanted = around.attributes.borrow_and_update().clone();
        let leases = around.leases.borrow_and_update().clone();
        let next = match keeper.settle(&wanted, leases.as_ref()).await {
            Ok(state) => {
                backoff.reset();
                keeper.kept.state = state;
                keeper.next_look()
            }
            Err(error) => {
                keeper.note_failure(&error);
                Instant::now() + backoff.delay()
            }
        };
        let is_held = keeper.kept.state == KeptState::Held;
        keeper.kept.expires = keeper.ends.filter(|_| is_held);
        own.send_if_modified(|published| {
            let changed = *published != keeper.kept;
            if changed {
                *published = keeper.kept.clone();
            }
            changed
        });
        keeper.wait(&mut around, next).await;
    }
}

struct Keeper<'a, R> {
    registry: &'a R,
    terms: Terms,
    config: NetworkConfig,
    key: String,
    /// Values of ours that may be in the store: the last that was written, and those whose writing
    /// had no answer.
    written: Vec<Attributes>,
    /// What the store was last seen to have under our key.
    found: Option<Lease>,
    kept: Kept,
    /// The revision and the end of our record when it was last written or looked at.
    modified: u64,
    expiry: Expiry,
    /// The end by the wall clock, for those who read it.
    ends: Option<SystemTime>,
}

impl<R: Registry> Keeper<'_, R> {
    /// Looks at our record and does what it takes to make it ours, what we want, and far from its end.
    async fn settle(
        &mut self,
        wanted: &Attributes,
        leases: Option<&LeaseSet>,
    ) -> Result<KeptState, StoreError> {
        // Each further round answers a write by somebody else between our look and our write.
        for _ in 0..5 {
            let outcome = match self.registry.get(&self.key).await? {
                Some(record) => match self.holder(&record, wanted) {
                    Holder::Another(by) => return Ok(self.taken(record, by)),
                    Holder::Ours { as_wanted: true } if !self.is_due(&record) => {
                        return Ok(self.held(record, wanted));
                    }
                    Holder::Ours { .. } => self.write(Some(&record), wanted).await?,
                },
                None => {
                    self.found = None;
                    if let Some(reason) = self.obstacle(leases) {
                        self.log_loss(&reason);
                        return Ok(KeptState::Lost { reason });
                    }
                    warn!(subnets = %self.kept.lease.subnets, "our lease is gone, taking it again");
                    self.write(None, wanted).await?
                }
            };
            if let Written::Done(record) = outcome {
                info!(subnets = %self.kept.lease.subnets, "lease written");
                return Ok(self.held(record, wanted));
            }
        }
        Ok(KeptState::Lost { reason: format!("somebody writes to the lease {} all the time", self.key) })
    }

    /// Whose value a record has. One that nobody can read is nobody's, hence ours to repair.
    fn holder(&self, record: &Record, wanted: &Attributes) -> Holder {
        match Attributes::from_json(&record.value) {
            Ok(found) if found == *wanted => Holder::Ours { as_wanted: true },
            Ok(found) if !self.written.contains(&found) => Holder::Another(found),
            Ok(_) | Err(_) => Holder::Ours { as_wanted: false },
        }
    }

    async fn write(&mut self, over: Option<&Record>, wanted: &Attributes) -> Result<Written, StoreError> {
        if !self.written.contains(wanted) {
            self.written.push(wanted.clone());
        }
        let value = wanted.to_json();
        match over {
            Some(record) => self.registry.replace(record, &value, term(record, self.terms)).await,
            None => self.registry.create(&self.key, &value, Some(self.terms.ttl)).await,
        }
    }

    fn held(&mut self, record: Record, wanted: &Attributes) -> KeptState {
        if self.kept.state != KeptState::Held {
            info!(subnets = %self.kept.lease.subnets, "our lease is ours again");
        }
        self.written = vec![wanted.clone()];
        self.kept.lease.attributes = wanted.clone();
        self.kept.lease.created = record.created;
        self.found = Some(self.kept.lease.clone());
        if self.modified != record.modified {
            (self.modified, self.expiry) = (record.modified, record.expires);
            self.ends = match record.expires {
                Expiry::At(end) => Some(SystemTime::now() + end.saturating_duration_since(Instant::now())),
                Expiry::Never | Expiry::Unknown => None,
            };
        }
        KeptState::Held
    }

    fn taken(&mut self, record: Record, by: Attributes) -> KeptState {
        let state = KeptState::TakenByAnother { by: by.clone() };
        if self.kept.state != state {
            let addresses: Vec<String> = by.public_addresses().map(|ip| ip.to_string()).collect();
            warn!(subnets = %self.kept.lease.subnets, by = addresses.join(", "),
                "another node has taken our lease; we keep quiet until it is gone");
        }
        self.found = Some(Lease { attributes: by, created: record.created, ..self.kept.lease.clone() });
        state
    }

    /// Why our subnets cannot be taken again although their key is free.
    fn obstacle(&self, leases: Option<&LeaseSet>) -> Option<String> {
        let subnets = self.kept.lease.subnets;
        let mut others = leases?.clone();
        others.remove(&subnets);
        let other = overlapping(&subnets, &self.config, &others)?;
        Some(format!(
            "the lease of {subnets} is gone, and {} has been leased to {} since",
            other.subnets,
            other.attributes.public_addresses().next().map_or("nobody known".into(), |ip| ip.to_string())
        ))
    }

    fn log_loss(&self, reason: &str) {
        if !matches!(&self.kept.state, KeptState::Lost { reason: known } if known == reason) {
            warn!(reason, "our lease is lost");
        }
    }

    /// A store that is away takes nothing from us before the lease has run out.
    fn note_failure(&mut self, error: &StoreError) {
        if self.kept.state != KeptState::Held {
            return;
        }
        let what = match self.expiry {
            _ if self.found.is_none() => "the lease is gone and could not be taken again",
            Expiry::At(end) if end <= Instant::now() => "the lease could not be renewed before its end",
            _ => return,
        };
        let reason = format!("{what}: {error}");
        self.log_loss(&reason);
        self.kept.state = KeptState::Lost { reason };
    }

    fn is_due(&self, record: &Record) -> bool {
        // Of what we wrote ourselves we know the end better than a store that answers in seconds.
        let expiry = if record.modified == self.modified { self.expiry } else { record.expires };
        match expiry {
            Expiry::Never => false,
            Expiry::Unknown => true,
            Expiry::At(end) => Instant::now() + self.terms.margin() >= end,
        }
    }

    /// When to look next if nothing happens before.
    fn next_look(&self) -> Instant {
        match (&self.kept.state, self.expiry) {
            // Not all at the same moment: nodes that were started together renew together.
            (KeptState::Held, Expiry::At(end)) => {
                let margin = self.terms.margin();
                let room = end.saturating_duration_since(Instant::now()).saturating_sub(margin);
                Instant::now() + room + backoff::up_to(margin / 10)
            }
            (KeptState::Held, Expiry::Never) => Instant::now() + self.terms.ttl,
            _ => Instant::now() + ASK_AGAIN,
        }
    }

    /// Waits until the time has come, our attributes have changed, or the leases say that our record
    /// is not what it was.
    async fn wait(&self, around: &mut Surroundings, until: Instant) {
        let mut attributes_may_change = true;
        let mut leases_may_change = true;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return,
                changed = around.attributes.changed(), if attributes_may_change => match changed {
                    Ok(()) => return,
                    Err(_) => attributes_may_change = false,
                },
                changed = around.leases.changed(), if leases_may_change => match changed {
                    Ok(()) if self.differs(around.leases.borrow_and_update().as_ref()) => return,
                    Ok(()) => {}
                    Err(_) => leases_may_change = false,
                },
            }
        }
    }

    /// Whether the record is another than the one found, or can be made again where none was.
    fn differs(&self, leases: Option<&LeaseSet>) -> bool {
        let Some(leases) = leases else { return false };
        let is_free = self.found.is_none() && self.obstacle(Some(leases)).is_none();
        is_free || leases.get(&self.kept.lease.subnets).map(|lease| &**lease) != self.found.as_ref()
    }
}

/// Whose a record is.
enum Holder {
    Ours { as_wanted: bool },
    Another(Attributes),
}
