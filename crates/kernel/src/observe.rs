//! One look at the kernel: what is there, ours or not, in the words of the plan.

use std::collections::BTreeMap;

use fabric::dataplane::{NextHop, Observed, ObservedLink, ObservedLinkKind, Route, Target};
use fabric::link_name::LinkName;

use crate::error::KernelError;
use crate::link::{Kind, Link};
use crate::linux::{Linux, Scope};
use crate::route::{Found, FoundTarget};
use crate::{address, fdb, iptables, link, neighbor, nexthop, route, sysctl};

/// Takes one look.
///
/// The parts are read one after the other, so they may be of slightly different moments. What
/// names a device that came or went in between is left out: the next look has it.
pub(crate) fn observe(linux: &mut Linux, scope: &Scope) -> Result<Observed, KernelError> {
    let mut observed = Observed::default();
    for path in &scope.sysctls {
        if let Some(value) = sysctl::read(path)? {
            observed.sysctls.insert(path.clone(), value);
        }
    }

    let socket = &mut linux.socket;
    let links = link::list(socket)?;
    let names: BTreeMap<u32, LinkName> = links.iter().map(|link| (link.index, link.name)).collect();
    let name = |index: u32| names.get(&index).copied();
    observed.links = links.iter().map(|link| (link.name, observed_link(link, &name))).collect();

    observed.addresses = address::list(socket, None)?
        .into_iter()
        .filter_map(|address| Some((name(address.link)?, address.net)))
        .collect();

    for link in &scope.links {
        let Some(index) = observed.links.get(link).map(|found| found.index) else { continue };
        // A device that went since has neither; one of another kind has no forwarding entries.
        let neighbors = gone_is_empty(neighbor::list(socket, index))?;
        observed.neighbors.extend(neighbors.into_iter().map(|found| ((*link, found.ip), found.mac)));
        let entries = gone_is_empty(fdb::list(socket, index))?;
        observed.fdb.extend(entries.into_iter().map(|found| (*link, found.mac, found.destination)));
    }

    observed.next_hops = nexthop::list(socket)?
        .into_iter()
        .filter_map(|found| {
            let link = name(found.link)?;
            Some((found.id, NextHop { gateway: found.gateway, link, onlink: found.onlink }))
        })
        .collect();
    observed.routes =
        route::list(socket)?.into_iter().filter_map(|found| observed_route(found, &name)).collect();

    if !scope.tables.is_empty() {
        firewall(linux, scope, &mut observed);
    }
    Ok(observed)
}

/// Reads the firewall. What cannot be read counts as not there: routes must not wait for a kernel
/// without nf_tables, and writing the table that is wanted then says what is wrong.
fn firewall(linux: &mut Linux, scope: &Scope, observed: &mut Observed) {
    let nftables = match linux.nftables() {
        Ok(nftables) => nftables,
        Err(error) => return tracing::debug!(%error, "there is no firewall to read"),
    };
    match nftables.list(&scope.tables) {
        Ok(tables) => observed.tables = tables,
        Err(error) => tracing::warn!(%error, "our firewall tables cannot be read"),
    }
    match iptables::observe_forward(nftables) {
        Ok(accepted) => observed.accepted_forwards = accepted,
        // Other people's tables must not keep ours from being looked after.
        Err(error) => tracing::warn!(%error, "the host's iptables cannot be read"),
    }
}

fn observed_link(link: &Link, name: &impl Fn(u32) -> Option<LinkName>) -> ObservedLink {
    let kind = match &link.kind {
        Kind::Vxlan(vxlan) => ObservedLinkKind::Vxlan {
            vni: vxlan.vni,
            underlay: vxlan.underlay.and_then(name),
            local: vxlan.local,
            port: vxlan.port,
            learning: vxlan.learning,
            gbp: vxlan.gbp,
        },
        Kind::Tun { frames, multi_queue } => {
            ObservedLinkKind::Tun { frames: *frames, multi_queue: *multi_queue }
        }
        other => ObservedLinkKind::Other(other.name().to_owned()),
    };
    ObservedLink { index: link.index, mtu: link.mtu, mac: link.mac, up: link.is_up(), kind }
}

fn observed_route(found: Found, name: &impl Fn(u32) -> Option<LinkName>) -> Option<Route> {
    let target = match found.target {
        FoundTarget::Via { gateway, link, onlink } => {
            Target::Via(NextHop { gateway, link: name(link)?, onlink })
        }
        FoundTarget::NextHopObject(id) => Target::NextHopObject(id),
        FoundTarget::Device(link) => Target::Device(name(link)?),
        FoundTarget::Blackhole => Target::Blackhole,
        FoundTarget::Other => Target::Other,
    };
    let Found { destination, metric, protocol, .. } = found;
    Some(Route { destination, metric, target, protocol })
}

fn gone_is_empty<T>(listed: Result<Vec<T>, KernelError>) -> Result<Vec<T>, KernelError> {
    match listed {
        Err(error) if error.errno() == Some(rustix::io::Errno::NODEV) => Ok(Vec::new()),
        other => other,
    }
}
