//! TUN and TAP devices: network devices whose other end is a program.
//!
//! A device that is persistent stays when nobody has it open, with its addresses and routes; it has no
//! carrier then, and the kernel drops and counts what is sent through it. With several queues, each is
//! a file of its own, and the kernel keeps the packets of one flow in one queue.
//!
//! Source: `Documentation/networking/tuntap.rst`, `drivers/net/tun.c`, `include/uapi/linux/if_tun.h`.

use std::ffi::{c_int, c_short, c_uint, c_ulong};
use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd as _, OwnedFd};

use fabric::dataplane::{Link, Tun};
use fabric::link_name::LinkName;
use rustix::io::Errno;

use crate::error::KernelError;
use crate::link;
use crate::netlink::Socket;

const DEVICE: &str = "/dev/net/tun";
const TUNSETIFF: c_ulong = 0x4004_54ca;
const TUNSETPERSIST: c_ulong = 0x4004_54cb;
const TUNGETFEATURES: c_ulong = 0x8004_54cf;
const TUNGETIFF: c_ulong = 0x8004_54d2;
const TUNSETOFFLOAD: c_ulong = 0x4004_54d0;
const TUNSETQUEUE: c_ulong = 0x4004_54d9;
const IFF_TUN: c_int = 0x0001;
pub(crate) const IFF_TAP: c_int = 0x0002;
pub(crate) const IFF_MULTI_QUEUE: c_int = 0x0100;
pub(crate) const IFF_NO_PI: c_int = 0x1000;
const IFF_DETACH_QUEUE: c_int = 0x0400;
const IFF_VNET_HDR: c_int = 0x4000;
pub(crate) const IFF_TUN_EXCL: c_int = 0x8000;

/// Work that the kernel may leave to whoever reads packets from a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offload(c_uint);

impl Offload {
    /// None.
    pub const NONE: Offload = Offload(0);
    /// Completing checksums.
    pub const CHECKSUM: Offload = Offload(0x01);
    /// Cutting TCP streams of both families, those with ECN included.
    pub const TCP: Offload = Offload(0x02 | 0x04 | 0x08 | Offload::CHECKSUM.0);
    /// Cutting UDP datagrams as well (Linux 6.2).
    pub const UDP: Offload = Offload(0x20 | 0x40 | Offload::TCP.0);
}

/// Whether the kernel's driver can put a header in front of packets that says what is left to do
/// (`struct virtio_net_hdr`); an error if there is no driver. One that cannot be asked came before the
/// header did.
pub fn has_virtio_header() -> Result<bool, KernelError> {
    let file = open(|| "look for TUN devices".to_owned())?;
    let mut features: c_uint = 0;
    // SAFETY: the kernel writes one unsigned int, to where the pointer leads, while this call lasts.
    let asked = check(unsafe { libc::ioctl(file.as_raw_fd(), TUNGETFEATURES as _, &raw mut features) });
    Ok(asked.is_ok() && features & IFF_VNET_HDR as c_uint != 0)
}

/// Makes a persistent device, and sets it up.
pub(crate) fn create(socket: &mut Socket, link: &Link, tun: &Tun) -> Result<(), KernelError> {
    let flags = IFF_TUN | IFF_NO_PI | IFF_TUN_EXCL | if tun.multi_queue { IFF_MULTI_QUEUE } else { 0 };
    let doing = || format!("create tun device {}", link.name);
    let file = attach(doing, link.name, flags)?;
    let index = link::index(socket, link.name)?.ok_or_else(|| KernelError::NoLink(link.name.to_string()))?;
    link::set_up_tun(socket, index, link.mtu, tun.queue_length)?;
    // The last step: until then, what is half made goes when the file is closed.
    set(&file, TUNSETPERSIST, 1).map_err(|errno| KernelError::system(doing(), errno))
}

/// Opens one of several queues of an existing device, which does not wait: for packets with or without
/// a header in front that says what is left to do.
///
/// A device that is gone is not made anew, except in the very moment between two looks; then it is
/// like any other one. One that somebody has open for packets in the other form stays in theirs (as while
/// it is being made, see [`create`]), and its queue is refused.
pub fn queue(socket: &Socket, name: LinkName, virtio_header: bool) -> Result<OwnedFd, KernelError> {
    if !link::exists(socket, name)? {
        return Err(KernelError::NoLink(name.to_string()));
    }
    let flags = IFF_TUN | IFF_NO_PI | IFF_MULTI_QUEUE | if virtio_header { IFF_VNET_HDR } else { 0 };
    let doing = || format!("open a queue of {name}");
    let file = attach(doing, name, flags)?;
    let system = |errno| KernelError::system(doing(), errno);
    if (flags_of(&file).map_err(system)? & IFF_VNET_HDR != 0) != virtio_header {
        let why =
            "another program has the device open, and packets in another form: that one must let go of it";
        return Err(KernelError::Other { doing: doing(), why: why.to_owned() });
    }
    set(&file, TUNSETPERSIST, 1).map_err(system)?;
    let file = OwnedFd::from(file);
    rustix::fs::fcntl_setfl(&file, rustix::fs::OFlags::NONBLOCK).map_err(system)?;
    Ok(file)
}

/// Keeps a queue for writing alone: the kernel puts nothing more into it.
///
/// What is written to any other queue also teaches the kernel which queue the answers of that flow are
/// to go to, so that a flow changes queues under way (`tun_flow_update`). Where all is written to
/// queues such as this one, a flow has the queue that the hash of its addresses and ports says, for
/// ever.
pub fn detach(queue: &OwnedFd) -> Result<(), KernelError> {
    let flags = IFF_DETACH_QUEUE as c_short;
    let mut request = Request { name: [0; libc::IFNAMSIZ], flags, rest: [0; 22] };
    // SAFETY: the kernel reads one ifreq, which the structure is, while this call lasts.
    check(unsafe { libc::ioctl(queue.as_raw_fd(), TUNSETQUEUE as _, &raw mut request) })
        .map_err(|errno| KernelError::system("detach a queue of a TUN device".to_owned(), errno))
}

/// Says what work the kernel may leave to the readers of a device; refused with EINVAL where it does
/// not know some of it.
pub fn set_offload(queue: &OwnedFd, offload: Offload) -> Result<(), KernelError> {
    // SAFETY: this request takes a number, no pointer.
    check(unsafe { libc::ioctl(queue.as_raw_fd(), TUNSETOFFLOAD as _, c_ulong::from(offload.0)) })
        .map_err(|errno| KernelError::system("set the offloads of a TUN device".to_owned(), errno))
}

fn open(doing: impl FnOnce() -> String) -> Result<File, KernelError> {
    OpenOptions::new().read(true).write(true).open(DEVICE).map_err(|error| KernelError::Other {
        doing: doing(),
        why: format!(
            "{DEVICE} cannot be opened ({error}): the kernel needs CONFIG_TUN (modprobe tun), and a container \
             needs the device and CAP_NET_ADMIN"
        ),
    })
}

/// `struct ifreq` with flags.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: c_short,
    rest: [u8; 22],
}

/// Opens a device in the namespace of the calling thread, which makes it if there is none.
pub(crate) fn attach(doing: impl Fn() -> String, name: LinkName, flags: c_int) -> Result<File, KernelError> {
    let file = open(&doing)?;
    let mut request = Request { name: [0; libc::IFNAMSIZ], flags: flags as c_short, rest: [0; 22] };
    let name = name.as_str().as_bytes();
    request.name[..name.len()].copy_from_slice(name);
    // SAFETY: the kernel reads and writes one ifreq, which the structure is, while this call lasts.
    let made = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF as _, &raw mut request) };
    check(made).map_err(|errno| KernelError::system(doing(), errno))?;
    Ok(file)
}

/// The flags of a device, as they are: the kernel takes them only from who has it open alone.
fn flags_of(file: &File) -> Result<c_int, Errno> {
    let mut request = Request { name: [0; libc::IFNAMSIZ], flags: 0, rest: [0; 22] };
    // SAFETY: the kernel writes one ifreq, which the structure is, while this call lasts.
    check(unsafe { libc::ioctl(file.as_raw_fd(), TUNGETIFF as _, &raw mut request) })?;
    // A short holds sixteen flags, the highest of which is no sign.
    Ok(c_int::from(request.flags.cast_unsigned()))
}

/// Makes a request that takes a number.
pub(crate) fn set(file: &File, what: c_ulong, number: u32) -> Result<(), Errno> {
    // SAFETY: these requests take a number, no pointer.
    check(unsafe { libc::ioctl(file.as_raw_fd(), what as _, c_ulong::from(number)) })
}

fn check(result: c_int) -> Result<(), Errno> {
    if result >= 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL))
}
