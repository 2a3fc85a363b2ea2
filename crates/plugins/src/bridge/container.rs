//! The pod's side of an attachment.

use std::io::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use cni::{AddResult, Error, Request, Route};
use fabric::LinkName;
use ipnet::IpNet;
use kernel::netlink::Socket;
use kernel::netns::{self, Namespace};
use kernel::pod::{self, DuplicateDetection, Refused};
use kernel::{address, link, route, sysctl};

use super::open_socket;
use super::settings::Settings;

/// How long the check for duplicate IPv6 addresses may take.
const DETECTION_PATIENCE: Duration = Duration::from_secs(5);

/// Sets up an interface that gets no addresses.
pub(super) fn set_up(namespace: &Namespace, ifname: &str) -> Result<(), Error> {
    inside(namespace, ifname, |socket, index| {
        link::set_up(socket, index)
            .map_err(|error| Error::internal(format!("failed to set {ifname:?} up: {error}")))
    })
}

/// Gives the interface addresses and routes, and sets it up.
pub(super) fn configure(
    namespace: &Namespace,
    settings: &Settings,
    ifname: &str,
    result: &AddResult,
) -> Result<(), Error> {
    let addresses: Vec<_> = result.ips.iter().map(|ip| ip.address).collect();
    let gateway =
        |ipv4: bool| result.ips.iter().filter_map(|ip| ip.gateway).find(|gateway| gateway.is_ipv4() == ipv4);
    let detection = if settings.enable_dad { DuplicateDetection::On } else { DuplicateDetection::Off };
    inside(namespace, ifname, |socket, index| {
        prepare(settings, ifname, addresses.iter().any(|net| net.addr().is_ipv6()))?;
        let routes: Vec<route::Route> = result
            .routes
            .iter()
            .map(|wanted| kernel_route(wanted, gateway(wanted.dst.addr().is_ipv4()), index))
            .collect();
        pod::configure(socket, index, &addresses, detection, &routes).map_err(|refused| match refused {
            Refused::Address(at, error) => {
                Error::internal(format!("failed to add IP addr {} to {ifname:?}: {error}", addresses[at]))
            }
            Refused::Up(error) => Error::internal(format!("failed to set {ifname:?} UP: {error}")),
            Refused::Route(at, error) => {
                let (route, gateway) = (&result.routes[at], routes[at].gateway);
                let gateway = gateway.map_or("<nil>".to_owned(), |gateway| gateway.to_string());
                Error::internal(format!(
                    "failed to add route '{} via {gateway} dev {ifname} metric {}': {error}",
                    route.dst, route.priority
                ))
            }
        })?;
        if settings.enable_dad && gateway(false).is_some() {
            wait_for_detection(socket, index, ifname)?;
        }
        Ok(())
    })
}

/// Settings of the kernel that have to be there before the addresses.
fn prepare(settings: &Settings, ifname: &str, ipv6: bool) -> Result<(), Error> {
    // Kernels differ in which of these they have, and without them everything works, only slower.
    if settings.enable_dad {
        let _ = sysctl::write(&format!("net/ipv6/conf/{ifname}/enhanced_dad"), "1");
        let _ = sysctl::write(&format!("net/ipv6/conf/{ifname}/accept_dad"), "1");
    } else {
        let _ = sysctl::write(&format!("net/ipv6/conf/{ifname}/accept_dad"), "0");
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
    const TENTATIVE: u32 = 0x40;
    const DUPLICATE: u32 = 0x08;
    let failed = |why: &str| Error::internal(format!("failed to settle addresses for {ifname:?}: {why}"));
    let started = Instant::now();
    loop {
        let addresses = address::list(socket, Some(index)).map_err(|error| failed(&error.to_string()))?;
        let ipv6 = || addresses.iter().filter(|address| address.net.addr().is_ipv6());
        if let Some(duplicate) = ipv6().find(|address| address.flags & DUPLICATE != 0) {
            return Err(failed(&format!("another host has {}", duplicate.net.addr())));
        }
        if ipv6().all(|address| address.flags & TENTATIVE == 0) {
            return Ok(());
        }
        if started.elapsed() > DETECTION_PATIENCE {
            return Err(failed("addresses are still tentative after 5 s"));
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// The addresses of the attachment's interface that are valid everywhere; none if it is gone.
pub(super) fn addresses(request: &Request) -> Vec<IpNet> {
    let environment = &request.environment;
    let Ok(namespace) = netns::open(Path::new(&environment.netns)) else { return Vec::new() };
    let addresses = inside(&namespace, &environment.ifname, |socket, index| {
        address::list(socket, Some(index)).map_err(|error| Error::internal(error.to_string()))
    });
    let global = |address: &address::Address| address.scope == address::SCOPE_GLOBAL;
    addresses
        .unwrap_or_default()
        .iter()
        .filter(|address| global(address))
        .map(|address| address.net)
        .collect()
}

/// Does something with the interface of that name in the container's namespace.
pub(super) fn inside<T>(
    namespace: &Namespace,
    ifname: &str,
    work: impl FnOnce(&mut Socket, u32) -> Result<T, Error>,
) -> Result<T, Error> {
    let done = namespace.enter(|| {
        let mut socket = open_socket()?;
        let name: LinkName = ifname.parse().map_err(|error| Error::internal(format!("{error}")))?;
        let index = link::index(&socket, name)
            .map_err(|error| Error::internal(error.to_string()))?
            .ok_or_else(|| Error::internal(format!("failed to lookup {ifname:?}: Link not found")))?;
        work(&mut socket, index)
    });
    done.map_err(|error| Error::internal(error.to_string()))?
}
