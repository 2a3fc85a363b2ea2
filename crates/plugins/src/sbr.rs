//! `sbr`: source-based routing: what a container sends from the addresses of one interface leaves by that
//! interface.
//!
//! Each address gets a routing table of its own, with the interface's routes, and a rule that leads to it.

use std::fs::File;
use std::net::{IpAddr, Ipv6Addr};

use cni::{AddResult, Error, IpConfig, Plugin, Request};
use fabric::LinkName;
use fabric::dataplane::MAIN_TABLE;
use ipnet::IpNet;
use kernel::netlink::Socket;
use kernel::routing_table::{self, Entry};
use kernel::rule::{self, Rule};
use kernel::{address, link, route};
use rustix::fs::FlockOperation;

use crate::attachment::internal;
use crate::container::{enter, open_namespace, sandbox};

/// Tables are taken from here on.
const FIRST_TABLE: u32 = 100;

/// The plugin.
#[derive(Debug, Clone, Copy)]
pub struct Sbr;

/// Checked settings.
#[derive(Debug, Clone)]
struct Settings {
    /// A table that somebody else fills; then there are rules only.
    table: Option<u32>,
    /// Gateways in place of those of the earlier plugin, one per family.
    gateways: Vec<IpAddr>,
    /// Whether the main table keeps the routes to the interface's networks.
    add_source_hints: bool,
}

impl Plugin for Sbr {
    fn name(&self) -> &'static str {
        "sbr"
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let settings = Settings::parse(request)?;
        let result = previous(request)?;
        let ips = of_interface(&result, request)?;
        let namespace = open_namespace(request)?;
        let _lock = lock(request)?;
        enter(&namespace, |socket| {
            let done = match settings.table {
                Some(table) => add_rules(socket, &ips, table),
                None => divert(socket, &ips, &settings, request),
            };
            done.inspect_err(|_| {
                let _ = remove_rules(socket, &sources(&ips), settings.table);
            })
        })?;
        result.convert(request.version)
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        // What ADD refused must not be impossible to delete.
        let table = Settings::parse(request).ok().and_then(|settings| settings.table);
        let Some(namespace) = sandbox(request) else { return Ok(()) };
        let _lock = lock(request)?;
        let previous = request.config.prev_result().ok().flatten();
        let listed = previous.and_then(|result| of_interface(&result, request).ok()).unwrap_or_default();
        enter(&namespace, |socket| {
            // The interface may be gone, or have got more addresses since.
            let mut from = sources(&listed);
            if let Ok(name) = request.environment.ifname.parse::<LinkName>()
                && let Some(index) = link::index(socket, name).map_err(internal)?
            {
                let present = address::list(socket, Some(index)).map_err(internal)?;
                from.extend(present.iter().map(|address| address.net.addr()));
            }
            remove_rules(socket, &from, table)
        })
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let settings = Settings::parse(request)?;
        let ips = of_interface(&previous(request)?, request)?;
        enter(&open_namespace(request)?, |socket| {
            let rules = rule::list(socket).map_err(internal)?;
            for from in sources(&ips) {
                let is_it = |rule: &Rule| {
                    rule.source == Some(IpNet::from(from))
                        && settings.table.is_none_or(|table| table == rule.table)
                };
                if !rules.iter().any(is_it) {
                    return Err(Error::internal(format!("Expected rule from {from} not found")));
                }
            }
            Ok(())
        })
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        Settings::parse(request).map(drop)
    }
}

impl Settings {
    fn parse(request: &Request) -> Result<Settings, Error> {
        let config = request.config.object();
        let table = config.integer("table")?.map(u32::try_from).transpose();
        Ok(Settings {
            table: table.map_err(|_| config.error("table", "between 0 and 4294967295"))?,
            gateways: gateways(&config.strings("gateways")?.unwrap_or_default())?,
            add_source_hints: config.boolean("addSourceHints")?.unwrap_or_default(),
        })
    }

    fn gateway(&self, ip: &IpConfig) -> Option<IpAddr> {
        let same_family = |gateway: &&IpAddr| gateway.is_ipv4() == ip.address.addr().is_ipv4();
        self.gateways.iter().find(same_family).copied().or(ip.gateway)
    }
}

fn gateways(texts: &[String]) -> Result<Vec<IpAddr>, Error> {
    if texts.len() > 2 {
        return Err(Error::internal("gateways list cannot contain more than 2 entries (one IPv4, one IPv6)"));
    }
    let mut gateways: Vec<IpAddr> = Vec::new();
    for text in texts {
        let gateway: IpAddr = text
            .parse()
            .map_err(|_| Error::internal(format!("invalid static gateway IP address: {text}")))?;
        if let Some(first) = gateways.iter().find(|first| first.is_ipv4() == gateway.is_ipv4()) {
            let family = if gateway.is_ipv4() { "IPv4" } else { "IPv6" };
            return Err(Error::internal(format!(
                "gateways list contains multiple {family} addresses: {first} and {text}"
            )));
        }
        gateways.push(gateway);
    }
    Ok(gateways)
}

fn previous(request: &Request) -> Result<AddResult, Error> {
    let previous = request.config.prev_result()?;
    previous.ok_or_else(|| Error::internal("This plugin must be called as chained plugin"))
}

/// The addresses that the earlier plugins gave the interface, or nobody knows which one.
fn of_interface(result: &AddResult, request: &Request) -> Result<Vec<IpConfig>, Error> {
    let ifname = &request.environment.ifname;
    if result.ips.is_empty() {
        return Err(Error::internal(format!("No IP addresses supplied on interface: {ifname}")));
    }
    let is_others = |ip: &&IpConfig| {
        let index = ip.interface.and_then(|index| usize::try_from(index).ok());
        let listed = index.and_then(|index| result.interfaces.get(index));
        listed.is_some_and(|listed| listed.name != *ifname)
    };
    Ok(result.ips.iter().filter(|ip| !is_others(ip)).cloned().collect())
}

fn sources(ips: &[IpConfig]) -> Vec<IpAddr> {
    ips.iter().map(|ip| ip.address.addr()).collect()
}

/// One at a time in a container: two could choose the same table. The lock is the reference plugin's.
fn lock(request: &Request) -> Result<File, Error> {
    let path = &request.environment.netns;
    let failed = |error: &dyn std::fmt::Display| Error::internal(format!("failed to lock {path:?}: {error}"));
    let file = File::open(path).map_err(|error| failed(&error))?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive).map_err(|error| failed(&error))?;
    Ok(file)
}

fn add_rules(socket: &mut Socket, ips: &[IpConfig], table: u32) -> Result<(), Error> {
    sources(ips).into_iter().try_for_each(|from| add_rule(socket, from, table))
}

fn add_rule(socket: &mut Socket, from: IpAddr, table: u32) -> Result<(), Error> {
    rule::add(socket, from, table).map_err(|error| Error::internal(format!("Failed to add rule: {error}")))
}

fn remove_rules(socket: &mut Socket, from: &[IpAddr], table: Option<u32>) -> Result<(), Error> {
    let rules = rule::list(socket).map_err(internal)?;
    let is_ours = |rule: &&Rule| {
        rule.source.is_some_and(|source| from.contains(&source.addr()))
            && table.is_none_or(|table| table == rule.table)
    };
    let mut outcome = Ok(());
    for rule in rules.iter().filter(is_ours) {
        let removed = rule::remove(socket, rule)
            .map_err(|error| Error::internal(format!("Failed to delete rule {error}")));
        outcome = outcome.and(removed);
    }
    outcome
}

/// Moves the interface's routes from the main table to one table per address.
fn divert(
    socket: &mut Socket,
    ips: &[IpConfig],
    settings: &Settings,
    request: &Request,
) -> Result<(), Error> {
    let ifname = &request.environment.ifname;
    let name: LinkName = ifname.parse().map_err(|error| Error::internal(format!("{error}")))?;
    let index = link::index(socket, name)
        .map_err(internal)?
        .ok_or_else(|| Error::internal(format!("Cannot find network interface {ifname}: Link not found")))?;
    let rules = rule::list(socket).map_err(internal)?;
    let all = routing_table::list(socket).map_err(internal)?;
    let mut taken: Vec<u32> =
        rules.iter().map(|rule| rule.table).chain(all.iter().map(|entry| entry.table)).collect();
    let routes: Vec<&Entry> =
        all.iter().filter(|entry| entry.table == MAIN_TABLE && entry.link == Some(index)).collect();
    for ip in ips {
        let table = (FIRST_TABLE..u32::MAX)
            .find(|table| !taken.contains(table))
            .ok_or_else(|| Error::internal("no routing table is free"))?;
        taken.push(table);
        add_rule(socket, ip.address.addr(), table)?;
        fill(socket, (ip, index), settings, (&routes, table))?;
    }
    if settings.add_source_hints {
        add_hints(socket, ips, index)?;
    }
    for entry in routes.iter().filter(|entry| !stays(entry, settings)) {
        routing_table::remove(socket, entry)
            .map_err(|error| Error::internal(format!("Failed to delete route: {error}")))?;
    }
    Ok(())
}

/// Gives an address's table a default route, and copies of those routes that have to do with it.
fn fill(
    socket: &mut Socket,
    (ip, index): (&IpConfig, u32),
    settings: &Settings,
    (routes, table): (&[&Entry], u32),
) -> Result<(), Error> {
    let ipv4 = ip.address.addr().is_ipv4();
    if let Some(gateway) = settings.gateway(ip) {
        let unspecified: IpAddr = if ipv4 { [0; 4].into() } else { [0; 16].into() };
        let default = IpNet::new(unspecified, 0).expect("zero is a prefix length");
        let wanted = route::Route { table, ..route::Route::new(default, Some(gateway), index) };
        route::replace(socket, &wanted)
            .map_err(|error| Error::internal(format!("Failed to add default route to {gateway}: {error}")))?;
    }
    let is_about = |entry: &Entry| match (entry.source, entry.gateway) {
        (None, None) => true,
        (source, gateway) => source.iter().chain(&gateway).any(|ip_| ip.address.contains(ip_)),
    };
    // A default route of the earlier plugin would take the place of the one asked for.
    let is_replaced = |entry: &Entry| {
        let is_ipv4 = entry.destination.addr().is_ipv4();
        entry.destination.prefix_len() == 0
            && settings.gateways.iter().any(|gateway| gateway.is_ipv4() == is_ipv4)
    };
    for entry in routes.iter().filter(|entry| is_about(entry) && !is_replaced(entry)) {
        routing_table::copy(socket, entry, table)
            .map_err(|error| Error::internal(format!("Failed to readd route: {error}")))?;
    }
    Ok(())
}

/// Routes in the main table to the networks of the addresses, for packets that have no source yet.
fn add_hints(socket: &mut Socket, ips: &[IpConfig], index: u32) -> Result<(), Error> {
    for ip in ips {
        let wanted = route::Route {
            source: Some(ip.address.addr()),
            scope: Some(address::SCOPE_LINK),
            ..route::Route::new(ip.address.trunc(), None, index)
        };
        route::replace(socket, &wanted).map_err(|error| {
            Error::internal(format!(
                "Failed to add subnet route {} to main table: {error}",
                ip.address.trunc()
            ))
        })?;
    }
    Ok(())
}

/// Whether a route of the interface stays in the main table.
fn stays(entry: &Entry, settings: &Settings) -> bool {
    match entry.destination {
        // Without it the interface has no IPv6 at all.
        IpNet::V6(net) if is_link_local(net.addr()) => true,
        IpNet::V4(_) => settings.add_source_hints && entry.scope == address::SCOPE_LINK,
        IpNet::V6(_) => false,
    }
}

fn is_link_local(ip: Ipv6Addr) -> bool {
    ip.segments()[0] & 0xffc0 == 0xfe80
}
