//! [`LeaseSet`]: all leases, and which of them overlap.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use ipnet::{Ipv4Net, Ipv6Net};

use super::{Lease, Subnets};

/// All leases of the network at one moment, ours included.
///
/// A copy shares its nodes with the original, so a set of 10,000 is published at each change
/// without being copied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeaseSet {
    leases: OrdMap<Subnets, Arc<Lease>>,
    /// The leases by IPv6 subnet; several may claim the same one.
    by_ipv6: OrdSet<(Ipv6Net, Subnets)>,
    /// How many leases there are of each prefix length. Nearly all have one and the same, which
    /// saves looking for longer and shorter ones that overlap.
    ipv4_lens: OrdMap<u8, usize>,
    ipv6_lens: OrdMap<u8, usize>,
    /// Records that could not be read, by key.
    pub skipped: OrdMap<String, String>,
}

impl LeaseSet {
    /// Adds a lease or replaces the one with the same subnets.
    pub fn insert(&mut self, mut lease: Lease) {
        let name = &mut lease.attributes.backend_type;
        // Nearly all leases have the same: one text will do.
        if let Some((_, first)) = self.leases.get_min()
            && first.attributes.backend_type == *name
        {
            name.clone_from(&first.attributes.backend_type);
        }
        self.insert_shared(Arc::new(lease));
    }

    /// Adds leases of another set without copying them.
    pub(crate) fn extend_shared<'a>(&mut self, leases: impl Iterator<Item = &'a Arc<Lease>>) {
        leases.for_each(|lease| self.insert_shared(Arc::clone(lease)));
    }

    fn insert_shared(&mut self, lease: Arc<Lease>) {
        let subnets = lease.subnets;
        if self.leases.insert(subnets, lease).is_some() {
            return;
        }
        if let Some(ipv4) = subnets.ipv4 {
            *self.ipv4_lens.entry(ipv4.prefix_len()).or_insert(0) += 1;
        }
        if let Some(ipv6) = subnets.ipv6 {
            *self.ipv6_lens.entry(ipv6.prefix_len()).or_insert(0) += 1;
            self.by_ipv6.insert((ipv6, subnets));
        }
    }

    /// Takes a lease out.
    pub fn remove(&mut self, subnets: &Subnets) -> Option<Arc<Lease>> {
        let lease = self.leases.remove(subnets)?;
        if let Some(ipv4) = subnets.ipv4 {
            count_down(&mut self.ipv4_lens, ipv4.prefix_len());
        }
        if let Some(ipv6) = subnets.ipv6 {
            count_down(&mut self.ipv6_lens, ipv6.prefix_len());
            self.by_ipv6.remove(&(ipv6, *subnets));
        }
        Some(lease)
    }

    /// The lease with exactly these subnets.
    pub fn get(&self, subnets: &Subnets) -> Option<&Arc<Lease>> {
        self.leases.get(subnets)
    }

    /// All leases, by subnet.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Lease>> {
        self.leases.values()
    }

    /// How many leases there are.
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// Whether there is no lease.
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    /// Whether both hold the very same leases, told without looking into them; two sets made apart
    /// from each other are not the same, even if equal.
    pub fn is_same(&self, other: &LeaseSet) -> bool {
        self.leases.ptr_eq(&other.leases)
    }

    /// The leases that differ between two sets: (those of `self`, those of `next`).
    ///
    /// Costs by the number of differences where the sets share their nodes.
    pub fn differences(&self, next: &LeaseSet) -> (LeaseSet, LeaseSet) {
        let (mut before, mut after) = (LeaseSet::default(), LeaseSet::default());
        for item in self.leases.diff(&next.leases) {
            match item {
                imbl::ordmap::DiffItem::Add(_, new) => after.insert_shared(Arc::clone(new)),
                imbl::ordmap::DiffItem::Remove(_, old) => before.insert_shared(Arc::clone(old)),
                imbl::ordmap::DiffItem::Update { old: (_, old), new: (_, new) } => {
                    before.insert_shared(Arc::clone(old));
                    after.insert_shared(Arc::clone(new));
                }
            }
        }
        (before, after)
    }

    /// In how many leases two sets differ, counted up to `most`.
    pub fn distance(&self, other: &LeaseSet, most: usize) -> usize {
        self.leases.diff(&other.leases).take(most).count()
    }

    /// The set on the way from this one to `target` that differs from this one in `most` leases, or
    /// `target` itself where that is no further.
    pub fn towards(&self, target: &LeaseSet, most: usize) -> LeaseSet {
        let mut next = self.clone();
        let mut differences = self.leases.diff(&target.leases);
        for item in differences.by_ref().take(most) {
            match item {
                imbl::ordmap::DiffItem::Add(_, new)
                | imbl::ordmap::DiffItem::Update { new: (_, new), .. } => next.insert_shared(Arc::clone(new)),
                imbl::ordmap::DiffItem::Remove(subnets, _) => drop(next.remove(subnets)),
            }
        }
        // The target itself shares its nodes with the sets that follow.
        if differences.next().is_none() { target.clone() } else { next }
    }

    /// Other leases that claim addresses of `lease` and have the better right to them. One that claims
    /// addresses of both families may come twice.
    ///
    /// The older record wins; of two equally old ones, the one with the smaller subnets key. Every
    /// node decides alike, so that at most one of two claimants is programmed anywhere.
    pub fn rivals(&self, lease: &Lease) -> impl Iterator<Item = &Arc<Lease>> {
        let right = |lease: &Lease| (lease.created, lease.subnets);
        let (subnets, mine) = (lease.subnets, right(lease));
        self.overlapping(subnets).filter(move |other| other.subnets != subnets && right(other) < mine)
    }

    /// All leases that share an address with `subnets`, in either family.
    pub fn overlapping(&self, subnets: Subnets) -> impl Iterator<Item = &Arc<Lease>> {
        let ipv4 = subnets.ipv4.into_iter().flat_map(|net| self.overlapping_ipv4(net));
        let ipv6 = subnets.ipv6.into_iter().flat_map(|net| self.overlapping_ipv6(net));
        ipv4.chain(ipv6)
    }

    /// All leases whose IPv4 subnet shares an address with `net`.
    ///
    /// Two prefixes overlap only if one contains the other, so the answer is the at most 32
    /// prefixes that contain `net` and the contiguous range of those within it.
    pub fn overlapping_ipv4(&self, net: Ipv4Net) -> impl Iterator<Item = &Arc<Lease>> {
        let containing = self.ipv4_lens.range(..net.prefix_len()).flat_map(move |(len, _)| {
            let net = Ipv4Net::new_assert(net.addr(), *len).trunc();
            self.leases
                .range(at_ipv4(net)..)
                .take_while(move |(key, _)| key.ipv4 == Some(net))
                .map(|(_, l)| l)
        });
        let first = Ipv4Net::new_assert(net.network(), 0);
        let within = self
            .leases
            .range(at_ipv4(first)..)
            .take_while(move |(key, _)| key.ipv4.is_some_and(|other| other.addr() <= net.broadcast()))
            .filter(move |(key, _)| key.ipv4.is_some_and(|other| other.prefix_len() >= net.prefix_len()))
            .map(|(_, lease)| lease);
        containing.chain(within)
    }

    /// All leases whose IPv6 subnet shares an address with `net`.
    pub fn overlapping_ipv6(&self, net: Ipv6Net) -> impl Iterator<Item = &Arc<Lease>> {
        let containing = self.ipv6_lens.range(..net.prefix_len()).flat_map(move |(len, _)| {
            let net = Ipv6Net::new_assert(net.addr(), *len).trunc();
            self.by_ipv6.range((net, Subnets::default())..).take_while(move |(other, _)| *other == net)
        });
        let first = Ipv6Net::new_assert(net.network(), 0);
        let within = self
            .by_ipv6
            .range((first, Subnets::default())..)
            .take_while(move |(other, _)| other.addr() <= net.broadcast())
            .filter(move |(other, _)| other.prefix_len() >= net.prefix_len());
        containing.chain(within).filter_map(|(_, key)| self.leases.get(key))
    }
}

impl FromIterator<Lease> for LeaseSet {
    fn from_iter<I: IntoIterator<Item = Lease>>(leases: I) -> LeaseSet {
        let mut set = LeaseSet::default();
        leases.into_iter().for_each(|lease| set.insert(lease));
        set
    }
}

fn count_down(counts: &mut OrdMap<u8, usize>, len: u8) {
    match counts.get_mut(&len) {
        Some(count) if *count > 1 => *count -= 1,
        _ => drop(counts.remove(&len)),
    }
}

/// The smallest key with this IPv4 subnet.
fn at_ipv4(net: Ipv4Net) -> Subnets {
    Subnets { ipv4: Some(net), ipv6: None }
}
