use super::*;
use crate::packet::{Fragment, header_is_right, sample};
use crate::rig::{self, BOTH, frame, node, pod, send, send_as};

fn is_right(packet: &[u8]) -> bool {
    let header = Header::read(packet).unwrap();
    let upper = &packet[header.payload..header.length];
    header.length == packet.len()
        && header_is_right(packet, &header)
        && pseudo_header(header.source, header.destination, header.protocol, upper.len())
            .add(upper)
            .is_right()
}

fn payload(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 % 251) as u8).collect()
}

#[test]
fn a_stream_is_cut_as_its_sender_would_have() {
    const ACK_PSH_FIN_CWR: u8 = 0x10 | 0x08 | 0x01 | 0x80;
    for ipv4 in [true, false] {
        let (a, b) = (pod(1, 2, ipv4), pod(2, 3, ipv4));
        let data = payload(2 * 1420 + 99);
        let sent = send(&[frame(sample::tcp(a, b, 0xffff, 0xffff_ff00, ACK_PSH_FIN_CWR, &data), 1420)], true);
        let datagrams = sent.datagrams();
        assert_eq!(sent.messages.len(), 1, "one call");
        assert_eq!(sent.messages[0].0, node(2, ipv4));
        assert_eq!(datagrams.len(), 3);
        let headers = if ipv4 { 52 } else { 72 };
        let lengths: Vec<usize> = datagrams.iter().map(Vec::len).collect();
        assert_eq!(lengths, [1420 + headers, 1420 + headers, 99 + headers]);
        let mut together = Vec::new();
        for (at, datagram) in datagrams.iter().enumerate() {
            assert!(is_right(datagram), "datagram {at}");
            let header = Header::read(datagram).unwrap();
            assert_eq!(header.ttl, 63);
            let tcp = &datagram[header.payload..];
            let sequence = u32::from_be_bytes(tcp[4..8].try_into().unwrap());
            assert_eq!(sequence, 0xffff_ff00u32.wrapping_add(at as u32 * 1420));
            let flags = [0x10 | 0x80, 0x10, 0x10 | 0x08 | 0x01][at];
            assert_eq!(tcp[13], flags, "datagram {at}");
            if ipv4 {
                assert_eq!(u16::from_be_bytes([datagram[4], datagram[5]]), 0xffffu16.wrapping_add(at as u16));
            }
            together.extend_from_slice(&tcp[32..]);
        }
        assert_eq!(together, data);
    }
}

#[test]
fn datagrams_of_one_send_are_cut_apart_with_a_header_each() {
    for ipv4 in [true, false] {
        let packet = sample::udp(pod(1, 2, ipv4), pod(2, 3, ipv4), 5, &payload(3 * 1000));
        let datagrams = send(&[frame(packet, 1000)], true).datagrams();
        assert_eq!(datagrams.len(), 3);
        assert!(datagrams.iter().all(|datagram| is_right(datagram)));
    }
}

#[test]
fn what_goes_to_one_node_is_gathered_as_long_as_the_sizes_fit() {
    let to = |node, length| frame(sample::udp(pod(1, 2, true), pod(node, 3, true), 5, &payload(length)), 0);
    let frames = [to(2, 500), to(2, 500), to(2, 100), to(2, 500), to(3, 500), to(3, 600), to(2, 500)];
    let sent = send(&frames, true);
    let calls: Vec<(IpAddr, usize)> = sent.messages.iter().map(|(to, all)| (*to, all.len())).collect();
    let [two, three] = [node(2, true), node(3, true)];
    assert_eq!(calls, [(two, 3), (two, 1), (three, 1), (three, 1), (two, 1)]);
    assert_eq!(send(&frames, false).messages.len(), frames.len(), "one by one");
}

#[test]
fn the_kernels_limits_are_kept() {
    let small: Vec<Vec<u8>> =
        (0..100).map(|id| frame(sample::udp(pod(1, 2, true), pod(2, 3, true), id, b"x"), 0)).collect();
    let counts: Vec<usize> = send(&small, true).messages.iter().map(|(_, all)| all.len()).collect();
    assert_eq!(counts, [64, 36]);
    let large = sample::tcp(pod(1, 2, true), pod(2, 3, true), 1, 1, 0x10, &payload(65_000));
    for (_, datagrams) in send(&[frame(large, 1400)], true).messages {
        assert!(datagrams.iter().map(Vec::len).sum::<usize>() <= MOST_OCTETS);
    }
}

#[test]
fn a_checksum_that_was_left_to_us_is_completed() {
    for ipv4 in [true, false] {
        let (a, b) = (pod(1, 2, ipv4), pod(2, 3, ipv4));
        for packet in [sample::udp(a, b, 1, b"hello"), sample::tcp(a, b, 1, 1, 2, b"")] {
            assert!(is_right(&send(&[frame(packet, 0)], true).datagrams()[0]));
        }
    }
}

#[test]
fn a_checksum_that_comes_out_as_zero_is_written_as_its_other_zero() {
    let (a, b) = (pod(1, 2, true), pod(2, 3, true));
    let mut data = [0u8; 4];
    for number in 0..=u16::MAX {
        data[..2].copy_from_slice(&number.to_be_bytes());
        let datagram = sample::udp(a, b, 1, &data);
        if datagram[26..28] == [0xff, 0xff] {
            let whole = frame(datagram, 0);
            assert_eq!(send(std::slice::from_ref(&whole), true).datagrams()[0][26..28], [0xff, 0xff]);
            // The same in another packet, whose protocol says nothing of it.
            let (virtio, inner) = whole.split_at(crate::virtio::LENGTH);
            let (start, place) = Virtio::read(virtio.first_chunk().unwrap()).unwrap().checksum.unwrap();
            let mut outer = Virtio { checksum: Some((start + 20, place)), segments: None }.write().to_vec();
            outer.extend(sample::ip(a, b, 4, 1, inner));
            assert_eq!(send(&[outer], true).datagrams()[0][46..48], [0xff, 0xff]);
            return;
        }
    }
    panic!("one number in 65536 has this checksum");
}

#[test]
fn every_reason_to_drop_is_counted() {
    let (a, b) = (pod(1, 2, true), pod(2, 3, true));
    let good = || sample::udp(a, b, 1, b"hello");
    let dropped = |packet: Vec<u8>| {
        let mut frame = vec![0; crate::virtio::LENGTH];
        frame.extend(packet);
        let sent = send(&[frame], true);
        assert!(sent.messages.is_empty(), "nothing is sent");
        let mut reasons = sent.traffic.drops().filter(|(_, count)| *count > 0);
        let reason = reasons.next().map(|(reason, _)| reason);
        assert_eq!(reasons.next(), None);
        (reason.unwrap(), sent.answers.len())
    };
    let with = |at: usize, octet: u8| {
        let mut packet = good();
        packet[at] = octet;
        packet
    };
    assert_eq!(dropped(vec![]), (Reason::Malformed, 0));
    assert_eq!(dropped(with(0, 0x75)), (Reason::Malformed, 0));
    assert_eq!(dropped(good()[..30].to_vec()), (Reason::Truncated, 0));
    assert_eq!(dropped(with(8, 1)), (Reason::TtlExpired, 0), "and nobody is told, as in the original");
    assert_eq!(dropped(with(8, 0)), (Reason::TtlExpired, 0));
    assert_eq!(dropped(with(16, 224)), (Reason::Multicast, 0));
    assert_eq!(dropped(sample::udp(a, pod(9, 1, true), 1, b"x")), (Reason::NoRoute, 1));
    assert_eq!(dropped(sample::udp(a, pod(1, 9, true), 1, b"x")), (Reason::NoRoute, 1), "our own subnet");
    let short = send(&[vec![0; 5]], true);
    assert_eq!(short.traffic.dropped(Reason::Malformed), 1, "shorter than the header in front");
    let mut beyond = frame(good(), 0);
    beyond[6..8].copy_from_slice(&60_000u16.to_ne_bytes());
    assert_eq!(send(&[beyond], true).traffic.dropped(Reason::Malformed), 1, "a checksum outside the packet");
}

#[test]
fn ipv6_of_the_kernels_own_is_no_business_of_an_ipv4_network() {
    let table = rig::peers(1);
    let families = crate::outgoing::Families { ipv6: false, ..BOTH };
    let mut view = table.view();
    let outward = Outward { table: view.load(), families, virtio: true, segmentation: true };
    let solicitation =
        frame(sample::ip("fe80::1".parse().unwrap(), "ff02::2".parse().unwrap(), 58, 0, &[133, 0, 0, 0]), 0);
    let sent = send_as(&[solicitation], outward);
    assert_eq!((sent.traffic.dropped(Reason::FamilyOff), sent.answers.len()), (1, 0));
}

#[test]
fn a_packet_that_does_not_fit_the_path_is_answered_or_may_be_cut() {
    let (a, b) = (pod(1, 2, true), pod(2, 3, true));
    let mut outgoing = Outgoing::new();
    let peers = rig::peers(1);
    let mut view = peers.view();
    let outward = Outward { table: view.load(), families: BOTH, virtio: true, segmentation: true };
    let mut with_fragments = sample::udp(a, b, 1, &payload(1400));
    with_fragments[6] = 0;
    for packet in [frame(sample::tcp(a, b, 1, 1, 0x10, &payload(3000)), 1400), frame(with_fragments, 0)] {
        outgoing.room().unwrap()[..packet.len()].copy_from_slice(&packet);
        outgoing.take(packet.len(), &outward, &Counters::default());
    }
    let bundles = outgoing.bundles().to_vec();
    let datagrams: Vec<Bundle> = bundles.iter().flat_map(|bundle| outgoing.datagrams(bundle)).collect();
    let large = datagrams.iter().filter(|datagram| datagram.octets > 1372);
    let told: Vec<TooBig> = large.map(|datagram| outgoing.too_big(datagram, 1372, outward.table)).collect();
    assert_eq!(told, [TooBig::Told, TooBig::Told, TooBig::MayBeFragmented]);
    let answers: Vec<Vec<u8>> = outgoing.answers().collect();
    assert_eq!(answers.len(), 1, "one answer for the packets of one stream");
    assert_eq!((&answers[0][20..22], &answers[0][26..28]), (&[3, 4][..], &1372u16.to_be_bytes()[..]));
}

/// What is made of packets to `ends` when the path carries `path` octets, and the answers.
fn too_big(packets: Vec<Vec<u8>>, path: usize) -> (Vec<TooBig>, Vec<Vec<u8>>) {
    let mut outgoing = Outgoing::new();
    let peers = rig::peers(1);
    let mut view = peers.view();
    let outward = Outward { table: view.load(), families: BOTH, virtio: true, segmentation: true };
    for packet in packets.into_iter().map(|packet| frame(packet, 0)) {
        outgoing.room().unwrap()[..packet.len()].copy_from_slice(&packet);
        outgoing.take(packet.len(), &outward, &Counters::default());
    }
    let bundles = outgoing.bundles().to_vec();
    let datagrams: Vec<Bundle> = bundles.iter().flat_map(|bundle| outgoing.datagrams(bundle)).collect();
    let told = datagrams.iter().map(|datagram| outgoing.too_big(datagram, path, outward.table)).collect();
    (told, outgoing.answers().collect())
}

#[test]
fn each_destination_that_takes_less_is_named() {
    for ipv4 in [true, false] {
        let to = |node, n| sample::udp(pod(1, 2, ipv4), pod(node, n, ipv4), 5, &payload(1400));
        let (told, answers) = too_big(vec![to(2, 3), to(2, 3), to(2, 4), to(3, 3)], 1372);
        assert_eq!(told, [TooBig::Told; 4]);
        assert_eq!(answers.len(), 3, "the second packet asks what the first one asked");
    }
}

/// A path of 1280 octets is the narrowest that there may be, and 48 less is left in it.
#[test]
fn the_smallest_mtu_of_ipv6_is_carried_over_every_path() {
    let of = |length: usize| sample::udp(pod(1, 2, false), pod(2, 3, false), 5, &payload(length - 48));
    let (told, answers) = too_big(vec![of(1280), of(1281)], 1232);
    assert_eq!(told, [TooBig::MayBeFragmented, TooBig::Told]);
    assert_eq!(answers[0][44..48], 1280u32.to_be_bytes(), "less would not be believed");
}

#[test]
fn fragments_are_carried_as_they_are() {
    let mut packet = sample::udp(pod(1, 2, true), pod(2, 3, true), 5, &payload(100));
    packet[6..8].copy_from_slice(&[0x20, 0x10]);
    let header = packet::Header::read(&packet).unwrap();
    assert_eq!(header.fragment, Fragment::Later);
    let mut frame = vec![0; crate::virtio::LENGTH];
    frame.extend(&packet);
    let sent = send(&[frame], true).datagrams();
    assert_eq!(sent[0][20..], packet[20..]);
}
