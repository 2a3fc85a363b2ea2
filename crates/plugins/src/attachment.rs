//! An attachment that is one device in the container: what is the same whatever the device is.

use cni::{AddResult, Dns, Error, Request, Verb, Version};
use kernel::KernelError;
use kernel::link::{self, Link};
use kernel::netlink::Socket;
use kernel::netns::Namespace;
use kernel::virtual_link::{self, VirtualLink};
use rustix::io::Errno;

use crate::addressing::{self, Detection};
use crate::container::{self, inside, open_namespace};
use crate::interface;
use crate::ipam::Ipam;

/// Where the addresses come from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Addresses<'a> {
    /// From the plugin that the configuration names; without one there are none.
    Ipam(&'a Ipam),
    /// From the plugin that ran before.
    Previous(&'a AddResult),
}

/// Makes a device in the socket's namespace.
pub(crate) fn make(socket: &mut Socket, wanted: &VirtualLink<'_>) -> Result<(), Error> {
    let kind = wanted.kind.name();
    virtual_link::create(socket, wanted).map_err(|error| {
        let (option, module) = wanted.kind.kernel_option();
        let remedy = match error.errno() {
            Some(Errno::OPNOTSUPP) => format!(
                "this kernel has no {kind} devices: load the module (modprobe {module}), or use a kernel with {option}"
            ),
            Some(Errno::EXIST) => {
                "there is a device of that name already: an ADD without a DEL before it?".to_owned()
            }
            Some(Errno::BUSY) => {
                "the device below is in use: macvlan and ipvlan do not share one, and neither shares it with a bridge"
                    .to_owned()
            }
            _ => String::new(),
        };
        Error::internal(format!("failed to create {kind}: {error}")).details(remedy)
    })
}

/// Completes an attachment whose device is there: addresses, routes, setting it up. Should that fail,
/// `unmake` is called, and nothing is left.
pub(crate) fn complete(
    request: &Request,
    namespace: &Namespace,
    addresses: Addresses<'_>,
    detection: Detection,
    unmake: impl FnOnce(),
) -> Result<AddResult, Error> {
    let mut has_addresses = false;
    let completed = run(request, namespace, addresses, detection, &mut has_addresses);
    if completed.is_err() {
        unmake();
        if let (Addresses::Ipam(ipam), true) = (addresses, has_addresses) {
            let _ = ipam.tell(Verb::Del, request);
        }
    }
    completed
}

fn run(
    request: &Request,
    namespace: &Namespace,
    addresses: Addresses<'_>,
    detection: Detection,
    has_addresses: &mut bool,
) -> Result<AddResult, Error> {
    let ifname = &request.environment.ifname;
    let link = inside(namespace, ifname, look)?;
    let mut result = AddResult::empty(Version::CURRENT);
    result.interfaces = vec![interface::describe_inside(link.name, link.mac, request)];
    let given = match addresses {
        Addresses::Ipam(ipam) if ipam.is_given() => Some(ipam.add(request)?),
        Addresses::Ipam(_) => None,
        Addresses::Previous(previous) => Some(previous.clone()),
    };
    if let Some(given) = given {
        *has_addresses = true;
        result.ips = given.ips;
        result.ips.iter_mut().for_each(|ip| ip.interface = Some(0));
        result.routes = given.routes;
        result.dns = given.dns;
        let unwanted = request.config.object().boolean("enabledad")? == Some(false);
        let detection = if unwanted { Detection::Off } else { detection };
        addressing::configure(namespace, detection, ifname, &result)?;
    } else {
        container::set_up(namespace, ifname)?;
    }
    override_dns(request, &mut result)?;
    result.convert(request.version)
}

/// Name resolution of the configuration, if it says any, in place of IPAM's.
pub(crate) fn override_dns(request: &Request, result: &mut AddResult) -> Result<(), Error> {
    let network = request.config.object().object("dns")?;
    if let Some(dns) = network.map(|dns| Dns::of_network(&dns)).transpose()?.flatten() {
        result.dns = dns;
    }
    Ok(())
}

/// Takes the device away and gives the addresses back. What is gone already is no error.
pub(crate) fn del(request: &Request) -> Result<(), Error> {
    let ipam = Ipam::for_removal(request);
    ipam.let_go_through_device(request);
    interface::remove(request)?;
    // The address comes last: nobody else may get it while something still answers for it.
    ipam.tell(Verb::Del, request)
}

/// Fails unless the attachment is as ADD reported it; `look` looks at what is special about the device.
pub(crate) fn check(
    request: &Request,
    ipam: &Ipam,
    look_closer: impl FnOnce(&mut Socket, &Link) -> Result<(), Error>,
) -> Result<AddResult, Error> {
    let namespace = open_namespace(request)?;
    ipam.tell(Verb::Check, request)?;
    let result =
        request.config.prev_result()?.ok_or_else(|| Error::internal("Required prevResult missing"))?;
    let listed = interface::listed(&result, request)?;
    inside(&namespace, &listed.name, |socket, index| {
        let link = look(socket, index)?;
        if !interface::same_mac(listed, &link) {
            let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
            return Err(Error::internal(format!(
                "Interface {} Mac {} doesn't match container Mac: {mac}",
                listed.name, listed.mac
            )));
        }
        look_closer(socket, &link)?;
        addressing::check(socket, index, &listed.name, &result)
    })?;
    Ok(result)
}

/// An error of CHECK about a device that is something else.
pub(crate) fn wrong_kind(link: &Link, wanted: &str) -> Error {
    let found = if link.kind.name().is_empty() { "hardware device" } else { link.kind.name() };
    Error::internal(format!("Error: Container interface {} not of type {wanted}", link.name))
        .details(format!("it is a {found}"))
}

fn look(socket: &mut Socket, index: u32) -> Result<Link, Error> {
    let link = link::by_index(socket, index).map_err(internal)?;
    link.ok_or_else(|| Error::internal(format!("device number {index} was deleted meanwhile")))
}

/// An error of the kernel as one of a plugin.
pub(crate) fn internal(error: KernelError) -> Error {
    Error::internal(error.to_string())
}
