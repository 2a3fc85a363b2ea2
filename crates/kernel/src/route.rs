//! Routes, IPv4 and IPv6.
//!
//! Source: `net/ipv4/fib_frontend.c`, `net/ipv4/fib_semantics.c` (`fib_nh_match`),
//! `net/ipv6/route.c`, `include/uapi/linux/rtnetlink.h`.

use std::net::IpAddr;

use fabric::dataplane::{IPV6_DEFAULT_METRIC, MAIN_TABLE, Target};
use fabric::ownership::ROUTE_PROTOCOL_BOOT;
use ipnet::IpNet;
use rustix::io::Errno;

use crate::address::family;
use crate::error::{Doing, KernelError};
use crate::netlink::{
    Answer, Batch, CREATE, EXCL, Encoder, NetlinkError, REPLACE, Socket, attributes, read_ip, read_u8,
    read_u16, read_u32,
};

const UNICAST: u8 = libc::RTN_UNICAST;
const BLACKHOLE: u8 = libc::RTN_BLACKHOLE;
const SCOPE_NOWHERE: u8 = libc::RT_SCOPE_NOWHERE;
const ONLINK: u32 = 4; // RTNH_F_ONLINK
const CLONED: u32 = libc::RTM_F_CLONED;
const RTA_NH_ID: u16 = 30;
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;

/// A route with its device by number, and everything that plugins may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The destination; a default route has length zero.
    pub destination: IpNet,
    /// The gateway, if packets do not go to the destination itself.
    pub gateway: Option<IpAddr>,
    /// The device's number.
    pub link: Option<u32>,
    /// Whether the gateway counts as on the link although no address of the link says so.
    pub onlink: bool,
    /// The address that packets leave with, if the choice is not the kernel's.
    pub source: Option<IpAddr>,
    /// The routing table.
    pub table: u32,
    /// How far the destination is (`RT_SCOPE_*`), IPv4 only; none leaves it to whether there is a
    /// gateway.
    pub scope: Option<u8>,
    /// The metric; none for the family's default.
    pub metric: Option<u32>,
    /// Who made it (`RTPROT_*`).
    pub protocol: u8,
    /// The path MTU in bytes.
    pub mtu: Option<u32>,
    /// The TCP segment size announced.
    pub advertised_mss: Option<u32>,
}

impl Route {
    /// A route of the main table, made by hand (`RTPROT_BOOT`) as CNI plugins do.
    pub fn new(destination: IpNet, gateway: Option<IpAddr>, link: u32) -> Route {
        Route {
            destination,
            gateway,
            link: Some(link),
            onlink: false,
            source: None,
            table: MAIN_TABLE,
            scope: None,
            metric: None,
            protocol: ROUTE_PROTOCOL_BOOT,
            mtu: None,
            advertised_mss: None,
        }
    }
}

/// Adds a route. Refused with EEXIST where one with the same key exists.
pub fn add(socket: &mut Socket, route: &Route) -> Result<(), KernelError> {
    socket
        .request(libc::RTM_NEWROUTE, CREATE | EXCL, |body| encode(body, route))
        .doing(|| format!("add a route to {}", described(route)))
}

/// Adds a route, replacing one with the same key.
pub fn replace(socket: &mut Socket, route: &Route) -> Result<(), KernelError> {
    socket
        .request(libc::RTM_NEWROUTE, CREATE | REPLACE, |body| encode(body, route))
        .doing(|| format!("set a route to {}", described(route)))
}

/// Removes a route. That it is not there is no error.
pub fn remove(socket: &mut Socket, route: &Route) -> Result<(), KernelError> {
    let removed = socket.request(libc::RTM_DELROUTE, 0, |body| {
        let any_scope = Route { scope: route.scope.or(Some(SCOPE_NOWHERE)), ..route.clone() };
        encode(body, &any_scope);
    });
    match removed {
        Err(error) if error.errno() == Some(Errno::SRCH) => Ok(()),
        other => other.doing(|| format!("remove the route to {}", described(route))),
    }
}

fn described(route: &Route) -> String {
    let mut text = route.destination.to_string();
    if let Some(gateway) = route.gateway {
        text += &format!(" via {gateway}");
    }
    if let Some(link) = route.link {
        text += &format!(" through device number {link}");
    }
    text
}

pub(crate) fn encode(body: &mut Encoder, route: &Route) {
    let scope = route.scope.unwrap_or(match (route.destination, route.gateway) {
        (IpNet::V4(_), None) => libc::RT_SCOPE_LINK,
        _ => libc::RT_SCOPE_UNIVERSE,
    });
    let flags = if route.onlink { ONLINK } else { 0 };
    header(body, &route.destination, route.table, (route.protocol, scope, UNICAST, flags));
    if let Some(gateway) = route.gateway {
        gateway_attribute(body, &route.destination, gateway);
    }
    let numbers = [(libc::RTA_OIF, route.link), (libc::RTA_PRIORITY, route.metric)];
    for (kind, number) in numbers {
        if let Some(number) = number {
            body.u32(kind, number);
        }
    }
    if let Some(source) = route.source {
        body.ip(libc::RTA_PREFSRC, source);
    }
    if route.mtu.is_some() || route.advertised_mss.is_some() {
        body.nest(libc::RTA_METRICS, |body| {
            for (kind, number) in [(RTAX_MTU, route.mtu), (RTAX_ADVMSS, route.advertised_mss)] {
                if let Some(number) = number {
                    body.u32(kind, number);
                }
            }
        });
    }
}

/// A message that adds or replaces a route of a plan; `link` is the number of its device.
pub(crate) fn push_set(batch: &mut Batch, route: &fabric::dataplane::Route, link: Option<u32>) {
    batch.push(libc::RTM_NEWROUTE, CREATE | REPLACE, |body| {
        let scope = match (route.destination, route.target) {
            (IpNet::V4(_), Target::Device(_)) => libc::RT_SCOPE_LINK,
            _ => libc::RT_SCOPE_UNIVERSE,
        };
        encode_planned(body, route, link, scope);
    });
}

/// A message that removes exactly this route. All that is known of it is named: a route of somebody
/// else with the same destination is not the kernel's second choice.
pub(crate) fn push_remove(batch: &mut Batch, route: &fabric::dataplane::Route, link: Option<u32>) {
    batch.push(libc::RTM_DELROUTE, 0, |body| encode_planned(body, route, link, SCOPE_NOWHERE));
}

fn encode_planned(body: &mut Encoder, route: &fabric::dataplane::Route, link: Option<u32>, scope: u8) {
    let (kind, flags) = match route.target {
        Target::Blackhole => (BLACKHOLE, 0),
        Target::Via(next_hop) if next_hop.onlink => (UNICAST, ONLINK),
        Target::Via(_) | Target::Device(_) | Target::NextHopObject(_) => (UNICAST, 0),
        Target::Other => (libc::RTN_UNSPEC, 0),
    };
    header(body, &route.destination, MAIN_TABLE, (route.protocol, scope, kind, flags));
    match route.target {
        Target::Via(next_hop) => gateway_attribute(body, &route.destination, next_hop.gateway),
        Target::NextHopObject(id) => body.u32(RTA_NH_ID, id),
        Target::Device(_) | Target::Blackhole | Target::Other => {}
    }
    if let Some(link) = link {
        body.u32(libc::RTA_OIF, link);
    }
    if route.metric != 0 {
        body.u32(libc::RTA_PRIORITY, route.metric);
    }
}

fn gateway_attribute(body: &mut Encoder, destination: &IpNet, gateway: IpAddr) {
    if destination.addr().is_ipv4() == gateway.is_ipv4() {
        body.ip(libc::RTA_GATEWAY, gateway);
    } else {
        // struct rtvia: an IPv4 destination behind an IPv6 gateway.
        let IpAddr::V6(ip) = gateway else { return };
        let mut via = [0; 18];
        via[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
        via[2..].copy_from_slice(&ip.octets());
        body.attribute(libc::RTA_VIA, &via);
    }
}

/// `struct rtmsg` and the two attributes that every route has.
fn header(
    body: &mut Encoder,
    destination: &IpNet,
    table: u32,
    (protocol, scope, kind, flags): (u8, u8, u8, u32),
) {
    let short_table = u8::try_from(table).unwrap_or(libc::RT_TABLE_UNSPEC);
    let destination_len = destination.prefix_len();
    body.put(&[family(destination.addr()), destination_len, 0, 0, short_table, protocol, scope, kind]);
    body.put(&flags.to_ne_bytes());
    if destination_len > 0 {
        body.ip(libc::RTA_DST, destination.network());
    }
    if u32::from(short_table) != table {
        body.u32(libc::RTA_TABLE, table);
    }
}

/// A route of the main table as the kernel describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The destination.
    pub destination: IpNet,
    /// The metric.
    pub metric: u32,
    /// Who made it.
    pub protocol: u8,
    /// Where packets go.
    pub target: FoundTarget,
}

/// Where the packets of an existing route go, the device by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FoundTarget {
    /// To a gateway through a device.
    Via {
        /// The gateway.
        gateway: IpAddr,
        /// The device's number.
        link: u32,
        /// Whether the gateway counts as on the link.
        onlink: bool,
    },
    /// To a next-hop object.
    NextHopObject(u32),
    /// To the destination itself through a device.
    Device(u32),
    /// Nowhere.
    Blackhole,
    /// To something else.
    Other,
}

/// The unicast, blackhole and such routes of the main table, of both families. The kernel's cached,
/// local, broadcast and multicast routes are left out.
pub fn list(socket: &mut Socket) -> Result<Vec<Found>, KernelError> {
    dump(socket, decode)
}

/// A default route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultRoute {
    /// `0.0.0.0/0` or `::/0`.
    pub destination: IpNet,
    /// The metric.
    pub metric: u32,
    /// The numbers of the devices that it leads through, one for each next hop; none if it leads
    /// nowhere.
    pub links: Vec<u32>,
}

/// The default routes of the main table, of both families.
pub fn default_routes(socket: &mut Socket) -> Result<Vec<DefaultRoute>, KernelError> {
    let mut routes = dump(socket, |answer| {
        let Some(found) = decode(answer)?.filter(|found| found.destination.prefix_len() == 0) else {
            return Ok(None);
        };
        let links = match found.target {
            FoundTarget::Blackhole => Vec::new(),
            _ => way_out(answer.payload.get(12..).unwrap_or_default()),
        };
        Ok(Some((found, links)))
    })?;
    for (found, links) in &mut routes {
        // Unless net.ipv4.nexthop_compat_mode is off, the kernel says it with the route.
        if let (FoundTarget::NextHopObject(id), true) = (found.target, links.is_empty()) {
            links.extend(crate::nexthop::by_id(socket, id)?.map(|object| object.link));
        }
    }
    let route = |(found, links): (Found, _)| DefaultRoute {
        destination: found.destination,
        metric: found.metric,
        links,
    };
    Ok(routes.into_iter().map(route).collect())
}

/// The devices among the attributes of a route: `RTA_OIF`, or those of each `struct rtnexthop`.
fn way_out(route: &[u8]) -> Vec<u32> {
    let mut links = Vec::new();
    for (attribute, value) in attributes(route) {
        match attribute {
            libc::RTA_OIF => links.extend(read_u32(value, 0)),
            libc::RTA_MULTIPATH => {
                let mut hops = value;
                while let (Some(len), Some(link)) = (read_u16(hops, 0), read_u32(hops, 4)) {
                    links.push(link);
                    // Aligned to four bytes; a length of nothing would never end.
                    let next = usize::from(len).next_multiple_of(4).max(8);
                    hops = hops.get(next..).unwrap_or_default();
                }
            }
            _ => {}
        }
    }
    links
}

/// Reads the routes of the main table, of both families.
fn dump<T>(
    socket: &mut Socket,
    read: impl Fn(Answer<'_>) -> Result<Option<T>, NetlinkError>,
) -> Result<Vec<T>, KernelError> {
    let mut routes = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let found = socket.dump(
            libc::RTM_GETROUTE,
            |body| {
                body.put(&[family as u8, 0, 0, 0, MAIN_TABLE as u8, 0, 0, 0, 0, 0, 0, 0]);
                body.u32(libc::RTA_TABLE, MAIN_TABLE);
            },
            |routes: &mut Vec<T>, answer| {
                // A kernel without one family answers with the other.
                if answer.payload.first() == Some(&(family as u8)) {
                    routes.extend(read(answer)?);
                }
                Ok(())
            },
        );
        match found {
            Ok(found) => routes.extend(found),
            // A kernel without IPv6 has no routes of it, and a namespace in which nothing happened yet
            // has no main table.
            Err(error) if matches!(error.errno(), Some(Errno::OPNOTSUPP | Errno::NOENT)) => {}
            Err(error) => return Err(error).doing(|| "list routes".to_owned()),
        }
    }
    Ok(routes)
}

/// Reads an `RTM_NEWROUTE`; none for other messages and for routes that are left out.
pub(crate) fn decode(answer: Answer<'_>) -> Result<Option<Found>, NetlinkError> {
    if answer.kind != libc::RTM_NEWROUTE {
        return Ok(None);
    }
    let short = NetlinkError::Malformed("a route message is too short");
    let payload = answer.payload;
    let &[family, prefix_len, _, _, short_table, protocol, _, kind, ..] = payload else {
        return Err(short);
    };
    let (flags, rest) = match (read_u32(payload, 8), payload.get(12..)) {
        (Some(flags), Some(rest)) => (flags, rest),
        _ => return Err(short),
    };
    let (mut table, mut destination, mut metric) = (u32::from(short_table), None, 0);
    let (mut gateway, mut link, mut object, mut several) = (None, None, None, false);
    for (attribute, value) in attributes(rest) {
        match attribute {
            libc::RTA_TABLE => table = read_u32(value, 0).unwrap_or(table),
            libc::RTA_DST => destination = read_ip(value),
            libc::RTA_PRIORITY => metric = read_u32(value, 0).unwrap_or(0),
            libc::RTA_GATEWAY => gateway = read_ip(value),
            libc::RTA_VIA if read_u16(value, 0) == Some(libc::AF_INET6 as u16) => {
                gateway = value.get(2..).and_then(read_ip);
            }
            libc::RTA_OIF => link = read_u32(value, 0),
            RTA_NH_ID => object = read_u32(value, 0),
            libc::RTA_MULTIPATH => several = true,
            _ => {}
        }
    }
    let of_the_kernels_own =
        matches!(kind, libc::RTN_LOCAL | libc::RTN_BROADCAST | libc::RTN_ANYCAST | libc::RTN_MULTICAST);
    if table != MAIN_TABLE || flags & CLONED != 0 || of_the_kernels_own {
        return Ok(None);
    }
    let destination = destination.unwrap_or(match i32::from(family) {
        libc::AF_INET => IpAddr::from([0; 4]),
        libc::AF_INET6 => IpAddr::from([0; 16]),
        _ => return Ok(None),
    });
    let Ok(destination) = IpNet::new(destination, prefix_len) else {
        return Err(NetlinkError::Malformed("a route has an impossible prefix length"));
    };
    let target = match (kind, object, several, gateway, link) {
        (BLACKHOLE, ..) => FoundTarget::Blackhole,
        (UNICAST, Some(id), ..) => FoundTarget::NextHopObject(id),
        (UNICAST, None, false, Some(gateway), Some(link)) => {
            FoundTarget::Via { gateway, link, onlink: flags & ONLINK != 0 }
        }
        (UNICAST, None, false, None, Some(link)) => FoundTarget::Device(link),
        _ => FoundTarget::Other,
    };
    Ok(Some(Found { destination, metric, protocol, target }))
}

/// The device and the source address that the kernel would reach an address by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lookup {
    /// The device's number.
    pub link: u32,
    /// The gateway, if there is one on the way.
    pub gateway: Option<IpAddr>,
    /// The source address.
    pub source: Option<IpAddr>,
}

/// Asks the kernel how it would reach an address, as `ip route get` does.
pub fn lookup(socket: &mut Socket, to: IpAddr) -> Result<Lookup, KernelError> {
    let doing = || format!("look up the route to {to}");
    let take = |found: &mut Option<Lookup>, answer: Answer<'_>| {
        let (mut link, mut gateway, mut source) = (None, None, None);
        for (kind, value) in attributes(answer.payload.get(12..).unwrap_or_default()) {
            match kind {
                libc::RTA_OIF => link = read_u32(value, 0),
                libc::RTA_GATEWAY => gateway = read_ip(value),
                libc::RTA_PREFSRC => source = read_ip(value),
                _ => {}
            }
        }
        let unicast = read_u8(answer.payload, 7) == Some(UNICAST);
        *found = link.filter(|_| unicast).map(|link| Lookup { link, gateway, source });
        Ok(())
    };
    let length = if to.is_ipv4() { 32 } else { 128 };
    socket
        .ask(
            libc::RTM_GETROUTE,
            0,
            |body| {
                body.put(&[family(to), length, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
                body.ip(libc::RTA_DST, to);
            },
            take,
        )
        .doing(doing)?
        .ok_or_else(|| KernelError::Other { doing: doing(), why: "it is an address of this host".to_owned() })
}

const _: () = assert!(IPV6_DEFAULT_METRIC == 1024, "the metric of IPv6 routes is always named");
