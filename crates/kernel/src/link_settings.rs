//! What a device can be told besides being up: its Ethernet address, MTU, queue, and which frames it takes.
//!
//! Source: `net/core/rtnetlink.c` (`do_setlink`, `rtnl_fill_ifinfo`), `include/uapi/linux/if_link.h`.

use fabric::mac::Mac;

use crate::error::{Doing, KernelError};
use crate::link::header;
use crate::netlink::{Batch, Encoder, Socket, attributes, read_u32};

const ALL_MULTICAST: u32 = libc::IFF_ALLMULTI as u32;
const PROMISCUOUS: u32 = libc::IFF_PROMISC as u32;

/// Settings of a device; what is none is not said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkSettings {
    /// Its Ethernet address.
    pub mac: Option<Mac>,
    /// Its MTU in bytes.
    pub mtu: Option<u32>,
    /// Whether it takes frames addressed to others. As read, somebody wants it to, be it a capture.
    pub promiscuous: Option<bool>,
    /// Whether it takes all multicast frames.
    pub all_multicast: Option<bool>,
    /// How many packets may wait to be sent.
    pub queue_length: Option<u32>,
}

/// All settings of a device; none if there is no such device.
pub fn read(socket: &mut Socket, index: u32) -> Result<Option<LinkSettings>, KernelError> {
    let asked = socket.ask(
        libc::RTM_GETLINK,
        0,
        |body| header(body, index, 0, 0),
        |found: &mut Option<LinkSettings>, answer| {
            let flags = read_u32(answer.payload, 8).unwrap_or(0);
            let mut settings =
                LinkSettings { all_multicast: Some(flags & ALL_MULTICAST != 0), ..LinkSettings::default() };
            for (kind, value) in attributes(answer.payload.get(16..).unwrap_or_default()) {
                match kind {
                    libc::IFLA_ADDRESS => settings.mac = value.try_into().ok().map(Mac),
                    libc::IFLA_MTU => settings.mtu = read_u32(value, 0),
                    libc::IFLA_TXQLEN => settings.queue_length = read_u32(value, 0),
                    libc::IFLA_PROMISCUITY => {
                        settings.promiscuous = read_u32(value, 0).map(|count| count > 0);
                    }
                    _ => {}
                }
            }
            *found = Some(settings);
            Ok(())
        },
    );
    match asked {
        Err(error) if error.errno() == Some(rustix::io::Errno::NODEV) => Ok(None),
        other => other.doing(|| format!("look at device number {index}")),
    }
}

/// Makes a device as it is said to be. What can be done is done; the first refusal is returned.
pub fn write(socket: &mut Socket, index: u32, settings: &LinkSettings) -> Result<(), KernelError> {
    let mut batch = Batch::default();
    let mut steps = Vec::new();
    let mut step = |what: String, flags: u32, mask: u32, attribute: &dyn Fn(&mut Encoder)| {
        steps.push(what);
        batch.push(libc::RTM_NEWLINK, 0, |body| {
            header(body, index, flags, mask);
            attribute(body);
        });
    };
    if let Some(mac) = settings.mac {
        step(format!("address {mac}"), 0, 0, &|body| body.attribute(libc::IFLA_ADDRESS, &mac.0));
    }
    if let Some(mtu) = settings.mtu {
        step(format!("mtu {mtu}"), 0, 0, &|body| body.u32(libc::IFLA_MTU, mtu));
    }
    for (name, bit, value) in [
        ("promiscuous", PROMISCUOUS, settings.promiscuous),
        ("all-multicast", ALL_MULTICAST, settings.all_multicast),
    ] {
        if let Some(on) = value {
            let (flags, word) = if on { (bit, "on") } else { (0, "off") };
            step(format!("{name} {word}"), flags, bit, &|_| {});
        }
    }
    if let Some(length) = settings.queue_length {
        step(format!("txqueuelen {length}"), 0, 0, &|body| body.u32(libc::IFLA_TXQLEN, length));
    }
    match socket.batch(&mut batch).into_iter().next() {
        None => Ok(()),
        Some((at, error)) => Err(error).doing(|| format!("set device number {index} {}", steps[at])),
    }
}
