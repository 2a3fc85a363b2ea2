//! `dummy`: gives a container a device that drops whatever is sent, to hold addresses.

use cni::{AddResult, Error, Plugin, Request, Verb};
use fabric::LinkName;
use kernel::virtual_link::{VirtualKind, VirtualLink};

use crate::addressing::Detection;
use crate::attachment::{self, Addresses};
use crate::container::{enter, open_namespace};
use crate::interface;
use crate::ipam::Ipam;

/// The plugin.
#[derive(Debug, Clone, Copy)]
pub struct Dummy;

impl Plugin for Dummy {
    fn name(&self) -> &'static str {
        "dummy"
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let ipam = ipam(request)?;
        let namespace = open_namespace(request)?;
        let ifname = &request.environment.ifname;
        let name: LinkName = ifname.parse().map_err(|error| Error::internal(format!("{error}")))?;
        enter(&namespace, |socket| {
            let kind = VirtualKind::Dummy;
            attachment::make(socket, &VirtualLink { name, kind, lower: None, mtu: None, mac: None })
        })?;
        // There is nobody who could have the address too.
        attachment::complete(request, &namespace, Addresses::Ipam(&ipam), Detection::Off, || {
            let _ = interface::remove(request);
        })
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        attachment::del(request)
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        attachment::check(request, &ipam(request)?, |_, link| {
            if link.kind.name() != "dummy" {
                return Err(attachment::wrong_kind(link, "dummy"));
            }
            if !link.is_up() {
                return Err(Error::internal(format!("Interface {} is down", link.name)));
            }
            Ok(())
        })
        .map(drop)
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        Ipam::of(request)?.tell(Verb::Status, request)
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        // The devices went with their containers.
        Ipam::for_removal(request).tell(Verb::Gc, request)
    }
}

fn ipam(request: &Request) -> Result<Ipam, Error> {
    let ipam = Ipam::of(request)?;
    if ipam.is_given() {
        return Ok(ipam);
    }
    Err(Error::internal("dummy interface requires an IPAM configuration"))
}
