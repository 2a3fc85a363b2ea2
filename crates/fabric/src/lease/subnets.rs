//! [`Subnets`]: the pod subnets of a node, which are the key of its lease.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

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

impl FromStr for Subnets {
    type Err = SubnetsKeyError;

    fn from_str(key: &str) -> Result<Subnets, SubnetsKeyError> {
        Subnets::from_key(key)
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
