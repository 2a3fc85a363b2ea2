//! How a node comes by its lease and holds on to it, written once over [`Registry`](crate::registry::Registry).
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
//! and keeps quiet ([`TakenByAnother`](crate::KeptState::TakenByAnother)). A lease without a term is a
//! reservation: it is used and renewed without giving it one.

mod acquire;
mod keep;

use std::sync::Arc;
use std::time::Duration;

use fabric::config::NetworkConfig;
use fabric::lease::{Lease, LeaseSet, Subnets};
use ipnet::IpNet;

use crate::Terms;
use crate::registry::Record;

pub(crate) use acquire::acquire;
pub(crate) use keep::{Surroundings, keep};

/// The term under which a record is written again: a reservation stays one.
fn term(record: &Record, terms: Terms) -> Option<Duration> {
    (!record.is_reservation()).then_some(terms.ttl)
}

/// A lease that has part of these subnets.
fn overlapping<'a>(
    subnets: &Subnets,
    config: &NetworkConfig,
    leases: &'a LeaseSet,
) -> Option<&'a Arc<Lease>> {
    leases.overlapping(*subnets).find(|other| is_in_the_way(&other.subnets, subnets, config))
}

/// Whether another node's subnets take part of ours. What is no part of the network takes nothing.
fn is_in_the_way(theirs: &Subnets, ours: &Subnets, config: &NetworkConfig) -> bool {
    let takes = |net: &IpNet| ours.iter().any(|own| own.contains(net) || net.contains(&own));
    theirs.iter().any(|net| config.has_part(&net) && takes(&net))
}

#[cfg(test)]
mod memory;
#[cfg(test)]
mod tests;
