//! A device of the host on loan to a container: moved there under another name, and back.
//!
//! The name that it had is kept as its alias, where it also survives the end of the container: the
//! kernel then moves a hardware device to the first namespace by itself.
//!
//! Source: `net/core/rtnetlink.c` (`do_setlink`), `net/core/dev.c` (`__dev_change_net_namespace`).

use std::os::fd::{AsRawFd as _, BorrowedFd};

use fabric::link_name::LinkName;

use crate::error::{Doing, KernelError};
use crate::link::header;
use crate::netlink::{Answer, Socket, attributes, read_text};

/// Moves a device to another namespace and gives it a name and an alias there, in one step as far as
/// others see it. The device is down after.
///
/// Where the name is taken there, the device may have been moved nevertheless.
pub fn hand_over(
    socket: &mut Socket,
    index: u32,
    to: BorrowedFd<'_>,
    name: LinkName,
    alias: &str,
) -> Result<(), KernelError> {
    socket
        .request(libc::RTM_NEWLINK, 0, |body| {
            header(body, index, 0, 0);
            body.u32(libc::IFLA_NET_NS_FD, to.as_raw_fd() as u32);
            body.text(libc::IFLA_IFNAME, name.as_str());
            body.attribute(libc::IFLA_IFALIAS, alias.as_bytes());
        })
        .doing(|| format!("move device number {index} to another network namespace as {name}"))
}

/// Gives a device an alias; the empty one takes it away.
pub fn set_alias(socket: &mut Socket, index: u32, alias: &str) -> Result<(), KernelError> {
    socket
        .request(libc::RTM_NEWLINK, 0, |body| {
            header(body, index, 0, 0);
            body.attribute(libc::IFLA_IFALIAS, alias.as_bytes());
        })
        .doing(|| format!("set the alias of device number {index} to {alias:?}"))
}

/// The alias of a device; empty if it has none, or has gone meanwhile.
pub fn alias(socket: &mut Socket, index: u32) -> Result<String, KernelError> {
    let take = |found: &mut String, answer: Answer<'_>| {
        let mut all = attributes(answer.payload.get(16..).unwrap_or_default());
        if let Some((_, value)) = all.find(|(kind, _)| *kind == libc::IFLA_IFALIAS) {
            *found = read_text(value);
        }
        Ok(())
    };
    match socket.ask(libc::RTM_GETLINK, 0, |body| header(body, index, 0, 0), take) {
        Err(error) if error.errno() == Some(rustix::io::Errno::NODEV) => Ok(String::new()),
        other => other.doing(|| format!("look at device number {index}")),
    }
}
