//! Pairs of connected devices.
//!
//! Source: `drivers/net/veth.c`.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use fabric::link_name::LinkName;
use fabric::mac::Mac;

use super::{UP, create, header, link_info};
use crate::error::KernelError;
use crate::netlink::{Encoder, Socket};

const VETH_INFO_PEER: u16 = 1;

/// A pair of connected devices, one here, the other in another namespace.
#[derive(Debug, Clone, Copy)]
pub struct Veth<'a> {
    /// The end in the socket's namespace.
    pub name: LinkName,
    /// The Ethernet address of this end; the kernel picks one if none.
    pub mac: Option<Mac>,
    /// The MTU of both ends; the kernel's default if none.
    pub mtu: Option<u32>,
    /// The bridge that this end is put on.
    pub master: Option<u32>,
    /// The name of the other end.
    pub peer_name: LinkName,
    /// The Ethernet address of the other end; the kernel picks one if none.
    pub peer_mac: Option<Mac>,
    /// The namespace of the other end.
    pub peer_namespace: BorrowedFd<'a>,
}

/// Makes both ends of a veth pair in one step, each in its own namespace. This end is up after; the
/// other one the kernel only lets be set up once the pair is connected, in its own namespace.
///
/// Refused with EEXIST where either name is taken.
pub fn create_veth(socket: &mut Socket, veth: &Veth<'_>) -> Result<(), KernelError> {
    let doing = || format!("create veth {} with peer {}", veth.name, veth.peer_name);
    create(socket, doing, |body| {
        header(body, 0, UP, UP);
        veth_end(body, veth.name, veth.mac, veth.mtu);
        // Compatibility: the reference bridge plugin leaves the host's end without a queue.
        body.u32(libc::IFLA_TXQLEN, 0);
        if let Some(master) = veth.master {
            body.u32(libc::IFLA_MASTER, master);
        }
        link_info(body, "veth", |body| {
            body.nest(VETH_INFO_PEER, |body| {
                header(body, 0, 0, 0);
                veth_end(body, veth.peer_name, veth.peer_mac, veth.mtu);
                body.u32(libc::IFLA_NET_NS_FD, veth.peer_namespace.as_fd().as_raw_fd() as u32);
            });
        });
    })
}

fn veth_end(body: &mut Encoder, name: LinkName, mac: Option<Mac>, mtu: Option<u32>) {
    body.text(libc::IFLA_IFNAME, name.as_str());
    if let Some(mac) = mac {
        body.attribute(libc::IFLA_ADDRESS, &mac.0);
    }
    if let Some(mtu) = mtu {
        body.u32(libc::IFLA_MTU, mtu);
    }
}
