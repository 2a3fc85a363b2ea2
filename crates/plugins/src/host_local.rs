//! `host-local`: hands out addresses of this node and remembers them in files.
//!
//! The files are those of the reference plugin, so that either program can release what the other one
//! reserved ([`store`]). Which addresses there are is in [`range`], what the configuration says in
//! [`settings`].

mod range;
mod resolv_conf;
mod settings;
mod store;

use std::net::IpAddr;
use std::path::Path;

use cni::error::code;
use cni::{AddResult, Error, IpConfig, Plugin, Request, Version};
use kernel::sandbox::Sandbox;

use self::range::RangeSet;
use self::settings::Settings;
use self::store::{Locked, Store};

/// The plugin.
#[derive(Debug, Clone, Copy)]
pub struct HostLocal;

impl Plugin for HostLocal {
    fn name(&self) -> &'static str {
        "host-local"
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let settings = Settings::parse(request)?;
        let mut result = AddResult::empty(Version::CURRENT);
        if let Some(path) = &settings.resolv_conf {
            result.dns = resolv_conf::read(path)?;
        }
        let store = Store::create(&settings.directory)?;
        let mut leases = store.lock()?;
        result.ips = match allocate_all(&mut leases, &settings, request) {
            // What stands in the way may belong to nobody any more.
            Err(_) if leases.take_back()? => allocate_all(&mut leases, &settings, request)?,
            other => other?,
        };
        result.routes = settings.routes;
        result.convert(request.version)
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        // Ranges do not matter for giving back: what was wrong with them since must not keep an
        // address taken.
        let directory = settings::directory(request)?;
        let Some(store) = Store::open(&directory)? else { return Ok(()) };
        let environment = &request.environment;
        store.lock()?.release(&environment.container_id, &environment.ifname)
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let settings = Settings::parse(request)?;
        let environment = &request.environment;
        let found = match Store::open(&settings.directory)? {
            None => false,
            Some(store) => store.lock()?.is_holder(&environment.container_id, &environment.ifname),
        };
        if found {
            return Ok(());
        }
        let id = &environment.container_id;
        Err(Error::internal(format!("host-local: Failed to find address added by container {id}")).details(
            format!("no file in {} names this container and interface", settings.directory.display()),
        ))
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        let settings = Settings::parse(request)?;
        let Some(store) = Store::open(&settings.directory)? else { return Ok(()) };
        let mut leases = store.lock()?;
        for set in &settings.ranges {
            let is_full = |leases: &Locked<'_>| {
                set.candidates(None).all(|candidate| leases.is_taken(candidate.address))
            };
            if is_full(&leases) && (!leases.take_back()? || is_full(&leases)) {
                return Err(Error::new(code::PLUGIN_NOT_AVAILABLE, exhausted(set))
                    .details(remedy(&settings, &leases)));
            }
        }
        Ok(())
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        let directory = settings::directory(request)?;
        let valid = request.config.valid_attachments()?;
        let Some(store) = Store::open(&directory)? else { return Ok(()) };
        store.lock()?.keep_only(&valid)
    }
}

/// One address from every range set, or nothing at all.
fn allocate_all(
    leases: &mut Locked<'_>,
    settings: &Settings,
    request: &Request,
) -> Result<Vec<IpConfig>, Error> {
    allocate(leases, settings, request).inspect_err(|_| {
        // What the first ranges gave must not stay when a later one has nothing to give.
        for address in leases.reserved_here() {
            let _ = leases.free(address);
        }
    })
}

fn allocate(leases: &mut Locked<'_>, settings: &Settings, request: &Request) -> Result<Vec<IpConfig>, Error> {
    let mut requested = settings.requested.clone();
    let mut ips = Vec::new();
    for (index, set) in settings.ranges.iter().enumerate() {
        let wish = requested.iter().position(|ip| set.range_of(*ip).is_some());
        let wish = wish.map(|at| requested.remove(at));
        let ip = allocate_from(leases, settings, (index, set), wish, request)
            .map_err(|error| error.context(format_args!("failed to allocate for range {index}")))?;
        ips.push(ip);
    }
    if requested.is_empty() {
        return Ok(ips);
    }
    let rest: Vec<String> = requested.iter().map(IpAddr::to_string).collect();
    Err(Error::internal(format!("failed to allocate all requested IPs: {}", rest.join(" "))))
}

fn allocate_from(
    leases: &mut Locked<'_>,
    settings: &Settings,
    (index, set): (usize, &RangeSet),
    wish: Option<IpAddr>,
    request: &Request,
) -> Result<IpConfig, Error> {
    let environment = &request.environment;
    let (id, ifname) = (environment.container_id.as_str(), environment.ifname.as_str());
    let chosen = match wish {
        Some(wish) => {
            let range = set.range_of(wish).expect("the set was chosen because it contains the address");
            if wish == range.gateway {
                return Err(Error::internal(format!("requested ip {wish} is subnet's gateway")));
            }
            if leases.is_taken(wish) {
                return Err(Error::internal(format!(
                    "requested IP address {wish} is not available in range set {set}"
                )));
            }
            range.candidate(wish)
        }
        None => {
            if let Some(own) = leases.held_by(id, ifname).find(|address| set.range_of(*address).is_some()) {
                return Err(Error::internal(format!(
                    "{own} has been allocated to {id}, duplicate allocation is not allowed"
                )));
            }
            set.candidates(leases.last_reserved(index))
                .find(|candidate| !leases.is_taken(candidate.address))
                .ok_or_else(|| Error::internal(exhausted(set)).details(remedy(settings, leases)))?
        }
    };
    let sandbox = Sandbox::at(Path::new(&environment.netns));
    leases.reserve(chosen.address, index, (id, ifname), sandbox.as_ref())?;
    Ok(IpConfig { interface: None, address: chosen.with_prefix(), gateway: Some(chosen.gateway) })
}

fn exhausted(set: &RangeSet) -> String {
    format!("no IP addresses available in range set: {set}")
}

fn remedy(settings: &Settings, leases: &Locked<'_>) -> String {
    format!(
        "{} addresses are reserved in {}; those of containers whose network namespace is gone were taken back already; a runtime that sends GC takes back the others that it does not know",
        leases.count(),
        settings.directory.display()
    )
}

#[cfg(test)]
mod tests;
