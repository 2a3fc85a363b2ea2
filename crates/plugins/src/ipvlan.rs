//! `ipvlan`: gives a container IP addresses on a device of the host, behind its Ethernet address.

use cni::{AddResult, Error, Plugin, Request, Verb};
use kernel::virtual_link::{self, IpvlanMode, VirtualKind};

use crate::addressing::Detection;
use crate::attachment::{self, Addresses, internal};
use crate::container::open_namespace;
use crate::interface;
use crate::ipam::Ipam;
use crate::master;

/// The plugin.
#[derive(Debug, Clone, Copy)]
pub struct Ipvlan;

impl Plugin for Ipvlan {
    fn name(&self) -> &'static str {
        "ipvlan"
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let ipam = Ipam::of(request)?;
        let previous = request.config.prev_result()?;
        let addresses = match &previous {
            Some(previous) if !ipam.is_given() && !previous.ips.is_empty() => Addresses::Previous(previous),
            _ => {
                ipam.require()?;
                Addresses::Ipam(&ipam)
            }
        };
        let namespace = open_namespace(request)?;
        let master = below(request, previous.as_ref())?.find(&namespace)?;
        let (kind, mtu) = (VirtualKind::Ipvlan(mode(request)?), master.mtu(request)?);
        master.make(request, &namespace, kind, mtu, None)?;
        attachment::complete(request, &namespace, addresses, Detection::KernelDefault, || {
            let _ = interface::remove(request);
        })
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        attachment::del(request)
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let wanted = mode(request)?;
        let wish = master::Wish::of(request)?;
        // The result of a chain no longer says which device the chain began with.
        if wish.name.is_some() {
            wish.find(&open_namespace(request)?)?;
        }
        attachment::check(request, &Ipam::of(request)?, |socket, link| {
            match virtual_link::kind(socket, link.index).map_err(internal)? {
                Some(VirtualKind::Ipvlan(mode)) if mode == wanted => Ok(()),
                Some(VirtualKind::Ipvlan(mode)) => Err(Error::internal(format!(
                    "Container IPVlan mode {} does not match expected value: {}",
                    word(mode),
                    word(wanted)
                ))),
                _ => Err(attachment::wrong_kind(link, "ipvlan")),
            }
        })
        .map(drop)
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        mode(request)?;
        let ipam = Ipam::of(request)?;
        ipam.tell(Verb::Status, request)?;
        let wish = master::Wish::of(request)?;
        // In a chain the device may be made by the plugin before.
        if wish.name.is_none() && !ipam.is_given() { Ok(()) } else { wish.status() }
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        // The devices went with their containers.
        Ipam::for_removal(request).tell(Verb::Gc, request)
    }
}

/// The device below: in a chain that of the plugin before, unless the configuration names one.
fn below(request: &Request, previous: Option<&AddResult>) -> Result<master::Wish, Error> {
    let wish = master::Wish::of(request)?;
    let (None, Some(previous)) = (&wish.name, previous) else { return Ok(wish) };
    match previous.interfaces.as_slice() {
        [only] if !only.name.is_empty() => Ok(master::Wish { name: Some(only.name.clone()), ..wish }),
        _ => Err(Error::internal("chained master failure. PrevResult lacks a single named interface")
            .details("name the device below (\"master\")")),
    }
}

fn mode(request: &Request) -> Result<IpvlanMode, Error> {
    match request.config.object().string("mode")?.unwrap_or_default() {
        "" | "l2" => Ok(IpvlanMode::L2),
        "l3" => Ok(IpvlanMode::L3),
        "l3s" => Ok(IpvlanMode::L3s),
        other => Err(Error::internal(format!("unknown ipvlan mode: {other:?}"))
            .details("\"mode\" can be \"l2\", \"l3\" or \"l3s\"")),
    }
}

fn word(mode: IpvlanMode) -> &'static str {
    match mode {
        IpvlanMode::L2 => "l2",
        IpvlanMode::L3 => "l3",
        IpvlanMode::L3s => "l3s",
    }
}
