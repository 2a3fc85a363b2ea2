//! The network configuration, `net-conf.json`.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::backend::Backend;

/// A network configuration that has been read and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// The IPv4 network, unless `EnableIPv4` is false.
    pub ipv4: Option<Ipv4Network>,
    /// The IPv6 network, if `EnableIPv6` is true.
    pub ipv6: Option<Ipv6Network>,
    /// Which of the original's two sets of firewall rules the cluster uses. We write native nftables
    /// either way; it decides how the original's rules are met in a mixed cluster.
    pub nftables: bool,
    /// How packets travel between nodes.
    pub backend: Backend,
    /// What was odd but not wrong, for the log: unknown keys with the nearest known name, and so on.
    pub warnings: Vec<String>,
}

/// The IPv4 half of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv4Network {
    /// The network that all pod subnets are leased out of.
    pub network: Ipv4Net,
    /// The prefix length of each pod subnet.
    pub subnet_len: u8,
    /// The first subnet that may be leased.
    pub subnet_min: Ipv4Addr,
    /// The last subnet that may be leased.
    pub subnet_max: Ipv4Addr,
}

/// The IPv6 half of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv6Network {
    /// The network that all pod subnets are leased out of.
    pub network: Ipv6Net,
    /// The prefix length of each pod subnet.
    pub subnet_len: u8,
    /// The first subnet that may be leased.
    pub subnet_min: Ipv6Addr,
    /// The last subnet that may be leased.
    pub subnet_max: Ipv6Addr,
}

/// A network configuration that cannot be used: key, value, rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

impl NetworkConfig {
    /// Reads and checks `net-conf.json`.
    pub fn from_json(_json: &str) -> Result<NetworkConfig, ConfigError> {
        todo!()
    }

    /// The cluster networks, IPv4 first.
    pub fn networks(&self) -> impl Iterator<Item = IpNet> + use<> {
        let ipv4 = self.ipv4.map(|net| IpNet::V4(net.network));
        let ipv6 = self.ipv6.map(|net| IpNet::V6(net.network));
        ipv4.into_iter().chain(ipv6)
    }
}
