//! Routes of any table with all that the kernel says about them, to be moved from table to table.
//!
//! A route is kept as the kernel sent it, so that nothing of it is lost on the way: metrics, several
//! paths, next-hop objects, encapsulation.
//!
//! Source: `net/ipv4/fib_frontend.c`, `net/ipv6/route.c`, `include/uapi/linux/rtnetlink.h`.

use std::net::IpAddr;

use ipnet::IpNet;
use rustix::io::Errno;

use crate::error::{Doing, KernelError};
use crate::netlink::{Answer, CREATE, Encoder, NetlinkError, REPLACE, Socket, attributes, read_ip, read_u32};

/// `RTPROT_KERNEL`: the route came with an address.
pub const MADE_BY_KERNEL: u8 = libc::RTPROT_KERNEL;

const HEADER_LEN: usize = 12; // struct rtmsg
const ONLINK: u32 = 4; // RTNH_F_ONLINK
const RTA_CACHEINFO: u16 = 12;
const TABLE_AT: usize = 4;

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The destination; a default route has length zero.
    pub destination: IpNet,
    /// The gateway, if there is one and only one.
    pub gateway: Option<IpAddr>,
    /// The address that packets leave with, if it is given.
    pub source: Option<IpAddr>,
    /// The device's number, if there is one and only one.
    pub link: Option<u32>,
    /// The table.
    pub table: u32,
    /// How far the destination is (`RT_SCOPE_*`).
    pub scope: u8,
    /// Who made it (`RTPROT_*`).
    pub protocol: u8,
    message: Vec<u8>,
}

/// The routes of all tables and both families, without the kernel's cached ones.
pub fn list(socket: &mut Socket) -> Result<Vec<Entry>, KernelError> {
    let mut entries: Vec<Entry> = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let found = socket.dump(
            libc::RTM_GETROUTE,
            |body| body.put(&[family as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            |entries: &mut Vec<Entry>, answer| {
                // A kernel without one family answers with the other.
                if answer.payload.first() == Some(&(family as u8)) {
                    entries.extend(decode(answer)?);
                }
                Ok(())
            },
        );
        match found {
            Ok(found) => entries.extend(found),
            Err(error)
                if matches!(error.errno(), Some(Errno::OPNOTSUPP | Errno::NOENT | Errno::AFNOSUPPORT)) => {}
            Err(error) => return Err(error).doing(|| "list routes".to_owned()),
        }
    }
    Ok(entries)
}

/// Puts a copy of a route into a table, in place of one with the same key.
pub fn copy(socket: &mut Socket, entry: &Entry, table: u32) -> Result<(), KernelError> {
    socket
        .request(libc::RTM_NEWROUTE, CREATE | REPLACE, |body| encode(body, entry, table))
        .doing(|| format!("copy the route to {} to table {table}", entry.destination))
}

/// Takes a route away. That it is not there is no error.
pub fn remove(socket: &mut Socket, entry: &Entry) -> Result<(), KernelError> {
    match socket.request(libc::RTM_DELROUTE, 0, |body| encode(body, entry, entry.table)) {
        Err(error) if error.errno() == Some(Errno::SRCH) => Ok(()),
        other => {
            other.doing(|| format!("remove the route to {} from table {}", entry.destination, entry.table))
        }
    }
}

fn encode(body: &mut Encoder, entry: &Entry, table: u32) {
    let mut header: Vec<u8> = entry.message.iter().copied().take(HEADER_LEN).collect();
    header[TABLE_AT] = u8::try_from(table).unwrap_or(libc::RT_TABLE_UNSPEC);
    // What the kernel says of its own (that the device is down, for example) it does not take back.
    let flags = read_u32(&header, 8).unwrap_or(0) & ONLINK;
    header[8..].copy_from_slice(&flags.to_ne_bytes());
    body.put(&header);
    body.u32(libc::RTA_TABLE, table);
    let rest = attributes(&entry.message[HEADER_LEN..]);
    for (kind, value) in rest.filter(|(kind, _)| !matches!(*kind, libc::RTA_TABLE | RTA_CACHEINFO)) {
        body.attribute(kind, value);
    }
}

fn decode(answer: Answer<'_>) -> Result<Option<Entry>, NetlinkError> {
    if answer.kind != libc::RTM_NEWROUTE {
        return Ok(None);
    }
    let short = NetlinkError::Malformed("a route message is too short");
    let payload = answer.payload;
    let &[family, prefix_len, _, _, short_table, protocol, scope, ..] = payload else { return Err(short) };
    let (Some(flags), Some(rest)) = (read_u32(payload, 8), payload.get(HEADER_LEN..)) else {
        return Err(short);
    };
    if flags & libc::RTM_F_CLONED != 0 {
        return Ok(None);
    }
    let (mut table, mut destination) = (u32::from(short_table), None);
    let (mut gateway, mut source, mut link) = (None, None, None);
    for (kind, value) in attributes(rest) {
        match kind {
            libc::RTA_TABLE => table = read_u32(value, 0).unwrap_or(table),
            libc::RTA_DST => destination = read_ip(value),
            libc::RTA_GATEWAY => gateway = read_ip(value),
            libc::RTA_PREFSRC => source = read_ip(value),
            libc::RTA_OIF => link = read_u32(value, 0),
            _ => {}
        }
    }
    let destination = destination.unwrap_or(match i32::from(family) {
        libc::AF_INET => IpAddr::from([0; 4]),
        _ => IpAddr::from([0; 16]),
    });
    let Ok(destination) = IpNet::new(destination, prefix_len) else {
        return Err(NetlinkError::Malformed("a route has an impossible prefix length"));
    };
    Ok(Some(Entry { destination, gateway, source, link, table, scope, protocol, message: payload.to_vec() }))
}
