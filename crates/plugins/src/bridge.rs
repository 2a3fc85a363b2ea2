//! `bridge`: attaches a pod to a Linux bridge of the host by a veth pair.
//!
//! What happens in which order is in this file; the parts are in [`gateway`] (the bridge and its
//! addresses), [`port`] (the host's end of the veth pair), [`spoof`] and [`vlan`]. What the configuration
//! says is in [`settings`].

mod check;
mod gateway;
mod port;
mod settings;
mod spoof;
mod vlan;

use std::net::IpAddr;

use cni::{AddResult, Attachment, Error, IpConfig, Plugin, Request, Route, Verb, Version};
use ipnet::IpNet;
use kernel::link::{self, Link};
use kernel::netlink::Socket;
use kernel::netns::Namespace;

use self::gateway::Gateways;
use self::settings::{Removal, Settings};
use crate::addressing::Detection;
use crate::container::{self, open_namespace, open_socket};
use crate::veth::{self, Pair, Wish};
use crate::{addressing, interface, masquerade};

/// The plugin.
#[derive(Debug, Clone, Copy)]
pub struct Bridge;

impl Plugin for Bridge {
    fn name(&self) -> &'static str {
        "bridge"
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let settings = Settings::parse(request)?;
        settings.check_for_add()?;
        let namespace = open_namespace(request)?;
        let mut host = open_socket()?;
        let bridge = gateway::ensure_bridge(&mut host, &settings)?;
        let wish = Wish { mtu: settings.mtu, mac: settings.mac, master: Some(bridge.index) };
        let pair = veth::create(&mut host, &wish, &namespace, request)?;
        let mut attaching =
            Attaching { settings: &settings, request, namespace: &namespace, ipam_done: false };
        let attached = attaching.run(&mut host, &bridge, &pair);
        if attached.is_err() {
            attaching.undo(&mut host, &pair);
        }
        attached?.convert(request.version)
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        let removal = Removal::of(request);
        let traces = if removal.masquerade { masquerade::iptables_traces(request) } else { Vec::new() };
        // Only rules of iptables have to be found by address.
        let addresses = if traces.is_empty() { Vec::new() } else { addressing::addresses(request) };
        removal.ipam.let_go_through_device(request);
        veth::remove(&mut open_socket()?, request)?;
        let masquerade =
            if removal.masquerade { masquerade::remove(request, &traces, &addresses) } else { Ok(()) };
        let spoof = if removal.mac_spoof_check { spoof::remove(request) } else { Ok(()) };
        // The address comes last: nobody else may get it while anything still answers for it or acts on it.
        removal.ipam.tell(Verb::Del, request)?;
        masquerade.and(spoof)
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let settings = Settings::parse(request)?;
        let namespace = open_namespace(request)?;
        // Compatibility: a layer-2 attachment has no IPAM to ask; the original asks for one without name.
        settings.ipam.tell(Verb::Check, request)?;
        check::run(&settings, request, &namespace)
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        let settings = Settings::parse(request)?;
        settings.ipam.tell(Verb::Status, request)?;
        Ok(())
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        let settings = Settings::parse(request)?;
        let valid = request.config.valid_attachments()?;
        let mut host = open_socket()?;
        let links = keep_ports(&mut host, &settings, request, &valid);
        let spoof = spoof::remove_unused(&mut host);
        let masquerade = masquerade::keep_only(request, &valid);
        settings.ipam.tell(Verb::Gc, request)?;
        links.and(spoof).and(masquerade)
    }
}

/// One attachment while it is made.
struct Attaching<'a> {
    settings: &'a Settings,
    request: &'a Request,
    namespace: &'a Namespace,
    ipam_done: bool,
}

impl Attaching<'_> {
    /// Everything after the pair is there.
    fn run(&mut self, host: &mut Socket, bridge: &Link, pair: &Pair) -> Result<AddResult, Error> {
        let settings = self.settings;
        port::set_up(host, settings, pair)?;
        if settings.mac_spoof_check {
            spoof::install(self.request, pair)?;
        }
        let mut result = AddResult::empty(Version::CURRENT);
        result.interfaces = vec![
            interface::describe(bridge.name, bridge.mac),
            interface::describe(pair.host, Some(pair.host_mac)),
            interface::describe_inside(pair.container, Some(pair.container_mac), self.request),
        ];
        if settings.ipam.is_given() {
            self.configure_layer_3(host, bridge, &mut result)?;
        } else if !settings.disable_container_interface {
            container::set_up(self.namespace, &self.request.environment.ifname)?;
        }
        if !settings.disable_container_interface {
            port::wait_until_up(host, pair)?;
        }
        // Its address may have been set just now, by this call or by one beside it.
        result.interfaces[0].mac = gateway::mac_of(host, bridge)?;
        if let Some(dns) = &settings.dns {
            result.dns = dns.clone();
        }
        Ok(result)
    }

    fn configure_layer_3(
        &mut self,
        host: &mut Socket,
        bridge: &Link,
        result: &mut AddResult,
    ) -> Result<(), Error> {
        let (settings, request) = (self.settings, self.request);
        let given = settings.ipam.add(request)?;
        self.ipam_done = true;
        result.ips = given.ips.iter().map(|ip| complete(ip, settings)).collect();
        result.routes = given.routes;
        result.dns = given.dns;
        if settings.is_default_gateway {
            add_default_routes(result);
        }
        let detection = if settings.enable_dad { Detection::On } else { Detection::Off };
        addressing::configure(self.namespace, detection, &request.environment.ifname, result)?;
        if settings.is_gateway {
            let gateways = Gateways::of(&result.ips);
            let vlan_link = gateways.ensure(host, bridge, settings)?;
            result.interfaces.extend(vlan_link.map(|link| interface::describe(link.name, link.mac)));
        }
        if settings.ip_masq {
            let addresses: Vec<IpNet> = result.ips.iter().map(|ip| ip.address).collect();
            masquerade::install(settings.ip_masq_backend, request, &addresses)?;
        }
        Ok(())
    }

    /// Takes away what was made; errors are of no use to anyone, the one that led here is reported.
    fn undo(&self, host: &mut Socket, pair: &Pair) {
        if self.settings.mac_spoof_check {
            let _ = spoof::remove(self.request);
        }
        let _ = kernel::link::delete_by_name(host, pair.host);
        if self.settings.ip_masq && self.ipam_done {
            let _ = masquerade::remove(self.request, &masquerade::iptables_traces(self.request), &[]);
        }
        if self.ipam_done {
            let _ = self.settings.ipam.tell(Verb::Del, self.request);
        }
    }
}

fn keep_ports(
    host: &mut Socket,
    settings: &Settings,
    request: &Request,
    valid: &[Attachment],
) -> Result<(), Error> {
    let bridge = link::index(host, settings.bridge).map_err(|error| Error::internal(error.to_string()))?;
    match bridge {
        Some(bridge) => veth::keep_only(host, Some(bridge), request, valid),
        None => Ok(()),
    }
}

/// An address of IPAM with what it leaves to the bridge: the link, and the gateway if that is us.
fn complete(ip: &IpConfig, settings: &Settings) -> IpConfig {
    let own = settings.is_gateway.then(|| gateway::first_address(ip.address));
    IpConfig { interface: Some(2), address: ip.address, gateway: ip.gateway.or(own) }
}

/// A default route through the first gateway of each family that has none yet.
///
/// Compatibility: a default route without a gateway does not count.
fn add_default_routes(result: &mut AddResult) {
    for ipv4 in [true, false] {
        let Some(ip) = result.ips.iter().find(|ip| ip.address.addr().is_ipv4() == ipv4) else { continue };
        let unspecified: IpAddr = if ipv4 { [0; 4].into() } else { [0; 16].into() };
        let default = IpNet::new(unspecified, 0).expect("zero is a prefix length");
        if !result.routes.iter().any(|route| route.dst == default && route.gw.is_some()) {
            result.routes.push(Route { gw: ip.gateway, ..Route::to(default) });
        }
    }
}
