//! VXLAN devices: made, and read back.
//!
//! Source: `drivers/net/vxlan/vxlan_core.c`, `include/uapi/linux/if_link.h`.

use std::net::IpAddr;

use fabric::dataplane;

use super::{UP, create, header, link_info};
use crate::error::KernelError;
use crate::netlink::{Socket, attributes, read_ip, read_u8, read_u16, read_u32};

const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_LINK: u16 = 3;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_TTL: u16 = 5;
const IFLA_VXLAN_TOS: u16 = 6;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PROXY: u16 = 11;
const IFLA_VXLAN_RSC: u16 = 12;
const IFLA_VXLAN_L2MISS: u16 = 13;
const IFLA_VXLAN_L3MISS: u16 = 14;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_LOCAL6: u16 = 17;
const IFLA_VXLAN_UDP_ZERO_CSUM6_TX: u16 = 19;
const IFLA_VXLAN_UDP_ZERO_CSUM6_RX: u16 = 20;
const IFLA_VXLAN_GBP: u16 = 23;

/// The parameters of an existing VXLAN device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Vxlan {
    /// The VXLAN network identifier.
    pub vni: u32,
    /// The index of the lower device.
    pub underlay: Option<u32>,
    /// The tunnel's own address.
    pub local: Option<IpAddr>,
    /// The UDP port.
    pub port: u16,
    /// Whether source addresses are learned from packets.
    pub learning: bool,
    /// Whether the group policy extension is on.
    pub gbp: bool,
}

/// Makes a VXLAN device as the original flannel does, and sets it up in the same step.
///
/// Refused with EEXIST where a device of that name exists.
pub fn create_vxlan(
    socket: &mut Socket,
    link: &dataplane::Link,
    vxlan: &dataplane::Vxlan,
    underlay: u32,
) -> Result<(), KernelError> {
    create(
        socket,
        || format!("create vxlan device {}", link.name),
        |body| {
            header(body, 0, UP, UP);
            body.text(libc::IFLA_IFNAME, link.name.as_str());
            if link.mtu > 0 {
                body.u32(libc::IFLA_MTU, link.mtu);
            }
            body.u32(libc::IFLA_TXQLEN, 0);
            if let Some(mac) = link.mac {
                body.attribute(libc::IFLA_ADDRESS, &mac.0);
            }
            link_info(body, "vxlan", |body| {
                body.u32(IFLA_VXLAN_ID, vxlan.vni);
                body.u32(IFLA_VXLAN_LINK, underlay);
                let local = if vxlan.local.is_ipv4() { IFLA_VXLAN_LOCAL } else { IFLA_VXLAN_LOCAL6 };
                body.ip(local, vxlan.local);
                // Compatibility: the original writes all of these, at their defaults.
                for kind in [IFLA_VXLAN_TTL, IFLA_VXLAN_TOS] {
                    body.u8(kind, 0);
                }
                body.u8(IFLA_VXLAN_LEARNING, u8::from(vxlan.learning));
                for kind in [
                    IFLA_VXLAN_PROXY,
                    IFLA_VXLAN_RSC,
                    IFLA_VXLAN_L2MISS,
                    IFLA_VXLAN_L3MISS,
                    IFLA_VXLAN_UDP_ZERO_CSUM6_TX,
                    IFLA_VXLAN_UDP_ZERO_CSUM6_RX,
                ] {
                    body.u8(kind, 0);
                }
                if vxlan.gbp {
                    body.flag(IFLA_VXLAN_GBP);
                }
                if let Some(port) = vxlan.port {
                    body.be16(IFLA_VXLAN_PORT, port);
                }
            });
        },
    )
}

pub(super) fn decode(data: &[u8]) -> Vxlan {
    let mut vxlan = Vxlan::default();
    for (kind, value) in attributes(data) {
        match kind {
            IFLA_VXLAN_ID => vxlan.vni = read_u32(value, 0).unwrap_or(0),
            IFLA_VXLAN_LINK => vxlan.underlay = read_u32(value, 0).filter(|index| *index != 0),
            IFLA_VXLAN_LOCAL | IFLA_VXLAN_LOCAL6 => {
                vxlan.local = read_ip(value).filter(|ip| !ip.is_unspecified());
            }
            IFLA_VXLAN_PORT => vxlan.port = read_u16(value, 0).map_or(0, u16::from_be),
            IFLA_VXLAN_LEARNING => vxlan.learning = read_u8(value, 0) == Some(1),
            IFLA_VXLAN_GBP => vxlan.gbp = true,
            _ => {}
        }
    }
    vxlan
}
