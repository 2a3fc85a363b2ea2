//! [`Fake`]: a kernel in memory for the tests of what stands above this crate.
//!
//! It is as strict as the real one: what Linux refuses it refuses, with the same error number, and
//! what Linux takes along (routes with a device, a next hop's routes with it) goes. A test holds it
//! against the real kernel, change by change. Left out are link-local addresses and their routes.
//!
//! Faults can be put in: changes that fail, looks that fail, objects that get lost.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fabric::dataplane::{
    Change, IpFamily, Link, LinkKind, NextHop, Observed, ObservedLink, ObservedLinkKind, Route, Target, Tun,
};
use fabric::link_name::LinkName;
use fabric::mac::Mac;
use ipnet::IpNet;
use rustix::io::Errno;

use crate::error::KernelError;
use crate::linux::{Failure, Kernel, Scope};
use crate::netlink::NetlinkError;

const PROTOCOL_KERNEL: u8 = 2; // RTPROT_KERNEL
const IPV6_CONNECTED_METRIC: u32 = 256; // IP6_RT_PRIO_ADDRCONF
const VXLAN_DEFAULT_PORT: u16 = 8472;

/// A kernel in memory. Clones are the same kernel, so that a test can keep one.
#[derive(Debug, Clone, Default)]
pub struct Fake {
    machine: Arc<Mutex<Machine>>,
}

#[derive(Debug, Default)]
struct Machine {
    /// Everything there is, whatever the scope of a look.
    state: Observed,
    last_index: u32,
    /// Every change that was made, in order.
    made: Vec<Change>,
    /// How many looks were taken.
    looks: usize,
    /// What shall go wrong.
    faults: Vec<Fault>,
    failing_looks: usize,
}

struct Fault {
    hits: Box<dyn FnMut(&Change) -> bool + Send>,
    errno: Errno,
}

impl std::fmt::Debug for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Fault({})", self.errno)
    }
}

impl Fake {
    /// A kernel with a loopback device, without any setting below `/proc/sys` but forwarding.
    pub fn new() -> Fake {
        let fake = Fake::default();
        {
            let mut machine = fake.lock();
            let kind = ObservedLinkKind::Other(String::new());
            machine.add_link("lo".parse().expect("lo is a name"), 65_536, None, kind);
            for path in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
                machine.state.sysctls.insert(path.to_owned(), "0".to_owned());
            }
        }
        fake
    }

    /// Adds a hardware device that is up, with addresses and the routes that come with them.
    pub fn add_device(&self, name: LinkName, mtu: u32, addresses: &[IpNet]) {
        let mut machine = self.lock();
        let index = machine.last_index + 1;
        let mac = Mac([2, 0, 0, 0, 0xff, index as u8]);
        machine.add_link(name, mtu, Some(mac), ObservedLinkKind::Other(String::new()));
        for net in addresses {
            machine.add_address(name, *net);
        }
    }

    /// Everything there is.
    pub fn state(&self) -> Observed {
        self.lock().state.clone()
    }

    /// Changes anything behind the back of the one who uses the kernel.
    pub fn interfere(&self, with: impl FnOnce(&mut Observed)) {
        with(&mut self.lock().state);
    }

    /// Somebody deletes a device, and everything on it goes with it.
    pub fn delete_link(&self, name: LinkName) {
        self.lock().delete_link(name);
    }

    /// Somebody sets a device down: its routes, next hops, neighbors and IPv6 addresses go.
    pub fn set_down(&self, name: LinkName) {
        self.lock().set_down(name);
    }

    /// Every change for which `hits` is true fails. It may count, and so fail a few times only.
    pub fn fail_when(&self, errno: Errno, hits: impl FnMut(&Change) -> bool + Send + 'static) {
        self.lock().faults.push(Fault { hits: Box::new(hits), errno });
    }

    /// The next `times` looks fail.
    pub fn fail_looks(&self, times: usize) {
        self.lock().failing_looks = times;
    }

    /// Nothing fails any more but what Linux refuses as well.
    pub fn heal(&self) {
        let mut machine = self.lock();
        machine.faults.clear();
        machine.failing_looks = 0;
    }

    /// Every change made so far, without those that failed.
    pub fn made(&self) -> Vec<Change> {
        self.lock().made.clone()
    }

    /// How many looks were taken so far.
    pub fn looks(&self) -> usize {
        self.lock().looks
    }

    fn lock(&self) -> MutexGuard<'_, Machine> {
        // A test that failed while holding it has said why already.
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kernel for Fake {
    fn observe(&mut self, scope: &Scope) -> Result<Observed, KernelError> {
        let mut machine = self.lock();
        machine.looks += 1;
        if machine.failing_looks > 0 {
            machine.failing_looks -= 1;
            return Err(KernelError::system("list devices", Errno::NOBUFS));
        }
        let mut seen = machine.state.clone();
        seen.sysctls =
            scope.sysctls.iter().filter_map(|path| Some((path.clone(), machine.sysctl(path)?))).collect();
        seen.neighbors.retain(|(link, _), _| scope.links.contains(link));
        seen.fdb.retain(|(link, ..)| scope.links.contains(link));
        seen.tables.retain(|name, _| scope.tables.contains(name));
        Ok(seen)
    }

    fn apply(&mut self, changes: &[Change]) -> Vec<Failure> {
        let mut machine = self.lock();
        let mut failures = Vec::new();
        for (index, change) in changes.iter().enumerate() {
            let fault = machine.faults.iter_mut().fold(None, |found, fault| {
                // Each is asked, since each may count.
                if (fault.hits)(change) { found.or(Some(fault.errno)) } else { found }
            });
            let result = match fault {
                Some(errno) => Err(refused(errno)),
                None => machine.make(change),
            };
            match result {
                Ok(()) => machine.made.push(change.clone()),
                Err(Refusal::NoLink(link)) if !change.removes() => {
                    let error = KernelError::NoLink(link.to_string());
                    failures.push(Failure { index, change: change.clone(), error });
                }
                Err(Refusal::NoLink(_)) => {}
                Err(Refusal::Errno(errno)) => {
                    let cause = NetlinkError::refused(errno);
                    let error = KernelError::Netlink { doing: format!("do `{change}`"), cause };
                    failures.push(Failure { index, change: change.clone(), error });
                }
            }
        }
        failures
    }
}

/// Why a change is not made.
enum Refusal {
    NoLink(LinkName),
    Errno(Errno),
}

fn refused(errno: Errno) -> Refusal {
    Refusal::Errno(errno)
}

impl Machine {
    fn make(&mut self, change: &Change) -> Result<(), Refusal> {
        match change {
            Change::SetSysctl(path, value) => {
                self.sysctl(path).ok_or(refused(Errno::NOENT))?;
                self.state.sysctls.insert(path.clone(), value.clone());
            }
            Change::CreateLink(link) => self.create_link(link)?,
            Change::DeleteLink(name) => self.delete_link(*name),
            Change::SetMtu(name, mtu) => {
                let max = self.max_mtu(*name)?;
                if !(68..=max).contains(mtu) {
                    return Err(refused(Errno::INVAL));
                }
                self.link(*name)?.mtu = *mtu;
            }
            Change::SetMac(name, mac) => {
                let link = self.link(*name)?;
                if mac.0[0] & 1 != 0 || mac.is_zero() {
                    return Err(refused(Errno::ADDRNOTAVAIL));
                }
                link.mac = Some(*mac);
                // Permanent ones, too (`neigh_changeaddr`).
                self.state.neighbors.retain(|(link, _), _| link != name);
            }
            Change::SetUp(name) => self.set_up(*name)?,
            Change::AddAddress(name, net) => {
                self.link(*name)?;
                self.add_address(*name, *net);
            }
            Change::RemoveAddress(name, net) => {
                self.link(*name)?;
                self.remove_address(*name, *net);
            }
            Change::SetNeighbor(name, ip, mac) => {
                self.link(*name)?;
                self.state.neighbors.insert((*name, *ip), *mac);
            }
            Change::RemoveNeighbor(name, ip) => {
                self.link(*name)?;
                self.state.neighbors.remove(&(*name, *ip));
            }
            Change::SetFdb(name, mac, to) => self.set_fdb(*name, *mac, *to)?,
            Change::RemoveFdb(name, mac, to) => {
                self.vxlan_family(*name)?;
                self.state.fdb.remove(&(*name, *mac, *to));
            }
            Change::AddNextHop(id, next_hop) => self.add_next_hop(*id, next_hop)?,
            Change::RemoveNextHop(id) => self.remove_next_hop(*id),
            Change::SetRoute(route) => self.set_route(route)?,
            Change::RemoveRoute(route) => {
                if let Some(link) = route.link() {
                    self.link(link)?;
                }
                let first = self.state.routes.iter().find(|found| is_removed_by(found, route)).copied();
                if let Some(first) = first {
                    self.state.routes.remove(&first);
                }
            }
            Change::SetTable(table) => {
                self.state.tables.insert(table.name.clone(), table.clone());
            }
            Change::DeleteTable(name) => {
                self.state.tables.remove(name);
            }
            Change::AcceptForward(net) => {
                if let Some(accepted) = self.state.accepted_forwards.get_mut(&IpFamily::of(net)) {
                    accepted.insert(*net);
                }
            }
            Change::RetractForward(net) => {
                if let Some(accepted) = self.state.accepted_forwards.get_mut(&IpFamily::of(net)) {
                    accepted.remove(net);
                }
            }
        }
        Ok(())
    }

    /// A setting of a device is there as long as the device.
    fn sysctl(&self, path: &str) -> Option<String> {
        let mut parts = path.split('/');
        let device = match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("net"), Some("ipv4" | "ipv6"), Some("conf"), Some(device), Some(_)) => device,
            _ => return self.state.sysctls.get(path).cloned(),
        };
        let there = device == "all"
            || device == "default"
            || device.parse().is_ok_and(|name| self.state.links.contains_key(&name));
        let default = if path.ends_with("/accept_ra") { "1" } else { "0" };
        there.then(|| self.state.sysctls.get(path).map_or(default, String::as_str).to_owned())
    }

    fn link(&mut self, name: LinkName) -> Result<&mut ObservedLink, Refusal> {
        self.state.links.get_mut(&name).ok_or(Refusal::NoLink(name))
    }

    fn is_up(&self, name: LinkName) -> bool {
        self.state.links.get(&name).is_some_and(|link| link.up)
    }

    fn add_link(&mut self, name: LinkName, mtu: u32, mac: Option<Mac>, kind: ObservedLinkKind) {
        self.last_index += 1;
        let link = ObservedLink { index: self.last_index, mtu, mac, up: true, kind };
        self.state.links.insert(name, link);
    }

    fn create_link(&mut self, link: &Link) -> Result<(), Refusal> {
        let vxlan = match &link.kind {
            LinkKind::Vxlan(vxlan) => vxlan,
            LinkKind::Tun(tun) => return self.create_tun(link, tun),
        };
        let lower = self.link(vxlan.underlay)?.mtu;
        let wanted_port = vxlan.port.unwrap_or(VXLAN_DEFAULT_PORT);
        let is_taken = self.state.links.values().any(|other| match &other.kind {
            ObservedLinkKind::Vxlan { vni, local: Some(local), port, .. } => {
                *vni == vxlan.vni && *port == wanted_port && local.is_ipv4() == vxlan.local.is_ipv4()
            }
            _ => false,
        });
        if is_taken || self.state.links.contains_key(&link.name) {
            return Err(refused(Errno::EXIST));
        }
        let max = lower.saturating_sub(overhead(vxlan.local));
        let kind = ObservedLinkKind::Vxlan {
            vni: vxlan.vni,
            underlay: Some(vxlan.underlay),
            local: Some(vxlan.local),
            port: wanted_port,
            learning: vxlan.learning,
            gbp: vxlan.gbp,
        };
        self.add_link(link.name, link.mtu.min(max), link.mac, kind);
        Ok(())
    }

    fn create_tun(&mut self, link: &Link, tun: &Tun) -> Result<(), Refusal> {
        if self.state.links.contains_key(&link.name) {
            return Err(refused(Errno::EXIST));
        }
        let kind = ObservedLinkKind::Tun { frames: false, multi_queue: tun.multi_queue };
        self.add_link(link.name, link.mtu, None, kind);
        Ok(())
    }

    fn max_mtu(&mut self, name: LinkName) -> Result<u32, Refusal> {
        let max = match self.link(name)?.kind.clone() {
            ObservedLinkKind::Vxlan { underlay: Some(underlay), local: Some(local), .. } => {
                let overhead = overhead(local);
                self.state.links.get(&underlay).map(|lower| lower.mtu.saturating_sub(overhead))
            }
            _ => None,
        };
        Ok(max.unwrap_or(65_535))
    }

    fn delete_link(&mut self, name: LinkName) {
        if self.state.links.remove(&name).is_none() {
            return;
        }
        self.lose_routes_and_neighbors(name);
        self.state.addresses.retain(|(link, _)| *link != name);
        self.state.fdb.retain(|(link, ..)| *link != name);
        let is_its_setting = |path: &str| path.split('/').nth(3) == Some(name.as_str());
        self.state.sysctls.retain(|path, _| !is_its_setting(path));
        // A tunnel goes with the device that carries it.
        let above: Vec<LinkName> = self
            .state
            .links
            .iter()
            .filter(|(_, link)| {
                matches!(link.kind, ObservedLinkKind::Vxlan { underlay, .. } if underlay == Some(name))
            })
            .map(|(name, _)| *name)
            .collect();
        for name in above {
            self.delete_link(name);
        }
    }

    fn set_down(&mut self, name: LinkName) {
        let Some(link) = self.state.links.get_mut(&name).filter(|link| link.up) else { return };
        link.up = false;
        self.lose_routes_and_neighbors(name);
        self.state.addresses.retain(|(link, net)| *link != name || net.addr().is_ipv4());
    }

    fn set_up(&mut self, name: LinkName) -> Result<(), Refusal> {
        let link = self.link(name)?;
        if !link.up {
            link.up = true;
            let addresses = self.state.addresses.iter().filter(|(link, _)| *link == name);
            let routes: Vec<Route> = addresses.filter_map(|(link, net)| connected(*link, *net)).collect();
            self.state.routes.extend(routes);
        }
        Ok(())
    }

    fn lose_routes_and_neighbors(&mut self, name: LinkName) {
        let lost: Vec<u32> = self
            .state
            .next_hops
            .iter()
            .filter(|(_, next_hop)| next_hop.link == name)
            .map(|(id, _)| *id)
            .collect();
        for id in lost {
            self.remove_next_hop(id);
        }
        self.state.routes.retain(|route| route.link() != Some(name));
        self.state.neighbors.retain(|(link, _), _| *link != name);
    }

    fn add_address(&mut self, name: LinkName, net: IpNet) {
        if self.state.addresses.insert((name, net)) && self.is_up(name) {
            self.state.routes.extend(connected(name, net));
        }
    }

    fn remove_address(&mut self, name: LinkName, net: IpNet) {
        if !self.state.addresses.remove(&(name, net)) {
            return;
        }
        let route = connected(name, net);
        self.state.routes.retain(|found| Some(*found) != route);
        let is_ipv4_left =
            self.state.addresses.iter().any(|(link, net)| *link == name && net.addr().is_ipv4());
        if net.addr().is_ipv4() && !is_ipv4_left {
            // With its last address a device loses IPv4 altogether (`fib_disable_ip`).
            let stays = |route: &Route| route.link() != Some(name) || route.destination.addr().is_ipv6();
            self.state.routes.retain(stays);
            self.state.neighbors.retain(|(link, ip), _| *link != name || ip.is_ipv6());
        }
    }

    fn set_fdb(&mut self, name: LinkName, mac: Mac, to: IpAddr) -> Result<(), Refusal> {
        if self.vxlan_family(name)? != to.is_ipv4() {
            return Err(refused(Errno::AFNOSUPPORT));
        }
        // One that is there is kept; else the first of the address's entries is overwritten.
        if !self.state.fdb.contains(&(name, mac, to)) {
            let first =
                self.state.fdb.iter().find(|(link, known, _)| (*link, *known) == (name, mac)).copied();
            if let Some(first) = first {
                self.state.fdb.remove(&first);
            }
            self.state.fdb.insert((name, mac, to));
        }
        Ok(())
    }

    /// Whether a VXLAN device's tunnel is of IPv4.
    fn vxlan_family(&mut self, name: LinkName) -> Result<bool, Refusal> {
        match &self.link(name)?.kind {
            ObservedLinkKind::Vxlan { local, .. } => Ok(local.is_none_or(|local| local.is_ipv4())),
            _ => Err(refused(Errno::OPNOTSUPP)),
        }
    }

    fn add_next_hop(&mut self, id: u32, next_hop: &NextHop) -> Result<(), Refusal> {
        self.link(next_hop.link)?;
        if !self.is_up(next_hop.link) {
            return Err(refused(Errno::NETDOWN));
        }
        self.check_gateway(next_hop)?;
        match self.state.next_hops.get(&id) {
            Some(found) if found != next_hop => return Err(refused(Errno::EXIST)),
            _ => self.state.next_hops.insert(id, *next_hop),
        };
        Ok(())
    }

    fn remove_next_hop(&mut self, id: u32) {
        self.state.next_hops.remove(&id);
        self.state.routes.retain(|route| route.target != Target::NextHopObject(id));
    }

    fn set_route(&mut self, route: &Route) -> Result<(), Refusal> {
        match &route.target {
            Target::Via(next_hop) => self.check_gateway(next_hop)?,
            Target::NextHopObject(id) => {
                let found = self.state.next_hops.get(id).ok_or(refused(Errno::INVAL))?;
                // An IPv4 destination may be behind an IPv6 gateway, but not the other way round.
                if found.gateway.is_ipv4() && route.destination.addr().is_ipv6() {
                    return Err(refused(Errno::INVAL));
                }
            }
            Target::Device(name) => {
                self.link(*name)?;
                if !self.is_up(*name) {
                    return Err(refused(Errno::NETDOWN));
                }
            }
            Target::Blackhole => {}
            Target::Other => return Err(refused(Errno::INVAL)),
        }
        let key = (route.destination, route.metric);
        let first = self.state.routes.iter().find(|found| (found.destination, found.metric) == key).copied();
        if let Some(first) = first {
            self.state.routes.remove(&first);
        }
        self.state.routes.insert(*route);
        Ok(())
    }

    fn check_gateway(&mut self, next_hop: &NextHop) -> Result<(), Refusal> {
        let link = self.link(next_hop.link)?;
        if next_hop.onlink && !link.up {
            return Err(refused(Errno::NETDOWN));
        }
        match next_hop.gateway {
            IpAddr::V4(_) => self.check_ipv4_gateway(next_hop),
            IpAddr::V6(gateway) => self.check_ipv6_gateway(next_hop, gateway.is_unicast_link_local()),
        }
    }

    /// `fib_check_nh_v4_gw`
    fn check_ipv4_gateway(&self, next_hop: &NextHop) -> Result<(), Refusal> {
        if next_hop.onlink {
            let is_own = self.state.addresses.iter().any(|(_, net)| net.addr() == next_hop.gateway);
            return if is_own { Err(refused(Errno::INVAL)) } else { Ok(()) };
        }
        // Of the routes to the gateway only those count that need no gateway themselves.
        let direct = Target::Device(next_hop.link);
        let is_direct = self.towards(next_hop.gateway).any(|route| route.target == direct);
        // Or else an address of the device itself, which outlives the device's being up.
        let is_own = self
            .state
            .addresses
            .iter()
            .any(|(link, net)| *link == next_hop.link && net.addr() == next_hop.gateway);
        match (is_direct, is_own) {
            (true, _) => Ok(()),
            (false, true) if self.is_up(next_hop.link) => Ok(()),
            (false, true) => Err(refused(Errno::NETDOWN)),
            (false, false) => Err(refused(Errno::NETUNREACH)),
        }
    }

    /// `ip6_validate_gw`, `ip6_route_check_nh_onlink`, `ip6_route_check_nh`
    fn check_ipv6_gateway(&self, next_hop: &NextHop, link_local: bool) -> Result<(), Refusal> {
        if self.state.addresses.iter().any(|(_, net)| net.addr() == next_hop.gateway) {
            return Err(refused(Errno::INVAL));
        }
        if !link_local && next_hop.onlink {
            // Whatever route leads to the gateway, but a default one, leads through the same device.
            let length = self.towards(next_hop.gateway).map(|route| route.destination.prefix_len()).max();
            let mut best =
                self.towards(next_hop.gateway).filter(|route| Some(route.destination.prefix_len()) == length);
            let fits = |route: &Route| {
                route.target == Target::Blackhole || self.device_of(route) == Some(next_hop.link)
            };
            if length.is_some_and(|length| length > 0) && !best.any(fits) {
                return Err(refused(Errno::INVAL));
            }
        } else if !link_local {
            // The longest route through the device needs no gateway.
            let through =
                self.towards(next_hop.gateway).filter(|route| self.device_of(route) == Some(next_hop.link));
            let longest = through.max_by_key(|route| route.destination.prefix_len());
            if longest.is_none_or(|route| route.target != Target::Device(next_hop.link)) {
                return Err(refused(Errno::HOSTUNREACH));
            }
        }
        if self.is_up(next_hop.link) { Ok(()) } else { Err(refused(Errno::NETDOWN)) }
    }

    /// The routes that lead to an address.
    fn towards(&self, ip: IpAddr) -> impl Iterator<Item = &Route> {
        self.state.routes.iter().filter(move |route| route.destination.contains(&ip))
    }

    /// The device of a route, also where a next-hop object names it.
    fn device_of(&self, route: &Route) -> Option<LinkName> {
        match route.target {
            Target::NextHopObject(id) => self.state.next_hops.get(&id).map(|found| found.link),
            _ => route.link(),
        }
    }
}

/// Whether asking to remove `asked` removes `found`: the kernel compares what is named only
/// (`fib_nh_match`, `ip6_route_del`), and IPv6 not even the type.
fn is_removed_by(found: &Route, asked: &Route) -> bool {
    let key = |route: &Route| (route.destination, route.metric, route.protocol);
    let is_ipv6 = asked.destination.addr().is_ipv6();
    key(found) == key(asked)
        && match (asked.target, found.target) {
            (Target::Device(link), Target::Via(next_hop)) => link == next_hop.link,
            (Target::Via(asked), Target::Via(found)) => {
                (asked.gateway, asked.link) == (found.gateway, found.link)
            }
            (Target::NextHopObject(asked), Target::NextHopObject(found)) => asked == found,
            (Target::NextHopObject(_), _) => false,
            (_, Target::NextHopObject(_)) => is_ipv6,
            (Target::Blackhole, _) if is_ipv6 => true,
            (asked, found) => asked == found,
        }
}

/// The route that comes with an address on a device that is up.
fn connected(link: LinkName, net: IpNet) -> Option<Route> {
    let metric = match net {
        IpNet::V4(net) if net.prefix_len() == 32 => return None,
        IpNet::V4(_) => 0,
        IpNet::V6(_) => IPV6_CONNECTED_METRIC,
    };
    let target = Target::Device(link);
    Some(Route { destination: net.trunc(), metric, target, protocol: PROTOCOL_KERNEL })
}

/// What a tunnel adds to a packet: Ethernet, VXLAN, UDP and IP headers.
fn overhead(local: IpAddr) -> u32 {
    if local.is_ipv4() { 50 } else { 70 }
}
