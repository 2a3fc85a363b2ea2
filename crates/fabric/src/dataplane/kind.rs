//! [`Kind`]: kinds of kernel objects, by which they are counted.

use std::collections::BTreeMap;

use super::{Change, Dataplane};

/// A kind of kernel object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Files below `/proc/sys`.
    Sysctl,
    /// Devices.
    Link,
    /// Addresses on devices.
    Address,
    /// Neighbor entries.
    Neighbor,
    /// VXLAN forwarding entries.
    Fdb,
    /// Next-hop objects.
    NextHop,
    /// Routes.
    Route,
    /// Firewall tables, and rules in those of others.
    Firewall,
}

impl Kind {
    /// Its name in counters.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Sysctl => "sysctl",
            Kind::Link => "link",
            Kind::Address => "address",
            Kind::Neighbor => "neighbor",
            Kind::Fdb => "fdb",
            Kind::NextHop => "nexthop",
            Kind::Route => "route",
            Kind::Firewall => "firewall",
        }
    }
}

impl Change {
    /// What it is about.
    pub fn kind(&self) -> Kind {
        match self {
            Change::SetSysctl(..) => Kind::Sysctl,
            Change::CreateLink(_)
            | Change::DeleteLink(_)
            | Change::SetMtu(..)
            | Change::SetMac(..)
            | Change::SetUp(_) => Kind::Link,
            Change::AddAddress(..) | Change::RemoveAddress(..) => Kind::Address,
            Change::SetNeighbor(..) | Change::RemoveNeighbor(..) => Kind::Neighbor,
            Change::SetFdb(..) | Change::RemoveFdb(..) => Kind::Fdb,
            Change::AddNextHop(..) | Change::RemoveNextHop(_) => Kind::NextHop,
            Change::SetRoute(_) | Change::RemoveRoute(_) => Kind::Route,
            Change::SetTable(_)
            | Change::DeleteTable(_)
            | Change::AcceptForward(_)
            | Change::RetractForward(_) => Kind::Firewall,
        }
    }
}

impl Dataplane {
    /// How many objects it has of each kind.
    pub fn counts(&self) -> BTreeMap<Kind, usize> {
        BTreeMap::from([
            (Kind::Sysctl, self.sysctls.len()),
            (Kind::Link, self.links.len()),
            (Kind::Address, self.addresses.len()),
            (Kind::Neighbor, self.neighbors.len()),
            (Kind::Fdb, self.fdb.len()),
            (Kind::NextHop, self.next_hops.len()),
            (Kind::Route, self.routes.len()),
            (Kind::Firewall, self.tables.len()),
        ])
    }
}
