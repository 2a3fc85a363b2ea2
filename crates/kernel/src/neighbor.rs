//! Neighbor entries: the Ethernet address of an IP address on a link. Only permanent ones, which
//! nobody but a program writes and which the kernel never ages (`gc_thresh` does not count them).
//!
//! Source: `net/core/neighbour.c`, `include/uapi/linux/neighbour.h`.

use std::net::IpAddr;

use fabric::mac::Mac;

use crate::address::family;
use crate::error::{Doing, KernelError};
use crate::netlink::{
    Answer, Batch, CREATE, Encoder, NetlinkError, REPLACE, Socket, attributes, read_ip, read_u16, read_u32,
};

pub(crate) const PERMANENT: u16 = libc::NUD_PERMANENT;
pub(crate) const NDA_IFINDEX: u16 = 8;

/// A permanent neighbor entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbor {
    /// The device's number.
    pub link: u32,
    /// The IP address.
    pub ip: IpAddr,
    /// The Ethernet address.
    pub mac: Mac,
}

/// The permanent entries of a device, both families.
pub fn list(socket: &mut Socket, link: u32) -> Result<Vec<Neighbor>, KernelError> {
    socket
        .dump(
            libc::RTM_GETNEIGH,
            |body| {
                header(body, libc::AF_UNSPEC as u8, 0, 0, 0);
                body.u32(NDA_IFINDEX, link);
            },
            |neighbors: &mut Vec<Neighbor>, answer| {
                // Kernels before 4.20 may not filter by device.
                neighbors.extend(decode(answer)?.into_iter().filter(|found| found.link == link));
                Ok(())
            },
        )
        .doing(|| format!("list the neighbors on device number {link}"))
}

pub(crate) fn push_set(batch: &mut Batch, link: u32, ip: IpAddr, mac: Mac) {
    batch.push(libc::RTM_NEWNEIGH, CREATE | REPLACE, |body| {
        header(body, family(ip), link, PERMANENT, 0);
        body.ip(libc::NDA_DST, ip);
        body.attribute(libc::NDA_LLADDR, &mac.0);
    });
}

pub(crate) fn push_remove(batch: &mut Batch, link: u32, ip: IpAddr) {
    batch.push(libc::RTM_DELNEIGH, 0, |body| {
        header(body, family(ip), link, 0, 0);
        body.ip(libc::NDA_DST, ip);
    });
}

/// `struct ndmsg`
pub(crate) fn header(body: &mut Encoder, family: u8, link: u32, state: u16, flags: u8) {
    body.put(&[family, 0, 0, 0]);
    body.put(&link.to_ne_bytes());
    body.put(&state.to_ne_bytes());
    body.put(&[flags, 0]);
}

/// What a neighbor or FDB message says; attributes not yet looked at.
pub(crate) struct Fields<'a> {
    pub(crate) family: u8,
    pub(crate) link: u32,
    pub(crate) state: u16,
    pub(crate) ip: Option<IpAddr>,
    pub(crate) link_address: Option<&'a [u8]>,
}

/// Reads an `RTM_NEWNEIGH` of either kind; none for other messages.
pub(crate) fn fields(answer: Answer<'_>) -> Result<Option<Fields<'_>>, NetlinkError> {
    if answer.kind != libc::RTM_NEWNEIGH {
        return Ok(None);
    }
    let short = NetlinkError::Malformed("a neighbor message is too short");
    let payload = answer.payload;
    let (Some(family), Some(link), Some(state)) =
        (payload.first().copied(), read_u32(payload, 4), read_u16(payload, 8))
    else {
        return Err(short);
    };
    let mut fields = Fields { family, link, state, ip: None, link_address: None };
    for (kind, value) in attributes(payload.get(12..).ok_or(short)?) {
        match kind {
            libc::NDA_DST => fields.ip = read_ip(value),
            libc::NDA_LLADDR => fields.link_address = Some(value),
            _ => {}
        }
    }
    Ok(Some(fields))
}

/// Reads a permanent neighbor entry; none for everything else.
pub(crate) fn decode(answer: Answer<'_>) -> Result<Option<Neighbor>, NetlinkError> {
    let Some(fields) = fields(answer)? else { return Ok(None) };
    let ip_family = matches!(i32::from(fields.family), libc::AF_INET | libc::AF_INET6);
    if !ip_family || fields.state & PERMANENT == 0 {
        return Ok(None);
    }
    let mac = fields.link_address.and_then(|bytes| bytes.try_into().ok()).map(Mac);
    Ok(fields.ip.zip(mac).map(|(ip, mac)| Neighbor { link: fields.link, ip, mac }))
}
