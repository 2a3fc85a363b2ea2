//! For tests: packets through both halves of the data path without a kernel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fabric::lease::Subnets;

use crate::checksum::pseudo_header;
use crate::counters::{Counters, Traffic};
use crate::incoming::{Incoming, Inward, SLOT};
use crate::outgoing::{Families, Outgoing, Outward};
use crate::packet::{Header, TCP, UDP};
use crate::peers::Peers;
use crate::virtio::{self, SegmentKind, Segments, Virtio};

pub(crate) const BOTH: Families = Families { ipv4: true, ipv6: true };

/// Pod `n` of node 1 or 2, which have 10.244.1.0/24 and 10.244.2.0/24, fd00:1::/64 and fd00:2::/64.
pub(crate) fn pod(node: u8, n: u8, ipv4: bool) -> IpAddr {
    if ipv4 {
        Ipv4Addr::new(10, 244, node, n).into()
    } else {
        Ipv6Addr::new(0xfd00, node.into(), 0, 0, 0, 0, 0, n.into()).into()
    }
}

pub(crate) fn node(n: u8, ipv4: bool) -> IpAddr {
    if ipv4 {
        Ipv4Addr::new(192, 168, 0, n).into()
    } else {
        Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, n.into()).into()
    }
}

/// The table of node `me`, which knows the other two of three.
pub(crate) fn peers(me: u8) -> Peers {
    let subnets = |n: u8| Subnets {
        ipv4: Some(format!("10.244.{n}.0/24").parse().unwrap()),
        ipv6: Some(format!("fd00:{n}::/64").parse().unwrap()),
    };
    let others = (1..=3).filter(|n| *n != me);
    let entries = others.flat_map(|n| {
        subnets(n).iter().map(move |net| (net, node(n, net.addr().is_ipv4()))).collect::<Vec<_>>()
    });
    let peers = Peers::default();
    peers.replace(subnets(me), entries);
    peers
}

/// Leaves a checksum to be completed by whoever reads the packet.
pub(crate) fn leave_checksum(packet: &mut [u8]) -> Option<(u16, u16)> {
    let header = Header::read(packet).unwrap();
    let place = match header.protocol {
        TCP => 16,
        UDP => 6,
        _ => return None,
    };
    let upper = header.length - header.payload;
    let partial = pseudo_header(header.source, header.destination, header.protocol, upper).partial();
    let at = header.payload + place;
    packet[at..at + 2].copy_from_slice(&partial);
    Some((header.payload as u16, place as u16))
}

/// A frame as the device hands it over: many packets in one if `size` is not zero.
pub(crate) fn frame(mut packet: Vec<u8>, size: u16) -> Vec<u8> {
    let header = Header::read(&packet).unwrap();
    let checksum = leave_checksum(&mut packet);
    let kind = match (header.protocol, header.is_ipv4()) {
        (UDP, _) => SegmentKind::Udp,
        (_, true) => SegmentKind::TcpV4,
        (_, false) => SegmentKind::TcpV6,
    };
    let segments = (size > 0).then_some(Segments { kind, size, headers: 0 });
    let mut frame = Virtio { checksum, segments }.write().to_vec();
    frame.extend(packet);
    frame
}

/// What goes out on the wire for frames read from the device of node 1: messages, as the datagrams in
/// each; the answers to pods; what was counted.
pub(crate) struct Sent {
    pub(crate) messages: Vec<(IpAddr, Vec<Vec<u8>>)>,
    pub(crate) answers: Vec<Vec<u8>>,
    pub(crate) traffic: Traffic,
}

impl Sent {
    pub(crate) fn datagrams(&self) -> Vec<Vec<u8>> {
        self.messages.iter().flat_map(|(_, datagrams)| datagrams.clone()).collect()
    }
}

pub(crate) fn send(frames: &[Vec<u8>], segmentation: bool) -> Sent {
    send_as(frames, Outward { table: peers(1).view().load(), families: BOTH, virtio: true, segmentation })
}

pub(crate) fn send_as(frames: &[Vec<u8>], outward: Outward<'_>) -> Sent {
    let mut outgoing = Outgoing::new();
    let counters = Counters::default();
    let mut sent = Sent { messages: Vec::new(), answers: Vec::new(), traffic: Traffic::default() };
    let mut flush = |outgoing: &mut Outgoing| {
        for bundle in outgoing.bundles() {
            let octets: Vec<u8> = outgoing.pieces(bundle).flatten().copied().collect();
            assert_eq!(octets.len(), bundle.octets);
            let datagrams: Vec<Vec<u8>> = octets.chunks(bundle.segment).map(<[u8]>::to_vec).collect();
            assert_eq!(datagrams.len(), bundle.count);
            let singles: Vec<Vec<u8>> = outgoing
                .datagrams(bundle)
                .iter()
                .map(|single| outgoing.pieces(single).flatten().copied().collect())
                .collect();
            assert_eq!(singles, datagrams, "the same one by one");
            let (first, others) = outgoing.first_and_others(bundle);
            assert_eq!((others.count, first.octets + others.octets), (bundle.count - 1, bundle.octets));
            let apart: Vec<u8> =
                outgoing.pieces(&first).chain(outgoing.pieces(&others)).flatten().copied().collect();
            assert!(apart == octets && apart[..first.octets] == datagrams[0], "the same apart");
            sent.messages.push((bundle.to, datagrams));
        }
        outgoing.clear();
        sent.answers.extend(outgoing.answers());
    };
    for frame in frames {
        if outgoing.room().is_none() {
            flush(&mut outgoing);
        }
        let room = outgoing.room().unwrap();
        let length = frame.len().min(room.len());
        room[..length].copy_from_slice(&frame[..length]);
        outgoing.take(length, &outward, &counters);
    }
    flush(&mut outgoing);
    sent.traffic = counters.traffic();
    sent
}

/// What the device of node 2 gets for messages from node 1 (as an address of each family): frames with
/// the header in front.
pub(crate) fn receive(messages: &[(IpAddr, Vec<Vec<u8>>)]) -> (Vec<Vec<u8>>, Traffic) {
    let peers = peers(2);
    let mut view = peers.view();
    let inward = Inward {
        table: view.load(),
        families: BOTH,
        trusting: false,
        virtio: true,
        udp_segments: true,
        mtu: 1472,
    };
    receive_as(messages, &inward)
}

pub(crate) fn receive_as(
    messages: &[(IpAddr, Vec<Vec<u8>>)],
    inward: &Inward<'_>,
) -> (Vec<Vec<u8>>, Traffic) {
    let mut incoming = Incoming::new();
    let counters = Counters::default();
    let mut frames = Vec::new();
    for messages in messages.chunks(crate::incoming::SLOTS) {
        for (slot, (from, datagrams)) in messages.iter().enumerate() {
            let octets = datagrams.concat();
            assert!(octets.len() <= SLOT);
            incoming.room()[slot * SLOT..][..octets.len()].copy_from_slice(&octets);
            let segment = if datagrams.len() > 1 { datagrams[0].len() } else { 0 };
            incoming.take(slot, (octets.len(), segment), *from, inward, &counters);
        }
        incoming.seal();
        for (virtio, packets, length, pieces) in incoming.frames() {
            let octets: Vec<u8> = pieces.flatten().copied().collect();
            assert_eq!(octets.len(), length);
            assert!(packets == 1 || virtio.segments.is_some());
            let mut frame = if inward.virtio { virtio.write().to_vec() } else { Vec::new() };
            frame.extend(octets);
            frames.push(frame);
        }
        incoming.clear();
    }
    (frames, counters.traffic())
}

/// The packet of a frame, without the header in front.
pub(crate) fn packet(frame: &[u8]) -> &[u8] {
    &frame[virtio::LENGTH..]
}
