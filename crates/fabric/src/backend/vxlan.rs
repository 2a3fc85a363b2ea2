//! `vxlan`: a VXLAN tunnel endpoint of the kernel for each address family.
//!
//! A node has `flannel.<VNI>` for IPv4 and `flannel-v6.<VNI>` for IPv6, each with the network address
//! of the node's pod subnet as a /32 or /128: the source of what the host itself sends to pods. A
//! peer costs three objects on the device, all known beforehand so that nothing is ever asked of the
//! network (RFC 7348 §4.2 would flood):
//!
//! * a permanent neighbor: the network address of the peer's pod subnet has the peer's VTEP MAC,
//! * an FDB entry: that MAC is behind the peer's public address,
//! * a route: the pod subnet through that network address, `onlink` since no address of ours says so.
//!
//! With `DirectRouting`, a peer whose public address is on one of the host's own links gets a plain
//! route to it instead.
//!
//! MTU: VXLAN over IPv4 takes 50 bytes (14 Ethernet, 8 VXLAN, 8 UDP, 20 IPv4), over IPv6 70. Pods
//! have one MTU for both families, so dual stack announces the smaller. The original announces the
//! larger, and loses the first large IPv6 datagram of each flow.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Path, Peer, VtepMacs};
use crate::config::json::Object;
use crate::config::{ConfigError, NetworkConfig, shortened};
use crate::dataplane::{self, Dataplane, IpFamily, Link, LinkKind, NextHop};
use crate::host::{ExternalInterface, Host, Reach};
use crate::lease::{Attributes, Lease};
use crate::link_name::LinkName;
use crate::mac::Mac;

/// The VXLAN parameters of the network configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vxlan {
    /// `VNI`, the VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// `Port`; none leaves the UDP port to the kernel (8472).
    pub port: Option<u16>,
    /// `MTU` of the path between nodes; none takes that of the external interface.
    pub mtu: Option<u32>,
    /// `GBP`, the group policy extension.
    pub gbp: bool,
    /// `Learning` of source addresses from packets.
    pub learning: bool,
    /// `DirectRouting` to peers on the same layer-2 network.
    pub direct_routing: bool,
    /// `MacPrefix`, the first two octets of generated VTEP addresses.
    ///
    /// Compatibility: in the original a key for Windows alone, where the default is `0E-2A`. On Linux
    /// it is ignored there and free to choose here; absent, all octets are random but for two bits.
    pub mac_prefix: Option<[u8; 2]>,
}

/// The smallest MTU of an Ethernet device (`ETH_MIN_MTU`).
const SMALLEST_IPV4_MTU: u32 = 68;
/// The smallest MTU that IPv6 works with (RFC 8200 §5).
const SMALLEST_IPV6_MTU: u32 = 1280;

/// What VXLAN adds to a packet, by the family of the outer header (`VXLAN_HEADROOM`, `VXLAN6_HEADROOM`).
fn overhead(outer: IpFamily) -> u32 {
    match outer {
        IpFamily::V4 => 50,
        IpFamily::V6 => 70,
    }
}

impl Vxlan {
    /// Reads the keys of `Backend`.
    pub(crate) fn from_keys(keys: &Object) -> Result<Vxlan, ConfigError> {
        let field = |name| keys.field_in("Backend.", name);
        let number = |name, range: std::ops::RangeInclusive<i64>| -> Result<Option<u32>, ConfigError> {
            let field = field(name);
            let Some(value) = field.integer()? else { return Ok(None) };
            if !range.contains(&value) {
                let want = format_args!("a number from {} to {}", range.start(), range.end());
                return Err(field.refuse(format_args!("{name} out of range"), want));
            }
            // Every range in use here lies within 0..=2^24.
            Ok(Some(value as u32))
        };
        let mac_prefix = match field("MacPrefix").string()? {
            None => None,
            Some(text) if text.is_empty() => None,
            Some(text) => Some(mac_prefix(&text).map_err(|what| {
                field("MacPrefix").refuse(what, "two hexadecimal octets of a unicast address such as 0E-2A")
            })?),
        };
        Ok(Vxlan {
            vni: number("VNI", 0..=0xff_ffff)?.unwrap_or(1),
            // Zero stands for "not set", as in the original, for both.
            port: number("Port", 0..=65535)?.filter(|port| *port > 0).map(|port| port as u16),
            mtu: number("MTU", 0..=65535)?.filter(|mtu| *mtu > 0),
            gbp: field("GBP").boolean()?.unwrap_or(false),
            learning: field("Learning").boolean()?.unwrap_or(false),
            direct_routing: field("DirectRouting").boolean()?.unwrap_or(false),
            mac_prefix,
        })
    }

    /// The rules that concern the whole configuration.
    pub(crate) fn check_config(&self, config: &NetworkConfig) -> Result<(), String> {
        for family in families(config) {
            self.link_name(family).map_err(|name| {
                format!(
                    "VNI out of range: Backend.VNI is {}, and a device cannot be named {name} (15 letters at most); \
                     want a VNI up to {}",
                    self.vni,
                    if family == IpFamily::V4 { 9_999_999 } else { 9_999 },
                )
            })?;
        }
        match self.mtu {
            Some(mtu) => self.check_mtu(config, mtu).map_err(|(smallest, why)| {
                format!("MTU out of range: Backend.MTU is {mtu}, want {smallest} at least: {why}")
            }),
            None => Ok(()),
        }
    }

    /// Whether pods can work over a path of `mtu`; else the smallest that will do, and why.
    fn check_mtu(&self, config: &NetworkConfig, mtu: u32) -> Result<(), (u32, &'static str)> {
        for family in families(config) {
            let (smallest, why) = match family {
                IpFamily::V4 => (SMALLEST_IPV4_MTU, "vxlan takes 50 bytes, and a device needs 68"),
                IpFamily::V6 => (SMALLEST_IPV6_MTU, "vxlan over IPv6 takes 70 bytes, and IPv6 needs 1280"),
            };
            if mtu < smallest + overhead(family) {
                return Err((smallest + overhead(family), why));
            }
        }
        Ok(())
    }

    /// `flannel.<VNI>` or `flannel-v6.<VNI>`; an error is the name that is too long for the kernel.
    fn link_name(&self, family: IpFamily) -> Result<LinkName, String> {
        let prefix = match family {
            IpFamily::V4 => "flannel",
            IpFamily::V6 => "flannel-v6",
        };
        let name = format!("{prefix}.{}", self.vni);
        name.parse().map_err(|_| name)
    }

    fn link(&self, family: IpFamily) -> LinkName {
        self.link_name(family).expect("from_json() refuses a VNI that makes too long a name")
    }

    /// The devices of the enabled families.
    pub(super) fn links(&self, config: &NetworkConfig) -> Vec<LinkName> {
        families(config).map(|family| self.link(family)).collect()
    }

    /// Six random octets made a VTEP address, which begins with `MacPrefix` if one is configured.
    pub fn generate_mac(&self, random: [u8; 6]) -> Mac {
        match self.mac_prefix {
            None => Mac::locally_administered(random),
            Some([a, b]) => {
                let [_, _, rest @ ..] = random;
                Mac([a, b, rest[0], rest[1], rest[2], rest[3]])
            }
        }
    }

    pub(super) fn attributes(
        &self,
        config: &NetworkConfig,
        external: &ExternalInterface,
        macs: VtepMacs,
    ) -> Attributes {
        let data = |mac: Option<Mac>| {
            let json = format!(r#"{{"VNI":{},"VtepMAC":"{}"}}"#, self.vni, mac?);
            Some(serde_json::value::RawValue::from_string(json).expect("numbers and MAC addresses are JSON"))
        };
        let public_ipv4 = external.public_ipv4.filter(|_| config.ipv4.is_some());
        let public_ipv6 = external.public_ipv6.filter(|_| config.ipv6.is_some());
        Attributes {
            public_ipv4,
            public_ipv6,
            backend_type: "vxlan".into(),
            backend_data: public_ipv4.and_then(|_| data(macs.ipv4)),
            backend_v6_data: public_ipv6.and_then(|_| data(macs.ipv6)),
        }
    }

    /// The MTU of the path between nodes: what is configured, as far as the interface carries it. The
    /// kernel would clamp the device likewise.
    fn path_mtu(&self, external: &ExternalInterface) -> u32 {
        self.mtu.unwrap_or(external.mtu).min(external.mtu)
    }

    pub(super) fn mtu(&self, config: &NetworkConfig, external: &ExternalInterface) -> u32 {
        let path = self.path_mtu(external);
        families(config).map(|family| path.saturating_sub(overhead(family))).min().unwrap_or(path)
    }

    pub(super) fn check(&self, config: &NetworkConfig, external: &ExternalInterface) -> Result<(), String> {
        let path = self.path_mtu(external);
        self.check_mtu(config, path).map_err(|(smallest, why)| {
            format!(
                "the MTU of {} is {}, which leaves a path of {path}; want {smallest} at least: {why}",
                external.link, external.mtu
            )
        })
    }

    /// The devices with their addresses. A family without a MAC, address or pod subnet has none yet.
    pub(super) fn device(&self, config: &NetworkConfig, host: &Host, macs: VtepMacs, into: &mut Dataplane) {
        for family in families(config) {
            let external = &host.external;
            let (interface, public, mac, own) = match family {
                IpFamily::V4 => (
                    external.ipv4.map(IpAddr::V4),
                    external.public_ipv4.map(IpAddr::V4),
                    macs.ipv4,
                    host.own.ipv4.map(IpNet::V4),
                ),
                IpFamily::V6 => (
                    external.ipv6.map(IpAddr::V6),
                    external.public_ipv6.map(IpAddr::V6),
                    macs.ipv6,
                    host.own.ipv6.map(IpNet::V6),
                ),
            };
            // Compatibility: the public address, as in the original, so that a device that it left
            // behind is taken over as it is. But not one behind NAT, which this host does not have:
            // the kernel can send nothing from it.
            let local = public.filter(|ip| host.public_here.contains(ip)).or(interface).or(public);
            let (Some(local), Some(mac)) = (local, mac) else { continue };
            let name = self.link(family);
            let kind = LinkKind::Vxlan(dataplane::Vxlan {
                vni: self.vni,
                underlay: external.link,
                local,
                port: self.port,
                learning: self.learning,
                gbp: self.gbp,
            });
            let mtu = self.path_mtu(external).saturating_sub(overhead(family));
            into.links.insert(name, Link { name, kind, mtu, mac: Some(mac) });
            // Router advertisements from a pod must not give the host a route or an address.
            into.sysctls.insert(format!("net/ipv6/conf/{name}/accept_ra"), "0".to_owned());
            if let Some(own) = own {
                into.addresses.insert((name, IpNet::from(own.network())));
            }
        }
    }

    /// Adds what leads to one pod subnet of a peer.
    pub(super) fn peer(
        &self,
        host: &Host,
        lease: &Lease,
        peer: &Peer,
        into: &mut Dataplane,
    ) -> Result<Path, String> {
        if self.direct_routing
            && let Some(underlay) = host.route_to(peer.public)
            && underlay.reach == Reach::Direct
        {
            let next_hop = NextHop { gateway: peer.public, link: underlay.link, onlink: false };
            super::add_route(host, peer.subnet, next_hop, into);
            return Ok(Path::Direct);
        }
        let family = IpFamily::of(&peer.subnet);
        let link = self.link(family);
        let mac = self.vtep_mac(lease, family)?;
        let own = into.links.get(&link).is_some_and(|own| own.mac == Some(mac));
        if own {
            return Err(format!(
                "its VTEP MAC {mac} is this node's own; one of the two nodes is a copy of the other"
            ));
        }
        match into.fdb.get(&(link, mac)) {
            Some(other) if *other != peer.public => {
                return Err(format!(
                    "its VTEP MAC {mac} is also that of the node at {other}, whose lease is newer; \
                     an old lease of that node, or one of the two nodes is a copy of the other"
                ));
            }
            _ => {}
        }
        let gateway = peer.subnet.network();
        into.fdb.insert((link, mac), peer.public);
        into.neighbors.insert((link, gateway), mac);
        super::add_route(host, peer.subnet, NextHop { gateway, link, onlink: true }, into);
        Ok(Path::Tunnel)
    }

    /// The Ethernet address of a peer's tunnel endpoint, out of `BackendData` or `BackendV6Data`.
    ///
    /// A VNI that is not ours is an error, since the peer cannot hear us; older leases have none.
    fn vtep_mac(&self, lease: &Lease, family: IpFamily) -> Result<Mac, String> {
        let (key, data) = match family {
            IpFamily::V4 => ("BackendData", &lease.attributes.backend_data),
            IpFamily::V6 => ("BackendV6Data", &lease.attributes.backend_v6_data),
        };
        let text = data.as_deref().map_or("null", |raw| raw.get());
        let bad = |why: &str| {
            format!(
                "its {key} is {}, {why}; want {{\"VNI\":{},\"VtepMAC\":\"aa:bb:cc:dd:ee:ff\"}}",
                shortened(text),
                self.vni
            )
        };
        let keys = Object::parse(text).map_err(|_| bad("which is no JSON object"))?;
        let mac = keys.field("VtepMAC").string().map_err(|_| bad("of which VtepMAC is no text"))?;
        let mac = mac.ok_or_else(|| bad("which has no VtepMAC"))?;
        let mac: Mac = mac.parse().map_err(|_| bad("of which VtepMAC is no MAC address"))?;
        if mac.is_zero() || mac.0[0] & 1 == 1 {
            return Err(bad("of which VtepMAC is not the address of one device"));
        }
        let vni = keys.field("VNI").integer().map_err(|_| bad("of which VNI is no number"))?;
        if vni.is_some_and(|vni| vni != i64::from(self.vni)) {
            return Err(bad("of which VNI is not ours"));
        }
        Ok(mac)
    }
}

/// The enabled families, IPv4 first.
fn families(config: &NetworkConfig) -> impl Iterator<Item = IpFamily> + use<> {
    let ipv4 = config.ipv4.map(|_| IpFamily::V4);
    let ipv6 = config.ipv6.map(|_| IpFamily::V6);
    ipv4.into_iter().chain(ipv6)
}

fn mac_prefix(text: &str) -> Result<[u8; 2], &'static str> {
    let mac: Mac = format!("{text}-00-00-00-00").parse().map_err(|_| "MacPrefix is no two octets")?;
    let [a, b, ..] = mac.0;
    if a & 1 == 1 { Err("MacPrefix is that of a group address") } else { Ok([a, b]) }
}
