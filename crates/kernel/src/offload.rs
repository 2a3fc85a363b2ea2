//! What a network device does for the stack: cutting large segments, and gathering received ones. For
//! laboratories that want a device which does not.
//!
//! Source: `include/uapi/linux/ethtool.h`, ethtool(8).

use fabric::link_name::LinkName;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType};

use crate::error::KernelError;

const SIOCETHTOOL: libc::c_ulong = 0x8946;
const ETHTOOL_STSO: u32 = 0x1f;
const ETHTOOL_SGSO: u32 = 0x24;
const ETHTOOL_SGRO: u32 = 0x2c;

/// `struct ethtool_value`
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Turns TCP segmentation, its counterpart in software, and the gathering of received packets off, on a
/// device of the calling thread's namespace: `ethtool -K LINK tso off gso off gro off`. Checksums stay.
pub fn disable(link: LinkName) -> Result<(), KernelError> {
    let doing = || format!("turn off what {link} does for the stack");
    let failed = |errno| KernelError::system(doing(), errno);
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).map_err(failed)?;
    for command in [ETHTOOL_STSO, ETHTOOL_SGSO, ETHTOOL_SGRO] {
        let mut value = Value { command, data: 0 };
        // SAFETY: all zeros are a valid `ifreq`: a name, and a union of numbers and pointers.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(link.as_str().bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_data = (&raw mut value).cast();
        // SAFETY: SIOCETHTOOL reads an `ifreq`, whose name ends in a zero since a LinkName is shorter, and
        // for these commands a `struct ethtool_value` behind its pointer; both outlive the call.
        let done = unsafe {
            libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&socket), SIOCETHTOOL as _, &raw mut request)
        };
        if done < 0 {
            let errno = std::io::Error::last_os_error();
            return Err(failed(Errno::from_io_error(&errno).unwrap_or(Errno::INVAL)));
        }
    }
    Ok(())
}
