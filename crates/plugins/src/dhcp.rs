//! `dhcp`: addresses from a DHCP server of the network that the container is attached to.
//!
//! A lease has to be prolonged for as long as the container lives, and a plugin ends at once: so a
//! [`daemon`] keeps the leases, and the plugin asks it over a Unix socket. They are one program and speak a protocol of
//! their own ([`call`]).

mod call;
mod client;
pub mod daemon;
mod flags;
mod lease;
mod message;
mod options;

use std::fmt;
use std::io::Write as _;
use std::path::PathBuf;

use cni::error::code;
use cni::{AddResult, Error, Plugin, Request, Verb};

use self::call::Call;

/// Where the daemon listens unless told otherwise.
const SOCKET: &str = "/run/cni/dhcp.sock";

/// The plugin.
#[derive(Debug, Clone, Copy)]
pub struct Dhcp;

impl Plugin for Dhcp {
    fn name(&self) -> &'static str {
        "dhcp"
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        ask(Verb::Add, request)?.convert(request.version)
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        ask(Verb::Del, request).map(drop)
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let before = request.config.prev_result()?;
        let given = ask(Verb::Check, request)?;
        let has = |address| before.iter().flat_map(|result| &result.ips).any(|ip| ip.address == address);
        match given.ips.iter().find(|ip| before.is_some() && !has(ip.address)) {
            None => Ok(()),
            Some(ip) => Err(Error::internal(format!(
                "dhcp: the lease of {} is for {} by now, which the interface was not given",
                request.environment.container_id, ip.address
            ))),
        }
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        ask(Verb::Status, request)
            .map(drop)
            .map_err(|error| Error { code: code::PLUGIN_NOT_AVAILABLE, ..error })
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        ask(Verb::Gc, request).map(drop)
    }
}

/// Has the daemon do it.
fn ask(verb: Verb, request: &Request) -> Result<AddResult, Error> {
    call::make(&socket_of(request)?, &Call::of(verb, request))
}

fn socket_of(request: &Request) -> Result<PathBuf, Error> {
    let ipam = request.config.object().object("ipam")?;
    let path = ipam.map(|ipam| ipam.string("daemonSocketPath")).transpose()?.flatten();
    Ok(PathBuf::from(path.filter(|path| !path.is_empty()).unwrap_or(SOCKET)))
}

/// A line for whoever watches the daemon.
fn log(line: fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr().lock(), "dhcp: {line}");
}
