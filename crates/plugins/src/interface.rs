//! The interface of an attachment inside the container: what is said of it, and taking it away.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::thread;
use std::time::{Duration, Instant};

use cni::{AddResult, Arguments, Error, Interface, Request};
use fabric::{LinkName, Mac};
use kernel::KernelError;
use kernel::link::{self, Link};
use kernel::netlink::Socket;
use kernel::process::{self, Outcome};

use crate::container::{open_socket, sandbox};

/// How long a device may take to disappear.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(30);

/// What a result says of a device of the host.
pub(crate) fn describe(name: LinkName, mac: Option<Mac>) -> Interface {
    let mac = mac.map(|mac| mac.to_string()).unwrap_or_default();
    Interface { name: name.to_string(), mac, ..Interface::default() }
}

/// What a result says of the container's device.
pub(crate) fn describe_inside(name: LinkName, mac: Option<Mac>, request: &Request) -> Interface {
    Interface { sandbox: request.environment.netns.clone(), ..describe(name, mac) }
}

/// What the result of ADD says of the container's interface.
pub(crate) fn listed<'a>(result: &'a AddResult, request: &Request) -> Result<&'a Interface, Error> {
    let environment = &request.environment;
    let is_it = |i: &&Interface| i.name == environment.ifname && i.sandbox == environment.netns;
    result.interfaces.iter().find(is_it).ok_or_else(|| {
        Error::internal(format!(
            "prevResult has no interface {:?} in {}",
            environment.ifname, environment.netns
        ))
    })
}

/// Whether a device has the Ethernet address that a result says, if it says one.
pub(crate) fn same_mac(listed: &Interface, link: &Link) -> bool {
    listed.mac.is_empty() || link.mac.is_some_and(|mac| mac.to_string().eq_ignore_ascii_case(&listed.mac))
}

/// The Ethernet address that the interface is to have: the runtime's wish counts more than the one of
/// `CNI_ARGS`, and that more than the configuration's.
pub(crate) fn wanted_mac(request: &Request) -> Result<Option<Mac>, Error> {
    let config = request.config.object();
    let arguments = Arguments::parse(&request.environment.args, &["MAC"])?;
    let runtime = config.object("runtimeConfig")?;
    let wishes = [
        runtime.map(|runtime| runtime.string("mac")).transpose()?.flatten(),
        arguments.get("MAC"),
        config.string("mac")?,
    ];
    let Some(wish) = wishes.into_iter().flatten().find(|wish| !wish.is_empty()) else { return Ok(None) };
    let refused =
        || Error::internal(format!("invalid args {wish} for MAC addr: address {wish}: invalid MAC address"));
    wish.parse().map(Some).map_err(|_| refused())
}

/// An Ethernet address that nobody else has.
pub(crate) fn random_mac() -> Result<Mac, Error> {
    let mut octets = [0; 6];
    rustix::rand::getrandom(&mut octets, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| Error::internal(format!("cannot get random numbers: {errno}")))?;
    Ok(Mac::locally_administered(octets))
}

/// Takes the container's interface away, if the container still exists.
pub(crate) fn remove(request: &Request) -> Result<(), Error> {
    let Ok(name) = request.environment.ifname.parse::<LinkName>() else { return Ok(()) };
    let Some(namespace) = sandbox(request) else { return Ok(()) };
    let socket = namespace.enter(open_socket).map_err(|error| Error::internal(error.to_string()))??;
    remove_link(socket, name)
}

/// Deletes a device, and returns as soon as it is gone from the sight of everybody else.
///
/// The kernel has unlinked it from all look-ups long before it answers the request: it waits until
/// nobody can hold the device any more (RCU), some 20 ms in which there is nothing left to be done here.
/// So a process of its own waits for that answer. Should that process be ended, the deletion is not: it
/// happens inside one system call. And should this one be ended before it, the other may get to it only when
/// there is a new device of that name: by its number it deletes this one or none.
pub(crate) fn remove_link(mut socket: Socket, name: LinkName) -> Result<(), Error> {
    let failed =
        |error: KernelError| Error::internal(format!("failed to delete {:?}: {error}", name.as_str()));
    let Some(index) = link::index(&socket, name).map_err(failed)? else { return Ok(()) };
    let Ok(deletion) =
        process::detach(&[socket.as_fd().as_raw_fd()], || link::delete(&mut socket, index).is_ok())
    else {
        return link::delete(&mut socket, index).map_err(failed);
    };
    let started = Instant::now();
    let mut pause = Duration::from_micros(30);
    while link::index(&socket, name).map_err(failed)? == Some(index) {
        match deletion.outcome() {
            Outcome::Running if started.elapsed() < REMOVAL_PATIENCE => {}
            // Once more from here, to learn why not.
            _ => return link::delete(&mut socket, index).map_err(failed),
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(1));
    }
    Ok(())
}
