//! The header in front of every packet of the device (`struct virtio_net_hdr`): whether a checksum is
//! to be completed, and whether the packet is many in one.
//!
//! Source: virtio 1.2 §5.1.6, `include/uapi/linux/virtio_net.h`; in the machine's own byte order.

/// Its length.
pub(crate) const LENGTH: usize = 10;

const NEEDS_CHECKSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP: u8 = 5;
/// The first segment carries CWR, the others must not.
const GSO_ECN: u8 = 0x80;

/// The header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Virtio {
    /// The checksum to be completed: where what it covers begins, and its place in that.
    pub(crate) checksum: Option<(u16, u16)>,
    /// How the packet is to be cut.
    pub(crate) segments: Option<Segments>,
}

/// Many packets in one: those of one flow, with the payload of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segments {
    pub(crate) kind: SegmentKind,
    /// How much payload each has, the last one perhaps less.
    pub(crate) size: u16,
    /// The length of the headers, IP included.
    pub(crate) headers: u16,
}

/// What is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SegmentKind {
    /// A TCP stream in IPv4.
    TcpV4,
    /// A TCP stream in IPv6.
    TcpV6,
    /// UDP datagrams.
    Udp,
}

impl Virtio {
    /// Reads the header; none for one that means nothing to us.
    pub(crate) fn read(octets: &[u8; LENGTH]) -> Option<Virtio> {
        let number = |at: usize| u16::from_ne_bytes([octets[at], octets[at + 1]]);
        let kind = match octets[1] & !GSO_ECN {
            0 => None,
            GSO_TCPV4 => Some(SegmentKind::TcpV4),
            GSO_TCPV6 => Some(SegmentKind::TcpV6),
            GSO_UDP => Some(SegmentKind::Udp),
            _ => return None,
        };
        Some(Virtio {
            checksum: (octets[0] & NEEDS_CHECKSUM != 0).then(|| (number(6), number(8))),
            segments: kind.map(|kind| Segments { kind, size: number(4), headers: number(2) }),
        })
    }

    /// Writes the header.
    pub(crate) fn write(&self) -> [u8; LENGTH] {
        let mut octets = [0; LENGTH];
        if let Some((start, place)) = self.checksum {
            octets[0] = NEEDS_CHECKSUM;
            octets[6..8].copy_from_slice(&start.to_ne_bytes());
            octets[8..10].copy_from_slice(&place.to_ne_bytes());
        }
        if let Some(Segments { kind, size, headers }) = self.segments {
            octets[1] = match kind {
                SegmentKind::TcpV4 => GSO_TCPV4,
                SegmentKind::TcpV6 => GSO_TCPV6,
                SegmentKind::Udp => GSO_UDP,
            };
            octets[2..4].copy_from_slice(&headers.to_ne_bytes());
            octets[4..6].copy_from_slice(&size.to_ne_bytes());
        }
        octets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for kind in [SegmentKind::TcpV4, SegmentKind::TcpV6, SegmentKind::Udp] {
            let segments = Some(Segments { kind, size: 1420, headers: 52 });
            let header = Virtio { checksum: Some((20, 16)), segments };
            assert_eq!(Virtio::read(&header.write()), Some(header));
        }
        assert_eq!(Virtio::read(&Virtio::default().write()), Some(Virtio::default()));
    }

    #[test]
    fn what_was_never_asked_for_is_refused() {
        let mut octets = [0; LENGTH];
        octets[1] = 3;
        assert_eq!(Virtio::read(&octets), None, "the UDP fragments of old");
    }
}
