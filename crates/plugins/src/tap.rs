//! `tap`: gives a container an Ethernet device whose other end is a program, a virtual machine for
//! example.

use std::fs;

use cni::{AddResult, Error, Plugin, Request, Verb};
use fabric::{LinkName, Mac};
use kernel::netlink::Socket;
use kernel::netns::Namespace;
use kernel::tap::{self, Tap as Device};
use kernel::{KernelError, command, link};
use rustix::io::Errno;

use crate::addressing::Detection;
use crate::attachment::{self, Addresses, internal};
use crate::container::{enter, open_namespace};
use crate::interface;
use crate::ipam::Ipam;

/// The plugin.
#[derive(Debug, Clone, Copy)]
pub struct Tap;

/// Checked settings.
#[derive(Debug, Clone)]
struct Settings {
    device: Device,
    mtu: Option<u32>,
    mac: Option<Mac>,
    bridge: Option<LinkName>,
    selinux_context: Option<String>,
}

impl Plugin for Tap {
    fn name(&self) -> &'static str {
        "tap"
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let (settings, ipam) = (Settings::parse(request)?, Ipam::of(request)?);
        let namespace = open_namespace(request)?;
        make(&settings, &namespace)?;
        let unmake = || {
            let _ = interface::remove(request);
        };
        if let Err(error) = enter(&namespace, |socket| set_up(socket, &settings)) {
            unmake();
            return Err(error);
        }
        attachment::complete(request, &namespace, Addresses::Ipam(&ipam), Detection::KernelDefault, unmake)
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        attachment::del(request)
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        attachment::check(request, &Ipam::of(request)?, |_, link| match link.kind.name() {
            "tun" => Ok(()),
            _ => Err(attachment::wrong_kind(link, "tap")),
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

impl Settings {
    fn parse(request: &Request) -> Result<Settings, Error> {
        let config = request.config.object();
        let number = |key| -> Result<Option<u32>, Error> {
            let wanted = config.integer(key)?.map(u32::try_from).transpose();
            wanted.map_err(|_| config.error(key, "between 0 and 4294967295").into())
        };
        let text = |key| config.string(key).map(|text| text.filter(|text| !text.is_empty()));
        let ifname = &request.environment.ifname;
        Ok(Settings {
            device: Device {
                name: ifname.parse().map_err(|error| Error::internal(format!("{error}")))?,
                multi_queue: config.boolean("multiQueue")?.unwrap_or_default(),
                owner: number("owner")?,
                group: number("group")?,
            },
            mtu: number("mtu")?.filter(|mtu| *mtu > 0),
            mac: interface::wanted_mac(request)?,
            bridge: config.parsed("bridge", "the name of a bridge")?,
            selinux_context: text("selinuxContext")?.map(str::to_owned),
        })
    }
}

fn make(settings: &Settings, namespace: &Namespace) -> Result<(), Error> {
    let made = namespace.enter(|| match &settings.selinux_context {
        None => tap::create(&settings.device),
        Some(context) => make_labelled(&settings.device, context),
    });
    made.map_err(internal)?.map_err(|error| match error.errno() {
        Some(Errno::BUSY | Errno::INVAL | Errno::EXIST) => {
            Error::internal(format!("failed to create tap: {error}"))
                .details("the container has an interface of that name: an ADD without a DEL before it?")
        }
        _ => Error::internal(format!("failed to create tap: {error}")),
    })
}

/// The kernel labels a device after the program that makes it, and a program gets a label when it is
/// started: so here one is.
fn make_labelled(device: &Device, context: &str) -> Result<(), KernelError> {
    let label = "/proc/thread-self/attr/exec";
    fs::write(label, context).map_err(|error| {
        KernelError::io(format!("label what is made with the SELinux context {context:?}"), &error)
    })?;
    let mut words = vec!["tuntap", "add", "mode", "tap", "name", device.name.as_str()];
    if device.multi_queue {
        words.push("multi_queue");
    }
    let (owner, group) = (device.owner.map(|id| id.to_string()), device.group.map(|id| id.to_string()));
    for (key, id) in [("user", &owner), ("group", &group)] {
        words.extend(id.iter().flat_map(|id| [key, id.as_str()]));
    }
    let made = command::run("ip", &words, "").map(drop);
    let _ = fs::write(label, "");
    made
}

/// Everything about the device that the kernel takes by netlink only.
fn set_up(socket: &mut Socket, settings: &Settings) -> Result<(), Error> {
    let name = settings.device.name;
    let find = |socket: &Socket, name: LinkName| {
        let index = link::index(socket, name).map_err(internal)?;
        index.ok_or_else(|| Error::internal(format!("failed to lookup \"{name}\": Link not found")))
    };
    let index = find(socket, name)?;
    if let Some(mtu) = settings.mtu {
        link::set_mtu(socket, index, mtu).map_err(internal)?;
    }
    if let Some(mac) = settings.mac {
        link::set_mac(socket, index, mac).map_err(internal)?;
    }
    if let Some(bridge) = settings.bridge {
        let bridge_index = find(socket, bridge)
            .map_err(|error| error.context(format_args!("failed to get bridge {bridge}")))?;
        link::set_master(socket, index, Some(bridge_index)).map_err(|error| {
            Error::internal(format!("failed to set tap {name} as a port of bridge {bridge}: {error}"))
        })?;
    }
    Ok(())
}
