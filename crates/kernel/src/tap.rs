//! TAP devices: Ethernet devices whose other end is a program.
//!
//! Source: `Documentation/networking/tuntap.rst`, `drivers/net/tun.c`, `include/uapi/linux/if_tun.h`.

use std::ffi::{c_int, c_short, c_ulong};
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd as _;

use fabric::link_name::LinkName;
use rustix::io::Errno;

use crate::error::KernelError;

const DEVICE: &str = "/dev/net/tun";
const TUNSETIFF: c_ulong = 0x4004_54ca;
const TUNSETPERSIST: c_ulong = 0x4004_54cb;
const TUNSETOWNER: c_ulong = 0x4004_54cc;
const TUNSETGROUP: c_ulong = 0x4004_54ce;
const IFF_TAP: c_int = 0x0002;
const IFF_MULTI_QUEUE: c_int = 0x0100;
const IFF_NO_PI: c_int = 0x1000;
const IFF_TUN_EXCL: c_int = 0x8000;

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

/// `struct ifreq` with flags.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: c_short,
    rest: [u8; 22],
}

/// Makes a device that stays until it is deleted. Refused with EBUSY where a TUN or TAP device of that
/// name exists, with EINVAL where another one does.
pub fn create(tap: &Tap) -> Result<(), KernelError> {
    let doing = || format!("create tap device {}", tap.name);
    let file =
        OpenOptions::new().read(true).write(true).open(DEVICE).map_err(|error| KernelError::Other {
            doing: doing(),
            why: format!("{DEVICE} cannot be opened ({error}): the kernel needs CONFIG_TUN (modprobe tun)"),
        })?;
    let mut flags = IFF_TAP | IFF_NO_PI | IFF_TUN_EXCL;
    if tap.multi_queue {
        flags |= IFF_MULTI_QUEUE;
    }
    let mut request = Request { name: [0; libc::IFNAMSIZ], flags: flags as c_short, rest: [0; 22] };
    let name = tap.name.as_str().as_bytes();
    request.name[..name.len()].copy_from_slice(name);
    // SAFETY: the kernel reads and writes one ifreq, which the structure is, while this call lasts.
    let made = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF as _, &raw mut request) };
    let system = |errno| KernelError::system(doing(), errno);
    check(made).map_err(system)?;
    // Until it is persistent, closing the file deletes the device.
    for (what, number) in [(TUNSETOWNER, tap.owner), (TUNSETGROUP, tap.group), (TUNSETPERSIST, Some(1))] {
        if let Some(number) = number {
            set(&file, what, number).map_err(system)?;
        }
    }
    Ok(())
}

fn set(file: &File, what: c_ulong, number: u32) -> Result<(), Errno> {
    // SAFETY: these requests take a number, no pointer.
    check(unsafe { libc::ioctl(file.as_raw_fd(), what as _, c_ulong::from(number)) })
}

fn check(result: c_int) -> Result<(), Errno> {
    if result >= 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL))
}
