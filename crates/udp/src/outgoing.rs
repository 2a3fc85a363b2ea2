//! From the device to the wire: packets of pods as the datagrams that carry them.
//!
//! What is read from the device may be many packets in one, with the checksum still to be computed.
//! On the wire each is by itself, so that no peer can tell: IP identification and sequence numbers
//! advance, PSH and FIN are on the last and CWR on the first alone, every checksum is complete. The
//! payload stays where it was read; only headers are written anew.
//!
//! Datagrams to one node that follow each other are gathered into [`Bundle`]s, as far as the kernel
//! takes them in one call and cuts them apart again (`UDP_SEGMENT`): all of one size, the last perhaps
//! shorter.

use std::net::IpAddr;
use std::ops::Range;

use crate::checksum::{Sum, pseudo_header};
use crate::counters::{Counters, Reason};
use crate::icmp::{self, Unreachable};
use crate::packet::{self, Header, IPV6_HEADER, TCP, UDP};
use crate::peers::Table;
use crate::virtio::{self, SegmentKind, Segments, Virtio};

/// The longest packet that a device hands over, with its header.
const LONGEST_FRAME: usize = virtio::LENGTH + 65_535;
/// How many octets are gathered before they are sent: four frames of the longest kind.
const ROOM: usize = 4 * LONGEST_FRAME;
/// How many frames are gathered.
const FRAMES: usize = 128;
/// The most segments of one call (`UDP_MAX_SEGMENTS`; twice as many from Linux 6.9 on).
pub(crate) const MOST_SEGMENTS: usize = 64;
/// The most octets of one call: what a UDP datagram in IPv4 may hold.
const MOST_OCTETS: usize = 65_507;

/// The smallest MTU that a path may have in IPv6 (RFC 8200 §5).
const SMALLEST_IPV6_MTU: usize = 1280;

/// What was read from the device and is to be sent.
#[derive(Debug)]
pub(crate) struct Outgoing {
    /// Frames as read.
    frames: Box<[u8]>,
    filled: usize,
    count: usize,
    /// Headers of packets that were cut out of larger ones.
    headers: Vec<u8>,
    pieces: Vec<Piece>,
    bundles: Vec<Bundle>,
    answers: Vec<Vec<u8>>,
}

/// A run of octets.
#[derive(Debug, Clone, Copy)]
struct Piece {
    place: Place,
    start: u32,
    length: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Frames,
    Headers,
}

/// Datagrams to one node that can be sent in one call.
#[derive(Debug, Clone)]
pub(crate) struct Bundle {
    /// The node.
    pub(crate) to: IpAddr,
    /// The size of each datagram; the last may be shorter.
    pub(crate) segment: usize,
    /// How many datagrams there are.
    pub(crate) count: usize,
    /// Their size together.
    pub(crate) octets: usize,
    pieces: Range<usize>,
}

/// What decides where packets go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outward<'a> {
    /// Who has which subnet.
    pub(crate) table: &'a Table,
    /// The address families that have a socket.
    pub(crate) families: Families,
    /// Whether the device puts a header in front of packets.
    pub(crate) virtio: bool,
    /// Whether the kernel cuts datagrams apart.
    pub(crate) segmentation: bool,
}

/// Address families in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Families {
    pub(crate) ipv4: bool,
    pub(crate) ipv6: bool,
}

impl Families {
    pub(crate) fn has(self, ip: IpAddr) -> bool {
        if ip.is_ipv4() { self.ipv4 } else { self.ipv6 }
    }
}

impl Outgoing {
    pub(crate) fn new() -> Outgoing {
        Outgoing {
            frames: vec![0; ROOM].into_boxed_slice(),
            filled: 0,
            count: 0,
            headers: Vec::new(),
            pieces: Vec::new(),
            bundles: Vec::new(),
            answers: Vec::new(),
        }
    }

    /// Room for one more frame; none when it is time to send.
    pub(crate) fn room(&mut self) -> Option<&mut [u8]> {
        if self.count == FRAMES {
            return None;
        }
        self.frames[self.filled..].first_chunk_mut::<LONGEST_FRAME>().map(|room| &mut room[..])
    }

    /// Takes a frame of `length` octets that was put into the room.
    pub(crate) fn take(&mut self, length: usize, outward: &Outward<'_>, counters: &Counters) {
        let frame = self.filled..self.filled + length.min(LONGEST_FRAME);
        self.filled = frame.end;
        self.count += 1;
        let virtio = if outward.virtio {
            let header = self.frames[frame.clone()].first_chunk().and_then(Virtio::read);
            let Some(virtio) = header else { return counters.dropped(Reason::Malformed, 1) };
            virtio
        } else {
            Virtio::default()
        };
        let start = frame.start + if outward.virtio { virtio::LENGTH } else { 0 };
        if let Err(reason) = self.packet(start..frame.end, virtio, outward) {
            counters.dropped(reason, 1);
        }
    }

    fn packet(&mut self, at: Range<usize>, virtio: Virtio, outward: &Outward<'_>) -> Result<(), Reason> {
        let octets = &mut self.frames[at.clone()];
        let header = Header::read(octets)?;
        if !outward.families.has(header.source) {
            return Err(Reason::FamilyOff);
        }
        if !packet::is_unicast(header.destination) {
            return Err(Reason::Multicast);
        }
        let Some(to) = outward.table.node(header.destination) else {
            let own = own_address(outward.table, header.source);
            self.answers.extend(icmp::answer(Unreachable::NoRoute, octets, &header, own));
            return Err(Reason::NoRoute);
        };
        if header.ttl <= 1 {
            return Err(Reason::TtlExpired);
        }
        packet::hop(octets, &header);
        let packet = at.start..at.start + header.length;
        match virtio.segments.and_then(|segments| Cut::new(&self.frames[packet.clone()], &header, segments)) {
            Some(cut) => self.split(packet, &header, cut, to, outward),
            None => {
                complete(&mut self.frames[packet.clone()], &header, virtio)?;
                let length = packet.len();
                self.datagram(to, length, outward);
                self.piece(Place::Frames, packet);
            }
        }
        Ok(())
    }

    /// Cuts a packet into those that it stands for.
    fn split(&mut self, packet: Range<usize>, header: &Header, cut: Cut, to: IpAddr, outward: &Outward<'_>) {
        let first = packet.start + cut.headers;
        let mut from = first;
        while from < packet.end {
            let payload = from..(from + cut.size).min(packet.end);
            let last = payload.end == packet.end;
            let written = self.headers.len();
            self.headers.extend_from_slice(&self.frames[packet.start..first]);
            let sum = Sum::default().add(&self.frames[payload.clone()]);
            let index = (from - first) / cut.size;
            let position = Position { index, offset: from - first, length: payload.len(), last };
            cut.header(&mut self.headers[written..], header, position, sum);
            self.datagram(to, cut.headers + payload.len(), outward);
            self.piece(Place::Headers, written..written + cut.headers);
            from = payload.end;
            self.piece(Place::Frames, payload);
        }
    }

    /// Begins a datagram; its pieces follow.
    fn datagram(&mut self, to: IpAddr, length: usize, outward: &Outward<'_>) {
        let fits = |bundle: &&mut Bundle| {
            outward.segmentation
                && bundle.to == to
                && bundle.count < MOST_SEGMENTS
                && bundle.octets + length <= MOST_OCTETS
                && length <= bundle.segment
                && bundle.octets == bundle.segment * bundle.count
        };
        match self.bundles.last_mut().filter(fits) {
            Some(bundle) => {
                bundle.count += 1;
                bundle.octets += length;
            }
            None => {
                let pieces = self.pieces.len()..self.pieces.len();
                self.bundles.push(Bundle { to, segment: length, count: 1, octets: length, pieces });
            }
        }
    }

    fn piece(&mut self, place: Place, range: Range<usize>) {
        self.pieces.push(Piece { place, start: range.start as u32, length: range.len() as u32 });
        if let Some(bundle) = self.bundles.last_mut() {
            bundle.pieces.end = self.pieces.len();
        }
    }

    /// What is to be sent.
    pub(crate) fn bundles(&self) -> &[Bundle] {
        &self.bundles
    }

    /// The octets of a bundle, in pieces.
    pub(crate) fn pieces(&self, bundle: &Bundle) -> impl Iterator<Item = &[u8]> {
        self.pieces[bundle.pieces.clone()].iter().map(|piece| {
            let range = piece.start as usize..(piece.start + piece.length) as usize;
            match piece.place {
                Place::Frames => &self.frames[range],
                Place::Headers => &self.headers[range],
            }
        })
    }

    /// The datagrams of a bundle, each as a bundle by itself.
    pub(crate) fn datagrams(&self, bundle: &Bundle) -> Vec<Bundle> {
        let mut datagrams: Vec<Bundle> = Vec::new();
        let mut left = 0;
        for at in bundle.pieces.clone() {
            let length = self.pieces[at].length as usize;
            if left == 0 {
                let begun: usize = datagrams.iter().map(|datagram| datagram.octets).sum();
                left = bundle.segment.min(bundle.octets - begun);
                let single =
                    Bundle { segment: left, count: 1, octets: left, pieces: at..at, ..bundle.clone() };
                datagrams.push(single);
            }
            left = left.saturating_sub(length);
            if let Some(datagram) = datagrams.last_mut() {
                datagram.pieces.end = at + 1;
            }
        }
        datagrams
    }

    /// The first datagram of a bundle of several, and a bundle of the others.
    pub(crate) fn first_and_others(&self, bundle: &Bundle) -> (Bundle, Bundle) {
        let mut end = bundle.pieces.start;
        let mut octets = 0;
        while octets < bundle.segment && end < bundle.pieces.end {
            octets += self.pieces[end].length as usize;
            end += 1;
        }
        let (start, all) = (bundle.pieces.start, bundle.pieces.end);
        let first = Bundle { count: 1, octets, pieces: start..end, ..bundle.clone() };
        let (count, octets) = (bundle.count - 1, bundle.octets - octets);
        (first, Bundle { count, octets, pieces: end..all, ..bundle.clone() })
    }

    /// Tells the sender of a datagram that it may have no more than `mtu` octets. Says whether it can
    /// be told, for it may also have forbidden nothing.
    pub(crate) fn too_big(&mut self, datagram: &Bundle, mtu: usize, table: &Table) -> TooBig {
        let packet: Vec<u8> = self.pieces(datagram).flatten().copied().collect();
        let Ok(header) = Header::read(&packet) else { return TooBig::Told };
        let fragmentable = match header.is_ipv4() {
            true => packet[6] & 0x40 == 0,
            // No link may carry less, and no sender need send less (RFC 8200 §5): a tunnel cuts.
            false => packet.len() <= SMALLEST_IPV6_MTU,
        };
        if fragmentable {
            return TooBig::MayBeFragmented;
        }
        let own = own_address(table, header.source);
        let mtu = if header.is_ipv4() { mtu } else { mtu.max(SMALLEST_IPV6_MTU) };
        let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
        let answer = icmp::answer(Unreachable::TooBig(mtu), &packet, &header, own);
        // One answer does for all that were cut out of one packet.
        let last = self.answers.last().map(|last| icmp::quoted_ends(last));
        if last.is_none() || last != answer.as_deref().map(icmp::quoted_ends) {
            self.answers.extend(answer);
        }
        TooBig::Told
    }

    /// Answers to pods, to be written to the device.
    pub(crate) fn answers(&mut self) -> std::vec::Drain<'_, Vec<u8>> {
        self.answers.drain(..)
    }

    /// Forgets all that was sent.
    pub(crate) fn clear(&mut self) {
        (self.filled, self.count) = (0, 0);
        self.headers.clear();
        self.pieces.clear();
        self.bundles.clear();
    }
}

/// What becomes of a packet that is larger than the path to its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TooBig {
    /// Its sender was told, and it is dropped.
    Told,
    /// Its sender does not mind fragments: the datagram around it may be cut.
    MayBeFragmented,
}

/// Our address towards pods of a family, from which they are told: the original's address of the
/// device, the first of the pod subnet.
fn own_address(table: &Table, family: IpAddr) -> Option<IpAddr> {
    let own = table.own();
    match family {
        IpAddr::V4(_) => own.ipv4.map(|net| net.network().into()),
        IpAddr::V6(_) => own.ipv6.map(|net| net.network().into()),
    }
}

/// Completes the checksum of a packet if that was left to us.
fn complete(packet: &mut [u8], header: &Header, virtio: Virtio) -> Result<(), Reason> {
    let Some((start, place)) = virtio.checksum else { return Ok(()) };
    let (start, place) = (usize::from(start), usize::from(start) + usize::from(place));
    if start < header.payload || place + 2 > packet.len() {
        return Err(Reason::Malformed);
    }
    // The field holds the sum of the pseudo header, which is part of what is summed. Zero would mean that
    // there is none, in UDP, which this may be or have in it; the others take either zero.
    let checksum = Sum::default().add(&packet[start..]).nonzero_checksum();
    packet[place..place + 2].copy_from_slice(&checksum);
    Ok(())
}

/// How a packet is cut.
#[derive(Debug, Clone, Copy)]
struct Cut {
    /// The length of all headers.
    headers: usize,
    /// The payload of each packet but the last.
    size: usize,
    protocol: u8,
}

/// Which of the packets it is.
#[derive(Debug, Clone, Copy)]
struct Position {
    index: usize,
    /// Where its payload is in that of all.
    offset: usize,
    length: usize,
    last: bool,
}

impl Cut {
    /// None for a packet that needs no cutting, or is not what it says.
    fn new(packet: &[u8], header: &Header, segments: Segments) -> Option<Cut> {
        let protocol = match segments.kind {
            SegmentKind::TcpV4 | SegmentKind::TcpV6 => TCP,
            SegmentKind::Udp => UDP,
        };
        let upper = packet.get(header.payload..)?;
        let headers = header.payload
            + match protocol {
                TCP => usize::from(upper.get(12)? >> 4) * 4,
                _ => 8,
            };
        let shortest = header.payload + if protocol == TCP { 20 } else { 8 };
        let size = usize::from(segments.size);
        let fits = header.protocol == protocol
            && headers >= shortest
            && size > 0
            && headers + size < packet.len()
            && headers + size <= MOST_OCTETS;
        fits.then_some(Cut { headers, size, protocol })
    }

    /// Makes the headers of the whole those of one packet.
    fn header(&self, octets: &mut [u8], header: &Header, position: Position, payload: Sum) {
        let length = octets.len() + position.length;
        let (ip, upper) = octets.split_at_mut(header.payload);
        if header.is_ipv4() {
            ip[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            let id = u16::from_be_bytes([ip[4], ip[5]]).wrapping_add(position.index as u16);
            ip[4..6].copy_from_slice(&id.to_be_bytes());
            ip[10..12].fill(0);
            let checksum = Sum::default().add(ip).checksum();
            ip[10..12].copy_from_slice(&checksum);
        } else {
            ip[4..6].copy_from_slice(&((length - IPV6_HEADER) as u16).to_be_bytes());
        }
        let upper_length = upper.len() + position.length;
        let pseudo = pseudo_header(header.source, header.destination, self.protocol, upper_length);
        if self.protocol == TCP {
            const FIN_AND_PSH: u8 = 0x09;
            const CWR: u8 = 0x80;
            let sequence = u32::from_be_bytes([upper[4], upper[5], upper[6], upper[7]]);
            let sequence = sequence.wrapping_add(position.offset as u32);
            upper[4..8].copy_from_slice(&sequence.to_be_bytes());
            if !position.last {
                upper[13] &= !FIN_AND_PSH;
            }
            if position.index > 0 {
                upper[13] &= !CWR;
            }
            upper[16..18].fill(0);
            let checksum = pseudo.add(upper).and(payload).checksum();
            upper[16..18].copy_from_slice(&checksum);
        } else {
            upper[4..6].copy_from_slice(&(upper_length as u16).to_be_bytes());
            upper[6..8].fill(0);
            let checksum = pseudo.add(upper).and(payload).nonzero_checksum();
            upper[6..8].copy_from_slice(&checksum);
        }
    }
}

#[cfg(test)]
mod tests;
