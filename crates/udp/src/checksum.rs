//! The Internet checksum (RFC 1071): the ones' complement sum of 16-bit words.
//!
//! Sums are kept in the machine's own byte order, which the ones' complement sum allows as long as
//! the result is stored in it too: bytes go in and bytes come out, and nothing is swapped.

use std::net::IpAddr;

/// A sum under way. Each part that is added begins at an even octet of what is summed.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sum(u64);

impl Sum {
    /// Adds octets; an odd last one counts as if a zero followed.
    pub(crate) fn add(self, octets: &[u8]) -> Sum {
        Sum(self.0 + words(octets))
    }

    /// Adds a number as it stands in a header.
    pub(crate) fn add_u16(self, number: u16) -> Sum {
        Sum(self.0 + u64::from(number.to_be()))
    }

    /// Adds another sum.
    pub(crate) fn and(self, other: Sum) -> Sum {
        Sum(self.0 + u64::from(other.fold()))
    }

    /// The sum as it stands in a header, not complemented: what a checksum that somebody else is to
    /// complete starts from.
    pub(crate) fn partial(self) -> [u8; 2] {
        self.fold().to_ne_bytes()
    }

    /// The checksum.
    pub(crate) fn checksum(self) -> [u8; 2] {
        (!self.fold()).to_ne_bytes()
    }

    /// The checksum where zero would mean that there is none: UDP's.
    pub(crate) fn nonzero_checksum(self) -> [u8; 2] {
        match self.checksum() {
            [0, 0] => [0xff, 0xff],
            other => other,
        }
    }

    /// Whether a sum that includes the checksum says that all is well.
    pub(crate) fn is_right(self) -> bool {
        self.fold() == 0xffff
    }

    fn fold(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }
}

/// The sum of 32-bit words, of which a sum of 16-bit words can be folded.
#[inline(always)]
fn portable(octets: &[u8]) -> u64 {
    let mut sum = 0;
    let mut words = octets.chunks_exact(4);
    for word in &mut words {
        sum += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
    }
    let mut last = [0; 4];
    let rest = words.remainder();
    last[..rest.len()].copy_from_slice(rest);
    sum + u64::from(u32::from_ne_bytes(last))
}

#[cfg(not(target_arch = "x86_64"))]
fn words(octets: &[u8]) -> u64 {
    portable(octets)
}

/// With wider registers where the processor has them: payloads are most of what is summed.
#[cfg(target_arch = "x86_64")]
fn words(octets: &[u8]) -> u64 {
    #[target_feature(enable = "avx2")]
    fn wide(octets: &[u8]) -> u64 {
        portable(octets)
    }
    const WORTH_IT: usize = 128;
    if octets.len() >= WORTH_IT && std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { wide(octets) };
    }
    portable(octets)
}

/// The sum over the pseudo header of TCP and UDP.
pub(crate) fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> Sum {
    let addresses = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            Sum::default().add(&source.octets()).add(&destination.octets())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            Sum::default().add(&source.octets()).add(&destination.octets())
        }
        // No packet has addresses of two families.
        _ => Sum::default(),
    };
    // The length has 16 bits in IPv4 and 32 in IPv6; what we carry never needs more than 16.
    addresses.add_u16(u16::from(protocol)).add_u16(length as u16)
}

/// The checksum field after one 16-bit word of what it covers has changed (RFC 1624, equation 3).
pub(crate) fn adjusted(checksum: [u8; 2], before: [u8; 2], after: [u8; 2]) -> [u8; 2] {
    let word = u16::from_ne_bytes;
    Sum(u64::from(!word(checksum)) + u64::from(!word(before)) + u64::from(word(after))).checksum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// By the book: words in network order, carries brought round one by one.
    fn by_the_book(octets: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in octets.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn the_example_of_rfc_1071() {
        let octets = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::default().add(&octets).partial(), [0xdd, 0xf2]);
    }

    proptest! {
        #[test]
        fn it_is_the_sum_by_the_book(octets in proptest::collection::vec(any::<u8>(), 0..4000), at in 0usize..2000) {
            let whole = Sum::default().add(&octets);
            prop_assert_eq!(u16::from_be_bytes(whole.checksum()), by_the_book(&octets));
            let (a, b) = octets.split_at((at * 2).min(octets.len() & !1));
            prop_assert_eq!(Sum::default().add(a).add(b).partial(), whole.partial());
            prop_assert_eq!(Sum::default().add(a).and(Sum::default().add(b)).partial(), whole.partial());
        }

        #[test]
        fn an_adjusted_checksum_is_that_of_the_changed_octets(mut octets in proptest::collection::vec(any::<u8>(), 20), word: [u8; 2]) {
            // All zeros has two checksums, which are equally right; a header is never all zeros.
            octets[0] = 0x45;
            octets[10..12].fill(0);
            let checksum = Sum::default().add(&octets).checksum();
            octets[10..12].copy_from_slice(&checksum);
            let before = [octets[8], octets[9]];
            octets[8..10].copy_from_slice(&word);
            let checksum = adjusted(checksum, before, word);
            octets[10..12].copy_from_slice(&checksum);
            prop_assert!(Sum::default().add(&octets).is_right());
        }
    }
}
