//! CHECK: whether an attachment is still as ADD reported it.

use std::net::IpAddr;

use cni::{AddResult, Error, Interface, Request};
use fabric::LinkName;
use ipnet::IpNet;
use kernel::link::{self, Kind, Link};
use kernel::netlink::Socket;
use kernel::netns::Namespace;
use kernel::route::{self, FoundTarget};
use kernel::{KernelError, address};

use super::gateway::Gateways;
use super::settings::Settings;
use super::{container, masquerade, open_socket};

/// Compares host and container with the result in the configuration.
pub(super) fn run(settings: &Settings, request: &Request, namespace: &Namespace) -> Result<(), Error> {
    let result =
        request.config.prev_result()?.ok_or_else(|| Error::internal("Required prevResult missing"))?;
    let environment = &request.environment;
    let bridge_listed =
        result.interfaces.iter().find(|i| i.name == settings.bridge.as_str() && i.sandbox.is_empty());
    let pod_listed = result
        .interfaces
        .iter()
        .find(|i| i.name == environment.ifname && i.sandbox == environment.netns)
        .ok_or_else(|| {
            Error::internal(format!(
                "prevResult has no interface {:?} in {}",
                environment.ifname, environment.netns
            ))
        })?;

    let mut host = open_socket()?;
    let bridge = check_bridge(&mut host, settings, bridge_listed)?;
    let pod = container::inside(namespace, &environment.ifname, |socket, index| {
        let link = link::by_index(socket, index)
            .map_err(internal)?
            .ok_or_else(|| Error::internal(format!("Interface name {} not found", environment.ifname)))?;
        check_pod(socket, &link, pod_listed, &result)?;
        Ok(link)
    })?;
    check_port(&mut host, &bridge, &pod, &result)?;
    if settings.has_ipam() && settings.is_gateway {
        check_gateway(&mut host, &bridge, settings, &result)?;
    }
    let addresses: Vec<IpNet> = result.ips.iter().map(|ip| ip.address).collect();
    if settings.has_ipam() && settings.ip_masq && !masquerade::is_installed(request, &addresses)? {
        return Err(Error::internal(format!(
            "masquerade rules of container {} are missing",
            environment.container_id
        )));
    }
    Ok(())
}

fn check_bridge(host: &mut Socket, settings: &Settings, listed: Option<&Interface>) -> Result<Link, Error> {
    let name = settings.bridge;
    let listed = listed.ok_or_else(|| {
        Error::internal(format!("CNI created bridge {name} in host namespace was not found"))
            .details("prevResult does not list it")
    })?;
    let link = link::by_name(host, name)
        .map_err(internal)?
        .ok_or_else(|| Error::internal(format!("Interface name {name} not found")))?;
    if !matches!(link.kind, Kind::Bridge { .. }) {
        return Err(Error::internal(format!("Interface {name} does not have link type of bridge")));
    }
    if !same_mac(listed, &link) {
        return Err(Error::internal(format!("Bridge interface {name} Mac doesn't match: {}", listed.mac)));
    }
    let promiscuous = link.flags & link::PROMISCUOUS != 0;
    if promiscuous != settings.promiscuous {
        return Err(Error::internal(format!(
            "Bridge interface {name} configured Promisc Mode {} doesn't match current state: {promiscuous} ",
            settings.promiscuous
        )));
    }
    Ok(link)
}

fn check_pod(socket: &mut Socket, link: &Link, listed: &Interface, result: &AddResult) -> Result<(), Error> {
    let name = link.name;
    if link.kind.name() != "veth" {
        return Err(Error::internal(format!("Error: Container interface {name} not of type veth")));
    }
    if !same_mac(listed, link) {
        let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
        return Err(Error::internal(format!(
            "Interface {name} Mac {} doesn't match container Mac: {mac}",
            listed.mac
        )));
    }
    let addresses = address::list(socket, Some(link.index)).map_err(internal)?;
    let routes = route::list(socket).map_err(internal)?;
    for ip in &result.ips {
        if !addresses.iter().any(|address| address.net == ip.address) {
            return Err(Error::internal(format!("Failed to match addr {} on interface {name}", ip.address)));
        }
        let whole = ip.address.prefix_len() == ip.address.max_prefix_len();
        if !whole && !routes.iter().any(|route| route.destination == ip.address.trunc()) {
            return Err(Error::internal(format!(
                "Expected Route {} for addr {} on interface {name} not found",
                ip.address.trunc(),
                ip.address
            )));
        }
    }
    // Routes of other tables are for plugins that come later, and the kernel is asked for the main one.
    for wanted in result.routes.iter().filter(|route| route.table.is_none()) {
        let gateway = wanted.gw.filter(|_| wanted.dst.prefix_len() > 0);
        let is_there = routes.iter().any(|route| {
            route.destination == wanted.dst.trunc()
                && gateway.is_none_or(|gateway| goes_via(route.target, gateway))
        });
        if !is_there {
            return Err(Error::internal(format!("Expected Route {} via {gateway:?} not found", wanted.dst)));
        }
    }
    Ok(())
}

fn goes_via(target: FoundTarget, wanted: IpAddr) -> bool {
    match target {
        FoundTarget::Via { gateway, .. } => gateway == wanted,
        // Several paths, or a next-hop object: somebody changed it later and meant to.
        _ => true,
    }
}

/// The host's end: some listed device that is the other end of the pod's, on the bridge.
fn check_port(host: &mut Socket, bridge: &Link, pod: &Link, result: &AddResult) -> Result<(), Error> {
    for listed in result.interfaces.iter().filter(|i| i.sandbox.is_empty() && i.name != bridge.name.as_str())
    {
        let Ok(name) = listed.name.parse::<LinkName>() else { continue };
        let link = link::by_name(host, name)
            .map_err(internal)?
            .ok_or_else(|| Error::internal(format!("Interface name {name} not found")))?;
        let is_port = link.kind.name() == "veth"
            && pod.lower == Some(link.index)
            && link.lower == Some(pod.index)
            && link.master == Some(bridge.index);
        if !is_port {
            continue;
        }
        if !same_mac(listed, &link) {
            return Err(Error::internal(format!(
                "Interface {name} Mac doesn't match: {} not found",
                listed.mac
            )));
        }
        return Ok(());
    }
    Err(Error::internal(format!("CNI veth created for bridge {} was not found", bridge.name)))
}

/// The addresses by which the bridge, or the device that stands for it in a VLAN, is the gateway.
fn check_gateway(
    host: &mut Socket,
    bridge: &Link,
    settings: &Settings,
    result: &AddResult,
) -> Result<(), Error> {
    let mut link = bridge.clone();
    if let Some(id) = settings.vlan {
        let text = format!("{}.{id}", bridge.name);
        let name: LinkName = text.parse().map_err(|error| Error::internal(format!("{error}")))?;
        link = link::by_name(host, name)
            .map_err(internal)?
            .ok_or_else(|| Error::internal(format!("Interface name {text} not found")))?;
    }
    let present = address::list(host, Some(link.index)).map_err(internal)?;
    for wanted in Gateways::of(&result.ips).addresses() {
        if !present.iter().any(|address| address.net == *wanted) {
            return Err(Error::internal(format!(
                "{:?} has lost the gateway address {wanted}",
                link.name.as_str()
            )));
        }
    }
    Ok(())
}

fn same_mac(listed: &Interface, link: &Link) -> bool {
    listed.mac.is_empty() || link.mac.is_some_and(|mac| mac.to_string().eq_ignore_ascii_case(&listed.mac))
}

fn internal(error: KernelError) -> Error {
    Error::internal(error.to_string())
}
