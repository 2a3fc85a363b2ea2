//! Cables and switches: veth pairs, bridges, addresses, default routes.

use anyhow::{Context, Result};
use fabric::LinkName;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use kernel::bridge::{self, Bridge};
use kernel::link::{self, Veth};
use kernel::netlink::{Protocol, Socket};
use kernel::route::{self, Route};
use kernel::{address, netns, sysctl};

use crate::namespace::Namespace;

pub(crate) fn set_up(namespace: &Namespace, link: &str) -> Result<()> {
    with_link(namespace, link, |socket, index| Ok(link::set_up(socket, index)?))
}

pub(crate) fn set_down(namespace: &Namespace, link: &str) -> Result<()> {
    with_link(namespace, link, |socket, index| Ok(link::set_down(socket, index)?))
}

/// A bridge that is up.
pub(crate) fn create_bridge(namespace: &Namespace, name: &str, mtu: u32) -> Result<()> {
    let bridge = Bridge { mtu: Some(mtu), ..Bridge::named(link_name(name)) };
    with_socket(namespace, |socket| Ok(bridge::create_bridge(socket, &bridge)?))
}

/// A cable from `port` on the bridge of `switch` to `link` in `node`, both ends up.
pub(crate) fn connect(
    (switch, bridge, port): (&Namespace, &str, &str),
    (node, link): (&Namespace, &str),
    mtu: u32,
) -> Result<()> {
    let peer = netns::open(&node.path())?;
    with_link(switch, bridge, |socket, master| {
        let veth = Veth {
            name: link_name(port),
            mac: None,
            mtu: Some(mtu),
            master: Some(master),
            peer_name: link_name(link),
            peer_mac: None,
            peer_namespace: std::os::fd::AsFd::as_fd(&peer),
        };
        Ok(link::create_veth(socket, &veth)?)
    })?;
    skip_duplicate_address_detection(node, link)?;
    set_up(node, link)
}

/// The underlay of a real node was up long before its flanneld: its IPv6 addresses must be usable at
/// once. `link` may be `default`, for all devices to come.
pub(crate) fn skip_duplicate_address_detection(namespace: &Namespace, link: &str) -> Result<()> {
    match set_sysctl(namespace, &format!("net/ipv6/conf/{link}/accept_dad"), "0") {
        // A kernel without IPv6 has nothing to detect.
        Err(_) if !std::path::Path::new("/proc/sys/net/ipv6").exists() => Ok(()),
        done => done,
    }
}

pub(crate) fn add_address(namespace: &Namespace, link: &str, net: IpNet) -> Result<()> {
    with_link(namespace, link, |socket, index| Ok(address::add(socket, index, net)?))
}

pub(crate) fn add_default_route(namespace: &Namespace, link: &str, gateway: IpNet) -> Result<()> {
    let everywhere = match gateway {
        IpNet::V4(_) => IpNet::V4(Ipv4Net::default()),
        IpNet::V6(_) => IpNet::V6(Ipv6Net::default()),
    };
    with_link(namespace, link, |socket, index| {
        Ok(route::add(socket, &Route::new(everywhere, Some(gateway.addr()), index))?)
    })
}

/// The addresses of a link that are not link-local, IPv4 first.
pub(crate) fn addresses(namespace: &Namespace, link: &str) -> Result<Vec<IpNet>> {
    let mut nets: Vec<IpNet> = with_link(namespace, link, |socket, index| {
        Ok(address::list(socket, Some(index))?.iter().map(|address| address.net).collect())
    })?;
    nets.retain(|net| !matches!(net, IpNet::V6(net) if net.addr().is_unicast_link_local()));
    nets.sort();
    Ok(nets)
}

/// Writes a file below `/proc/sys` as seen from a namespace.
pub(crate) fn set_sysctl(namespace: &Namespace, path: &str, value: &str) -> Result<()> {
    Ok(namespace.within(|| sysctl::write(path, value))??)
}

fn with_link<T: Send>(
    namespace: &Namespace,
    link: &str,
    deed: impl FnOnce(&mut Socket, u32) -> Result<T> + Send,
) -> Result<T> {
    with_socket(namespace, |socket| {
        let index = link::index(socket, link_name(link))?.context("there is no such device")?;
        deed(socket, index)
    })
    .with_context(|| format!("device {link} in {}", namespace.name()))
}

fn with_socket<T: Send>(
    namespace: &Namespace,
    deed: impl FnOnce(&mut Socket) -> Result<T> + Send,
) -> Result<T> {
    namespace.within(|| deed(&mut Socket::open(Protocol::Route)?))?
}

fn link_name(name: &str) -> LinkName {
    name.parse().expect("a lab names its devices by a word and a small number")
}
