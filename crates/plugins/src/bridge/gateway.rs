//! The bridge itself, and the addresses by which it is the pods' gateway.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cni::{Error, IpConfig};
use fabric::LinkName;
use ipnet::IpNet;
use kernel::link::{self, Kind, Link};
use kernel::netlink::Socket;
use kernel::{KernelError, address, bridge, sysctl};
use rustix::io::Errno;

use super::settings::Settings;
use super::vlan;
use crate::forwarding;
use crate::interface::random_mac;

/// Makes the bridge if it is not there, and sets it up. One that is there keeps its settings.
pub(super) fn ensure_bridge(host: &mut Socket, settings: &Settings) -> Result<Link, Error> {
    let name = settings.bridge;
    let failed = |error: &dyn std::fmt::Display| {
        Error::internal(format!("failed to create bridge \"{name}\": {error}"))
    };
    let mut found = link::by_name(host, name).map_err(|error| failed(&error))?;
    if found.is_none() {
        let wanted = bridge::Bridge {
            mtu: settings.mtu,
            // Its own from the start: else it would be that of a port, and change as ports come and go.
            mac: Some(random_mac()?),
            vlan_filtering: settings.filters_vlans(),
            ..bridge::Bridge::named(name)
        };
        match bridge::create_bridge(host, &wanted) {
            // Another ADD was quicker.
            Err(error) if error.errno() == Some(Errno::EXIST) => {}
            Err(error) if error.errno() == Some(Errno::OPNOTSUPP) && settings.filters_vlans() => {
                return Err(failed(&format_args!("could not add \"{name}\": {error}"))
                    .details("this kernel may have no VLAN filtering (CONFIG_BRIDGE_VLAN_FILTERING)"));
            }
            other => other.map_err(|error| failed(&format_args!("could not add \"{name}\": {error}")))?,
        }
        // Routers of the pods' network have no say in the host's routes.
        let _ = sysctl::write(&format!("net/ipv6/conf/{name}/accept_ra"), "0");
        found = link::by_name(host, name).map_err(|error| failed(&error))?;
    }
    let Some(link) = found else { return Err(failed(&"it was deleted meanwhile")) };
    let Kind::Bridge { vlan_filtering } = link.kind else {
        return Err(failed(&format_args!("\"{name}\" already exists but is not a bridge"))
            .details("delete that device, or give the bridge another name (\"bridge\")"));
    };
    // Pods would be attached as if nothing had been said of VLANs.
    if settings.has_vlans() && !vlan_filtering {
        return Err(failed(&format_args!("\"{name}\" already exists and does not sort frames by VLAN"))
            .details(format!(
                "switch it on (\"ip link set {name} type bridge vlan_filtering 1\", which holds for all its \
                 ports), delete the bridge, or name another one (\"bridge\")"
            )));
    }
    if settings.promiscuous && link.flags & link::PROMISCUOUS == 0 {
        link::set_promiscuous(host, link.index, true).map_err(|error| {
            failed(&format_args!("could not set promiscuous mode on \"{name}\": {error}"))
        })?;
    }
    if !link.is_up() {
        link::set_up(host, link.index).map_err(|error| failed(&error))?;
    }
    Ok(link)
}

/// The bridge's Ethernet address as it is now.
pub(super) fn mac_of(host: &mut Socket, bridge: &Link) -> Result<String, Error> {
    let link = link::by_index(host, bridge.index).map_err(|error| Error::internal(error.to_string()))?;
    let name = bridge.name;
    let link = link
        .ok_or_else(|| Error::internal(format!("could not lookup \"{name}\": it was deleted meanwhile")))?;
    Ok(link.mac.map(|mac| mac.to_string()).unwrap_or_default())
}

/// The first address of a network, which is its gateway where nobody says otherwise.
pub(super) fn first_address(net: IpNet) -> IpAddr {
    match net.network() {
        IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits().wrapping_add(1))),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits().wrapping_add(1))),
    }
}

/// The addresses that the bridge has to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gateways(Vec<IpNet>);

impl Gateways {
    /// The gateways of a pod's addresses, IPv4 first.
    pub(super) fn of(ips: &[IpConfig]) -> Gateways {
        let gateway = |ip: &IpConfig| IpNet::new(ip.gateway?, ip.address.prefix_len()).ok();
        let mut nets: Vec<IpNet> = ips.iter().filter_map(gateway).collect();
        nets.sort_by_key(|net| net.addr().is_ipv6());
        Gateways(nets)
    }

    /// The addresses.
    pub(super) fn addresses(&self) -> &[IpNet] {
        &self.0
    }

    /// Puts the addresses on the bridge, or on the device that stands for it in the pods' VLAN, which is
    /// returned; and has the host forward packets.
    pub(super) fn ensure(
        &self,
        host: &mut Socket,
        bridge: &Link,
        settings: &Settings,
    ) -> Result<Option<Link>, Error> {
        let vlan_link = match settings.vlan {
            Some(id) if !self.0.is_empty() => Some(
                vlan::ensure_gateway(host, bridge, settings, id)
                    .map_err(|error| error.context("failed to create vlan interface"))?,
            ),
            _ => None,
        };
        let (link, attempted) = match &vlan_link {
            Some(link) => (link, "failed to set vlan interface for bridge with addr"),
            None => (bridge, "failed to set bridge addr"),
        };
        self.ensure_addresses(host, link, settings).map_err(|error| error.context(attempted))?;
        forwarding::enable(self.0.iter().map(IpNet::addr))
            .map_err(|error| Error::internal(format!("failed to enable forwarding: {error}")))?;
        Ok(vlan_link)
    }

    fn ensure_addresses(&self, host: &mut Socket, link: &Link, settings: &Settings) -> Result<(), Error> {
        let present = address::list(host, Some(link.index))
            .map_err(|error| Error::internal(format!("could not get list of IP addresses: {error}")))?;
        let mut added = false;
        for wanted in &self.0 {
            if present.iter().any(|address| address.net == *wanted) {
                continue;
            }
            for other in present.iter().filter(|address| is_in_the_way(address.net, *wanted)) {
                if !settings.force_address {
                    return Err(wrong_address(link.name, other.net, *wanted));
                }
                address::remove(host, link.index, other.net).map_err(|error| {
                    Error::internal(format!("could not remove IP address from \"{}\": {error}", link.name))
                })?;
            }
            address::add(host, link.index, *wanted).map_err(|error| {
                Error::internal(format!("could not add IP address {wanted} to \"{}\": {error}", link.name))
            })?;
            added = true;
        }
        if added { pin_mac(host, link) } else { Ok(()) }
    }
}

/// Several IPv6 networks can live on one bridge if they do not overlap; of IPv4 there is one.
fn is_in_the_way(present: IpNet, wanted: IpNet) -> bool {
    match (present, wanted) {
        (IpNet::V4(_), IpNet::V4(_)) => true,
        (IpNet::V6(_), IpNet::V6(_)) => present.contains(&wanted.addr()) || wanted.contains(&present.addr()),
        _ => false,
    }
}

fn wrong_address(name: LinkName, present: IpNet, wanted: IpNet) -> Error {
    Error::internal(format!("\"{name}\" already has an IP address different from {wanted}")).details(format!(
        "it has {present}, of an earlier subnet or another program; if no pod uses it any more, \"ip addr del {present} \
         dev {name}\" or \"ip link del {name}\" makes way, or set \"forceAddress\": true"
    ))
}

/// Makes the bridge keep the address it has: else it would be that of a port, and change as ports come
/// and go, and with it what pods remember of their gateway.
fn pin_mac(host: &mut Socket, link: &Link) -> Result<(), Error> {
    let failed = |error: KernelError| Error::internal(format!("could not set bridge's mac: {error}"));
    // One whose ports all went has none.
    let mac = match link.mac.filter(|mac| !mac.is_zero()) {
        Some(mac) => mac,
        None => random_mac()?,
    };
    link::set_mac(host, link.index, mac).map_err(failed)
}
