//! VXLAN forwarding entries: the node behind an Ethernet address. Only permanent ones with a
//! destination; learned ones are the kernel's.
//!
//! Source: `drivers/net/vxlan/vxlan_core.c` (`vxlan_fdb_add`, `vxlan_fdb_dump`), `net/core/rtnetlink.c`
//! (`rtnl_fdb_dump`).

use std::net::IpAddr;

use fabric::mac::Mac;

use crate::error::{Doing, KernelError};
use crate::neighbor::{NDA_IFINDEX, PERMANENT, fields, header};
use crate::netlink::{Answer, Batch, CREATE, NetlinkError, REPLACE, Socket};

const BRIDGE: u8 = libc::AF_BRIDGE as u8;
/// The entry is the device's own, not one of a bridge that the device is on.
const NTF_SELF: u8 = 0x02;

/// A permanent forwarding entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The device's number.
    pub link: u32,
    /// The Ethernet address.
    pub mac: Mac,
    /// Where frames to it are sent.
    pub destination: IpAddr,
}

/// The permanent entries of a VXLAN device that have a destination.
pub fn list(socket: &mut Socket, link: u32) -> Result<Vec<Entry>, KernelError> {
    socket
        .dump(
            libc::RTM_GETNEIGH,
            |body| {
                header(body, BRIDGE, 0, 0, 0);
                body.u32(NDA_IFINDEX, link);
            },
            |entries: &mut Vec<Entry>, answer| {
                entries.extend(decode(answer)?.into_iter().filter(|found| found.link == link));
                Ok(())
            },
        )
        .doing(|| format!("list the forwarding entries of device number {link}"))
}

pub(crate) fn push_set(batch: &mut Batch, link: u32, mac: Mac, destination: IpAddr) {
    batch.push(libc::RTM_NEWNEIGH, CREATE | REPLACE, |body| {
        header(body, BRIDGE, link, PERMANENT, NTF_SELF);
        body.ip(libc::NDA_DST, destination);
        body.attribute(libc::NDA_LLADDR, &mac.0);
    });
}

pub(crate) fn push_remove(batch: &mut Batch, link: u32, mac: Mac, destination: IpAddr) {
    batch.push(libc::RTM_DELNEIGH, 0, |body| {
        header(body, BRIDGE, link, 0, NTF_SELF);
        body.ip(libc::NDA_DST, destination);
        body.attribute(libc::NDA_LLADDR, &mac.0);
    });
}

/// Reads a permanent forwarding entry with a destination; none for everything else.
pub(crate) fn decode(answer: Answer<'_>) -> Result<Option<Entry>, NetlinkError> {
    let Some(fields) = fields(answer)? else { return Ok(None) };
    if fields.family != BRIDGE || fields.state & PERMANENT == 0 {
        return Ok(None);
    }
    let mac = fields.link_address.and_then(|bytes| bytes.try_into().ok()).map(Mac);
    Ok(mac.zip(fields.ip).map(|(mac, destination)| Entry { link: fields.link, mac, destination }))
}
