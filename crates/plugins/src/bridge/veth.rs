//! The veth pair of an attachment: making it, and taking it away.
//!
//! The host's end is named after network, container and interface, so that it can be found when the
//! container's namespace is gone or was never told (DEL without `CNI_NETNS`, GC).

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use cni::{Attachment, Error, Request};
use fabric::{LinkName, Mac};
use kernel::bridge::PortFlags;
use kernel::link::{self, Link, Operational, Veth};
use kernel::netlink::Socket;
use kernel::netns::{self, Namespace};
use kernel::process::{self, Outcome};
use kernel::{KernelError, bridge, sysctl};
use rustix::io::Errno;
use sha2::{Digest as _, Sha512};

use super::gateway::random_mac;
use super::settings::Settings;
use super::{open_socket, vlan};

/// How long a bridge port may take to come up.
const PORT_PATIENCE: Duration = Duration::from_millis(2500);

/// How long a device may take to disappear.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(30);

/// How many names are tried for the host's end.
const ATTEMPTS: u8 = 10;

/// The two ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair {
    /// The host's end.
    pub(super) host: LinkName,
    /// Its number.
    pub(super) host_index: u32,
    /// Its Ethernet address.
    pub(super) host_mac: Mac,
    /// The container's end.
    pub(super) container: LinkName,
    /// Its Ethernet address.
    pub(super) container_mac: Mac,
}

/// Makes the pair, one end on the bridge and up, the other in the container.
pub(super) fn create(
    host: &mut Socket,
    settings: &Settings,
    bridge: &Link,
    namespace: &Namespace,
    request: &Request,
) -> Result<Pair, Error> {
    let ifname = &request.environment.ifname;
    let container: LinkName = ifname.parse().map_err(|error| Error::internal(format!("{error}")))?;
    // Chosen here, so that nobody else wants to choose (systemd-udevd does for kernel-chosen ones).
    let container_mac = settings.mac.map_or_else(random_mac, Ok)?;
    let host_mac = random_mac()?;
    for attempt in 0..ATTEMPTS {
        let name = host_name(request.config.name(), &request.environment.container_id, ifname, attempt);
        let veth = Veth {
            name,
            mac: Some(host_mac),
            mtu: settings.mtu,
            master: Some(bridge.index),
            peer_name: container,
            peer_mac: Some(container_mac),
            peer_namespace: rustix::fd::AsFd::as_fd(namespace),
        };
        match link::create_veth(host, &veth) {
            Ok(()) => {
                let index = link::index(host, name).map_err(|error| Error::internal(error.to_string()))?;
                let host_index = index.ok_or_else(|| {
                    Error::internal(format!("failed to lookup \"{name}\": it was deleted meanwhile"))
                })?;
                return Ok(Pair { host: name, host_index, host_mac, container, container_mac });
            }
            Err(error) if error.errno() == Some(Errno::EXIST) => {
                if exists_inside(namespace, container)? {
                    return Err(Error::internal(format!(
                        "container veth name ({ifname:?}) peer provided ({:?}) already exists",
                        name.as_str()
                    ))
                    .details(
                        "the container has an interface of that name: an ADD without a DEL before it?",
                    ));
                }
            }
            Err(error) => return Err(Error::internal(format!("failed to make veth pair: {error}"))),
        }
    }
    Err(Error::internal("failed to find a unique veth name")
        .details(format!("all {ATTEMPTS} names for the host's end are taken")))
}

/// The host's end of an attachment: `veth`, three letters for the network, eight for the attachment.
///
/// A further attempt is for the rare case that two attachments share a name, or that a device of a
/// container that was not taken away does.
fn host_name(network: &str, container_id: &str, ifname: &str, attempt: u8) -> LinkName {
    let attachment = match attempt {
        0 => letters(&format!("{network}\n{container_id}\n{ifname}"), 8),
        n => letters(&format!("{network}\n{container_id}\n{ifname}\n{n}"), 8),
    };
    format!("{}{attachment}", network_prefix(network))
        .parse()
        .expect("fifteen letters and digits name a device")
}

/// What all names of a network begin with.
fn network_prefix(network: &str) -> String {
    format!("veth{}", letters(network, 3))
}

/// Letters and digits that stand for a text.
fn letters(text: &str, count: usize) -> String {
    const ALPHABET: &[u8; 32] = b"0123456789abcdefghijkmnpqrstuvwx";
    let digest = Sha512::digest(text.as_bytes());
    digest.iter().take(count).map(|octet| char::from(ALPHABET[usize::from(octet & 31)])).collect()
}

fn exists_inside(namespace: &Namespace, name: LinkName) -> Result<bool, Error> {
    let exists = namespace.enter(|| {
        let socket = open_socket()?;
        link::exists(&socket, name).map_err(|error| Error::internal(error.to_string()))
    });
    exists.map_err(|error| Error::internal(error.to_string()))?
}

/// What the bridge is to do with the host's end.
pub(super) fn set_up_port(host: &mut Socket, settings: &Settings, pair: &Pair) -> Result<(), Error> {
    // Routers of the pods' network have no say in the host's routes.
    let _ = sysctl::write(&format!("net/ipv6/conf/{}/accept_ra", pair.host), "0");
    // A port starts with both off.
    let flags = PortFlags {
        hairpin: settings.hairpin.then_some(true),
        isolated: settings.port_isolation.then_some(true),
    };
    if flags != PortFlags::default() {
        bridge::set_port_flags(host, pair.host_index, flags).map_err(|error| {
            Error::internal(format!("failed to setup hairpin mode for {}: {error}", pair.host))
        })?;
    }
    vlan::set_up_port(host, settings, pair)
}

/// Waits until the bridge passes frames to the host's end.
pub(super) fn wait_until_up(host: &mut Socket, pair: &Pair) -> Result<(), Error> {
    let started = Instant::now();
    let mut pause = Duration::from_micros(50);
    loop {
        let state =
            link::by_index(host, pair.host_index).map_err(|error| Error::internal(error.to_string()))?;
        match state.map(|link| link.operational) {
            Some(Operational::Up) => return Ok(()),
            None => return Err(Error::internal(format!("failed to lookup \"{}\"", pair.host))),
            Some(state) if started.elapsed() > PORT_PATIENCE => {
                return Err(Error::internal(format!("bridge port in error state: {state:?}")));
            }
            Some(_) => {}
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Takes the pair away, wherever it can be found.
pub(super) fn remove(host: &mut Socket, request: &Request) -> Result<(), Error> {
    let environment = &request.environment;
    if let (Some(namespace), Ok(name)) = (sandbox(&environment.netns), environment.ifname.parse::<LinkName>())
    {
        let socket = namespace.enter(open_socket).map_err(|error| Error::internal(error.to_string()))??;
        remove_link(socket, name)?;
    }
    // Usually gone with the other end; else that end's namespace is not where it was, or not told.
    let name = host_name(request.config.name(), &environment.container_id, &environment.ifname, 0);
    if link::exists(host, name).map_err(|error| Error::internal(error.to_string()))? {
        remove_link(open_socket()?, name)?;
    }
    Ok(())
}

/// The container's namespace if it still exists. A runtime may name one that is gone, or whose mount is
/// gone so that a plain file is left.
fn sandbox(path: &str) -> Option<Namespace> {
    if path.is_empty() { None } else { netns::open(Path::new(path)).ok() }
}

/// Deletes a device, and returns as soon as it is gone from the sight of everybody else.
///
/// The kernel has unlinked it from all look-ups long before it answers the request: it waits until
/// nobody can hold the device any more (RCU), some 20 ms in which there is nothing left to be done here.
/// So a process of its own waits for that answer. Should that process be ended, the deletion is not: it
/// happens inside one system call.
fn remove_link(mut socket: Socket, name: LinkName) -> Result<(), Error> {
    let failed =
        |error: KernelError| Error::internal(format!("failed to delete {:?}: {error}", name.as_str()));
    if !link::exists(&socket, name).map_err(failed)? {
        return Ok(());
    }
    let Ok(deletion) = process::detach(|| link::delete_by_name(&mut socket, name).is_ok()) else {
        return link::delete_by_name(&mut socket, name).map_err(failed);
    };
    let started = Instant::now();
    let mut pause = Duration::from_micros(30);
    while link::exists(&socket, name).map_err(failed)? {
        match deletion.outcome() {
            Outcome::Running if started.elapsed() < REMOVAL_PATIENCE => {}
            // Once more from here, to learn why not.
            _ => return link::delete_by_name(&mut socket, name).map_err(failed),
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(1));
    }
    Ok(())
}

/// Takes away the pairs of this network whose attachment is not listed.
pub(super) fn keep_only(
    host: &mut Socket,
    settings: &Settings,
    request: &Request,
    valid: &[Attachment],
) -> Result<(), Error> {
    let failed = |error: KernelError| Error::internal(format!("failed to remove stale links: {error}"));
    let network = request.config.name();
    let prefix = network_prefix(network);
    let kept: Vec<LinkName> = valid
        .iter()
        .flat_map(|a| (0..ATTEMPTS).map(|attempt| host_name(network, &a.container_id, &a.ifname, attempt)))
        .collect();
    let links = link::list(host).map_err(failed)?;
    let Some(bridge) = links.iter().find(|link| link.name == settings.bridge) else { return Ok(()) };
    let is_ours = |link: &&Link| {
        link.master == Some(bridge.index)
            && link.kind.name() == "veth"
            && link.name.as_str().len() == prefix.len() + 8
            && link.name.as_str().starts_with(&prefix)
    };
    for link in links.iter().filter(is_ours).filter(|link| !kept.contains(&link.name)) {
        link::delete(host, link.index).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_end_is_named_after_its_attachment() {
        let name = host_name("cbr0", "a1", "eth0", 0);
        assert_eq!(name, host_name("cbr0", "a1", "eth0", 0));
        assert!(name.as_str().starts_with(&network_prefix("cbr0")));
        assert_eq!(name.as_str().len(), 15);
        for other in [
            host_name("cbr0", "a1", "eth1", 0),
            host_name("cbr0", "a2", "eth0", 0),
            host_name("cbr1", "a1", "eth0", 0),
            host_name("cbr0", "a1", "eth0", 1),
        ] {
            assert_ne!(name, other);
        }
    }
}
