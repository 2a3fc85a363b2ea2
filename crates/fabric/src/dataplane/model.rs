//! A kernel for tests, as a value: it applies changes as strictly as Linux does, and with the same
//! consequences for what hangs together. What it knows was seen on Linux 6.18:
//!
//! * a route or next-hop object needs its device up and its gateway on the device, or `onlink`;
//! * IPv6 refuses an onlink gateway that another device's route leads to;
//! * a next-hop object must be there before a route uses it, and takes its routes with it;
//! * a device that goes down loses its routes, next hops, neighbors and IPv6 addresses;
//! * a device that is deleted loses everything;
//! * a new Ethernet address costs a device all its neighbors, permanent ones too;
//! * a VXLAN device's MTU is cut to what its lower device carries when made, and refused when set.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    Change, Dataplane, IpFamily, Link, LinkKind, NextHop, Observed, ObservedLink, ObservedLinkKind, Route,
    Target,
};
use crate::fixture;
use crate::link_name::LinkName;

/// The state is what an observer would see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Model {
    pub(crate) state: Observed,
    next_index: u32,
}

pub(crate) fn name(text: &str) -> LinkName {
    text.parse().unwrap()
}

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

impl Model {
    /// A host with `eth0` as in [`fixture::intent`], and with things of others.
    pub(crate) fn new() -> Model {
        let mut model = Model { state: Observed::default(), next_index: 1 };
        let external = fixture::external(1);
        for foreign in ["eth0", "docker0", "vxlan.calico"] {
            model.add_link(name(foreign), 1500, ObservedLinkKind::Other("veth".to_owned()));
        }
        let addresses = [
            ("eth0", IpNet::new(external.ipv4.unwrap().into(), 24).unwrap()),
            ("eth0", IpNet::new(external.ipv6.unwrap().into(), 64).unwrap()),
            ("docker0", net("172.17.0.1/16")),
        ];
        for (link, address) in addresses {
            model.state.addresses.insert((name(link), address));
            let metric = if address.addr().is_ipv4() { 0 } else { 256 };
            model.insert(address.trunc(), metric, Target::Device(name(link)), 2);
        }
        let via = |gateway: &str, link: &str| {
            Target::Via(NextHop { gateway: gateway.parse().unwrap(), link: name(link), onlink: false })
        };
        model.insert(net("0.0.0.0/0"), 0, via("192.168.0.254", "eth0"), 16);
        model.insert(net("::/0"), 1024, via("fd09::fe", "eth0"), 3);
        model.insert(net("10.9.0.0/24"), 0, via("192.168.0.77", "eth0"), 3);
        model.insert(net("10.244.1.0/24"), 0, Target::Device(name("docker0")), 2);
        model
    }

    pub(crate) fn insert(&mut self, destination: IpNet, metric: u32, target: Target, protocol: u8) {
        self.state.routes.insert(Route { destination, metric, target, protocol });
    }

    pub(crate) fn add_link(&mut self, name: LinkName, mtu: u32, kind: ObservedLinkKind) {
        let link = ObservedLink { index: self.next_index, mtu, mac: None, up: true, kind };
        self.next_index += 1;
        self.state.links.insert(name, link);
    }

    /// Applies all changes, of which none may fail.
    pub(crate) fn apply_all(&mut self, changes: &[Change]) {
        for change in changes {
            if let Err(error) = self.apply(change) {
                let texts: Vec<String> = changes.iter().map(Change::to_string).collect();
                panic!("{change}: {error}\nin\n{}\nat {:#?}", texts.join("\n"), self.state);
            }
        }
    }

    pub(crate) fn apply(&mut self, change: &Change) -> Result<(), &'static str> {
        match change {
            Change::SetSysctl(path, value) => {
                let file = self.state.sysctls.get_mut(path).ok_or("ENOENT")?;
                file.clone_from(value);
                Ok(())
            }
            Change::CreateLink(link) => self.create_link(link),
            Change::DeleteLink(name) => {
                self.state.links.remove(name).ok_or("ENODEV")?;
                self.state.addresses.retain(|(link, _)| link != name);
                self.state.fdb.retain(|(link, ..)| link != name);
                let directory = format!("/{name}/");
                self.state.sysctls.retain(|path, _| !path.contains(&directory));
                self.flush(name);
                Ok(())
            }
            Change::SetMtu(name, mtu) => {
                let most = self.most_mtu(name)?;
                let link = self.state.links.get_mut(name).ok_or("ENODEV")?;
                if *mtu > most {
                    return Err("EINVAL: more than the lower device carries");
                }
                link.mtu = *mtu;
                Ok(())
            }
            Change::SetMac(name, mac) => {
                self.state.links.get_mut(name).ok_or("ENODEV")?.mac = Some(*mac);
                self.state.neighbors.retain(|(link, _), _| link != name);
                Ok(())
            }
            Change::SetUp(name) => {
                self.state.links.get_mut(name).ok_or("ENODEV")?.up = true;
                Ok(())
            }
            Change::AddAddress(name, address) => {
                self.state.links.get(name).ok_or("ENODEV")?;
                unique(self.state.addresses.insert((*name, *address)))
            }
            Change::RemoveAddress(name, address) => present(self.state.addresses.remove(&(*name, *address))),
            Change::SetNeighbor(name, ip, mac) => {
                self.up(name)?;
                self.state.neighbors.insert((*name, *ip), *mac);
                Ok(())
            }
            Change::RemoveNeighbor(name, ip) => present(self.state.neighbors.remove(&(*name, *ip)).is_some()),
            Change::SetFdb(name, mac, to) => {
                match self.state.links.get(name).ok_or("ENODEV")?.kind {
                    ObservedLinkKind::Vxlan { .. } => {}
                    _ => return Err("EOPNOTSUPP"),
                }
                // Replaces one destination of the address (`vxlan_fdb_replace`), unless it has this one.
                let others = || self.state.fdb.iter().filter(|(on, of, _)| (on, of) == (name, mac));
                if !others().any(|(.., is)| is == to) {
                    let replaced = others().next().copied();
                    replaced.map(|entry| self.state.fdb.remove(&entry));
                    self.state.fdb.insert((*name, *mac, *to));
                }
                Ok(())
            }
            Change::RemoveFdb(name, mac, to) => present(self.state.fdb.remove(&(*name, *mac, *to))),
            Change::AddNextHop(id, next_hop) => {
                self.reachable(next_hop)?;
                unique(self.state.next_hops.insert(*id, *next_hop).is_none())
            }
            Change::RemoveNextHop(id) => {
                self.state.next_hops.remove(id).ok_or("ENOENT")?;
                self.state.routes.retain(|route| route.target != Target::NextHopObject(*id));
                Ok(())
            }
            Change::SetRoute(route) => self.set_route(route),
            Change::RemoveRoute(route) => present(self.state.routes.remove(route)),
            Change::SetTable(table) => {
                self.state.tables.insert(table.name.clone(), table.clone());
                Ok(())
            }
            Change::DeleteTable(name) => present(self.state.tables.remove(name).is_some()),
            Change::AcceptForward(net) => {
                unique(self.state.accepted_forwards.get_mut(&IpFamily::of(net)).ok_or("ENOENT")?.insert(*net))
            }
            Change::RetractForward(net) => {
                present(self.state.accepted_forwards.get_mut(&IpFamily::of(net)).ok_or("ENOENT")?.remove(net))
            }
        }
    }

    /// What happens to a device's objects when it goes down; also part of its deletion.
    pub(crate) fn flush(&mut self, name: &LinkName) {
        self.state.neighbors.retain(|(link, _), _| link != name);
        self.state.addresses.retain(|(link, net)| link != name || net.addr().is_ipv4());
        let lost: Vec<u32> =
            self.state.next_hops.iter().filter(|(_, hop)| hop.link == *name).map(|(id, _)| *id).collect();
        for id in lost {
            self.apply(&Change::RemoveNextHop(id)).unwrap();
        }
        self.state.routes.retain(|route| route.link() != Some(*name));
    }

    pub(crate) fn set_down(&mut self, name: &LinkName) {
        if let Some(link) = self.state.links.get_mut(name) {
            link.up = false;
            self.flush(name);
        }
    }

    fn create_link(&mut self, link: &Link) -> Result<(), &'static str> {
        let Link { name, kind, mtu, mac } = link;
        if self.state.links.contains_key(name) {
            return Err("EEXIST");
        }
        self.state.sysctls.insert(format!("net/ipv6/conf/{name}/accept_ra"), "1".to_owned());
        let vxlan = match kind {
            LinkKind::Vxlan(vxlan) => vxlan,
            LinkKind::Tun(tun) => {
                let kind = ObservedLinkKind::Tun { frames: false, multi_queue: tun.multi_queue };
                self.add_link(*name, *mtu, kind);
                return Ok(());
            }
        };
        let lower = self.state.links.get(&vxlan.underlay).ok_or("ENODEV")?;
        let most = lower.mtu - if vxlan.local.is_ipv4() { 50 } else { 70 };
        let kind = ObservedLinkKind::Vxlan {
            vni: vxlan.vni,
            underlay: Some(vxlan.underlay),
            local: Some(vxlan.local),
            port: vxlan.port.unwrap_or(8472),
            learning: vxlan.learning,
            gbp: vxlan.gbp,
        };
        self.add_link(*name, (*mtu).min(most), kind);
        self.state.links.get_mut(name).unwrap().mac = *mac;
        Ok(())
    }

    fn most_mtu(&self, name: &LinkName) -> Result<u32, &'static str> {
        Ok(match &self.state.links.get(name).ok_or("ENODEV")?.kind {
            ObservedLinkKind::Vxlan { underlay: Some(lower), local, .. } => {
                let overhead = if local.is_some_and(|ip| ip.is_ipv6()) { 70 } else { 50 };
                self.state.links.get(lower).map_or(65535, |lower| lower.mtu - overhead)
            }
            _ => 65535,
        })
    }

    fn up(&self, name: &LinkName) -> Result<(), &'static str> {
        if self.state.links.get(name).ok_or("ENODEV")?.up { Ok(()) } else { Err("ENETDOWN") }
    }

    fn reachable(&self, hop: &NextHop) -> Result<(), &'static str> {
        self.up(&hop.link)?;
        let other_device = hop.gateway.is_ipv6()
            && self.lookup(hop.gateway).is_some_and(|route| {
                route.destination.prefix_len() > 0 && route.link().is_some_and(|link| link != hop.link)
            });
        let on_link =
            self.state.addresses.iter().any(|(link, net)| *link == hop.link && net.contains(&hop.gateway));
        match (hop.onlink, other_device, on_link) {
            (true, true, _) => Err("EINVAL: invalid gateway or device mismatch"),
            (true, false, _) | (false, _, true) => Ok(()),
            (false, _, false) => Err("ENETUNREACH"),
        }
    }

    fn lookup(&self, to: IpAddr) -> Option<&Route> {
        let fits = self.state.routes.iter().filter(|route| route.destination.contains(&to));
        fits.max_by_key(|route| (route.destination.prefix_len(), std::cmp::Reverse(route.metric)))
    }

    fn set_route(&mut self, route: &Route) -> Result<(), &'static str> {
        match route.target {
            Target::Via(hop) => self.reachable(&hop)?,
            Target::NextHopObject(id) => {
                self.state.next_hops.get(&id).ok_or("EINVAL: next hop id does not exist")?;
            }
            Target::Device(link) => self.up(&link)?,
            Target::Blackhole => {}
            Target::Other => return Err("EINVAL"),
        }
        let key = |route: &Route| (route.destination, route.metric);
        let standing = self.state.routes.iter().find(|is| key(is) == key(route)).copied();
        if let Some(standing) = standing {
            self.state.routes.remove(&standing);
        }
        self.state.routes.insert(*route);
        Ok(())
    }

    /// Where the state falls short of a plan; empty if it holds all of it.
    pub(crate) fn missing(&self, plan: &Dataplane) -> Vec<String> {
        let state = &self.state;
        let mut missing = Vec::new();
        for route in &plan.routes {
            if !state.routes.contains(route) {
                missing.push(format!("route {route}"));
            }
        }
        for ((link, ip), mac) in &plan.neighbors {
            if state.neighbors.get(&(*link, *ip)) != Some(mac) {
                missing.push(format!("neighbor {ip} {mac}"));
            }
        }
        for ((link, mac), to) in &plan.fdb {
            if !state.fdb.contains(&(*link, *mac, *to)) {
                missing.push(format!("fdb {mac} {to}"));
            }
        }
        for (id, hop) in &plan.next_hops {
            if state.next_hops.get(id) != Some(hop) {
                missing.push(format!("nexthop {id} {hop}"));
            }
        }
        for address in &plan.addresses {
            if !state.addresses.contains(address) {
                missing.push(format!("address {} {}", address.0, address.1));
            }
        }
        for (path, value) in &plan.sysctls {
            if state.sysctls.get(path) != Some(value) {
                missing.push(format!("sysctl {path}"));
            }
        }
        for name in plan.links.keys() {
            if !state.links.get(name).is_some_and(|link| link.up) {
                missing.push(format!("link {name}"));
            }
        }
        for (name, table) in &plan.tables {
            if state.tables.get(name) != Some(table) {
                missing.push(format!("table {name}"));
            }
        }
        missing
    }
}

fn unique(is: bool) -> Result<(), &'static str> {
    if is { Ok(()) } else { Err("EEXIST") }
}

fn present(is: bool) -> Result<(), &'static str> {
    if is { Ok(()) } else { Err("ENOENT") }
}
