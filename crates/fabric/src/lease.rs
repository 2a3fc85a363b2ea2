//! Leases: which node owns which pod subnet, and how to reach it.
//!
//! The forms are the original's, byte for byte: a lease is one key, `<v4>-<len>[&<v6>-<len>]`,
//! and one JSON value (flannel `pkg/subnet/etcd`, `pkg/lease`). A [`LeaseSet`] is the state that
//! travels: always the whole set, cheap to copy and to compare, never a stream of events.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// The pod subnets of one node; also the name of its lease.
///
/// At least one family is present in a lease. The default (neither) stands for "none yet".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Subnets {
    /// The IPv4 pod subnet, host bits zero.
    pub ipv4: Option<Ipv4Net>,
    /// The IPv6 pod subnet, host bits zero.
    pub ipv6: Option<Ipv6Net>,
}

/// A key below `subnets/` that names no pod subnet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key:?} names no pod subnet: {why}; want 10.5.1.0-24 or 10.5.1.0-24&fd00:0:0:1::-64")]
pub struct SubnetsKeyError {
    key: String,
    why: &'static str,
}

impl Subnets {
    /// The subnets of both families, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = IpNet> + use<> {
        self.ipv4.map(IpNet::V4).into_iter().chain(self.ipv6.map(IpNet::V6))
    }

    /// The last part of the lease's key, `10.5.1.0-24` or `10.5.1.0-24&fd00:0:0:1::-64`.
    ///
    /// Compatibility: an IPv6-only lease is written `0.0.0.0-0&…`, since the key has no other form.
    pub fn key(&self) -> String {
        let ipv4 = self.ipv4.unwrap_or_default();
        match self.ipv6 {
            None => format!("{}-{}", ipv4.addr(), ipv4.prefix_len()),
            Some(ipv6) => {
                format!("{}-{}&{}-{}", ipv4.addr(), ipv4.prefix_len(), ipv6.addr(), ipv6.prefix_len())
            }
        }
    }

    /// Reads the last part of a lease's key.
    ///
    /// Stricter than the original in two points. It reads the end of any text, so that
    /// `abc10.5.1.0-24` passes; here the whole text must be a key. And it takes an address inside a
    /// subnet, such as `10.5.1.7-24`, for which no route can be made.
    pub fn from_key(key: &str) -> Result<Subnets, SubnetsKeyError> {
        let bad = |why| SubnetsKeyError { key: key.to_owned(), why };
        let (ipv4_text, ipv6_text) = match key.split_once('&') {
            Some((ipv4, ipv6)) => (ipv4, Some(ipv6)),
            None => (key, None),
        };
        let (address, len) =
            ipv4_text.split_once('-').ok_or_else(|| bad("no '-' before the prefix length"))?;
        let address: Ipv4Addr = address.parse().map_err(|_| bad("the IPv4 address cannot be read"))?;
        // Compatibility: the original holds the length in five bits, so a /32 cannot be leased.
        let len = prefix_len(len, 31).ok_or_else(|| bad("the IPv4 prefix length is not in 0..=31"))?;
        let ipv4 = Ipv4Net::new_assert(address, len);
        if ipv4.trunc() != ipv4 {
            return Err(bad("the IPv4 address has bits set beyond its prefix length"));
        }
        let ipv6 = match ipv6_text {
            None => None,
            Some(text) => {
                let (address, len) =
                    text.split_once('-').ok_or_else(|| bad("no '-' before the IPv6 prefix length"))?;
                if !address.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b':')) {
                    return Err(bad("the IPv6 address has other letters than 0-9, a-f and ':'"));
                }
                let address: Ipv6Addr =
                    address.parse().map_err(|_| bad("the IPv6 address cannot be read"))?;
                let len =
                    prefix_len(len, 127).ok_or_else(|| bad("the IPv6 prefix length is not in 0..=127"))?;
                let ipv6 = Ipv6Net::new_assert(address, len);
                if ipv6.trunc() != ipv6 {
                    return Err(bad("the IPv6 address has bits set beyond its prefix length"));
                }
                Some(ipv6)
            }
        };
        let ipv4 = (ipv4 != Ipv4Net::default()).then_some(ipv4);
        if ipv4.is_none() && ipv6.is_none() {
            return Err(bad("it covers every address"));
        }
        Ok(Subnets { ipv4, ipv6 })
    }
}

impl fmt::Display for Subnets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.ipv4, self.ipv6) {
            (Some(ipv4), Some(ipv6)) => write!(f, "{ipv4} {ipv6}"),
            (Some(ipv4), None) => write!(f, "{ipv4}"),
            (None, Some(ipv6)) => write!(f, "{ipv6}"),
            (None, None) => f.write_str("none"),
        }
    }
}

fn prefix_len(text: &str, max: u8) -> Option<u8> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|len| digits && *len <= max)
}

/// What a node tells the others about itself: the JSON value of a lease.
///
/// Field order and the presence of each field are the original's, since its tests compare text:
/// `{"PublicIP":"1.2.3.4","PublicIPv6":null,"BackendType":"vxlan","BackendData":{…}}`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Attributes {
    /// The node's address for peers, IPv4. Written as `0.0.0.0` when there is none.
    #[serde(rename = "PublicIP", serialize_with = "or_unspecified")]
    pub public_ipv4: Option<Ipv4Addr>,
    /// The node's address for peers, IPv6.
    #[serde(rename = "PublicIPv6")]
    pub public_ipv6: Option<Ipv6Addr>,
    /// The backend that made the lease; empty for `udp`, `alloc` and `tencent-vpc`.
    #[serde(rename = "BackendType", skip_serializing_if = "str::is_empty")]
    pub backend_type: Box<str>,
    /// What peers need to know for IPv4, in the backend's own form.
    #[serde(rename = "BackendData", skip_serializing_if = "Option::is_none")]
    pub backend_data: Option<Box<RawValue>>,
    /// What peers need to know for IPv6, in the backend's own form.
    #[serde(rename = "BackendV6Data", skip_serializing_if = "Option::is_none")]
    pub backend_v6_data: Option<Box<RawValue>>,
}

/// A lease value that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("a lease value that is not what a node writes: {source}; the value was {value}")]
pub struct AttributesError {
    value: String,
    source: serde_json::Error,
}

impl Attributes {
    /// Reads the value of a lease.
    pub fn from_json(value: &[u8]) -> Result<Attributes, AttributesError> {
        serde_json::from_slice(value).map_err(|source| {
            let mut shown: String = String::from_utf8_lossy(value).chars().take(120).collect();
            if shown.len() < value.len() {
                shown.push('…');
            }
            AttributesError { value: format!("{shown:?}"), source }
        })
    }

    /// The value of a lease, compact, fields in the original's order.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a struct of addresses, texts and JSON has a JSON form")
    }

    /// The addresses under which peers reach the node, IPv4 first.
    pub fn public_addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        self.public_ipv4.map(IpAddr::V4).into_iter().chain(self.public_ipv6.map(IpAddr::V6))
    }
}

impl PartialEq for Attributes {
    fn eq(&self, other: &Attributes) -> bool {
        fn raw(value: &Option<Box<RawValue>>) -> Option<&str> {
            value.as_deref().map(RawValue::get)
        }
        self.public_ipv4 == other.public_ipv4
            && self.public_ipv6 == other.public_ipv6
            && self.backend_type == other.backend_type
            && raw(&self.backend_data) == raw(&other.backend_data)
            && raw(&self.backend_v6_data) == raw(&other.backend_v6_data)
    }
}

impl Eq for Attributes {}

fn or_unspecified<S: Serializer>(ip: &Option<Ipv4Addr>, to: S) -> Result<S::Ok, S::Error> {
    ip.unwrap_or(Ipv4Addr::UNSPECIFIED).serialize(to)
}

/// An object, its keys known whatever their case, as in Go; unknown ones are passed over.
impl<'de> Deserialize<'de> for Attributes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Attributes, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Attributes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Attributes, A::Error> {
                let mut attributes = Attributes::default();
                while let Some(key) = map.next_key()? {
                    match key {
                        Key::PublicIp => attributes.public_ipv4 = map.next_value()?,
                        Key::PublicIpv6 => attributes.public_ipv6 = map.next_value()?,
                        Key::BackendType => {
                            attributes.backend_type = map.next_value::<Option<_>>()?.unwrap_or_default();
                        }
                        Key::BackendData => attributes.backend_data = map.next_value()?,
                        Key::BackendV6Data => attributes.backend_v6_data = map.next_value()?,
                        Key::Other => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                attributes.public_ipv4 = attributes.public_ipv4.filter(|ip| !ip.is_unspecified());
                attributes.public_ipv6 = attributes.public_ipv6.filter(|ip| !ip.is_unspecified());
                Ok(attributes)
            }
        }
        from.deserialize_map(Keys)
    }
}

enum Key {
    PublicIp,
    PublicIpv6,
    BackendType,
    BackendData,
    BackendV6Data,
    Other,
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Key, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = Key;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_str<E>(self, name: &str) -> Result<Key, E> {
                // A lease has five keys and there are thousands of leases: no allocation here.
                let is = |known: &str| name.eq_ignore_ascii_case(known);
                Ok(match name.len() {
                    8 if is("PublicIP") => Key::PublicIp,
                    10 if is("PublicIPv6") => Key::PublicIpv6,
                    11 if is("BackendType") => Key::BackendType,
                    11 if is("BackendData") => Key::BackendData,
                    13 if is("BackendV6Data") => Key::BackendV6Data,
                    _ => Key::Other,
                })
            }
        }
        from.deserialize_identifier(Name)
    }
}

/// One node's pod subnets and how to reach them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The pod subnets.
    pub subnets: Subnets,
    /// What the node says of itself.
    pub attributes: Attributes,
    /// A number that grows with the age of the record (etcd's create revision): of two leases that
    /// claim the same addresses the older one is right, on every node.
    pub created: u64,
}

/// A record of the store that was left out of a [`LeaseSet`], and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// The key, as the store has it.
    pub key: String,
    /// What is wrong with it.
    pub reason: String,
}

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
    pub fn insert(&mut self, lease: Lease) {
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

    /// Another lease that claims addresses of `lease` and has the better right to them.
    ///
    /// The older record wins; of two equally old ones, the one with the smaller subnets key. Every
    /// node decides alike, so that at most one of two claimants is programmed anywhere.
    pub fn rival(&self, lease: &Lease) -> Option<&Arc<Lease>> {
        self.rivals(lease).next()
    }

    /// All leases that claim addresses of `lease` and have the better right to them, see
    /// [`Self::rival`]. One that claims addresses of both families may come twice.
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

fn count_down(counts: &mut OrdMap<u8, usize>, len: u8) {
    match counts.get_mut(&len) {
        Some(count) if *count > 1 => *count -= 1,
        _ => drop(counts.remove(&len)),
    }
}

impl FromIterator<Lease> for LeaseSet {
    fn from_iter<I: IntoIterator<Item = Lease>>(leases: I) -> LeaseSet {
        let mut set = LeaseSet::default();
        leases.into_iter().for_each(|lease| set.insert(lease));
        set
    }
}

/// The smallest key with this IPv4 subnet.
fn at_ipv4(net: Ipv4Net) -> Subnets {
    Subnets { ipv4: Some(net), ipv6: None }
}

impl FromStr for Subnets {
    type Err = SubnetsKeyError;

    fn from_str(key: &str) -> Result<Subnets, SubnetsKeyError> {
        Subnets::from_key(key)
    }
}

#[cfg(test)]
mod tests;
