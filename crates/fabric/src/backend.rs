//! How packets travel between nodes. One file per backend; this one lists them, and holds what they
//! share: the rules that a lease must keep before anything is programmed for it.

pub mod alloc;
pub mod host_gw;
pub mod udp;
pub mod vxlan;

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use crate::config::{NetworkConfig, is_part};
use crate::dataplane::{Dataplane, NextHop, Route, Target};
use crate::host::{ExternalInterface, Host, RouteStyle};
use crate::lease::{Attributes, Lease};
use crate::link_name::LinkName;
use crate::mac::Mac;
use crate::ownership::ROUTE_PROTOCOL;

/// A backend with its configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// VXLAN tunnels by the kernel.
    Vxlan(vxlan::Vxlan),
    /// Routes through the nodes themselves, on one layer-2 network.
    HostGw,
    /// UDP datagrams by a data path in user space.
    Udp(udp::Udp),
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

/// One family of a peer: its pod subnet and the address of its node, both checked.
struct Peer {
    subnet: IpNet,
    public: IpAddr,
}

impl Backend {
    /// The name in `Backend.Type`, such as `vxlan`.
    pub fn name(&self) -> &'static str {
        match self {
            Backend::Vxlan(_) => "vxlan",
            Backend::HostGw => "host-gw",
            Backend::Udp(_) => "udp",
            Backend::Alloc => "alloc",
        }
    }

    /// The devices of ours that the backend makes.
    pub fn links(&self, config: &NetworkConfig) -> Vec<LinkName> {
        match self {
            Backend::Vxlan(vxlan) => vxlan.links(config),
            Backend::Udp(udp) => vec![udp.link()],
            Backend::HostGw | Backend::Alloc => Vec::new(),
        }
    }

    /// What this node publishes in its lease.
    pub fn attributes(
        &self,
        config: &NetworkConfig,
        external: &ExternalInterface,
        macs: VtepMacs,
    ) -> Attributes {
        match self {
            Backend::Vxlan(vxlan) => vxlan.attributes(config, external, macs),
            Backend::HostGw => host_gw::attributes(config, external),
            Backend::Udp(udp) => udp.attributes(config, external),
            Backend::Alloc => alloc::attributes(config, external),
        }
    }

    /// The MTU for pods: what fits every enabled family.
    pub fn mtu(&self, config: &NetworkConfig, external: &ExternalInterface) -> u32 {
        match self {
            Backend::Vxlan(vxlan) => vxlan.mtu(config, external),
            Backend::Udp(udp) => udp.mtu(config, external),
            Backend::HostGw | Backend::Alloc => external.mtu,
        }
    }

    /// The kernel objects that the node needs whoever its peers are.
    pub fn device(&self, config: &NetworkConfig, host: &Host, macs: VtepMacs, into: &mut Dataplane) {
        match self {
            Backend::Vxlan(vxlan) => vxlan.device(config, host, macs, into),
            Backend::Udp(udp) => udp.device(config, host, into),
            Backend::HostGw | Backend::Alloc => {}
        }
    }

    /// Adds the kernel objects for one peer, to what [`Self::device`] made.
    ///
    /// Each enabled family is decided by itself. An error says what is left out and why; a family
    /// that is not named in it is programmed, and the error says so.
    pub fn peer(
        &self,
        config: &NetworkConfig,
        host: &Host,
        lease: &Lease,
        into: &mut Dataplane,
    ) -> Result<Path, String> {
        if *self == Backend::Alloc {
            return Ok(Path::None);
        }
        let theirs = &*lease.attributes.backend_type;
        let same = match self {
            Backend::Udp(_) => udp::is_ours(theirs),
            _ => theirs == self.name(),
        };
        if !same {
            return Err(format!(
                "its backend is {:?}, ours is {}; all nodes of a network need the same Backend.Type",
                lease.attributes.backend_type,
                self.name()
            ));
        }
        let mut path: Option<Path> = None;
        let mut programmed = Vec::new();
        let mut refused = Vec::new();
        for network in config.networks() {
            let family = if network.addr().is_ipv4() { "IPv4" } else { "IPv6" };
            let outcome = checked(&network, host, lease).and_then(|peer| match self {
                Backend::Vxlan(vxlan) => vxlan.peer(host, lease, &peer, into),
                Backend::HostGw => host_gw::peer(host, &peer, into),
                Backend::Udp(udp) => udp.peer(lease, &peer, into),
                Backend::Alloc => Ok(Path::None),
            });
            match outcome {
                Ok(way) => {
                    programmed.push(family);
                    // Encapsulated, if any family is.
                    path = Some(path.map_or(way, |other| other.min(way)));
                }
                Err(reason) => refused.push(format!("{family}: {reason}")),
            }
        }
        match path {
            Some(path) if refused.is_empty() => Ok(path),
            Some(_) => Err(format!("{} ({} is programmed)", refused.join("; "), programmed.join(", "))),
            None => Err(refused.join("; ")),
        }
    }

    /// Whether a lease could be programmed, were it the only one.
    pub(crate) fn accepts(&self, config: &NetworkConfig, host: &Host, lease: &Lease) -> bool {
        self.peer(config, host, lease, &mut Dataplane::default()).is_ok()
    }

    /// Whether pods can be served from this interface; if not, why (host-gw behind NAT, an MTU that
    /// is too small, an address that is missing).
    pub fn check(&self, config: &NetworkConfig, external: &ExternalInterface) -> Result<(), String> {
        let missing = |family: &str, option: &str| {
            Err(format!(
                "{family} is enabled, but {} has no {family} address; give it one, choose another interface \
                 with --iface, or name an address with {option}",
                external.link
            ))
        };
        if config.ipv4.is_some() && external.public_ipv4.is_none() {
            return missing("IPv4", "--public-ip");
        }
        if config.ipv6.is_some() && external.public_ipv6.is_none() {
            return missing("IPv6", "--public-ipv6");
        }
        match self {
            Backend::Vxlan(vxlan) => vxlan.check(config, external),
            Backend::HostGw => host_gw::check(config, external),
            Backend::Udp(udp) => udp.check(config, external),
            Backend::Alloc => Ok(()),
        }
    }
}

/// One family of a lease, if it can be programmed without harm; else the reason.
fn checked(network: &IpNet, host: &Host, lease: &Lease) -> Result<Peer, String> {
    let external = &host.external;
    let (subnet, public, own, ours) = match network {
        IpNet::V4(_) => (
            lease.subnets.ipv4.map(IpNet::V4),
            lease.attributes.public_ipv4.map(IpAddr::V4),
            host.own.ipv4.map(IpNet::V4),
            [external.public_ipv4.map(IpAddr::V4), external.ipv4.map(IpAddr::V4)],
        ),
        IpNet::V6(_) => (
            lease.subnets.ipv6.map(IpNet::V6),
            lease.attributes.public_ipv6.map(IpAddr::V6),
            host.own.ipv6.map(IpNet::V6),
            [external.public_ipv6.map(IpAddr::V6), external.ipv6.map(IpAddr::V6)],
        ),
    };
    let subnet = subnet.ok_or("the lease has no subnet of this family")?;
    if !is_part(network, &subnet) {
        return Err(format!("{subnet} is not a part of the network {network}"));
    }
    let public = public.ok_or("the lease names no address of the node for this family")?;
    if !could_be_a_node(public) {
        return Err(format!("the node's address {public} is not that of a node"));
    }
    if ours.contains(&Some(public)) {
        return Err(format!(
            "the node's address {public} is this node's own; an old lease of this node, or a copied address"
        ));
    }
    if let Some(own) = own
        && (own.contains(&subnet) || subnet.contains(&own))
    {
        return Err(format!("{subnet} overlaps {own}, which is this node's own"));
    }
    if let Some(caught) = ours.into_iter().flatten().chain([public]).find(|ip| subnet.contains(ip)) {
        return Err(format!("{subnet} contains {caught}, a node's address, which would be cut off"));
    }
    Ok(Peer { subnet, public })
}

fn could_be_a_node(ip: IpAddr) -> bool {
    let broadcast = ip == IpAddr::V4(Ipv4Addr::BROADCAST);
    !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || broadcast)
}

/// Adds a route to a pod subnet, as the host wants IPv4 routes to be written.
///
/// The id of a next-hop object is its gateway as a number. That is unique: gateways of tunnels are
/// network addresses of pod subnets, of which no two leases have the same; the others are addresses
/// of nodes, and the routes to one node share its object. Should the two kinds ever meet in one
/// number, the later route is written plainly. Objects of others are not in the way: routing daemons
/// count from one, and `0.x.x.x` is no gateway.
fn add_route(host: &Host, destination: IpNet, next_hop: NextHop, into: &mut Dataplane) {
    let target = match (host.route_style, next_hop.gateway) {
        (RouteStyle::NextHopObjects, IpAddr::V4(gateway)) => {
            let id = gateway.to_bits();
            match *into.next_hops.entry(id).or_insert(next_hop) {
                object if object == next_hop => Target::NextHopObject(id),
                _ => Target::Via(next_hop),
            }
        }
        _ => Target::Via(next_hop),
    };
    into.routes.insert(Route {
        destination,
        metric: Route::default_metric(&destination),
        target,
        protocol: ROUTE_PROTOCOL,
    });
}

#[cfg(test)]
mod tests;
