use proptest::prelude::*;

use super::*;
use crate::outgoing::Outward;
use crate::packet::{ICMP, sample};
use crate::rig::{BOTH, frame, node, packet, peers, pod, receive, receive_as, send_as};

const ACKED: u8 = 0x10;

fn tcp(ipv4: bool, from: u8, id: u16, seq: u32, flags: u8, data: &[u8]) -> Vec<u8> {
    sample::tcp(pod(1, from, ipv4), pod(2, 3, ipv4), id, seq, flags, data)
}

fn one(datagram: Vec<u8>) -> Vec<(IpAddr, Vec<Vec<u8>>)> {
    let ipv4 = datagram[0] >> 4 == 4;
    vec![(node(1, ipv4), vec![datagram])]
}

#[test]
fn segments_without_a_gap_become_one() {
    for ipv4 in [true, false] {
        let data = |octet: u8, length| vec![octet; length];
        let segments = vec![
            tcp(ipv4, 2, 7, 1000, ACKED, &data(1, 500)),
            tcp(ipv4, 2, 8, 1500, ACKED, &data(2, 500)),
            tcp(ipv4, 2, 9, 2000, ACKED | PSH, &data(3, 500)),
        ];
        let (frames, traffic) = receive(&[(node(1, ipv4), segments)]);
        assert_eq!(frames.len(), 1);
        let virtio = Virtio::read(frames[0].first_chunk().unwrap()).unwrap();
        let segments = virtio.segments.unwrap();
        let kind = if ipv4 { SegmentKind::TcpV4 } else { SegmentKind::TcpV6 };
        assert_eq!((segments.kind, segments.size), (kind, 500));
        let header = Header::read(packet(&frames[0])).unwrap();
        assert_eq!((header.ttl, header.length), (63, header.payload + 32 + 1500));
        assert_eq!(packet(&frames[0])[header.payload + 13], ACKED | PSH);
        assert!(traffic.drops().all(|(_, count)| count == 0));
    }
}

#[test]
fn what_would_not_come_apart_the_same_stays_apart() {
    let data = [5; 300];
    let first = || tcp(true, 2, 7, 1000, ACKED, &data);
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut packet = tcp(true, 2, 8, 1300, ACKED, &data);
        change(&mut packet);
        // Make the checksums right again.
        let header = Header::read(&packet).unwrap();
        packet[10..12].fill(0);
        let checksum = Sum::default().add(&packet[..20]).checksum();
        packet[10..12].copy_from_slice(&checksum);
        packet[36..38].fill(0);
        let upper = &packet[20..];
        let sum = pseudo_header(header.source, header.destination, TCP, upper.len()).add(upper).checksum();
        packet[36..38].copy_from_slice(&sum);
        packet
    };
    let frames = |second: Vec<u8>| receive(&[(node(1, true), vec![first(), second])]).0.len();
    assert_eq!(frames(changed(&|_| ())), 1);
    assert_eq!(frames(changed(&|packet| packet[27] += 1)), 2, "a gap in the sequence");
    assert_eq!(frames(changed(&|packet| packet[1] = 3)), 2, "congestion was experienced");
    assert_eq!(frames(changed(&|packet| packet[8] = 60)), 2, "another TTL");
    assert_eq!(frames(changed(&|packet| packet[31] += 1)), 2, "another acknowledgement");
    assert_eq!(frames(changed(&|packet| packet[35] += 1)), 2, "another window");
    assert_eq!(frames(changed(&|packet| packet[50] += 1)), 2, "another time stamp");
    assert_eq!(frames(changed(&|packet| packet[33] = ACKED | 0x80)), 2, "CWR");
    assert_eq!(frames(changed(&|packet| packet[6] = 0)), 2, "one may be fragmented");
    let unfragmentable = changed(&|packet| packet[5] = 99);
    assert_eq!(frames(unfragmentable), 1, "with DF the identification means nothing");
    assert_eq!(frames(tcp(true, 4, 8, 1300, ACKED, &data)), 2, "another pod");
}

#[test]
fn a_short_or_pushed_segment_is_the_last() {
    let (long, short) = ([1; 300], [2; 100]);
    let message = |segments: Vec<Vec<u8>>| {
        receive(&segments.into_iter().map(|one| (node(1, true), vec![one])).collect::<Vec<_>>()).0.len()
    };
    let third = || tcp(true, 2, 9, 1400, ACKED, &short);
    assert_eq!(
        message(vec![tcp(true, 2, 7, 1000, ACKED, &long), tcp(true, 2, 8, 1300, ACKED, &short), third()]),
        2
    );
    assert_eq!(
        message(vec![tcp(true, 2, 7, 1000, ACKED | PSH, &long), tcp(true, 2, 8, 1300, ACKED, &long)]),
        2
    );
    assert_eq!(
        message(vec![tcp(true, 2, 7, 1000, ACKED, &short), tcp(true, 2, 8, 1100, ACKED, &long)]),
        2,
        "a longer one"
    );
    assert_eq!(
        message(vec![tcp(true, 2, 7, 1000, ACKED, &[]), tcp(true, 2, 8, 1000, ACKED, &[])]),
        2,
        "no payload"
    );
}

#[test]
fn datagrams_of_one_flow_and_size_become_one_where_the_device_takes_that() {
    for ipv4 in [true, false] {
        let datagram = |id| sample::udp(pod(1, 2, ipv4), pod(2, 3, ipv4), id, &[9; 400]);
        let messages = [(node(1, ipv4), vec![datagram(1), datagram(2), datagram(3)])];
        assert_eq!(receive(&messages).0.len(), 1);
        let table = peers(2);
        let mut view = table.view();
        let inward = Inward {
            table: view.load(),
            families: BOTH,
            trusting: false,
            virtio: true,
            udp_segments: false,
            mtu: 1472,
        };
        assert_eq!(receive_as(&messages, &inward).0.len(), 3);
        let plain = Inward { virtio: false, ..inward };
        let frames = receive_as(&messages, &plain).0;
        assert_eq!(frames.len(), 3);
        assert_eq!(
            frames[0][8..],
            {
                let mut packet = datagram(1);
                let header = Header::read(&packet).unwrap();
                crate::packet::hop(&mut packet, &header);
                packet
            }[8..],
            "the octets of the packet and nothing else"
        );
    }
}

#[test]
fn every_reason_to_drop_is_counted() {
    let (a, b) = (pod(1, 2, true), pod(2, 3, true));
    let good = || sample::udp(a, b, 1, b"hello");
    let dropped = |messages: Vec<(IpAddr, Vec<Vec<u8>>)>| {
        let (frames, traffic) = receive(&messages);
        assert!(frames.is_empty(), "nothing gets through");
        let mut reasons = traffic.drops().filter(|(_, count)| *count > 0);
        let reason = reasons.next();
        assert_eq!(reasons.next(), None);
        reason.unwrap()
    };
    let with = |at: usize, octet: u8, mend: bool| {
        let mut packet = good();
        packet[at] = octet;
        if mend {
            packet[10..12].fill(0);
            let checksum = Sum::default().add(&packet[..20]).checksum();
            packet[10..12].copy_from_slice(&checksum);
        }
        packet
    };
    assert_eq!(dropped(one(vec![0; 3])), (Reason::Malformed, 1));
    assert_eq!(dropped(vec![(node(1, true), vec![vec![]])]), (Reason::Malformed, 1), "an empty datagram");
    assert_eq!(dropped(one(good()[..32].to_vec())), (Reason::Truncated, 1));
    assert_eq!(dropped(one(with(10, 0, false))), (Reason::HeaderChecksum, 1));
    assert_eq!(dropped(one(with(30, 0, false))), (Reason::Checksum, 1));
    assert_eq!(dropped(one(with(8, 1, true))), (Reason::TtlExpired, 1));
    assert_eq!(dropped(vec![(node(3, true), vec![good()])]), (Reason::Spoofed, 1), "of another node's pod");
    let own = sample::udp(pod(2, 9, true), b, 1, b"x");
    assert_eq!(dropped(one(own)), (Reason::Spoofed, 1), "of a pod of ours");
    let stranger = sample::udp("8.8.8.8".parse().unwrap(), b, 1, b"x");
    assert_eq!(dropped(one(stranger)), (Reason::Spoofed, 1));
    let looped = sample::udp(a, pod(1, 7, true), 1, b"x");
    assert_eq!(dropped(one(looped)), (Reason::NotOurs, 1), "it would go back to where it came from");
    let elsewhere = sample::udp(a, pod(3, 7, true), 1, b"x");
    assert_eq!(dropped(one(elsewhere)), (Reason::NotOurs, 1));
    assert_eq!(
        dropped(vec![(node(1, true), vec![good(); 3].iter().map(|_| with(30, 0, false)).collect())]),
        (Reason::Checksum, 3)
    );
}

#[test]
fn with_trust_anything_goes_as_in_the_original() {
    let table = peers(2);
    let mut view = table.view();
    let inward = Inward {
        table: view.load(),
        families: BOTH,
        trusting: true,
        virtio: true,
        udp_segments: true,
        mtu: 1472,
    };
    let stranger = sample::udp("8.8.8.8".parse().unwrap(), "9.9.9.9".parse().unwrap(), 1, b"x");
    assert_eq!(receive_as(&[(node(7, true), vec![stranger])], &inward).0.len(), 1);
}

#[test]
fn what_cannot_be_checked_is_left_to_its_receiver() {
    let (a, b) = (pod(1, 2, true), pod(2, 3, true));
    let mut unchecked = sample::udp(a, b, 1, b"hello");
    unchecked[26..28].fill(0);
    // It looks like a TCP header of 20 octets, with a checksum that is none of these octets alone.
    let mut fragment = sample::ip(a, b, TCP, 1, &[0x55; 64]);
    fragment[6] = 0x20;
    fragment[10..12].fill(0);
    let checksum = Sum::default().add(&fragment[..20]).checksum();
    fragment[10..12].copy_from_slice(&checksum);
    for packet in [unchecked, fragment, sample::ip(a, b, 132, 1, &[1; 64])] {
        let (frames, _) = receive(&one(packet.clone()));
        assert_eq!(frames[0][..10], [0; 10], "nothing is left to do");
        assert_eq!(frames[0][10 + 20..], packet[20..]);
    }
}

/// An unfinished checksum would show in the ICMP errors that quote the packet.
#[test]
fn a_packet_by_itself_is_passed_on_as_it_came() {
    for ipv4 in [true, false] {
        let (a, b) = (pod(1, 2, ipv4), pod(2, 3, ipv4));
        for before in [sample::udp(a, b, 1, b"hello"), sample::tcp(a, b, 1, 1, ACKED, b"hello")] {
            let (frames, _) = receive(&one(before.clone()));
            assert_eq!(frames[0][..10], [0; 10], "nothing is left to do");
            let upper = Header::read(&before).unwrap().payload;
            assert_eq!(packet(&frames[0])[upper..], before[upper..]);
        }
    }
}

#[test]
fn a_node_speaks_for_itself_as_well_as_for_its_pods() {
    for ipv4 in [true, false] {
        let packet = |source| sample::udp(source, pod(2, 3, ipv4), 1, b"x");
        let of_the_host = (node(1, ipv4), vec![packet(node(1, ipv4))]);
        let of_another = (node(1, ipv4), vec![packet(node(3, ipv4))]);
        let (frames, traffic) = receive(&[of_the_host, of_another]);
        assert_eq!((frames.len(), traffic.dropped(Reason::Spoofed)), (1, 1));
    }
}

#[test]
fn larger_packets_than_the_device_has_are_passed_on_and_noted() {
    let datagram = sample::udp(pod(1, 2, true), pod(2, 3, true), 1, &[0; 3000]);
    let (frames, traffic) = receive(&one(datagram));
    assert_eq!((frames.len(), traffic.oversized), (1, 1), "the kernel tells the sender, or cuts it");
}

/// A packet of one of a few flows.
#[derive(Debug, Clone)]
struct Next {
    flow: u8,
    length: usize,
    flags: u8,
    gap: bool,
    id_step: u16,
}

fn next() -> impl Strategy<Value = Next> {
    let flags = prop::sample::select(vec![
        ACKED,
        ACKED,
        ACKED,
        ACKED | PSH,
        ACKED | FIN,
        0x02,
        0x04,
        ACKED | 0x80,
        ACKED | ECE,
    ]);
    let length = prop::sample::select(vec![0usize, 1, 99, 100, 100, 100, 100, 1400]);
    (0u8..8, length, flags, prop::bool::weighted(0.1), prop::sample::select(vec![1u16, 1, 1, 0, 5]))
        .prop_map(|(flow, length, flags, gap, id_step)| Next { flow, length, flags, gap, id_step })
}

/// What was sent, flow by flow in order.
fn packets(all: &[Next]) -> Vec<(u8, Vec<u8>)> {
    let mut sequence = [1000u32; 8];
    let mut id = [0u16; 8];
    all.iter()
        .map(|next| {
            let Next { flow, length, flags, gap, id_step } = next.clone();
            let at = usize::from(flow);
            let ipv4 = flow % 2 == 0;
            id[at] = id[at].wrapping_add(id_step);
            let data = vec![flow + 1; length];
            let (a, b) = (pod(1, 10 + flow / 4, ipv4), pod(2, 3, ipv4));
            let packet = match flow % 4 {
                0 | 1 => {
                    sequence[at] = sequence[at].wrapping_add(if gap { 7 } else { 0 });
                    let packet = sample::tcp(a, b, id[at], sequence[at], flags, &data);
                    sequence[at] = sequence[at].wrapping_add(length as u32);
                    packet
                }
                _ if gap => sample::ip(a, b, ICMP, id[at], &[8; 16]),
                _ => sample::udp(a, b, id[at], &data),
            };
            (flow, packet)
        })
        .collect()
}

/// Two hops on, and without the identification, which means nothing with DF.
fn comparable(mut packet: Vec<u8>, hops: u8) -> Vec<u8> {
    if packet[0] >> 4 == 4 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
        packet[8] -= hops;
    } else {
        packet[7] -= hops;
    }
    packet
}

fn flow_of(packet: &[u8]) -> (IpAddr, u8, bool) {
    let header = Header::read(packet).unwrap();
    (header.source, header.protocol, header.is_ipv4())
}

proptest! {
    /// What is put together and cut apart again is what it was, and no flow is out of order.
    #[test]
    fn joining_and_cutting_changes_nothing(all in proptest::collection::vec(next(), 1..120), per_message in 1usize..40) {
        let sent = packets(&all);
        let mut messages: Vec<(IpAddr, Vec<Vec<u8>>)> = Vec::new();
        for (_, packet) in &sent {
            let from = node(1, packet[0] >> 4 == 4);
            // The kernel puts datagrams of one size and sender together, the last may be shorter.
            match messages.last_mut() {
                Some((last, datagrams))
                    if *last == from && datagrams.len() < per_message
                        && datagrams.last().is_some_and(|last| last.len() == datagrams[0].len())
                        && packet.len() <= datagrams[0].len() => datagrams.push(packet.clone()),
                _ => messages.push((from, vec![packet.clone()])),
            }
        }
        let (frames, traffic) = receive(&messages);
        prop_assert!(traffic.drops().all(|(_, count)| count == 0));
        prop_assert!(frames.len() <= sent.len());
        // Node 2 sends everything on to where it came from, as if its pods had sent it.
        let back = crate::peers::Peers::default();
        back.replace(Default::default(), [("10.244.2.0/24".parse().unwrap(), node(2, true)), ("fd00:2::/64".parse().unwrap(), node(2, false))]);
        let mut view = back.view();
        let outward = Outward { table: view.load(), families: BOTH, virtio: true, segmentation: true };
        let again = send_as(&frames, outward).datagrams();
        prop_assert_eq!(again.len(), sent.len());
        let by_flow = |packets: Vec<Vec<u8>>, hops| {
            let mut flows: std::collections::BTreeMap<_, Vec<Vec<u8>>> = Default::default();
            for packet in packets {
                flows.entry(flow_of(&packet)).or_default().push(comparable(packet, hops));
            }
            flows
        };
        let before = by_flow(sent.into_iter().map(|(_, packet)| packet).collect(), 2);
        prop_assert_eq!(by_flow(again, 0), before);
    }

    /// A whole that is cut and put together is the same whole.
    #[test]
    fn cutting_and_joining_changes_nothing(
        ipv4: bool, udp: bool, data in proptest::collection::vec(any::<u8>(), 1..20_000), size in 400u16..1420, flags in prop::sample::select(vec![ACKED, ACKED | PSH, ACKED | ECE | FIN]), id: u16,
    ) {
        let (a, b) = (pod(1, 2, ipv4), pod(2, 3, ipv4));
        let whole = if udp { sample::udp(a, b, id, &data) } else { sample::tcp(a, b, id, 99, flags, &data) };
        let before = frame(whole.clone(), size);
        // One that needs no cutting goes out complete, and is left so.
        let after = if data.len() > usize::from(size) { packet(&before) } else { &whole };
        let sent = crate::rig::send(std::slice::from_ref(&before), true);
        let messages: Vec<_> = sent.messages.into_iter().map(|(_, datagrams)| (node(1, ipv4), datagrams)).collect();
        let (frames, _) = receive(&messages);
        prop_assert_eq!(frames.len(), 1);
        let identified = |frame: &[u8]| if ipv4 { frame[14..16].to_vec() } else { vec![] };
        prop_assert_eq!(identified(&frames[0]), identified(&before));
        prop_assert_eq!(comparable(packet(&frames[0]).to_vec(), 0), comparable(after.to_vec(), 2));
    }

    /// Whatever comes, nothing panics, and what is passed on is what could be read.
    #[test]
    fn no_octets_make_it_panic(
        mut messages in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..300), 0usize..100), 1..20),
        heads in proptest::collection::vec(any::<bool>(), 20), trusting: bool,
    ) {
        let table = peers(2);
        let mut view = table.view();
        let inward = Inward { table: view.load(), families: BOTH, trusting, virtio: true, udp_segments: true, mtu: 1472 };
        let mut incoming = Incoming::new();
        let counters = Counters::default();
        for (slot, ((octets, segment), head)) in messages.iter_mut().zip(heads).take(crate::incoming::SLOTS).enumerate() {
            if head && octets.len() > 40 {
                // So that it gets further than the first look.
                let good = sample::tcp(pod(1, 2, true), pod(2, 3, true), 1, 1, ACKED, &[]);
                let length = octets.len().min(good.len());
                octets[..length].copy_from_slice(&good[..length]);
            }
            incoming.room()[slot * SLOT..][..octets.len()].copy_from_slice(octets);
            incoming.take(slot, (octets.len(), *segment), node(1, true), &inward, &counters);
        }
        incoming.seal();
        for (_, _, length, pieces) in incoming.frames() {
            prop_assert_eq!(pieces.map(<[u8]>::len).sum::<usize>(), length);
        }
        let frames: Vec<Vec<u8>> = messages.into_iter().map(|(octets, _)| octets).collect();
        crate::rig::send(&frames, true);
    }
}
