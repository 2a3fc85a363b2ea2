//! Addresses and routes of a container's interface: giving them, and looking whether they are still there.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::thread;
use std::time::{Duration, Instant};

use cni::{AddResult, Error, Request, Route};
use fabric::Mac;
use ipnet::IpNet;
use kernel::link::{self, Operational};
use kernel::netlink::Socket;
use kernel::netns::Namespace;
use kernel::pod::{self, DuplicateDetection, Refused};
use kernel::route::{self, FoundTarget};
use kernel::{KernelError, address, arp, sysctl};

use crate::container::{inside, sandbox};

/// Whether others on the network are asked first if they have an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detection {
    /// Nobody is: the network is this node's own.
    Off,
    /// They are.
    On,
    /// They are, for IPv6 unless the kernel's settings say otherwise.
    KernelDefault,
}

/// How long hardware may take to have a carrier; without one there is nobody to be asked.
const CARRIER_PATIENCE: Duration = Duration::from_secs(2);

/// How long the check for duplicate IPv6 addresses may take.
const DETECTION_PATIENCE: Duration = Duration::from_secs(5);

/// Gives the interface addresses and routes, and sets it up.
pub(crate) fn configure(
    namespace: &Namespace,
    detection: Detection,
    ifname: &str,
    result: &AddResult,
) -> Result<(), Error> {
    configure_with(namespace, detection, ifname, result, |_| Vec::new())
}

/// The same with further routes, by the interface's number, before those of the result.
pub(crate) fn configure_with(
    namespace: &Namespace,
    detection: Detection,
    ifname: &str,
    result: &AddResult,
    first: impl FnOnce(u32) -> Vec<route::Route>,
) -> Result<(), Error> {
    let addresses: Vec<_> = result.ips.iter().map(|ip| ip.address).collect();
    let gateway =
        |ipv4: bool| result.ips.iter().filter_map(|ip| ip.gateway).find(|gateway| gateway.is_ipv4() == ipv4);
    let flag = if detection == Detection::Off { DuplicateDetection::Off } else { DuplicateDetection::On };
    inside(namespace, ifname, |socket, index| {
        prepare(detection, ifname, addresses.iter().any(|net| net.addr().is_ipv6()))?;
        if detection != Detection::Off {
            refuse_claimed(socket, index, ifname, &addresses)?;
        }
        let mut routes = first(index);
        let wanted = result.routes.iter();
        routes.extend(wanted.map(|it| kernel_route(it, gateway(it.dst.addr().is_ipv4()), index)));
        pod::configure(socket, index, &addresses, flag, &routes).map_err(|refused| match refused {
            Refused::Address(at, error) => {
                Error::internal(format!("failed to add IP addr {} to {ifname:?}: {error}", addresses[at]))
            }
            Refused::Up(error) => Error::internal(format!("failed to set {ifname:?} UP: {error}")),
            Refused::Route(at, error) => {
                let route = &routes[at];
                let gateway = route.gateway.map_or("<nil>".to_owned(), |gateway| gateway.to_string());
                Error::internal(format!(
                    "failed to add route '{} via {gateway} dev {ifname} metric {}': {error}",
                    route.destination,
                    route.metric.unwrap_or(0)
                ))
            }
        })?;
        if detection != Detection::Off && gateway(false).is_some() {
            wait_for_detection(socket, index, ifname)?;
        }
        Ok(())
    })
}

/// Fails if somebody else on the network has one of the IPv4 addresses. For IPv6 the kernel asks.
fn refuse_claimed(socket: &mut Socket, index: u32, ifname: &str, addresses: &[IpNet]) -> Result<(), Error> {
    let v4 = |net: &IpNet| if let IpAddr::V4(v4) = net.addr() { Some(v4) } else { None };
    let v4: Vec<Ipv4Addr> = addresses.iter().filter_map(v4).collect();
    if v4.is_empty() {
        return Ok(());
    }
    link::set_up(socket, index)
        .map_err(|error| Error::internal(format!("failed to set {ifname:?} UP: {error}")))?;
    let Some(own) = mac_with_carrier(socket, index)? else { return Ok(()) };
    match arp::claimed(index, own, &v4) {
        Ok(None) => Ok(()),
        Ok(Some((address, mac))) => Err(Error::internal(format!(
            "failed to add IP addr {address} to {ifname:?}: it is in use on the network, by {mac}"
        ))
        .details(
            "give the container another address, or the range of IPAM one that is free; \"enabledad\": false \
             lets nobody be asked",
        )),
        // It is a precaution: what cannot be asked keeps nobody from an address.
        Err(error) => {
            let _ = writeln!(std::io::stderr().lock(), "{error}");
            Ok(())
        }
    }
}

/// A device's Ethernet address once it has a carrier; none if it gets none, or is no device for ARP.
fn mac_with_carrier(socket: &mut Socket, index: u32) -> Result<Option<Mac>, Error> {
    let end = Instant::now() + CARRIER_PATIENCE;
    loop {
        let link = link::by_index(socket, index).map_err(|error| Error::internal(error.to_string()))?;
        let Some(link) = link.filter(|link| link.flags & link::NO_ARP == 0) else { return Ok(None) };
        if link.flags & link::LOWER_UP != 0 {
            return Ok(link.mac);
        }
        let is_hardware = link.kind.name().is_empty();
        if !is_hardware || Instant::now() > end {
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Settings of the kernel that have to be there before the addresses.
fn prepare(detection: Detection, ifname: &str, ipv6: bool) -> Result<(), Error> {
    // Kernels differ in which of these they have, and without them everything works, only slower.
    match detection {
        Detection::On => {
            let _ = sysctl::write(&format!("net/ipv6/conf/{ifname}/enhanced_dad"), "1");
            let _ = sysctl::write(&format!("net/ipv6/conf/{ifname}/accept_dad"), "1");
        }
        Detection::Off => {
            let _ = sysctl::write(&format!("net/ipv6/conf/{ifname}/accept_dad"), "0");
        }
        // Neighbors that the node does not know may remember whoever had the address before.
        Detection::KernelDefault if ipv6 => {
            let _ = sysctl::write(&format!("net/ipv6/conf/{ifname}/ndisc_notify"), "1");
        }
        Detection::KernelDefault => {}
    }
    // The kernel tells the neighbors of the address once the link is up.
    let _ = sysctl::write(&format!("net/ipv4/conf/{ifname}/arp_notify"), "1");
    if !ipv6 {
        return Ok(());
    }
    for name in ["lo", ifname] {
        let path = format!("net/ipv6/conf/{name}/disable_ipv6");
        match sysctl::read(&path) {
            Ok(Some(value)) if value != "0" => sysctl::write(&path, "0").map_err(|error| {
                Error::internal(format!(
                    "failed to enable IPv6 for interface {name:?} ({path}={value}): {error}"
                ))
            })?,
            Ok(_) => {}
            Err(error) => {
                let _ = writeln!(std::io::stderr().lock(), "{error}");
            }
        }
    }
    sysctl::write(&format!("net/ipv6/conf/{ifname}/keep_addr_on_down"), "1").map_err(|error| {
        Error::internal(format!("failed to enable keep_addr_on_down for interface {ifname:?}: {error}"))
    })
}

/// Compatibility: `mtu` and `advmss` of a route are passed on in the result, not to the kernel.
fn kernel_route(wanted: &Route, family_gateway: Option<IpAddr>, index: u32) -> route::Route {
    let plain = route::Route::new(wanted.dst, wanted.gw.or(family_gateway), index);
    let number = |value: i64| u32::try_from(value).ok();
    route::Route {
        metric: number(wanted.priority).filter(|metric| *metric > 0),
        table: wanted.table.and_then(number).filter(|table| *table > 0).unwrap_or(plain.table),
        // The original names the scope 0 where none is given.
        scope: Some(wanted.scope.and_then(|scope| u8::try_from(scope).ok()).unwrap_or(0)),
        ..plain
    }
}

fn wait_for_detection(socket: &mut Socket, index: u32, ifname: &str) -> Result<(), Error> {
    let failed = |why: &str| Error::internal(format!("failed to settle addresses for {ifname:?}: {why}"));
    let started = Instant::now();
    loop {
        let addresses = address::list(socket, Some(index)).map_err(|error| failed(&error.to_string()))?;
        let ipv6 = || addresses.iter().filter(|address| address.net.addr().is_ipv6());
        if let Some(duplicate) = ipv6().find(|address| address.is_duplicate()) {
            return Err(failed(&format!("another host has {}", duplicate.net.addr())));
        }
        if ipv6().all(|address| !address.is_tentative()) {
            return Ok(());
        }
        if started.elapsed() > DETECTION_PATIENCE {
            let link = link::by_index(socket, index).map_err(|error| failed(&error.to_string()))?;
            // Without a carrier nobody can be asked.
            return match link.map(|link| link.operational) {
                Some(Operational::Up) => Err(failed("addresses are still tentative after 5 s")),
                _ => Ok(()),
            };
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// The addresses of the attachment's interface that are valid everywhere; none if it is gone.
pub(crate) fn addresses(request: &Request) -> Vec<IpNet> {
    let Some(namespace) = sandbox(request) else { return Vec::new() };
    let addresses = inside(&namespace, &request.environment.ifname, |socket, index| {
        address::list(socket, Some(index)).map_err(internal)
    });
    let global = |address: &address::Address| address.scope == address::SCOPE_GLOBAL;
    addresses
        .unwrap_or_default()
        .iter()
        .filter(|address| global(address))
        .map(|address| address.net)
        .collect()
}

/// Fails unless an interface still has the addresses and routes of a result.
pub(crate) fn check(socket: &mut Socket, index: u32, ifname: &str, result: &AddResult) -> Result<(), Error> {
    let addresses = address::list(socket, Some(index)).map_err(internal)?;
    let routes = route::list(socket).map_err(internal)?;
    for ip in &result.ips {
        if !addresses.iter().any(|address| address.net == ip.address) {
            return Err(Error::internal(format!(
                "Failed to match addr {} on interface {ifname}",
                ip.address
            )));
        }
        let whole = ip.address.prefix_len() == ip.address.max_prefix_len();
        if !whole && !routes.iter().any(|route| route.destination == ip.address.trunc()) {
            return Err(Error::internal(format!(
                "Expected Route {} for addr {} on interface {ifname} not found",
                ip.address.trunc(),
                ip.address
            )));
        }
    }
    // Routes of other tables are for plugins that come later, and the kernel is asked for the main one.
    for wanted in result.routes.iter().filter(|route| route.table.is_none()) {
        let gateway = wanted.gw.filter(|_| wanted.dst.prefix_len() > 0);
        let is_there = routes.iter().any(|route| {
            route.destination == wanted.dst.trunc()
                && gateway.is_none_or(|gateway| goes_via(route.target, gateway))
        });
        if !is_there {
            return Err(Error::internal(format!("Expected Route {} via {gateway:?} not found", wanted.dst)));
        }
    }
    Ok(())
}

fn goes_via(target: FoundTarget, wanted: IpAddr) -> bool {
    match target {
        FoundTarget::Via { gateway, .. } => gateway == wanted,
        // Several paths, or a next-hop object: somebody changed it later and meant to.
        _ => true,
    }
}

fn internal(error: KernelError) -> Error {
    Error::internal(error.to_string())
}
