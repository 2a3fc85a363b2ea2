//! Frames sorted by VLAN.
//!
//! A pod's port takes untagged frames into one VLAN (`vlan`), and frames with the tags of a list
//! (`vlanTrunk`). The gateway of pods in a VLAN is a device of the host's own, on a port in that VLAN.

use std::collections::BTreeSet;

use cni::Error;
use fabric::LinkName;
use kernel::bridge::{self, Side, Vlans};
use kernel::link::{self, Link, Veth};
use kernel::netlink::Socket;
use kernel::{KernelError, netns};
use rustix::fd::AsFd as _;
use rustix::io::Errno;

use super::settings::Settings;
use crate::interface::random_mac;
use crate::veth::Pair;

/// The VLAN of untagged frames on a trunk for which none is given.
///
/// Compatibility: also where the one that every port starts with is not to be preserved.
const DEFAULT: u16 = 1;

/// The VLANs that a port passes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wish<'a> {
    untagged: u16,
    tagged: &'a BTreeSet<u16>,
    preserve_default: bool,
}

impl Wish<'_> {
    /// Those of a pod's port; none if frames are not sorted by VLAN.
    fn of(settings: &Settings) -> Option<Wish<'_>> {
        const NONE: &BTreeSet<u16> = &BTreeSet::new();
        let tagged = settings.trunk.as_ref().unwrap_or(NONE);
        let untagged = settings.vlan.or_else(|| (!tagged.is_empty()).then_some(DEFAULT))?;
        Some(Wish { untagged, tagged, preserve_default: settings.preserve_default_vlan })
    }

    /// That of a gateway's port.
    fn of_gateway(settings: &Settings, id: u16) -> Wish<'static> {
        const NONE: &BTreeSet<u16> = &BTreeSet::new();
        Wish { untagged: id, tagged: NONE, preserve_default: settings.preserve_default_vlan }
    }

    fn set(&self, host: &mut Socket, port: u32) -> Result<(), KernelError> {
        if !self.preserve_default {
            for present in bridge::vlans(host, port)? {
                bridge::remove_vlans(host, port, Side::Port, &present)?;
            }
        }
        for ids in runs(self.tagged.iter().copied().filter(|id| *id != self.untagged)) {
            bridge::add_vlans(host, port, Side::Port, &Vlans { ids, pvid: false, untagged: false })?;
        }
        let own = Vlans { ids: self.untagged..=self.untagged, pvid: true, untagged: true };
        bridge::add_vlans(host, port, Side::Port, &own)
    }

    /// The first VLAN that the port does not pass as it should.
    fn missing(&self, host: &mut Socket, port: u32) -> Result<Option<u16>, KernelError> {
        let present = bridge::vlans(host, port)?;
        let passes = |id: u16, as_own: bool| {
            present.iter().any(|vlans| vlans.ids.contains(&id) && (vlans.pvid && vlans.untagged || !as_own))
        };
        // Compatibility: the original lets a VLAN that is in the list as well pass tagged only.
        if !passes(self.untagged, !self.tagged.contains(&self.untagged)) {
            return Ok(Some(self.untagged));
        }
        Ok(self.tagged.iter().copied().find(|id| !passes(*id, false)))
    }
}

/// Ids in order as ranges without gaps: one request each, not one per VLAN.
fn runs(ids: impl Iterator<Item = u16>) -> Vec<std::ops::RangeInclusive<u16>> {
    let mut runs: Vec<std::ops::RangeInclusive<u16>> = Vec::new();
    for id in ids {
        match runs.last_mut() {
            Some(run) if run.end() + 1 == id => *run = *run.start()..=id,
            _ => runs.push(id..=id),
        }
    }
    runs
}

/// Has a pod's port pass the configuration's VLANs.
pub(super) fn set_up_port(host: &mut Socket, settings: &Settings, pair: &Pair) -> Result<(), Error> {
    let Some(wish) = Wish::of(settings) else { return Ok(()) };
    wish.set(host, pair.host_index).map_err(|error| {
        Error::internal(format!("failed to setup vlan tag on interface \"{}\": {error}", pair.host))
    })
}

/// Whether a pod's port passes the configuration's VLANs.
pub(super) fn check_port(host: &mut Socket, settings: &Settings, port: &Link) -> Result<(), Error> {
    let Some(wish) = Wish::of(settings) else { return Ok(()) };
    match wish.missing(host, port.index).map_err(|error| Error::internal(error.to_string()))? {
        None => Ok(()),
        Some(id) => Err(Error::internal(format!("bridge port {} has lost VLAN {id}", port.name))),
    }
}

/// The name of the device that carries the gateway's address in a VLAN.
pub(super) fn gateway_name(bridge: LinkName, id: u16) -> Result<LinkName, Error> {
    let text = format!("{bridge}.{id}");
    text.parse().map_err(|error| {
        Error::internal(format!("failed to create vlan gateway {text:?}: {error}"))
            .details("it is named after the bridge and the VLAN: choose a shorter \"bridge\"")
    })
}

/// The device that carries the gateway's address in a VLAN: one end of a pair, whose other end is a port
/// of the bridge in that VLAN.
pub(super) fn ensure_gateway(
    host: &mut Socket,
    bridge: &Link,
    settings: &Settings,
    id: u16,
) -> Result<Link, Error> {
    let name = gateway_name(bridge.name, id)?;
    let failed =
        |error: KernelError| Error::internal(format!("failed to create vlan gateway \"{name}\": {error}"));
    if let Some(link) = link::by_name(host, name).map_err(failed)? {
        return complete(host, link, bridge, settings, id).map_err(failed);
    }
    let here = netns::current().map_err(failed)?;
    let port: LinkName = format!("veth{}", &random_mac()?.to_string().replace(':', "")[4..])
        .parse()
        .expect("twelve letters and digits name a device");
    // Chosen here, so that nobody else wants to choose (systemd-udevd does for kernel-chosen ones).
    let (port_mac, gateway_mac) = (random_mac()?, random_mac()?);
    let veth = Veth {
        name: port,
        mac: Some(port_mac),
        mtu: Some(bridge.mtu),
        master: Some(bridge.index),
        peer_name: name,
        peer_mac: Some(gateway_mac),
        peer_namespace: here.as_fd(),
    };
    match link::create_veth(host, &veth) {
        // Another ADD was quicker.
        Err(error) if error.errno() == Some(Errno::EXIST) => {}
        other => other.map_err(failed)?,
    }
    let link = link::by_name(host, name)
        .map_err(failed)?
        .ok_or_else(|| failed(KernelError::NoLink(name.to_string())))?;
    complete(host, link, bridge, settings, id).map_err(failed)
}

/// A gateway as it should be, also if the ADD that made it was killed on its way.
fn complete(
    host: &mut Socket,
    link: Link,
    bridge: &Link,
    settings: &Settings,
    id: u16,
) -> Result<Link, KernelError> {
    // A device of somebody else that has this name, one by 8021q for example, serves as it is.
    let port = if link.kind.name() == "veth" { link.lower } else { None };
    if let Some(port) = port
        && link::by_index(host, port)?.is_some_and(|port| port.master == Some(bridge.index))
    {
        let wish = Wish::of_gateway(settings, id);
        if wish.missing(host, port)?.is_some() {
            wish.set(host, port)?;
        }
    }
    if !link.is_up() {
        link::set_up(host, link.index)?;
    }
    Ok(link)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighboring_vlans_are_set_together() {
        assert_eq!(runs([1, 2, 3, 5, 7, 8].into_iter()), [1..=3, 5..=5, 7..=8]);
        assert_eq!(runs(1..=4094), [1..=4094]);
        assert_eq!(runs([].into_iter()), []);
    }
}
