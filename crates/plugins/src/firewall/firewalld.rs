//! What firewalld is told: which addresses belong to which of its zones.
//!
//! Source: firewalld.dbus(5), interface `org.fedoraproject.FirewallD1.zone`.

use cni::{AddResult, Error};
use kernel::bus::{Bus, BusError, Reply};

const NAME: &str = "org.fedoraproject.FirewallD1";
const PATH: &str = "/org/fedoraproject/FirewallD1";
const ZONE: &str = "org.fedoraproject.FirewallD1.zone";

/// A running firewalld.
#[derive(Debug)]
pub(super) struct Firewalld {
    bus: Bus,
}

impl Firewalld {
    /// firewalld, if it is running.
    pub(super) fn if_running() -> Option<Firewalld> {
        let mut bus = Bus::system().ok()?;
        bus.has_owner(NAME).ok()?.then_some(Firewalld { bus })
    }

    /// firewalld, which has to be running.
    pub(super) fn connect() -> Result<Firewalld, Error> {
        let remedy = "start firewalld, or set backend to \"iptables\"";
        let failed = |error: BusError| {
            Error::internal(format!("backend \"firewalld\" cannot be reached: {error}")).details(remedy)
        };
        let mut bus = Bus::system().map_err(failed)?;
        if bus.has_owner(NAME).map_err(failed)? {
            return Ok(Firewalld { bus });
        }
        Err(Error::internal("backend \"firewalld\" was requested but firewalld is not running")
            .details(remedy))
    }

    /// Puts the container's addresses into a zone.
    pub(super) fn trust(&mut self, zone: &str, result: &AddResult) -> Result<(), Error> {
        for source in sources(result) {
            match self.call("addSource", zone, &source) {
                Err(error) if error.to_string().contains("ZONE_ALREADY_SET") => {}
                Err(error) => {
                    return Err(Error::internal(format!(
                        "failed to add the address {source} to {zone} zone: {error}"
                    )));
                }
                Ok(_) => {}
            }
        }
        Ok(())
    }

    /// Takes the container's addresses out of a zone. Those that are not in it are no error.
    pub(super) fn distrust(&mut self, zone: &str, result: &AddResult) {
        for source in sources(result) {
            // Compatibility: nobody could do better at another try.
            let _ = self.call("removeSource", zone, &source);
        }
    }

    /// Whether the container's addresses are in a zone.
    pub(super) fn check(&mut self, zone: &str, result: &AddResult) -> Result<(), Error> {
        for source in sources(result) {
            let missing = || Error::internal(format!("failed to find the address {source} in {zone} zone"));
            match self.call("querySource", zone, &source) {
                Ok(Reply::Boolean(true)) => {}
                Ok(_) => return Err(missing()),
                Err(error) => return Err(missing().details(error.to_string())),
            }
        }
        Ok(())
    }

    fn call(&mut self, method: &str, zone: &str, source: &str) -> Result<Reply, BusError> {
        self.bus.call(NAME, PATH, ZONE, method, &[zone, source])
    }
}

/// The container's addresses, each as a network of its own.
fn sources(result: &AddResult) -> Vec<String> {
    let nets = result.ips.iter().map(|ip| ip.address);
    nets.map(|net| format!("{}/{}", net.addr(), net.max_prefix_len())).collect()
}
