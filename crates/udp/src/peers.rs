//! [`Peers`]: which node has which pod subnet.
//!
//! The threads of the data path look at an immutable [`Table`]; a change makes a new one and puts it
//! in place of the old in one step, so that traffic neither waits nor sees half a change. A peer costs
//! 16 octets for IPv4 and 48 for IPv6.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};
use fabric::lease::Subnets;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Which node has which pod subnet, changed by one and read by many.
#[derive(Debug, Default)]
pub struct Peers(ArcSwap<Table>);

/// A reader's view of [`Peers`], which costs one load to bring up to date.
pub(crate) type View<'a> = Cache<&'a ArcSwap<Table>, Arc<Table>>;

impl Peers {
    /// Puts a whole new set in place: the pod subnets of this node, and those of each other node with
    /// its address.
    pub fn replace(&self, own: Subnets, peers: impl IntoIterator<Item = (IpNet, IpAddr)>) {
        let mut table = Table { own, ..Table::default() };
        for (subnet, node) in peers {
            match (subnet, node) {
                (IpNet::V4(net), IpAddr::V4(node)) => table.ipv4.entries.push(Entry::new_v4(net, node)),
                (IpNet::V6(net), IpAddr::V6(node)) => table.ipv6.entries.push(Entry::new_v6(net, node)),
                // A plan has no such pair: a subnet is reached over its own family.
                _ => debug_assert!(false, "{subnet} behind {node}"),
            }
        }
        table.ipv4.settle();
        table.ipv6.settle();
        if **self.0.load() != table {
            self.0.store(Arc::new(table));
        }
    }

    /// Takes some subnets out and puts others in.
    pub fn change(
        &self,
        gone: impl IntoIterator<Item = IpNet>,
        come: impl IntoIterator<Item = (IpNet, IpAddr)>,
    ) {
        let mut table = Table::clone(&self.0.load());
        for subnet in gone {
            match subnet {
                IpNet::V4(net) => table.ipv4.remove(net.network().to_bits(), net.prefix_len()),
                IpNet::V6(net) => table.ipv6.remove(net.network().to_bits(), net.prefix_len()),
            }
        }
        for (subnet, node) in come {
            match (subnet, node) {
                (IpNet::V4(net), IpAddr::V4(node)) => table.ipv4.insert(Entry::new_v4(net, node)),
                (IpNet::V6(net), IpAddr::V6(node)) => table.ipv6.insert(Entry::new_v6(net, node)),
                _ => debug_assert!(false, "{subnet} behind {node}"),
            }
        }
        table.ipv4.settle();
        table.ipv6.settle();
        self.0.store(Arc::new(table));
    }

    /// The node that has the longest pod subnet with an address.
    pub fn node(&self, ip: IpAddr) -> Option<IpAddr> {
        self.0.load().node(ip)
    }

    /// How many subnets there are.
    pub fn len(&self) -> usize {
        let table = self.0.load();
        table.ipv4.entries.len() + table.ipv6.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn view(&self) -> View<'_> {
        Cache::new(&self.0)
    }
}

/// One state of [`Peers`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Table {
    own: Subnets,
    ipv4: Family<u32>,
    ipv6: Family<u128>,
}

impl Table {
    /// The node that has the longest pod subnet with an address.
    pub(crate) fn node(&self, ip: IpAddr) -> Option<IpAddr> {
        match ip {
            IpAddr::V4(ip) => self.ipv4.find(ip.to_bits()).map(|bits| Ipv4Addr::from_bits(bits).into()),
            IpAddr::V6(ip) => self.ipv6.find(ip.to_bits()).map(|bits| Ipv6Addr::from_bits(bits).into()),
        }
    }

    /// Whether a pod subnet of this node has an address.
    pub(crate) fn is_own(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => self.own.ipv4.is_some_and(|own| own.contains(&ip)),
            IpAddr::V6(ip) => self.own.ipv6.is_some_and(|own| own.contains(&ip)),
        }
    }

    /// The pod subnets of this node.
    pub(crate) fn own(&self) -> Subnets {
        self.own
    }
}

/// The subnets of one address family, by first address and then by length. They are nested or apart,
/// as prefixes are, so the longest one with an address is the last that begins at or before it, or one
/// around that.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Family<A> {
    entries: Vec<Entry<A>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry<A> {
    first: A,
    node: A,
    /// The place of the next subnet around this one.
    around: u32,
    length: u8,
}

const NOTHING_AROUND: u32 = u32::MAX;

/// An address as a number.
trait Address: Copy + Ord {
    fn mask(length: u8) -> Self;
    fn masked(self, length: u8) -> Self;
}

impl Address for u32 {
    fn mask(length: u8) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)
    }

    fn masked(self, length: u8) -> u32 {
        self & u32::mask(length)
    }
}

impl Address for u128 {
    fn mask(length: u8) -> u128 {
        u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
    }

    fn masked(self, length: u8) -> u128 {
        self & u128::mask(length)
    }
}

impl Entry<u32> {
    fn new_v4(net: Ipv4Net, node: Ipv4Addr) -> Entry<u32> {
        let (first, node) = (net.network().to_bits(), node.to_bits());
        Entry { first, node, around: NOTHING_AROUND, length: net.prefix_len() }
    }
}

impl Entry<u128> {
    fn new_v6(net: Ipv6Net, node: Ipv6Addr) -> Entry<u128> {
        let (first, node) = (net.network().to_bits(), node.to_bits());
        Entry { first, node, around: NOTHING_AROUND, length: net.prefix_len() }
    }
}

impl<A: Address> Family<A> {
    fn find(&self, ip: A) -> Option<A> {
        let mut at = self.entries.partition_point(|entry| entry.first <= ip).checked_sub(1)?;
        loop {
            let entry = &self.entries[at];
            if ip.masked(entry.length) == entry.first {
                return Some(entry.node);
            }
            if entry.around == NOTHING_AROUND {
                return None;
            }
            at = entry.around as usize;
        }
    }

    fn place(&self, first: A, length: u8) -> Result<usize, usize> {
        self.entries.binary_search_by(|entry| (entry.first, entry.length).cmp(&(first, length)))
    }

    fn insert(&mut self, entry: Entry<A>) {
        match self.place(entry.first, entry.length) {
            Ok(at) => self.entries[at] = entry,
            Err(at) => self.entries.insert(at, entry),
        }
    }

    fn remove(&mut self, first: A, length: u8) {
        if let Ok(at) = self.place(first, length) {
            self.entries.remove(at);
        }
    }

    /// Sorts, keeps the last of equal subnets, and notes which is in which.
    fn settle(&mut self) {
        let key = |entry: &Entry<A>| (entry.first, entry.length);
        if !self.entries.is_sorted_by(|a, b| key(a) < key(b)) {
            self.entries.sort_by_key(key);
            // The later of two replaces the earlier, which the sort has left in their order.
            self.entries.reverse();
            self.entries.dedup_by_key(|entry| key(entry));
            self.entries.reverse();
        }
        self.entries.shrink_to_fit();
        let mut open: Vec<u32> = Vec::new();
        for at in 0..self.entries.len() {
            let first = self.entries[at].first;
            let holds = |outer: &Entry<A>| first.masked(outer.length) == outer.first;
            while open.last().is_some_and(|outer| !holds(&self.entries[*outer as usize])) {
                open.pop();
            }
            self.entries[at].around = open.last().copied().unwrap_or(NOTHING_AROUND);
            open.push(at as u32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn both_families_lead_to_nodes_of_their_own() {
        let peers = Peers::default();
        assert!(peers.is_empty());
        let own = Subnets { ipv4: Some("10.244.1.0/24".parse().unwrap()), ipv6: None };
        let all = [(net("10.244.2.0/24"), ip("192.168.0.2")), (net("fd00:0:0:2::/64"), ip("fd09::2"))];
        peers.replace(own, all);
        assert_eq!(peers.node(ip("10.244.2.9")), Some(ip("192.168.0.2")));
        assert_eq!(peers.node(ip("fd00:0:0:2::9")), Some(ip("fd09::2")));
        assert_eq!((peers.node(ip("10.244.1.1")), peers.node(ip("10.244.3.0"))), (None, None));
        let table = peers.0.load();
        assert!(table.is_own(ip("10.244.1.7")) && !table.is_own(ip("10.244.2.7")));
        assert!(!table.is_own(ip("fd00::1")));
    }

    #[test]
    fn a_peer_costs_as_much_as_is_said_and_no_more() {
        assert_eq!(size_of::<Entry<u32>>(), 16);
        assert_eq!(size_of::<Entry<u128>>(), 48);
    }

    #[test]
    fn a_reader_sees_the_next_table_and_keeps_the_one_it_looks_at() {
        let peers = Peers::default();
        let mut view = peers.view();
        let before = Arc::clone(view.load());
        peers.change([], [(net("10.244.2.0/24"), ip("192.168.0.2"))]);
        assert_eq!(before.node(ip("10.244.2.1")), None);
        assert_eq!(view.load().node(ip("10.244.2.1")), Some(ip("192.168.0.2")));
    }

    fn subnet() -> impl Strategy<Value = IpNet> {
        // Few bits, so that they nest and repeat.
        let ipv4 = (0u32..64, 24u8..=32).prop_map(|(low, length)| {
            IpNet::V4(Ipv4Net::new(Ipv4Addr::from_bits(0x0a00_0000 | low << 2), length).unwrap().trunc())
        });
        let ipv6 = (0u128..64, 120u8..=128).prop_map(|(low, length)| {
            IpNet::V6(Ipv6Net::new(Ipv6Addr::from_bits(0xfd << 120 | low << 2), length).unwrap().trunc())
        });
        prop_oneof![ipv4, ipv6]
    }

    fn node(subnet: IpNet, n: u8) -> IpAddr {
        match subnet {
            IpNet::V4(_) => IpAddr::V4(Ipv4Addr::new(192, 168, 0, n)),
            IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(u128::from(n))),
        }
    }

    proptest! {
        #[test]
        fn it_finds_what_a_search_through_all_finds(
            all in proptest::collection::vec((subnet(), any::<u8>()), 0..40),
            gone in proptest::collection::vec(subnet(), 0..10),
            come in proptest::collection::vec((subnet(), any::<u8>()), 0..10),
        ) {
            let with_node = |(net, n): &(IpNet, u8)| (*net, node(*net, *n));
            let peers = Peers::default();
            peers.replace(Subnets::default(), all.iter().map(with_node));
            peers.change(gone.iter().copied(), come.iter().map(with_node));
            let mut by_hand: std::collections::BTreeMap<IpNet, IpAddr> = all.iter().map(with_node).collect();
            by_hand.retain(|net, _| !gone.contains(net));
            by_hand.extend(come.iter().map(with_node));
            prop_assert_eq!(peers.len(), by_hand.len());
            for low in 0..300u32 {
                for ip in [IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 | low)), IpAddr::V6(Ipv6Addr::from_bits(0xfd << 120 | u128::from(low)))] {
                    let fits = by_hand.iter().filter(|(net, _)| net.contains(&ip));
                    let longest = fits.max_by_key(|(net, _)| net.prefix_len()).map(|(_, node)| *node);
                    prop_assert_eq!(peers.node(ip), longest, "{}", ip);
                }
            }
        }
    }
}
