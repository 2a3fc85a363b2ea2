//! `portmap`: forwards ports of the host to a container that another plugin attached.
//!
//! Rules are made by nftables over netlink, in the reference plugin's table and by its names; or by
//! iptables where the configuration demands it, where the reference plugin's rules of iptables stand
//! already (so that it can take away what this one made), and where the kernel has no nftables. DEL and
//! CHECK find the rules of either, whatever the configuration says by then.

mod iptables;
mod nftables;
mod settings;

use std::io::Write as _;
use std::net::IpAddr;

use cni::{AddResult, Error, Plugin, Request};
use fabric::dataplane::IpFamily;
use fabric::firewall::Family;
use ipnet::IpNet;
use kernel::nftables::Nftables;
use kernel::{KernelError, conntrack, link, route, sysctl};

use self::settings::{Backend, Settings};
use crate::container::open_socket;
use crate::masquerade::close_later;

/// The plugin.
#[derive(Debug, Clone, Copy)]
pub struct Portmap;

impl Plugin for Portmap {
    fn name(&self) -> &'static str {
        "portmap"
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let settings = Settings::parse(request).map_err(|error| error.context("failed to parse config"))?;
        let result = previous(request, "must be called as chained plugin")?;
        if settings.mappings.is_empty() {
            return result.convert(request.version);
        }
        let mut nft = Nftables::open().ok();
        let backend = decide(settings.backend, nft.as_mut());
        // An ADD that was not followed by a DEL may have been by the other one.
        match (backend, &mut nft) {
            // Chosen because there is no rule of iptables.
            (Chosen::Nftables, _) if settings.backend == Backend::Automatic => {}
            (Chosen::Nftables, nft) => iptables::remove(nft.as_mut(), request)?,
            (Chosen::Iptables, Some(nft)) => nftables::remove(nft, request)?,
            (Chosen::Iptables, None) => {}
        }
        for address in addresses(request, &result) {
            let installed = match (backend, &mut nft) {
                (Chosen::Nftables, Some(nft)) => nftables::install(nft, request, &settings, address),
                (Chosen::Nftables, None) => Nftables::open().map(drop).map_err(internal),
                (Chosen::Iptables, nft) => iptables::install(nft.as_mut(), request, &settings, address),
            };
            if let Err(error) = installed {
                // A runtime may not call DEL after a failed ADD.
                let _ = remove(nft.as_mut(), request);
                return Err(error);
            }
            forget_flows(&settings, address);
        }
        let mut outcome = Ok(());
        if settings.snat {
            for address in addresses(request, &result).filter(|address| address.addr().is_ipv4()) {
                let enabled = route_localnet(address.addr());
                outcome =
                    outcome.and(enabled.map_err(|error| {
                        Error::internal(format!("unable to enable route_localnet: {error}"))
                    }));
            }
        }
        // Last of all: the process that it starts shares memory with this one, which costs both.
        if let Some(nft) = nft {
            close_later(nft);
        }
        outcome.and(result.convert(request.version))
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        let mut nft = Nftables::open().ok();
        let removed = remove(nft.as_mut(), request);
        if let Some(nft) = nft {
            close_later(nft);
        }
        removed
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let settings = Settings::parse(request)?;
        let result = previous(request, "Required prevResult missing")?;
        if settings.mappings.is_empty() {
            return Ok(());
        }
        let mut nft = Nftables::open().ok();
        for address in addresses(request, &result) {
            let family = family_of(address.addr());
            let by_iptables = iptables::has_chain(nft.as_mut(), request, family)?;
            match &mut nft {
                Some(nft) if !by_iptables => nftables::check(nft, request, &settings, address)?,
                _ => iptables::check(request, &settings, address)?,
            }
        }
        Ok(())
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        let valid = request.config.valid_attachments()?;
        let mut nft = Nftables::open().ok();
        let by_nftables = match &mut nft {
            Some(nft) => nftables::keep_only(nft, request, &valid),
            None => Ok(()),
        };
        let by_iptables = iptables::keep_only(nft.as_mut(), request, &valid);
        if let Some(nft) = nft {
            close_later(nft);
        }
        by_nftables.and(by_iptables)
    }
}

/// By what rules are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chosen {
    Nftables,
    Iptables,
}

fn decide(wanted: Backend, nft: Option<&mut Nftables>) -> Chosen {
    match (wanted, nft) {
        (Backend::Nftables, _) => Chosen::Nftables,
        (Backend::Automatic, Some(nft)) => {
            if iptables::is_in_use(nft) {
                Chosen::Iptables
            } else {
                Chosen::Nftables
            }
        }
        (Backend::Automatic, None) | (Backend::Iptables, _) => Chosen::Iptables,
    }
}

/// Takes the rules of an attachment away, whatever made them.
fn remove(mut nft: Option<&mut Nftables>, request: &Request) -> Result<(), Error> {
    let by_nftables = match &mut nft {
        Some(nft) => nftables::remove(nft, request),
        None => Ok(()),
    };
    // Each is tried, whether the other one failed or not.
    iptables::remove(nft, request).and(by_nftables)
}

fn previous(request: &Request, missing: &str) -> Result<AddResult, Error> {
    request.config.prev_result()?.ok_or_else(|| {
        Error::internal(missing).details(
            "portmap forwards ports to an interface that another plugin made: it has to come after that one \
             in the list",
        )
    })
}

/// The container's address of each family: the first that is not known to belong to another interface.
fn addresses(request: &Request, result: &AddResult) -> impl Iterator<Item = IpNet> {
    let is_own = |index: Option<i64>| {
        let index = index.and_then(|index| usize::try_from(index).ok());
        index.and_then(|index| result.interfaces.get(index)).is_none_or(|interface| {
            interface.name == request.environment.ifname && !interface.sandbox.is_empty()
        })
    };
    let own: Vec<IpNet> = result.ips.iter().filter(|ip| is_own(ip.interface)).map(|ip| ip.address).collect();
    let first = |v4: bool| own.iter().copied().find(move |net| net.addr().is_ipv4() == v4);
    [first(true), first(false)].into_iter().flatten()
}

/// Flows that began before the rules were there would go on past them, to nobody or to a container that
/// is gone.
fn forget_flows(settings: &Settings, address: IpNet) {
    let (family, _) = families(address.addr());
    if let Err(error) = conntrack::forget_udp(family, &settings.udp_ports()) {
        // The rules hold for all new flows; the old ones end by themselves.
        let _ = writeln!(std::io::stderr().lock(), "{error}");
    }
}

/// Lets packets from 127.0.0.1 out to the container.
fn route_localnet(container: IpAddr) -> Result<(), KernelError> {
    let mut socket = open_socket()
        .map_err(|error| KernelError::Other { doing: "open a netlink socket".to_owned(), why: error.msg })?;
    // Compatibility: where there is no way to the container there is nothing to be enabled.
    let Ok(way) = route::lookup(&mut socket, container) else { return Ok(()) };
    let Some(link) = link::by_index(&mut socket, way.link)? else { return Ok(()) };
    let path = format!("net/ipv4/conf/{}/route_localnet", link.name);
    if sysctl::read(&path)?.is_some_and(|value| value.trim() == "1") {
        return Ok(());
    }
    sysctl::write(&path, "1")
}

fn families(address: IpAddr) -> (IpFamily, Family) {
    if address.is_ipv4() { (IpFamily::V4, Family::Ipv4) } else { (IpFamily::V6, Family::Ipv6) }
}

fn family_of(address: IpAddr) -> Family {
    families(address).1
}

fn internal(error: KernelError) -> Error {
    Error::internal(error.to_string())
}
