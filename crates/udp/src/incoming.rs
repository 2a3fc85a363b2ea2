//! From the wire to the device: datagrams of other nodes as the packets that pods get.
//!
//! Whatever comes from the network is looked at before the kernel gets it: whole, with right
//! checksums, from the node that has its source, to this one. Then packets of one flow that follow
//! each other are put together again, so that the kernel takes dozens in one call and handles them as
//! one: TCP segments without a gap, UDP datagrams of one size. Packets of one flow are never
//! reordered, nothing is joined that could not be cut apart to the same octets, and the payload stays
//! where it was received.

use std::net::IpAddr;
use std::ops::Range;

use crate::checksum::{Sum, pseudo_header};
use crate::counters::{Counters, Reason};
use crate::outgoing::{Families, MOST_SEGMENTS};
use crate::packet::{self, Fragment, Header, IPV4_HEADER, IPV6_HEADER, TCP, UDP};
use crate::peers::Table;
use crate::virtio::{SegmentKind, Segments, Virtio};

/// Room for one message: a datagram of the longest kind, or many that were put together. Somewhat more than
/// a power of two: where each is a short datagram, all would lie in the same few sets of the
/// processor's caches.
pub(crate) const SLOT: usize = 65_536 + 33 * 64;
/// How many messages one call receives, which are then passed on: enough to make a long frame of, where
/// each is a datagram.
pub(crate) const SLOTS: usize = 64;
/// The longest packet that can be put together.
const LONGEST: usize = 65_535;
/// How many flows are watched for what can be put together.
const FLOWS: usize = 16;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const ECE: u8 = 0x40;

/// What was received and is to be written to the device.
#[derive(Debug)]
pub(crate) struct Incoming {
    octets: Box<[u8]>,
    /// Frames to write, of which `used` are in use.
    frames: Vec<Frame>,
    used: usize,
}

/// A packet to write, perhaps put together of many.
#[derive(Debug, Default)]
struct Frame {
    virtio: Virtio,
    /// The first packet whole, and the payloads of those that follow.
    pieces: Vec<Range<usize>>,
    length: usize,
    /// What may still be added; none if nothing may.
    open: Option<Flow>,
}

/// A flow, and what comes next in it.
#[derive(Debug, Clone, Copy)]
struct Flow {
    header: Header,
    /// Length of all headers.
    headers: usize,
    ports: [u8; 4],
    /// The TCP sequence number: of the packet, or the one that continues a frame.
    sequence: u32,
    /// Payload of each packet.
    size: usize,
}

/// What decides which packets pods get.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inward<'a> {
    /// Who has which subnet.
    pub(crate) table: &'a Table,
    /// The address families of the network.
    pub(crate) families: Families,
    /// Whether any source and destination will do, as in the original.
    pub(crate) trusting: bool,
    /// Whether the device takes a header in front of packets, and so packets that are many in one.
    pub(crate) virtio: bool,
    /// Whether it takes UDP datagrams that are many in one.
    pub(crate) udp_segments: bool,
    /// The device's MTU.
    pub(crate) mtu: usize,
}

impl Incoming {
    pub(crate) fn new() -> Incoming {
        Incoming { octets: vec![0; SLOT * SLOTS].into_boxed_slice(), frames: Vec::new(), used: 0 }
    }

    /// The room to receive into, in slots of [`SLOT`] octets.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        &mut self.octets
    }

    /// Takes the `length` octets received into a slot from a node: datagrams of `segment` octets each,
    /// the last perhaps shorter.
    pub(crate) fn take(
        &mut self,
        slot: usize,
        (length, segment): (usize, usize),
        from: IpAddr,
        inward: &Inward<'_>,
        counters: &Counters,
    ) {
        let start = slot * SLOT;
        let end = start + length.min(SLOT);
        let segment = if segment == 0 { length } else { segment };
        let mut known = None;
        let mut at = start;
        while at < end {
            let datagram = at..(at + segment).min(end);
            at = datagram.end;
            match self.packet(datagram, from, &mut known, inward) {
                Ok(length) if length > inward.mtu => counters.oversized(),
                Ok(_) => {}
                Err(reason) => counters.dropped(reason, 1),
            }
        }
        if length == 0 {
            counters.dropped(Reason::Malformed, 1);
        }
    }

    /// Takes one packet; gives its length. `known` is the source that is known to be that of the node.
    fn packet(
        &mut self,
        at: Range<usize>,
        from: IpAddr,
        known: &mut Option<IpAddr>,
        inward: &Inward<'_>,
    ) -> Result<usize, Reason> {
        let octets = &mut self.octets[at.clone()];
        let header = Header::read(octets)?;
        if !inward.families.has(header.source) {
            return Err(Reason::FamilyOff);
        }
        if !packet::header_is_right(octets, &header) {
            return Err(Reason::HeaderChecksum);
        }
        if !inward.trusting {
            if *known != Some(header.source) {
                // A node speaks for its pods, and for itself.
                if header.source != from && inward.table.node(header.source) != Some(from) {
                    return Err(Reason::Spoofed);
                }
                *known = Some(header.source);
            }
            if !inward.table.is_own(header.destination) {
                return Err(Reason::NotOurs);
            }
        }
        if header.ttl <= 1 {
            return Err(Reason::TtlExpired);
        }
        let packet = at.start..at.start + header.length;
        let flow = Flow::new(&self.octets[packet.clone()], &header, inward)?;
        packet::hop(&mut self.octets[packet.clone()], &header);
        self.place(packet, &header, flow);
        Ok(header.length)
    }

    /// Adds a packet to the frame of its flow, or begins a frame.
    fn place(&mut self, packet: Range<usize>, header: &Header, flow: Option<Flow>) {
        let ends = (header.source, header.destination);
        let recent = self.used.saturating_sub(FLOWS)..self.used;
        let mut latest = None;
        for at in recent.rev() {
            let Some(open) = &self.frames[at].open else { continue };
            if (open.header.source, open.header.destination) != ends {
                continue;
            }
            match &flow {
                Some(flow) if !flow.is_of(open) => {}
                Some(flow) => {
                    latest = Some((at, *flow));
                    break;
                }
                // A fragment, say, that belongs behind what came before it.
                None => self.frames[at].open = None,
            }
        }
        if let Some((at, flow)) = latest {
            if self.joins(at, &packet, &flow) {
                return self.join(at, packet, &flow);
            }
            self.frames[at].open = None;
        }
        self.begin(packet, flow);
    }

    fn begin(&mut self, packet: Range<usize>, flow: Option<Flow>) {
        if self.used == self.frames.len() {
            self.frames.push(Frame::default());
        }
        let frame = &mut self.frames[self.used];
        self.used += 1;
        let octets = &self.octets[packet.clone()];
        frame.open = flow
            .filter(|flow| flow.begins(octets))
            .map(|flow| Flow { sequence: flow.sequence.wrapping_add(flow.size as u32), ..flow });
        frame.virtio = Virtio::default();
        frame.length = packet.len();
        frame.pieces.clear();
        frame.pieces.push(packet);
    }

    /// Whether a packet continues a frame, so that the two could be cut apart again.
    fn joins(&self, at: usize, packet: &Range<usize>, flow: &Flow) -> bool {
        let frame = &self.frames[at];
        let Some(open) = &frame.open else { return false };
        let payload = packet.len() - flow.headers;
        let first = &self.octets[frame.pieces[0].start..][..open.headers];
        let next = &self.octets[packet.start..][..flow.headers.min(packet.len())];
        let (ip, next_ip) = (&first[..open.header.payload], &next[..flow.header.payload]);
        flow.headers == open.headers
            && payload > 0
            && payload <= open.size
            && frame.length + payload <= LONGEST
            && frame.pieces.len() < MOST_SEGMENTS
            && if flow.header.is_ipv4() {
                let id = |ip: &[u8]| u16::from_be_bytes([ip[4], ip[5]]);
                let follows = || id(next_ip) == id(ip).wrapping_add(frame.pieces.len() as u16);
                // With DF the identification means nothing (RFC 6864 §4).
                let unfragmentable = ip[6] & 0x40 != 0;
                ip[1] == next_ip[1] && ip[6..10] == next_ip[6..10] && (unfragmentable || follows())
            } else {
                ip[..4] == next_ip[..4] && ip[6..8] == next_ip[6..8]
            }
            && self.joins_above(&first[open.header.payload..], &next[flow.header.payload..], (open, flow))
    }

    fn joins_above(&self, first: &[u8], next: &[u8], (open, flow): (&Flow, &Flow)) -> bool {
        if flow.header.protocol == UDP {
            return true;
        }
        // Acknowledgement, data offset, flags, window; urgent pointer and options.
        flow.sequence == open.sequence
            && first[8..13] == next[8..13]
            && next[13] & !(PSH | FIN) == first[13]
            && first[14..16] == next[14..16]
            && first[18..] == next[18..]
    }

    fn join(&mut self, at: usize, packet: Range<usize>, flow: &Flow) {
        let frame = &mut self.frames[at];
        let payload = packet.start + flow.headers..packet.end;
        let Some(open) = &mut frame.open else { return };
        let kind = match (flow.header.protocol, flow.header.is_ipv4()) {
            (UDP, _) => SegmentKind::Udp,
            (_, true) => SegmentKind::TcpV4,
            (_, false) => SegmentKind::TcpV6,
        };
        let headers = flow.headers as u16;
        let place = if flow.header.protocol == TCP { 16 } else { 6 };
        frame.virtio.checksum = Some((flow.header.payload as u16, place));
        frame.virtio.segments = Some(Segments { kind, size: open.size as u16, headers });
        frame.length += payload.len();
        open.sequence = open.sequence.wrapping_add(payload.len() as u32);
        let mut full = payload.len() < open.size;
        if flow.header.protocol == TCP {
            let last = self.octets[packet.start + flow.header.payload + 13] & (PSH | FIN);
            self.octets[frame.pieces[0].start + open.header.payload + 13] |= last;
            full |= last != 0;
        }
        frame.pieces.push(payload);
        if full {
            frame.open = None;
        }
    }

    /// Makes the frames that were put together ready to be written: lengths and checksums.
    pub(crate) fn seal(&mut self) {
        for frame in &mut self.frames[..self.used] {
            let Some((start, place)) = frame.virtio.checksum else { continue };
            let packet = &mut self.octets[frame.pieces[0].clone()];
            let start = usize::from(start);
            let upper = frame.length - start;
            let (ip, above) = packet.split_at_mut(start);
            let addresses = if ip[0] >> 4 == 4 {
                ip[2..4].copy_from_slice(&(frame.length as u16).to_be_bytes());
                ip[10..12].fill(0);
                let checksum = Sum::default().add(ip).checksum();
                ip[10..12].copy_from_slice(&checksum);
                Sum::default().add(&ip[12..20])
            } else {
                ip[4..6].copy_from_slice(&((frame.length - IPV6_HEADER) as u16).to_be_bytes());
                Sum::default().add(&ip[8..40])
            };
            let protocol = if place == 16 { TCP } else { UDP };
            if protocol == UDP {
                above[4..6].copy_from_slice(&(upper as u16).to_be_bytes());
            }
            // The checksums were right: the kernel need not look again, and completes this one where it is
            // wanted. Until then the field holds the sum of the pseudo header. A packet that stayed alone
            // keeps its own, for the kernel would quote the unfinished one in ICMP errors about it.
            let partial = addresses.add_u16(u16::from(protocol)).add_u16(upper as u16).partial();
            let place = usize::from(place);
            above[place..place + 2].copy_from_slice(&partial);
        }
    }

    /// What is to be written: for each frame the header in front of it, how many packets it is, and
    /// its octets in pieces.
    pub(crate) fn frames(&self) -> impl Iterator<Item = (Virtio, usize, usize, impl Iterator<Item = &[u8]>)> {
        self.frames[..self.used].iter().map(|frame| {
            let pieces = frame.pieces.iter().map(|range| &self.octets[range.clone()]);
            (frame.virtio, frame.pieces.len(), frame.length, pieces)
        })
    }

    /// Forgets all that was written.
    pub(crate) fn clear(&mut self) {
        self.used = 0;
    }
}

impl Flow {
    /// The flow of a packet that has a checksum we know; an error if it is wrong. None for what is
    /// passed on as it is.
    fn new(packet: &[u8], header: &Header, inward: &Inward<'_>) -> Result<Option<Flow>, Reason> {
        let upper = &packet[header.payload..];
        let least = match header.protocol {
            TCP => 20,
            UDP => 8,
            _ => return Ok(None),
        };
        // What cannot be checked here is for its receiver to check: of a fragment the rest is missing, and
        // options or extension headers may name another destination than the one that is summed.
        let plain = if header.is_ipv4() { IPV4_HEADER } else { IPV6_HEADER };
        if header.fragment != Fragment::Whole || header.payload != plain || upper.len() < least {
            return Ok(None);
        }
        let offset = if header.protocol == TCP { usize::from(upper[12] >> 4) * 4 } else { 8 };
        let checked = if header.protocol == UDP {
            let length = usize::from(u16::from_be_bytes([upper[4], upper[5]]));
            // Without a checksum, or with octets behind the datagram: nobody's business.
            length == upper.len() && upper[6..8] != [0, 0]
        } else {
            (20..=upper.len()).contains(&offset)
        };
        if !checked {
            return Ok(None);
        }
        let pseudo = pseudo_header(header.source, header.destination, header.protocol, upper.len());
        if !pseudo.add(upper).is_right() {
            return Err(Reason::Checksum);
        }
        if !inward.virtio {
            return Ok(None);
        }
        let headers = header.payload + offset;
        let payload = packet.len() - headers;
        let sequence = u32::from_be_bytes([upper[4], upper[5], upper[6], upper[7]]);
        Ok(Some(Flow {
            header: *header,
            headers,
            ports: [upper[0], upper[1], upper[2], upper[3]],
            sequence,
            // Zero where none may be added.
            size: if header.protocol == UDP && !inward.udp_segments { 0 } else { payload },
        }))
    }

    fn is_of(&self, other: &Flow) -> bool {
        self.ports == other.ports && self.header.protocol == other.header.protocol
    }

    /// Whether others can be added to this packet.
    fn begins(&self, packet: &[u8]) -> bool {
        if self.size == 0 {
            return false;
        }
        // A TCP segment that says anything but "here is more" stays alone.
        self.header.protocol != TCP || packet[self.header.payload + 13] & !ECE == ACK
    }
}

#[cfg(test)]
mod tests;
