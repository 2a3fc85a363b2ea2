//! `vrf`: puts the interface of an earlier plugin into a routing domain of its own (VRF).

use std::thread;
use std::time::{Duration, Instant};

use cni::{AddResult, Error, Plugin, Request, Version};
use fabric::LinkName;
use kernel::address::{self, Address};
use kernel::link::{self, Link};
use kernel::netlink::Socket;
use kernel::routing_table::{self, Entry};
use kernel::virtual_link::{self, VirtualKind, VirtualLink};

use crate::attachment::{self, internal};
use crate::container::{enter, open_namespace, open_socket, sandbox};
use crate::interface;

/// How long the kernel may take to move an IPv6 address to the domain's table.
const PATIENCE: Duration = Duration::from_millis(2500);

/// Tables that the kernel uses itself: default, main, local.
const RESERVED_TABLES: std::ops::RangeInclusive<u32> = 253..=255;

/// The plugin.
#[derive(Debug, Clone, Copy)]
pub struct Vrf;

/// Checked settings.
#[derive(Debug, Clone, Copy)]
struct Settings {
    name: LinkName,
    /// None for one that is free.
    table: Option<u32>,
}

impl Plugin for Vrf {
    fn name(&self) -> &'static str {
        "vrf"
    }

    fn versions(&self) -> &'static [Version] {
        const FROM: usize = 3;
        const _: () = assert!(matches!(Version::ALL[FROM], Version::V0_3_1), "the first that has chains");
        &Version::ALL[FROM..]
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let settings = Settings::parse(request)?;
        let result = previous(request)?;
        let namespace = open_namespace(request)?;
        enter(&namespace, |socket| {
            let port = port(socket, request)?;
            let (vrf, table, is_new) = ensure(socket, settings)?;
            join(socket, &port, vrf, table).inspect_err(|_| {
                if is_new {
                    let _ = link::delete(socket, vrf);
                }
            })
        })?;
        result.convert(request.version)
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        let Ok(settings) = Settings::parse(request) else { return Ok(()) };
        let Some(namespace) = sandbox(request) else { return Ok(()) };
        let is_empty = enter(&namespace, |socket| leave(socket, settings.name, request))?;
        if is_empty {
            let socket = namespace.enter(open_socket).map_err(internal)??;
            interface::remove_link(socket, settings.name)?;
        }
        Ok(())
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let settings = Settings::parse(request)?;
        previous(request)?;
        enter(&open_namespace(request)?, |socket| {
            let found = find(socket, settings.name)?;
            let (vrf, table) = found.ok_or_else(|| {
                Error::internal(format!("failed to find VRF {}: Link not found", settings.name))
            })?;
            same_table(settings, table)?;
            if port(socket, request)?.master == Some(vrf) {
                return Ok(());
            }
            Err(Error::internal(format!(
                "failed to find {} associated to vrf {}",
                request.environment.ifname, settings.name
            )))
        })
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        Settings::parse(request).map(drop)
    }
}

impl Settings {
    fn parse(request: &Request) -> Result<Settings, Error> {
        let config = request.config.object();
        let name = config.parsed("vrfname", "a name of a device")?;
        let table = config.integer("table")?.filter(|table| *table != 0).map(u32::try_from).transpose();
        Ok(Settings {
            name: name.ok_or_else(|| {
                Error::internal("configuration is expected to have a valid vrf name")
                    .details("\"vrfname\" is missing")
            })?,
            table: table.map_err(|_| config.error("table", "between 0 and 4294967295"))?,
        })
    }
}

fn previous(request: &Request) -> Result<AddResult, Error> {
    let previous = request.config.prev_result()?;
    previous.ok_or_else(|| Error::internal("missing prevResult from earlier plugin"))
}

/// The interface that the domain is for.
fn port(socket: &mut Socket, request: &Request) -> Result<Link, Error> {
    let ifname = &request.environment.ifname;
    let name: LinkName = ifname.parse().map_err(|error| Error::internal(format!("{error}")))?;
    let found = link::by_name(socket, name).map_err(internal)?;
    found.ok_or_else(|| Error::internal(format!("could not get link by name {ifname}")))
}

/// The domain of that name and its table.
fn find(socket: &mut Socket, name: LinkName) -> Result<Option<(u32, u32)>, Error> {
    let Some(index) = link::index(socket, name).map_err(internal)? else { return Ok(None) };
    match virtual_link::kind(socket, index).map_err(internal)? {
        Some(VirtualKind::Vrf(table)) => Ok(Some((index, table))),
        _ => Err(Error::internal(format!("Netlink {name} is not a VRF"))
            .details("the container has another device of that name: choose another \"vrfname\"")),
    }
}

/// The domain, made if it is not there: its number, its table, whether it was made.
fn ensure(socket: &mut Socket, settings: Settings) -> Result<(u32, u32, bool), Error> {
    if let Some((index, table)) = find(socket, settings.name)? {
        same_table(settings, table)?;
        return Ok((index, table, false));
    }
    let table = settings.table.map_or_else(|| free_table(socket), Ok)?;
    let kind = VirtualKind::Vrf(table);
    attachment::make(socket, &VirtualLink { name: settings.name, kind, lower: None, mtu: None, mac: None })?;
    let (index, table) = find(socket, settings.name)?
        .ok_or_else(|| Error::internal(format!("VRF {} was deleted meanwhile", settings.name)))?;
    link::set_up(socket, index).map_err(internal)?;
    Ok((index, table, true))
}

fn same_table(settings: Settings, table: u32) -> Result<(), Error> {
    if settings.table.is_none_or(|wanted| wanted == table) {
        return Ok(());
    }
    let name = settings.name;
    Err(Error::internal(format!("VRF {name} already exist with different routing table {table}")))
}

/// The first table that no domain has.
fn free_table(socket: &mut Socket) -> Result<u32, Error> {
    let mut taken = Vec::new();
    for link in link::list(socket).map_err(internal)? {
        if let Some(VirtualKind::Vrf(table)) = virtual_link::kind(socket, link.index).map_err(internal)? {
            taken.push(table);
        }
    }
    let free = |table: &u32| !taken.contains(table) && !RESERVED_TABLES.contains(table);
    (1..u32::MAX).find(free).ok_or_else(|| Error::internal("no routing table is free"))
}

/// Moves the interface into the domain. Its routes move along, which the kernel does not do.
fn join(socket: &mut Socket, port: &Link, vrf: u32, table: u32) -> Result<(), Error> {
    if let Some(master) = port.master {
        let master = link::by_index(socket, master).map_err(internal)?;
        let master = master.map(|link| link.name.to_string()).unwrap_or_default();
        return Err(Error::internal(format!("interface {} has already a master set: {master}", port.name)));
    }
    let addresses = lasting(socket, port.index)?;
    let is_of_port = |entry: &Entry| {
        entry.link == Some(port.index)
            && entry.table == fabric::dataplane::MAIN_TABLE
            // The kernel makes its own anew.
            && (entry.scope == address::SCOPE_GLOBAL || entry.protocol != routing_table::MADE_BY_KERNEL)
    };
    let mut routes = routing_table::list(socket).map_err(internal)?;
    routes.retain(is_of_port);
    // Those through a gateway need the others.
    routes.sort_by_key(|entry| entry.gateway.is_some());
    link::set_master(socket, port.index, Some(vrf)).map_err(|error| {
        Error::internal(format!("could not set vrf number {vrf} as master of {}: {error}", port.name))
    })?;
    // The kernel takes IPv6 addresses away unless it is told to keep them.
    let kept = lasting(socket, port.index)?;
    for lost in addresses.iter().filter(|address| !kept.iter().any(|kept| kept.net == address.net)) {
        address::add(socket, port.index, lost.net).map_err(|error| {
            Error::internal(format!("could not restore address {} to {}: {error}", lost.net, port.name))
        })?;
    }
    wait_for_addresses(socket, &addresses, table)?;
    for route in &routes {
        routing_table::copy(socket, route, table)
            .map_err(|error| Error::internal(format!("could not add route: {error}")))?;
    }
    Ok(())
}

/// The IPv6 addresses that are valid everywhere.
fn lasting(socket: &mut Socket, index: u32) -> Result<Vec<Address>, Error> {
    let mut addresses = address::list(socket, Some(index)).map_err(internal)?;
    addresses.retain(|it| it.net.addr().is_ipv6() && it.scope == address::SCOPE_GLOBAL);
    Ok(addresses)
}

/// Waits until the addresses are known in the domain: before, routes from them are refused.
fn wait_for_addresses(socket: &mut Socket, addresses: &[Address], table: u32) -> Result<(), Error> {
    let started = Instant::now();
    let mut pause = Duration::from_micros(200);
    while !addresses.is_empty() {
        let routes = routing_table::list(socket).map_err(internal)?;
        let is_known = |address: &Address| {
            let is_it = |entry: &Entry| {
                let whole = entry.destination.prefix_len() == entry.destination.max_prefix_len();
                entry.table == table && whole && entry.destination.addr() == address.net.addr()
            };
            routes.iter().any(is_it)
        };
        match addresses.iter().find(|address| !is_known(address)) {
            None => break,
            Some(missing) if started.elapsed() > PATIENCE => {
                return Err(Error::internal(format!(
                    "failed getting local/host addresses in table {table} with dst {}",
                    missing.net
                )));
            }
            Some(_) => {}
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    Ok(())
}

/// Takes the interface out of the domain; whether nothing is left in it.
fn leave(socket: &mut Socket, name: LinkName, request: &Request) -> Result<bool, Error> {
    // A device that is no VRF is not ours.
    let Ok(Some((vrf, _))) = find(socket, name) else { return Ok(false) };
    if let Ok(port) = port(socket, request)
        && port.master == Some(vrf)
    {
        link::set_master(socket, port.index, None).map_err(internal)?;
    }
    let links = link::list(socket).map_err(internal)?;
    Ok(!links.iter().any(|link| link.master == Some(vrf)))
}
