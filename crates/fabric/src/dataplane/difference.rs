//! The difference between what is and what should be.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use super::{Change, Dataplane, IpFamily, Link, Observed, Route, Target};
use crate::link_name::LinkName;
use crate::mac::Mac;
use crate::ownership::Ownership;

/// Whether objects of ours that no plan wants may be removed. They may once the first complete set
/// of leases has arrived; before that, what looks superfluous may belong to a peer not yet heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prune {
    /// Remove them.
    Yes,
    /// Leave them.
    NotYet,
}

/// What to do so that the kernel holds `wanted`, given what was `observed` in it.
///
/// Foreign objects are never touched. A foreign route with the very key of a wanted one is replaced
/// by it: only one of the two can exist.
pub fn changes(wanted: &Dataplane, observed: &Observed, ownership: &Ownership, prune: Prune) -> Vec<Change> {
    let mut difference = Difference {
        wanted,
        observed,
        ownership,
        made: BTreeSet::new(),
        readdressed: BTreeSet::new(),
        changes: Vec::new(),
        removals: Vec::new(),
    };
    difference.links();
    difference.sysctls();
    difference.addresses();
    difference.neighbors();
    difference.fdb();
    let stale = difference.next_hops();
    difference.routes(&stale);
    difference.tables();
    difference.accepted_forwards();

    let Difference { mut changes, removals, .. } = difference;
    if prune == Prune::Yes {
        changes.extend(removals.into_iter().rev());
    }
    changes
}

/// The changes from one plan to the next, without a look at the kernel.
///
/// This is the quick answer to a changed lease: both plans are made of the leases that changed
/// alone, and the full comparison with the kernel follows shortly after. Next-hop objects and FDB
/// entries may serve other leases as well (two leases of one node), which such a plan does not know,
/// so the removal of those is left to the full comparison; without a route they do nothing. Devices
/// do not depend on leases and are left to it, too.
pub fn between(before: &Dataplane, after: &Dataplane) -> Vec<Change> {
    let on_links = |plan: &Dataplane| -> Vec<LinkName> {
        let addresses = plan.addresses.iter().map(|(link, _)| *link);
        let neighbors = plan.neighbors.keys().map(|(link, _)| *link);
        let fdb = plan.fdb.keys().map(|(link, _)| *link);
        let next_hops = plan.next_hops.values().map(|next_hop| next_hop.link);
        let routes = plan.routes.iter().filter_map(Route::link);
        addresses.chain(neighbors).chain(fdb).chain(next_hops).chain(routes).collect()
    };
    let links = on_links(before).into_iter().chain(on_links(after));
    let observed = Observed {
        sysctls: before.sysctls.clone(),
        links: links.map(|link| (link, super::ObservedLink::present())).collect(),
        addresses: before.addresses.clone(),
        neighbors: before.neighbors.clone(),
        fdb: before.fdb.iter().map(|((link, mac), to)| (*link, *mac, *to)).collect(),
        next_hops: before.next_hops.clone(),
        routes: before.routes.clone(),
        tables: before.tables.clone(),
        accepted_forwards: BTreeMap::new(),
    };
    let after = Dataplane { links: BTreeMap::new(), ..after.clone() };
    let mut changes = changes(&after, &observed, &Ownership::everything(), Prune::Yes);
    let (old, new) = (&before.next_hops, &after.next_hops);
    changes.retain(|change| match change {
        Change::RemoveFdb(..) => false,
        // One that is made anew for another gateway or device must go before.
        Change::RemoveNextHop(id) => new.contains_key(id) && new.get(id) != old.get(id),
        _ => true,
    });
    changes
}

/// Everything that makes `wanted` from nothing.
pub(super) fn additions(wanted: &Dataplane) -> Vec<Change> {
    let observed = Observed {
        sysctls: wanted.sysctls.keys().map(|path| (path.clone(), String::new())).collect(),
        accepted_forwards: wanted
            .accepted_forwards
            .iter()
            .map(|net| (IpFamily::of(net), BTreeSet::new()))
            .collect(),
        ..Observed::default()
    };
    changes(wanted, &observed, &Ownership::everything(), Prune::NotYet)
}

/// A comparison on its way, one kind of object after the other.
struct Difference<'a> {
    wanted: &'a Dataplane,
    observed: &'a Observed,
    ownership: &'a Ownership,
    /// Devices that are made, or deleted and made anew: nothing is on them.
    made: BTreeSet<LinkName>,
    /// Devices that get another Ethernet address, at which the kernel drops all neighbors, permanent
    /// ones included (`neigh_changeaddr`).
    readdressed: BTreeSet<LinkName>,
    changes: Vec<Change>,
    /// What is to be taken away, in the order of the sets; done in reverse.
    removals: Vec<Change>,
}

impl Difference<'_> {
    fn links(&mut self) {
        for link in self.wanted.links.values() {
            let Link { name, kind, mtu, mac } = link;
            let Some(is) = self.observed.links.get(name) else {
                self.made.insert(*name);
                self.changes.push(Change::CreateLink(link.clone()));
                continue;
            };
            if kind.conflict(&is.kind).is_some() {
                self.made.insert(*name);
                self.changes.extend([Change::DeleteLink(*name), Change::CreateLink(link.clone())]);
                continue;
            }
            if let Some(mac) = mac
                && is.mac != Some(*mac)
            {
                self.readdressed.insert(*name);
                self.changes.push(Change::SetMac(*name, *mac));
            }
            if is.mtu != *mtu {
                self.changes.push(Change::SetMtu(*name, *mtu));
            }
            if !is.up {
                self.changes.push(Change::SetUp(*name));
            }
        }
    }

    /// Whether nothing is on a device (any more): what hangs on one that is deleted goes with it, and
    /// what hangs on one that is down has gone already, for the kernel drops it at that moment.
    fn gone(&self, link: &LinkName) -> bool {
        self.made.contains(link) || !self.observed.links.contains_key(link)
    }

    fn sysctls(&mut self) {
        for (path, value) in &self.wanted.sysctls {
            // A new device has its files with the kernel's defaults, whatever was read of an older one.
            // Else, a kernel without the file (no IPv6, say) has nothing to set.
            let new = sysctl_link(path).is_some_and(|link| self.made.contains(&link));
            if new || self.observed.sysctls.get(path).is_some_and(|is| is != value) {
                self.changes.push(Change::SetSysctl(path.clone(), value.clone()));
            }
        }
    }

    fn addresses(&mut self) {
        for (link, net) in &self.wanted.addresses {
            if self.gone(link) || !self.observed.addresses.contains(&(*link, *net)) {
                self.changes.push(Change::AddAddress(*link, *net));
            }
        }
        for (link, net) in &self.observed.addresses {
            let wanted = self.wanted.addresses.contains(&(*link, *net));
            if !wanted && !self.gone(link) && self.ownership.owns_address(link, net) {
                self.removals.push(Change::RemoveAddress(*link, *net));
            }
        }
    }

    fn neighbors(&mut self) {
        let (wanted, observed) = (self.wanted.neighbors.iter(), self.observed.neighbors.iter());
        for ((link, ip), wanted, is) in side_by_side(wanted, observed) {
            let kept = !self.gone(link) && !self.readdressed.contains(link);
            match (wanted, is.filter(|_| kept)) {
                (Some(mac), is) if is != Some(mac) => {
                    self.changes.push(Change::SetNeighbor(*link, *ip, *mac));
                }
                (None, Some(_)) if self.ownership.owns_link(link) => {
                    self.removals.push(Change::RemoveNeighbor(*link, *ip));
                }
                _ => {}
            }
        }
    }

    fn fdb(&mut self) {
        for ((link, mac), to) in &self.wanted.fdb {
            if self.gone(link) {
                self.changes.push(Change::SetFdb(*link, *mac, *to));
                continue;
            }
            let (mut present, mut others) = (false, Vec::new());
            for is in self.destinations(link, mac) {
                if is == *to { present = true } else { others.push(is) }
            }
            if !present {
                // Setting a MAC's entry replaces one of its destinations.
                others.pop();
            }
            // Each further one would get a copy of every packet.
            self.changes.extend(others.into_iter().map(|other| Change::RemoveFdb(*link, *mac, other)));
            if !present {
                self.changes.push(Change::SetFdb(*link, *mac, *to));
            }
        }
        for (link, mac, to) in &self.observed.fdb {
            let wanted = self.wanted.fdb.contains_key(&(*link, *mac));
            if !wanted && !self.gone(link) && self.ownership.owns_link(link) {
                self.removals.push(Change::RemoveFdb(*link, *mac, *to));
            }
        }
    }

    /// Where the kernel sends frames for an address.
    fn destinations(&self, link: &LinkName, mac: &Mac) -> impl Iterator<Item = IpAddr> {
        let (link, mac) = (*link, *mac);
        let from = (link, mac, IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        self.observed
            .fdb
            .range(from..)
            .map_while(move |(on, of, to)| ((*on, *of) == (link, mac)).then_some(*to))
    }

    /// Returns the ids whose object is there but says something else. Those lose their routes before
    /// they can be made anew (replacing one in use costs O(routes) each).
    fn next_hops(&mut self) -> BTreeSet<u32> {
        let mut stale = BTreeSet::new();
        let of_others: BTreeSet<u32> =
            self.observed.routes.iter().filter(|route| !self.owns(route)).filter_map(object).collect();
        let (wanted, observed) = (self.wanted.next_hops.iter(), self.observed.next_hops.iter());
        for (id, wanted, is) in side_by_side(wanted, observed) {
            match (wanted, is) {
                (Some(next_hop), Some(is)) if is == next_hop && !self.gone(&is.link) => {}
                (Some(next_hop), is) => {
                    stale.extend(is.map(|_| *id));
                    if is.is_some_and(|is| !self.gone(&is.link)) {
                        self.changes.push(Change::RemoveNextHop(*id));
                    }
                    self.changes.push(Change::AddNextHop(*id, *next_hop));
                }
                (None, Some(is)) => {
                    let ours = self.ownership.owns_link(&is.link) || !of_others.contains(id);
                    if ours && !self.gone(&is.link) {
                        self.removals.push(Change::RemoveNextHop(*id));
                    }
                }
                (None, None) => {}
            }
        }
        stale
    }

    /// Whether a route is ours, by itself or by the next-hop object that it names.
    fn owns(&self, route: &Route) -> bool {
        let object = object(route).and_then(|id| self.observed.next_hops.get(&id));
        self.ownership.owns_route(route) || object.is_some_and(|is| self.ownership.owns_link(&is.link))
    }

    /// A route through a device that is gone, or to a next-hop object that is made anew, has gone with
    /// it.
    fn routes(&mut self, stale_next_hops: &BTreeSet<u32>) {
        let (wanted, observed) = (self.wanted, self.observed);
        let made = self.made.clone();
        let gone = |link: &LinkName| made.contains(link) || !observed.links.contains_key(link);
        let lost = |route: &Route| match route.target {
            Target::NextHopObject(id) => {
                stale_next_hops.contains(&id) || observed.next_hops.get(&id).is_some_and(|is| gone(&is.link))
            }
            _ => route.link().is_some_and(|link| gone(&link)),
        };
        // A route to an object that was not seen has gone with it, if the two looks were not at once.
        let sure = |route: &Route| match route.target {
            Target::NextHopObject(id) => !lost(route) && observed.next_hops.contains_key(&id),
            _ => !lost(route),
        };
        let key = |route: &Route| (route.destination, route.metric);
        // In order, as the set is.
        let wanted_keys: Vec<_> = wanted.routes.iter().map(key).collect();
        let mut others: BTreeMap<_, Vec<&Route>> = BTreeMap::new();
        for route in observed.routes.difference(&wanted.routes).filter(|route| !lost(route)) {
            if wanted_keys.binary_search(&key(route)).is_ok() {
                others.entry(key(route)).or_default().push(route);
            } else if self.owns(route) {
                self.removals.push(Change::RemoveRoute(*route));
            }
        }
        let (each_wanted, each_observed) = (wanted.routes.iter(), observed.routes.iter());
        let both = side_by_side(each_wanted.map(|route| (route, ())), each_observed.map(|route| (route, ())));
        for (route, is) in both.filter_map(|(route, wanted, is)| wanted.map(|()| (route, is))) {
            let present = is.is_some() && sure(route);
            let mut others = others.remove(&key(route)).unwrap_or_default();
            // Replacing acts on one route of a key, without a moment in which there is none.
            if !present && !others.iter().any(|other| blocks(other, route, wanted)) {
                others.pop();
            }
            self.changes.extend(others.into_iter().map(|other| Change::RemoveRoute(*other)));
            if !present {
                self.changes.push(Change::SetRoute(*route));
            }
        }
    }

    fn tables(&mut self) {
        for (name, table) in &self.wanted.tables {
            if !self.observed.tables.get(name).is_some_and(|listed| table.is_listed_as(listed)) {
                self.changes.push(Change::SetTable(table.clone()));
            }
        }
        for name in self.observed.tables.keys() {
            if !self.wanted.tables.contains_key(name) && self.ownership.owns_table(name) {
                self.removals.push(Change::DeleteTable(name.clone()));
            }
        }
    }

    /// Only the families whose chain was observed to need it have any.
    fn accepted_forwards(&mut self) {
        for (family, accepted) in &self.observed.accepted_forwards {
            let wanted: BTreeSet<_> =
                self.wanted.accepted_forwards.iter().filter(|net| IpFamily::of(net) == *family).collect();
            let missing = wanted.iter().filter(|net| !accepted.contains(net));
            self.changes.extend(missing.map(|net| Change::AcceptForward(**net)));
            let left =
                accepted.iter().filter(|net| !wanted.contains(net) && self.ownership.owns_forward(net));
            self.removals.extend(left.map(|net| Change::RetractForward(*net)));
        }
    }
}

/// Two ordered lists side by side: each key that is in either, with what it has there. To look every
/// key of one up in the other takes several times as long, with thousands of them.
fn side_by_side<K: Ord, A, B>(
    left: impl Iterator<Item = (K, A)>,
    right: impl Iterator<Item = (K, B)>,
) -> impl Iterator<Item = (K, Option<A>, Option<B>)> {
    let (mut left, mut right) = (left.peekable(), right.peekable());
    std::iter::from_fn(move || {
        let order = match (left.peek(), right.peek()) {
            (Some((left, _)), Some((right, _))) => left.cmp(right),
            (Some(_), None) => Ordering::Less,
            (None, _) => Ordering::Greater,
        };
        let from_left = if order.is_le() { left.next() } else { None };
        let from_right = if order.is_ge() { right.next() } else { None };
        match (from_left, from_right) {
            (Some((key, left)), right) => Some((key, Some(left), right.map(|(_, right)| right))),
            (None, Some((key, right))) => Some((key, None, Some(right))),
            (None, None) => None,
        }
    })
}

/// The next-hop object that a route names.
fn object(route: &Route) -> Option<u32> {
    match route.target {
        Target::NextHopObject(id) => Some(id),
        _ => None,
    }
}

/// The device that a path such as `net/ipv6/conf/flannel.1/accept_ra` is about.
fn sysctl_link(path: &str) -> Option<LinkName> {
    let mut parts = path.split('/');
    match (parts.next(), parts.next(), parts.next()) {
        (Some("net"), Some("ipv4" | "ipv6"), Some("conf" | "neigh")) => parts.next()?.parse().ok(),
        _ => None,
    }
}

/// Whether `standing` must go before `route` can be made: IPv6 looks the gateway of an onlink route
/// up in the table, finds it behind the standing route, and refuses it for being on another device
/// (`ip6_validate_gw`: "Nexthop has invalid gateway or device mismatch").
fn blocks(standing: &Route, route: &Route, wanted: &Dataplane) -> bool {
    let next_hop = match route.target {
        Target::Via(next_hop) => Some(next_hop),
        Target::NextHopObject(id) => wanted.next_hops.get(&id).copied(),
        Target::Device(_) | Target::Blackhole | Target::Other => None,
    };
    IpFamily::of(&route.destination) == IpFamily::V6
        && next_hop.is_some_and(|hop| hop.onlink && standing.link() != Some(hop.link))
}

#[cfg(test)]
mod tests;
