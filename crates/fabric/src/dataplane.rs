//! What flannel wants in the kernel, what is there, and the difference.
//!
//! A [`Dataplane`] is a closed set of kernel objects, IPv4 and IPv6 side by side. [`Observed`] is
//! what one look at the kernel gave. [`changes`] compares the two by the kernel's own keys and says
//! what to do, as [`Change`]s, in an order that the kernel accepts:
//! link → sysctl → address → neighbor → FDB → next hop → route → firewall, removals after, in
//! reverse. A change displays as the iproute2 or nft command that makes it.

mod change;
mod difference;
mod kind;
#[cfg(test)]
pub(crate) mod model;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::firewall::{Table, TableName};
use crate::link_name::LinkName;
use crate::mac::Mac;

pub use change::Change;
pub use difference::{Prune, between, changes};
pub use kind::Kind;

/// The kernel's main routing table (`RT_TABLE_MAIN`).
pub const MAIN_TABLE: u32 = 254;
/// The metric that the kernel gives IPv6 routes that name none (`IP6_RT_PRIO_USER`).
pub const IPV6_DEFAULT_METRIC: u32 = 1024;

/// The kernel objects that flannel wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dataplane {
    /// Values of files below `/proc/sys`, by dotless path such as `net/ipv4/ip_forward`.
    pub sysctls: BTreeMap<String, String>,
    /// Devices by name.
    pub links: BTreeMap<LinkName, Link>,
    /// Addresses on devices.
    pub addresses: BTreeSet<(LinkName, IpNet)>,
    /// Permanent neighbor entries: the Ethernet address of a gateway.
    pub neighbors: BTreeMap<(LinkName, IpAddr), Mac>,
    /// VXLAN forwarding entries: the node behind an Ethernet address.
    pub fdb: BTreeMap<(LinkName, Mac), IpAddr>,
    /// Next-hop objects by id.
    pub next_hops: BTreeMap<u32, NextHop>,
    /// Routes.
    pub routes: BTreeSet<Route>,
    /// Firewall tables, each replaced as a whole.
    pub tables: BTreeMap<TableName, Table>,
    /// The peers of the userspace tunnel: each pod subnet with the node that has it. No kernel object:
    /// the data path of the `udp` backend looks here for what the kernel would have routes for.
    pub tunnel: BTreeMap<IpNet, IpAddr>,
    /// Networks whose forwarded packets are accepted in a `FORWARD` chain of iptables that drops
    /// by default, since an accept in one table does not undo a drop in another.
    pub accepted_forwards: BTreeSet<IpNet>,
}

/// What one look at the kernel gave: flannel's objects and everybody else's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// The sysctls that were asked for; absent where the kernel has no such file.
    pub sysctls: BTreeMap<String, String>,
    /// All devices.
    pub links: BTreeMap<LinkName, ObservedLink>,
    /// All addresses.
    pub addresses: BTreeSet<(LinkName, IpNet)>,
    /// Permanent neighbor entries of the devices asked for.
    pub neighbors: BTreeMap<(LinkName, IpAddr), Mac>,
    /// Permanent FDB entries with a destination of the devices asked for. A MAC with more than one
    /// destination has an entry each.
    pub fdb: BTreeSet<(LinkName, Mac, IpAddr)>,
    /// Next-hop objects of flannel's protocol.
    pub next_hops: BTreeMap<u32, NextHop>,
    /// Routes of the main table, both families, without the kernel's own cache entries.
    pub routes: BTreeSet<Route>,
    /// The firewall tables that were asked for, as far as they are there.
    pub tables: BTreeMap<TableName, Table>,
    /// For each family whose iptables `FORWARD` chain drops by default: which networks it accepts
    /// by rules of ours. Absent for a family whose chain does not drop and has no such rules, or is
    /// not there.
    pub accepted_forwards: BTreeMap<IpFamily, BTreeSet<IpNet>>,
}

/// IPv4 or IPv6, where a value exists once for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IpFamily {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl IpFamily {
    /// The family of a network.
    pub fn of(net: &IpNet) -> IpFamily {
        if net.addr().is_ipv4() { IpFamily::V4 } else { IpFamily::V6 }
    }
}

/// A device that flannel wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: LinkName,
    /// What it is; a device of another kind with that name is deleted and made anew.
    pub kind: LinkKind,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its Ethernet address; none where packets travel without one.
    pub mac: Option<Mac>,
}

/// The kind of a device, with what cannot be changed once it exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkKind {
    /// A VXLAN tunnel endpoint.
    Vxlan(Vxlan),
    /// A device whose other end is a program: flanneld itself.
    Tun(Tun),
}

/// The parameters of a TUN device. It is persistent, so that addresses and routes stay while nobody
/// has it open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tun {
    /// Whether a program may open it several times; cannot be changed on an existing device.
    pub multi_queue: bool,
    /// How many packets wait in each queue to be read.
    pub queue_length: u32,
}

/// The parameters of a VXLAN device. None of them can be changed on an existing device: the kernel
/// answers EOPNOTSUPP (`vxlan_nl2conf`), so it is deleted and made anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vxlan {
    /// The VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// The device that carries the tunnel.
    pub underlay: LinkName,
    /// The tunnel's own address.
    pub local: IpAddr,
    /// The UDP port; none leaves it to the kernel (8472).
    pub port: Option<u16>,
    /// Whether source addresses are learned from packets.
    pub learning: bool,
    /// Whether the group policy extension is on.
    pub gbp: bool,
}

/// A device that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedLink {
    /// The kernel's number for it.
    pub index: u32,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its Ethernet address, if it has one of six octets.
    pub mac: Option<Mac>,
    /// Whether it is administratively up.
    pub up: bool,
    /// What it is.
    pub kind: ObservedLinkKind,
}

/// What an existing device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObservedLinkKind {
    /// A VXLAN device. `underlay` is absent where the lower device is gone; `port` is always known.
    Vxlan {
        /// The VXLAN network identifier.
        vni: u32,
        /// The lower device.
        underlay: Option<LinkName>,
        /// The tunnel's own address.
        local: Option<IpAddr>,
        /// The UDP port.
        port: u16,
        /// Whether source addresses are learned from packets.
        learning: bool,
        /// Whether the group policy extension is on.
        gbp: bool,
    },
    /// A TUN device, as far as the kernel says so (Linux 4.17); older ones say `Other("tun")`.
    Tun {
        /// Whether it takes Ethernet frames instead of IP packets: a TAP device.
        frames: bool,
        /// Whether it may have several queues.
        multi_queue: bool,
    },
    /// Anything else, by the kernel's name for it; empty for a hardware device.
    Other(String),
}

/// A next-hop object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NextHop {
    /// The gateway.
    pub gateway: IpAddr,
    /// The device.
    pub link: LinkName,
    /// Whether the gateway counts as on the link although no address of the link says so.
    pub onlink: bool,
}

/// A unicast or blackhole route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The destination.
    pub destination: IpNet,
    /// The metric; part of the kernel's key. IPv6 routes have 1024 unless told otherwise.
    pub metric: u32,
    /// Where packets go.
    pub target: Target,
    /// Who made it (`rtm_protocol`).
    pub protocol: u8,
}

/// Where the packets of a route go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// To a gateway through a device.
    Via(NextHop),
    /// To a next-hop object; what it stands for is in [`Dataplane::next_hops`].
    NextHopObject(u32),
    /// To the destination itself through a device.
    Device(LinkName),
    /// Nowhere.
    Blackhole,
    /// To something that flannel never makes (several next hops, other types); kept so that foreign
    /// routes are seen.
    Other,
}

impl Route {
    /// The metric that a route to `destination` has when none is asked for.
    pub fn default_metric(destination: &IpNet) -> u32 {
        match IpFamily::of(destination) {
            IpFamily::V4 => 0,
            IpFamily::V6 => IPV6_DEFAULT_METRIC,
        }
    }
}

impl LinkKind {
    /// The first reason why an existing device cannot serve as this one, if there is any.
    pub fn conflict(&self, with: &ObservedLinkKind) -> Option<String> {
        match self {
            LinkKind::Vxlan(vxlan) => vxlan.conflict(with),
            LinkKind::Tun(tun) => tun.conflict(with),
        }
    }
}

impl Tun {
    /// The first reason why an existing device cannot serve as this one, if there is any.
    pub fn conflict(&self, with: &ObservedLinkKind) -> Option<String> {
        match with {
            ObservedLinkKind::Tun { frames: true, .. } => Some("it is a tap device".to_owned()),
            ObservedLinkKind::Tun { multi_queue, .. } if *multi_queue != self.multi_queue => {
                Some(format!("its multi_queue is {multi_queue}, want {}", self.multi_queue))
            }
            ObservedLinkKind::Tun { .. } => None,
            ObservedLinkKind::Other(kind) if kind == "tun" => None,
            _ => Some("it is no tun device".to_owned()),
        }
    }
}

impl Vxlan {
    /// The first reason why an existing device cannot serve as this one, if there is any.
    ///
    /// Compatibility: a device that has a port although none is asked for is reused only if it has
    /// the kernel's default; the original keeps any port, so that dropping `Port` had no effect.
    pub fn conflict(&self, with: &ObservedLinkKind) -> Option<String> {
        const KERNEL_DEFAULT_PORT: u16 = 8472;
        let ObservedLinkKind::Vxlan { vni, underlay, local, port, learning, gbp } = with else {
            return Some("it is no vxlan device".to_owned());
        };
        let wanted_port = self.port.unwrap_or(KERNEL_DEFAULT_PORT);
        if *vni != self.vni {
            Some(format!("its VNI is {vni}, want {}", self.vni))
        } else if *underlay != Some(self.underlay) {
            let underlay = underlay.map_or("none".to_owned(), |name| name.to_string());
            Some(format!("its lower device is {underlay}, want {}", self.underlay))
        } else if *local != Some(self.local) {
            let local = local.map_or("none".to_owned(), |ip| ip.to_string());
            Some(format!("its local address is {local}, want {}", self.local))
        } else if *port != wanted_port {
            Some(format!("its port is {port}, want {wanted_port}"))
        } else if *gbp != self.gbp {
            Some(format!("its group policy extension is {gbp}, want {}", self.gbp))
        } else if *learning != self.learning {
            Some(format!("its learning is {learning}, want {}", self.learning))
        } else {
            None
        }
    }
}

impl Route {
    /// The device that the route names itself.
    pub fn link(&self) -> Option<LinkName> {
        match self.target {
            Target::Via(next_hop) => Some(next_hop.link),
            Target::Device(link) => Some(link),
            Target::NextHopObject(_) | Target::Blackhole | Target::Other => None,
        }
    }
}

impl ObservedLink {
    /// A device of which nothing matters but that it is there.
    fn present() -> ObservedLink {
        ObservedLink { index: 0, mtu: 0, mac: None, up: true, kind: ObservedLinkKind::Other(String::new()) }
    }
}
