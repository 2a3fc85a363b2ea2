//! CHECK: whether an attachment is still as ADD reported it.

use cni::{AddResult, Error, Interface, Request};
use fabric::LinkName;
use ipnet::IpNet;
use kernel::link::{self, Kind, Link};
use kernel::netlink::Socket;
use kernel::netns::Namespace;
use kernel::{KernelError, address};

use super::gateway::Gateways;
use super::settings::Settings;
use super::vlan;
use crate::container::{inside, open_socket};
use crate::interface::{listed, same_mac};
use crate::{addressing, masquerade};

/// Compares host and container with the result in the configuration.
pub(super) fn run(settings: &Settings, request: &Request, namespace: &Namespace) -> Result<(), Error> {
    let result =
        request.config.prev_result()?.ok_or_else(|| Error::internal("Required prevResult missing"))?;
    let environment = &request.environment;
    let bridge_listed =
        result.interfaces.iter().find(|i| i.name == settings.bridge.as_str() && i.sandbox.is_empty());
    let pod_listed = listed(&result, request)?;

    let mut host = open_socket()?;
    let bridge = check_bridge(&mut host, settings, bridge_listed)?;
    let pod = inside(namespace, &environment.ifname, |socket, index| {
        let link = link::by_index(socket, index)
            .map_err(internal)?
            .ok_or_else(|| Error::internal(format!("Interface name {} not found", environment.ifname)))?;
        check_pod(socket, &link, pod_listed, &result)?;
        Ok(link)
    })?;
    let port = check_port(&mut host, &bridge, &pod, &result)?;
    vlan::check_port(&mut host, settings, &port)?;
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
    addressing::check(socket, link.index, name.as_str(), result)
}

/// The host's end: some listed device that is the other end of the pod's, on the bridge.
fn check_port(host: &mut Socket, bridge: &Link, pod: &Link, result: &AddResult) -> Result<Link, Error> {
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
        return Ok(link);
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
        let name = vlan::gateway_name(bridge.name, id)?;
        link = link::by_name(host, name)
            .map_err(internal)?
            .ok_or_else(|| Error::internal(format!("Interface name {name} not found")))?;
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

fn internal(error: KernelError) -> Error {
    Error::internal(error.to_string())
}
