//! What a pod is told when its packet cannot be carried.
//!
//! Compatibility: "network unreachable" is the original's to the octet: no options, TTL 8, identification
//! zero, and of the offender its IP header and eight octets. The original never says that a packet is
//! too big; a router does (RFC 1191, RFC 8201), and so do we. Neither is said in answer to ICMP errors,
//! fragments but the first, or packets to groups (RFC 1122 §3.2.2); that there is no route is not said
//! to any ICMP of IPv4 either, as in the original.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::checksum::{Sum, pseudo_header};
use crate::packet::{Fragment, Header, ICMP, ICMPV6, IPV4_HEADER, IPV6_HEADER};

/// The original's TTL.
const TTL: u8 = 8;
/// The longest IPv4 header has no room for more; the original answers none such.
const LONGEST_IPV4_HEADER: usize = 60;
/// No more than fits the smallest MTU of IPv6 (RFC 4443 §2.4).
const LONGEST_IPV6: usize = 1280;

/// Why a packet cannot be carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreachable {
    /// No node has its destination.
    NoRoute,
    /// It is larger than this.
    TooBig(u16),
}

/// The answer to a packet, from our own address; none where none is due.
pub(crate) fn answer(
    why: Unreachable,
    packet: &[u8],
    header: &Header,
    own: Option<IpAddr>,
) -> Option<Vec<u8>> {
    let packet = packet.get(..header.length)?;
    if header.fragment == Fragment::Later || is_not_answered(why, packet, header) {
        return None;
    }
    match (header.source, own?) {
        (IpAddr::V4(to), IpAddr::V4(from)) if !to.is_unspecified() && !to.is_multicast() => {
            answer_v4(why, packet, header, from, to)
        }
        (IpAddr::V6(to), IpAddr::V6(from)) if !to.is_unspecified() && !to.is_multicast() => {
            Some(answer_v6(why, packet, from, to))
        }
        _ => None,
    }
}

/// Source and destination of the packet that an answer is about.
pub(crate) fn quoted_ends(answer: &[u8]) -> Option<&[u8]> {
    match answer.first()? >> 4 {
        4 => answer.get(IPV4_HEADER + 8 + 12..IPV4_HEADER + 8 + 20),
        _ => answer.get(IPV6_HEADER + 8 + 8..IPV6_HEADER + 8 + 40),
    }
}

/// Whether a packet is ICMP that gets no answer: an error, or whatever the original leaves unanswered.
fn is_not_answered(why: Unreachable, packet: &[u8], header: &Header) -> bool {
    let kind = packet.get(header.payload).copied().unwrap_or(0);
    match header.protocol {
        // Echo requests and answers may well be too big.
        ICMP if why != Unreachable::NoRoute => !matches!(kind, 0 | 8),
        ICMP => true,
        ICMPV6 => kind < 128,
        _ => false,
    }
}

fn answer_v4(
    why: Unreachable,
    packet: &[u8],
    header: &Header,
    from: Ipv4Addr,
    to: Ipv4Addr,
) -> Option<Vec<u8>> {
    if header.payload >= LONGEST_IPV4_HEADER {
        return None;
    }
    let quoted = &packet[..(header.payload + 8).min(packet.len())];
    let length = IPV4_HEADER + 8 + quoted.len();
    let mut answer = vec![0x45, 0];
    answer.extend((length as u16).to_be_bytes());
    answer.extend([0, 0, 0, 0, TTL, ICMP, 0, 0]);
    answer.extend(from.octets());
    answer.extend(to.octets());
    let checksum = Sum::default().add(&answer).checksum();
    answer[10..12].copy_from_slice(&checksum);
    let (code, mtu) = match why {
        Unreachable::NoRoute => (0, 0),
        Unreachable::TooBig(mtu) => (4, mtu),
    };
    answer.extend([3, code, 0, 0, 0, 0]);
    answer.extend(mtu.to_be_bytes());
    answer.extend_from_slice(quoted);
    let checksum = Sum::default().add(&answer[IPV4_HEADER..]).checksum();
    answer[IPV4_HEADER + 2..IPV4_HEADER + 4].copy_from_slice(&checksum);
    Some(answer)
}

fn answer_v6(why: Unreachable, packet: &[u8], from: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
    let quoted = &packet[..packet.len().min(LONGEST_IPV6 - IPV6_HEADER - 8)];
    let mut answer = vec![0x60, 0, 0, 0];
    answer.extend(((8 + quoted.len()) as u16).to_be_bytes());
    answer.extend([ICMPV6, 64]);
    answer.extend(from.octets());
    answer.extend(to.octets());
    let (kind, value) = match why {
        Unreachable::NoRoute => (1, 0),
        Unreachable::TooBig(mtu) => (2, u32::from(mtu)),
    };
    answer.extend([kind, 0, 0, 0]);
    answer.extend(value.to_be_bytes());
    answer.extend_from_slice(quoted);
    let sum = pseudo_header(from.into(), to.into(), ICMPV6, 8 + quoted.len()).add(&answer[IPV6_HEADER..]);
    answer[IPV6_HEADER + 2..IPV6_HEADER + 4].copy_from_slice(&sum.checksum());
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{header_is_right, sample};

    const A: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 1, 2));
    const B: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 9, 3));
    const OWN: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 1, 0));

    fn asked(packet: &[u8], why: Unreachable, own: IpAddr) -> Option<Vec<u8>> {
        answer(why, packet, &Header::read(packet).unwrap(), Some(own))
    }

    #[test]
    fn no_route_is_said_as_the_original_says_it() {
        let packet = sample::udp(A, B, 7, b"hello, is there anybody?");
        let answer = asked(&packet, Unreachable::NoRoute, OWN).unwrap();
        let header = Header::read(&answer).unwrap();
        assert!(header_is_right(&answer, &header));
        assert_eq!((header.source, header.destination, header.ttl, header.protocol), (OWN, A, 8, ICMP));
        assert_eq!((answer.len(), &answer[4..8]), (20 + 8 + 28, &[0, 0, 0, 0][..]));
        assert_eq!((&answer[20..22], &answer[24..28]), (&[3, 0][..], &[0; 4][..]));
        assert!(Sum::default().add(&answer[20..]).is_right());
        assert_eq!(answer[28..], packet[..28]);
    }

    #[test]
    fn too_big_says_how_big_it_may_be() {
        let packet = sample::udp(A, B, 7, &[0; 1400]);
        let answer = asked(&packet, Unreachable::TooBig(1372), OWN).unwrap();
        assert_eq!(answer[20..22], [3, 4]);
        assert_eq!(answer[26..28], 1372u16.to_be_bytes());
        let [a, b, own] = ["fd00:1::2", "fd00:9::3", "fd00:1::"].map(|ip| ip.parse::<IpAddr>().unwrap());
        let packet = sample::udp(a, b, 7, &[0; 1400]);
        let answer = asked(&packet, Unreachable::TooBig(1300), own).unwrap();
        assert_eq!(answer.len(), 1280);
        assert_eq!((answer[40], &answer[44..48]), (2, &1300u32.to_be_bytes()[..]));
        assert!(pseudo_header(own, a, ICMPV6, 1240).add(&answer[40..]).is_right());
    }

    #[test]
    fn nobody_is_told_about_icmp_or_later_fragments() {
        let ping = sample::ip(A, B, ICMP, 1, &[8, 0, 0, 0, 0, 1, 0, 1]);
        assert_eq!(asked(&ping, Unreachable::NoRoute, OWN), None);
        assert!(asked(&ping, Unreachable::TooBig(1400), OWN).is_some(), "an echo request may be too big");
        let error = sample::ip(A, B, ICMP, 1, &[3, 0, 0, 0, 0, 1, 0, 1]);
        assert_eq!(asked(&error, Unreachable::TooBig(1400), OWN), None);
        let mut packet = sample::udp(A, B, 7, b"hello");
        packet[7] = 3;
        assert_eq!(asked(&packet, Unreachable::NoRoute, OWN), None);
        let packet = sample::udp("0.0.0.0".parse().unwrap(), B, 7, b"hello");
        assert_eq!(asked(&packet, Unreachable::NoRoute, OWN), None);
    }
}
