//! [`DhcpSocket`]: IPv4 packets of a device that has no address yet, as DHCP needs them.
//!
//! A filter in the kernel lets through only what is sent to the UDP port of DHCP clients, so that an
//! open socket costs the rest of the traffic next to nothing.
//!
//! Source: `packet(7)`, `linux/filter.h`, RFC 2131 section 4.1.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use rustix::io::Errno;

use crate::error::KernelError;

/// `ETH_P_IP`
const IPV4: u16 = libc::ETH_P_IP as u16;
/// The port of DHCP clients.
const CLIENT_PORT: u32 = 68;

/// A packet socket on one device, in the namespace of the thread that opened it.
#[derive(Debug)]
pub struct DhcpSocket {
    fd: OwnedFd,
    index: u32,
}

impl DhcpSocket {
    /// Opens one on the device of that number.
    pub fn open(index: u32) -> Result<DhcpSocket, KernelError> {
        let fd = open(IPV4, index, attach_filter).map_err(|errno| {
            KernelError::system(format!("open a packet socket on device number {index}"), errno)
        })?;
        Ok(DhcpSocket { fd, index })
    }

    /// Sends an IPv4 packet to everybody on the network of the device.
    pub fn broadcast(&self, packet: &[u8]) -> Result<(), KernelError> {
        broadcast(&self.fd, IPV4, self.index, packet).map_err(|errno| {
            KernelError::system(format!("send a packet on device number {}", self.index), errno)
        })
    }

    /// The next IPv4 packet, if one is waiting. That the device is down is told once, as an error.
    pub fn receive<'a>(&self, buffer: &'a mut [u8]) -> Result<Option<&'a [u8]>, KernelError> {
        match rustix::net::recv(&self.fd, &mut *buffer, rustix::net::RecvFlags::empty()) {
            Ok((length, _)) => Ok(Some(&buffer[..length])),
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(errno) => Err(KernelError::system(format!("receive on device number {}", self.index), errno)),
        }
    }
}

impl AsFd for DhcpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Opens a packet socket for a protocol (`ETH_P_*`) on a device.
pub(crate) fn open(
    protocol: u16,
    index: u32,
    prepare: impl FnOnce(&OwnedFd) -> Result<(), Errno>,
) -> Result<OwnedFd, Errno> {
    // Protocol 0: nothing arrives before the filter stands and the device is chosen.
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket(2) takes numbers only.
    let number = check(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    prepare(&fd)?;
    let address = link_address(protocol, index, [0; 6]);
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the kernel reads one sockaddr_ll, which the pointer leads to, while this call lasts.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) })?;
    Ok(fd)
}

/// Sends a packet to everybody on the network of a device.
pub(crate) fn broadcast(fd: &OwnedFd, protocol: u16, index: u32, packet: &[u8]) -> Result<(), Errno> {
    let address = link_address(protocol, index, [0xff; 6]);
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the kernel reads the packet and one sockaddr_ll while this call lasts; both live longer.
    let sent = unsafe {
        libc::sendto(
            fd.as_raw_fd(),
            packet.as_ptr().cast(),
            packet.len(),
            0,
            (&raw const address).cast(),
            length,
        )
    };
    if sent >= 0 { Ok(()) } else { Err(last_error()) }
}

/// An Ethernet address of the network of a device.
fn link_address(protocol: u16, index: u32, mac: [u8; 6]) -> libc::sockaddr_ll {
    let mut octets = [0; 8];
    octets[..6].copy_from_slice(&mac);
    libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol.to_be(),
        sll_ifindex: index as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: octets,
    }
}

/// Whole UDP packets to the client port; later fragments have no port.
fn attach_filter(fd: &OwnedFd) -> Result<(), Errno> {
    // BPF_{LD,LDX,JMP,RET}, as `tcpdump -dd -y RAW 'udp dst port 68'` combines them.
    const LOAD_BYTE: u16 = 0x30;
    const LOAD_HALF: u16 = 0x28;
    const LOAD_HALF_BEHIND_HEADER: u16 = 0x48;
    const LOAD_HEADER_LENGTH: u16 = 0xb1;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const JUMP_IF_SET: u16 = 0x45;
    const RETURN: u16 = 0x06;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = [
        step(LOAD_BYTE, 0, 0, 9),
        step(JUMP_IF_EQUAL, 0, 6, libc::IPPROTO_UDP as u32),
        step(LOAD_HALF, 0, 0, 6),
        step(JUMP_IF_SET, 4, 0, 0x1fff),
        step(LOAD_HEADER_LENGTH, 0, 0, 0),
        step(LOAD_HALF_BEHIND_HEADER, 0, 0, 2),
        step(JUMP_IF_EQUAL, 0, 1, CLIENT_PORT),
        step(RETURN, 0, 0, u32::MAX),
        step(RETURN, 0, 0, 0),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the kernel copies the program, whose length is right, while this call lasts.
    let set = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    check(set).map(drop)
}

fn check(result: libc::c_int) -> Result<libc::c_int, Errno> {
    if result >= 0 { Ok(result) } else { Err(last_error()) }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}
