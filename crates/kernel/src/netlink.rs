//! Netlink: one small synchronous socket, the encoding of messages and attributes, batches.
//!
//! The kernel handles every message inside the `sendmsg` that brings it, so waiting asynchronously
//! gains nothing; sending many messages at once does. A batch asks for the acknowledgement of the
//! last message of each chunk only: errors of the others arrive by themselves and carry the
//! sequence number of the message they belong to, while an acknowledgement for each of thousands
//! of messages would overrun the receive buffer (ENOBUFS).
//!
//! Sources: `Documentation/userspace-api/netlink/intro.rst`, `net/netlink/af_netlink.c`
//! (`netlink_rcv_skb`, `netlink_ack`, `netlink_dump`), `net/netfilter/nfnetlink.c`
//! (`nfnetlink_rcv_batch`). Nothing here trusts a length in an answer.

use std::fmt;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// `NLM_F_REQUEST`, on everything that goes to the kernel.
pub const REQUEST: u16 = 0x1;
/// `NLM_F_ACK`: answer even if all went well.
pub const ACK: u16 = 0x4;
/// `NLM_F_DUMP`: all objects.
pub const DUMP: u16 = 0x300;
/// `NLM_F_REPLACE`: overwrite what is there.
pub const REPLACE: u16 = 0x100;
/// `NLM_F_EXCL`: refuse if it is there.
pub const EXCL: u16 = 0x200;
/// `NLM_F_CREATE`: make it if it is not there.
pub const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`: add to the end of a list.
pub const APPEND: u16 = 0x800;

const MULTIPART_INTERRUPTED: u16 = 0x10; // NLM_F_DUMP_INTR
const ACK_HAS_ATTRIBUTES: u16 = 0x200; // NLM_F_ACK_TLVS
const HEADER_LEN: usize = 16; // struct nlmsghdr
const MESSAGE_ERROR: u16 = 2; // NLMSG_ERROR
const MESSAGE_DONE: u16 = 3; // NLMSG_DONE
const MESSAGE_OVERRUN: u16 = 4; // NLMSG_OVERRUN
const NESTED: u16 = 0x8000; // NLA_F_NESTED
const ATTRIBUTE_TYPE: u16 = 0x3fff; // NLA_TYPE_MASK
const ERROR_TEXT: u16 = 1; // NLMSGERR_ATTR_MSG

const NFNL_BATCH_BEGIN: u16 = 0x10;
const NFNL_BATCH_END: u16 = 0x11;

/// Enough for the answers to a chunk of which every message fails; the kernel doubles it.
const BUFFER_BYTES: usize = 1 << 20;
/// What one queued error answer costs of the receive buffer, generously (`skb->truesize`).
const ERROR_COST: usize = 1280;
/// The most messages of one send. More gains nothing (performance measured up to 1,000).
const CHUNK_MESSAGES: usize = 1000;
/// The most bytes of one send of independent messages.
const CHUNK_BYTES: usize = 128 << 10;
/// Dumps come in pieces of at most 32 KiB, except where one object is larger.
const RECEIVE_BYTES: usize = 64 << 10;
/// How often a dump that changed under our eyes is begun anew.
const DUMP_ATTEMPTS: usize = 20;
/// The kernel has answered by the time a send returns; waiting longer means an answer was lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// What a netlink socket speaks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// `NETLINK_ROUTE`: links, addresses, neighbors, routes, next hops.
    Route,
    /// `NETLINK_NETFILTER`: nftables.
    Netfilter,
}

/// Whether to wait for something to receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    Yes,
    No,
}

/// The kernel's refusal of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The error number.
    pub errno: Errno,
    /// The kernel's own words (extended ack), where it has any.
    pub text: Option<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.text {
            Some(text) => write!(f, "{text}: {}", self.errno),
            None => self.errno.fmt(f),
        }
    }
}

/// Why a netlink request came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel refused it.
    #[error("{0}")]
    Refused(Refusal),
    /// A system call on the socket failed.
    #[error("the netlink socket failed to {call}: {errno}")]
    Socket {
        /// What was called.
        call: &'static str,
        /// How it failed.
        errno: Errno,
    },
    /// The kernel's answer cannot be read.
    #[error("the kernel's answer cannot be read: {0}")]
    Malformed(&'static str),
    /// The objects kept changing while they were listed.
    #[error("the kernel's list changed {DUMP_ATTEMPTS} times while it was read")]
    Unsteady,
    /// A message of ours is larger than its format can say.
    #[error("a request is too long for netlink: {0}")]
    TooLong(&'static str),
}

impl NetlinkError {
    /// The error number that the kernel gave, if it was the kernel that refused.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            NetlinkError::Refused(refusal) => Some(refusal.errno),
            NetlinkError::Socket { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// A refusal without words.
    pub fn refused(errno: Errno) -> NetlinkError {
        NetlinkError::Refused(Refusal { errno, text: None })
    }
}

/// A message of an answer, its netlink header taken off.
#[derive(Debug, Clone, Copy)]
pub struct Answer<'a> {
    /// The message type, such as `RTM_NEWROUTE`.
    pub kind: u16,
    /// The family's header and the attributes.
    pub payload: &'a [u8],
}

/// A netlink socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    receive: Vec<u8>,
    chunk_messages: usize,
    send_limit: usize,
}

impl Socket {
    /// Opens a socket in the current network namespace.
    pub fn open(protocol: Protocol) -> Result<Socket, NetlinkError> {
        Socket::with_groups(protocol, &[])
    }

    /// Opens a socket that also hears the given multicast groups (`RTNLGRP_*`, `NFNLGRP_*`).
    pub fn with_groups(protocol: Protocol, groups: &[u32]) -> Result<Socket, NetlinkError> {
        let failed = |call| move |errno| NetlinkError::Socket { call, errno };
        let number = match protocol {
            Protocol::Route => None,
            Protocol::Netfilter => Some(rustix::net::netlink::NETFILTER),
        };
        let fd =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, number)
                .map_err(failed("open"))?;
        rustix::net::bind(&fd, &SocketAddrNetlink::new(0, 0)).map_err(failed("bind"))?;
        for group in groups {
            set_option(&fd, libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, *group as libc::c_int)
                .map_err(failed("join a group"))?;
        }
        // Old kernels lack these; they only make answers shorter, clearer and filtered.
        for option in [libc::NETLINK_CAP_ACK, libc::NETLINK_EXT_ACK, libc::NETLINK_GET_STRICT_CHK] {
            let _ = set_option(&fd, libc::SOL_NETLINK, option, 1);
        }
        let receive_buffer = grow(&fd, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, BUFFER_BYTES);
        let send_limit = grow(&fd, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, BUFFER_BYTES);
        set_socket_timeout(&fd, Timeout::Recv, Some(ANSWER_TIMEOUT)).map_err(failed("set a timeout"))?;
        Ok(Socket {
            fd,
            sequence: 0,
            receive: Vec::new(),
            chunk_messages: (receive_buffer / ERROR_COST).clamp(16, CHUNK_MESSAGES),
            send_limit,
        })
    }

    /// Sends one request and waits until the kernel has done it.
    pub fn request(
        &mut self,
        kind: u16,
        flags: u16,
        body: impl FnOnce(&mut Encoder),
    ) -> Result<(), NetlinkError> {
        self.ask(kind, flags, body, |(): &mut (), _| Ok(()))
    }

    /// Sends one request and hands each message of the answer to `take`.
    pub fn ask<T: Default>(
        &mut self,
        kind: u16,
        flags: u16,
        body: impl FnOnce(&mut Encoder),
        take: impl FnMut(&mut T, Answer<'_>) -> Result<(), NetlinkError>,
    ) -> Result<T, NetlinkError> {
        let mut batch = Batch::default();
        batch.push(kind, flags | ACK, body);
        self.collect(&mut batch, take)
    }

    /// Lists objects: hands each to `take`, which gathers them in a `T`.
    ///
    /// A list that changed while it was read (`NLM_F_DUMP_INTR`) may lack entries, so it is thrown
    /// away and read anew.
    pub fn dump<T: Default>(
        &mut self,
        kind: u16,
        body: impl FnOnce(&mut Encoder),
        take: impl FnMut(&mut T, Answer<'_>) -> Result<(), NetlinkError>,
    ) -> Result<T, NetlinkError> {
        let mut batch = Batch::default();
        batch.push(kind, DUMP, body);
        self.collect(&mut batch, take)
    }

    /// Sends independent messages, many at a time, in order. Returns those that failed, by their
    /// place in the batch; one that fails does not keep the others from being done.
    pub fn batch(&mut self, batch: &mut Batch) -> Vec<(usize, NetlinkError)> {
        if let Err(error) = batch.check() {
            return (0..batch.len()).map(|at| (at, error.clone())).collect();
        }
        let mut failures = Vec::new();
        let mut chunk_messages = self.chunk_messages;
        let mut first = 0;
        while first < batch.len() {
            let end = batch.chunk_end(first, chunk_messages, CHUNK_BYTES.min(self.send_limit));
            let before = failures.len();
            match self.chunk(batch, first, end, &mut failures) {
                Ok(()) => first = end,
                Err(NetlinkError::Socket { errno: Errno::NOBUFS, .. }) if chunk_messages > 1 => {
                    // Some answers were dropped. What the messages ask for is the same when asked
                    // twice, so they are sent again, fewer at a time.
                    failures.truncate(before);
                    chunk_messages = (chunk_messages / 4).max(1);
                }
                Err(error) => {
                    failures.truncate(before);
                    failures.extend((first..batch.len()).map(|at| (at, error.clone())));
                    break;
                }
            }
        }
        failures
    }

    /// Sends messages as one nfnetlink transaction: all of them take effect or none. The batch has
    /// neither the begin nor the end message; `subsystem` is `NFNL_SUBSYS_*`. Failures are by
    /// place in the batch; one that concerns the transaction as a whole has none.
    pub fn transaction(
        &mut self,
        subsystem: u16,
        batch: &Batch,
    ) -> Result<(), Vec<(Option<usize>, NetlinkError)>> {
        if batch.is_empty() {
            return Ok(());
        }
        let whole = |error| vec![(None, error)];
        batch.check().map_err(whole)?;
        let marker = |framed: &mut Batch, kind| {
            // struct nfgenmsg: family, version, res_id (big endian: the subsystem).
            let [high, low] = subsystem.to_be_bytes();
            framed.push(kind, 0, |body| body.put(&[libc::AF_UNSPEC as u8, 0, high, low]));
        };
        let mut framed = Batch::default();
        marker(&mut framed, NFNL_BATCH_BEGIN);
        framed.append(batch);
        marker(&mut framed, NFNL_BATCH_END);
        let base = self.number(&mut framed);
        framed.add_flags(batch.len(), ACK);

        if framed.bytes().len() > self.send_limit {
            self.send_limit =
                grow(&self.fd, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, framed.bytes().len() + 4096);
        }
        self.send(framed.bytes()).map_err(whole)?;
        let last = base.wrapping_add(batch.len() as u32);
        let mut failures = Vec::new();
        let mut finished = false;
        while !finished {
            let received = self.receive(Wait::Yes).map_err(whole)?;
            for message in messages(&self.receive[..received]) {
                let place = message.sequence.wrapping_sub(base) as usize;
                if place > batch.len() + 1 || message.kind != MESSAGE_ERROR {
                    continue;
                }
                finished |= message.sequence == last;
                if let Some(refusal) = message.refusal().map_err(whole)? {
                    // An error of the begin message is one of the commit: nothing was done, and
                    // whether more follows depends on how far the kernel got.
                    finished |= place == 0;
                    let place = (1..=batch.len()).contains(&place).then(|| place - 1);
                    failures.push((place, NetlinkError::Refused(refusal)));
                }
            }
        }
        if failures.is_empty() { Ok(()) } else { Err(failures) }
    }

    /// Sends one request and gathers the answer, again and again while it is not consistent.
    fn collect<T: Default>(
        &mut self,
        batch: &mut Batch,
        mut take: impl FnMut(&mut T, Answer<'_>) -> Result<(), NetlinkError>,
    ) -> Result<T, NetlinkError> {
        batch.check()?;
        for _ in 0..DUMP_ATTEMPTS {
            let sequence = self.number(batch);
            self.send(batch.bytes())?;
            match self.gather(sequence, &mut take) {
                Ok(Some(gathered)) => return Ok(gathered),
                Ok(None) | Err(NetlinkError::Socket { errno: Errno::NOBUFS, .. }) => continue,
                Err(error) => return Err(error),
            }
        }
        Err(NetlinkError::Unsteady)
    }

    /// Reads the answer to one request to its end; none if it must be asked again.
    fn gather<T: Default>(
        &mut self,
        sequence: u32,
        take: &mut impl FnMut(&mut T, Answer<'_>) -> Result<(), NetlinkError>,
    ) -> Result<Option<T>, NetlinkError> {
        let mut gathered = T::default();
        let mut unreadable = None;
        let mut again = false;
        // Whatever is wrong, the answer is read to its end: a dump that is left half read makes
        // the next one on this socket fail with EBUSY.
        loop {
            let received = match self.receive(Wait::Yes) {
                Err(NetlinkError::Socket { errno: Errno::MSGSIZE, .. }) => {
                    again = true;
                    continue;
                }
                other => other?,
            };
            for message in messages(&self.receive[..received]) {
                if message.sequence != sequence {
                    continue;
                }
                again |= message.flags & MULTIPART_INTERRUPTED != 0;
                match message.kind {
                    MESSAGE_ERROR | MESSAGE_DONE => {
                        return match (message.refusal()?, unreadable) {
                            (Some(refusal), _) if refusal.errno == Errno::INTR => Ok(None),
                            (Some(refusal), _) => Err(NetlinkError::Refused(refusal)),
                            (None, _) if again => Ok(None),
                            (None, Some(error)) => Err(error),
                            (None, None) => Ok(Some(gathered)),
                        };
                    }
                    MESSAGE_OVERRUN => again = true,
                    kind if kind < 0x10 => {}
                    kind => {
                        let answer = Answer { kind, payload: message.payload };
                        if let Err(error) = take(&mut gathered, answer) {
                            unreadable.get_or_insert(error);
                        }
                    }
                }
            }
        }
    }

    /// Sends messages `first..end` of a batch and collects what failed of them.
    fn chunk(
        &mut self,
        batch: &mut Batch,
        first: usize,
        end: usize,
        failures: &mut Vec<(usize, NetlinkError)>,
    ) -> Result<(), NetlinkError> {
        let base = self.number_range(batch, first, end);
        batch.add_flags(end - 1, ACK);
        self.send(batch.range(first, end))?;
        let last = base.wrapping_add((end - first - 1) as u32);
        loop {
            let received = self.receive(Wait::Yes)?;
            for message in messages(&self.receive[..received]) {
                let place = message.sequence.wrapping_sub(base) as usize;
                if place >= end - first || message.kind != MESSAGE_ERROR {
                    continue;
                }
                if let Some(refusal) = message.refusal()? {
                    failures.push((first + place, NetlinkError::Refused(refusal)));
                }
                if message.sequence == last {
                    return Ok(());
                }
            }
        }
    }

    /// Gives every message of a batch its sequence number; returns the first.
    fn number(&mut self, batch: &mut Batch) -> u32 {
        self.number_range(batch, 0, batch.len())
    }

    fn number_range(&mut self, batch: &mut Batch, first: usize, end: usize) -> u32 {
        let base = self.sequence.wrapping_add(1);
        for at in first..end {
            self.sequence = self.sequence.wrapping_add(1);
            batch.set_sequence(at, self.sequence);
        }
        base
    }

    fn send(&self, bytes: &[u8]) -> Result<(), NetlinkError> {
        loop {
            match rustix::net::send(&self.fd, bytes, SendFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(NetlinkError::Socket { call: "send", errno }),
            }
        }
    }

    /// Receives one datagram from the kernel into the buffer; returns its length.
    ///
    /// One that does not fit is lost and reported as EMSGSIZE; the next try has room for it.
    pub(crate) fn receive(&mut self, wait: Wait) -> Result<usize, NetlinkError> {
        let failed = |errno| NetlinkError::Socket { call: "receive", errno };
        self.receive.resize(self.receive.len().max(RECEIVE_BYTES), 0);
        let flags = match wait {
            Wait::Yes => RecvFlags::TRUNC,
            Wait::No => RecvFlags::TRUNC | RecvFlags::DONTWAIT,
        };
        loop {
            let (_, length, from) = match rustix::net::recvfrom(&self.fd, &mut self.receive[..], flags) {
                Err(Errno::INTR) => continue,
                other => other.map_err(failed)?,
            };
            // Any process may send to a netlink port; only the kernel's port is 0.
            let from = from.and_then(|address| SocketAddrNetlink::try_from(address).ok());
            if from.is_none_or(|address| address.pid() != 0) {
                continue;
            }
            if length > self.receive.len() {
                self.receive.resize(length.next_power_of_two(), 0);
                return Err(failed(Errno::MSGSIZE));
            }
            return Ok(length);
        }
    }

    /// The bytes of the datagram received last.
    pub(crate) fn received(&self, length: usize) -> &[u8] {
        self.receive.get(..length).unwrap_or_default()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Asks for a socket buffer of at least `bytes`, by force where allowed; returns what it is now.
fn grow(fd: &OwnedFd, forced: libc::c_int, plain: libc::c_int, bytes: usize) -> usize {
    let bytes = bytes.min(libc::c_int::MAX as usize / 2) as libc::c_int;
    if set_option(fd, libc::SOL_SOCKET, forced, bytes).is_err() {
        // In a user namespace only the size that everybody may have is to be had.
        let _ = set_option(fd, libc::SOL_SOCKET, plain, bytes);
    }
    let got = match plain {
        libc::SO_RCVBUF => rustix::net::sockopt::socket_recv_buffer_size(fd),
        _ => rustix::net::sockopt::socket_send_buffer_size(fd),
    };
    // A send must leave 32 bytes of its buffer free (`netlink_sendmsg`).
    got.unwrap_or(bytes as usize).saturating_sub(64)
}

fn set_option(
    fd: &OwnedFd,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> Result<(), Errno> {
    // SAFETY: the pointer and the length describe `value`, which lives through the call.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL))
    }
}

/// Messages to be sent together, one after the other in one buffer.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    encoder: Encoder,
    starts: Vec<usize>,
}

impl Batch {
    /// Adds a message; `body` writes the family's header and the attributes. `NLM_F_REQUEST` is
    /// set by itself; sequence numbers are given when the batch is sent.
    pub fn push(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Encoder)) {
        let start = self.encoder.bytes.len();
        self.starts.push(start);
        self.encoder.put(&[0; 4]);
        self.encoder.put(&kind.to_ne_bytes());
        self.encoder.put(&(flags | REQUEST).to_ne_bytes());
        self.encoder.put(&[0; 8]);
        body(&mut self.encoder);
        let length = (self.encoder.bytes.len() - start) as u32;
        self.encoder.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        self.encoder.align();
    }

    /// Adds copies of all messages of another batch.
    pub fn append(&mut self, other: &Batch) {
        let offset = self.encoder.bytes.len();
        self.starts.extend(other.starts.iter().map(|start| start + offset));
        self.encoder.bytes.extend_from_slice(&other.encoder.bytes);
        self.encoder.too_long |= other.encoder.too_long;
    }

    /// How many messages there are.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether there is no message.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Takes all messages out, keeping the memory.
    pub fn clear(&mut self) {
        self.starts.clear();
        self.encoder.bytes.clear();
        self.encoder.too_long = false;
    }

    /// The messages as they go to the kernel.
    pub fn bytes(&self) -> &[u8] {
        &self.encoder.bytes
    }

    fn check(&self) -> Result<(), NetlinkError> {
        if self.encoder.too_long {
            return Err(NetlinkError::TooLong("an attribute has more than 65,535 bytes"));
        }
        Ok(())
    }

    fn range(&self, first: usize, end: usize) -> &[u8] {
        let to = self.starts.get(end).copied().unwrap_or(self.encoder.bytes.len());
        &self.encoder.bytes[self.starts[first]..to]
    }

    /// Where a chunk that begins with message `first` ends: at least one message further.
    fn chunk_end(&self, first: usize, messages: usize, bytes: usize) -> usize {
        let most = (first + messages).min(self.len());
        (first + 1..=most).rev().find(|end| self.range(first, *end).len() <= bytes).unwrap_or(first + 1)
    }

    fn set_sequence(&mut self, at: usize, sequence: u32) {
        let field = self.starts[at] + 8;
        self.encoder.bytes[field..field + 4].copy_from_slice(&sequence.to_ne_bytes());
    }

    fn add_flags(&mut self, at: usize, flags: u16) {
        let field = self.starts[at] + 6;
        let old = u16::from_ne_bytes([self.encoder.bytes[field], self.encoder.bytes[field + 1]]);
        self.encoder.bytes[field..field + 2].copy_from_slice(&(old | flags).to_ne_bytes());
    }
}

/// Writes headers and attributes, each aligned to four bytes.
#[derive(Debug, Clone, Default)]
pub struct Encoder {
    bytes: Vec<u8>,
    too_long: bool,
}

impl Encoder {
    /// Bytes as they are: a family's header.
    pub fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// An attribute of these bytes.
    pub fn attribute(&mut self, kind: u16, value: &[u8]) {
        let start = self.open(kind);
        self.put(value);
        self.close(start);
    }

    /// An attribute without value.
    pub fn flag(&mut self, kind: u16) {
        self.attribute(kind, &[]);
    }

    /// An attribute of one byte.
    pub fn u8(&mut self, kind: u16, value: u8) {
        self.attribute(kind, &[value]);
    }

    /// An attribute of two bytes in the machine's order.
    pub fn u16(&mut self, kind: u16, value: u16) {
        self.attribute(kind, &value.to_ne_bytes());
    }

    /// An attribute of four bytes in the machine's order.
    pub fn u32(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_ne_bytes());
    }

    /// An attribute of two bytes in network order.
    pub fn be16(&mut self, kind: u16, value: u16) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// An attribute of four bytes in network order, as nftables wants its numbers.
    pub fn be32(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// An attribute of eight bytes in network order.
    pub fn be64(&mut self, kind: u16, value: u64) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// An attribute of a text with its terminating zero.
    pub fn text(&mut self, kind: u16, value: &str) {
        let start = self.open(kind);
        self.put(value.as_bytes());
        self.put(&[0]);
        self.close(start);
    }

    /// An attribute of an IP address in network order.
    pub fn ip(&mut self, kind: u16, ip: IpAddr) {
        match ip {
            IpAddr::V4(ip) => self.attribute(kind, &ip.octets()),
            IpAddr::V6(ip) => self.attribute(kind, &ip.octets()),
        }
    }

    /// An attribute that holds attributes, with the flag that says so.
    pub fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Encoder)) {
        self.nest_plain(kind | NESTED, body);
    }

    /// An attribute that holds attributes, without the flag: for the older parts of rtnetlink that
    /// were made before it and compare the whole type.
    pub fn nest_plain(&mut self, kind: u16, body: impl FnOnce(&mut Encoder)) {
        let start = self.open(kind);
        body(self);
        self.close(start);
    }

    /// The bytes written so far.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.put(&[0; 2]);
        self.put(&kind.to_ne_bytes());
        start
    }

    fn close(&mut self, start: usize) {
        let length = self.bytes.len() - start;
        // The length field has 16 bits: remembered here, refused when the batch is sent.
        self.too_long |= length > usize::from(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&(length as u16).to_ne_bytes());
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// A message in a received datagram.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) payload: &'a [u8],
}

impl Message<'_> {
    /// The refusal in an error or done message; none if all went well.
    fn refusal(&self) -> Result<Option<Refusal>, NetlinkError> {
        let Some(code) = read_i32(self.payload, 0) else {
            // An empty "done" is how some old dumps end.
            return if self.kind == MESSAGE_DONE {
                Ok(None)
            } else {
                Err(NetlinkError::Malformed("an error message without its number"))
            };
        };
        if code >= 0 {
            return Ok(None);
        }
        // struct nlmsgerr: the number, then the header of the refused message (NETLINK_CAP_ACK cuts
        // the rest off), then attributes. A "done" has the number alone before its attributes.
        let before_attributes = if self.kind == MESSAGE_ERROR { 4 + HEADER_LEN } else { 4 };
        let text = (self.flags & ACK_HAS_ATTRIBUTES != 0)
            .then(|| attributes(self.payload.get(before_attributes..).unwrap_or_default()))
            .and_then(|mut found| found.find(|(kind, _)| *kind == ERROR_TEXT))
            .map(|(_, text)| read_text(text));
        Ok(Some(Refusal { errno: Errno::from_raw_os_error(code.saturating_neg().clamp(1, 4095)), text }))
    }
}

/// The messages of a datagram, up to the first that claims more bytes than there are.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = read_u32(bytes, 0)? as usize;
        if length < HEADER_LEN {
            return None;
        }
        let message = Message {
            kind: read_u16(bytes, 4)?,
            flags: read_u16(bytes, 6)?,
            sequence: read_u32(bytes, 8)?,
            payload: bytes.get(HEADER_LEN..length)?,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes in `bytes` as (type without flags, value), up to the first that claims more bytes
/// than there are.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(read_u16(bytes, 0)?);
        let kind = read_u16(bytes, 2)? & ATTRIBUTE_TYPE;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The byte at `at`.
pub fn read_u8(bytes: &[u8], at: usize) -> Option<u8> {
    bytes.get(at).copied()
}

/// Two bytes at `at` in the machine's order.
pub fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

/// Four bytes at `at` in the machine's order.
pub fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// Four bytes at `at` in the machine's order, signed.
pub fn read_i32(bytes: &[u8], at: usize) -> Option<i32> {
    read_u32(bytes, at).map(|value| value as i32)
}

/// Four bytes at `at` in network order.
pub fn read_be32(bytes: &[u8], at: usize) -> Option<u32> {
    read_u32(bytes, at).map(u32::from_be)
}

/// A text up to its first zero byte or its end.
pub fn read_text(bytes: &[u8]) -> String {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

/// An IP address in network order, by its length.
pub fn read_ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
