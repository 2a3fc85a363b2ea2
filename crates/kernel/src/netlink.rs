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

mod decode;
mod encode;

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

pub(crate) use decode::messages;
pub use decode::{attributes, read_be32, read_i32, read_ip, read_text, read_u8, read_u16, read_u32};
pub use encode::{Batch, Encoder};

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
const MESSAGE_ERROR: u16 = 2; // NLMSG_ERROR
const MESSAGE_DONE: u16 = 3; // NLMSG_DONE
const MESSAGE_OVERRUN: u16 = 4; // NLMSG_OVERRUN

const NFNL_BATCH_BEGIN: u16 = 0x10;
const NFNL_BATCH_END: u16 = 0x11;

/// Enough for the answers to a chunk of which every message fails; the kernel doubles it.
const BUFFER_BYTES: usize = 1 << 20;
/// What one queued error answer costs of the receive buffer, generously (`skb->truesize`).
const ERROR_COST: usize = 1280;
/// The most messages of one send. More gains nothing (performance measured up to 1,000).
pub(crate) const CHUNK_MESSAGES: usize = 1000;
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

    /// The number by which the kernel names this socket to those who hear of what it changed
    /// (`nlmsg_pid`); zero where it cannot be told.
    pub fn port(&self) -> u32 {
        let address = rustix::net::getsockname(&self.fd).ok();
        address.and_then(|any| SocketAddrNetlink::try_from(any).ok()).map_or(0, |address| address.pid())
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
        if self.receive.is_empty() {
            // Made at once, its pages are the kernel's zeros until an answer fills them.
            self.receive = vec![0; RECEIVE_BYTES];
        }
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

#[cfg(test)]
mod tests;
