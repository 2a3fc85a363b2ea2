//! The thread that carries packets from a queue of the device to the wire.

use std::net::IpAddr;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::counters::{Counters, Reason};
use crate::outgoing::{Bundle, Families, Outgoing, Outward, TooBig};
use crate::peers::Peers;
use crate::socket::{Fragmenting, SendRoom, Socket};

/// What the thread works with.
#[derive(Debug)]
pub(crate) struct Sender {
    pub(crate) queue: Arc<OwnedFd>,
    /// For each address family of nodes.
    pub(crate) sockets: Vec<Arc<Socket>>,
    pub(crate) ipv4: Option<usize>,
    pub(crate) ipv6: Option<usize>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) families: Families,
    pub(crate) virtio: bool,
    /// Whether datagrams are sent many in one; all threads give it up together.
    pub(crate) segmentation: Arc<AtomicBool>,
    /// Readable when it is time to end.
    pub(crate) stop: Arc<OwnedFd>,
}

impl Sender {
    /// Carries packets until told to stop; an error is that of a device that is gone.
    pub(crate) fn run(&self) -> Result<(), Errno> {
        let mut outgoing = Outgoing::new();
        let mut room = SendRoom::default();
        let mut view = self.peers.view();
        loop {
            let table = Arc::clone(view.load());
            let outward = Outward {
                table: &table,
                families: self.families,
                virtio: self.virtio,
                segmentation: self.segmentation.load(Relaxed),
            };
            let empty = self.gather(&mut outgoing, &outward)?;
            self.flush(&mut outgoing, &outward, &mut room)?;
            if empty && self.wait()? {
                return Ok(());
            }
        }
    }

    /// Reads what is there, as far as there is room; says whether nothing is left.
    fn gather(&self, outgoing: &mut Outgoing, outward: &Outward<'_>) -> Result<bool, Errno> {
        while let Some(room) = outgoing.room() {
            match rustix::io::read(&self.queue, room) {
                Ok(length) => {
                    outgoing.take(length, outward, &self.counters);
                }
                Err(Errno::AGAIN) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(false)
    }

    fn wait(&self) -> Result<bool, Errno> {
        let mut both = [
            PollFd::new(&self.queue, PollFlags::IN),
            PollFd::from_borrowed_fd(self.stop.as_fd(), PollFlags::IN),
        ];
        match poll(&mut both, None) {
            Ok(_) | Err(Errno::INTR) => Ok(!both[1].revents().is_empty()),
            Err(errno) => Err(errno),
        }
    }

    fn flush(
        &self,
        outgoing: &mut Outgoing,
        outward: &Outward<'_>,
        room: &mut SendRoom,
    ) -> Result<(), Errno> {
        let count = outgoing.bundles().len();
        let mut at = 0;
        while at < count {
            let family = outgoing.bundles()[at].to.is_ipv4();
            let same = outgoing.bundles()[at..].iter().take_while(|bundle| bundle.to.is_ipv4() == family);
            let run = at..at + same.count();
            let Some(socket) = self.socket(outgoing.bundles()[at].to) else {
                // Peers of a family without a socket: the plan has none.
                at = self.dropped(outgoing, run, Reason::Refused);
                continue;
            };
            match socket.send(outgoing, run, room) {
                Ok(sent) => {
                    for bundle in &outgoing.bundles()[at..at + sent] {
                        self.counters.passed(bundle.count, bundle.octets);
                    }
                    at += sent.max(1);
                }
                Err(errno) => {
                    let bundle = outgoing.bundles()[at].clone();
                    self.refused(socket, outgoing, &bundle, errno, (outward, room));
                    at += 1;
                }
            }
        }
        outgoing.clear();
        for answer in outgoing.answers() {
            let header = [0; crate::virtio::LENGTH];
            let header = if self.virtio { &header[..] } else { &[] };
            let slices = [std::io::IoSlice::new(header), std::io::IoSlice::new(&answer)];
            match rustix::io::writev(&self.queue, &slices) {
                // An answer that cannot be given is no loss: the packet that asks for it comes again.
                Ok(_) | Err(_) => {}
            }
        }
        Ok(())
    }

    fn dropped(&self, outgoing: &Outgoing, bundles: Range<usize>, reason: Reason) -> usize {
        for bundle in &outgoing.bundles()[bundles.clone()] {
            self.counters.dropped(reason, bundle.count);
        }
        bundles.end
    }

    /// Does what can be done about a bundle that the kernel did not take.
    fn refused(
        &self,
        socket: &Socket,
        outgoing: &mut Outgoing,
        bundle: &Bundle,
        errno: Errno,
        (outward, room): (&Outward<'_>, &mut SendRoom),
    ) {
        let path = match errno {
            Errno::MSGSIZE | Errno::INVAL => socket.path(bundle.to).filter(|path| bundle.segment > *path),
            _ => None,
        };
        let Some(path) = path else {
            if bundle.count > 1 && matches!(errno, Errno::IO | Errno::INVAL) {
                return self.send_apart(socket, outgoing, bundle, errno, room);
            }
            return self.counters.dropped(Reason::Refused, bundle.count);
        };
        for datagram in outgoing.datagrams(bundle) {
            let mut fragmenting = Fragmenting::Never;
            if datagram.octets > path {
                match outgoing.too_big(&datagram, path, outward.table) {
                    TooBig::Told => {
                        self.counters.dropped(Reason::TooBig, 1);
                        continue;
                    }
                    TooBig::MayBeFragmented => fragmenting = Fragmenting::Allowed,
                }
            }
            if fragmenting == Fragmenting::Allowed {
                socket.set_fragmenting(Fragmenting::Allowed);
            }
            self.send_one(socket, outgoing, &datagram, room);
            if fragmenting == Fragmenting::Allowed {
                socket.set_fragmenting(Fragmenting::Never);
            }
        }
    }

    /// Sends the first datagram of a bundle alone, and the others together: only where these are refused
    /// once more is it the cutting that the kernel does not like. It answers alike where a route takes
    /// nothing, which may pass.
    fn send_apart(
        &self,
        socket: &Socket,
        outgoing: &Outgoing,
        bundle: &Bundle,
        errno: Errno,
        room: &mut SendRoom,
    ) {
        let (first, others) = outgoing.first_and_others(bundle);
        if socket.send_one(outgoing, &first, room).is_err() {
            return self.counters.dropped(Reason::Refused, bundle.count);
        }
        self.counters.passed(1, first.octets);
        match socket.send_one(outgoing, &others, room) {
            Ok(()) => return self.counters.passed(others.count, others.octets),
            Err(again) if again == errno && others.count > 1 => {}
            Err(_) => return self.counters.dropped(Reason::Refused, others.count),
        }
        if self.segmentation.swap(false, Relaxed) {
            tracing::info!(
                %errno,
                "this kernel or network card does not cut datagrams apart (UDP_SEGMENT): sending them one by one"
            );
        }
        for datagram in outgoing.datagrams(&others) {
            self.send_one(socket, outgoing, &datagram, room);
        }
    }

    fn send_one(&self, socket: &Socket, outgoing: &Outgoing, datagram: &Bundle, room: &mut SendRoom) {
        match socket.send_one(outgoing, datagram, room) {
            Ok(()) => self.counters.passed(1, datagram.octets),
            Err(_) => self.counters.dropped(Reason::Refused, 1),
        }
    }

    fn socket(&self, to: IpAddr) -> Option<&Socket> {
        let at = if to.is_ipv4() { self.ipv4 } else { self.ipv6 };
        Some(&self.sockets[at?])
    }
}
