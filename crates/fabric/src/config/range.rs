//! How long pod subnets are, and which of them may be leased: the rules of both families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::{ConfigError, refuse};

/// The rules for the length of a pod subnet: the same for both families, with other numbers.
pub(super) struct Lengths {
    pub(super) key: &'static str,
    pub(super) network_key: &'static str,
    /// The longest prefix that leaves room for a tunnel and a bridge address on each node.
    pub(super) longest: u8,
    /// The longest network that holds four subnets of that length.
    pub(super) smallest_network: u8,
    /// What each node gets where there is room for it.
    pub(super) usual: u8,
}

impl Lengths {
    pub(super) fn subnet_len(
        &self,
        given: u64,
        network: &dyn std::fmt::Display,
        prefix: u8,
    ) -> Result<u8, ConfigError> {
        let Lengths { key, network_key, longest, smallest_network, usual } = *self;
        if given == 0 && prefix > smallest_network {
            // Compatibility: the original says "network" for IPv4 and "IPv6Network" for IPv6.
            let what = if network_key == "Network" { "network" } else { network_key };
            return Err(refuse(format_args!(
                "{what} is too small. Minimum useful network prefix is /{smallest_network}: \
                 {network_key} is {network}; four subnets of /{longest} would not fit, want a larger network",
            )));
        }
        if given == 0 {
            return Ok(if prefix + 2 <= usual { usual } else { prefix + 2 });
        }
        if given > u64::from(longest) {
            return Err(refuse(format_args!(
                "SubnetLen must be less than /{}: {key} is {given}, want {} to {longest}",
                longest + 1,
                u64::from(prefix + 2).min(u64::from(longest)),
            )));
        }
        if given < u64::from(prefix) + 2 {
            return Err(refuse(format_args!(
                "network must be able to accommodate at least four subnets: {key} is {given} and {network_key} \
                 is {network}, want {key} {} to {longest} or a larger network",
                u64::from(prefix) + 2,
            )));
        }
        Ok(given as u8)
    }
}

/// The rules for the first and the last subnet that may be leased; addresses as numbers.
pub(super) struct Range {
    pub(super) keys: [&'static str; 2],
    pub(super) network_key: &'static str,
    pub(super) network: IpNet,
    pub(super) subnet_len: u8,
    pub(super) size: u128,
}

impl Range {
    pub(super) fn check(&self, min: Option<u128>, max: Option<u128>) -> Result<(u128, u128), ConfigError> {
        let [min_key, max_key] = self.keys;
        let (first, last) = (number(self.network.network()), number(self.network.broadcast()));
        let min = match min {
            // The first subnet is left out, since its address is the network's own.
            None => first + self.size,
            Some(min) => self.inside(min_key, min)?,
        };
        let max = match max {
            None => last - (self.size - 1),
            Some(max) => self.inside(max_key, max)?,
        };
        self.aligned(min_key, min)?;
        self.aligned(max_key, max)?;
        if min > max {
            return Err(refuse(format_args!(
                "{min_key} {} is greater than {max_key} {}: there is no subnet to lease; want {min_key} <= {max_key}",
                self.address(min),
                self.address(max),
            )));
        }
        Ok((min, max))
    }

    fn inside(&self, key: &str, value: u128) -> Result<u128, ConfigError> {
        let (first, last) = (number(self.network.network()), number(self.network.broadcast()));
        if (first..=last).contains(&value) {
            return Ok(value);
        }
        Err(refuse(format_args!(
            "{key} is not in the range of the {}: {key} is {}, want {} to {}",
            self.network_key,
            self.address(value),
            self.network.network(),
            self.network.broadcast(),
        )))
    }

    fn aligned(&self, key: &str, value: u128) -> Result<(), ConfigError> {
        if value.is_multiple_of(self.size) {
            return Ok(());
        }
        Err(refuse(format_args!(
            "{key} is not on a SubnetLen boundary: {}; with subnets of /{} the nearest below is {}",
            self.address(value),
            self.subnet_len,
            self.address(value - value % self.size),
        )))
    }

    fn address(&self, value: u128) -> IpAddr {
        match self.network {
            IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from_bits(value as u32)),
            IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(value)),
        }
    }
}

pub(super) fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}
