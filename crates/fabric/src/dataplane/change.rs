//! [`Change`]: one step towards the wanted state, and its text.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Dataplane, Link, LinkKind, MAIN_TABLE, NextHop, Route, Target, Tun};
use crate::firewall::{Table, TableName};
use crate::link_name::LinkName;
use crate::mac::Mac;
use crate::ownership;

/// One step. Its text is the iproute2 or nft command that does the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Write a file below `/proc/sys`.
    SetSysctl(String, String),
    /// Make a device and set it up.
    CreateLink(Link),
    /// Delete a device, and with it everything on it.
    DeleteLink(LinkName),
    /// Set a device's MTU.
    SetMtu(LinkName, u32),
    /// Set a device's Ethernet address.
    SetMac(LinkName, Mac),
    /// Set a device up.
    SetUp(LinkName),
    /// Add an address to a device.
    AddAddress(LinkName, IpNet),
    /// Take an address off a device.
    RemoveAddress(LinkName, IpNet),
    /// Add or overwrite a permanent neighbor entry.
    SetNeighbor(LinkName, IpAddr, Mac),
    /// Remove a neighbor entry.
    RemoveNeighbor(LinkName, IpAddr),
    /// Add or overwrite a VXLAN forwarding entry.
    SetFdb(LinkName, Mac, IpAddr),
    /// Remove a VXLAN forwarding entry.
    RemoveFdb(LinkName, Mac, IpAddr),
    /// Add a next-hop object.
    AddNextHop(u32, NextHop),
    /// Remove a next-hop object.
    RemoveNextHop(u32),
    /// Add a route, replacing the one with the same destination and metric.
    SetRoute(Route),
    /// Remove a route.
    RemoveRoute(Route),
    /// Make a firewall table, or replace it as a whole.
    SetTable(Table),
    /// Delete a firewall table.
    DeleteTable(TableName),
    /// Let an iptables `FORWARD` chain that drops by default accept packets from and to a network.
    AcceptForward(IpNet),
    /// Take that back.
    RetractForward(IpNet),
}

impl Change {
    /// Whether the change takes something away for good (a device that is remade is not).
    pub fn removes(&self) -> bool {
        matches!(
            self,
            Change::RemoveAddress(..)
                | Change::RemoveNeighbor(..)
                | Change::RemoveFdb(..)
                | Change::RemoveNextHop(..)
                | Change::RemoveRoute(..)
                | Change::DeleteTable(..)
                | Change::RetractForward(..)
        )
    }

    /// Everything that must be done to make `wanted` from nothing, in order: a plan as text.
    pub fn all_of(wanted: &Dataplane) -> Vec<Change> {
        super::difference::additions(wanted)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::SetSysctl(path, value) => write!(f, "sysctl -w {}={value}", sysctl_name(path)),
            Change::CreateLink(link) => match &link.kind {
                LinkKind::Vxlan(_) => write!(f, "ip link add {link}"),
                LinkKind::Tun(tun) => create_tun(f, link, tun),
            },
            Change::DeleteLink(name) => write!(f, "ip link delete {name}"),
            Change::SetMtu(name, mtu) => write!(f, "ip link set {name} mtu {mtu}"),
            Change::SetMac(name, mac) => write!(f, "ip link set {name} address {mac}"),
            Change::SetUp(name) => write!(f, "ip link set {name} up"),
            Change::AddAddress(name, net) => write!(f, "ip address add {net} dev {name}"),
            Change::RemoveAddress(name, net) => write!(f, "ip address delete {net} dev {name}"),
            Change::SetNeighbor(name, ip, mac) => {
                write!(f, "ip neighbor replace {ip} lladdr {mac} dev {name} nud permanent")
            }
            Change::RemoveNeighbor(name, ip) => write!(f, "ip neighbor delete {ip} dev {name}"),
            Change::SetFdb(name, mac, to) => {
                write!(f, "bridge fdb replace {mac} dev {name} dst {to} self permanent")
            }
            Change::RemoveFdb(name, mac, to) => {
                write!(f, "bridge fdb delete {mac} dev {name} dst {to} self")
            }
            Change::AddNextHop(id, next_hop) => {
                write!(f, "ip nexthop add id {id} {next_hop} proto {}", ownership::ROUTE_PROTOCOL)
            }
            Change::RemoveNextHop(id) => write!(f, "ip nexthop delete id {id}"),
            Change::SetRoute(route) => write!(f, "ip{} route replace {route}", flag(&route.destination)),
            Change::RemoveRoute(route) => write!(f, "ip{} route delete {route}", flag(&route.destination)),
            Change::SetTable(table) => write!(f, "nft -f - <<'EOF'\n{}EOF", table.script()),
            Change::DeleteTable(name) => write!(f, "nft delete table {name}"),
            Change::AcceptForward(net) => forward_rule(f, "-A", net),
            Change::RetractForward(net) => forward_rule(f, "-D", net),
        }
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Link { name, kind, mtu, mac } = self;
        write!(f, "{name} ")?;
        if let Some(mac) = mac {
            write!(f, "address {mac} ")?;
        }
        let vxlan = match kind {
            LinkKind::Vxlan(vxlan) => vxlan,
            LinkKind::Tun(tun) => return write!(f, "mtu {mtu} txqueuelen {} up", tun.queue_length),
        };
        write!(f, "mtu {mtu} up type vxlan id {}", vxlan.vni)?;
        write!(f, " local {} dev {}", vxlan.local, vxlan.underlay)?;
        if let Some(port) = vxlan.port {
            write!(f, " dstport {port}")?;
        }
        f.write_str(if vxlan.learning { " learning" } else { " nolearning" })?;
        if vxlan.gbp { f.write_str(" gbp") } else { Ok(()) }
    }
}

impl fmt::Display for NextHop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "via {} dev {}", self.gateway, self.link)?;
        if self.onlink { f.write_str(" onlink") } else { Ok(()) }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.target == Target::Blackhole {
            f.write_str("blackhole ")?;
        }
        write!(f, "{}", self.destination)?;
        match self.target {
            Target::Via(next_hop) => write!(f, " {next_hop}")?,
            Target::NextHopObject(id) => write!(f, " nhid {id}")?,
            Target::Device(link) => write!(f, " dev {link}")?,
            Target::Blackhole | Target::Other => {}
        }
        if self.metric != Route::default_metric(&self.destination) {
            write!(f, " metric {}", self.metric)?;
        }
        write!(f, " proto {}", self.protocol)
    }
}

/// A TUN device is made by a command of its own, which sets none of the rest.
fn create_tun(f: &mut fmt::Formatter<'_>, link: &Link, tun: &Tun) -> fmt::Result {
    write!(f, "ip tuntap add dev {} mode tun", link.name)?;
    if tun.multi_queue {
        f.write_str(" multi_queue")?;
    }
    write!(f, "; ip link set {link}")
}

/// iproute2 takes the family from an address, but not for `blackhole` or `nhid`.
fn flag(destination: &IpNet) -> &'static str {
    if destination.addr().is_ipv4() { "" } else { " -6" }
}

fn forward_rule(f: &mut fmt::Formatter<'_>, verb: &str, net: &IpNet) -> fmt::Result {
    let program = if net.addr().is_ipv4() { "iptables" } else { "ip6tables" };
    let rule = |side| {
        format!("{program} {verb} FORWARD {side} {net} -m comment --comment \"flanneld forward\" -j ACCEPT")
    };
    write!(f, "{}; {}", rule("-s"), rule("-d"))
}

/// `net/ipv6/conf/flannel.1/accept_ra` as sysctl(8) wants it, which swaps dots and slashes.
fn sysctl_name(path: &str) -> String {
    path.chars()
        .map(|c| match c {
            '/' => '.',
            '.' => '/',
            other => other,
        })
        .collect()
}

const _: () = assert!(MAIN_TABLE == 254, "routes are printed without a table: they are in main");
