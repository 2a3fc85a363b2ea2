//! Which interface leads to the other nodes, and by which addresses they reach this one.
//!
//! A pure decision over what was asked for ([`Wanted`]) and what the host has ([`Surroundings`]).
//! The order is the original's: each `-iface`, each `-iface-regex`, `-iface-can-reach`; without any
//! of them `-public-ip` or `-public-ipv6` where it is an address of this host, then the default
//! route. Where the original gives up or guesses, we go on:
//!
//! * `-public-ip` of a NAT gateway, which no interface has, does not keep the node from starting;
//! * the default routes of the two families may lead through different interfaces, and may have
//!   several next hops: the first interface with an address of each wanted family is taken;
//! * without a default route, the one interface that can be meant is taken, if there is just one;
//! * an address that is tentative or failed duplicate address detection is not used.
//!
//! Every choice has a reason and every refusal a list of what there was, both in words.

mod again;

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fabric::LinkName;
use fabric::host::ExternalInterface;
use ipnet::IpNet;
use regex::Regex;

pub use again::choose_again;

/// What was asked for, checked.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// `-iface`: names or addresses.
    pub names: Vec<String>,
    /// `-iface-regex`
    pub patterns: Vec<Regex>,
    /// `-iface-can-reach`
    pub can_reach: Option<IpAddr>,
    /// `-public-ip`
    pub public_ipv4: Option<Ipv4Addr>,
    /// `-public-ipv6`
    pub public_ipv6: Option<Ipv6Addr>,
}

impl Wanted {
    /// The same, but for public addresses that take the place of those of the flags.
    pub fn with_public(&self, ipv4: Option<Ipv4Addr>, ipv6: Option<Ipv6Addr>) -> Wanted {
        let (public_ipv4, public_ipv6) = (ipv4.or(self.public_ipv4), ipv6.or(self.public_ipv6));
        Wanted { public_ipv4, public_ipv6, ..self.clone() }
    }
}

/// The families that the network has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Families {
    /// Whether an IPv4 address is needed.
    pub ipv4: bool,
    /// Whether an IPv6 address is needed.
    pub ipv6: bool,
}

/// What the host has.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// All interfaces, in the kernel's order.
    pub interfaces: Vec<Interface>,
    /// The default routes of the main table, best first within each family.
    pub default_routes: Vec<DefaultRoute>,
    /// What the kernel says of the way to `-iface-can-reach`.
    pub reached: Option<Result<Reached, String>>,
    /// The pod networks, whose addresses lead to no other node.
    pub networks: Vec<IpNet>,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: LinkName,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it is a loopback device.
    pub loopback: bool,
    /// The kernel's name for its kind, such as `bridge`; empty for hardware.
    pub kind: String,
    /// Its addresses, in the kernel's order.
    pub addresses: Vec<Address>,
}

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// Whether it is about to go away (`IFA_F_DEPRECATED`).
    pub deprecated: bool,
    /// Whether it may not be used, being checked for duplicates or found to be one.
    pub unusable: bool,
    /// Whether it is a privacy address (`IFA_F_TEMPORARY`).
    pub temporary: bool,
    /// Whether it has no end (`IFA_F_PERMANENT`).
    pub permanent: bool,
}

/// A default route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultRoute {
    /// Its family: that of its destination.
    pub ipv6: bool,
    /// The interfaces of its next hops.
    pub links: Vec<LinkName>,
}

/// The way to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    /// The interface.
    pub link: LinkName,
    /// The address that packets leave with.
    pub source: Option<IpAddr>,
}

/// The interface that was chosen, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The interface and its addresses.
    pub external: ExternalInterface,
    /// Why it.
    pub reason: String,
}

/// Why there is no interface to use, with what there was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoInterface(String);

/// Chooses the interface to the other nodes.
pub fn choose(
    wanted: &Wanted,
    families: Families,
    surroundings: &Surroundings,
) -> Result<Choice, NoInterface> {
    let search = Search { wanted, families, around: surroundings };
    let tries: Vec<Try> = if search.is_told() { search.told() } else { search.untold() };
    let mut failures = Vec::new();
    for attempt in tries {
        match attempt.and_then(|found| search.complete(found)) {
            Ok(choice) => return Ok(choice),
            Err(failure) => failures.push(failure),
        }
    }
    Err(NoInterface(format!(
        "no interface to the other nodes found: {}; the interfaces are {}",
        failures.join("; "),
        list(&surroundings.interfaces)
    )))
}

/// One way of finding the interface: what it found, or why nothing.
type Try<'a> = Result<Found<'a>, String>;

/// An interface that was found, perhaps by its addresses.
struct Found<'a> {
    interface: &'a Interface,
    ipv4: Option<Ipv4Addr>,
    ipv6: Option<Ipv6Addr>,
    reason: String,
}

struct Search<'a> {
    wanted: &'a Wanted,
    families: Families,
    around: &'a Surroundings,
}

impl<'a> Search<'a> {
    fn is_told(&self) -> bool {
        let Wanted { names, patterns, can_reach, .. } = self.wanted;
        !names.is_empty() || !patterns.is_empty() || can_reach.is_some()
    }

    /// What `-iface`, `-iface-regex` and `-iface-can-reach` say, in order.
    fn told(&self) -> Vec<Try<'a>> {
        let names = self.wanted.names.iter().map(|name| self.by_name(name));
        let patterns = self.wanted.patterns.iter().map(|pattern| self.by_pattern(pattern));
        let reach = self.wanted.can_reach.iter().map(|target| self.by_reach(*target));
        names.chain(patterns).chain(reach).collect()
    }

    /// Without being told: by a public address that is local, by a default route, by being the only
    /// one.
    fn untold(&self) -> Vec<Try<'a>> {
        let ipv4 = self.wanted.public_ipv4.filter(|_| self.families.ipv4).map(IpAddr::V4);
        let ipv6 = self.wanted.public_ipv6.filter(|_| self.families.ipv6).map(IpAddr::V6);
        let public = ipv4.into_iter().chain(ipv6).filter_map(|ip| {
            let flag = if ip.is_ipv4() { "-public-ip" } else { "-public-ipv6" };
            self.with_address(ip)
                .map(|interface| Ok(found(interface, Some(ip), format!("it has {flag}={ip}"))))
        });
        public.chain(self.by_default_route()).chain([self.by_being_the_only_one()]).collect()
    }

    fn by_name(&self, name: &str) -> Try<'a> {
        if let Ok(ip) = name.parse::<IpAddr>() {
            let wanted = if ip.is_ipv4() { self.families.ipv4 } else { self.families.ipv6 };
            if !wanted {
                return Err(format!("-iface={ip} is of a family that the network does not have"));
            }
            let interface = self.with_address(ip).ok_or(format!("no interface has -iface={ip}"))?;
            return Ok(found(interface, Some(ip), format!("-iface={ip}")));
        }
        let interface = self.interface(name).ok_or(format!("there is no interface -iface={name}"))?;
        Ok(found(interface, None, format!("-iface={name}")))
    }

    /// An interface with a matching address of each family, else with a matching address, else with
    /// a matching name.
    fn by_pattern(&self, pattern: &Regex) -> Try<'a> {
        let matching = |interface: &Interface| {
            let fits = |ip: &IpAddr| pattern.is_match(&ip.to_string());
            let ipv4 = usable(interface, false).find(fits).filter(|_| self.families.ipv4);
            let ipv6 = usable(interface, true).find(fits).filter(|_| self.families.ipv6);
            (ipv4, ipv6)
        };
        let matches = |interface: &Interface| {
            let (ipv4, ipv6) = matching(interface);
            usize::from(ipv4.is_some()) + usize::from(ipv6.is_some())
        };
        // Among equals the first: `max_by_key` alone would take the last.
        let best = self.around.interfaces.iter().rev().max_by_key(|interface| matches(interface));
        if let Some(interface) = best.filter(|interface| matches(interface) > 0) {
            let (ipv4, ipv6) = matching(interface);
            let address = ipv4.or(ipv6).map(|ip| ip.to_string()).unwrap_or_default();
            let mut found = found(interface, ipv4, format!("{address} matches -iface-regex={pattern}"));
            found.ipv6 = ipv6.and_then(as_ipv6);
            return Ok(found);
        }
        let named = self.around.interfaces.iter().find(|interface| pattern.is_match(interface.name.as_str()));
        let interface = named.ok_or(format!("nothing matches -iface-regex={pattern}"))?;
        Ok(found(interface, None, format!("its name matches -iface-regex={pattern}")))
    }

    fn by_reach(&self, target: IpAddr) -> Try<'a> {
        match &self.around.reached {
            Some(Ok(Reached { link, source })) => {
                let gone =
                    || format!("the way to -iface-can-reach={target} is through {link}, which is not there");
                let interface = self.interface(link.as_str()).ok_or_else(gone)?;
                Ok(found(interface, *source, format!("-iface-can-reach={target} is reached through it")))
            }
            Some(Err(error)) => Err(format!("-iface-can-reach={target} cannot be reached: {error}")),
            None => Err(format!("-iface-can-reach={target} was not looked up")),
        }
    }

    /// Every interface that a default route leads through, those of the wanted families, IPv4 first.
    fn by_default_route(&self) -> impl Iterator<Item = Try<'a>> {
        let of = |ipv6: bool, wanted: bool| {
            self.around.default_routes.iter().filter(move |route| wanted && route.ipv6 == ipv6)
        };
        let links: Vec<_> = of(false, self.families.ipv4)
            .chain(of(true, self.families.ipv6))
            .flat_map(|route| &route.links)
            .filter_map(|link| self.interface(link.as_str()))
            .collect();
        let none = links.is_empty().then(|| Err("there is no default route".to_owned()));
        let reason = "the default route goes through it";
        links.into_iter().map(move |interface| Ok(found(interface, None, reason.to_owned()))).chain(none)
    }

    /// The only interface that can be meant: up, not loopback, no device of flannel's, with a global
    /// address of each wanted family outside the pod networks. Bridges, which belong to containers
    /// more often than not, count only where nothing else does.
    fn by_being_the_only_one(&self) -> Try<'a> {
        let suits = |interface: &&Interface| {
            let pods = |ip: &IpAddr| self.around.networks.iter().any(|network| network.contains(ip));
            let global = |ipv6| usable(interface, ipv6).any(|ip| !is_link_local(&ip) && !pods(&ip));
            interface.up
                && !interface.loopback
                && !matches!(interface.kind.as_str(), "vxlan" | "wireguard")
                && (!self.families.ipv4 || global(false))
                && (!self.families.ipv6 || global(true))
        };
        let (bridges, others): (Vec<_>, Vec<_>) =
            self.around.interfaces.iter().filter(suits).partition(|interface| interface.kind == "bridge");
        let candidates = if others.is_empty() { bridges } else { others };
        match candidates[..] {
            [interface] => Ok(found(interface, None, "it is the only one with a usable address".to_owned())),
            [] => Err("no interface has a usable address".to_owned()),
            _ => {
                let names: Vec<_> = candidates.iter().map(|interface| interface.name.as_str()).collect();
                Err(format!("{} could each be meant; say which with -iface", names.join(", ")))
            }
        }
    }

    /// Fills in the addresses that are still open.
    fn complete(&self, found: Found<'a>) -> Result<Choice, String> {
        let Found { interface, ipv4, ipv6, reason } = found;
        let name = interface.name;
        let ipv4 = self.families.ipv4.then(|| {
            ipv4.or_else(|| usable(interface, false).find_map(as_ipv4))
                .ok_or(format!("{name} has no IPv4 address"))
        });
        let ipv6 = self.families.ipv6.then(|| {
            ipv6.or_else(|| usable(interface, true).find_map(as_ipv6))
                .ok_or(format!("{name} has no IPv6 address"))
        });
        let (ipv4, ipv6) = (ipv4.transpose()?, ipv6.transpose()?);
        if interface.mtu == 0 {
            return Err(format!("{name} has no MTU"));
        }
        let external = ExternalInterface {
            link: name,
            mtu: interface.mtu,
            ipv4,
            ipv6,
            public_ipv4: self.wanted.public_ipv4.filter(|_| self.families.ipv4).or(ipv4),
            public_ipv6: self.wanted.public_ipv6.filter(|_| self.families.ipv6).or(ipv6),
        };
        Ok(Choice { external, reason })
    }

    fn interface(&self, name: &str) -> Option<&'a Interface> {
        self.around.interfaces.iter().find(|interface| interface.name.as_str() == name)
    }

    fn with_address(&self, ip: IpAddr) -> Option<&'a Interface> {
        let has = |interface: &&Interface| interface.addresses.iter().any(|address| address.ip == ip);
        self.around.interfaces.iter().find(has)
    }
}

fn found(interface: &Interface, ip: Option<IpAddr>, reason: String) -> Found<'_> {
    Found { interface, ipv4: ip.and_then(as_ipv4), ipv6: ip.and_then(as_ipv6), reason }
}

fn as_ipv4(ip: IpAddr) -> Option<Ipv4Addr> {
    if let IpAddr::V4(ip) = ip { Some(ip) } else { None }
}

fn as_ipv6(ip: IpAddr) -> Option<Ipv6Addr> {
    if let IpAddr::V6(ip) = ip { Some(ip) } else { None }
}

/// The addresses of one family that can stand for an interface, best first: global before
/// link-local, permanent before passing, public before private for privacy's sake; otherwise in the
/// kernel's order.
fn usable(interface: &Interface, ipv6: bool) -> impl Iterator<Item = IpAddr> + use<> {
    let mut addresses: Vec<_> = interface
        .addresses
        .iter()
        .filter(|address| address.ip.is_ipv6() == ipv6 && !address.deprecated && !address.unusable)
        .filter(|address| {
            !address.ip.is_loopback() && !address.ip.is_multicast() && !address.ip.is_unspecified()
        })
        .copied()
        .collect();
    addresses.sort_by_key(|address| (is_link_local(&address.ip), !address.permanent, address.temporary));
    addresses.into_iter().map(|address| address.ip)
}

fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// `eth0 (192.0.2.1, down), lo (127.0.0.1)`
fn list(interfaces: &[Interface]) -> String {
    let mut text = String::new();
    for interface in interfaces {
        let mut notes: Vec<String> =
            interface.addresses.iter().map(|address| address.ip.to_string()).collect();
        if !interface.up {
            notes.push("down".to_owned());
        }
        let separator = if text.is_empty() { "" } else { ", " };
        // Writing to a String cannot fail.
        let _ = write!(text, "{separator}{} ({})", interface.name, notes.join(", "));
    }
    if text.is_empty() { "none".to_owned() } else { text }
}

#[cfg(test)]
mod tests;
