//! `ptp`: connects a container with the host by a veth pair, without a bridge.
//!
//! ```text
//!   host                                        container
//!   veth…  gateway/32 ════════════════════════  eth0  address/24
//!   route to address/32                         route to gateway/32
//!                                               route to the network through the gateway
//! ```
//!
//! The container reaches even its neighbors of the same network through the host: its end has no route
//! to the network but the one through the gateway.

use std::net::IpAddr;

use cni::{AddResult, Error, IpConfig, Plugin, Request, Verb, Version};
use ipnet::IpNet;
use kernel::netlink::Socket;
use kernel::netns::Namespace;
use kernel::route::{self, FoundTarget, Route};
use kernel::{address, link, loan, routing_table, sysctl};

use crate::addressing::{self, Detection};
use crate::attachment::{self, internal};
use crate::container::{inside, open_namespace, open_socket};
use crate::ipam::Ipam;
use crate::masquerade::{self, Backend};
use crate::veth::{self, Pair, Wish};
use crate::{forwarding, interface};

const SCOPE_UNIVERSE: u8 = 0;

/// The plugin.
#[derive(Debug, Clone, Copy)]
pub struct Ptp;

/// Checked settings.
#[derive(Debug, Clone)]
struct Settings {
    mtu: Option<u32>,
    /// None to leave packets as they are.
    masquerade: Option<Backend>,
    ipam: Ipam,
}

impl Plugin for Ptp {
    fn name(&self) -> &'static str {
        "ptp"
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let settings = Settings::parse(request)?;
        settings.ipam.require()?;
        let namespace = open_namespace(request)?;
        let mut host = open_socket()?;
        let given = settings.ipam.add(request)?;
        let wish = Wish { mtu: settings.mtu, ..Wish::default() };
        let give_back = |error| {
            let _ = settings.ipam.tell(Verb::Del, request);
            error
        };
        let pair = veth::create(&mut host, &wish, &namespace, request).map_err(give_back)?;
        attach(&mut host, &settings, request, &namespace, (&pair, given)).map_err(|error| {
            let _ = link::delete_by_name(&mut host, pair.host);
            if settings.masquerade.is_some() {
                let _ = masquerade::remove(request, &masquerade::iptables_traces(request), &[]);
            }
            give_back(error)
        })
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        // What makes no sense counts as asking for more to be taken away.
        let masks = request.config.object().boolean("ipMasq").map_or(true, Option::unwrap_or_default);
        let traces = if masks { masquerade::iptables_traces(request) } else { Vec::new() };
        // Only rules of iptables have to be found by address.
        let addresses = if traces.is_empty() { Vec::new() } else { addressing::addresses(request) };
        Ipam::for_removal(request).let_go_through_device(request);
        veth::remove(&mut open_socket()?, request)?;
        let masquerade = if masks { masquerade::remove(request, &traces, &addresses) } else { Ok(()) };
        Ipam::for_removal(request).tell(Verb::Del, request)?;
        masquerade
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let settings = Settings::parse(request)?;
        let result = attachment::check(request, &settings.ipam, |_, link| match link.kind.name() {
            "veth" => Ok(()),
            _ => Err(attachment::wrong_kind(link, "veth/p2p")),
        })?;
        check_host(&mut open_socket()?, &result)?;
        let addresses: Vec<IpNet> = result.ips.iter().map(|ip| ip.address).collect();
        if settings.masquerade.is_some() && !masquerade::is_installed(request, &addresses)? {
            let id = &request.environment.container_id;
            return Err(Error::internal(format!("masquerade rules of container {id} are missing")));
        }
        Ok(())
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        Settings::parse(request)?.ipam.tell(Verb::Status, request)
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        let valid = request.config.valid_attachments()?;
        let links = open_socket().and_then(|mut host| veth::keep_only(&mut host, None, request, &valid));
        let masquerade = masquerade::keep_only(request, &valid);
        Ipam::for_removal(request).tell(Verb::Gc, request)?;
        links.and(masquerade)
    }
}

impl Settings {
    fn parse(request: &Request) -> Result<Settings, Error> {
        let config = request.config.object();
        let backend = Backend::of(&config)?;
        let mtu = config.integer("mtu")?.filter(|mtu| *mtu > 0).map(u32::try_from).transpose();
        Ok(Settings {
            mtu: mtu.map_err(|_| config.error("mtu", "at most 4294967295"))?,
            masquerade: config.boolean("ipMasq")?.unwrap_or_default().then_some(backend),
            ipam: Ipam::of(request)?,
        })
    }
}

/// Everything after the pair is there and the addresses are given.
fn attach(
    host: &mut Socket,
    settings: &Settings,
    request: &Request,
    namespace: &Namespace,
    (pair, given): (&Pair, AddResult),
) -> Result<AddResult, Error> {
    // So that GC knows its network; two may share the first letters of the name.
    loan::set_alias(host, pair.host_index, request.config.name()).map_err(internal)?;
    let mut result = AddResult::empty(Version::CURRENT);
    result.interfaces = vec![
        interface::describe(pair.host, Some(pair.host_mac)),
        interface::describe_inside(pair.container, Some(pair.container_mac), request),
    ];
    result.ips = given.ips;
    result.ips.iter_mut().for_each(|ip| ip.interface = Some(1));
    result.routes = given.routes;
    result.dns = given.dns;
    let hops = Hop::all(&result.ips)?;
    forwarding::enable(hops.iter().map(|hop| hop.address.addr()))
        .map_err(|error| Error::internal(format!("Could not enable IP forwarding: {error}")))?;
    configure_container(namespace, request, &result, &hops)?;
    configure_host(host, pair, &hops)?;
    if let Some(backend) = settings.masquerade {
        let addresses: Vec<IpNet> = hops.iter().map(|hop| hop.address).collect();
        masquerade::install(backend, request, &addresses)?;
    }
    attachment::override_dns(request, &mut result)?;
    result.convert(request.version)
}

/// An address of the container and the one of the host that it talks to.
#[derive(Debug, Clone, Copy)]
struct Hop {
    address: IpNet,
    gateway: IpAddr,
}

impl Hop {
    fn all(ips: &[IpConfig]) -> Result<Vec<Hop>, Error> {
        let hop = |ip: &IpConfig| match ip.gateway {
            Some(gateway) => Ok(Hop { address: ip.address, gateway }),
            None => Err(Error::internal(format!("IPAM plugin gave {} without a gateway", ip.address))
                .details("the host's end of the pair gets the gateway's address: name one in \"ipam\"")),
        };
        ips.iter().map(hop).collect()
    }

    /// The route to the gateway itself.
    fn to_gateway(self, index: u32) -> Route {
        Route {
            source: Some(self.address.addr()),
            scope: Some(address::SCOPE_LINK),
            ..Route::new(IpNet::from(self.gateway), None, index)
        }
    }

    /// The route to all others of the network.
    fn to_network(self, index: u32) -> Route {
        Route {
            source: Some(self.address.addr()),
            scope: Some(SCOPE_UNIVERSE),
            ..Route::new(self.address.trunc(), Some(self.gateway), index)
        }
    }

    /// The route that the kernel makes with the address, by which the others would be on the link.
    fn on_link(self, index: u32) -> Route {
        Route {
            scope: Some(address::SCOPE_LINK),
            protocol: routing_table::MADE_BY_KERNEL,
            ..Route::new(self.address.trunc(), None, index)
        }
    }

    /// Whether the address has a network around it.
    fn has_network(self) -> bool {
        self.address.prefix_len() < self.address.max_prefix_len()
    }
}

fn configure_container(
    namespace: &Namespace,
    request: &Request,
    result: &AddResult,
    hops: &[Hop],
) -> Result<(), Error> {
    let ifname = &request.environment.ifname;
    // Nobody else is on this link who could have an address too.
    addressing::configure_with(namespace, Detection::Off, ifname, result, |index| {
        let mut routes: Vec<Route> = Vec::new();
        for hop in hops {
            let to_gateway = hop.to_gateway(index);
            // Several addresses may share a gateway.
            if !routes.iter().any(|route| route.destination == to_gateway.destination) {
                routes.push(to_gateway);
            }
        }
        routes
    })?;
    inside(namespace, ifname, |socket, index| {
        for hop in hops.iter().filter(|hop| hop.has_network()) {
            let network = hop.address.trunc();
            route::remove(socket, &hop.on_link(index))
                .map_err(|error| Error::internal(format!("failed to delete route {network}: {error}")))?;
            route::replace(socket, &hop.to_network(index))
                .map_err(|error| Error::internal(format!("failed to add route {network}: {error}")))?;
        }
        Ok(())
    })
}

fn configure_host(host: &mut Socket, pair: &Pair, hops: &[Hop]) -> Result<(), Error> {
    // Routers beyond the container have no say in the host's routes.
    let _ = sysctl::write(&format!("net/ipv6/conf/{}/accept_ra", pair.host), "0");
    for hop in hops {
        let gateway = IpNet::from(hop.gateway);
        address::add(host, pair.host_index, gateway)
            .map_err(|error| Error::internal(format!("failed to add IP addr {gateway} to veth: {error}")))?;
        let route = Route {
            scope: Some(address::SCOPE_HOST),
            ..Route::new(IpNet::from(hop.address.addr()), None, pair.host_index)
        };
        route::replace(host, &route)
            .map_err(|error| Error::internal(format!("failed to add route on host: {error}")))?;
    }
    Ok(())
}

/// The host's side of what [`configure_host`] made: each address is reached through a listed device.
fn check_host(host: &mut Socket, result: &AddResult) -> Result<(), Error> {
    let mut indices = Vec::new();
    for listed in result.interfaces.iter().filter(|listed| listed.sandbox.is_empty()) {
        let Ok(name) = listed.name.parse() else { continue };
        let index = link::index(host, name).map_err(internal)?;
        indices.push(index.ok_or_else(|| Error::internal(format!("Interface name {name} not found")))?);
    }
    let routes = route::list(host).map_err(internal)?;
    for ip in &result.ips {
        let wanted = IpNet::from(ip.address.addr());
        let is_it = |route: &route::Found| {
            route.destination == wanted
                && matches!(route.target, FoundTarget::Device(link) if indices.contains(&link))
        };
        if !routes.iter().any(is_it) {
            return Err(Error::internal(format!("Expected Route {wanted} on the host not found")));
        }
    }
    Ok(())
}
