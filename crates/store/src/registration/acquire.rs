//! How a node comes by its lease.

use std::net::IpAddr;
use std::sync::Arc;

use fabric::allocation;
use fabric::config::NetworkConfig;
use fabric::lease::{Attributes, Lease, LeaseSet, Subnets};
use tracing::{info, warn};

use super::{is_in_the_way, overlapping, term};
use crate::backoff;
use crate::registry::{self, Registry, Written};
use crate::{AcquireError, Claim, StoreError, Terms};

/// How often a subnet is chosen again because another node was faster. Each time one of them
/// succeeds, so a hundred nodes may start at once.
const ATTEMPTS: usize = 100;

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
    let config = &claim.config;
    let subnets = if allocation::fits(&claim.previous, config)
        && overlapping(&claim.previous, config, &occupied).is_none()
    {
        claim.previous
    } else {
        let chosen = allocation::choose(config, &occupied, &mut backoff::below)?;
        // A node that gains IPv6 keeps the IPv4 subnet in which its pods live.
        let kept = Subnets { ipv4: keep_ipv4.or(chosen.ipv4), ..chosen };
        keep_ipv4.map(|ipv4| occupied.remove(&Subnets { ipv4: Some(ipv4), ipv6: None }));
        let fits = allocation::fits(&kept, config) && overlapping(&kept, config, &occupied).is_none();
        if fits { kept } else { chosen }
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
        let in_the_way = |rival: &&Arc<Lease>| is_in_the_way(&rival.subnets, &subnets, &claim.config);
        if let Some(rival) = listing.leases.rivals(&lease).find(in_the_way) {
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
