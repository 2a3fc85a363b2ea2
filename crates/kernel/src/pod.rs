//! The inside of a pod: addresses and routes of its device in one request.

use ipnet::IpNet;

use crate::link;
use crate::netlink::{Batch, CREATE, EXCL, NetlinkError, Socket};
use crate::route::{self, Route};

/// Whether other hosts are asked first if they have an IPv6 address (RFC 4862, section 5.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DuplicateDetection {
    /// The address is usable at once.
    Off,
    /// The address is tentative until nobody has answered for it.
    On,
}

/// What of [`configure`] was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// An address, by its place in the list.
    Address(usize, NetlinkError),
    /// Setting the device up.
    Up(NetlinkError),
    /// A route, by its place in the list.
    Route(usize, NetlinkError),
}

/// Gives a device its addresses, sets it up and adds the routes, in this order and in one system call.
///
/// An address that is there already is refused. A second route to the same destination is added to the
/// first (for IPv6 as one more path of it).
pub fn configure(
    socket: &mut Socket,
    index: u32,
    addresses: &[IpNet],
    detection: DuplicateDetection,
    routes: &[Route],
) -> Result<(), Refused> {
    let mut batch = Batch::default();
    for net in addresses {
        batch.push(libc::RTM_NEWADDR, CREATE | EXCL, |body| {
            let ipv6 = net.addr().is_ipv6();
            let family = if ipv6 { libc::AF_INET6 } else { libc::AF_INET };
            let flags = if ipv6 && detection == DuplicateDetection::Off { libc::IFA_F_NODAD } else { 0 };
            body.put(&[family as u8, net.prefix_len(), flags as u8, crate::address::SCOPE_GLOBAL]);
            body.put(&index.to_ne_bytes());
            body.ip(libc::IFA_LOCAL, net.addr());
            body.ip(libc::IFA_ADDRESS, net.addr());
            if let IpNet::V4(net) = net
                && net.prefix_len() < 31
            {
                body.ip(libc::IFA_BROADCAST, net.broadcast().into());
            }
        });
    }
    link::push_change(&mut batch, index, link::UP, |_| ());
    for wanted in routes {
        batch.push(libc::RTM_NEWROUTE, CREATE, |body| route::encode(body, wanted));
    }
    // The kernel goes on after a refusal, and what follows fails because of it: the first is the cause.
    let first = socket.batch(&mut batch).into_iter().min_by_key(|(place, _)| *place);
    match first {
        None => Ok(()),
        Some((place, error)) if place < addresses.len() => Err(Refused::Address(place, error)),
        Some((place, error)) if place == addresses.len() => Err(Refused::Up(error)),
        Some((place, error)) => Err(Refused::Route(place - addresses.len() - 1, error)),
    }
}
