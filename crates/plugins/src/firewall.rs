//! `firewall`: lets a container's packets through the host's firewall, and optionally keeps those of
//! other networks from it.
//!
//! Either by rules of iptables, in the reference plugin's chains and by its words, or by telling a running
//! firewalld the container's addresses, to which rules of iptables would mean nothing.

mod firewalld;
mod iptables;
mod record;
mod settings;

use cni::{AddResult, Error, Plugin, Request, Version};

use self::firewalld::Firewalld;
use self::record::Records;
use self::settings::{Backend, IngressPolicy, Settings};

/// The plugin.
#[derive(Debug, Clone, Copy)]
pub struct Firewall;

impl Plugin for Firewall {
    fn name(&self) -> &'static str {
        "firewall"
    }

    fn versions(&self) -> &'static [Version] {
        const SINCE_0_4: &[Version] = &[Version::V0_4_0, Version::V1_0_0, Version::V1_1_0];
        SINCE_0_4
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let settings = Settings::parse(request)?;
        let result = previous(request)?;
        let bridge = match settings.ingress_policy {
            IngressPolicy::Open => None,
            policy => Some(bridge_of(&result, policy)?),
        };
        let firewalld = connect(settings.backend)?;
        // Before there is anything to be taken away.
        Records::new(&settings.data_dir, request).save(request, &result)?;
        match firewalld {
            Some(mut firewalld) => firewalld.trust(&settings.zone, &result)?,
            None => iptables::accept(&settings.admin_chain, &result)?,
        }
        if let Some(bridge) = bridge {
            iptables::isolate(bridge, settings.ingress_policy, &result)?;
        }
        result.convert(request.version)
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        // What ADD refused must not be impossible to delete.
        let Ok(settings) = Settings::parse(request) else { return Ok(()) };
        let records = Records::new(&settings.data_dir, request);
        // The reference plugin has made no record.
        let result = match request.config.prev_result()? {
            Some(result) => result,
            None => records.of(request),
        };
        let retracted = retract(&settings, &result);
        // Only then: a DEL that failed is tried again, perhaps without a result.
        retracted.and_then(|()| records.remove(request))
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        let settings = Settings::parse(request)?;
        let valid = request.config.valid_attachments()?;
        let mut outcome = Ok(());
        for (path, result) in Records::new(&settings.data_dir, request).stale(&valid)? {
            let removed = retract(&settings, &result).and_then(|()| record::remove(&path));
            outcome = outcome.and(removed);
        }
        outcome
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let settings = Settings::parse(request)?;
        let result = previous(request)?;
        match connect(settings.backend)? {
            Some(mut firewalld) => firewalld.check(&settings.zone, &result)?,
            None => iptables::check(&settings.admin_chain, &result)?,
        }
        match settings.ingress_policy {
            IngressPolicy::Open => Ok(()),
            policy => iptables::check_isolation(bridge_of(&result, policy)?, policy, &result),
        }
    }
}

/// Lets addresses through no more.
fn retract(settings: &Settings, result: &AddResult) -> Result<(), Error> {
    // What protects a bridge from other networks stays: other containers are on it.
    if settings.backend != Backend::Iptables
        && let Some(mut firewalld) = Firewalld::if_running()
    {
        firewalld.distrust(&settings.zone, result);
    }
    // A firewalld that is not running has forgotten the addresses. It may have been started since ADD.
    if settings.backend == Backend::Firewalld { Ok(()) } else { iptables::retract(result) }
}

/// A firewalld to be told, if that is who decides on this host.
fn connect(backend: Backend) -> Result<Option<Firewalld>, Error> {
    match backend {
        Backend::Iptables => Ok(None),
        Backend::Firewalld => Firewalld::connect().map(Some),
        Backend::Automatic => Ok(Firewalld::if_running()),
    }
}

fn previous(request: &Request) -> Result<AddResult, Error> {
    request.config.prev_result()?.ok_or_else(|| {
        Error::internal("missing prevResult from earlier plugin").details(
            "firewall lets the addresses through that another plugin gave: it has to come after that one in the list",
        )
    })
}

/// Compatibility: the first interface of the result is taken to be the bridge.
fn bridge_of(result: &AddResult, policy: IngressPolicy) -> Result<&str, Error> {
    let first = result.interfaces.first().ok_or_else(|| {
        Error::internal(format!(
            "interface needs to be set for ingress policy {:?}, make sure to chain \"firewall\" plugin with \
             \"bridge\"",
            policy.as_str()
        ))
    })?;
    match first.name.as_str() {
        "" => Err(Error::internal("got empty bridge name")),
        name => Ok(name),
    }
}
