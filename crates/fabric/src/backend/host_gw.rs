//! `host-gw`: each node is the gateway to its pod subnet, on one layer-2 network.
//!
//! A peer costs one route, `SUBNET via NODE dev INTERFACE`. The kernel takes it only if the node's
//! address is on the interface's own network, so a peer behind a router is refused with that reason
//! before the kernel refuses it with none.

use std::net::IpAddr;

use super::{Path, Peer};
use crate::config::NetworkConfig;
use crate::dataplane::{Dataplane, NextHop};
use crate::host::{ExternalInterface, Host, Reach};
use crate::lease::Attributes;

pub(super) fn attributes(config: &NetworkConfig, external: &ExternalInterface) -> Attributes {
    Attributes {
        public_ipv4: external.public_ipv4.filter(|_| config.ipv4.is_some()),
        public_ipv6: external.public_ipv6.filter(|_| config.ipv6.is_some()),
        backend_type: "host-gw".into(),
        ..Attributes::default()
    }
}

/// Compatibility: the address is compared for IPv4 only, as in the original.
pub(super) fn check(config: &NetworkConfig, external: &ExternalInterface) -> Result<(), String> {
    if config.ipv4.is_some() && external.public_ipv4 != external.ipv4 {
        let shown = |ip: Option<std::net::Ipv4Addr>| ip.map_or("none".to_owned(), |ip| ip.to_string());
        return Err(format!(
            "your PublicIP differs from interface IP, meaning that probably you're on a NAT, which is not \
             supported by host-gw backend: the public address is {}, {} has {}; drop --public-ip, or use vxlan",
            shown(external.public_ipv4),
            external.link,
            shown(external.ipv4),
        ));
    }
    Ok(())
}

/// Adds the route to one pod subnet of a peer.
pub(super) fn peer(host: &Host, peer: &Peer, into: &mut Dataplane) -> Result<Path, String> {
    if host.reach(peer.public) == Some(Reach::Gateway) {
        return Err(format!(
            "its address {} is behind a router, and host-gw needs all nodes on one layer-2 network; \
             use vxlan with DirectRouting",
            peer.public
        ));
    }
    super::add_route(host, peer.subnet, next_hop(host, peer.public), into);
    Ok(Path::Direct)
}

fn next_hop(host: &Host, gateway: IpAddr) -> NextHop {
    NextHop { gateway, link: host.external.link, onlink: false }
}
