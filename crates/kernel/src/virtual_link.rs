//! Devices that are software: macvlan, ipvlan, VLAN, dummy, VRF, IFB.
//!
//! Source: `net/core/rtnetlink.c` (`rtnl_newlink`), `drivers/net/macvlan.c`,
//! `drivers/net/ipvlan/ipvlan_main.c`, `net/8021q/vlan_netlink.c`, `drivers/net/vrf.c`,
//! `include/uapi/linux/if_link.h`, `include/uapi/linux/net_namespace.h`.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use fabric::link_name::LinkName;
use fabric::mac::Mac;
use rustix::io::Errno;

use crate::error::{Doing, KernelError};
use crate::link::{create as create_link, header, link_info};
use crate::netlink::{
    Answer, Encoder, NetlinkError, Socket, attributes, read_i32, read_text, read_u16, read_u32,
};

const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_MACVLAN_MODE: u16 = 1;
const IFLA_MACVLAN_BC_QUEUE_LEN: u16 = 7;
const IFLA_IPVLAN_MODE: u16 = 1;
const IFLA_VLAN_ID: u16 = 1;
const IFLA_VRF_TABLE: u16 = 1;
const RTM_NEWNSID: u16 = 88;
const RTM_GETNSID: u16 = 90;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;

/// A device to be made in the socket's namespace.
#[derive(Debug, Clone, Copy)]
pub struct VirtualLink<'a> {
    /// Its name.
    pub name: LinkName,
    /// What it is.
    pub kind: VirtualKind,
    /// The device below it.
    pub lower: Option<Lower<'a>>,
    /// Its MTU; the kernel's choice if none.
    pub mtu: Option<u32>,
    /// Its Ethernet address; the kernel's choice if none.
    pub mac: Option<Mac>,
}

/// The device that another one stands on.
#[derive(Debug, Clone, Copy)]
pub struct Lower<'a> {
    /// Its number in its own namespace.
    pub index: u32,
    /// Its namespace, if that is not the socket's.
    pub namespace: Option<BorrowedFd<'a>>,
}

/// A kind with what makes it one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VirtualKind {
    /// A further Ethernet address on the device below.
    Macvlan {
        /// How it reaches its siblings.
        mode: MacvlanMode,
        /// How many broadcast frames may wait; the kernel's default if none. Not read back.
        broadcast_queue: Option<u32>,
    },
    /// Further IP addresses on the device below, behind its Ethernet address.
    Ipvlan(IpvlanMode),
    /// The frames of the device below that carry this tag.
    Vlan(u16),
    /// A device that drops whatever is sent.
    Dummy,
    /// A routing domain: its ports look up routes in this table.
    Vrf(u32),
    /// A device that hands back what is sent to it, through its own queue.
    Ifb,
}

/// `MACVLAN_MODE_*`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MacvlanMode {
    /// It does not reach its siblings.
    Private,
    /// Through the switch outside.
    Vepa,
    /// Directly.
    Bridge,
    /// It has none: it takes the whole device.
    Passthru,
}

/// `IPVLAN_MODE_*`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpvlanMode {
    /// It switches.
    L2,
    /// It routes.
    L3,
    /// It routes, and the host's firewall sees it.
    L3s,
}

impl VirtualKind {
    /// The kernel's name for the kind.
    pub fn name(&self) -> &'static str {
        match self {
            VirtualKind::Macvlan { .. } => "macvlan",
            VirtualKind::Ipvlan(_) => "ipvlan",
            VirtualKind::Vlan(_) => "vlan",
            VirtualKind::Dummy => "dummy",
            VirtualKind::Vrf(_) => "vrf",
            VirtualKind::Ifb => "ifb",
        }
    }

    /// The option of the kernel's configuration that gives it the kind, and the module that holds it.
    pub fn kernel_option(&self) -> (&'static str, &'static str) {
        match self {
            VirtualKind::Macvlan { .. } => ("CONFIG_MACVLAN", "macvlan"),
            VirtualKind::Ipvlan(_) => ("CONFIG_IPVLAN", "ipvlan"),
            VirtualKind::Vlan(_) => ("CONFIG_VLAN_8021Q", "8021q"),
            VirtualKind::Dummy => ("CONFIG_DUMMY", "dummy"),
            VirtualKind::Vrf(_) => ("CONFIG_NET_VRF", "vrf"),
            VirtualKind::Ifb => ("CONFIG_IFB", "ifb"),
        }
    }

    fn encode(&self, body: &mut Encoder) {
        match *self {
            VirtualKind::Macvlan { mode, broadcast_queue } => {
                body.u32(IFLA_MACVLAN_MODE, mode.number());
                if let Some(length) = broadcast_queue {
                    body.u32(IFLA_MACVLAN_BC_QUEUE_LEN, length);
                }
            }
            VirtualKind::Ipvlan(mode) => body.u16(IFLA_IPVLAN_MODE, mode.number()),
            VirtualKind::Vlan(id) => body.u16(IFLA_VLAN_ID, id),
            VirtualKind::Dummy | VirtualKind::Ifb => {}
            VirtualKind::Vrf(table) => body.u32(IFLA_VRF_TABLE, table),
        }
    }

    fn decode(name: &str, data: &[u8]) -> Option<VirtualKind> {
        let find = |wanted| attributes(data).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
        match name {
            "macvlan" => {
                let mode = MacvlanMode::of(read_u32(find(IFLA_MACVLAN_MODE)?, 0)?)?;
                Some(VirtualKind::Macvlan { mode, broadcast_queue: None })
            }
            "ipvlan" => IpvlanMode::of(read_u16(find(IFLA_IPVLAN_MODE)?, 0)?).map(VirtualKind::Ipvlan),
            "vlan" => read_u16(find(IFLA_VLAN_ID)?, 0).map(VirtualKind::Vlan),
            "dummy" => Some(VirtualKind::Dummy),
            "ifb" => Some(VirtualKind::Ifb),
            "vrf" => read_u32(find(IFLA_VRF_TABLE)?, 0).map(VirtualKind::Vrf),
            _ => None,
        }
    }
}

impl MacvlanMode {
    fn number(self) -> u32 {
        match self {
            MacvlanMode::Private => 1,
            MacvlanMode::Vepa => 2,
            MacvlanMode::Bridge => 4,
            MacvlanMode::Passthru => 8,
        }
    }

    fn of(number: u32) -> Option<MacvlanMode> {
        let all = [MacvlanMode::Private, MacvlanMode::Vepa, MacvlanMode::Bridge, MacvlanMode::Passthru];
        all.into_iter().find(|mode| mode.number() == number)
    }
}

impl IpvlanMode {
    fn number(self) -> u16 {
        match self {
            IpvlanMode::L2 => 0,
            IpvlanMode::L3 => 1,
            IpvlanMode::L3s => 2,
        }
    }

    fn of(number: u16) -> Option<IpvlanMode> {
        [IpvlanMode::L2, IpvlanMode::L3, IpvlanMode::L3s].into_iter().find(|mode| mode.number() == number)
    }
}

/// Makes a device, in one step even if the device below is in another namespace. Refused with EEXIST
/// where the name is taken, with EOPNOTSUPP where the kernel lacks the kind.
pub fn create(socket: &mut Socket, link: &VirtualLink<'_>) -> Result<(), KernelError> {
    let elsewhere = match link.lower.and_then(|lower| lower.namespace) {
        Some(namespace) => Some(namespace_id(socket, namespace)?),
        None => None,
    };
    let doing = || format!("create {} device {}", link.kind.name(), link.name);
    create_link(socket, doing, |body| {
        header(body, 0, 0, 0);
        body.text(libc::IFLA_IFNAME, link.name.as_str());
        if let Some(lower) = link.lower {
            body.u32(libc::IFLA_LINK, lower.index);
        }
        if let Some(id) = elsewhere {
            body.attribute(IFLA_LINK_NETNSID, &id.to_ne_bytes());
        }
        if let Some(mtu) = link.mtu {
            body.u32(libc::IFLA_MTU, mtu);
        }
        if let Some(mac) = link.mac {
            body.attribute(libc::IFLA_ADDRESS, &mac.0);
        }
        link_info(body, link.kind.name(), |body| link.kind.encode(body));
    })
}

/// The number by which the socket's namespace knows another one; it gets one if it has none.
fn namespace_id(socket: &mut Socket, namespace: BorrowedFd<'_>) -> Result<i32, KernelError> {
    let doing = || "number another network namespace".to_owned();
    let name = |body: &mut Encoder| {
        body.put(&[libc::AF_UNSPEC as u8, 0, 0, 0]);
        body.u32(NETNSA_FD, namespace.as_raw_fd() as u32);
    };
    let numbered = socket.request(RTM_NEWNSID, 0, |body| {
        name(body);
        // Whichever is free.
        body.attribute(NETNSA_NSID, &(-1_i32).to_ne_bytes());
    });
    match numbered {
        Err(error) if error.errno() == Some(Errno::EXIST) => {}
        other => other.doing(doing)?,
    }
    let take = |id: &mut Option<i32>, answer: Answer<'_>| -> Result<(), NetlinkError> {
        let found = attributes(answer.payload.get(4..).unwrap_or_default());
        *id = found.filter(|(kind, _)| *kind == NETNSA_NSID).find_map(|(_, value)| read_i32(value, 0));
        Ok(())
    };
    let id = socket.ask(RTM_GETNSID, 0, name, take).doing(doing)?;
    id.filter(|id| *id >= 0)
        .ok_or_else(|| KernelError::Other { doing: doing(), why: "the kernel gave it no number".to_owned() })
}

/// What a device is; none for kinds that are not made here, and for one that has gone meanwhile.
pub fn kind(socket: &mut Socket, index: u32) -> Result<Option<VirtualKind>, KernelError> {
    let take = |found: &mut Option<VirtualKind>, answer: Answer<'_>| {
        let infos = attributes(answer.payload.get(16..).unwrap_or_default());
        for (_, info) in infos.filter(|(kind, _)| *kind == libc::IFLA_LINKINFO) {
            let find = |wanted| attributes(info).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
            let name = find(libc::IFLA_INFO_KIND).map(read_text).unwrap_or_default();
            *found = VirtualKind::decode(&name, find(libc::IFLA_INFO_DATA).unwrap_or_default());
        }
        Ok(())
    };
    match socket.ask(libc::RTM_GETLINK, 0, |body| header(body, index, 0, 0), take) {
        Err(error) if error.errno() == Some(rustix::io::Errno::NODEV) => Ok(None),
        other => other.doing(|| format!("look at device number {index}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_read_as_they_are_written() {
        let kinds = [
            VirtualKind::Macvlan { mode: MacvlanMode::Vepa, broadcast_queue: None },
            VirtualKind::Ipvlan(IpvlanMode::L3s),
            VirtualKind::Vlan(4094),
            VirtualKind::Dummy,
            VirtualKind::Vrf(70_000),
        ];
        for kind in kinds {
            let mut body = Encoder::default();
            kind.encode(&mut body);
            assert_eq!(VirtualKind::decode(kind.name(), body.bytes()), Some(kind));
        }
        assert_eq!(VirtualKind::decode("veth", &[]), None);
        assert_eq!(VirtualKind::decode("vlan", &[]), None);
    }
}
