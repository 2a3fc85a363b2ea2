//! The IP packets of pods: what the data path needs to know of one, and the one thing that every
//! router changes in it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::checksum::{Sum, adjusted};
use crate::counters::Reason;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMPV6: u8 = 58;

/// The shortest IPv4 header.
pub(crate) const IPV4_HEADER: usize = 20;
/// The IPv6 header.
pub(crate) const IPV6_HEADER: usize = 40;

/// What an IP header says, extension headers of IPv6 included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// The protocol of what follows, such as [`TCP`].
    pub(crate) protocol: u8,
    /// Where what follows begins.
    pub(crate) payload: usize,
    /// The length of the whole packet.
    pub(crate) length: usize,
    /// TTL or hop limit.
    pub(crate) ttl: u8,
    pub(crate) fragment: Fragment,
}

/// Which part of a packet it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fragment {
    /// All of it.
    Whole,
    /// The first fragment, which has the header of the protocol above.
    First,
    /// A later one.
    Later,
}

impl Header {
    /// Reads the header of a packet. Octets after the packet's end are nobody's business.
    pub(crate) fn read(packet: &[u8]) -> Result<Header, Reason> {
        match packet.first().map(|octet| octet >> 4) {
            Some(4) => read_ipv4(packet),
            Some(6) => read_ipv6(packet),
            _ => Err(Reason::Malformed),
        }
    }

    pub(crate) fn is_ipv4(&self) -> bool {
        self.source.is_ipv4()
    }
}

fn read_ipv4(packet: &[u8]) -> Result<Header, Reason> {
    let Some(header) = packet.first_chunk::<IPV4_HEADER>() else { return Err(Reason::Malformed) };
    let payload = usize::from(header[0] & 15) * 4;
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if payload < IPV4_HEADER || length < payload {
        return Err(Reason::Malformed);
    }
    if length > packet.len() {
        return Err(Reason::Truncated);
    }
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    Ok(Header {
        source: Ipv4Addr::new(header[12], header[13], header[14], header[15]).into(),
        destination: Ipv4Addr::new(header[16], header[17], header[18], header[19]).into(),
        protocol: header[9],
        payload,
        length,
        ttl: header[8],
        fragment: Fragment::of(fragment & 0x1fff, fragment & 0x2000 != 0),
    })
}

fn read_ipv6(packet: &[u8]) -> Result<Header, Reason> {
    let Some(header) = packet.first_chunk::<IPV6_HEADER>() else { return Err(Reason::Malformed) };
    let length = IPV6_HEADER + usize::from(u16::from_be_bytes([header[4], header[5]]));
    if length > packet.len() {
        return Err(Reason::Truncated);
    }
    let address = |at: usize| {
        let octets: [u8; 16] = std::array::from_fn(|i| header[at + i]);
        IpAddr::V6(Ipv6Addr::from(octets))
    };
    let (protocol, payload, fragment) = upper_layer(&packet[..length], header[6])?;
    Ok(Header {
        source: address(8),
        destination: address(24),
        protocol,
        payload,
        length,
        ttl: header[7],
        fragment,
    })
}

/// Goes through the extension headers (RFC 8200 §4) to what they are in front of.
fn upper_layer(packet: &[u8], first: u8) -> Result<(u8, usize, Fragment), Reason> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const DESTINATION: u8 = 60;
    // Nobody sends as many; what is behind more is not looked at, which only costs it offloads.
    const MOST: usize = 8;
    let (mut next, mut at, mut fragment) = (first, IPV6_HEADER, Fragment::Whole);
    for _ in 0..MOST {
        if !matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION) || fragment == Fragment::Later {
            break;
        }
        let header = packet.get(at..at + 8).ok_or(Reason::Truncated)?;
        let length = if next == FRAGMENT {
            let field = u16::from_be_bytes([header[2], header[3]]);
            fragment = Fragment::of(field >> 3, field & 1 != 0);
            8
        } else {
            8 + 8 * usize::from(header[1])
        };
        (next, at) = (header[0], at + length);
        if at > packet.len() {
            return Err(Reason::Truncated);
        }
    }
    Ok((next, at, fragment))
}

impl Fragment {
    fn of(offset: u16, more: bool) -> Fragment {
        match (offset, more) {
            (0, false) => Fragment::Whole,
            (0, true) => Fragment::First,
            _ => Fragment::Later,
        }
    }
}

/// Whether the checksum of an IPv4 header is right; IPv6 has none.
pub(crate) fn header_is_right(packet: &[u8], header: &Header) -> bool {
    !header.is_ipv4() || Sum::default().add(&packet[..header.payload]).is_right()
}

/// Takes one off the TTL or hop limit, which is not zero.
pub(crate) fn hop(packet: &mut [u8], header: &Header) {
    if !header.is_ipv4() {
        packet[7] -= 1;
        return;
    }
    let before = [packet[8], packet[9]];
    packet[8] -= 1;
    let checksum = adjusted([packet[10], packet[11]], before, [packet[8], packet[9]]);
    packet[10..12].copy_from_slice(&checksum);
}

/// Whether a packet may go to one host alone.
pub(crate) fn is_unicast(destination: IpAddr) -> bool {
    match destination {
        IpAddr::V4(ip) => !ip.is_multicast() && !ip.is_broadcast(),
        IpAddr::V6(ip) => !ip.is_multicast(),
    }
}

/// Packets for tests.
#[cfg(test)]
pub(crate) mod sample {
    use super::*;
    use crate::checksum::pseudo_header;

    /// An IP packet around a payload, with right header checksum, TTL 64 and DF where IPv4 has it.
    pub(crate) fn ip(source: IpAddr, destination: IpAddr, protocol: u8, id: u16, payload: &[u8]) -> Vec<u8> {
        let mut packet = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header = vec![0x45, 0];
                header.extend(((IPV4_HEADER + payload.len()) as u16).to_be_bytes());
                header.extend(id.to_be_bytes());
                header.extend([0x40, 0, 64, protocol, 0, 0]);
                header.extend(source.octets());
                header.extend(destination.octets());
                let checksum = Sum::default().add(&header).checksum();
                header[10..12].copy_from_slice(&checksum);
                header
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut header = vec![0x60, 0, 0, 0];
                header.extend((payload.len() as u16).to_be_bytes());
                header.extend([protocol, 64]);
                header.extend(source.octets());
                header.extend(destination.octets());
                header
            }
            _ => panic!("two families in one packet"),
        };
        packet.extend_from_slice(payload);
        packet
    }

    /// A TCP segment with a time stamp option and a right checksum.
    pub(crate) fn tcp(
        source: IpAddr,
        destination: IpAddr,
        id: u16,
        seq: u32,
        flags: u8,
        data: &[u8],
    ) -> Vec<u8> {
        let mut segment = Vec::new();
        segment.extend(40000u16.to_be_bytes());
        segment.extend(5201u16.to_be_bytes());
        segment.extend(seq.to_be_bytes());
        segment.extend(77u32.to_be_bytes());
        segment.extend([0x80, flags, 0x01, 0xf5, 0, 0, 0, 0]);
        segment.extend([1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 8]);
        segment.extend_from_slice(data);
        let sum = pseudo_header(source, destination, TCP, segment.len()).add(&segment);
        segment[16..18].copy_from_slice(&sum.checksum());
        ip(source, destination, TCP, id, &segment)
    }

    /// A UDP datagram with a right checksum.
    pub(crate) fn udp(source: IpAddr, destination: IpAddr, id: u16, data: &[u8]) -> Vec<u8> {
        let mut datagram = Vec::new();
        datagram.extend(40000u16.to_be_bytes());
        datagram.extend(5201u16.to_be_bytes());
        datagram.extend(((8 + data.len()) as u16).to_be_bytes());
        datagram.extend([0, 0]);
        datagram.extend_from_slice(data);
        let sum = pseudo_header(source, destination, UDP, datagram.len()).add(&datagram);
        datagram[6..8].copy_from_slice(&sum.nonzero_checksum());
        ip(source, destination, UDP, id, &datagram)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 1, 2));
    const B: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 2, 3));
    const A6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 2));
    const B6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 3));

    #[test]
    fn both_families_are_read_and_padding_is_left_out() {
        for (a, b, payload) in [(A, B, 20), (A6, B6, 40)] {
            let mut packet = sample::udp(a, b, 1, b"hello");
            let length = packet.len();
            packet.extend([0; 9]);
            let header = Header::read(&packet).unwrap();
            let want = Header {
                source: a,
                destination: b,
                protocol: UDP,
                payload,
                length,
                ttl: 64,
                fragment: Fragment::Whole,
            };
            assert_eq!(header, want);
            assert!(header_is_right(&packet, &header));
            hop(&mut packet, &header);
            assert_eq!(Header::read(&packet).unwrap().ttl, 63);
            assert!(header_is_right(&packet, &header));
        }
    }

    #[test]
    fn what_is_cut_short_or_no_ip_is_told_apart() {
        let packet = sample::udp(A, B, 1, b"hello");
        assert_eq!(Header::read(&packet[..packet.len() - 1]), Err(Reason::Truncated));
        assert_eq!(Header::read(&packet[..19]), Err(Reason::Malformed));
        assert_eq!(Header::read(&[]), Err(Reason::Malformed));
        let mut other = packet.clone();
        other[0] = 0x55;
        assert_eq!(Header::read(&other), Err(Reason::Malformed), "version 5");
        other[0] = 0x44;
        assert_eq!(Header::read(&other), Err(Reason::Malformed), "a header of 16 octets");
        other[0] = 0x45;
        other[2..4].copy_from_slice(&[0, 19]);
        assert_eq!(Header::read(&other), Err(Reason::Malformed), "shorter than its header");
        let packet = sample::udp(A6, B6, 1, b"hello");
        assert_eq!(Header::read(&packet[..packet.len() - 1]), Err(Reason::Truncated));
    }

    #[test]
    fn fragments_are_seen_in_both_families() {
        let mut packet = sample::udp(A, B, 1, b"hello");
        packet[6..8].copy_from_slice(&[0x20, 0]);
        assert_eq!(Header::read(&packet).unwrap().fragment, Fragment::First);
        packet[6..8].copy_from_slice(&[0x00, 9]);
        assert_eq!(Header::read(&packet).unwrap().fragment, Fragment::Later);
        let extension = |field: [u8; 2]| {
            let mut payload = vec![UDP, 0, field[0], field[1], 0, 0, 0, 1];
            payload.extend([0; 8]);
            Header::read(&sample::ip(A6, B6, 44, 0, &payload)).unwrap()
        };
        assert_eq!(extension([0, 1]).fragment, Fragment::First);
        assert_eq!(extension([0, 8]).fragment, Fragment::Later);
        let whole = extension([0, 0]);
        assert_eq!((whole.fragment, whole.protocol, whole.payload), (Fragment::Whole, UDP, 48));
    }

    proptest! {
        #[test]
        fn no_octets_make_it_panic(mut octets in proptest::collection::vec(any::<u8>(), 0..200), version in prop::sample::select(vec![0x45u8, 0x60, 0x4f])) {
            if let Some(first) = octets.first_mut() {
                *first = version;
            }
            if let Ok(header) = Header::read(&octets) {
                prop_assert!(header.payload <= header.length && header.length <= octets.len());
                if header.ttl > 0 {
                    header_is_right(&octets, &header);
                    hop(&mut octets, &header);
                }
            }
        }
    }
}
