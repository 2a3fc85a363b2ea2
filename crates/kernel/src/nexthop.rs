//! Next-hop objects (Linux 5.3): gateways that routes name by number.
//!
//! Why: the kernel's hash of plain IPv4 next hops does not mix in the gateway, so that adding N
//! routes with N gateways through one device costs O(N²); objects are found by their number.
//! One that is in use is never replaced: that costs O(routes).
//!
//! Source: `net/ipv4/nexthop.c`, `include/uapi/linux/nexthop.h`.

use std::net::IpAddr;

use fabric::ownership::ROUTE_PROTOCOL;
use rustix::io::Errno;

use crate::address::family;
use crate::error::{Doing, KernelError};
use crate::netlink::{
    Answer, Batch, CREATE, EXCL, Encoder, NetlinkError, Socket, attributes, read_ip, read_u8, read_u32,
};

const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;
const RTM_GETNEXTHOP: u16 = 106;
const NHA_ID: u16 = 1;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
const ONLINK: u32 = 4; // RTNH_F_ONLINK

/// A next-hop object with a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextHop {
    /// Its number.
    pub id: u32,
    /// Who made it (`RTPROT_*`).
    pub protocol: u8,
    /// The gateway.
    pub gateway: IpAddr,
    /// The device's number.
    pub link: u32,
    /// Whether the gateway counts as on the link although no address of the link says so.
    pub onlink: bool,
}

/// The next-hop objects of flannel's protocol; none on a kernel that has no such objects.
pub fn list(socket: &mut Socket) -> Result<Vec<NextHop>, KernelError> {
    let found = socket.dump(
        RTM_GETNEXTHOP,
        |body| header(body, 0, 0, 0),
        |objects: &mut Vec<NextHop>, answer| {
            objects.extend(decode(answer)?.into_iter().filter(|found| found.protocol == ROUTE_PROTOCOL));
            Ok(())
        },
    );
    match found {
        Err(error) if error.errno() == Some(Errno::OPNOTSUPP) => Ok(Vec::new()),
        other => other.doing(|| "list next-hop objects".to_owned()),
    }
}

/// Whether the kernel has next-hop objects.
pub fn supported(socket: &mut Socket) -> Result<bool, KernelError> {
    // Asking for an object that is not there: ENOENT where there could be one.
    match ask(socket, u32::MAX) {
        Ok(_) => Ok(true),
        Err(error) if error.errno() == Some(Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(error).doing(|| "ask for next-hop objects".to_owned()),
    }
}

/// The object of that number, whoever made it.
pub fn by_id(socket: &mut Socket, id: u32) -> Result<Option<NextHop>, KernelError> {
    ask(socket, id).doing(|| format!("look up next hop {id}"))
}

fn ask(socket: &mut Socket, id: u32) -> Result<Option<NextHop>, NetlinkError> {
    let body = |body: &mut Encoder| {
        header(body, 0, 0, 0);
        body.u32(NHA_ID, id);
    };
    let asked = socket.ask(RTM_GETNEXTHOP, 0, body, |found: &mut Option<NextHop>, answer| {
        *found = decode(answer)?;
        Ok(())
    });
    match asked {
        Err(error) if error.errno() == Some(Errno::NOENT) => Ok(None),
        other => other,
    }
}

pub(crate) fn push_add(batch: &mut Batch, id: u32, next_hop: &fabric::dataplane::NextHop, link: u32) {
    batch.push(RTM_NEWNEXTHOP, CREATE | EXCL, |body| {
        let flags = if next_hop.onlink { ONLINK } else { 0 };
        header(body, family(next_hop.gateway), ROUTE_PROTOCOL, flags);
        body.u32(NHA_ID, id);
        body.u32(NHA_OIF, link);
        body.ip(NHA_GATEWAY, next_hop.gateway);
    });
}

pub(crate) fn push_remove(batch: &mut Batch, id: u32) {
    batch.push(RTM_DELNEXTHOP, 0, |body| {
        header(body, 0, 0, 0);
        body.u32(NHA_ID, id);
    });
}

/// `struct nhmsg`
fn header(body: &mut Encoder, family: u8, protocol: u8, flags: u32) {
    body.put(&[family, 0, protocol, 0]);
    body.put(&flags.to_ne_bytes());
}

/// Reads an `RTM_NEWNEXTHOP`; none for other messages and for objects without gateway or device.
pub(crate) fn decode(answer: Answer<'_>) -> Result<Option<NextHop>, NetlinkError> {
    if answer.kind != RTM_NEWNEXTHOP {
        return Ok(None);
    }
    let short = NetlinkError::Malformed("a next-hop message is too short");
    let payload = answer.payload;
    let (Some(protocol), Some(flags)) = (read_u8(payload, 2), read_u32(payload, 4)) else {
        return Err(short);
    };
    let (mut id, mut gateway, mut link) = (None, None, None);
    for (kind, value) in attributes(payload.get(8..).ok_or(short)?) {
        match kind {
            NHA_ID => id = read_u32(value, 0),
            NHA_OIF => link = read_u32(value, 0),
            NHA_GATEWAY => gateway = read_ip(value),
            _ => {}
        }
    }
    let (Some(id), Some(gateway), Some(link)) = (id, gateway, link) else { return Ok(None) };
    Ok(Some(NextHop { id, protocol, gateway, link, onlink: flags & ONLINK != 0 }))
}
