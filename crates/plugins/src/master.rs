//! The device that an attachment's device stands on: macvlan, ipvlan and vlan have one.

use std::os::fd::AsFd as _;

use cni::error::code;
use cni::{Error, Request};
use fabric::{LinkName, Mac};
use kernel::link::{self, Link};
use kernel::netlink::Socket;
use kernel::netns::{self, Namespace};
use kernel::route::{self, FoundTarget};
use kernel::virtual_link::{Lower, VirtualKind, VirtualLink};

use crate::attachment::{self, internal};
use crate::container::{enter, open_socket};

/// Where the configuration says that it is.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    /// Its name (`master`); none for the one with the default route.
    pub(crate) name: Option<String>,
    /// Whether it is in the container (`linkInContainer`).
    pub(crate) in_container: bool,
}

/// A device that is there.
#[derive(Debug, Clone)]
pub(crate) struct Master {
    /// The device.
    pub(crate) link: Link,
    in_container: bool,
}

impl Wish {
    /// What the configuration says.
    pub(crate) fn of(request: &Request) -> Result<Wish, Error> {
        let config = request.config.object();
        let name = config.string("master")?.filter(|name| !name.is_empty());
        let in_container = config.boolean("linkInContainer")?.unwrap_or_default();
        Ok(Wish { name: name.map(str::to_owned), in_container })
    }

    /// Finds it.
    pub(crate) fn find(&self, namespace: &Namespace) -> Result<Master, Error> {
        let link = if self.in_container {
            enter(namespace, |socket| self.look(socket))?
        } else {
            self.look(&mut open_socket()?)?
        };
        Ok(Master { link, in_container: self.in_container })
    }

    /// Fails as STATUS does if it is not there, as far as that can be known without a container.
    pub(crate) fn status(&self) -> Result<(), Error> {
        if self.in_container {
            return Ok(());
        }
        let unavailable = |error: Error| Error { code: code::PLUGIN_NOT_AVAILABLE, ..error };
        self.look(&mut open_socket()?).map(drop).map_err(unavailable)
    }

    fn look(&self, socket: &mut Socket) -> Result<Link, Error> {
        let Some(name) = &self.name else { return with_default_route(socket) };
        let failed = |why: &str| Error::internal(format!("failed to lookup master {name:?}: {why}"));
        let name: LinkName = name.parse().map_err(|error| failed(&format!("{error}")))?;
        let found = link::by_name(socket, name).map_err(|error| failed(&error.to_string()))?;
        found.ok_or_else(|| {
            let place = if self.in_container { "the container" } else { "the host" };
            failed("Link not found").details(format!("{place} has no device of that name"))
        })
    }
}

fn with_default_route(socket: &mut Socket) -> Result<Link, Error> {
    let routes = route::list(socket).map_err(internal)?;
    let through = |route: &route::Found| match route.target {
        FoundTarget::Via { link, .. } | FoundTarget::Device(link) => Some(link),
        _ => None,
    };
    let index = routes.iter().filter(|route| route.destination.prefix_len() == 0).find_map(through);
    let link = index.map(|index| link::by_index(socket, index)).transpose().map_err(internal)?.flatten();
    link.ok_or_else(|| {
        Error::internal("no default route interface found").details("name the device below (\"master\")")
    })
}

impl Master {
    /// The MTU that the configuration wants, which the device below has to carry.
    pub(crate) fn mtu(&self, request: &Request) -> Result<Option<u32>, Error> {
        let wanted = request.config.object().integer("mtu")?.unwrap_or_default();
        match u32::try_from(wanted) {
            Ok(0) => Ok(None),
            Ok(mtu) if mtu <= self.link.mtu => Ok(Some(mtu)),
            _ => Err(Error::internal(format!(
                "invalid MTU {wanted}, must be [0, master MTU({})]",
                self.link.mtu
            ))),
        }
    }

    /// Makes the container's interface on it.
    pub(crate) fn make(
        &self,
        request: &Request,
        namespace: &Namespace,
        kind: VirtualKind,
        mtu: Option<u32>,
        mac: Option<Mac>,
    ) -> Result<(), Error> {
        let ifname = &request.environment.ifname;
        let name: LinkName = ifname.parse().map_err(|error| Error::internal(format!("{error}")))?;
        let host = netns::current().map_err(internal)?;
        let lower = Lower {
            index: self.link.index,
            namespace: if self.in_container { None } else { Some(host.as_fd()) },
        };
        // Where the interface goes, so that its name need only be free there.
        enter(namespace, |socket| {
            attachment::make(socket, &VirtualLink { name, kind, lower: Some(lower), mtu, mac })
        })
    }
}
