//! [`DataPath`]: the threads between device and sockets, from their start to their end.
//!
//! Each queue of the device has a thread that reads it, and sockets of its own on the common port, each
//! with a thread that receives. The kernel puts all packets of one flow into one queue, and all
//! datagrams of one node into one socket, so that no flow is ever in two threads that could overtake
//! each other. What is received is written to one more queue, that is for writing alone: see
//! [`tun::detach`].

use std::net::SocketAddr;
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};

use fabric::link_name::LinkName;
use kernel::netlink::{self, Protocol};
use kernel::tun::{self, Offload};
use rustix::event::EventfdFlags;
use rustix::io::Errno;

use crate::counters::{Counters, Snapshot, Traffic};
use crate::error::UdpError;
use crate::outgoing::Families;
use crate::peers::Peers;
use crate::receiver::Receiver;
use crate::sender::Sender;
use crate::socket::{Sharing, Socket};

/// More queues than this were never seen to pay off.
const MOST_QUEUES: usize = 4;

/// What a data path connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The device, which is there.
    pub link: LinkName,
    /// Its MTU.
    pub mtu: u32,
    /// Where to listen: one address for each family of nodes. Peers are sent to on the same port.
    pub listen: Vec<SocketAddr>,
    /// Whether packets of any source are taken from anybody, and for anybody.
    pub any_source: bool,
}

/// A data path at work. Dropping it ends it; the device stays.
#[derive(Debug)]
pub struct DataPath {
    link: LinkName,
    stop: Arc<OwnedFd>,
    sockets: Vec<Arc<Socket>>,
    refused: Vec<(SocketAddr, UdpError)>,
    threads: Vec<JoinHandle<()>>,
    outgoing: Vec<Arc<Counters>>,
    incoming: Vec<Arc<Counters>>,
    offloads: Offloads,
    segmentation: Arc<AtomicBool>,
}

/// What the kernel does for the data path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offloads {
    /// How many queues the device has.
    pub queues: usize,
    /// Whether pods' TCP streams cross the device uncut.
    pub tcp: bool,
    /// Whether pods' UDP datagrams do (Linux 6.2).
    pub udp: bool,
    /// Whether datagrams are handed to the kernel many in one (Linux 4.18, and a willing device).
    pub segmentation: bool,
    /// Whether they are taken from it many in one (Linux 5.0).
    pub receive: bool,
}

impl Offloads {
    /// Each with the kernel's name for it, whether it is at work, and how it goes without.
    pub fn each(self) -> [(&'static str, bool, &'static str); 4] {
        [
            ("TSO", self.tcp, "TCP streams cross the device cut into packets"),
            ("USO", self.udp, "UDP datagrams cross the device one by one"),
            ("UDP_SEGMENT", self.segmentation, "datagrams are sent one by one"),
            ("UDP_GRO", self.receive, "datagrams are received one by one"),
        ]
    }
}

impl DataPath {
    /// Opens device and sockets and lets packets flow, of those families whose address can be listened on.
    /// `ended` is called once for each thread that ends by itself, with the reason: the device was
    /// deleted, most likely.
    pub fn start(
        settings: &Settings,
        peers: &Arc<Peers>,
        ended: impl Fn(UdpError) + Send + Sync + 'static,
    ) -> Result<DataPath, UdpError> {
        let virtio = tun::has_virtio_header()?;
        let count = thread::available_parallelism().map_or(1, NonZero::get).min(MOST_QUEUES);
        let (open, refused) = bind_each(&settings.listen, count);
        if open.is_empty() {
            return Err(UdpError::Nowhere(refused.into_iter().map(|(_, error)| error).collect()));
        }
        let (queues, tcp, udp) = open_queues(settings.link, count, virtio)?;
        let writing = Arc::new(open_for_writing(settings.link, virtio)?);
        let mut path = DataPath {
            link: settings.link,
            stop: Arc::new(
                rustix::event::eventfd(0, EventfdFlags::CLOEXEC)
                    .map_err(UdpError::system("make an event file"))?,
            ),
            offloads: Offloads {
                queues: count,
                tcp,
                udp,
                segmentation: open.iter().flatten().all(|socket| socket.gso),
                receive: open.iter().flatten().all(|socket| socket.gro),
            },
            sockets: open.iter().flatten().map(Arc::clone).collect(),
            refused,
            threads: Vec::new(),
            outgoing: Vec::new(),
            incoming: Vec::new(),
            segmentation: Arc::new(AtomicBool::new(false)),
        };
        path.segmentation.store(path.offloads.segmentation, Relaxed);
        path.log_offloads();
        let ended: Ended = Arc::new(ended);
        for (at, queue) in queues.into_iter().enumerate() {
            path.start_queue(
                at,
                (Arc::new(queue), Arc::clone(&writing)),
                open.iter().map(|sockets| Arc::clone(&sockets[at])).collect(),
                (settings, peers, virtio, &ended),
            )?;
        }
        Ok(path)
    }

    fn start_queue(
        &mut self,
        at: usize,
        (queue, writing): (Arc<OwnedFd>, Arc<OwnedFd>),
        sockets: Vec<Arc<Socket>>,
        (settings, peers, virtio, ended): (&Settings, &Arc<Peers>, bool, &Ended),
    ) -> Result<(), UdpError> {
        let place = |ipv4| sockets.iter().position(|socket| socket.ipv4 == ipv4);
        // A family of pods travels over the same family of nodes.
        let (ipv4, ipv6) = (place(true), place(false));
        let families = Families { ipv4: ipv4.is_some(), ipv6: ipv6.is_some() };
        for (family, socket) in sockets.iter().enumerate() {
            let receiver = Receiver {
                socket: Arc::clone(socket),
                queue: Arc::clone(&writing),
                peers: Arc::clone(peers),
                counters: Arc::default(),
                families,
                any_source: settings.any_source,
                virtio,
                udp_segments: self.offloads.udp,
                mtu: settings.mtu as usize,
            };
            self.incoming.push(Arc::clone(&receiver.counters));
            let name = format!("udp-in-{at}.{family}");
            self.threads.push(spawn(name, settings.link, Arc::clone(ended), move || receiver.run())?);
        }
        let sender = Sender {
            queue,
            sockets,
            ipv4,
            ipv6,
            peers: Arc::clone(peers),
            counters: Arc::default(),
            families,
            virtio,
            segmentation: Arc::clone(&self.segmentation),
            stop: Arc::clone(&self.stop),
        };
        self.outgoing.push(Arc::clone(&sender.counters));
        let name = format!("udp-out-{at}");
        self.threads.push(spawn(name, settings.link, Arc::clone(ended), move || sender.run())?);
        Ok(())
    }

    /// The addresses that could not be listened on, and why: their families are not carried.
    pub fn refused(&self) -> &[(SocketAddr, UdpError)] {
        &self.refused
    }

    /// What was counted so far.
    pub fn snapshot(&self) -> Snapshot {
        let sum = |counters: &[Arc<Counters>]| {
            let mut sum = Traffic::default();
            counters.iter().for_each(|counters| sum += counters.traffic());
            sum
        };
        // A device that is gone has dropped nothing that could still be counted.
        let device_drops = netlink::Socket::open(Protocol::Route)
            .ok()
            .and_then(|mut socket| kernel::link::sending_drops(&mut socket, self.link).ok().flatten());
        Snapshot {
            outgoing: sum(&self.outgoing),
            incoming: sum(&self.incoming),
            socket_overflows: self.sockets.iter().map(|socket| socket.overflows()).sum(),
            device_drops: device_drops.unwrap_or(0),
        }
    }

    /// What the kernel does for us, as far as is known by now.
    pub fn offloads(&self) -> Offloads {
        Offloads { segmentation: self.segmentation.load(Relaxed), ..self.offloads }
    }

    fn log_offloads(&self) {
        tracing::info!(queues = self.offloads.queues, "the data path of {} is open", self.link);
        let lacking: Vec<String> = self
            .offloads
            .each()
            .into_iter()
            .filter(|(_, works, _)| !works)
            .map(|(name, _, without)| format!("without {name} {without}"))
            .collect();
        if !lacking.is_empty() {
            tracing::info!("this kernel is slower than others: {}", lacking.join(", "));
        }
    }
}

impl Drop for DataPath {
    fn drop(&mut self) {
        // An event file takes a number at any time.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        self.sockets.iter().for_each(|socket| socket.shut_down());
        for thread in self.threads.drain(..) {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

type Ended = Arc<dyn Fn(UdpError) + Send + Sync>;

fn spawn(
    name: String,
    link: LinkName,
    ended: Ended,
    run: impl FnOnce() -> Result<(), Errno> + Send + 'static,
) -> Result<JoinHandle<()>, UdpError> {
    let thread = thread::Builder::new().name(name).spawn(move || {
        if let Err(errno) = run() {
            ended(UdpError::System { doing: format!("carry packets of {link} any longer"), errno });
        }
    });
    thread.map_err(|error| UdpError::System {
        doing: "start a thread of the data path".to_owned(),
        errno: Errno::from_io_error(&error).unwrap_or(Errno::AGAIN),
    })
}

/// Those of the addresses that cannot be listened on now, and why.
pub fn refused(listen: &[SocketAddr]) -> Vec<(SocketAddr, UdpError)> {
    bind_each(listen, 1).1
}

/// Sockets of one address, one for each queue.
type Shared = Vec<Arc<Socket>>;

/// Opens each address, and says why some could not be.
fn bind_each(listen: &[SocketAddr], count: usize) -> (Vec<Shared>, Vec<(SocketAddr, UdpError)>) {
    let (mut open, mut refused) = (Vec::new(), Vec::new());
    for address in listen {
        match bind(*address, count) {
            Ok(sockets) => open.push(sockets),
            Err(error) => refused.push((*address, error)),
        }
    }
    (open, refused)
}

fn bind(address: SocketAddr, count: usize) -> Result<Shared, UdpError> {
    // Sockets that share a port take each other's datagrams without a word. Somebody else's that does
    // not mind to share is found by one that does.
    drop(Socket::bind(address, Sharing::Alone)?);
    let sharing = if count > 1 { Sharing::Shared } else { Sharing::Alone };
    (0..count).map(|_| Ok(Arc::new(Socket::bind(address, sharing)?))).collect()
}

/// Opens a queue of the device for writing alone.
fn open_for_writing(link: LinkName, virtio: bool) -> Result<OwnedFd, UdpError> {
    let netlink = netlink::Socket::open(Protocol::Route)?;
    let queue = tun::queue(&netlink, link, virtio)?;
    tun::detach(&queue)?;
    Ok(queue)
}

/// Opens queues of the device; says which packets cross it uncut, TCP and UDP.
fn open_queues(link: LinkName, count: usize, virtio: bool) -> Result<(Vec<OwnedFd>, bool, bool), UdpError> {
    let netlink = netlink::Socket::open(Protocol::Route)?;
    let open = |_| tun::queue(&netlink, link, virtio);
    let queues = (0..count).map(open).collect::<Result<Vec<OwnedFd>, _>>()?;
    // Of the whole device, whichever queue it is said to; one that is taken over may have others.
    let set = |offload| tun::set_offload(&queues[0], offload).is_ok();
    let udp = virtio && set(Offload::UDP);
    let tcp = udp || virtio && set(Offload::TCP);
    if !tcp {
        set(Offload::NONE);
    }
    Ok((queues, tcp, udp))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn an_address_that_is_refused_costs_no_other() {
        let theirs = UdpSocket::bind("127.0.0.1:0").unwrap();
        let taken = theirs.local_addr().unwrap();
        let free = SocketAddr::new("127.0.0.2".parse().unwrap(), taken.port());
        let foreign = SocketAddr::new("192.0.2.1".parse().unwrap(), taken.port());
        let local = SocketAddr::new("fe80::1".parse().unwrap(), taken.port());
        let why = [
            (taken, UdpError::PortInUse(taken)),
            (foreign, UdpError::NoAddress(foreign)),
            (local, UdpError::LinkLocal(local)),
        ];
        for listen in [[taken, free, foreign, local], [free, taken, foreign, local]] {
            let (open, refused) = bind_each(&listen, 2);
            assert_eq!(open.iter().map(Vec::len).collect::<Vec<_>>(), [2]);
            assert_eq!(refused, why);
        }
        drop(theirs);
        assert_eq!(refused(&[taken]), []);
    }
}
