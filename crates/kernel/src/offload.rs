//! What a network device does for the stack: cutting large segments, and gathering received ones. For
//! laboratories that want a device which does not.
//!
//! Source: `include/uapi/linux/ethtool.h`, ethtool(8).

use std::ffi::c_void;
use std::os::fd::{AsRawFd as _, OwnedFd};

use fabric::link_name::LinkName;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType};

use crate::error::KernelError;

const SIOCETHTOOL: libc::c_ulong = 0x8946;
const ETHTOOL_STXCSUM: u32 = 0x17;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_STSO: u32 = 0x1f;
const ETHTOOL_SGSO: u32 = 0x24;
const ETHTOOL_SGRO: u32 = 0x2c;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_SFEATURES: u32 = 0x3b;
/// `ETH_SS_FEATURES`: the names of what a device can do.
const FEATURES: u32 = 4;
/// `ETH_GSTRING_LEN`
const NAME: usize = 32;
/// No kernel has as many features: it had 65 in Linux 6.18.
const MOST: usize = 1024;
const UDP_SEGMENTATION: &str = "tx-udp-segmentation";

/// `struct ethtool_value`
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// `struct ethtool_sset_info` with room for the one number that is asked for.
#[repr(C)]
struct SetInfo {
    command: u32,
    reserved: u32,
    mask: u64,
    count: u32,
}

/// `struct ethtool_gstrings`
#[repr(C)]
struct Strings {
    command: u32,
    set: u32,
    count: u32,
    names: [[u8; NAME]; MOST],
}

/// `struct ethtool_sfeatures`
#[repr(C)]
struct SetFeatures {
    command: u32,
    blocks: u32,
    features: [Block; MOST / 32],
}

/// `struct ethtool_set_features_block`: which of 32 features to change, and to what.
#[repr(C)]
#[derive(Clone, Copy)]
struct Block {
    valid: u32,
    requested: u32,
}

/// Turns TCP segmentation, its counterpart in software, and the gathering of received packets off, on a
/// device of the calling thread's namespace: `ethtool -K LINK tso off gso off gro off`. Checksums stay,
/// and so does the cutting of UDP datagrams.
pub fn disable(link: LinkName) -> Result<(), KernelError> {
    let device = Device::open(link, "turn off segmentation and gathering")?;
    for command in [ETHTOOL_STSO, ETHTOOL_SGSO, ETHTOOL_SGRO] {
        device.ask(&mut Value { command, data: 0 })?;
    }
    Ok(())
}

/// Turns the cutting of UDP datagrams off, on a device of the calling thread's namespace: `ethtool -K LINK
/// tx-udp-segmentation off`. The stack cuts them itself then, before the device sees them.
pub fn disable_udp_segmentation(link: LinkName) -> Result<(), KernelError> {
    let device = Device::open(link, "turn off UDP segmentation")?;
    let mut info = SetInfo { command: ETHTOOL_GSSET_INFO, reserved: 0, mask: 1 << FEATURES, count: 0 };
    device.ask(&mut info)?;
    // The kernel writes as many names as there are, and looks at no limit of ours.
    if info.count as usize > MOST {
        return Err(device.failed(Errno::NOBUFS));
    }
    let mut strings = Box::new(Strings {
        command: ETHTOOL_GSTRINGS,
        set: FEATURES,
        count: info.count,
        names: [[0; NAME]; MOST],
    });
    device.ask(&mut *strings)?;
    let names = &strings.names[..info.count as usize];
    let Some(at) = names.iter().position(|name| text(name) == UDP_SEGMENTATION.as_bytes()) else {
        return Err(device.failed(Errno::OPNOTSUPP));
    };
    let mut change = SetFeatures {
        command: ETHTOOL_SFEATURES,
        blocks: info.count.div_ceil(32),
        features: [Block { valid: 0, requested: 0 }; MOST / 32],
    };
    change.features[at / 32].valid = 1 << (at % 32);
    device.ask(&mut change)
}

/// Turns the computing of checksums off, and with it all segmentation, on a device of the calling thread's
/// namespace: `ethtool -K LINK tx off`.
pub fn disable_checksums(link: LinkName) -> Result<(), KernelError> {
    let device = Device::open(link, "turn off checksums")?;
    device.ask(&mut Value { command: ETHTOOL_STXCSUM, data: 0 })
}

/// A name that ends in zeros.
fn text(name: &[u8]) -> &[u8] {
    name.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// What one of the requests above is made with: a plain structure of numbers whose first is the command.
///
/// # Safety
/// The kernel reads and writes no more for that command than the structure has.
unsafe trait Request {}

// SAFETY: the commands that it is used with read a `struct ethtool_value`, which it is.
unsafe impl Request for Value {}
// SAFETY: one bit is set in the mask, so the kernel writes one number behind it.
unsafe impl Request for SetInfo {}
// SAFETY: the kernel writes as many names as it has of features, which were counted to be at most as many as
// there is room for; a kernel does not learn features while it runs.
unsafe impl Request for Strings {}
// SAFETY: the kernel refuses any number of blocks but its own, which is the one that was counted.
unsafe impl Request for SetFeatures {}

/// A device of the calling thread's namespace, and what is done to it.
struct Device {
    link: LinkName,
    doing: &'static str,
    socket: OwnedFd,
}

impl Device {
    fn open(link: LinkName, doing: &'static str) -> Result<Device, KernelError> {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)
            .map_err(|errno| KernelError::system(format!("{doing} of {link}"), errno))?;
        Ok(Device { link, doing, socket })
    }

    fn failed(&self, errno: Errno) -> KernelError {
        KernelError::system(format!("{} of {}", self.doing, self.link), errno)
    }

    fn ask<R: Request>(&self, request: &mut R) -> Result<(), KernelError> {
        // SAFETY: all zeros are a valid `ifreq`: a name, and a union of numbers and pointers.
        let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in ifreq.ifr_name.iter_mut().zip(self.link.as_str().bytes()) {
            *to = from as libc::c_char;
        }
        ifreq.ifr_ifru.ifru_data = (&raw mut *request).cast::<c_void>().cast();
        // SAFETY: SIOCETHTOOL reads an `ifreq`, whose name ends in a zero since a LinkName is shorter, and
        // behind its pointer what the command says, of which `Request` says that there is enough; both
        // outlive the call.
        let done = unsafe { libc::ioctl(self.socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut ifreq) };
        if done < 0 {
            let errno = std::io::Error::last_os_error();
            return Err(self.failed(Errno::from_io_error(&errno).unwrap_or(Errno::INVAL)));
        }
        Ok(())
    }
}
