//! How packets travel between nodes. One file per backend; this one lists them.

pub mod alloc;
pub mod host_gw;
pub mod vxlan;

use crate::config::NetworkConfig;
use crate::dataplane::Dataplane;
use crate::host::{ExternalInterface, Host};
use crate::lease::{Attributes, Lease, Subnets};
use crate::mac::Mac;

/// A backend with its configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// VXLAN tunnels by the kernel.
    Vxlan(vxlan::Vxlan),
    /// Routes through the nodes themselves, on one layer-2 network.
    HostGw,
    /// Leases only.
    Alloc,
}

/// How a peer is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Path {
    /// Encapsulated.
    Tunnel,
    /// By a plain route to the node.
    Direct,
    /// Not at all: the backend leaves it to others.
    None,
}

/// What is kept on a node from one start to the next: the VTEPs' Ethernet addresses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VtepMacs {
    /// Of the IPv4 tunnel endpoint.
    pub ipv4: Option<Mac>,
    /// Of the IPv6 tunnel endpoint.
    pub ipv6: Option<Mac>,
}

impl Backend {
    /// The name in `Backend.Type`, such as `vxlan`.
    pub fn name(&self) -> &'static str {
        todo!()
    }

    /// What this node publishes in its lease.
    pub fn attributes(&self, _config: &NetworkConfig, _external: &ExternalInterface, _macs: VtepMacs) -> Attributes {
        todo!()
    }

    /// The MTU for pods: what fits every enabled family.
    pub fn mtu(&self, _config: &NetworkConfig, _external: &ExternalInterface) -> u32 {
        todo!()
    }

    /// The kernel objects that the node needs whoever its peers are.
    pub fn device(&self, _config: &NetworkConfig, _host: &Host, _macs: VtepMacs, _into: &mut Dataplane) {
        todo!()
    }

    /// Adds the kernel objects for one peer; an error is the reason why the peer cannot be reached.
    pub fn peer(
        &self,
        _config: &NetworkConfig,
        _host: &Host,
        _lease: &Lease,
        _into: &mut Dataplane,
    ) -> Result<Path, String> {
        todo!()
    }

    /// The pod subnets' owner cannot use this host: why (host-gw behind NAT, MTU too small, ...).
    pub fn check(&self, _config: &NetworkConfig, _external: &ExternalInterface) -> Result<(), String> {
        todo!()
    }
}

/// Which subnets a plan is about, in errors.
pub(crate) fn _unused(_: Subnets) {}
