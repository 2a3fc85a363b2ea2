//! `vlan`: gives a container the frames with one VLAN tag of a device of the host.

use cni::{AddResult, Error, Plugin, Request, Verb};
use kernel::virtual_link::{self, VirtualKind};

use crate::addressing::Detection;
use crate::attachment::{self, Addresses, internal};
use crate::container::open_namespace;
use crate::interface;
use crate::ipam::Ipam;
use crate::master;

/// The plugin.
#[derive(Debug, Clone, Copy)]
pub struct Vlan;

impl Plugin for Vlan {
    fn name(&self) -> &'static str {
        "vlan"
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let (wish, id) = (below(request)?, id(request)?);
        let ipam = Ipam::of(request)?;
        let delegate = |error: Error| error.context("failed to execute IPAM delegate");
        ipam.require().map_err(delegate)?;
        let namespace = open_namespace(request)?;
        let master = wish.find(&namespace)?;
        let mtu = master.mtu(request)?;
        master.make(request, &namespace, VirtualKind::Vlan(id), mtu, None)?;
        attachment::complete(request, &namespace, Addresses::Ipam(&ipam), Detection::KernelDefault, || {
            let _ = interface::remove(request);
        })
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        attachment::del(request)
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let wanted = id(request)?;
        let mtu = request.config.object().integer("mtu")?.unwrap_or_default();
        below(request)?.find(&open_namespace(request)?)?;
        attachment::check(request, &Ipam::of(request)?, |socket, link| {
            match virtual_link::kind(socket, link.index).map_err(internal)? {
                Some(VirtualKind::Vlan(id)) if id == wanted => {}
                Some(VirtualKind::Vlan(id)) => {
                    return Err(Error::internal(format!(
                        "Container interface {} has VLAN ID {id}, configured is {wanted}",
                        link.name
                    )));
                }
                _ => return Err(attachment::wrong_kind(link, "vlan")),
            }
            if mtu != 0 && i64::from(link.mtu) != mtu {
                return Err(Error::internal(format!(
                    "Container interface {} has MTU {}, configured is {mtu}",
                    link.name, link.mtu
                )));
            }
            Ok(())
        })
        .map(drop)
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        id(request)?;
        Ipam::of(request)?.tell(Verb::Status, request)?;
        below(request)?.status()
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        // The devices went with their containers.
        Ipam::for_removal(request).tell(Verb::Gc, request)
    }
}

fn below(request: &Request) -> Result<master::Wish, Error> {
    let wish = master::Wish::of(request)?;
    if wish.name.is_none() {
        return Err(Error::internal(
            "\"master\" field is required. It specifies the host interface name to create the VLAN for",
        ));
    }
    Ok(wish)
}

fn id(request: &Request) -> Result<u16, Error> {
    match request.config.object().integer("vlanId")?.unwrap_or_default() {
        id @ 0..=4094 => Ok(id as u16),
        id => Err(Error::internal(format!("invalid VLAN ID {id} (must be between 0 and 4094)"))),
    }
}
