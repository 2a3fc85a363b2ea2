//! Linux bridges, their ports and VLANs.
//!
//! Source: `net/bridge/br_netlink.c`, `include/uapi/linux/if_bridge.h`.

use std::ops::RangeInclusive;

use fabric::link_name::LinkName;
use fabric::mac::Mac;

use crate::error::{Doing, KernelError};
use crate::link::{IFLA_BR_VLAN_FILTERING, create, family_header, header, link_info};
use crate::netlink::{Encoder, Socket, attributes, read_u16, read_u32};

const IFLA_BR_VLAN_DEFAULT_PVID: u16 = 39;
const IFLA_PROTINFO: u16 = 12;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_BRIDGE_FLAGS: u16 = 0;
const IFLA_BRIDGE_VLAN_INFO: u16 = 2;
const BRIDGE_FLAGS_SELF: u16 = 2;
const VLAN_INFO_PVID: u16 = 1 << 1;
const VLAN_INFO_UNTAGGED: u16 = 1 << 2;
const VLAN_INFO_RANGE_BEGIN: u16 = 1 << 3;
const VLAN_INFO_RANGE_END: u16 = 1 << 4;
const RTEXT_FILTER_BRVLAN: u32 = 1 << 1;

/// A bridge to be made.
#[derive(Debug, Clone, Copy)]
pub struct Bridge {
    /// Its name.
    pub name: LinkName,
    /// Its MTU; the kernel follows the ports' if none.
    pub mtu: Option<u32>,
    /// Its Ethernet address; the kernel follows the ports' if none.
    pub mac: Option<Mac>,
    /// Whether frames are filtered by VLAN. Not sent if false: a kernel without VLAN filtering
    /// refuses even that.
    pub vlan_filtering: bool,
    /// The VLAN of untagged frames on new ports; 0 for none, the kernel's default (1) if none.
    pub default_pvid: Option<u16>,
}

impl Bridge {
    /// A bridge with the kernel's defaults.
    pub fn named(name: LinkName) -> Bridge {
        Bridge { name, mtu: None, mac: None, vlan_filtering: false, default_pvid: None }
    }
}

/// Makes a bridge and sets it up in the same step. Refused with EEXIST where a device of that name
/// exists.
pub fn create_bridge(socket: &mut Socket, bridge: &Bridge) -> Result<(), KernelError> {
    const UP: u32 = crate::link::UP;
    create(
        socket,
        || format!("create bridge {}", bridge.name),
        |body| {
            header(body, 0, UP, UP);
            body.text(libc::IFLA_IFNAME, bridge.name.as_str());
            if let Some(mtu) = bridge.mtu {
                body.u32(libc::IFLA_MTU, mtu);
            }
            if let Some(mac) = bridge.mac {
                body.attribute(libc::IFLA_ADDRESS, &mac.0);
            }
            link_info(body, "bridge", |body| {
                if bridge.vlan_filtering {
                    body.u8(IFLA_BR_VLAN_FILTERING, 1);
                }
                if let Some(pvid) = bridge.default_pvid {
                    body.u16(IFLA_BR_VLAN_DEFAULT_PVID, pvid);
                }
            });
        },
    )
}

/// How a bridge treats one of its ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PortFlags {
    /// Whether frames may go back out of the port they came in by.
    pub hairpin: Option<bool>,
    /// Whether frames to other isolated ports are dropped.
    pub isolated: Option<bool>,
}

/// Sets how a bridge treats a port; what is none stays.
pub fn set_port_flags(socket: &mut Socket, port: u32, flags: PortFlags) -> Result<(), KernelError> {
    socket
        .request(libc::RTM_SETLINK, 0, |body| {
            bridge_header(body, port);
            body.nest(IFLA_PROTINFO, |body| {
                if let Some(hairpin) = flags.hairpin {
                    body.u8(IFLA_BRPORT_MODE, u8::from(hairpin));
                }
                if let Some(isolated) = flags.isolated {
                    body.u8(IFLA_BRPORT_ISOLATED, u8::from(isolated));
                }
            });
        })
        .doing(|| format!("set {flags:?} on bridge port number {port}"))
}

/// VLANs on a bridge port, or on the bridge itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vlans {
    /// The VLANs, 1 to 4094.
    pub ids: RangeInclusive<u16>,
    /// Whether untagged frames that come in belong to it; one VLAN only.
    pub pvid: bool,
    /// Whether frames leave without a tag.
    pub untagged: bool,
}

/// Whether a VLAN is meant for the device as a port or for a bridge itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// A device that is on a bridge.
    Port,
    /// The bridge, as the host sees it.
    Bridge,
}

/// Lets VLANs pass a bridge port.
pub fn add_vlans(socket: &mut Socket, link: u32, side: Side, vlans: &Vlans) -> Result<(), KernelError> {
    change_vlans(socket, (libc::RTM_SETLINK, "add"), (link, side), vlans)
}

/// Lets VLANs no longer pass a bridge port.
pub fn remove_vlans(socket: &mut Socket, link: u32, side: Side, vlans: &Vlans) -> Result<(), KernelError> {
    change_vlans(socket, (libc::RTM_DELLINK, "remove"), (link, side), vlans)
}

fn change_vlans(
    socket: &mut Socket,
    (kind, verb): (u16, &str),
    (link, side): (u32, Side),
    vlans: &Vlans,
) -> Result<(), KernelError> {
    let flags =
        if vlans.pvid { VLAN_INFO_PVID } else { 0 } | if vlans.untagged { VLAN_INFO_UNTAGGED } else { 0 };
    let (first, last) = (*vlans.ids.start(), *vlans.ids.end());
    socket
        .request(kind, 0, |body| {
            bridge_header(body, link);
            body.nest(IFLA_AF_SPEC, |body| {
                if side == Side::Bridge {
                    body.u16(IFLA_BRIDGE_FLAGS, BRIDGE_FLAGS_SELF);
                }
                if first == last {
                    vlan_info(body, flags, first);
                } else {
                    vlan_info(body, flags | VLAN_INFO_RANGE_BEGIN, first);
                    vlan_info(body, flags | VLAN_INFO_RANGE_END, last);
                }
            });
        })
        .doing(|| format!("{verb} VLAN {first} to {last} on device number {link}"))
}

/// The VLANs of a bridge port or bridge, one by one, by VLAN id.
pub fn vlans(socket: &mut Socket, link: u32) -> Result<Vec<Vlans>, KernelError> {
    let take = |found: &mut Vec<Vlans>, answer: crate::netlink::Answer<'_>| {
        if read_u32(answer.payload, 4) != Some(link) {
            return Ok(());
        }
        let specs = attributes(answer.payload.get(16..).unwrap_or_default());
        for (_, spec) in specs.filter(|(kind, _)| *kind == IFLA_AF_SPEC) {
            for (_, info) in attributes(spec).filter(|(kind, _)| *kind == IFLA_BRIDGE_VLAN_INFO) {
                let (Some(flags), Some(id)) = (read_u16(info, 0), read_u16(info, 2)) else { continue };
                found.push(Vlans {
                    ids: id..=id,
                    pvid: flags & VLAN_INFO_PVID != 0,
                    untagged: flags & VLAN_INFO_UNTAGGED != 0,
                });
            }
        }
        Ok(())
    };
    socket
        .dump(
            libc::RTM_GETLINK,
            |body| {
                bridge_header(body, 0);
                body.u32(IFLA_EXT_MASK, RTEXT_FILTER_BRVLAN);
            },
            take,
        )
        .doing(|| format!("list the VLANs of device number {link}"))
}

fn vlan_info(body: &mut Encoder, flags: u16, id: u16) {
    let mut info = [0; 4];
    info[..2].copy_from_slice(&flags.to_ne_bytes());
    info[2..].copy_from_slice(&id.to_ne_bytes());
    body.attribute(IFLA_BRIDGE_VLAN_INFO, &info);
}

fn bridge_header(body: &mut Encoder, index: u32) {
    family_header(body, libc::AF_BRIDGE as u8, index, 0, 0);
}
