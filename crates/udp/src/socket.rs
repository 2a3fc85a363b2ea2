//! UDP sockets that send and receive many datagrams in one call.
//!
//! Sending: many messages to a call (`sendmmsg`), and many datagrams of one size to a message
//! (`UDP_SEGMENT`, Linux 4.18), which the network card or, as late as possible, the kernel cuts apart.
//! Receiving: many messages to a call (`recvmmsg`), and many datagrams of one flow and size to a
//! message (`UDP_GRO`, Linux 5.0). Where the kernel lacks either, each message is a datagram.

use std::ffi::{c_int, c_void};
use std::mem::zeroed;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, sockopt};

use crate::error::UdpError;
use crate::incoming::{SLOT, SLOTS};
use crate::outgoing::Outgoing;

const SOL_UDP: c_int = 17;
const UDP_SEGMENT: c_int = 103;
const UDP_GRO: c_int = 104;
/// `SK_MEMINFO_DROPS`
const MEMINFO_DROPS: usize = 8;
/// What waits in a socket to be received or sent: 20 ms of 1 GB/s.
const BUFFER: c_int = 16 << 20;

/// A socket.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    pub(crate) ipv4: bool,
    port: u16,
    /// Whether the kernel puts datagrams together that arrive.
    pub(crate) gro: bool,
    /// Whether the kernel knows of `UDP_SEGMENT`.
    pub(crate) gso: bool,
}

/// Whether other sockets of ours have the same address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    Alone,
    Shared,
}

/// Whether the kernel may cut a datagram into IP fragments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fragmenting {
    Never,
    Allowed,
}

impl Socket {
    /// Binds a socket to an address.
    pub(crate) fn bind(address: SocketAddr, sharing: Sharing) -> Result<Socket, UdpError> {
        let doing = || UdpError::system(format!("listen on udp {address}"));
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let fd = rustix::net::socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
            .map_err(doing())?;
        if !address.is_ipv4() {
            sockopt::set_ipv6_v6only(&fd, true).map_err(doing())?;
        }
        if sharing == Sharing::Shared {
            sockopt::set_socket_reuseport(&fd, true).map_err(doing())?;
        }
        rustix::net::bind(&fd, &address).map_err(|errno| match errno {
            Errno::ADDRINUSE => UdpError::PortInUse(address),
            Errno::ADDRNOTAVAIL => UdpError::NoAddress(address),
            Errno::INVAL if is_link_local(address) => UdpError::LinkLocal(address),
            other => doing()(other),
        })?;
        let mut socket = Socket { fd, ipv4: address.is_ipv4(), port: address.port(), gro: false, gso: false };
        socket.set_fragmenting(Fragmenting::Never);
        for (limited, forced) in
            [(libc::SO_RCVBUF, libc::SO_RCVBUFFORCE), (libc::SO_SNDBUF, libc::SO_SNDBUFFORCE)]
        {
            // Beyond the host's limit only root may go; less than asked for is no harm.
            if socket.set(libc::SOL_SOCKET, forced, BUFFER).is_err() {
                let _ = socket.set(libc::SOL_SOCKET, limited, BUFFER);
            }
        }
        socket.gso = socket.set(SOL_UDP, UDP_SEGMENT, 0).is_ok();
        socket.gro = socket.set(SOL_UDP, UDP_GRO, 1).is_ok();
        Ok(socket)
    }

    /// Sends some of the bundles, those of our address family; says how many went out, or why the first
    /// did not.
    pub(crate) fn send(
        &self,
        outgoing: &Outgoing,
        bundles: Range<usize>,
        room: &mut SendRoom,
    ) -> Result<usize, Errno> {
        room.fill(outgoing, bundles, self.port);
        self.call_sendmmsg(room)
    }

    /// Sends one bundle that is not among those gathered.
    pub(crate) fn send_one(
        &self,
        outgoing: &Outgoing,
        bundle: &crate::outgoing::Bundle,
        room: &mut SendRoom,
    ) -> Result<(), Errno> {
        room.clear();
        room.add(outgoing, bundle, self.port);
        room.connect_pointers();
        self.call_sendmmsg(room).map(drop)
    }

    fn call_sendmmsg(&self, room: &mut SendRoom) -> Result<usize, Errno> {
        loop {
            // SAFETY: every pointer in the messages leads into one of the other vectors of `room`, which
            // nothing changes between `connect_pointers` and this call, or into the octets of
            // `outgoing`, which are borrowed for as long; the kernel only reads them, but for
            // `msg_len`.
            let sent = unsafe {
                libc::sendmmsg(
                    self.fd.as_raw_fd(),
                    room.messages.as_mut_ptr(),
                    room.messages.len() as u32,
                    libc::MSG_NOSIGNAL,
                )
            };
            match errno_of(sent) {
                Err(Errno::INTR) => {}
                other => return other,
            }
        }
    }

    /// Receives into the slots of `octets`, waiting for the first message; says how many came. None
    /// once the socket was shut down.
    pub(crate) fn receive<'a>(
        &self,
        octets: &mut [u8],
        room: &'a mut ReceiveRoom,
    ) -> Result<Option<&'a [Received]>, Errno> {
        room.prepare(octets);
        let count = loop {
            // SAFETY: every pointer in the messages was just made to lead into `octets`, which is borrowed
            // mutably until the call is over, or into a vector of `room`, with the length that is
            // there; the kernel writes no more than that.
            let count = unsafe {
                libc::recvmmsg(
                    self.fd.as_raw_fd(),
                    room.messages.as_mut_ptr(),
                    room.messages.len() as u32,
                    libc::MSG_WAITFORONE as _,
                    std::ptr::null_mut(),
                )
            };
            match errno_of(count) {
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
                Ok(count) => break count,
            }
        };
        Ok(room.read(count))
    }

    /// Lets whoever waits in [`Self::receive`] go.
    pub(crate) fn shut_down(&self) {
        // ENOTCONN: it wakes the waiting all the same (`inet_shutdown`).
        let _ = rustix::net::shutdown(&self.fd, Shutdown::Both);
    }

    /// Whether the kernel may cut what is sent from now on.
    pub(crate) fn set_fragmenting(&self, fragmenting: Fragmenting) {
        let (level, option, never, allowed) = if self.ipv4 {
            (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO, libc::IP_PMTUDISC_WANT)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO, libc::IPV6_PMTUDISC_WANT)
        };
        // It cannot fail with these values; if it did, datagrams would be cut as the original's are.
        let _ = self.set(level, option, if fragmenting == Fragmenting::Never { never } else { allowed });
    }

    /// How large an inner packet the path to a node carries, as far as the kernel knows.
    pub(crate) fn path(&self, to: IpAddr) -> Option<usize> {
        let family = if self.ipv4 { AddressFamily::INET } else { AddressFamily::INET6 };
        let fd = rustix::net::socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None).ok()?;
        rustix::net::connect(&fd, &SocketAddr::new(to, self.port)).ok()?;
        let (level, option, headers) = if self.ipv4 {
            (libc::IPPROTO_IP, libc::IP_MTU, 20 + 8)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_MTU, 40 + 8)
        };
        let mtu = get::<c_int>(&fd, level, option)?;
        usize::try_from(mtu).ok()?.checked_sub(headers)
    }

    /// How many datagrams the kernel dropped because they were not received in time.
    pub(crate) fn overflows(&self) -> u64 {
        let memory: Option<[u32; 9]> = get(&self.fd, libc::SOL_SOCKET, libc::SO_MEMINFO);
        memory.map_or(0, |memory| u64::from(memory[MEMINFO_DROPS]))
    }

    fn set(&self, level: c_int, option: c_int, value: c_int) -> Result<(), Errno> {
        // SAFETY: the kernel reads one int from where the pointer leads, while this call lasts.
        errno_of(unsafe {
            libc::setsockopt(
                self.fd.as_fd().as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                size_of::<c_int>() as u32,
            )
        })
        .map(drop)
    }
}

/// Types of which any octets are a value.
trait Plain: Copy {}
impl Plain for c_int {}
impl Plain for [u32; 9] {}

fn get<T: Plain>(fd: &OwnedFd, level: c_int, option: c_int) -> Option<T> {
    let mut length = size_of::<T>() as u32;
    // SAFETY: of a plain type any octets are a value, zeros as well as what the kernel writes; it writes
    // no more than `length` to where the pointer leads, while the call lasts.
    let (result, value) = unsafe {
        let mut value: T = zeroed();
        let result =
            libc::getsockopt(fd.as_raw_fd(), level, option, (&raw mut value).cast(), &raw mut length);
        (result, value)
    };
    errno_of(result).ok().map(|_| value)
}

fn errno_of(result: c_int) -> Result<usize, Errno> {
    usize::try_from(result)
        .map_err(|_| Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}

/// A control message with one number: where the size of segments is told.
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy)]
struct Control([u8; 24]);

impl Control {
    /// `struct cmsghdr` and the size of each segment.
    fn segment(size: u16) -> Control {
        let mut octets = [0; 24];
        octets[..8].copy_from_slice(&18usize.to_ne_bytes());
        octets[8..12].copy_from_slice(&SOL_UDP.to_ne_bytes());
        octets[12..16].copy_from_slice(&UDP_SEGMENT.to_ne_bytes());
        octets[16..18].copy_from_slice(&size.to_ne_bytes());
        Control(octets)
    }
}

/// The size of segments out of the control messages that were received; zero if there is none.
fn segment_size(mut control: &[u8]) -> usize {
    while let Some(header) = control.first_chunk::<16>() {
        let (length, rest) = header.split_at(8);
        let length = length.try_into().map_or(0, usize::from_ne_bytes);
        let number = |at: usize| c_int::from_ne_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
        if (number(0), number(4)) == (SOL_UDP, UDP_GRO)
            && let Some(data) = control.get(16..20)
        {
            let size = c_int::from_ne_bytes([data[0], data[1], data[2], data[3]]);
            return usize::try_from(size).unwrap_or(0);
        }
        let next = length.max(16).next_multiple_of(8);
        control = control.get(next..).unwrap_or_default();
    }
    0
}

/// The address of a node.
#[repr(C)]
#[derive(Clone, Copy)]
union Address {
    ipv4: libc::sockaddr_in,
    ipv6: libc::sockaddr_in6,
}

impl Address {
    fn new(ip: IpAddr, port: u16) -> Address {
        match ip {
            IpAddr::V4(ip) => Address {
                ipv4: libc::sockaddr_in {
                    sin_family: libc::AF_INET as _,
                    sin_port: port.to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(ip.octets()) },
                    sin_zero: [0; 8],
                },
            },
            IpAddr::V6(ip) => Address {
                ipv6: libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as _,
                    sin6_port: port.to_be(),
                    sin6_flowinfo: 0,
                    sin6_addr: libc::in6_addr { s6_addr: ip.octets() },
                    sin6_scope_id: 0,
                },
            },
        }
    }

    fn length(ip: IpAddr) -> u32 {
        (if ip.is_ipv4() { size_of::<libc::sockaddr_in>() } else { size_of::<libc::sockaddr_in6>() }) as u32
    }

    fn ip(&self) -> Option<IpAddr> {
        // SAFETY: both variants begin with the family, and any octets are a value of either; which of the
        // two is meant is what the family says.
        unsafe {
            match c_int::from(self.ipv4.sin_family) {
                libc::AF_INET => Some(Ipv4Addr::from(self.ipv4.sin_addr.s_addr.to_ne_bytes()).into()),
                libc::AF_INET6 => Some(Ipv6Addr::from(self.ipv6.sin6_addr.s6_addr).into()),
                _ => None,
            }
        }
    }
}

/// What the kernel is handed to send; kept so that nothing is allocated from call to call.
#[derive(Default)]
pub(crate) struct SendRoom {
    messages: Vec<libc::mmsghdr>,
    iovecs: Vec<libc::iovec>,
    addresses: Vec<Address>,
    controls: Vec<Control>,
}

impl SendRoom {
    fn clear(&mut self) {
        self.messages.clear();
        self.iovecs.clear();
        self.addresses.clear();
        self.controls.clear();
    }

    fn fill(&mut self, outgoing: &Outgoing, bundles: Range<usize>, port: u16) {
        self.clear();
        for bundle in &outgoing.bundles()[bundles] {
            self.add(outgoing, bundle, port);
        }
        self.connect_pointers();
    }

    fn add(&mut self, outgoing: &Outgoing, bundle: &crate::outgoing::Bundle, port: u16) {
        let before = self.iovecs.len();
        self.iovecs.extend(outgoing.pieces(bundle).map(|piece| libc::iovec {
            iov_base: piece.as_ptr().cast_mut().cast::<c_void>(),
            iov_len: piece.len(),
        }));
        self.addresses.push(Address::new(bundle.to, port));
        self.controls.push(Control::segment(bundle.segment as u16));
        // SAFETY: null pointers and zeros are a value of this type.
        let mut message: libc::mmsghdr = unsafe { zeroed() };
        message.msg_hdr.msg_iovlen = (self.iovecs.len() - before) as _;
        message.msg_hdr.msg_namelen = Address::length(bundle.to);
        if bundle.count > 1 {
            message.msg_hdr.msg_controllen = size_of::<Control>() as _;
        }
        self.messages.push(message);
    }

    /// Lets the messages point into the other vectors, which do not grow any more.
    fn connect_pointers(&mut self) {
        let mut iovecs = self.iovecs.as_mut_slice();
        let others = self.addresses.iter_mut().zip(&mut self.controls);
        for (message, (address, control)) in self.messages.iter_mut().zip(others) {
            let header = &mut message.msg_hdr;
            let (own, rest) = iovecs.split_at_mut(header.msg_iovlen);
            iovecs = rest;
            header.msg_iov = own.as_mut_ptr();
            header.msg_name = (&raw mut *address).cast();
            if header.msg_controllen > 0 {
                header.msg_control = (&raw mut *control).cast();
            }
        }
    }
}

fn is_link_local(address: SocketAddr) -> bool {
    matches!(address.ip(), IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// A message received: the slot that it is in is its place in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Received {
    /// From which node; none for an address that is no IP address.
    pub(crate) from: Option<IpAddr>,
    pub(crate) length: usize,
    /// The size of each datagram in it; zero if it is one.
    pub(crate) segment: usize,
}

/// Where the kernel puts what is received, and what it says of it.
pub(crate) struct ReceiveRoom {
    messages: Vec<libc::mmsghdr>,
    iovecs: Vec<libc::iovec>,
    addresses: Vec<Address>,
    controls: Vec<[Control; 2]>,
    received: Vec<Received>,
}

impl ReceiveRoom {
    pub(crate) fn new() -> ReceiveRoom {
        // SAFETY: null pointers and zeros are a value of this type.
        let message: libc::mmsghdr = unsafe { zeroed() };
        ReceiveRoom {
            messages: vec![message; SLOTS],
            iovecs: vec![libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; SLOTS],
            addresses: vec![Address::new(Ipv6Addr::UNSPECIFIED.into(), 0); SLOTS],
            controls: vec![[Control([0; 24]); 2]; SLOTS],
            received: Vec::with_capacity(SLOTS),
        }
    }

    fn prepare(&mut self, octets: &mut [u8]) {
        let slots = octets.chunks_exact_mut(SLOT);
        let others = self.addresses.iter_mut().zip(&mut self.controls);
        for (((message, iovec), (address, control)), slot) in
            self.messages.iter_mut().zip(&mut self.iovecs).zip(others).zip(slots)
        {
            *iovec = libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: slot.len() };
            let header = &mut message.msg_hdr;
            header.msg_iov = &raw mut *iovec;
            header.msg_iovlen = 1;
            header.msg_name = (&raw mut *address).cast();
            header.msg_namelen = size_of::<Address>() as u32;
            header.msg_control = (&raw mut *control).cast();
            header.msg_controllen = size_of_val(control) as _;
        }
    }

    fn read(&mut self, count: usize) -> Option<&[Received]> {
        self.received.clear();
        for ((message, address), control) in
            self.messages[..count].iter().zip(&self.addresses).zip(&self.controls)
        {
            let header = &message.msg_hdr;
            if header.msg_namelen == 0 {
                // What a socket that was shut down gives to whoever asks.
                return None;
            }
            let control = control.map(|part| part.0);
            let control = control.as_flattened();
            let told = &control[..header.msg_controllen.min(control.len())];
            let (length, segment) = (message.msg_len as usize, segment_size(told));
            self.received.push(Received { from: address.ip(), length, segment });
        }
        Some(&self.received)
    }
}
