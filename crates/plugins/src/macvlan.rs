//! `macvlan`: gives a container an Ethernet address of its own on a device of the host.

use cni::{AddResult, Error, Plugin, Request, Verb};
use kernel::virtual_link::{self, MacvlanMode, VirtualKind};

use crate::addressing::Detection;
use crate::attachment::{self, Addresses, internal};
use crate::container::open_namespace;
use crate::interface;
use crate::ipam::Ipam;
use crate::master;

/// The plugin.
#[derive(Debug, Clone, Copy)]
pub struct Macvlan;

impl Plugin for Macvlan {
    fn name(&self) -> &'static str {
        "macvlan"
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let ipam = Ipam::of(request)?;
        let namespace = open_namespace(request)?;
        let master = master::Wish::of(request)?.find(&namespace)?;
        let kind = VirtualKind::Macvlan { mode: mode(request)?, broadcast_queue: broadcast_queue(request)? };
        let (mtu, mac) = (master.mtu(request)?, interface::wanted_mac(request)?);
        master.make(request, &namespace, kind, mtu, mac)?;
        attachment::complete(request, &namespace, Addresses::Ipam(&ipam), Detection::KernelDefault, || {
            let _ = interface::remove(request);
        })
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        attachment::del(request)
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let wanted = mode(request)?;
        master::Wish::of(request)?.find(&open_namespace(request)?)?;
        attachment::check(request, &Ipam::of(request)?, |socket, link| {
            match virtual_link::kind(socket, link.index).map_err(internal)? {
                Some(VirtualKind::Macvlan { mode, .. }) if mode == wanted => Ok(()),
                Some(VirtualKind::Macvlan { mode, .. }) => Err(Error::internal(format!(
                    "container macvlan mode {} does not match expected value: {}",
                    word(mode),
                    word(wanted)
                ))),
                _ => Err(attachment::wrong_kind(link, "macvlan")),
            }
        })
        .map(drop)
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        mode(request)?;
        Ipam::of(request)?.tell(Verb::Status, request)?;
        master::Wish::of(request)?.status()
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        // The devices went with their containers.
        Ipam::for_removal(request).tell(Verb::Gc, request)
    }
}

fn mode(request: &Request) -> Result<MacvlanMode, Error> {
    match request.config.object().string("mode")?.unwrap_or_default() {
        "" | "bridge" => Ok(MacvlanMode::Bridge),
        "private" => Ok(MacvlanMode::Private),
        "vepa" => Ok(MacvlanMode::Vepa),
        "passthru" => Ok(MacvlanMode::Passthru),
        other => Err(Error::internal(format!("unknown macvlan mode: {other:?}"))
            .details("\"mode\" can be \"bridge\", \"private\", \"vepa\" or \"passthru\"")),
    }
}

fn word(mode: MacvlanMode) -> &'static str {
    match mode {
        MacvlanMode::Bridge => "bridge",
        MacvlanMode::Private => "private",
        MacvlanMode::Vepa => "vepa",
        MacvlanMode::Passthru => "passthru",
    }
}

fn broadcast_queue(request: &Request) -> Result<Option<u32>, Error> {
    let config = request.config.object();
    let Some(length) = config.integer("bcqueuelen")?.filter(|length| *length != 0) else { return Ok(None) };
    let length = u32::try_from(length).map_err(|_| config.error("bcqueuelen", "between 0 and 4294967295"))?;
    Ok(Some(length))
}
