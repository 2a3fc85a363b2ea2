//! The whole plan of a node: what its kernel should hold, and how each peer is reached.

use std::collections::BTreeMap;

use ipnet::IpNet;

use crate::backend::{Path, VtepMacs};
use crate::config::NetworkConfig;
use crate::dataplane::Dataplane;
use crate::firewall::SourcePorts;
use crate::host::Host;
use crate::lease::{LeaseSet, Subnets};
use crate::ownership::Ownership;

/// What the operator asked for, apart from the network configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Families in which packets leaving the network are masqueraded: `--ip-masq`.
    pub masquerade: Masquerade,
    /// `--iptables-forward-rules`
    pub forward_rules: bool,
    /// `--ip-blackhole-route`
    pub blackhole_route: bool,
}

/// Masquerading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masquerade {
    /// For IPv4.
    pub ipv4: bool,
    /// For IPv6.
    pub ipv6: bool,
    /// Destinations that see pod addresses: `--ip-masq-except`.
    pub except: Vec<IpNet>,
    /// `--ip-masq-fully-random-disable`
    pub source_ports: SourcePorts,
}

/// What a node's kernel should hold, and how each peer is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The kernel objects.
    pub dataplane: Dataplane,
    /// Every lease but our own: its path, or why it is left out.
    pub peers: BTreeMap<Subnets, Result<Path, String>>,
}

/// Everything that decides a plan, apart from the leases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    /// The network configuration.
    pub config: NetworkConfig,
    /// The operator's options.
    pub options: Options,
    /// Facts about the host.
    pub host: Host,
    /// The VTEPs' Ethernet addresses.
    pub macs: VtepMacs,
}

impl Intent {
    /// The plan for all of `leases`.
    pub fn plan(&self, leases: &LeaseSet) -> Plan {
        self.plan_for(leases, leases)
    }

    /// The plan for `some` of the leases; `all` decides between rivals.
    pub fn plan_for(&self, _some: &LeaseSet, _all: &LeaseSet) -> Plan {
        todo!()
    }

    /// What is ours on this node.
    pub fn ownership(&self) -> Ownership {
        todo!()
    }
}
