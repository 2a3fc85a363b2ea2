//! Which addresses can be handed out, and in which order.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// A span of addresses of one subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Range {
    /// The subnet; its prefix length is the one of the addresses handed out.
    pub(super) subnet: IpNet,
    /// The first address, inclusive.
    pub(super) start: IpAddr,
    /// The last address, inclusive.
    pub(super) end: IpAddr,
    /// The router, which is never handed out.
    pub(super) gateway: IpAddr,
}

/// Ranges of one family that together give one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RangeSet(Vec<Range>);

/// An address that may be handed out, and the network it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    /// The address.
    pub(super) address: IpAddr,
    /// Its router.
    pub(super) gateway: IpAddr,
    prefix_len: u8,
}

impl Candidate {
    /// The address with the prefix length of its subnet.
    pub(super) fn with_prefix(&self) -> IpNet {
        IpNet::new(self.address, self.prefix_len).expect("the prefix length is that of the address's subnet")
    }
}

impl Range {
    /// Checks what the configuration gives and fills in what it leaves out.
    pub(super) fn new(
        subnet: IpNet,
        start: Option<IpAddr>,
        end: Option<IpAddr>,
        gateway: Option<IpAddr>,
    ) -> Result<Range, String> {
        let prefix_len = subnet.prefix_len();
        if prefix_len > subnet.max_prefix_len() - 2 {
            return Err(format!("Network {subnet} too small to allocate from"));
        }
        if subnet.addr() != subnet.network() {
            return Err(format!(
                "Network has host bits set. For a subnet mask of length {prefix_len} the network address is {}",
                subnet.network()
            ));
        }
        let first = next(subnet.network());
        let last = match subnet {
            // The broadcast address is no pod's.
            IpNet::V4(net) => IpAddr::V4(Ipv4Addr::from(u32::from(net.broadcast()) - 1)),
            IpNet::V6(net) => IpAddr::V6(net.broadcast()),
        };
        if let Some(start) = start.filter(|start| !subnet.contains(start)) {
            return Err(format!("RangeStart {start} not in network {subnet}"));
        }
        let start = start.unwrap_or(first);
        if let Some(end) = end.filter(|end| !subnet.contains(end) || *end < start) {
            return Err(format!("RangeEnd {end} not in network {subnet}"));
        }
        let end = end.unwrap_or(last);
        Ok(Range { subnet, start, end, gateway: gateway.unwrap_or(first) })
    }

    fn contains(&self, address: IpAddr) -> bool {
        self.subnet.contains(&address) && self.start <= address && address <= self.end
    }

    fn overlaps(&self, other: &Range) -> bool {
        self.contains(other.start)
            || self.contains(other.end)
            || other.contains(self.start)
            || other.contains(self.end)
    }

    /// An address of this range as a candidate.
    pub(super) fn candidate(&self, address: IpAddr) -> Candidate {
        Candidate { address, gateway: self.gateway, prefix_len: self.subnet.prefix_len() }
    }
}

impl RangeSet {
    /// Ranges that may stand together.
    pub(super) fn new(ranges: Vec<Range>) -> Result<RangeSet, String> {
        let Some(first) = ranges.first() else { return Err("empty range set".to_owned()) };
        if ranges.iter().any(|range| range.subnet.addr().is_ipv4() != first.subnet.addr().is_ipv4()) {
            return Err("mixed address families".to_owned());
        }
        for (at, range) in ranges.iter().enumerate() {
            if let Some(other) = ranges[at + 1..].iter().find(|other| range.overlaps(other)) {
                return Err(format!("subnets {range} and {other} overlap"));
            }
        }
        Ok(RangeSet(ranges))
    }

    /// Whether the addresses are IPv4.
    pub(super) fn is_ipv4(&self) -> bool {
        self.0[0].subnet.addr().is_ipv4()
    }

    /// Whether an address could come from both.
    pub(super) fn overlaps(&self, other: &RangeSet) -> bool {
        self.0.iter().any(|range| other.0.iter().any(|theirs| range.overlaps(theirs)))
    }

    /// The range that an address is in.
    pub(super) fn range_of(&self, address: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.contains(address))
    }

    /// Every address once, in the order of handing out: after `last` if that is one of them, so that an
    /// address just given back rests as long as possible. Gateways of their range are left out.
    pub(super) fn candidates(&self, last: Option<IpAddr>) -> impl Iterator<Item = Candidate> + '_ {
        let after =
            last.and_then(|last| self.0.iter().position(|range| range.contains(last)).map(|at| (at, last)));
        let first = match after {
            Some((at, last)) => self.step(at, last),
            None => (0, self.0[0].start),
        };
        let all = std::iter::successors(Some(first), move |(at, address)| {
            Some(self.step(*at, *address)).filter(|next| *next != first)
        });
        all.filter(|(at, address)| *address != self.0[*at].gateway)
            .map(|(at, address)| self.0[at].candidate(address))
    }

    /// The address after `address` of range `at`.
    fn step(&self, at: usize, address: IpAddr) -> (usize, IpAddr) {
        if address == self.0[at].end {
            let at = (at + 1) % self.0.len();
            (at, self.0[at].start)
        } else {
            (at, next(address))
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end)
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, range) in self.0.iter().enumerate() {
            write!(f, "{}{range}", if at == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// The next address; the last one of all is followed by the first.
fn next(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from(u32::from(v4).wrapping_add(1))),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6).wrapping_add(1))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(subnet: &str) -> Range {
        Range::new(subnet.parse().unwrap(), None, None, None).unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn order(set: &RangeSet, last: Option<&str>) -> Vec<String> {
        set.candidates(last.map(ip)).map(|candidate| candidate.with_prefix().to_string()).collect()
    }

    #[test]
    fn the_gateway_and_the_broadcast_address_are_never_handed_out() {
        let set = RangeSet::new(vec![range("10.1.1.0/29")]).unwrap();
        let expected = ["10.1.1.2/29", "10.1.1.3/29", "10.1.1.4/29", "10.1.1.5/29", "10.1.1.6/29"];
        assert_eq!(order(&set, None), expected);
        let set = RangeSet::new(vec![range("2001:db8::/126")]).unwrap();
        assert_eq!(order(&set, None), ["2001:db8::2/126", "2001:db8::3/126"]);
    }

    #[test]
    fn handing_out_goes_on_after_the_last_address_and_around() {
        let set = RangeSet::new(vec![range("10.1.1.0/30"), range("10.1.2.0/30")]).unwrap();
        assert_eq!(order(&set, Some("10.1.1.2")), ["10.1.2.2/30", "10.1.1.2/30"]);
        assert_eq!(order(&set, Some("10.1.2.2")), ["10.1.1.2/30", "10.1.2.2/30"]);
        assert_eq!(order(&set, Some("192.168.0.1")), ["10.1.1.2/30", "10.1.2.2/30"]);
    }

    #[test]
    fn ranges_that_cannot_be_are_refused_in_the_words_of_the_reference() {
        let refused = |subnet: &str, start: Option<&str>, end: Option<&str>| {
            Range::new(subnet.parse().unwrap(), start.map(ip), end.map(ip), None).unwrap_err()
        };
        assert_eq!(refused("10.0.0.0/31", None, None), "Network 10.0.0.0/31 too small to allocate from");
        assert_eq!(
            refused("10.0.0.5/24", None, None),
            "Network has host bits set. For a subnet mask of length 24 the network address is 10.0.0.0"
        );
        assert_eq!(
            refused("10.0.0.0/24", Some("10.0.1.1"), None),
            "RangeStart 10.0.1.1 not in network 10.0.0.0/24"
        );
        assert_eq!(
            refused("10.0.0.0/24", Some("10.0.0.9"), Some("10.0.0.8")),
            "RangeEnd 10.0.0.8 not in network 10.0.0.0/24"
        );
        assert_eq!(RangeSet::new(Vec::new()).unwrap_err(), "empty range set");
        let mixed = RangeSet::new(vec![range("10.0.0.0/24"), range("fc00::/64")]);
        assert_eq!(mixed.unwrap_err(), "mixed address families");
        let overlap = RangeSet::new(vec![range("10.0.0.0/24"), range("10.0.0.0/25")]).unwrap_err();
        assert_eq!(overlap, "subnets 10.0.0.1-10.0.0.254 and 10.0.0.1-10.0.0.126 overlap");
    }
}
