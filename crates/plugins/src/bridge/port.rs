//! The bridge's port: the host's end of an attachment's veth pair.

use std::thread;
use std::time::{Duration, Instant};

use cni::Error;
use kernel::bridge::PortFlags;
use kernel::link::{self, Operational};
use kernel::netlink::Socket;
use kernel::{bridge, sysctl};

use super::settings::Settings;
use super::vlan;
use crate::veth::Pair;

/// How long a bridge port may take to come up.
const PORT_PATIENCE: Duration = Duration::from_millis(2500);

/// What the bridge is to do with the host's end.
pub(super) fn set_up(host: &mut Socket, settings: &Settings, pair: &Pair) -> Result<(), Error> {
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
