//! The container of an attachment: its network namespace, and work inside.

use std::path::Path;

use cni::{Error, Request};
use fabric::LinkName;
use kernel::link;
use kernel::netlink::{Protocol, Socket};
use kernel::netns::{self, Namespace};

/// A socket of the namespace that this thread is in.
pub(crate) fn open_socket() -> Result<Socket, Error> {
    Socket::open(Protocol::Route).map_err(|error| Error::internal(format!("cannot speak netlink: {error}")))
}

/// The container's namespace, which has to be there.
pub(crate) fn open_namespace(request: &Request) -> Result<Namespace, Error> {
    let path = &request.environment.netns;
    netns::open(Path::new(path))
        .map_err(|error| Error::internal(format!("failed to open netns {path:?}: {error}")))
}

/// The container's namespace if it still exists. A runtime may name one that is gone, or whose mount is
/// gone so that a plain file is left.
pub(crate) fn sandbox(request: &Request) -> Option<Namespace> {
    let path = &request.environment.netns;
    if path.is_empty() { None } else { netns::open(Path::new(path)).ok() }
}

/// Does something in the container's namespace.
pub(crate) fn enter<T>(
    namespace: &Namespace,
    work: impl FnOnce(&mut Socket) -> Result<T, Error>,
) -> Result<T, Error> {
    let done = namespace.enter(|| work(&mut open_socket()?));
    done.map_err(|error| Error::internal(error.to_string()))?
}

/// Does something with the interface of that name in the container's namespace.
pub(crate) fn inside<T>(
    namespace: &Namespace,
    ifname: &str,
    work: impl FnOnce(&mut Socket, u32) -> Result<T, Error>,
) -> Result<T, Error> {
    enter(namespace, |socket| {
        let name: LinkName = ifname.parse().map_err(|error| Error::internal(format!("{error}")))?;
        let index = link::index(socket, name)
            .map_err(|error| Error::internal(error.to_string()))?
            .ok_or_else(|| Error::internal(format!("failed to lookup {ifname:?}: Link not found")))?;
        work(socket, index)
    })
}

/// Sets up an interface that gets no addresses.
pub(crate) fn set_up(namespace: &Namespace, ifname: &str) -> Result<(), Error> {
    inside(namespace, ifname, |socket, index| {
        link::set_up(socket, index)
            .map_err(|error| Error::internal(format!("failed to set {ifname:?} UP: {error}")))
    })
}
