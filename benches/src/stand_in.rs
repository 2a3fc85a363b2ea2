//! [`StandIn`]: what the original's proxy of the udp backend does, in a few lines of our own, so that its
//! kind has a column where the original is not at hand.
//!
//! One packet per system call: a read of the device and a `sendto`, a `recvfrom` and a write, by one thread,
//! which polls when there is nothing to do; the TTL is one less each time. It has neither the original's
//! ICMP messages nor its commands.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, ensure};
use ipnet::Ipv4Net;
use kernel::netlink::{Protocol, Socket};
use kernel::tun;
use lab::{Lab, Node};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

const DEVICE: &str = "flannel0";
const PORT: u16 = 8285;
/// What is in front of a packet: an IPv4 header and one of UDP.
const HEADERS: u32 = 20 + 8;
/// How often it is looked whether to stop.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// A proxy on each node of a lab whose backend does nothing. Dropping it ends them.
#[derive(Debug)]
pub struct StandIn {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// A pod subnet and its node.
type Peer = (Ipv4Net, Ipv4Addr);

impl StandIn {
    /// Starts one on each node; the nodes have leased their subnets.
    pub fn start(lab: &Lab) -> Result<StandIn> {
        let peers = lab.nodes().iter().map(peer).collect::<Result<Vec<_>>>()?;
        let mut proxies = StandIn { stop: Arc::default(), threads: Vec::new() };
        for (node, own) in lab.nodes().iter().zip(&peers) {
            let others: Vec<Peer> = peers.iter().filter(|peer| *peer != own).copied().collect();
            proxies.on_node(lab, node, *own, others).with_context(|| format!("on {}", node.name()))?;
        }
        Ok(proxies)
    }

    fn on_node(&mut self, lab: &Lab, node: &Node, (subnet, address): Peer, others: Vec<Peer>) -> Result<()> {
        let mtu = mtu(lab);
        for command in [
            // The kernel opens queues of our kind of device; it has one.
            format!("ip tuntap add dev {DEVICE} mode tun multi_queue"),
            format!("ip address add {}/32 dev {DEVICE}", subnet.network()),
            format!("ip link set {DEVICE} mtu {mtu} up"),
            format!("ip route add 10.244.0.0/16 dev {DEVICE}"),
            "sysctl -qw net.ipv4.ip_forward=1".to_owned(),
        ] {
            node.run(&command)?;
        }
        let (device, socket) = node.namespace().within(|| -> Result<_> {
            let device = tun::queue(&Socket::open(Protocol::Route)?, DEVICE.parse()?, false)?;
            let socket = UdpSocket::bind((address, PORT))?;
            socket.set_nonblocking(true)?;
            Ok((device, socket))
        })??;
        let stop = Arc::clone(&self.stop);
        self.threads.push(thread::spawn(move || {
            // One that cannot go on carries nothing, which the figures show.
            let _ = carry(&device, &socket, others, mtu as usize, &stop);
        }));
        Ok(())
    }
}

/// The largest packet that fits in a datagram of the lab's underlay.
pub fn mtu(lab: &Lab) -> u32 {
    lab.topology().mtu - HEADERS
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn peer(node: &Node) -> Result<Peer> {
    let subnet = node.subnet_file()?.subnet.context("the node has leased no IPv4 subnet")?;
    let std::net::IpAddr::V4(address) = node.address() else {
        anyhow::bail!("{} has no IPv4 address", node.name())
    };
    Ok((subnet, address))
}

/// Carries packets both ways in turns until there are none, then waits for one.
fn carry(
    device: &OwnedFd,
    socket: &UdpSocket,
    peers: Vec<Peer>,
    mtu: usize,
    stop: &AtomicBool,
) -> Result<()> {
    let mut packet = vec![0; mtu];
    while !stop.load(Ordering::Relaxed) {
        let mut both = [PollFd::new(device, PollFlags::IN), PollFd::new(socket, PollFlags::IN)];
        match rustix::event::poll(&mut both, Some(&PAUSE)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        ensure!(!both.iter().any(|it| it.revents().contains(PollFlags::NVAL)), "a file was closed");
        while outward(device, socket, &peers, &mut packet) | inward(device, socket, &mut packet) {}
    }
    Ok(())
}

/// Carries one packet from the device to a peer; whether there was one.
fn outward(device: &OwnedFd, socket: &UdpSocket, peers: &[Peer], packet: &mut [u8]) -> bool {
    let Ok(length) = rustix::io::read(device, &mut *packet) else { return false };
    let packet = &mut packet[..length];
    let Some(destination) = packet.get(16..20).and_then(|octets| <[u8; 4]>::try_from(octets).ok()) else {
        return true;
    };
    let destination = Ipv4Addr::from(destination);
    if let Some((_, node)) = peers.iter().find(|(subnet, _)| subnet.contains(&destination))
        && one_hop(packet)
    {
        // As on a wire, what finds no room is lost.
        let _ = socket.send_to(packet, SocketAddrV4::new(*node, PORT));
    }
    true
}

/// Carries one packet from a peer to the device; whether there was one.
fn inward(device: &OwnedFd, socket: &UdpSocket, packet: &mut [u8]) -> bool {
    match socket.recv_from(packet) {
        Ok((length, _)) => {
            if one_hop(&mut packet[..length]) {
                let _ = rustix::io::write(device, &packet[..length]);
            }
            true
        }
        // What nobody listened for comes back as an error, and others may follow.
        Err(error) => error.kind() == io::ErrorKind::ConnectionRefused,
    }
}

/// Takes one off the TTL and sets the checksum right (RFC 1624); whether the packet may go on.
fn one_hop(packet: &mut [u8]) -> bool {
    let Some([ttl, _, high, low]) = packet.get_mut(8..12).and_then(|them| them.first_chunk_mut::<4>()) else {
        return false;
    };
    *ttl = ttl.saturating_sub(1);
    let (sum, carry) = u16::from_be_bytes([*high, *low]).overflowing_add(0x0100);
    [*high, *low] = (sum + u16::from(carry)).to_be_bytes();
    packet.len() >= 20 && packet[8] > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ones' complement sum of a header, which is all ones if its checksum is right.
    fn sum(header: &[u8]) -> u16 {
        let words = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
        let sum: u32 = words.sum();
        ((sum & 0xffff) + (sum >> 16)) as u16
    }

    #[test]
    fn a_hop_keeps_the_checksum_right_and_ends_what_has_no_more() {
        let mut packet = [0x45, 0, 0, 20, 0, 1, 0, 0, 3, 17, 0, 0, 10, 244, 1, 2, 10, 244, 2, 2];
        let checksum = !sum(&packet);
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        for ttl in [2, 1] {
            assert!(one_hop(&mut packet));
            assert_eq!((packet[8], sum(&packet)), (ttl, 0xffff));
        }
        assert!(!one_hop(&mut packet), "the last hop");
        assert!(!one_hop(&mut [0; 11]) && !one_hop(&mut [64; 19]), "too short to be a packet");
    }
}
