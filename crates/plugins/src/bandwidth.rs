//! `bandwidth`: limits how fast a container receives and sends.
//!
//! The host's end of the container's veth pair sends what the container receives, so a token bucket there
//! limits it. What the container sends is redirected from there to an IFB device of its own, which sends it
//! back through a token bucket. Devices and parameters are those of the reference plugin.
//!
//! An IFB device has an alias that says whose it is, so that GC finds those of containers that are gone.

mod limits;

use std::thread;
use std::time::Duration;

use cni::{AddResult, Error, Plugin, Request, Version};
use fabric::LinkName;
use kernel::link::{self, Link};
use kernel::link_settings::{self, LinkSettings};
use kernel::netlink::Socket;
use kernel::qdisc::{self, TokenBucket};
use kernel::virtual_link::{self, VirtualKind, VirtualLink};
use kernel::{KernelError, loan};
use rustix::io::Errno;
use sha2::{Digest as _, Sha512};

use self::limits::{Limit, Limits};
use crate::container::{enter, open_namespace, open_socket, sandbox};
use crate::interface::{describe, remove_link};

/// How long packets may wait.
const LATENCY: Duration = Duration::from_millis(25);
/// How long an ADD may take from making a device to naming it.
const UNFINISHED_PATIENCE: Duration = Duration::from_millis(200);

/// The plugin.
#[derive(Debug, Clone, Copy)]
pub struct Bandwidth;

impl Plugin for Bandwidth {
    fn name(&self) -> &'static str {
        "bandwidth"
    }

    fn versions(&self) -> &'static [Version] {
        const SINCE_0_3: &[Version] =
            &[Version::V0_3_0, Version::V0_3_1, Version::V0_4_0, Version::V1_0_0, Version::V1_1_0];
        SINCE_0_3
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let limits = Limits::parse(request)?;
        let mut result = previous(request)?;
        if limits.are_none() {
            return result.convert(request.version);
        }
        let mut host = open_socket()?;
        let veth = listed_host_end(&mut host, request, &result)?;
        let ifb = limit(&mut host, request, &limits, &veth)?;
        result.interfaces.extend(ifb.map(|ifb| describe(ifb.name, ifb.mac)));
        result.convert(request.version)
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        let mut host = open_socket()?;
        // What ADD refused must not be impossible to delete.
        let limits = Limits::parse(request).unwrap_or_default();
        if let Some(veth) = host_end_that_is_left(&mut host, request) {
            lift(&mut host, &limits, &veth).map_err(internal)?;
        }
        remove_link(host, ifb_name(request.config.name(), &request.environment.container_id))
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let limits = Limits::parse(request)?;
        let result = previous(request)?;
        let mut host = open_socket()?;
        let veth = listed_host_end(&mut host, request, &result)?;
        if let Some(limit) = limits.ingress {
            check_limit(&mut host, &veth, limit)?;
        }
        let Some(limit) = limits.egress else { return Ok(()) };
        let name = ifb_name(request.config.name(), &request.environment.container_id);
        let ifb = link::by_name(&mut host, name).map_err(internal)?;
        let ifb = ifb.ok_or_else(|| Error::internal(format!("get ifb device: {name}: Link not found")))?;
        if !qdisc::redirections(&mut host, veth.index).map_err(internal)?.contains(&ifb.index) {
            return Err(Error::internal(format!("{} is not redirected to {name}", veth.name)));
        }
        check_limit(&mut host, &ifb, limit)
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        let valid = request.config.valid_attachments()?;
        let network = request.config.name();
        let mut host = open_socket()?;
        let mut stale = unfinished(&mut host)?;
        for ifb in ifbs(&mut host)? {
            let Some(id) = container_of(&mut host, &ifb, network)? else { continue };
            if !valid.iter().any(|attachment| attachment.container_id == id) {
                stale.push(ifb);
            }
        }
        let mut errors = Vec::new();
        for ifb in stale {
            errors.extend(remove_link(open_socket()?, ifb.name).err().map(|error| error.msg));
        }
        if errors.is_empty() { Ok(()) } else { Err(Error::internal(errors.join("; "))) }
    }
}

fn previous(request: &Request) -> Result<AddResult, Error> {
    request.config.prev_result()?.ok_or_else(|| {
        Error::internal("must be called as chained plugin")
            .details("bandwidth limits an interface that another plugin made: it has to come after that one in the list")
    })
}

/// Puts the limits in place, or nothing at all; returns the IFB device if one was made.
fn limit(host: &mut Socket, request: &Request, limits: &Limits, veth: &Link) -> Result<Option<Link>, Error> {
    // First, since this is what fails where the attachment is limited already; nothing is touched then.
    let ifb = limits.egress.map(|_| create_ifb(host, request, veth)).transpose()?;
    let mut put = || {
        if let Some(limit) = limits.ingress {
            qdisc::limit(host, veth.index, &bucket(limit))?;
        }
        if let Some((ifb, limit)) = ifb.as_ref().zip(limits.egress) {
            redirect(host, veth, ifb)?;
            qdisc::limit(host, ifb.index, &bucket(limit))?;
        }
        Ok(())
    };
    put().map_err(|error| {
        let _ = lift(host, limits, veth);
        let _ = ifb.as_ref().map(|ifb| link::delete(host, ifb.index));
        internal(error)
    })?;
    Ok(ifb)
}

fn create_ifb(host: &mut Socket, request: &Request, veth: &Link) -> Result<Link, Error> {
    let (network, id) = (request.config.name(), &request.environment.container_id);
    let name = ifb_name(network, id);
    let wanted = VirtualLink { name, kind: VirtualKind::Ifb, lower: None, mtu: Some(veth.mtu), mac: None };
    virtual_link::create(host, &wanted).map_err(|error| {
        let (option, module) = wanted.kind.kernel_option();
        let remedy = match error.errno() {
            Some(Errno::OPNOTSUPP) => format!(
                "this kernel has no ifb devices, which limiting egress needs: load the module (modprobe {module}), \
                 or use a kernel with {option}"
            ),
            Some(Errno::EXIST) => format!(
                "what container {id} sends through network {network} is limited already: an ADD without a DEL \
                 before it, or another interface of the container in this network"
            ),
            _ => String::new(),
        };
        Error::internal(format!("adding link: {error}")).details(remedy)
    })?;
    let mut ready = || {
        let ifb = link::by_name(host, name)?.ok_or_else(|| KernelError::NoLink(name.to_string()))?;
        // Compatibility: no queue of its own, as with the reference plugin.
        let settings = LinkSettings { queue_length: Some(0), ..LinkSettings::default() };
        link_settings::write(host, ifb.index, &settings)?;
        loan::set_alias(host, ifb.index, &alias(network, id))?;
        link::set_up(host, ifb.index)?;
        Ok(ifb)
    };
    ready().map_err(|error| {
        let _ = link::delete_by_name(host, name);
        internal(error)
    })
}

fn redirect(host: &mut Socket, veth: &Link, ifb: &Link) -> Result<(), KernelError> {
    match qdisc::redirect(host, veth.index, ifb.index) {
        // The reference plugin leaves this behind when it takes an attachment away.
        Err(error) if error.errno() == Some(Errno::EXIST) => {
            qdisc::remove_redirection(host, veth.index)?;
            qdisc::redirect(host, veth.index, ifb.index)
        }
        other => other,
    }
}

/// Takes from the host's end what the limits put there.
fn lift(host: &mut Socket, limits: &Limits, veth: &Link) -> Result<(), KernelError> {
    if limits.egress.is_some() {
        qdisc::remove_redirection(host, veth.index)?;
    }
    if limits.ingress.is_some() {
        qdisc::remove_limit(host, veth.index)?;
    }
    Ok(())
}

/// The host's end of the container's interface, which a plugin before this one has to have made.
fn listed_host_end(host: &mut Socket, request: &Request, result: &AddResult) -> Result<Link, Error> {
    if result.interfaces.is_empty() {
        return Err(Error::internal("no interfaces provided"));
    }
    let ifname = &request.environment.ifname;
    let namespace = open_namespace(request)?;
    let peer = enter(&namespace, |socket| peer(socket, ifname))?.ok_or_else(|| {
        Error::internal(format!("container interface {ifname} has no veth peer"))
            .details("bandwidth limits veth pairs, as bridge and ptp make them")
    })?;
    let (_, index) = peer;
    let veth = link::by_index(host, index).map_err(internal)?;
    let veth =
        veth.ok_or_else(|| Error::internal(format!("veth peer with index {index} is not in host ns")))?;
    if result.interfaces.iter().any(|i| i.sandbox.is_empty() && i.name == veth.name.as_str()) {
        return Ok(veth);
    }
    Err(Error::internal("no veth peer of container interface found in host ns"))
}

/// The host's end of what is left of an attachment.
fn host_end_that_is_left(host: &mut Socket, request: &Request) -> Option<Link> {
    let namespace = sandbox(request)?;
    let (own, index) = enter(&namespace, |socket| peer(socket, &request.environment.ifname)).ok()??;
    // Numbers of devices are per namespace: the peer could be in a third one.
    let link = link::by_index(host, index).ok()??;
    (link.kind.name() == "veth" && link.lower == Some(own)).then_some(link)
}

/// The numbers of a veth device and of its other end.
fn peer(socket: &mut Socket, ifname: &str) -> Result<Option<(u32, u32)>, Error> {
    let name: LinkName = ifname.parse().map_err(|error| Error::internal(format!("{error}")))?;
    let found = link::by_name(socket, name).map_err(internal)?;
    let found = found.ok_or_else(|| {
        Error::internal(format!("container interface {ifname} has no veth peer: Link not found"))
    })?;
    Ok(found.lower.filter(|_| found.kind.name() == "veth").map(|peer| (found.index, peer)))
}

fn check_limit(host: &mut Socket, link: &Link, limit: Limit) -> Result<(), Error> {
    let (name, wanted) = (link.name, bucket(limit));
    let Some(found) = qdisc::limit_of(host, link.index).map_err(internal)? else {
        return Err(Error::internal("Failed to find qdisc").details(format!("nothing limits {name}")));
    };
    let compared = [
        ("Rate", wanted.rate, found.rate),
        ("Limit", wanted.limit.into(), found.limit.into()),
        ("Buffer", wanted.buffer.into(), found.buffer.into()),
    ];
    match compared.into_iter().find(|(_, wanted, found)| wanted != found) {
        None => Ok(()),
        Some((what, wanted, found)) => Err(Error::internal(format!("{what} doesn't match"))
            .details(format!("{name} should have {wanted}, and has {found}"))),
    }
}

fn bucket(limit: Limit) -> TokenBucket {
    TokenBucket::new(limit.rate / 8, limit.burst_bytes(), LATENCY)
}

/// Compatibility: the reference plugin finds the device by this name, whatever the interface is.
fn ifb_name(network: &str, id: &str) -> LinkName {
    let hash = Sha512::digest(format!("{network}{id}"));
    let text: String = hash.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("bwp{text}").parse().expect("15 letters and digits are a name of a device")
}

fn alias(network: &str, id: &str) -> String {
    // The kernel takes 255 bytes. What does not fit is not found by GC.
    let alias = format!("bandwidth {network} {id}");
    if alias.len() < 256 { alias } else { String::new() }
}

fn ifbs(host: &mut Socket) -> Result<Vec<Link>, Error> {
    let links = link::list(host).map_err(internal)?;
    Ok(links.into_iter().filter(|link| link.kind.name() == "ifb").collect())
}

/// Devices that an ADD was killed over before it could say whose they are. One that is still down after
/// a while is not of an ADD under way.
fn unfinished(host: &mut Socket) -> Result<Vec<Link>, Error> {
    let look = |host: &mut Socket| -> Result<Vec<Link>, Error> {
        let mut found = ifbs(host)?;
        found.retain(|ifb| {
            let is_named_so = ifb.name.as_str().len() == 15 && ifb.name.as_str().starts_with("bwp");
            let mut is_nobodys = || loan::alias(host, ifb.index).is_ok_and(|alias| alias.is_empty());
            is_named_so && !ifb.is_up() && is_nobodys()
        });
        Ok(found)
    };
    let before = look(host)?;
    if before.is_empty() {
        return Ok(before);
    }
    thread::sleep(UNFINISHED_PATIENCE);
    let mut after = look(host)?;
    after.retain(|ifb| before.iter().any(|known| known.index == ifb.index));
    Ok(after)
}

/// The container whose IFB device this is, if it is one of the network.
fn container_of(host: &mut Socket, ifb: &Link, network: &str) -> Result<Option<String>, Error> {
    let alias = loan::alias(host, ifb.index).map_err(internal)?;
    let id = alias.strip_prefix("bandwidth ").and_then(|rest| rest.strip_prefix(network));
    let id = id.and_then(|rest| rest.strip_prefix(' '));
    Ok(id.filter(|id| ifb.name == ifb_name(network, id)).map(str::to_owned))
}

fn internal(error: KernelError) -> Error {
    Error::internal(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ifb_device_has_the_name_that_the_reference_plugin_gives_it() {
        // Seen beside the reference plugin.
        assert_eq!(ifb_name("bw", "c1").as_str(), "bwpc3cc976dc7e3");
    }
}
