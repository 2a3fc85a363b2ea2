//! The network configuration, `net-conf.json`.
//!
//! One JSON object that every node reads: which networks pods live in, how long each node's subnet
//! is, and how packets travel. It is read as the original does, with Go's `encoding/json`: a key is
//! known by its letters whatever their case, of two equal keys the last one counts, `null` leaves a
//! number or a switch at its default, and text after the object is an error.
//!
//! Where the original swallows a mistake, this module does not: a key that nobody reads is a
//! warning with the nearest known name, and every value that cannot work is refused with key, value
//! and rule. Where the original has words for a refusal, they are part of ours.

mod backend;
pub(crate) mod json;
mod range;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::backend::Backend;
use json::{Field, Object};
use range::{Lengths, Range};

/// A network configuration that has been read and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// The IPv4 network, unless `EnableIPv4` is false.
    pub ipv4: Option<Ipv4Network>,
    /// The IPv6 network, if `EnableIPv6` is true.
    pub ipv6: Option<Ipv6Network>,
    /// Which of the original's two sets of firewall rules the cluster uses. We write native nftables
    /// either way; it decides how the original's rules are met in a mixed cluster.
    pub nftables: bool,
    /// How packets travel between nodes.
    pub backend: Backend,
    /// What was odd but not wrong, for the log: unknown keys with the nearest known name, and so on.
    pub warnings: Vec<String>,
}

/// The IPv4 half of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv4Network {
    /// The network that all pod subnets are leased out of.
    pub network: Ipv4Net,
    /// The prefix length of each pod subnet.
    pub subnet_len: u8,
    /// The first subnet that may be leased.
    pub subnet_min: Ipv4Addr,
    /// The last subnet that may be leased.
    pub subnet_max: Ipv4Addr,
}

/// The IPv6 half of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv6Network {
    /// The network that all pod subnets are leased out of.
    pub network: Ipv6Net,
    /// The prefix length of each pod subnet.
    pub subnet_len: u8,
    /// The first subnet that may be leased.
    pub subnet_min: Ipv6Addr,
    /// The last subnet that may be leased.
    pub subnet_max: Ipv6Addr,
}

/// A network configuration that cannot be used: key, value, rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// The keys of the whole, in the original's spelling.
const TOP_LEVEL: [&str; 12] = [
    "EnableIPv4",
    "EnableIPv6",
    "EnableNFTables",
    "Network",
    "IPv6Network",
    "SubnetMin",
    "SubnetMax",
    "IPv6SubnetMin",
    "IPv6SubnetMax",
    "SubnetLen",
    "IPv6SubnetLen",
    "Backend",
];
impl NetworkConfig {
    /// Reads and checks `net-conf.json`.
    pub fn from_json(json: &str) -> Result<NetworkConfig, ConfigError> {
        let top = Object::parse(json).map_err(|error| {
            refuse(format_args!("the network configuration is not one JSON object: {error}"))
        })?;
        let mut warnings = Vec::new();
        let elsewhere = backend::VXLAN.iter().map(|name| (*name, "inside Backend"));
        warn_of_unknown_keys(&top, "", &TOP_LEVEL, elsewhere, &mut warnings);
        // A key that seems to be missing is most often there, misspelt.
        let misspelt: String = warnings.iter().map(|warning| format!("; {warning}")).collect();
        NetworkConfig::from_keys(&top, warnings)
            .map_err(|ConfigError(error)| refuse(format_args!("{error}{misspelt}")))
    }

    fn from_keys(top: &Object, mut warnings: Vec<String>) -> Result<NetworkConfig, ConfigError> {
        let ipv4_enabled = top.field("EnableIPv4").boolean()?.unwrap_or(true);
        let ipv6_enabled = top.field("EnableIPv6").boolean()?.unwrap_or(false);
        let nftables = top.field("EnableNFTables").boolean()?.unwrap_or(false);
        let ipv4 = Ipv4Keys::read(top)?;
        let ipv6 = Ipv6Keys::read(top)?;
        let backend = backend::read(top, &mut warnings)?;

        let ipv4 = if ipv4_enabled { Some(ipv4.check()?) } else { None };
        let ipv6 = if ipv6_enabled { Some(ipv6.check()?) } else { None };
        if ipv4.is_none() && ipv6.is_none() {
            return Err(refuse(
                "none defined stack: EnableIPv4 is false and EnableIPv6 is not true, so there is no network; \
                 set one of them to true",
            ));
        }
        let config = NetworkConfig { ipv4, ipv6, nftables, backend, warnings };
        if let Backend::Vxlan(vxlan) = &config.backend {
            vxlan.check_config(&config).map_err(ConfigError)?;
        }
        Ok(config)
    }

    /// The cluster networks, IPv4 first.
    pub fn networks(&self) -> impl Iterator<Item = IpNet> + use<> {
        let ipv4 = self.ipv4.map(|net| IpNet::V4(net.network));
        let ipv6 = self.ipv6.map(|net| IpNet::V6(net.network));
        ipv4.into_iter().chain(ipv6)
    }

    /// Whether a subnet lies in one of the networks, and is not the whole of it. A lease of anything else is
    /// refused by every node (see [`crate::backend`]), so it takes nothing from anybody.
    pub fn has_part(&self, subnet: &IpNet) -> bool {
        self.networks().any(|network| is_part(&network, subnet))
    }
}

/// Whether a subnet lies in a network, and is not the whole of it.
pub(crate) fn is_part(network: &IpNet, subnet: &IpNet) -> bool {
    network.contains(subnet) && network.prefix_len() != subnet.prefix_len()
}

/// The IPv4 keys as written, each readable by itself.
struct Ipv4Keys {
    network: Option<Ipv4Net>,
    subnet_len: u64,
    subnet_min: Option<Ipv4Addr>,
    subnet_max: Option<Ipv4Addr>,
}

impl Ipv4Keys {
    fn read(top: &Object) -> Result<Ipv4Keys, ConfigError> {
        Ok(Ipv4Keys {
            network: ipv4_network(&top.field("Network"))?,
            subnet_len: top.field("SubnetLen").unsigned()?.unwrap_or(0),
            subnet_min: ipv4_address(&top.field("SubnetMin"))?,
            subnet_max: ipv4_address(&top.field("SubnetMax"))?,
        })
    }

    fn check(&self) -> Result<Ipv4Network, ConfigError> {
        let network = self
            .network
            .filter(|net| net.prefix_len() > 0 || !net.addr().is_unspecified())
            .ok_or_else(|| {
                refuse(format_args!(
                    "please define a correct Network parameter in the flannel config: Network is {}, \
                 want an IPv4 network such as 10.244.0.0/16 (or EnableIPv4 false)",
                    self.network.map_or("not set".to_owned(), |net| net.to_string()),
                ))
            })?;
        let lengths = Lengths {
            key: "SubnetLen",
            network_key: "Network",
            longest: 30,
            smallest_network: 28,
            usual: 24,
        };
        let subnet_len = lengths.subnet_len(self.subnet_len, &network, network.prefix_len())?;
        let bits = |ip: Ipv4Addr| u128::from(ip.to_bits());
        let range = Range {
            keys: ["SubnetMin", "SubnetMax"],
            network_key: "Network",
            network: IpNet::V4(network),
            subnet_len,
            size: 1 << (32 - subnet_len),
        };
        let (min, max) = range.check(self.subnet_min.map(bits), self.subnet_max.map(bits))?;
        // Both lie inside the network, so they have 32 bits.
        Ok(Ipv4Network {
            network,
            subnet_len,
            subnet_min: Ipv4Addr::from_bits(min as u32),
            subnet_max: Ipv4Addr::from_bits(max as u32),
        })
    }
}

/// The IPv6 keys as written, each readable by itself.
struct Ipv6Keys {
    network: Option<Ipv6Net>,
    subnet_len: u64,
    subnet_min: Option<Ipv6Addr>,
    subnet_max: Option<Ipv6Addr>,
}

impl Ipv6Keys {
    fn read(top: &Object) -> Result<Ipv6Keys, ConfigError> {
        Ok(Ipv6Keys {
            network: ipv6_network(&top.field("IPv6Network"))?,
            subnet_len: top.field("IPv6SubnetLen").unsigned()?.unwrap_or(0),
            subnet_min: ipv6_address(&top.field("IPv6SubnetMin"))?,
            subnet_max: ipv6_address(&top.field("IPv6SubnetMax"))?,
        })
    }

    fn check(&self) -> Result<Ipv6Network, ConfigError> {
        let network = self
            .network
            .filter(|net| net.prefix_len() > 0 || !net.addr().is_unspecified())
            .ok_or_else(|| {
                refuse(format_args!(
                    "please define a correct IPv6Network parameter in the flannel config: IPv6Network is {}, \
                 want an IPv6 network such as fd00:10:244::/48 (or EnableIPv6 false)",
                    self.network.map_or("not set".to_owned(), |net| net.to_string()),
                ))
            })?;
        let lengths = Lengths {
            key: "IPv6SubnetLen",
            network_key: "IPv6Network",
            longest: 126,
            smallest_network: 124,
            usual: 64,
        };
        let subnet_len = lengths.subnet_len(self.subnet_len, &network, network.prefix_len())?;
        let bits = |ip: Ipv6Addr| ip.to_bits();
        let range = Range {
            keys: ["IPv6SubnetMin", "IPv6SubnetMax"],
            network_key: "IPv6Network",
            network: IpNet::V6(network),
            subnet_len,
            size: 1 << (128 - subnet_len),
        };
        let (min, max) = range.check(self.subnet_min.map(bits), self.subnet_max.map(bits))?;
        Ok(Ipv6Network {
            network,
            subnet_len,
            subnet_min: Ipv6Addr::from_bits(min),
            subnet_max: Ipv6Addr::from_bits(max),
        })
    }
}

fn ipv4_network(field: &Field<'_>) -> Result<Option<Ipv4Net>, ConfigError> {
    let Some(text) = field.text_of_any_kind() else { return Ok(None) };
    match text.parse() {
        Ok(IpNet::V4(net)) => Ok(Some(net.trunc())),
        Ok(IpNet::V6(_)) => Err(field.refuse(
            "invalid IPv4 CIDR format",
            "an IPv4 network such as 10.244.0.0/16; IPv6 goes to IPv6Network",
        )),
        Err(_) => Err(field.refuse(
            format_args!("invalid CIDR address: {}", shortened(&text)),
            "an IPv4 network such as 10.244.0.0/16",
        )),
    }
}

/// Compatibility: the original takes an IPv4 network here and makes an IPv4-mapped one of it, which
/// no kernel object can be made of; that is refused.
fn ipv6_network(field: &Field<'_>) -> Result<Option<Ipv6Net>, ConfigError> {
    let Some(text) = field.text_of_any_kind() else { return Ok(None) };
    match text.parse() {
        Ok(IpNet::V6(net)) => Ok(Some(net.trunc())),
        Ok(IpNet::V4(_)) => Err(field.refuse(
            "invalid IPv6 CIDR format",
            "an IPv6 network such as fd00:10:244::/48; IPv4 goes to Network",
        )),
        Err(_) => Err(field.refuse(
            format_args!("invalid CIDR address: {}", shortened(&text)),
            "an IPv6 network such as fd00:10:244::/48",
        )),
    }
}

/// An address, where `0.0.0.0` stands for none.
fn ipv4_address(field: &Field<'_>) -> Result<Option<Ipv4Addr>, ConfigError> {
    let Some(text) = field.text_of_any_kind() else { return Ok(None) };
    let address = match text.parse().map(|ip: IpAddr| ip.to_canonical()) {
        Ok(IpAddr::V4(ip)) => ip,
        Ok(IpAddr::V6(_)) => {
            return Err(field.refuse("invalid IPv4 address format", "an IPv4 address such as 10.244.1.0"));
        }
        Err(_) => return Err(field.refuse("invalid IP address format", "an IPv4 address such as 10.244.1.0")),
    };
    Ok((!address.is_unspecified()).then_some(address))
}

/// An address, where `::` stands for none, and so does `null` (the field is a pointer in Go).
fn ipv6_address(field: &Field<'_>) -> Result<Option<Ipv6Addr>, ConfigError> {
    if field.is_null() {
        return Ok(None);
    }
    let Some(text) = field.text_of_any_kind() else { return Ok(None) };
    let address = match text.parse() {
        Ok(IpAddr::V6(ip)) => ip,
        Ok(IpAddr::V4(_)) => {
            return Err(
                field.refuse("invalid IPv6 address format", "an IPv6 address such as fd00:10:244:1::")
            );
        }
        Err(_) => {
            return Err(field.refuse("invalid IP address format", "an IPv6 address such as fd00:10:244:1::"));
        }
    };
    Ok((!address.is_unspecified()).then_some(address))
}

/// Warns of each key that nobody reads, with the likeliest meaning.
fn warn_of_unknown_keys<'a>(
    object: &Object,
    path: &str,
    known: &[&'static str],
    elsewhere: impl Iterator<Item = (&'a str, &'a str)>,
    warnings: &mut Vec<String>,
) {
    let elsewhere: Vec<_> = elsewhere.collect();
    for key in object.keys() {
        if known.iter().any(|name| json::same_key(name, key)) {
            continue;
        }
        let hint = match elsewhere.iter().find(|(name, _)| json::same_key(name, key)) {
            Some((name, place)) => format!("; {name} belongs {place}"),
            None => nearest(key, known.iter().copied())
                .map_or(String::new(), |name| format!("; did you mean {path}{name}?")),
        };
        warnings.push(format!("unknown key {path}{} has no effect{hint}", shortened(key)));
    }
}

/// The known name that resembles a text most, if any does.
fn nearest(text: &str, known: impl IntoIterator<Item = &'static str>) -> Option<&'static str> {
    const SIMILAR_ENOUGH: f64 = 0.8;
    let text = text.to_lowercase();
    known
        .into_iter()
        .map(|name| (strsim::jaro_winkler(&text, &name.to_lowercase()), name))
        .filter(|(likeness, _)| *likeness >= SIMILAR_ENOUGH)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, name)| name)
}

/// A foreign text for an error: control characters escaped, cut after a line's length.
pub(crate) fn shortened(text: &str) -> String {
    const LONGEST: usize = 80;
    let mut shown: String = text.chars().take(LONGEST).collect::<String>().escape_debug().collect();
    if text.chars().nth(LONGEST).is_some() {
        shown.push('…');
    }
    shown.replace("\\\"", "\"")
}

fn refuse(what: impl std::fmt::Display) -> ConfigError {
    ConfigError(what.to_string())
}

#[cfg(test)]
mod tests;
