//! IP addresses on devices.
//!
//! Source: `net/ipv4/devinet.c`, `net/ipv6/addrconf.c`, `include/uapi/linux/if_addr.h`.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use rustix::io::Errno;

use crate::error::{Doing, KernelError};
use crate::netlink::{
    Answer, Batch, CREATE, EXCL, Encoder, NetlinkError, Socket, attributes, read_ip, read_u8, read_u32,
};

/// `RT_SCOPE_UNIVERSE`: valid everywhere.
pub const SCOPE_GLOBAL: u8 = 0;
/// `RT_SCOPE_LINK`: valid on the link only.
pub const SCOPE_LINK: u8 = 253;
/// `RT_SCOPE_HOST`: valid inside this host only.
pub const SCOPE_HOST: u8 = 254;

/// An address on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The device's number.
    pub link: u32,
    /// The address with the prefix length of its network, host bits kept.
    pub net: IpNet,
    /// Where it is valid (`RT_SCOPE_*`).
    pub scope: u8,
    /// `IFA_F_*` bits.
    pub flags: u32,
}

impl Address {
    /// Whether it is still being checked for duplicates, and cannot be used yet.
    pub fn is_tentative(&self) -> bool {
        self.flags & libc::IFA_F_TENTATIVE != 0
    }

    /// Whether another host was found to have it, so that it cannot be used.
    pub fn is_duplicate(&self) -> bool {
        self.flags & libc::IFA_F_DADFAILED != 0
    }

    /// Whether it is about to go: it stays for connections that there are.
    pub fn is_deprecated(&self) -> bool {
        self.flags & libc::IFA_F_DEPRECATED != 0
    }

    /// Whether it has no end.
    pub fn is_permanent(&self) -> bool {
        self.flags & libc::IFA_F_PERMANENT != 0
    }

    /// Whether it was made up for privacy (RFC 8981) and will go again.
    pub fn is_temporary(&self) -> bool {
        self.net.addr().is_ipv6() && self.flags & libc::IFA_F_TEMPORARY != 0
    }
}

/// The addresses of one device, or of all, both families.
pub fn list(socket: &mut Socket, link: Option<u32>) -> Result<Vec<Address>, KernelError> {
    socket
        .dump(
            libc::RTM_GETADDR,
            |body| header(body, libc::AF_UNSPEC as u8, 0, 0, link.unwrap_or(0)),
            |addresses: &mut Vec<Address>, answer| {
                // Kernels before 4.20 do not filter by device.
                addresses.extend(
                    decode(answer)?.into_iter().filter(|found| link.is_none_or(|link| link == found.link)),
                );
                Ok(())
            },
        )
        .doing(|| "list addresses".to_owned())
}

/// Adds an address to a device. That it is there already is no error.
///
/// An IPv6 address is usable at once: no other host is asked whether it has it (`nodad`).
pub fn add(socket: &mut Socket, link: u32, net: IpNet) -> Result<(), KernelError> {
    let mut batch = Batch::default();
    push_add(&mut batch, link, net);
    done(socket, &mut batch, Errno::EXIST, || format!("add address {net} to device number {link}"))
}

/// Takes an address off a device. That it is not there is no error.
pub fn remove(socket: &mut Socket, link: u32, net: IpNet) -> Result<(), KernelError> {
    let mut batch = Batch::default();
    push_remove(&mut batch, link, net);
    let doing = || format!("remove address {net} from device number {link}");
    done(socket, &mut batch, Errno::ADDRNOTAVAIL, doing)
}

fn done(
    socket: &mut Socket,
    batch: &mut Batch,
    is_fine: Errno,
    doing: impl FnOnce() -> String,
) -> Result<(), KernelError> {
    match socket.batch(batch).pop() {
        Some((_, error)) if error.errno() != Some(is_fine) => Err(error).doing(doing),
        _ => Ok(()),
    }
}

pub(crate) fn push_add(batch: &mut Batch, link: u32, net: IpNet) {
    batch.push(libc::RTM_NEWADDR, CREATE | EXCL, |body| {
        header(body, family(net.addr()), net.prefix_len(), libc::IFA_F_NODAD as u8, link);
        body.ip(libc::IFA_LOCAL, net.addr());
        body.ip(libc::IFA_ADDRESS, net.addr());
        if let Some(broadcast) = broadcast(net) {
            body.ip(libc::IFA_BROADCAST, IpAddr::V4(broadcast));
        }
    });
}

pub(crate) fn push_remove(batch: &mut Batch, link: u32, net: IpNet) {
    batch.push(libc::RTM_DELADDR, 0, |body| {
        header(body, family(net.addr()), net.prefix_len(), 0, link);
        body.ip(libc::IFA_LOCAL, net.addr());
        body.ip(libc::IFA_ADDRESS, net.addr());
    });
}

/// Compatibility: the original and its plugins set the broadcast address of IPv4 networks that have
/// one.
fn broadcast(net: IpNet) -> Option<Ipv4Addr> {
    match net {
        IpNet::V4(net) if net.prefix_len() < 31 => Some(net.broadcast()),
        _ => None,
    }
}

/// `struct ifaddrmsg`
fn header(body: &mut Encoder, family: u8, prefix_len: u8, flags: u8, link: u32) {
    // NODAD is known to IPv6 alone.
    let flags = if family == libc::AF_INET6 as u8 { flags } else { 0 };
    body.put(&[family, prefix_len, flags, SCOPE_GLOBAL]);
    body.put(&link.to_ne_bytes());
}

pub(crate) fn family(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

/// Reads an `RTM_NEWADDR`; none for other messages and families.
pub(crate) fn decode(answer: Answer<'_>) -> Result<Option<Address>, NetlinkError> {
    if answer.kind != libc::RTM_NEWADDR {
        return Ok(None);
    }
    let short = NetlinkError::Malformed("an address message is too short");
    let payload = answer.payload;
    let (Some(prefix_len), Some(flags), Some(scope), Some(link)) =
        (read_u8(payload, 1), read_u8(payload, 2), read_u8(payload, 3), read_u32(payload, 4))
    else {
        return Err(short);
    };
    let (mut flags, mut local, mut address) = (u32::from(flags), None, None);
    for (kind, value) in attributes(payload.get(8..).ok_or(short)?) {
        match kind {
            libc::IFA_LOCAL => local = read_ip(value),
            libc::IFA_ADDRESS => address = read_ip(value),
            libc::IFA_FLAGS => flags = read_u32(value, 0).unwrap_or(flags),
            _ => {}
        }
    }
    // On a point-to-point link IFA_ADDRESS is the other side's.
    let net = local.or(address).and_then(|ip| IpNet::new(ip, prefix_len).ok());
    Ok(net.map(|net| Address { link, net, scope, flags }))
}
