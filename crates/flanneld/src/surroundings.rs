//! Reads from the kernel what [`crate::interface`] decides from.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::Context;
use ipnet::IpNet;
use kernel::address;
use kernel::link;
use kernel::netlink::{Protocol, Socket};
use kernel::route;

use crate::interface::{Address, DefaultRoute, Interface, Reached, Surroundings};

/// The host's interfaces, default routes, and the way to `can_reach`.
pub fn read(can_reach: Option<IpAddr>, networks: Vec<IpNet>) -> anyhow::Result<Surroundings> {
    let mut socket = Socket::open(Protocol::Route).context("opening a netlink socket")?;
    let links = link::list(&mut socket)?;
    let names: BTreeMap<u32, _> = links.iter().map(|link| (link.index, link.name)).collect();
    let addresses = address::list(&mut socket, None)?;
    let interfaces = links
        .iter()
        .map(|link| Interface {
            name: link.name,
            mtu: link.mtu,
            up: link.is_up(),
            loopback: link.flags & link::LOOPBACK != 0,
            kind: link.kind.name().to_owned(),
            addresses: addresses
                .iter()
                .filter(|address| address.link == link.index)
                .map(as_address)
                .collect(),
        })
        .collect();

    let mut defaults = route::default_routes(&mut socket)?;
    defaults.sort_by_key(|route| route.metric);
    let default_routes = defaults
        .iter()
        .map(|route| DefaultRoute {
            ipv6: route.destination.addr().is_ipv6(),
            links: route.links.iter().filter_map(|link| names.get(link).copied()).collect(),
        })
        .collect();

    let reached = can_reach.map(|target| {
        let way = route::lookup(&mut socket, target).map_err(|error| error.to_string())?;
        let link = *names.get(&way.link).ok_or("through a device that is gone")?;
        Ok(Reached { link, source: way.source })
    });
    Ok(Surroundings { interfaces, default_routes, reached, networks })
}

fn as_address(address: &address::Address) -> Address {
    Address {
        ip: address.net.addr(),
        deprecated: address.is_deprecated(),
        unusable: address.is_tentative() || address.is_duplicate(),
        temporary: address.is_temporary(),
        permanent: address.is_permanent(),
    }
}
