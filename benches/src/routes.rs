//! [`RouteWatch`]: when the kernel has which route, told by the kernel itself.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lab::Namespace;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, sockopt};

/// `RTMGRP_IPV4_ROUTE`
const GROUP: u32 = 0x40;
const RTM_NEWROUTE: u16 = 24;
/// Lengths of `struct nlmsghdr` and `struct rtmsg`.
const HEADERS: usize = 16 + 12;
const RTA_DST: u16 = 1;
/// Where `rtm_table` is.
const TABLE: usize = 16 + 4;
/// `RT_TABLE_LOCAL`: the node's own addresses.
const LOCAL: u8 = 255;

/// A subscription to the IPv4 routes of a namespace.
#[derive(Debug)]
pub struct RouteWatch {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl RouteWatch {
    /// Subscribes.
    pub fn new(namespace: &Namespace) -> Result<RouteWatch> {
        let socket = namespace.within(subscribe)?.context("subscribing to routes")?;
        Ok(RouteWatch { socket, buffer: vec![0; 1 << 20] })
    }

    /// Forgets what has been told so far.
    pub fn forget(&mut self) -> Result<()> {
        while self.receive(Duration::ZERO)?.is_some() {}
        Ok(())
    }

    /// Waits until routes to this many subnets of `10.0.0.0/8` were made, and returns when the last was.
    pub fn count(&mut self, wanted: usize, patience: Duration) -> Result<Instant> {
        let mut seen = std::collections::HashSet::new();
        self.until(&format!("{wanted} routes"), patience, |destination| {
            if destination.octets()[0] == 10 {
                seen.insert(destination);
            }
            seen.len() >= wanted
        })
    }

    /// Waits until the route to this subnet was made, and returns when.
    pub fn one(&mut self, wanted: Ipv4Addr, patience: Duration) -> Result<Instant> {
        self.until(&format!("the route to {wanted}"), patience, |destination| destination == wanted)
    }

    fn until(
        &mut self,
        what: &str,
        patience: Duration,
        mut done: impl FnMut(Ipv4Addr) -> bool,
    ) -> Result<Instant> {
        let end = Instant::now() + patience;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let Some((at, made)) = self.receive(left)? else {
                bail!("waited {patience:?} in vain for {what}")
            };
            if made.into_iter().any(&mut done) {
                return Ok(at);
            }
        }
    }

    /// The destinations that the next datagram tells of; none if nothing comes in time.
    fn receive(&mut self, patience: Duration) -> Result<Option<(Instant, Vec<Ipv4Addr>)>> {
        let timeout = Timespec::try_from(patience)?;
        match rustix::event::poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Ok(None),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let (length, _) = rustix::net::recv(&self.socket, &mut self.buffer[..], RecvFlags::DONTWAIT)
            .context("the kernel told of more routes than the receive buffer holds")?;
        Ok(Some((Instant::now(), destinations(&self.buffer[..length]))))
    }
}

fn subscribe() -> io::Result<OwnedFd> {
    // Without a protocol a netlink socket is one of NETLINK_ROUTE, which is number 0.
    let socket =
        rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    // Ten thousand notifications of one routing table, each in a buffer of its own.
    sockopt::set_socket_recv_buffer_size_force(&socket, 64 << 20)?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, GROUP))?;
    Ok(socket)
}

/// The destinations of the `RTM_NEWROUTE` messages in a datagram.
fn destinations(mut datagram: &[u8]) -> Vec<Ipv4Addr> {
    let mut found = Vec::new();
    while let Some(length) = u32_at(datagram, 0).map(|length| length as usize)
        && (HEADERS..=datagram.len()).contains(&length)
    {
        if u16_at(datagram, 4) == Some(RTM_NEWROUTE) && datagram[TABLE] != LOCAL {
            found.extend(destination(&datagram[HEADERS..length]));
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn destination(mut attributes: &[u8]) -> Option<Ipv4Addr> {
    loop {
        let length = usize::from(u16_at(attributes, 0)?);
        if u16_at(attributes, 2)? == RTA_DST {
            let octets: [u8; 4] = attributes.get(4..8)?.try_into().ok()?;
            return Some(Ipv4Addr::from(octets));
        }
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
