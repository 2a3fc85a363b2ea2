//! Ping: ICMP echo by our own hand, so that a lab needs no program and can count single packets.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto};

use crate::namespace::Namespace;
use crate::wait::stretched;

/// How to ping.
#[derive(Debug, Clone, Copy)]
pub struct Ping {
    /// Whom.
    pub to: IpAddr,
    /// How many times.
    pub count: u16,
    /// How long from one to the next.
    pub interval: Duration,
    /// How long to wait for the answer to the last one.
    pub patience: Duration,
    /// Octets after the ICMP header. Packets are never fragmented on the way: one that is too long
    /// for a link is an error.
    pub size: usize,
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Echo requests sent.
    pub sent: usize,
    /// Round-trip times of those that were answered, by sequence number.
    pub answered: BTreeMap<u16, Duration>,
    /// The last error, from sending or from an ICMP message that came back.
    pub error: Option<String>,
}

impl Report {
    /// How many were not answered.
    pub fn lost(&self) -> usize {
        self.sent - self.answered.len()
    }

    /// The shortest round-trip time.
    pub fn best(&self) -> Option<Duration> {
        self.answered.values().min().copied()
    }
}

impl Ping {
    /// One echo request of 56 octets, a second's patience.
    pub fn once(to: IpAddr) -> Ping {
        let patience = stretched(Duration::from_secs(1));
        Ping { to, count: 1, interval: Duration::ZERO, patience, size: 56 }
    }

    /// Pings from a namespace; fails only if it could not be tried.
    pub fn from(&self, namespace: &Namespace) -> Result<Report> {
        self.over(&Echo::open(namespace, self.to)?, &Progress::default())
    }

    /// Pings from a namespace, at this interval, until stopped.
    pub fn keep_on(&self, namespace: &Namespace) -> Result<Pinging> {
        let echo = Echo::open(namespace, self.to)?;
        let progress = Arc::new(Progress::default());
        let endless = Ping { count: u16::MAX, ..*self };
        let thread = {
            let progress = Arc::clone(&progress);
            thread::spawn(move || endless.over(&echo, &progress))
        };
        Ok(Pinging { progress, thread: Some(thread) })
    }

    fn over(&self, echo: &Echo, progress: &Progress) -> Result<Report> {
        let mut report = Report::default();
        let mut sent_at = BTreeMap::new();
        let start = Instant::now();
        let mut last_sent = start;
        for sequence in 0..self.count {
            let due = start + self.interval * u32::from(sequence);
            self.receive(echo, due, &sent_at, &mut report)?;
            if progress.stop.load(Ordering::Relaxed) {
                break;
            }
            last_sent = Instant::now();
            sent_at.insert(sequence, last_sent);
            report.sent += 1;
            if let Err(error) =
                rustix::net::send(&echo.socket, &echo.request(sequence, self.size), SendFlags::empty())
            {
                report.error = Some(io::Error::from(error).to_string());
            }
            progress.sent.store(report.sent, Ordering::Relaxed);
        }
        self.receive(echo, last_sent + self.patience, &sent_at, &mut report)?;
        Ok(report)
    }

    /// Takes answers in until `end`, or until nothing is outstanding and the last was sent.
    fn receive(
        &self,
        echo: &Echo,
        end: Instant,
        sent_at: &BTreeMap<u16, Instant>,
        report: &mut Report,
    ) -> Result<()> {
        loop {
            // Also where it is time to send already: a thread that was not run for a while sends what it
            // has missed at once, and its socket has not room for all of the answers.
            take_answers(echo, sent_at, report);
            let last = sent_at.len() == usize::from(self.count) && report.lost() == 0;
            let left = end.saturating_duration_since(Instant::now());
            if last || left.is_zero() {
                return Ok(());
            }
            let timeout = Timespec::try_from(left).expect("a ping waits for less than an age");
            match rustix::event::poll(&mut [PollFd::new(&echo.socket, PollFlags::IN)], Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => bail!("waiting for an echo reply: {error}"),
            }
        }
    }
}

/// Takes in what has come.
fn take_answers(echo: &Echo, sent_at: &BTreeMap<u16, Instant>, report: &mut Report) {
    let mut packet = vec![0; 65536];
    loop {
        match rustix::net::recv(&echo.socket, &mut packet[..], RecvFlags::DONTWAIT) {
            Ok((len, _)) => {
                if let Some(sequence) = echo.reply(&packet[..len])
                    && let Some(at) = sent_at.get(&sequence)
                {
                    report.answered.entry(sequence).or_insert_with(|| at.elapsed());
                }
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return,
            // An error of the network, told once.
            Err(error) => return report.error = Some(io::Error::from(error).to_string()),
        }
    }
}

/// A socket for echo requests to one address, and the number by which their answers are known.
#[derive(Debug)]
struct Echo {
    socket: OwnedFd,
    to: IpAddr,
    identifier: u16,
}

impl Echo {
    fn open(namespace: &Namespace, to: IpAddr) -> Result<Echo> {
        static OPENED: AtomicU16 = AtomicU16::new(0);
        // Neither another ping of this process nor one of another process may take our answers.
        let identifier =
            (std::process::id() as u16).wrapping_mul(31) ^ OPENED.fetch_add(1, Ordering::Relaxed);
        let socket = namespace
            .within(|| open_socket(to))?
            .with_context(|| format!("opening an ICMP socket in {} for {to}", namespace.name()))?;
        Ok(Echo { socket, to, identifier })
    }

    /// An echo request: type, code, checksum, identifier, sequence number, and zeros.
    fn request(&self, sequence: u16, size: usize) -> Vec<u8> {
        let kind = if self.to.is_ipv4() { 8 } else { 128 };
        let mut packet = vec![0; 8 + size];
        packet[0] = kind;
        packet[4..6].copy_from_slice(&self.identifier.to_be_bytes());
        packet[6..8].copy_from_slice(&sequence.to_be_bytes());
        if self.to.is_ipv4() {
            // Of ICMPv6 the kernel computes the checksum, since it covers the addresses (RFC 3542 §3.1).
            let checksum = internet_checksum(&packet);
            packet[2..4].copy_from_slice(&checksum.to_be_bytes());
        }
        packet
    }

    /// The sequence number, if a packet is the answer to one of ours.
    fn reply(&self, packet: &[u8]) -> Option<u16> {
        // A raw IPv4 socket hands out the IP header too (raw(7)), an IPv6 one does not.
        let (kind, icmp) = match self.to {
            IpAddr::V4(_) => (0, packet.get(usize::from(packet.first()? & 0x0f) * 4..)?),
            IpAddr::V6(_) => (129, packet),
        };
        let ours = *icmp.first()? == kind && icmp.get(4..6)? == self.identifier.to_be_bytes();
        let sequence = icmp.get(6..8)?;
        ours.then(|| u16::from_be_bytes([sequence[0], sequence[1]]))
    }
}

/// What a ping that goes on is told, and tells.
#[derive(Debug, Default)]
struct Progress {
    stop: AtomicBool,
    sent: AtomicUsize,
}

/// A ping that goes on beside everything else.
#[derive(Debug)]
pub struct Pinging {
    progress: Arc<Progress>,
    thread: Option<JoinHandle<Result<Report>>>,
}

impl Pinging {
    /// How many echo requests it has sent so far.
    pub fn sent(&self) -> usize {
        self.progress.sent.load(Ordering::Relaxed)
    }

    /// Stops, waits for the answers that are on their way, and reports.
    pub fn stop(mut self) -> Result<Report> {
        self.progress.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(report)) => report,
            _ => bail!("the thread that pinged has panicked"),
        }
    }
}

impl Drop for Pinging {
    fn drop(&mut self) {
        self.progress.stop.store(true, Ordering::Relaxed);
    }
}

fn open_socket(to: IpAddr) -> rustix::io::Result<OwnedFd> {
    let (family, protocol) = match to {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
    };
    let socket = rustix::net::socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol))?;
    match to {
        IpAddr::V4(_) => sockopt::set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::DO)?,
        IpAddr::V6(_) => sockopt::set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::DO)?,
    }
    rustix::net::connect(&socket, &SocketAddr::new(to, 0))?;
    Ok(socket)
}

/// RFC 1071.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let words =
        bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_rfc_1071() {
        // The example of section 3, whose sum is ddf2.
        assert_eq!(internet_checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }

    #[test]
    fn only_replies_to_our_own_requests_count() {
        let socket = rustix::net::socket(AddressFamily::INET6, SocketType::DGRAM, None).unwrap();
        let echo = Echo { socket, to: "fd00::1".parse().unwrap(), identifier: 0x1234 };
        let mut packet = echo.request(7, 4);
        assert_eq!(echo.reply(&packet), None, "a request is no reply");
        packet[0] = 129;
        assert_eq!(echo.reply(&packet), Some(7));
        packet[5] ^= 1;
        assert_eq!(echo.reply(&packet), None, "another program's reply");
        assert_eq!(echo.reply(&[]), None);
    }
}
