//! What the fuzzer drives (`make fuzz`): any octets through both halves of the data path, back and
//! forth, with all that must hold whatever they are.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fabric::lease::Subnets;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::checksum::{Sum, pseudo_header};
use crate::counters::Counters;
use crate::incoming::{Incoming, Inward, SLOT, SLOTS};
use crate::outgoing::{Bundle, Families, Outgoing, Outward};
use crate::packet::{Header, TCP, UDP, header_is_right};
use crate::peers::Peers;

/// What a message is made of: its length, the size of its datagrams, and whether it is mended.
const HEAD: usize = 4;

/// Takes the first octet as options and the rest as messages of another node, each with two octets of
/// length, one of datagram size and one that says whether to mend them.
pub fn packets(data: &[u8]) {
    let Some((options, mut rest)) = data.split_first() else { return };
    let on = |bit: u8| options & (1 << bit) != 0;
    let subnet = |node: u8| {
        let ipv4 = Ipv4Net::new_assert(Ipv4Addr::new(10, 244, node, 0), 24);
        let ipv6 = Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, node.into(), 0, 0, 0, 0, 0, 0), 64);
        Subnets { ipv4: Some(ipv4), ipv6: Some(ipv6) }
    };
    let node = |net: IpNet| match net {
        IpNet::V4(_) => IpAddr::V4(Ipv4Addr::new(192, 168, 0, 2)),
        IpNet::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    let peers = Peers::default();
    peers.replace(subnet(1), subnet(2).iter().map(|net| (net, node(net))));
    let mut view = peers.view();
    let table = view.load();
    let families = Families { ipv4: true, ipv6: on(0) };
    let inward = Inward { table, families, trusting: on(1), virtio: on(2), udp_segments: on(3), mtu: 1472 };
    let outward = Outward { table, families, virtio: on(2), segmentation: on(4) };

    let mut incoming = Incoming::new();
    let counters = Counters::default();
    let (mut slot, mut taken) = (0, 0);
    while let Some((head, after)) = rest.split_first_chunk::<HEAD>().filter(|_| slot < SLOTS) {
        let length = usize::from(u16::from_le_bytes([head[0], head[1]])).min(after.len()).min(SLOT);
        let (message, after) = after.split_at(length);
        rest = after;
        let mut octets = message.to_vec();
        let segment = usize::from(head[2]) * 8;
        if head[3] & 1 != 0 && length > 0 {
            octets.chunks_mut(if segment == 0 { length } else { segment }).for_each(mend);
        }
        incoming.room()[slot * SLOT..][..length].copy_from_slice(&octets);
        let from = node(if on(5) {
            subnet(2).ipv6.expect("just made").into()
        } else {
            subnet(2).ipv4.expect("just made").into()
        });
        incoming.take(slot, (length, segment), from, &inward, &counters);
        taken += if segment == 0 { 1 } else { length.div_ceil(segment).max(1) };
        slot += 1;
    }
    incoming.seal();
    let dropped: u64 = counters.traffic().drops().map(|(_, count)| count).sum();
    let passed: usize = incoming.frames().map(|(_, packets, ..)| packets).sum();
    assert_eq!(passed as u64 + dropped, taken as u64, "each datagram is passed on or counted");
    let mut outgoing = Outgoing::new();
    let mut frames = vec![data.to_vec()];
    for (virtio, packets, length, pieces) in incoming.frames() {
        let mut octets: Vec<u8> = pieces.flatten().copied().collect();
        assert_eq!(octets.len(), length);
        assert!(packets == 1 || virtio.segments.is_some());
        let header = Header::read(&octets).expect("what is passed on can be read");
        assert_eq!(header.length, length);
        // Back to where it came from, as if a pod had answered with the same.
        aim(&mut octets, 2);
        let mut frame = if outward.virtio { virtio.write().to_vec() } else { Vec::new() };
        frame.extend(octets);
        if packets > 1 && header.ttl > 1 {
            comes_apart(&frame, packets, &mut outgoing, &outward);
        }
        frames.push(frame);
    }
    send(&frames, &mut outgoing, &outward);
}

/// What was put together of so many packets is cut into as many, with right checksums.
fn comes_apart(frame: &[u8], packets: usize, outgoing: &mut Outgoing, outward: &Outward<'_>) {
    outgoing.room().expect("it is empty")[..frame.len()].copy_from_slice(frame);
    outgoing.take(frame.len(), outward, &Counters::default());
    let mut count = 0;
    for bundle in outgoing.bundles() {
        for datagram in outgoing.datagrams(bundle) {
            let packet: Vec<u8> = outgoing.pieces(&datagram).flatten().copied().collect();
            let header = Header::read(&packet).expect("what was cut can be read");
            let upper = &packet[header.payload..];
            let pseudo = pseudo_header(header.source, header.destination, header.protocol, upper.len());
            assert!(header_is_right(&packet, &header) && pseudo.add(upper).is_right());
            count += 1;
        }
    }
    assert_eq!(count, packets);
    outgoing.clear();
}

fn send(frames: &[Vec<u8>], outgoing: &mut Outgoing, outward: &Outward<'_>) {
    let counters = Counters::default();
    for frame in frames {
        let Some(room) = outgoing.room() else { break };
        let length = frame.len().min(room.len());
        room[..length].copy_from_slice(&frame[..length]);
        outgoing.take(length, outward, &counters);
    }
    for bundle in outgoing.bundles().to_vec() {
        let octets: Vec<u8> = outgoing.pieces(&bundle).flatten().copied().collect();
        assert_eq!(octets.len(), bundle.octets);
        let singles: Vec<Bundle> = outgoing.datagrams(&bundle);
        assert_eq!(singles.len(), bundle.count);
        assert_eq!(singles.len(), octets.len().div_ceil(bundle.segment));
        for single in &singles {
            outgoing.too_big(single, 1300, outward.table);
        }
    }
    assert!(outgoing.answers().all(|answer| answer.len() <= 1280));
}

/// Sends a packet to a pod of a node.
fn aim(packet: &mut [u8], to: u8) {
    match packet.first().map(|octet| octet >> 4) {
        Some(4) if packet.len() >= 20 => packet[16..19].copy_from_slice(&[10, 244, to]),
        Some(6) if packet.len() >= 40 => packet[24..32].copy_from_slice(&[0xfd, 0, 0, to, 0, 0, 0, 0]),
        _ => {}
    }
}

/// Makes of octets what gets past the first looks: from a pod of the other node to one of ours, with
/// right lengths and checksums, whatever else is in it.
fn mend(packet: &mut [u8]) {
    let length = packet.len();
    match packet.first().map(|octet| octet >> 4) {
        Some(4) if length >= 20 => {
            packet[0] = 0x45;
            packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            packet[8] |= 2;
            packet[12..15].copy_from_slice(&[10, 244, 2]);
            aim(packet, 1);
            packet[10..12].fill(0);
            let checksum = Sum::default().add(&packet[..20]).checksum();
            packet[10..12].copy_from_slice(&checksum);
        }
        Some(6) if length >= 40 => {
            packet[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
            packet[7] |= 2;
            packet[8..16].copy_from_slice(&[0xfd, 0, 0, 2, 0, 0, 0, 0]);
            aim(packet, 1);
        }
        _ => return,
    }
    let Ok(header) = Header::read(packet) else { return };
    let upper = &mut packet[header.payload..];
    let place = match header.protocol {
        TCP if upper.len() >= 20 => 16,
        UDP if upper.len() >= 8 => {
            let length = (upper.len() as u16).to_be_bytes();
            upper[4..6].copy_from_slice(&length);
            6
        }
        _ => return,
    };
    upper[place..place + 2].fill(0);
    let pseudo = pseudo_header(header.source, header.destination, header.protocol, upper.len());
    let checksum = pseudo.add(upper).nonzero_checksum();
    upper[place..place + 2].copy_from_slice(&checksum);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The fuzzer's own target on what comes to proptest's mind: it must build and hold.
        #[test]
        fn what_is_to_hold_holds(data in proptest::collection::vec(any::<u8>(), 0..600), messages in proptest::collection::vec((0u8..3, 20usize..120), 0..6)) {
            packets(&data);
            let mut made = vec![0xff];
            for (kind, length) in messages {
                made.extend((length as u16).to_le_bytes());
                made.extend([0, 1]);
                let mut packet: Vec<u8> = data.iter().copied().cycle().take(length).collect();
                packet.resize(length, 7);
                packet[0] = if kind == 0 { 0x60 } else { 0x45 };
                let protocol = if kind == 0 { 6 } else { 9 };
                packet[protocol] = if kind == 1 { TCP } else { UDP };
                made.extend(packet);
            }
            packets(&made);
        }

        /// Messages of many like datagrams, most of which are put together.
        #[test]
        fn what_belongs_together_comes_apart_again(ipv6: bool, size in 7u8..130, count in 1usize..60, octet: u8) {
            let mut made = vec![if ipv6 { 0xff } else { 0xdf }];
            made.extend(((usize::from(size) * 8 * count) as u16).to_le_bytes());
            made.extend([size, 1]);
            for _ in 0..count {
                let mut packet = vec![octet; usize::from(size) * 8];
                packet[0] = if ipv6 { 0x60 } else { 0x45 };
                packet[if ipv6 { 6 } else { 9 }] = UDP;
                if !ipv6 {
                    packet[6..8].copy_from_slice(&[0x40, 0]);
                }
                made.extend(packet);
            }
            packets(&made);
        }
    }
}
