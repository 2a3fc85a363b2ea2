//! Network devices: list, make, change, delete.
//!
//! Source: `net/core/rtnetlink.c`, `include/uapi/linux/if_link.h`.

mod veth;
mod vxlan;

use fabric::link_name::LinkName;
use fabric::mac::Mac;
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::error::{Doing, KernelError};
use crate::netlink::{
    Answer, Batch, CREATE, EXCL, Encoder, NetlinkError, Socket, attributes, read_text, read_u8, read_u32,
};

pub use veth::{Veth, create_veth};
pub use vxlan::{Vxlan, create_vxlan};

/// `IFF_UP` in [`Link::flags`]: administratively up.
pub const UP: u32 = libc::IFF_UP as u32;
/// `IFF_LOOPBACK` in [`Link::flags`].
pub const LOOPBACK: u32 = libc::IFF_LOOPBACK as u32;
/// `IFF_LOWER_UP` in [`Link::flags`]: there is a carrier.
pub const LOWER_UP: u32 = libc::IFF_LOWER_UP as u32;
/// `IFF_NOARP` in [`Link::flags`]: nobody's Ethernet address is asked for.
pub const NO_ARP: u32 = libc::IFF_NOARP as u32;
/// `IFF_PROMISC` in [`Link::flags`].
pub const PROMISCUOUS: u32 = libc::IFF_PROMISC as u32;

pub(crate) const IFLA_BR_VLAN_FILTERING: u16 = 7;
const IFLA_TUN_TYPE: u16 = 3;
const IFLA_TUN_MULTI_QUEUE: u16 = 7;

/// A device as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number for it.
    pub index: u32,
    /// Its name.
    pub name: LinkName,
    /// `IFF_*` bits.
    pub flags: u32,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its Ethernet address, if it has one of six octets.
    pub mac: Option<Mac>,
    /// The device below it, or the other end of a veth (which may be in another namespace).
    pub lower: Option<u32>,
    /// The bridge or bond that it belongs to.
    pub master: Option<u32>,
    /// Its operational state.
    pub operational: Operational,
    /// What it is.
    pub kind: Kind,
}

impl Link {
    /// Whether it is administratively up.
    pub fn is_up(&self) -> bool {
        self.flags & UP != 0
    }
}

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A VXLAN device.
    Vxlan(Vxlan),
    /// A bridge, with its VLAN filtering; none where the kernel has none.
    Bridge {
        /// Whether frames are filtered by VLAN.
        vlan_filtering: bool,
    },
    /// A TUN or TAP device, from Linux 4.17 on.
    Tun {
        /// Whether it takes Ethernet frames: a TAP device.
        frames: bool,
        /// Whether it may have several queues.
        multi_queue: bool,
    },
    /// Anything else, by the kernel's name for it; empty for a hardware device.
    Other(String),
}

impl Kind {
    /// The kernel's name for the kind, such as `vxlan`, `bridge`, `veth`.
    pub fn name(&self) -> &str {
        match self {
            Kind::Vxlan(_) => "vxlan",
            Kind::Bridge { .. } => "bridge",
            Kind::Tun { .. } => "tun",
            Kind::Other(name) => name,
        }
    }
}

/// Operational state of a device (RFC 2863 `ifOperStatus`, `IF_OPER_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Operational {
    /// The driver does not say; common for virtual devices that work.
    #[default]
    Unknown,
    /// It passes packets.
    Up,
    /// It does not, for this `IF_OPER_*` reason.
    NotUp(u8),
}

/// The number of a device, if there is one of that name in the socket's namespace.
///
/// Asked by SIOCGIFINDEX, which needs no RTNL: it does not wait for a device that is being deleted
/// elsewhere, and sees that device gone at once.
pub fn index(socket: &Socket, name: LinkName) -> Result<Option<u32>, KernelError> {
    match without_modprobe(|| rustix::net::netdevice::name_to_index(socket, name.as_str())) {
        Ok(index) => Ok(Some(index)),
        Err(Errno::NODEV) => Ok(None),
        Err(errno) => Err(KernelError::system(format!("look up device {name}"), errno)),
    }
}

/// Asks the kernel without the right to have modules loaded: for a name that no device has, it would run
/// `modprobe` twice and wait for it, which takes longer than a whole attachment (`dev_load` in
/// `net/core/dev_ioctl.c`). Rights are those of the thread; looking needs none.
fn without_modprobe<T>(ask: impl FnOnce() -> T) -> T {
    const LOADING: CapabilitySet = CapabilitySet::NET_ADMIN.union(CapabilitySet::SYS_MODULE);
    let Ok(mine) = rustix::thread::capabilities(None) else { return ask() };
    let fewer = CapabilitySets { effective: mine.effective.difference(LOADING), ..mine };
    if fewer.effective == mine.effective || rustix::thread::set_capabilities(None, fewer).is_err() {
        return ask();
    }
    let answer = ask();
    rustix::thread::set_capabilities(None, mine).expect("a right that is permitted can be taken up again");
    answer
}

/// Whether there is a device of that name, see [`index`].
pub fn exists(socket: &Socket, name: LinkName) -> Result<bool, KernelError> {
    index(socket, name).map(|found| found.is_some())
}

/// All devices of the socket's namespace.
pub fn list(socket: &mut Socket) -> Result<Vec<Link>, KernelError> {
    socket
        .dump(
            libc::RTM_GETLINK,
            |body| header(body, 0, 0, 0),
            |links: &mut Vec<Link>, answer| {
                links.extend(decode(answer)?);
                Ok(())
            },
        )
        .doing(|| "list devices".to_owned())
}

/// The device of that name.
pub fn by_name(socket: &mut Socket, name: LinkName) -> Result<Option<Link>, KernelError> {
    one(
        socket,
        || format!("look up device {name}"),
        |body| {
            header(body, 0, 0, 0);
            body.text(libc::IFLA_IFNAME, name.as_str());
        },
    )
}

/// The device of that number.
pub fn by_index(socket: &mut Socket, index: u32) -> Result<Option<Link>, KernelError> {
    one(socket, || format!("look up device number {index}"), |body| header(body, index, 0, 0))
}

/// How many packets a device dropped instead of sending them; none if there is no such device.
pub fn sending_drops(socket: &mut Socket, name: LinkName) -> Result<Option<u64>, KernelError> {
    // `tx_dropped` of `struct rtnl_link_stats64`.
    const AT: usize = 7 * 8;
    let asked = socket.ask(
        libc::RTM_GETLINK,
        0,
        |body| {
            header(body, 0, 0, 0);
            body.text(libc::IFLA_IFNAME, name.as_str());
        },
        |found: &mut Option<u64>, answer| {
            let statistics = attributes(answer.payload.get(16..).unwrap_or_default())
                .find(|(kind, _)| *kind == libc::IFLA_STATS64)
                .and_then(|(_, value)| value.get(AT..AT + 8)?.try_into().ok());
            *found = statistics.map(u64::from_ne_bytes).or(*found);
            Ok(())
        },
    );
    match asked {
        Err(error) if error.errno() == Some(Errno::NODEV) => Ok(None),
        other => other.doing(|| format!("read the counters of {name}")),
    }
}

fn one(
    socket: &mut Socket,
    doing: impl FnOnce() -> String,
    body: impl FnOnce(&mut Encoder),
) -> Result<Option<Link>, KernelError> {
    let asked = socket.ask(libc::RTM_GETLINK, 0, body, |found: &mut Option<Link>, answer| {
        *found = decode(answer)?;
        Ok(())
    });
    match asked {
        Err(error) if error.errno() == Some(Errno::NODEV) => Ok(None),
        other => other.doing(doing),
    }
}

/// Sets a new TUN device up, with its MTU and the length of its queues.
pub(crate) fn set_up_tun(
    socket: &mut Socket,
    index: u32,
    mtu: u32,
    queue_length: u32,
) -> Result<(), KernelError> {
    let asked = socket.request(libc::RTM_NEWLINK, 0, |body| {
        header(body, index, UP, UP);
        body.u32(libc::IFLA_MTU, mtu);
        body.u32(libc::IFLA_TXQLEN, queue_length);
    });
    asked.doing(|| format!("set device number {index} up with mtu {mtu}"))
}

pub(crate) fn create(
    socket: &mut Socket,
    doing: impl FnOnce() -> String,
    body: impl FnOnce(&mut Encoder),
) -> Result<(), KernelError> {
    socket.request(libc::RTM_NEWLINK, CREATE | EXCL, body).doing(doing)
}

pub(crate) fn link_info(body: &mut Encoder, kind: &str, data: impl FnOnce(&mut Encoder)) {
    body.nest(libc::IFLA_LINKINFO, |body| {
        body.text(libc::IFLA_INFO_KIND, kind);
        body.nest(libc::IFLA_INFO_DATA, data);
    });
}

/// Deletes a device. That there is none is no error.
pub fn delete(socket: &mut Socket, index: u32) -> Result<(), KernelError> {
    match socket.request(libc::RTM_DELLINK, 0, |body| header(body, index, 0, 0)) {
        Err(error) if error.errno() == Some(Errno::NODEV) => Ok(()),
        other => other.doing(|| format!("delete device number {index}")),
    }
}

/// Deletes a device by its name. That there is none is no error.
///
/// The kernel waits for an RCU grace period (about 20 ms) before it answers; the device has
/// disappeared from every look-up before that.
pub fn delete_by_name(socket: &mut Socket, name: LinkName) -> Result<(), KernelError> {
    let deleted = socket.request(libc::RTM_DELLINK, 0, |body| {
        header(body, 0, 0, 0);
        body.text(libc::IFLA_IFNAME, name.as_str());
    });
    match deleted {
        Err(error) if error.errno() == Some(Errno::NODEV) => Ok(()),
        other => other.doing(|| format!("delete device {name}")),
    }
}

/// Sets a device up.
pub fn set_up(socket: &mut Socket, index: u32) -> Result<(), KernelError> {
    set_flags(socket, index, UP, UP, "up")
}

/// Sets a device down.
pub fn set_down(socket: &mut Socket, index: u32) -> Result<(), KernelError> {
    set_flags(socket, index, 0, UP, "down")
}

/// Sets whether a device takes frames addressed to others.
pub fn set_promiscuous(socket: &mut Socket, index: u32, on: bool) -> Result<(), KernelError> {
    let flags = if on { PROMISCUOUS } else { 0 };
    set_flags(socket, index, flags, PROMISCUOUS, if on { "promiscuous" } else { "not promiscuous" })
}

fn set_flags(socket: &mut Socket, index: u32, flags: u32, mask: u32, what: &str) -> Result<(), KernelError> {
    socket
        .request(libc::RTM_NEWLINK, 0, |body| header(body, index, flags, mask))
        .doing(|| format!("set device number {index} {what}"))
}

/// Sets a device's MTU.
pub fn set_mtu(socket: &mut Socket, index: u32, mtu: u32) -> Result<(), KernelError> {
    change(socket, index, || format!("mtu {mtu}"), |body| body.u32(libc::IFLA_MTU, mtu))
}

/// Sets a device's Ethernet address.
pub fn set_mac(socket: &mut Socket, index: u32, mac: Mac) -> Result<(), KernelError> {
    change(socket, index, || format!("address {mac}"), |body| body.attribute(libc::IFLA_ADDRESS, &mac.0))
}

/// Puts a device on a bridge, or takes it off.
pub fn set_master(socket: &mut Socket, index: u32, master: Option<u32>) -> Result<(), KernelError> {
    let doing = || match master {
        Some(master) => format!("master number {master}"),
        None => "nomaster".to_owned(),
    };
    change(socket, index, doing, |body| body.u32(libc::IFLA_MASTER, master.unwrap_or(0)))
}

/// Renames a device.
pub fn set_name(socket: &mut Socket, index: u32, name: LinkName) -> Result<(), KernelError> {
    change(socket, index, || format!("name {name}"), |body| body.text(libc::IFLA_IFNAME, name.as_str()))
}

fn change(
    socket: &mut Socket,
    index: u32,
    what: impl FnOnce() -> String,
    attribute: impl FnOnce(&mut Encoder),
) -> Result<(), KernelError> {
    socket
        .request(libc::RTM_NEWLINK, 0, |body| {
            header(body, index, 0, 0);
            attribute(body);
        })
        .doing(|| format!("set device number {index} {}", what()))
}

/// Adds messages to a batch that set a device's MTU, Ethernet address and flags.
pub(crate) fn push_change(batch: &mut Batch, index: u32, flags: u32, attribute: impl FnOnce(&mut Encoder)) {
    batch.push(libc::RTM_NEWLINK, 0, |body| {
        header(body, index, flags, flags);
        attribute(body);
    });
}

/// `struct ifinfomsg`
pub(crate) fn header(body: &mut Encoder, index: u32, flags: u32, mask: u32) {
    family_header(body, libc::AF_UNSPEC as u8, index, flags, mask);
}

pub(crate) fn family_header(body: &mut Encoder, family: u8, index: u32, flags: u32, mask: u32) {
    body.put(&[family, 0, 0, 0]);
    body.put(&index.to_ne_bytes());
    body.put(&flags.to_ne_bytes());
    body.put(&mask.to_ne_bytes());
}

/// Reads an `RTM_NEWLINK`; none for other messages and for devices with a name that is no text.
pub(crate) fn decode(answer: Answer<'_>) -> Result<Option<Link>, NetlinkError> {
    if answer.kind != libc::RTM_NEWLINK {
        return Ok(None);
    }
    let short = NetlinkError::Malformed("a device message is too short");
    let (Some(index), Some(flags)) = (read_u32(answer.payload, 4), read_u32(answer.payload, 8)) else {
        return Err(short);
    };
    let (mut name, mut mtu, mut mac, mut lower, mut master) = (None, 0, None, None, None);
    let mut operational = Operational::Unknown;
    let mut kind = Kind::Other(String::new());
    for (attribute, value) in attributes(answer.payload.get(16..).ok_or(short)?) {
        match attribute {
            libc::IFLA_IFNAME => name = read_text(value).parse().ok(),
            libc::IFLA_MTU => mtu = read_u32(value, 0).unwrap_or(0),
            libc::IFLA_ADDRESS => mac = value.try_into().ok().map(Mac),
            libc::IFLA_LINK => lower = read_u32(value, 0).filter(|index| *index != 0),
            libc::IFLA_MASTER => master = read_u32(value, 0).filter(|index| *index != 0),
            libc::IFLA_OPERSTATE => {
                operational = match read_u8(value, 0) {
                    None | Some(0) => Operational::Unknown,
                    Some(6) => Operational::Up,
                    Some(other) => Operational::NotUp(other),
                }
            }
            libc::IFLA_LINKINFO => kind = decode_kind(value),
            _ => {}
        }
    }
    Ok(name.map(|name| Link { index, name, flags, mtu, mac, lower, master, operational, kind }))
}

fn decode_kind(info: &[u8]) -> Kind {
    let find = |wanted| attributes(info).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let name = find(libc::IFLA_INFO_KIND).map(read_text).unwrap_or_default();
    let data = find(libc::IFLA_INFO_DATA).unwrap_or_default();
    match name.as_str() {
        "vxlan" => Kind::Vxlan(vxlan::decode(data)),
        "bridge" => {
            let filtering = attributes(data)
                .find(|(kind, _)| *kind == IFLA_BR_VLAN_FILTERING)
                .and_then(|(_, value)| read_u8(value, 0));
            Kind::Bridge { vlan_filtering: filtering == Some(1) }
        }
        "tun" if !data.is_empty() => {
            const IFF_TAP: u8 = 2;
            let octet = |wanted| {
                attributes(data).find(|(kind, _)| *kind == wanted).and_then(|(_, value)| read_u8(value, 0))
            };
            let frames = octet(IFLA_TUN_TYPE) == Some(IFF_TAP);
            Kind::Tun { frames, multi_queue: octet(IFLA_TUN_MULTI_QUEUE) == Some(1) }
        }
        _ => Kind::Other(name),
    }
}
