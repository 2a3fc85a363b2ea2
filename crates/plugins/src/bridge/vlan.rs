//! Frames sorted by VLAN.

use std::collections::BTreeSet;

use cni::Error;
use fabric::LinkName;
use kernel::bridge::{self, Side, Vlans};
use kernel::link::{self, Link, Veth};
use kernel::netlink::Socket;
use kernel::{KernelError, netns};
use rustix::io::Errno;

use super::settings::Settings;
use crate::interface::random_mac;
use crate::veth::Pair;

/// The VLANs that a pod's port passes.
pub(super) fn set_up_port(host: &mut Socket, settings: &Settings, pair: &Pair) -> Result<(), Error> {
    let tagged = settings.trunk.clone().unwrap_or_default();
    let untagged = settings.vlan.or_else(|| (!tagged.is_empty()).then_some(1));
    if untagged.is_none() {
        return Ok(());
    }
    set_vlans(host, pair.host_index, untagged, &tagged, settings.preserve_default_vlan).map_err(|error| {
        Error::internal(format!("failed to setup vlan tag on interface \"{}\": {error}", pair.host))
    })
}

fn set_vlans(
    host: &mut Socket,
    port: u32,
    untagged: Option<u16>,
    tagged: &BTreeSet<u16>,
    preserve_default: bool,
) -> Result<(), KernelError> {
    if !preserve_default {
        for present in bridge::vlans(host, port)? {
            bridge::remove_vlans(host, port, Side::Port, &present)?;
        }
    }
    for id in tagged.iter().filter(|id| Some(**id) != untagged) {
        bridge::add_vlans(host, port, Side::Port, &Vlans { ids: *id..=*id, pvid: false, untagged: false })?;
    }
    match untagged {
        Some(id) => {
            bridge::add_vlans(host, port, Side::Port, &Vlans { ids: id..=id, pvid: true, untagged: true })
        }
        None => Ok(()),
    }
}

/// The device that carries the gateway's address in a VLAN: one end of a pair, whose other end is a port
/// of the bridge in that VLAN.
pub(super) fn ensure_gateway(
    host: &mut Socket,
    bridge: &Link,
    settings: &Settings,
    id: u16,
) -> Result<Link, Error> {
    let text = format!("{}.{id}", bridge.name);
    let name: LinkName = text.parse().map_err(|error| Error::internal(format!("{error}")))?;
    let failed =
        |error: KernelError| Error::internal(format!("failed to create vlan gateway {text:?}: {error}"));
    if let Some(link) = link::by_name(host, name).map_err(failed)? {
        return Ok(link);
    }
    let here = netns::current().map_err(failed)?;
    let port: LinkName = format!("veth{}", &random_mac()?.to_string().replace(':', "")[4..])
        .parse()
        .expect("twelve letters and digits name a device");
    let veth = Veth {
        name: port,
        mac: None,
        mtu: Some(bridge.mtu),
        master: Some(bridge.index),
        peer_name: name,
        peer_mac: None,
        peer_namespace: rustix::fd::AsFd::as_fd(&here),
    };
    match link::create_veth(host, &veth) {
        // Another ADD was quicker.
        Err(error) if error.errno() == Some(Errno::EXIST) => {}
        other => {
            other.map_err(failed)?;
            let index = link::index(host, port)
                .map_err(failed)?
                .ok_or_else(|| failed(KernelError::NoLink(port.to_string())))?;
            set_vlans(host, index, Some(id), &BTreeSet::new(), settings.preserve_default_vlan)
                .map_err(failed)?;
        }
    }
    let link = link::by_name(host, name)
        .map_err(failed)?
        .ok_or_else(|| failed(KernelError::NoLink(text.clone())))?;
    link::set_up(host, link.index).map_err(failed)?;
    Ok(link)
}
