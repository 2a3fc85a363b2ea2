//! TAP devices: Ethernet devices whose other end is a program.
//!
//! Source: as of [`crate::tun`], whose driver they share.

use std::ffi::c_ulong;

use fabric::link_name::LinkName;

use crate::error::KernelError;
use crate::tun::{self, IFF_MULTI_QUEUE, IFF_NO_PI, IFF_TAP, IFF_TUN_EXCL};

const TUNSETPERSIST: c_ulong = 0x4004_54cb;
const TUNSETOWNER: c_ulong = 0x4004_54cc;
const TUNSETGROUP: c_ulong = 0x4004_54ce;

/// A device to be made in the namespace of the calling thread.
#[derive(Debug, Clone, Copy)]
pub struct Tap {
    /// Its name.
    pub name: LinkName,
    /// Whether a program may read and write it through several files at once.
    pub multi_queue: bool,
    /// The user that may attach to it besides root.
    pub owner: Option<u32>,
    /// The group that may.
    pub group: Option<u32>,
}

/// Makes a device that stays until it is deleted. Refused with EBUSY where a TUN or TAP device of that
/// name exists, with EINVAL where another one does.
pub fn create(tap: &Tap) -> Result<(), KernelError> {
    let doing = || format!("create tap device {}", tap.name);
    let mut flags = IFF_TAP | IFF_NO_PI | IFF_TUN_EXCL;
    if tap.multi_queue {
        flags |= IFF_MULTI_QUEUE;
    }
    let file = tun::attach(doing, tap.name, flags)?;
    // Until it is persistent, closing the file deletes the device.
    for (what, number) in [(TUNSETOWNER, tap.owner), (TUNSETGROUP, tap.group), (TUNSETPERSIST, Some(1))] {
        if let Some(number) = number {
            tun::set(&file, what, number).map_err(|errno| KernelError::system(doing(), errno))?;
        }
    }
    Ok(())
}
