//! Which pod subnets a node gets: pure decisions over the leases of a moment.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

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
/// The choice is independent for IPv4 and IPv6. `below` is asked once for each enabled family. What is no
/// part of the network ([`NetworkConfig::has_part`]) takes nothing.
pub fn choose(
    config: &NetworkConfig,
    leases: &LeaseSet,
    below: Below<'_>,
) -> Result<Subnets, AllocationError> {
    let leased: Vec<IpNet> =
        leases.iter().flat_map(|lease| lease.subnets.iter()).filter(|net| config.has_part(net)).collect();
    let ipv4 = match config.ipv4 {
        None => None,
        Some(want) => {
            let range =
                Range { min: want.subnet_min.into(), max: want.subnet_max.into(), len: want.subnet_len };
            // The address lies between two IPv4 addresses, so it has 32 bits.
            let address = Ipv4Addr::from_bits(range.pick(&leased, below)? as u32);
            Some(Ipv4Net::new_assert(address, want.subnet_len))
        }
    };
    let ipv6 = match config.ipv6 {
        None => None,
        Some(want) => {
            let range =
                Range { min: want.subnet_min.into(), max: want.subnet_max.into(), len: want.subnet_len };
            let address = Ipv6Addr::from_bits(range.pick(&leased, below)?);
            Some(Ipv6Net::new_assert(address, want.subnet_len))
        }
    };
    Ok(Subnets { ipv4, ipv6 })
}

/// The subnets of one family that may be leased: `min`, one subnet on, … up to `max`.
struct Range {
    min: IpAddr,
    max: IpAddr,
    len: u8,
}

/// The addresses of one lease as numbers, both ends included.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Taken {
    first: u128,
    last: u128,
    net: IpNet,
}

impl Range {
    /// The number of one of the first hundred free subnets.
    ///
    /// Sorted, the leases are walked beside the subnets, so the cost is that of sorting them. A lease
    /// may have any length: everything that overlaps one is skipped.
    fn pick(&self, leased: &[IpNet], below: Below<'_>) -> Result<u128, AllocationError> {
        /// Compatibility: so many the original collects before it draws.
        const CANDIDATES: usize = 100;
        let (first, last, size) = (number(self.min), number(self.max), self.size());
        let mut taken: Vec<Taken> = leased
            .iter()
            .filter(|net| net.addr().is_ipv4() == self.min.is_ipv4())
            .map(|net| Taken { first: number(net.network()), last: number(net.broadcast()), net: *net })
            .filter(|lease| lease.last >= first && lease.first <= last + (size - 1))
            .collect();
        taken.sort_unstable();
        let mut free = Vec::with_capacity(CANDIDATES);
        let mut leases = taken.iter().peekable();
        let mut candidate = Some(first);
        while let Some(subnet) = candidate.filter(|subnet| *subnet <= last) {
            if let Some(lease) = leases.next_if(|lease| lease.last < subnet) {
                let _behind_us = lease;
                continue;
            }
            let beyond = match leases.peek() {
                // The walk goes on behind the lease, in whole steps.
                Some(lease) if lease.first <= subnet + (size - 1) => lease.last - (lease.last - first) % size,
                _ => {
                    free.push(subnet);
                    subnet
                }
            };
            if free.len() == CANDIDATES {
                break;
            }
            // None at the end of the address space, where the original starts over at zero.
            candidate = beyond.checked_add(size);
        }
        match free.len() {
            0 => Err(self.out_of_subnets(&taken)),
            // A source that does not keep to its bound must not lead out of the list.
            len => Ok(free[below(len) % len]),
        }
    }

    fn size(&self) -> u128 {
        let bits = if self.min.is_ipv4() { 32 } else { 128 };
        1 << (bits - self.len)
    }

    fn out_of_subnets(&self, taken: &[Taken]) -> AllocationError {
        /// So many leases are named.
        const NAMED: usize = 3;
        let Range { min, max, len } = self;
        let all = (number(*max) - number(*min)) / self.size() + 1;
        let family = if min.is_ipv4() { "" } else { "IPv6" };
        let large: Vec<String> = taken
            .iter()
            .filter(|lease| lease.net.prefix_len() < *len)
            .take(NAMED)
            .map(|lease| lease.net.to_string())
            .collect();
        let large = match large.as_slice() {
            [] => String::new(),
            named => format!(", {} more than one each", named.join(" and ")),
        };
        AllocationError::OutOfSubnets(format!(
            "{} leases take all {all} subnets of {family}SubnetMin {min} to {family}SubnetMax {max}{large}; remove the \
             leases of nodes that are gone (flannelctl leases shows them), widen the range, or lease smaller subnets \
             with a longer {family}SubnetLen",
            taken.len()
        ))
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_bits().into(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

#[cfg(test)]
mod tests;
