//! The veth pair of an attachment: making it, and taking it away.
//!
//! The host's end is named after network, container and interface, so that it can be found when the
//! container's namespace is gone or was never told (DEL without `CNI_NETNS`, GC).

use cni::{Attachment, Error, Request};
use fabric::{LinkName, Mac};
use kernel::link::{self, Link, Veth};
use kernel::netlink::Socket;
use kernel::netns::Namespace;
use kernel::{KernelError, loan};
use rustix::io::Errno;
use sha2::{Digest as _, Sha512};

use crate::container::{enter, open_socket};
use crate::interface::{self, random_mac};

/// How many names are tried for the host's end.
const ATTEMPTS: u8 = 10;

/// What a pair is to be like.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wish {
    /// The MTU of both ends; the kernel's default if none.
    pub(crate) mtu: Option<u32>,
    /// The Ethernet address of the container's end; one of our choice if none.
    pub(crate) mac: Option<Mac>,
    /// The bridge that the host's end is put on.
    pub(crate) master: Option<u32>,
}

/// The two ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pair {
    /// The host's end.
    pub(crate) host: LinkName,
    /// Its number.
    pub(crate) host_index: u32,
    /// Its Ethernet address.
    pub(crate) host_mac: Mac,
    /// The container's end.
    pub(crate) container: LinkName,
    /// Its Ethernet address.
    pub(crate) container_mac: Mac,
}

/// Makes the pair, one end here and up, the other in the container.
pub(crate) fn create(
    host: &mut Socket,
    wish: &Wish,
    namespace: &Namespace,
    request: &Request,
) -> Result<Pair, Error> {
    let ifname = &request.environment.ifname;
    let container: LinkName = ifname.parse().map_err(|error| Error::internal(format!("{error}")))?;
    // Chosen here, so that nobody else wants to choose (systemd-udevd does for kernel-chosen ones).
    let container_mac = wish.mac.map_or_else(random_mac, Ok)?;
    let host_mac = random_mac()?;
    for attempt in 0..ATTEMPTS {
        let name = host_name(request.config.name(), &request.environment.container_id, ifname, attempt);
        let veth = Veth {
            name,
            mac: Some(host_mac),
            mtu: wish.mtu,
            master: wish.master,
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
    enter(namespace, |socket| link::exists(socket, name).map_err(|error| Error::internal(error.to_string())))
}

/// Takes the pair away, wherever it can be found.
pub(crate) fn remove(host: &mut Socket, request: &Request) -> Result<(), Error> {
    interface::remove(request)?;
    // Usually gone with the other end; else that end's namespace is not where it was, or not told.
    let environment = &request.environment;
    let name = host_name(request.config.name(), &environment.container_id, &environment.ifname, 0);
    if link::exists(host, name).map_err(|error| Error::internal(error.to_string()))? {
        interface::remove_link(open_socket()?, name)?;
    }
    Ok(())
}

/// Takes away the pairs of this network whose attachment is not listed, among those whose end here has
/// that master, or none.
pub(crate) fn keep_only(
    host: &mut Socket,
    master: Option<u32>,
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
    let is_ours = |link: &&Link| {
        link.master == master
            && link.kind.name() == "veth"
            && link.name.as_str().len() == prefix.len() + 8
            && link.name.as_str().starts_with(&prefix)
    };
    for link in links.iter().filter(is_ours).filter(|link| !kept.contains(&link.name)) {
        // The name stands for the network with a few letters only; where the alias says it whole, it counts.
        let alias = loan::alias(host, link.index).map_err(failed)?;
        if !alias.is_empty() && alias != network {
            continue;
        }
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
