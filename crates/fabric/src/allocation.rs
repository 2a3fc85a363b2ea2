//! Which pod subnets a node gets: pure decisions over the leases of a moment.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::config::NetworkConfig;
use crate::lease::{LeaseSet, Subnets};

/// A source of random numbers below a bound, so that a choice can be replayed in a test.
pub type Below<'a> = &'a mut dyn FnMut(usize) -> usize;

/// Why no subnets could be chosen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllocationError {
    /// Every subnet is leased.
    #[error("out of subnets: {0}")]
    OutOfSubnets(String),
}

/// Whether leased subnets fit the configuration: family, range and length.
///
/// A family that is enabled must be leased, one that is not must not be.
pub fn fits(subnets: &Subnets, config: &NetworkConfig) -> bool {
    let ipv4 = match (subnets.ipv4, config.ipv4) {
        (Some(net), Some(want)) => {
            net.prefix_len() == want.subnet_len && (want.subnet_min..=want.subnet_max).contains(&net.addr())
        }
        (None, None) => true,
        _ => false,
    };
    let ipv6 = match (subnets.ipv6, config.ipv6) {
        (Some(net), Some(want)) => {
            net.prefix_len() == want.subnet_len && (want.subnet_min..=want.subnet_max).contains(&net.addr())
        }
        (None, None) => true,
        _ => false,
    };
    ipv4 && ipv6
}

/// Chooses free subnets, at random among the first hundred of each family, as the original does.
///
/// The choice is independent for IPv4 and IPv6. `below` is asked once for each enabled family. A lease
/// that is no part of the network, the whole of it included, is nobody's: every node refuses it (see
/// [`crate::backend`]), and it takes nothing.
pub fn choose(
    config: &NetworkConfig,
    leases: &LeaseSet,
    below: Below<'_>,
) -> Result<Subnets, AllocationError> {
    let ipv4 = match config.ipv4 {
        None => None,
        Some(want) => {
            let range = Range {
                first: want.subnet_min.to_bits().into(),
                last: want.subnet_max.to_bits().into(),
                size: 1 << (32 - want.subnet_len),
            };
            let leased = leases
                .iter()
                .filter_map(|lease| lease.subnets.ipv4)
                .filter(|net| want.network.contains(net) && *net != want.network)
                .map(|net| Taken {
                    first: net.network().to_bits().into(),
                    last: net.broadcast().to_bits().into(),
                });
            let address = range.pick(leased.collect(), below).map_err(|leased| {
                out_of_subnets(
                    &range,
                    leased,
                    format!("SubnetMin {} to SubnetMax {}", want.subnet_min, want.subnet_max),
                )
            })?;
            // The address lies between two IPv4 addresses, so it has 32 bits.
            Some(Ipv4Net::new_assert(Ipv4Addr::from_bits(address as u32), want.subnet_len))
        }
    };
    let ipv6 = match config.ipv6 {
        None => None,
        Some(want) => {
            let range = Range {
                first: want.subnet_min.to_bits(),
                last: want.subnet_max.to_bits(),
                size: 1 << (128 - want.subnet_len),
            };
            let leased = leases
                .iter()
                .filter_map(|lease| lease.subnets.ipv6)
                .filter(|net| want.network.contains(net) && *net != want.network)
                .map(|net| Taken { first: net.network().to_bits(), last: net.broadcast().to_bits() });
            let address = range.pick(leased.collect(), below).map_err(|leased| {
                let range_text =
                    format!("IPv6SubnetMin {} to IPv6SubnetMax {}", want.subnet_min, want.subnet_max);
                out_of_subnets(&range, leased, range_text)
            })?;
            Some(Ipv6Net::new_assert(Ipv6Addr::from_bits(address), want.subnet_len))
        }
    };
    Ok(Subnets { ipv4, ipv6 })
}

/// The subnets that may be leased, addresses as numbers: `first`, `first + size`, … up to `last`.
struct Range {
    first: u128,
    last: u128,
    size: u128,
}

/// The addresses of one lease, both ends included.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Taken {
    first: u128,
    last: u128,
}

impl Range {
    /// One of the first hundred free subnets; if there is none, how many leases fill the range.
    ///
    /// Sorted, the leases are walked beside the subnets, so the cost is that of sorting them. A lease
    /// may have any length: everything that overlaps one is skipped.
    fn pick(&self, mut taken: Vec<Taken>, below: Below<'_>) -> Result<u128, usize> {
        /// Compatibility: so many the original collects before it draws.
        const CANDIDATES: usize = 100;
        taken.retain(|lease| lease.last >= self.first && lease.first <= self.last + (self.size - 1));
        taken.sort_unstable();
        let mut free = Vec::with_capacity(CANDIDATES);
        let mut leases = taken.iter().peekable();
        let mut candidate = Some(self.first);
        while let Some(first) = candidate.filter(|first| *first <= self.last) {
            if let Some(lease) = leases.next_if(|lease| lease.last < first) {
                let _behind_us = lease;
                continue;
            }
            let beyond = match leases.peek() {
                // The walk goes on behind the lease, in whole steps.
                Some(lease) if lease.first <= first + (self.size - 1) => {
                    lease.last - (lease.last - self.first) % self.size
                }
                _ => {
                    free.push(first);
                    first
                }
            };
            if free.len() == CANDIDATES {
                break;
            }
            // None at the end of the address space, where the original starts over at zero.
            candidate = beyond.checked_add(self.size);
        }
        match free.len() {
            0 => Err(taken.len()),
            // A source that does not keep to its bound must not lead out of the list.
            len => Ok(free[below(len) % len]),
        }
    }
}

fn out_of_subnets(range: &Range, leased: usize, text: String) -> AllocationError {
    let all = (range.last - range.first) / range.size + 1;
    AllocationError::OutOfSubnets(format!(
        "{leased} leases take all {all} subnets of {text}; remove the leases of nodes that are gone \
         (flannelctl leases shows them), widen the range, or lease smaller subnets with a longer SubnetLen"
    ))
}

#[cfg(test)]
mod tests;
