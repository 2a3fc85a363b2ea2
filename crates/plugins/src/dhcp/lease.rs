//! [`Lease`]: one lease and the thread that keeps it.
//!
//! Between two exchanges with a server the thread holds nothing open of the container, so that a
//! container which ended without DEL is not kept alive by its lease.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fabric::LinkName;
use ipnet::Ipv4Net;
use kernel::link::{self, Link};
use kernel::netns;
use kernel::packet::DhcpSocket;
use kernel::sandbox::Sandbox;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::client::{Client, Timing, Todo};
use super::log;
use super::message::{self, Grant, Identity};
use crate::container::open_socket;

/// What a lease is for.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// Container, network and interface, as text.
    pub(super) name: String,
    /// Where the container's network namespace is.
    pub(super) netns: PathBuf,
    /// The interface in there.
    pub(super) ifname: LinkName,
    /// Options for the messages.
    pub(super) options: Vec<(u8, Vec<u8>)>,
    /// Whether answers have to be broadcast.
    pub(super) broadcast: bool,
    /// How patient to be.
    pub(super) timing: Timing,
}

/// One lease.
#[derive(Debug)]
pub(super) struct Lease {
    shared: Arc<Shared>,
    /// A byte, or its end, tells the thread to give the lease back.
    stop: UnixStream,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    status: Mutex<Status>,
    changed: Condvar,
}

/// How a lease is doing.
#[derive(Debug, Clone)]
pub(super) enum Status {
    /// There is no address yet.
    Acquiring,
    /// There is one.
    Held(Grant),
    /// There is none, or not any more, and nobody is trying.
    Ended(String),
}

/// Why an exchange with servers ended.
enum Exchanged {
    Bound,
    Lost(String),
    Stopped,
}

impl Lease {
    /// Begins to acquire one.
    pub(super) fn start(wanted: Wanted) -> std::io::Result<Lease> {
        let shared = Arc::new(Shared { status: Mutex::new(Status::Acquiring), changed: Condvar::new() });
        let (stop, stopped) = UnixStream::pair()?;
        stopped.set_nonblocking(true)?;
        let keeper = Keeper { wanted, stopped, shared: Arc::clone(&shared), seen: None, client: None };
        let builder = thread::Builder::new().name("dhcp-lease".into()).stack_size(256 << 10);
        let thread = builder.spawn(move || keeper.run())?;
        Ok(Lease { shared, stop, thread: Mutex::new(Some(thread)) })
    }

    /// How it is doing, after some time if it is still being acquired.
    pub(super) fn status_within(&self, patience: Duration) -> Status {
        let status = self.shared.lock();
        let acquiring = |status: &mut Status| matches!(status, Status::Acquiring);
        let waited = self.shared.changed.wait_timeout_while(status, patience, acquiring);
        waited.unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// Gives the lease back; returns once the server has been told.
    pub(super) fn stop(&self) {
        // It does not listen if it has ended.
        let _ = (&self.stop).write_all(b"x");
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let _ = thread.map(JoinHandle::join);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, status: Status) {
        *self.lock() = status;
        self.changed.notify_all();
    }
}

/// What the thread has.
struct Keeper {
    wanted: Wanted,
    stopped: UnixStream,
    shared: Arc<Shared>,
    /// The namespace, as it was at first.
    seen: Option<Sandbox>,
    client: Option<Client>,
}

impl Keeper {
    fn run(mut self) {
        let reason = self.keep().unwrap_or_else(|error| error);
        log(format_args!("{}: {reason}", self.wanted.name));
        self.shared.set(Status::Ended(reason));
    }

    /// Until the lease is stopped or lost; says how it ended.
    fn keep(&mut self) -> Result<String, String> {
        loop {
            match self.inside(Keeper::exchange)?? {
                Exchanged::Bound => {}
                Exchanged::Lost(reason) => {
                    if matches!(*self.shared.lock(), Status::Held(_)) {
                        self.inside(Keeper::set_down)??;
                        return Ok(format!("{reason}; {} was set down", self.wanted.ifname));
                    }
                    return Ok(reason);
                }
                Exchanged::Stopped => return self.release(),
            }
            let client = self.client.as_mut().expect("an exchange was made by a client");
            let until = match client.next(Instant::now()) {
                Todo::Wait(until) if client.bound().is_some() => until,
                _ => continue,
            };
            if let Some(grant) = client.bound() {
                let (address, server) = (grant.address, grant.server);
                log(format_args!("{}: {address} leased from {server}", self.wanted.name));
                self.shared.set(Status::Held(grant.clone()));
            }
            if self.stopped_before(until) {
                return self.release();
            }
        }
    }

    /// Does something in the container's namespace.
    fn inside<T>(&mut self, work: impl FnOnce(&mut Keeper) -> T) -> Result<T, String> {
        let path = self.wanted.netns.clone();
        let namespace = netns::open(&path).map_err(|error| error.to_string())?;
        let found = Sandbox::at(&path);
        if self.seen.is_some() && self.seen != found {
            return Err(format!("the network namespace {} is another one by now", path.display()));
        }
        self.seen = found;
        namespace.enter(|| work(self)).map_err(|error| error.to_string())
    }

    /// The interface, which is still the same.
    fn link(&self) -> Result<Link, String> {
        let name = self.wanted.ifname;
        let mut socket = open_socket().map_err(|error| error.to_string())?;
        let link = link::by_name(&mut socket, name).map_err(|error| error.to_string())?;
        let link = link.ok_or_else(|| format!("error looking up {:?}: Link not found", name.as_str()))?;
        match &self.client {
            Some(client) if link.mac != Some(client.identity().mac) => {
                Err(format!("{name} is another interface by now"))
            }
            _ => Ok(link),
        }
    }

    /// Talks with servers until there is nothing to say for a while.
    fn exchange(&mut self) -> Result<Exchanged, String> {
        let link = self.link()?;
        if !link.is_up() && self.client.is_none() {
            let mut socket = open_socket().map_err(|error| error.to_string())?;
            link::set_up(&mut socket, link.index).map_err(|error| error.to_string())?;
        }
        let mut client = match self.client.take() {
            Some(client) => client,
            None => self.new_client(&link)?,
        };
        let exchanged = self.converse(&mut client, link.index);
        self.client = Some(client);
        exchanged
    }

    fn new_client(&self, link: &Link) -> Result<Client, String> {
        let wanted = &self.wanted;
        let mac = link.mac.ok_or_else(|| format!("{} has no Ethernet address", wanted.ifname))?;
        let mut client_id = vec![0];
        client_id.extend(wanted.name.bytes().take(254));
        let (options, broadcast) = (wanted.options.clone(), wanted.broadcast);
        let identity = Identity { mac, client_id, options, broadcast };
        let mut seed = [0; 8];
        let _ = rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty());
        Ok(Client::new(identity, wanted.timing, u64::from_ne_bytes(seed), Instant::now()))
    }

    fn converse(&self, client: &mut Client, index: u32) -> Result<Exchanged, String> {
        let socket = DhcpSocket::open(index).map_err(|error| error.to_string())?;
        // Answers are read from the packet socket; this one sends, and stays so that the kernel does not
        // call the port unreachable.
        let mut direct: Option<UdpSocket> = None;
        let mut buffer = vec![0; 64 << 10];
        loop {
            let now = Instant::now();
            match client.next(now) {
                _ if client.bound().is_some() => return Ok(Exchanged::Bound),
                Todo::Lost(reason) => return Ok(Exchanged::Lost(reason)),
                Todo::Broadcast { message, from } => {
                    self.send_to_all(&socket, &message, from, Ipv4Addr::BROADCAST)?;
                }
                Todo::Send { message, from, to } => {
                    direct = direct.or_else(|| UdpSocket::bind((from, 68)).ok());
                    let sent = direct.as_ref().is_some_and(|it| it.send_to(&message, (to, 67)).is_ok());
                    if !sent {
                        self.send_to_all(&socket, &message, from, to)?;
                    }
                }
                Todo::Wait(until) => {
                    if self.wait(Some(&socket), until) {
                        return Ok(Exchanged::Stopped);
                    }
                    while let Ok(Some(packet)) = socket.receive(&mut buffer) {
                        message::payload(packet)
                            .into_iter()
                            .for_each(|it| client.receive(Instant::now(), it));
                    }
                }
            }
        }
    }

    /// Sends to every Ethernet address, perhaps to one IP address. A network that does not work may
    /// work again; an interface that is gone will not.
    fn send_to_all(
        &self,
        socket: &DhcpSocket,
        message: &[u8],
        from: Ipv4Addr,
        to: Ipv4Addr,
    ) -> Result<(), String> {
        match socket.broadcast(&message::packet(message, from, to)) {
            Err(error) if matches!(error.errno(), Some(Errno::NXIO | Errno::NODEV)) => {
                Err(format!("{} is gone: {error}", self.wanted.ifname))
            }
            Err(error) => {
                log(format_args!("{}: {error}", self.wanted.name));
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn release(&mut self) -> Result<String, String> {
        let Some((message, grant)) = self.client.as_mut().and_then(Client::release) else {
            return Ok("stopped before there was a lease".to_owned());
        };
        self.inside(|keeper| keeper.send_release(&message, &grant))
            .and_then(|sent| sent)
            .map_err(|error| format!("{} is not given back, it will expire: {error}", grant.address))?;
        Ok(format!("{} was given back", grant.address))
    }

    fn send_release(&self, message: &[u8], grant: &Grant) -> Result<(), String> {
        let (from, to) = (grant.address, grant.server);
        let network = grant.mask.and_then(|mask| Ipv4Net::with_netmask(from, mask).ok());
        // The interface may go as soon as this is done: no time to ask for the server's Ethernet address.
        if !network.is_some_and(|network| network.contains(&to))
            && let Ok(direct) = UdpSocket::bind((from, 68))
            && direct.send_to(message, (to, 67)).is_ok()
        {
            return Ok(());
        }
        let socket = DhcpSocket::open(self.link()?.index).map_err(|error| error.to_string())?;
        self.send_to_all(&socket, message, from, to)
    }

    fn set_down(&mut self) -> Result<(), String> {
        let link = self.link()?;
        let mut socket = open_socket().map_err(|error| error.to_string())?;
        link::set_down(&mut socket, link.index).map_err(|error| error.to_string())
    }

    fn stopped_before(&self, until: Instant) -> bool {
        while Instant::now() < until {
            if self.wait(None, until) {
                return true;
            }
        }
        false
    }

    /// Waits until then, or a packet, or the order to stop; returns whether that came.
    fn wait(&self, socket: Option<&DhcpSocket>, until: Instant) -> bool {
        let rest = until.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: rest.as_secs() as i64, tv_nsec: rest.subsec_nanos().into() };
        let mut waited = vec![PollFd::new(&self.stopped, PollFlags::IN)];
        waited.extend(socket.map(|socket| PollFd::new(socket, PollFlags::IN)));
        // A signal ends the wait, no more.
        let _ = poll(&mut waited, Some(&timeout));
        // A byte, or the end: in both cases nobody wants the lease any more.
        !matches!((&self.stopped).read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    }
}
