//! `subnet.env`: what the CNI plugin, Docker and the next start of flanneld read.
//!
//! ```text
//! FLANNEL_NETWORK=10.244.0.0/16
//! FLANNEL_SUBNET=10.244.1.1/24
//! FLANNEL_IPV6_NETWORK=fd00:10:244::/48
//! FLANNEL_IPV6_SUBNET=fd00:10:244:1::1/64
//! FLANNEL_MTU=1430
//! FLANNEL_IPMASQ=true
//! ```
//!
//! Two readers, as in the original: the plugin's, which is strict ([`SubnetFile::parse`]), and the
//! next flanneld's, which wants its previous subnets back out of whatever is there ([`previous`]).

use std::fmt::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::config::shortened;
use crate::lease::Subnets;

/// The content of `subnet.env`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SubnetFile {
    /// `FLANNEL_NETWORK`; the plugin reads a comma list, flanneld writes one.
    pub networks: Vec<Ipv4Net>,
    /// `FLANNEL_SUBNET`, host bits zero here, network address plus one in the file.
    pub subnet: Option<Ipv4Net>,
    /// `FLANNEL_IPV6_NETWORK`
    pub ipv6_networks: Vec<Ipv6Net>,
    /// `FLANNEL_IPV6_SUBNET`
    pub ipv6_subnet: Option<Ipv6Net>,
    /// `FLANNEL_MTU`
    pub mtu: Option<u32>,
    /// `FLANNEL_IPMASQ`
    pub ip_masq: Option<bool>,
}

/// A `subnet.env` that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SubnetFileError(pub String);

impl SubnetFile {
    /// The text of the file, byte for byte the original's.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let mut line = |key: &str, value: &dyn fmt::Display| {
            writeln!(text, "{key}={value}").expect("a String takes any text");
        };
        if !self.networks.is_empty() {
            line("FLANNEL_NETWORK", &comma_list(&self.networks));
        }
        if let Some(net) = self.subnet {
            let gateway = Ipv4Addr::from_bits(net.network().to_bits().wrapping_add(1));
            line("FLANNEL_SUBNET", &format_args!("{gateway}/{}", net.prefix_len()));
        }
        if !self.ipv6_networks.is_empty() {
            line("FLANNEL_IPV6_NETWORK", &comma_list(&self.ipv6_networks));
        }
        if let Some(net) = self.ipv6_subnet {
            let gateway = Ipv6Addr::from_bits(net.network().to_bits().wrapping_add(1));
            line("FLANNEL_IPV6_SUBNET", &format_args!("{gateway}/{}", net.prefix_len()));
        }
        if let Some(mtu) = self.mtu {
            line("FLANNEL_MTU", &mtu);
        }
        if let Some(ip_masq) = self.ip_masq {
            line("FLANNEL_IPMASQ", &ip_masq);
        }
        text
    }

    /// Reads a file as the original's CNI plugin does: line by line, key and value split at the first
    /// `=`, nothing trimmed, unknown keys ignored, later lines override; keys that are not there stay
    /// empty, see [`Self::missing`].
    ///
    /// Compatibility: a known key without `=` is an error here and crashes the original's plugin; a
    /// network of the other family is an error here and goes into the wrong list there.
    pub fn parse(text: &str) -> Result<SubnetFile, SubnetFileError> {
        let mut file = SubnetFile::default();
        for (at, line) in text.split('\n').enumerate() {
            let at = Line { number: at + 1, text: line };
            let (key, value) = line.split_once('=').unwrap_or((line, ""));
            if !KEYS.contains(&key) {
                continue;
            }
            if !line.contains('=') {
                return Err(at.refuse(key, "", "want '=' and a value after the key"));
            }
            match key {
                "FLANNEL_NETWORK" => file.networks = at.ipv4_list(key, value)?,
                "FLANNEL_SUBNET" => file.subnet = Some(at.ipv4(key, value)?),
                "FLANNEL_IPV6_NETWORK" => file.ipv6_networks = at.ipv6_list(key, value)?,
                "FLANNEL_IPV6_SUBNET" => file.ipv6_subnet = Some(at.ipv6(key, value)?),
                "FLANNEL_MTU" => file.mtu = Some(at.mtu(key, value)?),
                _ => file.ip_masq = Some(value == "true"),
            }
        }
        Ok(file)
    }

    /// The keys that a CNI plugin needs and the file lacks, in the original's words and order.
    pub fn missing(&self) -> Vec<&'static str> {
        let mut missing = Vec::new();
        if self.networks.is_empty() && self.ipv6_networks.is_empty() {
            missing.extend(["FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK"]);
        }
        if self.subnet.is_none() && self.ipv6_subnet.is_none() {
            missing.extend(["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"]);
        }
        if self.mtu.is_none() {
            missing.push("FLANNEL_MTU");
        }
        if self.ip_masq.is_none() {
            missing.push("FLANNEL_IPMASQ");
        }
        missing
    }

    /// The pod subnets.
    pub fn subnets(&self) -> Subnets {
        Subnets { ipv4: self.subnet, ipv6: self.ipv6_subnet }
    }
}

/// The pod subnets that a `subnet.env` of an earlier start names, and what could not be read.
///
/// Read like a shell's environment file: comments, `export`, quotes. A family is taken only if the
/// file names exactly one subnet for it.
///
/// Compatibility: in the original a single malformed line voids the whole file, so that the node
/// gives its subnet away; here it costs only itself. `$VARIABLES` are not expanded.
pub fn previous(text: &str) -> (Subnets, Vec<String>) {
    let mut complaints = Vec::new();
    let mut subnets = Subnets::default();
    let ipv4 = |net| if let IpNet::V4(net) = net { Some(net.trunc()) } else { None };
    let ipv6 = |net| if let IpNet::V6(net) = net { Some(net.trunc()) } else { None };
    for (number, line) in text.lines().enumerate() {
        let Some((key, value)) = assignment(line) else { continue };
        match key {
            "FLANNEL_SUBNET" => subnets.ipv4 = the_one(number + 1, key, value, ipv4, &mut complaints),
            "FLANNEL_IPV6_SUBNET" => subnets.ipv6 = the_one(number + 1, key, value, ipv6, &mut complaints),
            _ => {}
        }
    }
    (subnets, complaints)
}

const KEYS: [&str; 6] = [
    "FLANNEL_NETWORK",
    "FLANNEL_SUBNET",
    "FLANNEL_IPV6_NETWORK",
    "FLANNEL_IPV6_SUBNET",
    "FLANNEL_MTU",
    "FLANNEL_IPMASQ",
];

fn comma_list<T: fmt::Display>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(",")
}

/// A line with its number, for errors.
struct Line<'a> {
    number: usize,
    text: &'a str,
}

impl Line<'_> {
    fn refuse(&self, key: &str, value: &str, rule: &str) -> SubnetFileError {
        let carriage_return = if self.text.ends_with('\r') {
            "; the line ends in a carriage return, which must go"
        } else {
            ""
        };
        SubnetFileError(format!(
            "line {}: {key} is \"{}\", {rule}{carriage_return}; flanneld writes this file anew when it starts",
            self.number,
            shortened(value),
        ))
    }

    fn ipv4(&self, key: &str, value: &str) -> Result<Ipv4Net, SubnetFileError> {
        let net: Result<Ipv4Net, _> = value.parse();
        net.map(|net| net.trunc())
            .map_err(|_| self.refuse(key, value, "want an IPv4 network such as 10.244.1.1/24"))
    }

    fn ipv6(&self, key: &str, value: &str) -> Result<Ipv6Net, SubnetFileError> {
        let net: Result<Ipv6Net, _> = value.parse();
        net.map(|net| net.trunc())
            .map_err(|_| self.refuse(key, value, "want an IPv6 network such as fd00:10:244:1::1/64"))
    }

    fn ipv4_list(&self, key: &str, value: &str) -> Result<Vec<Ipv4Net>, SubnetFileError> {
        distinct(value.split(',').map(|item| self.ipv4(key, item)))
    }

    fn ipv6_list(&self, key: &str, value: &str) -> Result<Vec<Ipv6Net>, SubnetFileError> {
        distinct(value.split(',').map(|item| self.ipv6(key, item)))
    }

    fn mtu(&self, key: &str, value: &str) -> Result<u32, SubnetFileError> {
        let digits = value.bytes().all(|byte| byte.is_ascii_digit());
        value
            .parse()
            .ok()
            .filter(|_| digits)
            .ok_or_else(|| self.refuse(key, value, "want a number of bytes such as 1450, in digits alone"))
    }
}

/// The items in their order, each once.
fn distinct<T: PartialEq, E>(items: impl Iterator<Item = Result<T, E>>) -> Result<Vec<T>, E> {
    let mut list = Vec::new();
    for item in items {
        let item = item?;
        if !list.contains(&item) {
            list.push(item);
        }
    }
    Ok(list)
}

/// Key and value of a line of an environment file; none for blank lines, comments and others.
fn assignment(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    if line.starts_with('#') {
        return None;
    }
    let line = line.strip_prefix("export ").unwrap_or(line);
    let (key, value) = line.split_once(['=', ':'])?;
    let value = value.trim();
    let quoted = ['"', '\''].into_iter().find_map(|quote| value.strip_prefix(quote)?.split_once(quote));
    let value = match quoted {
        Some((inside, _)) => inside,
        None => value.split_once(" #").map_or(value, |(value, _)| value.trim_end()),
    };
    Some((key.trim(), value))
}

fn the_one<T>(
    number: usize,
    key: &str,
    value: &str,
    of_family: impl Fn(IpNet) -> Option<T>,
    complaints: &mut Vec<String>,
) -> Option<T> {
    let mut found = Vec::new();
    for item in value.split(',') {
        match item.trim().parse().ok().and_then(&of_family) {
            Some(net) => found.push(net),
            None => complaints.push(format!(
                "line {number}: {key} names \"{}\", which is no subnet of its family; it is passed over",
                shortened(item)
            )),
        }
    }
    if found.len() > 1 {
        complaints
            .push(format!("line {number}: {key} names {} subnets, want one; none is taken", found.len()));
        return None;
    }
    found.pop()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn dual() -> SubnetFile {
        SubnetFile {
            networks: vec!["10.244.0.0/16".parse().unwrap()],
            subnet: Some("10.244.1.0/24".parse().unwrap()),
            ipv6_networks: vec!["2001:cafe:42::/56".parse().unwrap()],
            ipv6_subnet: Some("2001:cafe:42::/64".parse().unwrap()),
            mtu: Some(1450),
            ip_masq: Some(true),
        }
    }

    const DUAL: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n\
        FLANNEL_IPV6_NETWORK=2001:cafe:42::/56\nFLANNEL_IPV6_SUBNET=2001:cafe:42::1/64\n\
        FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

    #[test]
    fn the_text_is_the_originals() {
        assert_eq!(dual().render(), DUAL);
        let ipv4 = SubnetFile {
            networks: vec!["10.1.0.0/16".parse().unwrap()],
            subnet: Some("10.1.74.0/24".parse().unwrap()),
            mtu: Some(1472),
            ip_masq: Some(false),
            ..SubnetFile::default()
        };
        assert_eq!(
            ipv4.render(),
            "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"
        );
    }

    #[test]
    fn what_is_written_is_read_back() {
        assert_eq!(SubnetFile::parse(DUAL).unwrap(), dual());
        assert_eq!(dual().missing(), [""; 0]);
    }

    #[test]
    fn reading_follows_the_plugin() {
        let text = "# comment\n\nFLANNEL_NETWORK=10.1.2.3/16,10.2.0.0/16,10.1.0.0/16\nFLANNEL_SUBNET=10.1.9.1/24\n\
            FLANNEL_SUBNET=10.1.17.1/24\nOTHER\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=TRUE\n FLANNEL_MTU=9";
        let file = SubnetFile::parse(text).unwrap();
        assert_eq!(file.networks, ["10.1.0.0/16".parse().unwrap(), "10.2.0.0/16".parse().unwrap()]);
        assert_eq!(file.subnet, Some("10.1.17.0/24".parse().unwrap()), "the last line counts");
        assert_eq!(file.ip_masq, Some(false), "only the exact text true is true");
        assert_eq!(file.mtu, Some(1472), "a key is not trimmed");
    }

    #[test]
    fn missing_keys_are_named_in_the_originals_order() {
        let missing = SubnetFile::parse("").unwrap().missing();
        assert_eq!(
            missing.join(", "),
            "FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ"
        );
        let file = SubnetFile::parse("FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_SUBNET=10.1.1.1/24").unwrap();
        assert_eq!(file.missing(), ["FLANNEL_MTU", "FLANNEL_IPMASQ"]);
    }

    #[test]
    fn errors_name_line_key_value_and_rule() {
        let error = |text| SubnetFile::parse(text).unwrap_err().to_string();
        assert_eq!(
            error("FLANNEL_IPMASQ=true\nFLANNEL_MTU=1450x"),
            "line 2: FLANNEL_MTU is \"1450x\", want a number of bytes such as 1450, in digits alone; \
             flanneld writes this file anew when it starts"
        );
        assert!(error("FLANNEL_MTU=1450\r\n").contains("carriage return"));
        assert!(error("FLANNEL_MTU=+5").contains("digits"));
        assert!(error("FLANNEL_MTU=").contains("digits"));
        assert!(error("FLANNEL_MTU=4294967296").contains("4294967296"));
        assert!(error("FLANNEL_SUBNET").contains("want '='"));
        assert!(error("FLANNEL_SUBNET=fd00::1/64").contains("want an IPv4 network"));
        assert!(error("FLANNEL_IPV6_NETWORK=10.0.0.0/8").contains("want an IPv6 network"));
        assert!(error("FLANNEL_NETWORK=10.0.0.0/8, 10.1.0.0/16").contains(" 10.1.0.0/16"));
    }

    #[test]
    fn the_previous_subnets_are_found_in_a_shells_words() {
        let subnets = |v4: Option<&str>, v6: Option<&str>| Subnets {
            ipv4: v4.map(|net| net.parse().unwrap()),
            ipv6: v6.map(|net| net.parse().unwrap()),
        };
        let both = subnets(Some("10.244.1.0/24"), Some("2001:cafe:42::/64"));
        assert_eq!(previous(DUAL), (both, vec![]));
        let shell = "# by hand\nexport FLANNEL_SUBNET=\"10.244.1.1/24\" # mine\r\n{malformed\nFLANNEL_IPV6_SUBNET: '2001:cafe:42::1/64'";
        assert_eq!(previous(shell).0, both);
        assert_eq!(previous("FLANNEL_SUBNET=10.244.1.1/24 # mine").0, subnets(Some("10.244.1.0/24"), None));
        assert_eq!(previous("").0, Subnets::default());
    }

    #[test]
    fn of_several_previous_subnets_none_is_taken() {
        let (subnets, complaints) = previous("FLANNEL_SUBNET=10.244.1.1/24,10.244.2.1/24");
        assert_eq!(subnets, Subnets::default());
        assert!(complaints[0].contains("names 2 subnets"), "{complaints:?}");
        let (subnets, complaints) = previous("FLANNEL_SUBNET=garbage,10.244.2.1/24,fd00::1/64");
        assert_eq!(subnets.ipv4, Some("10.244.2.0/24".parse().unwrap()), "unreadable ones are passed over");
        assert_eq!(complaints.len(), 2, "{complaints:?}");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(FLANNEL_(SUBNET|NETWORK|MTU|IPMASQ|IPV6_SUBNET)?[=:,]?|[0-9a-f.:/,]{0,20}|\n|.){0,30}") {
            let _ = SubnetFile::parse(&text);
            let _ = previous(&text);
        }

        #[test]
        fn what_is_parsed_survives_a_round_trip(
            ipv4 in proptest::option::of((any::<u32>(), 1..=30u8)),
            ipv6 in proptest::option::of((any::<u128>(), 1..=126u8)),
            mtu in proptest::option::of(any::<u32>()),
            ip_masq in proptest::option::of(any::<bool>()),
        ) {
            let ipv4 = ipv4.map(|(ip, len)| Ipv4Net::new_assert(Ipv4Addr::from_bits(ip), len).trunc());
            let ipv6 = ipv6.map(|(ip, len)| Ipv6Net::new_assert(Ipv6Addr::from_bits(ip), len).trunc());
            let file = SubnetFile {
                networks: ipv4.into_iter().collect(),
                subnet: ipv4,
                ipv6_networks: ipv6.into_iter().collect(),
                ipv6_subnet: ipv6,
                mtu,
                ip_masq,
            };
            prop_assert_eq!(SubnetFile::parse(&file.render()).unwrap(), file.clone());
            prop_assert_eq!(previous(&file.render()).0, file.subnets());
        }
    }
}
