//! The thread that carries packets from the wire to the device.

use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;

use crate::counters::{Counters, Reason};
use crate::incoming::{Incoming, Inward};
use crate::outgoing::{Families, MOST_SEGMENTS};
use crate::peers::Peers;
use crate::socket::{ReceiveRoom, Socket};

/// What the thread works with.
#[derive(Debug)]
pub(crate) struct Receiver {
    pub(crate) socket: Arc<Socket>,
    pub(crate) queue: Arc<OwnedFd>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) families: Families,
    pub(crate) any_source: bool,
    pub(crate) virtio: bool,
    pub(crate) udp_segments: bool,
    pub(crate) mtu: usize,
}

impl Receiver {
    /// Carries packets until the socket is shut down; an error is that of a device or socket that is
    /// gone.
    pub(crate) fn run(&self) -> Result<(), Errno> {
        let mut incoming = Incoming::new();
        let mut room = ReceiveRoom::new();
        let mut view = self.peers.view();
        loop {
            let Some(received) = self.socket.receive(incoming.room(), &mut room)? else { return Ok(()) };
            let inward = Inward {
                table: view.load(),
                families: self.families,
                trusting: self.any_source,
                virtio: self.virtio,
                udp_segments: self.udp_segments,
                mtu: self.mtu,
            };
            for (slot, message) in received.iter().enumerate() {
                let Some(from) = message.from else { continue };
                incoming.take(slot, (message.length, message.segment), from, &inward, &self.counters);
            }
            incoming.seal();
            self.write(&incoming)?;
            incoming.clear();
        }
    }

    fn write(&self, incoming: &Incoming) -> Result<(), Errno> {
        for (virtio, packets, octets, pieces) in incoming.frames() {
            let header = virtio.write();
            let mut slices = [IoSlice::new(&[]); MOST_SEGMENTS + 1];
            let mut count = 0;
            if self.virtio {
                slices[0] = IoSlice::new(&header);
                count = 1;
            }
            for piece in pieces {
                slices[count] = IoSlice::new(piece);
                count += 1;
            }
            match rustix::io::writev(&self.queue, &slices[..count]) {
                Ok(_) => self.counters.passed(packets, octets),
                Err(Errno::BADFD) => return Err(Errno::BADFD),
                Err(_) => self.counters.dropped(Reason::Refused, packets),
            }
        }
        Ok(())
    }
}
