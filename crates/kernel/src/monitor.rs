//! [`Monitor`]: hears that something changed in the kernel, whoever changed it.
//!
//! It says what kind of thing changed and nothing more: who wants to know what is there now looks.
//! Our own changes are heard as well; a look finds them as wanted, so they cause no further change.
//!
//! A descriptor of an epoll set stands for both sockets (rtnetlink and netfilter), so that one
//! waits on one thing.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use fabric::link_name::LinkName;
use rustix::event::epoll;
use rustix::io::Errno;

use crate::error::{Doing, KernelError};
use crate::link::{self, Kind, Link};
use crate::netlink::{Answer, NetlinkError, Protocol, Socket, Wait, messages};
use crate::route::{self, Found, FoundTarget};
use crate::{address, neighbor};

// enum rtnetlink_groups
const LINK: u32 = 1;
const NEIGH: u32 = 3;
const IPV4_IFADDR: u32 = 5;
const IPV4_ROUTE: u32 = 7;
const IPV6_IFADDR: u32 = 9;
const IPV6_ROUTE: u32 = 11;
const NEXTHOP: u32 = 32;
const NFTABLES: u32 = 7; // NFNLGRP_NFTABLES

const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;
const PROTOCOL_KERNEL: u8 = 2; // RTPROT_KERNEL

/// What changed since the last time; nothing more than that it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Drained {
    /// Devices.
    pub links: bool,
    /// IP addresses.
    pub addresses: bool,
    /// Routes of the main table.
    pub routes: bool,
    /// Neighbors or forwarding entries.
    pub neighbors: bool,
    /// Forwarding entries were made or changed. The kernel does not say by whom, so it may have been the
    /// one who is left out.
    pub forwarding: bool,
    /// Next-hop objects.
    pub next_hops: bool,
    /// nftables, anybody's.
    pub firewall: bool,
    /// More changed than could be heard: anything may have.
    pub overrun: bool,
    /// Something that is none of the above since it was the doing of the one who is left out.
    pub left_out: bool,
}

impl Drained {
    /// Whether anything changed, but for what is left out.
    pub fn is_anything(&self) -> bool {
        Drained { left_out: false, ..*self } != Drained::default()
    }

    /// Whether something changed that cannot have been the doing of the one who is left out.
    pub fn is_certain(&self) -> bool {
        Drained { forwarding: false, ..*self }.is_anything()
    }

    /// Whether something changed by which an interface and its addresses are chosen.
    pub fn is_addressing(&self) -> bool {
        self.links || self.addresses || self.routes || self.overrun
    }
}

/// Hears changes in the network namespace in which it was opened. Its descriptor is readable when
/// there is something to [`drain`](Monitor::drain).
#[derive(Debug)]
pub struct Monitor {
    epoll: OwnedFd,
    route: Socket,
    /// None where the kernel has no nf_tables.
    netfilter: Option<Socket>,
    watched: Option<BTreeSet<LinkName>>,
    left_out: Option<u32>,
}

impl Monitor {
    /// Begins to listen.
    pub fn open() -> Result<Monitor, KernelError> {
        let mut groups = vec![LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE, NEXTHOP];
        let route = Socket::with_groups(Protocol::Route, &groups).or_else(|_| {
            // Before Linux 5.3 there is no such thing as a next-hop object to be heard of.
            groups.pop();
            Socket::with_groups(Protocol::Route, &groups)
        });
        let route = route.doing(|| "listen to what changes in the kernel".to_owned())?;
        let netfilter = Socket::with_groups(Protocol::Netfilter, &[NFTABLES])
            .inspect_err(|error| tracing::debug!(%error, "changes of nftables cannot be heard"))
            .ok();

        let failed = |errno| KernelError::system("wait for what changes in the kernel", errno);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
        for socket in std::iter::once(&route).chain(&netfilter) {
            epoll::add(&epoll, socket, epoll::EventData::new_u64(0), epoll::EventFlags::IN)
                .map_err(failed)?;
        }
        Ok(Monitor { epoll, route, netfilter, watched: None, left_out: None })
    }

    /// Names the devices that matter. What pods cause as they come and go is left out from then on:
    /// veth devices not named here, neighbors, and what is link-local, on devices not named here.
    pub fn watch(&mut self, links: impl IntoIterator<Item = LinkName>) {
        self.watched = Some(links.into_iter().collect());
    }

    /// Leaves out what the socket of this number ([`Socket::port`]) did to links, addresses, neighbors,
    /// next hops and routes: whoever did it knows.
    pub fn leave_out(&mut self, port: u32) {
        self.left_out = (port != 0).then_some(port);
    }

    /// Takes in everything that was heard so far; never waits.
    pub fn drain(&mut self) -> Drained {
        let mut drained = Drained::default();
        // Numbers of the watched devices as they are now. One that went in between is heard of as a
        // device that went.
        let watched = self.watched.as_ref().map(|names| Watched {
            names,
            indexes: names.iter().filter_map(|name| link::index(&self.route, *name).ok().flatten()).collect(),
        });
        while let Some(received) = next(&mut self.route, &mut drained) {
            for message in messages(self.route.received(received)) {
                if self.left_out == Some(message.port) {
                    drained.left_out = true;
                } else {
                    note(&mut drained, watched.as_ref(), message.kind, message.payload);
                }
            }
        }
        if let Some(netfilter) = &mut self.netfilter {
            while next(netfilter, &mut drained).is_some() {
                drained.firewall = true;
            }
        }
        drained
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

/// Receives the next datagram; none if there is no more for now.
fn next(socket: &mut Socket, drained: &mut Drained) -> Option<usize> {
    loop {
        match socket.receive(Wait::No) {
            Ok(received) => return Some(received),
            Err(NetlinkError::Socket { errno: Errno::AGAIN, .. }) => return None,
            Err(NetlinkError::Socket { errno: Errno::NOBUFS | Errno::MSGSIZE, .. }) => drained.overrun = true,
            Err(error) => {
                tracing::warn!(%error, "cannot hear what changes in the kernel");
                drained.overrun = true;
                return None;
            }
        }
    }
}

/// The devices that matter.
struct Watched<'a> {
    names: &'a BTreeSet<LinkName>,
    indexes: BTreeSet<u32>,
}

/// Takes note of one message.
fn note(drained: &mut Drained, watched: Option<&Watched<'_>>, kind: u16, payload: &[u8]) {
    let matters = |link: u32| watched.is_none_or(|watched| watched.indexes.contains(&link));
    // The decoders read what is there; what is gone looks the same but for the message's type.
    let as_new = |kind| Answer { kind, payload };
    match kind {
        libc::RTM_NEWLINK | libc::RTM_DELLINK => {
            let of_a_bridge = payload.first() == Some(&(libc::AF_BRIDGE as u8));
            drained.links |= !of_a_bridge
                && match link::decode(as_new(libc::RTM_NEWLINK)) {
                    Ok(Some(link)) => is_of_interest(&link, watched),
                    Ok(None) => false,
                    Err(_) => true,
                };
        }
        libc::RTM_NEWADDR | libc::RTM_DELADDR => {
            drained.addresses |= match address::decode(as_new(libc::RTM_NEWADDR)) {
                Ok(Some(found)) => found.scope != address::SCOPE_LINK || matters(found.link),
                Ok(None) => false,
                Err(_) => true,
            };
        }
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE => {
            drained.routes |= match route::decode(as_new(libc::RTM_NEWROUTE)) {
                Ok(Some(found)) => !is_link_local(&found) || link_of(&found).is_none_or(matters),
                Ok(None) => false,
                Err(_) => true,
            };
        }
        libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => {
            let matters = match neighbor::fields(as_new(libc::RTM_NEWNEIGH)) {
                Ok(Some(found)) => matters(found.link),
                Ok(None) => false,
                Err(_) => true,
            };
            // `vxlan_fdb_notify` names nobody. An entry that went did not go by an answer to a lease.
            let made = kind == libc::RTM_NEWNEIGH && payload.first() == Some(&(libc::AF_BRIDGE as u8));
            drained.forwarding |= matters && made;
            drained.neighbors |= matters && !made;
        }
        RTM_NEWNEXTHOP | RTM_DELNEXTHOP => drained.next_hops = true,
        _ => {}
    }
}

/// Whether a device may matter: a veth that is not watched is a pod's.
fn is_of_interest(link: &Link, watched: Option<&Watched<'_>>) -> bool {
    let is_veth = matches!(&link.kind, Kind::Other(kind) if kind == "veth");
    !is_veth || watched.is_none_or(|watched| watched.names.contains(&link.name))
}

/// Whether it is a route that the kernel makes for the link-local addresses of every device.
fn is_link_local(found: &Found) -> bool {
    found.protocol == PROTOCOL_KERNEL
        && matches!(found.destination, ipnet::IpNet::V6(net) if net.addr().is_unicast_link_local())
}

fn link_of(found: &Found) -> Option<u32> {
    match found.target {
        FoundTarget::Via { link, .. } | FoundTarget::Device(link) => Some(link),
        FoundTarget::NextHopObject(_) | FoundTarget::Blackhole | FoundTarget::Other => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_message_makes_it_panic(kind in 0u16..120, payload in proptest::collection::vec(any::<u8>(), 0..120)) {
            let names = BTreeSet::new();
            let watched = Watched { names: &names, indexes: BTreeSet::new() };
            note(&mut Drained::default(), Some(&watched), kind, &payload);
            note(&mut Drained::default(), None, kind, &payload);
            let answer = Answer { kind, payload: &payload };
            let _ = (crate::fdb::decode(answer), crate::nexthop::decode(answer));
        }
    }
}
