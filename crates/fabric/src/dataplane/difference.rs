//! The difference between what is and what should be.

use std::collections::{BTreeMap, BTreeSet};

use super::{Change, Dataplane, IpFamily, Link, LinkKind, Observed, Route, Target};
use crate::link_name::LinkName;
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
    let mut changes = Vec::new();
    let mut removals = Vec::new();

    let LinkChanges { made, readdressed } = link_changes(wanted, observed, &mut changes);
    // What hangs on a device that is deleted goes with it, and what hangs on one that is down has
    // gone already: the kernel drops routes and permanent neighbors at that moment.
    let gone = |link: &LinkName| made.contains(link) || !observed.links.contains_key(link);

    for (path, value) in &wanted.sysctls {
        // A new device has its files with the kernel's defaults, whatever was read of an older one.
        // Else, a kernel without the file (no IPv6, say) has nothing to set.
        let new = sysctl_link(path).is_some_and(|link| made.contains(&link));
        if new || observed.sysctls.get(path).is_some_and(|is| is != value) {
            changes.push(Change::SetSysctl(path.clone(), value.clone()));
        }
    }

    for (link, net) in &wanted.addresses {
        if gone(link) || !observed.addresses.contains(&(*link, *net)) {
            changes.push(Change::AddAddress(*link, *net));
        }
    }
    for (link, net) in &observed.addresses {
        if !wanted.addresses.contains(&(*link, *net)) && !gone(link) && ownership.owns_address(link, net) {
            removals.push(Change::RemoveAddress(*link, *net));
        }
    }

    for ((link, ip), mac) in &wanted.neighbors {
        let kept = !gone(link) && !readdressed.contains(link);
        if !kept || observed.neighbors.get(&(*link, *ip)) != Some(mac) {
            changes.push(Change::SetNeighbor(*link, *ip, *mac));
        }
    }
    for (link, ip) in observed.neighbors.keys() {
        let kept = !gone(link) && !readdressed.contains(link);
        if !wanted.neighbors.contains_key(&(*link, *ip)) && kept && ownership.owns_link(link) {
            removals.push(Change::RemoveNeighbor(*link, *ip));
        }
    }

    for ((link, mac), to) in &wanted.fdb {
        if gone(link) || !observed.fdb.contains(&(*link, *mac, *to)) {
            changes.push(Change::SetFdb(*link, *mac, *to));
        }
    }
    for (link, mac, to) in &observed.fdb {
        // Setting a MAC's entry replaces its destination, so only a MAC that is not wanted at all
        // leaves something to remove.
        if !wanted.fdb.contains_key(&(*link, *mac)) && !gone(link) && ownership.owns_link(link) {
            removals.push(Change::RemoveFdb(*link, *mac, *to));
        }
    }

    let stale_next_hops = next_hop_changes(wanted, observed, &gone, &mut changes, &mut removals);
    route_changes(wanted, observed, ownership, (&gone, &stale_next_hops), (&mut changes, &mut removals));

    for (name, table) in &wanted.tables {
        if observed.tables.get(name) != Some(table) {
            changes.push(Change::SetTable(table.clone()));
        }
    }
    for name in observed.tables.keys() {
        if !wanted.tables.contains_key(name) && ownership.owns_table(name) {
            removals.push(Change::DeleteTable(name.clone()));
        }
    }
    for (family, accepted) in &observed.accepted_forwards {
        let wanted: BTreeSet<_> =
            wanted.accepted_forwards.iter().filter(|net| IpFamily::of(net) == *family).collect();
        changes
            .extend(wanted.iter().filter(|net| !accepted.contains(net)).map(|n| Change::AcceptForward(**n)));
        removals
            .extend(accepted.iter().filter(|net| !wanted.contains(net)).map(|n| Change::RetractForward(*n)));
    }

    if prune == Prune::Yes {
        removals.reverse();
        changes.extend(removals);
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

/// What the changes of devices mean for that which hangs on them.
struct LinkChanges {
    /// Devices that are made, or deleted and made anew: nothing is on them.
    made: BTreeSet<LinkName>,
    /// Devices that get another Ethernet address, at which the kernel drops all neighbors, permanent
    /// ones included (`neigh_changeaddr`).
    readdressed: BTreeSet<LinkName>,
}

fn link_changes(wanted: &Dataplane, observed: &Observed, changes: &mut Vec<Change>) -> LinkChanges {
    let (mut made, mut readdressed) = (BTreeSet::new(), BTreeSet::new());
    for link in wanted.links.values() {
        let Link { name, kind: LinkKind::Vxlan(vxlan), mtu, mac } = link;
        let Some(is) = observed.links.get(name) else {
            made.insert(*name);
            changes.push(Change::CreateLink(link.clone()));
            continue;
        };
        if vxlan.conflict(&is.kind).is_some() {
            made.insert(*name);
            changes.extend([Change::DeleteLink(*name), Change::CreateLink(link.clone())]);
            continue;
        }
        if is.mac != Some(*mac) {
            readdressed.insert(*name);
            changes.push(Change::SetMac(*name, *mac));
        }
        if is.mtu != *mtu {
            changes.push(Change::SetMtu(*name, *mtu));
        }
        if !is.up {
            changes.push(Change::SetUp(*name));
        }
    }
    LinkChanges { made, readdressed }
}

/// The device that a path such as `net/ipv6/conf/flannel.1/accept_ra` is about.
fn sysctl_link(path: &str) -> Option<LinkName> {
    let mut parts = path.split('/');
    match (parts.next(), parts.next(), parts.next()) {
        (Some("net"), Some("ipv4" | "ipv6"), Some("conf" | "neigh")) => parts.next()?.parse().ok(),
        _ => None,
    }
}

/// Next-hop changes; returns the ids whose object is there but says something else, which must
/// lose their routes before they can be made anew (replacing one in use costs O(routes) each).
fn next_hop_changes(
    wanted: &Dataplane,
    observed: &Observed,
    gone: &dyn Fn(&LinkName) -> bool,
    changes: &mut Vec<Change>,
    removals: &mut Vec<Change>,
) -> BTreeSet<u32> {
    let mut stale = BTreeSet::new();
    for (id, next_hop) in &wanted.next_hops {
        match observed.next_hops.get(id) {
            Some(is) if is == next_hop && !gone(&next_hop.link) => {}
            Some(is) => {
                stale.insert(*id);
                if !gone(&is.link) {
                    changes.push(Change::RemoveNextHop(*id));
                }
                changes.push(Change::AddNextHop(*id, *next_hop));
            }
            None => changes.push(Change::AddNextHop(*id, *next_hop)),
        }
    }
    for (id, is) in &observed.next_hops {
        if !wanted.next_hops.contains_key(id) && !gone(&is.link) {
            removals.push(Change::RemoveNextHop(*id));
        }
    }
    stale
}

/// Route changes. A route through a device that is gone, or to a next-hop object that is made anew,
/// has gone with it.
fn route_changes(
    wanted: &Dataplane,
    observed: &Observed,
    ownership: &Ownership,
    (gone, stale_next_hops): (&dyn Fn(&LinkName) -> bool, &BTreeSet<u32>),
    (changes, removals): (&mut Vec<Change>, &mut Vec<Change>),
) {
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
    let wanted_keys: BTreeSet<_> = wanted.routes.iter().map(key).collect();
    let mut there: BTreeMap<_, Vec<&Route>> = BTreeMap::new();
    for route in &observed.routes {
        if wanted_keys.contains(&key(route)) && !lost(route) {
            there.entry(key(route)).or_default().push(route);
        }
    }
    for route in &wanted.routes {
        let there = there.get(&key(route)).map_or(&[][..], Vec::as_slice);
        let present = there.contains(&route) && sure(route);
        let mut others: Vec<&Route> = there.iter().copied().filter(|is| *is != route).collect();
        // Replacing acts on one route of a key, without a moment in which there is none.
        if !present && !others.iter().any(|other| blocks(other, route, wanted)) {
            others.pop();
        }
        changes.extend(others.into_iter().map(|other| Change::RemoveRoute(*other)));
        if !present {
            changes.push(Change::SetRoute(*route));
        }
    }
    for route in &observed.routes {
        if !wanted_keys.contains(&key(route)) && !lost(route) && ownership.owns_route(route) {
            removals.push(Change::RemoveRoute(*route));
        }
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
