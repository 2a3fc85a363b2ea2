//! [`PacketPeer`]: a node whose data path is the original's, one packet to a system call and no look
//! at anything but the destination: the plainest program that speaks the wire format of `udp`.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use ipnet::Ipv4Net;
use kernel::netlink::{Protocol, Socket};
use kernel::tun;
use lab::Node;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const PORT: u16 = 8285;
/// How soon a thread notices that it is to end.
const LOOK: Duration = Duration::from_millis(50);

/// A node that carries packets as the original does, until dropped.
#[derive(Debug)]
pub struct PacketPeer {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl PacketPeer {
    /// Makes `flannel0` on a node without flanneld, for its pod subnet, and carries packets to those of
    /// others.
    pub fn start(node: &Node, own: Ipv4Net, others: Vec<(Ipv4Net, Ipv4Addr)>) -> Result<PacketPeer> {
        for command in [
            "ip tuntap add dev flannel0 mode tun multi_queue".to_owned(),
            "ip link set flannel0 mtu 1472 up".to_owned(),
            format!("ip address add {}/32 dev flannel0", own.network()),
            "ip route add 10.244.0.0/16 dev flannel0".to_owned(),
        ] {
            node.run(&command)?;
        }
        let address = node.address();
        let (queue, socket) = node.namespace().within(|| -> Result<_> {
            let netlink = Socket::open(Protocol::Route)?;
            let queue = tun::queue(&netlink, "flannel0".parse()?, false)?;
            let socket = UdpSocket::bind((address, PORT)).context("binding the port")?;
            socket.set_read_timeout(Some(LOOK))?;
            Ok((Arc::new(queue), Arc::new(socket)))
        })??;
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        let ended = Arc::clone(&stop);
        let (from_queue, to_socket) = (Arc::clone(&queue), Arc::clone(&socket));
        threads.push(thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                if let Ok(mut packet) = read(&from_queue)
                    && let Some(to) = destination(&packet)
                    && let Some((_, node)) = others.iter().find(|(subnet, _)| subnet.contains(&to))
                    && hop(&mut packet)
                {
                    // What cannot be sent is lost, as in the original.
                    let _ = to_socket.send_to(&packet, (*node, PORT));
                }
            }
        }));
        let ended = Arc::clone(&stop);
        threads.push(thread::spawn(move || {
            let mut packet = vec![0; 2000];
            while !ended.load(Ordering::Relaxed) {
                if let Ok(length) = socket.recv(&mut packet)
                    && hop(&mut packet[..length])
                {
                    let _ = rustix::io::write(&queue, &packet[..length]);
                }
            }
        }));
        Ok(PacketPeer { stop, threads })
    }
}

impl Drop for PacketPeer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// One packet, if one comes soon.
fn read(queue: &OwnedFd) -> io::Result<Vec<u8>> {
    let patience = Timespec { tv_sec: 0, tv_nsec: i64::from(LOOK.subsec_nanos()) };
    poll(&mut [PollFd::new(queue, PollFlags::IN)], Some(&patience))?;
    let mut packet = vec![0; 2000];
    let length = rustix::io::read(queue, &mut packet)?;
    packet.truncate(length);
    Ok(packet)
}

fn destination(packet: &[u8]) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
    Some(octets.into())
}

/// Takes one off the TTL, and off what the checksum says; says whether any is left.
fn hop(packet: &mut [u8]) -> bool {
    if packet.len() < 20 || packet[8] <= 1 {
        return false;
    }
    packet[8] -= 1;
    let sum = u32::from(u16::from_be_bytes([packet[10], packet[11]])) + 0x100;
    let sum = (sum + (sum >> 16)) as u16;
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    true
}
