//! How a node comes by its lease and holds on to it, written once over [`Registry`].
//!
//! Which lease a node gets, in this order:
//!
//! 1. one that carries its public address (IPv4; IPv6 in a network of IPv6 alone), or one that it had
//!    before under another address, which its backend data prove (a VTEP's MAC, a public key);
//! 2. the subnets it had before, from `subnet.env`, if nobody has them now;
//! 3. a free one, chosen by [`fabric::allocation`].
//!
//! Every write compares first, so nobody's lease is written over unseen; of two nodes that want the
//! same subnet one makes way and chooses again. Where two living nodes have the same public address
//! the store cannot tell them apart: the one that starts later takes the lease, the other sees that
//! and keeps quiet ([`KeptState::TakenByAnother`]). A lease without a term is a reservation: it is
//! used and renewed without giving it one.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fabric::allocation;
use fabric::config::NetworkConfig;
use fabric::lease::{Attributes, Lease, LeaseSet, Subnets};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::backoff::{self, Backoff};
use crate::registry::{self, Expiry, Record, Registry, Written};
use crate::{AcquireError, Claim, Kept, KeptState, StoreError, Terms};

/// How often a subnet is chosen again because another node was faster. Each time one of them
/// succeeds, so a hundred nodes may start at once.
const ATTEMPTS: usize = 100;
/// How often a store that answers is asked whether a subnet has become free, beside the watch.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// Leases subnets to a node. `known` is a set that may be a little old, where there is one.
pub(crate) async fn acquire<R: Registry>(
    registry: &R,
    terms: Terms,
    claim: &Claim,
    mut known: Option<LeaseSet>,
) -> Result<Lease, AcquireError> {
    for _ in 0..ATTEMPTS {
        let is_fresh = known.is_none();
        let leases = match known.take() {
            Some(leases) => leases,
            None => registry::gather(registry).await?.0.leases,
        };
        match try_to_acquire(registry, terms, claim, &leases).await {
            Ok(Some(lease)) => return Ok(lease),
            Ok(None) => {}
            // It may only look full.
            Err(AcquireError::NoneFree(_)) if !is_fresh => {}
            Err(error) => return Err(error),
        }
    }
    Err(AcquireError::Contended { attempts: ATTEMPTS })
}

/// One attempt; none if the store has changed meanwhile.
async fn try_to_acquire<R: Registry>(
    registry: &R,
    terms: Terms,
    claim: &Claim,
    leases: &LeaseSet,
) -> Result<Option<Lease>, AcquireError> {
    let mut keep_ipv4 = None;
    for ours in own_leases(claim, leases) {
        if allocation::fits(&ours.subnets, &claim.config) {
            return Ok(reuse(registry, terms, claim, &ours).await?);
        }
        if ours.subnets.ipv6.is_none() {
            keep_ipv4 = ours.subnets.ipv4;
        }
        discard(registry, &ours).await?;
    }
    let mut occupied = occupied(leases);
    let subnets = if is_free(&claim.previous, &occupied) && allocation::fits(&claim.previous, &claim.config) {
        claim.previous
    } else {
        let chosen = allocation::choose(&claim.config, &occupied, &mut backoff::below)?;
        // A node that gains IPv6 keeps the IPv4 subnet in which its pods live.
        let kept = Subnets { ipv4: keep_ipv4.or(chosen.ipv4), ..chosen };
        keep_ipv4.map(|ipv4| occupied.remove(&Subnets { ipv4: Some(ipv4), ipv6: None }));
        if allocation::fits(&kept, &claim.config) && is_free(&kept, &occupied) { kept } else { chosen }
    };
    create(registry, terms, claim, subnets).await
}

/// The leases that are this node's, the previous one first.
fn own_leases(claim: &Claim, leases: &LeaseSet) -> Vec<Arc<Lease>> {
    let mut own: Vec<Arc<Lease>> = leases
        .iter()
        .filter(|lease| {
            same_address(claim, &lease.attributes)
                || (lease.subnets == claim.previous && same_node(&claim.attributes, &lease.attributes))
        })
        .cloned()
        .collect();
    own.sort_by_key(|lease| (lease.subnets != claim.previous, lease.created, lease.subnets));
    own
}

fn same_address(claim: &Claim, other: &Attributes) -> bool {
    let address = |attributes: &Attributes| -> Option<IpAddr> {
        // Compatibility: IPv4 alone decides wherever there is any.
        match claim.config.ipv4 {
            Some(_) => attributes.public_ipv4.map(IpAddr::V4),
            None => attributes.public_ipv6.map(IpAddr::V6),
        }
    };
    address(&claim.attributes).is_some_and(|ours| address(other) == Some(ours))
}

/// Whether two values come from the same node, although its address may have changed: they carry the
/// same backend data, and those name the node (a MAC, a key) and not just a port.
fn same_node(ours: &Attributes, other: &Attributes) -> bool {
    let same = |ours: &Option<Box<serde_json::value::RawValue>>,
                other: &Option<Box<serde_json::value::RawValue>>| {
        let json = |data: &Option<Box<serde_json::value::RawValue>>| -> Option<serde_json::Value> {
            let value: serde_json::Value = serde_json::from_str(data.as_ref()?.get()).ok()?;
            (value.get("VtepMAC").is_some() || value.get("PublicKey").is_some()).then_some(value)
        };
        json(ours).is_some_and(|ours| json(other) == Some(ours))
    };
    ours.backend_type == other.backend_type
        && (same(&ours.backend_data, &other.backend_data)
            || same(&ours.backend_v6_data, &other.backend_v6_data))
}

/// Renews a lease of ours, with what we now say of ourselves.
async fn reuse<R: Registry>(
    registry: &R,
    terms: Terms,
    claim: &Claim,
    ours: &Lease,
) -> Result<Option<Lease>, StoreError> {
    let Some(record) = registry.get(&ours.subnets.key()).await? else { return Ok(None) };
    if record.lease().map(|lease| lease.attributes) != Ok(ours.attributes.clone()) {
        return Ok(None);
    }
    let value = claim.attributes.to_json();
    match registry.replace(&record, &value, term(&record, terms)).await? {
        Written::Done(record) => {
            info!(subnets = %ours.subnets, reservation = record.is_reservation(), "found our lease, reusing it");
            Ok(Some(Lease {
                subnets: ours.subnets,
                attributes: claim.attributes.clone(),
                created: record.created,
            }))
        }
        Written::Conflict => Ok(None),
    }
}

/// Gives up a lease of ours that the network configuration no longer allows.
async fn discard<R: Registry>(registry: &R, ours: &Lease) -> Result<(), StoreError> {
    let Some(record) = registry.get(&ours.subnets.key()).await? else { return Ok(()) };
    if record.is_reservation() {
        warn!(subnets = %ours.subnets, "our reservation does not fit the network configuration, left unused");
        return Ok(());
    }
    info!(subnets = %ours.subnets, "our lease does not fit the network configuration, giving it up");
    // If it was written meanwhile, it is no longer the one that we looked at.
    registry.delete(&record).await.map(drop)
}

/// All subnets that nobody may be given: leases, and keys whose value cannot be read.
fn occupied(leases: &LeaseSet) -> LeaseSet {
    let mut occupied = leases.clone();
    for subnets in leases.skipped.keys().filter_map(|key| Subnets::from_key(key).ok()) {
        occupied.insert(Lease { subnets, attributes: Attributes::default(), created: 0 });
    }
    occupied
}

fn is_free(subnets: &Subnets, occupied: &LeaseSet) -> bool {
    *subnets != Subnets::default() && overlapping(subnets, occupied).is_none()
}

/// A lease that shares an address with these subnets.
fn overlapping<'a>(subnets: &Subnets, leases: &'a LeaseSet) -> Option<&'a Arc<Lease>> {
    let ipv4 = subnets.ipv4.and_then(|net| leases.overlapping_ipv4(net).next());
    ipv4.or_else(|| subnets.ipv6.and_then(|net| leases.overlapping_ipv6(net).next()))
}

/// Creates a lease; none if another node was faster.
async fn create<R: Registry>(
    registry: &R,
    terms: Terms,
    claim: &Claim,
    subnets: Subnets,
) -> Result<Option<Lease>, AcquireError> {
    let value = claim.attributes.to_json();
    let Written::Done(record) = registry.create(&subnets.key(), &value, Some(terms.ttl)).await? else {
        return Ok(None);
    };
    let lease = Lease { subnets, attributes: claim.attributes.clone(), created: record.created };
    // With two families, two nodes may choose one half alike and the other not: different keys, and
    // no conflict. The older one stays.
    if is_dual(&claim.config) {
        let (listing, _) = registry::gather(registry).await?;
        if let Some(rival) = listing.leases.rival(&lease) {
            info!(%subnets, rival = %rival.subnets, "another node has chosen half of our subnets, making way");
            registry.delete(&record).await?;
            return Ok(None);
        }
    }
    info!(%subnets, "leased");
    Ok(Some(lease))
}

fn is_dual(config: &NetworkConfig) -> bool {
    config.ipv4.is_some() && config.ipv6.is_some()
}

/// The term under which a record is written again: a reservation stays one.
fn term(record: &Record, terms: Terms) -> Option<Duration> {
    (!record.is_reservation()).then_some(terms.ttl)
}

/// What a node watches while it keeps its lease.
pub(crate) struct Surroundings {
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
        let other = overlapping(&subnets, &others)?;
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

    fn differs(&self, leases: Option<&LeaseSet>) -> bool {
        let Some(leases) = leases else { return false };
        leases.get(&self.kept.lease.subnets).map(|lease| &**lease) != self.found.as_ref()
    }
}

/// Whose a record is.
enum Holder {
    Ours { as_wanted: bool },
    Another(Attributes),
}

#[cfg(test)]
mod memory;
#[cfg(test)]
mod tests;
