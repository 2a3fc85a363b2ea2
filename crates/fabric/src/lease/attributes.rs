//! [`Attributes`]: what a node says of itself, which is the value of its lease.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

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
    pub backend_type: Arc<str>,
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
