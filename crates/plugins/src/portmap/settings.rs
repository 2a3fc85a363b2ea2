//! What the configuration says to `portmap`.

use std::net::IpAddr;

use cni::json::{DecodeError, Object};
use cni::{Error, Request};

/// The protocols that have ports and that both backends know.
const PROTOCOLS: [(&str, u8); 3] = [("tcp", 6), ("udp", 17), ("sctp", 132)];
/// Which bit of a packet's mark says that it is to be masqueraded. Kubernetes uses 14 and 15, Calico
/// 20 to 31.
const MARK_BIT: i64 = 13;

/// What is to be forwarded, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    /// By what.
    pub(super) backend: Backend,
    /// Whether to give packets the host's address that would find no way back otherwise: those from the
    /// container itself and from 127.0.0.1.
    pub(super) snat: bool,
    /// Whether to give it to all packets.
    pub(super) masq_all: bool,
    /// The mark of packets to be masqueraded (iptables).
    pub(super) mark: u32,
    /// A chain of somebody else's that marks them (iptables).
    pub(super) set_mark_chain: Option<String>,
    /// Words of a rule that packets must match.
    pub(super) conditions_v4: Vec<String>,
    /// The same for IPv6.
    pub(super) conditions_v6: Vec<String>,
    /// The ports.
    pub(super) mappings: Vec<Mapping>,
}

/// By what rules are to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Backend {
    /// What suits the host.
    Automatic,
    /// nftables.
    Nftables,
    /// iptables.
    Iptables,
}

/// One port of the host that leads to one of the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mapping {
    /// As IANA numbers protocols.
    pub(super) protocol: u8,
    /// As the backends call it.
    pub(super) protocol_name: &'static str,
    /// On the host.
    pub(super) host_port: u16,
    /// In the container.
    pub(super) container_port: u16,
    /// Only packets to this address of the host; to all of its family if it is the unspecified one, to
    /// all if there is none.
    pub(super) host_ip: Option<IpAddr>,
}

impl Mapping {
    /// Whether this is forwarded to a container's address of that family.
    pub(super) fn applies_to(&self, address: IpAddr) -> bool {
        self.host_ip.is_none_or(|ip| ip.is_ipv4() == address.is_ipv4())
    }

    /// The address of the host that packets must be sent to, if not any will do.
    pub(super) fn destination(&self) -> Option<IpAddr> {
        self.host_ip.filter(|ip| !ip.is_unspecified())
    }
}

impl Settings {
    /// Reads and checks the configuration.
    pub(super) fn parse(request: &Request) -> Result<Settings, Error> {
        let config = request.config.object();
        Settings::of(&config)
            .map_err(|error| Error::internal(format!("failed to parse network configuration: {error}")))?
    }

    /// The ports of the host by which UDP is forwarded.
    pub(super) fn udp_ports(&self) -> Vec<u16> {
        let udp = self.mappings.iter().filter(|mapping| mapping.protocol_name == "udp");
        udp.map(|mapping| mapping.host_port).collect()
    }

    /// What packets to a container's address must match.
    pub(super) fn conditions(&self, address: IpAddr) -> &[String] {
        if address.is_ipv4() { &self.conditions_v4 } else { &self.conditions_v6 }
    }

    fn of(config: &Object<'_>) -> Result<Result<Settings, Error>, DecodeError> {
        let bit = config.integer("markMasqBit")?;
        let set_mark_chain = config.string("externalSetMarkChain")?;
        let conditions_v4 = conditions(config, "conditionsV4")?;
        let conditions_v6 = conditions(config, "conditionsV6")?;
        let backend = config.string("backend")?;
        let snat = config.boolean("snat")?.unwrap_or(true);
        let masq_all = config.boolean("masqAll")?.unwrap_or(false);
        let runtime = config.object("runtimeConfig")?;
        let mappings = runtime.map(|runtime| runtime.objects("portMappings")).transpose()?.flatten();
        let mappings: Vec<RawMapping> =
            mappings.unwrap_or_default().iter().map(RawMapping::of).collect::<Result<_, _>>()?;

        let settings = || {
            if bit.is_some() && set_mark_chain.is_some() {
                return Err(Error::internal("Cannot specify externalSetMarkChain and markMasqBit"));
            }
            let mark = u32::try_from(bit.unwrap_or(MARK_BIT)).ok().and_then(|bit| 1_u32.checked_shl(bit));
            let mark = mark.ok_or_else(|| {
                Error::internal("MasqMarkBit must be between 0 and 31")
                    .details(format!("markMasqBit is {}", bit.unwrap_or_default()))
            })?;
            let backend = choose(backend, set_mark_chain, [&conditions_v4, &conditions_v6])?;
            Ok(Settings {
                backend,
                snat,
                masq_all,
                mark,
                set_mark_chain: set_mark_chain.map(str::to_owned),
                conditions_v4,
                conditions_v6,
                mappings: mappings.into_iter().map(RawMapping::check).collect::<Result<_, _>>()?,
            })
        };
        Ok(settings())
    }
}

/// The words of a condition; a first word that is empty is as good as none.
fn conditions(config: &Object<'_>, key: &str) -> Result<Vec<String>, DecodeError> {
    let words = config.strings(key)?.unwrap_or_default();
    Ok(if words.first().is_some_and(String::is_empty) { Vec::new() } else { words })
}

/// The backend that is asked for by name, or by options that only one of them has.
fn choose(
    name: Option<&str>,
    set_mark_chain: Option<&str>,
    conditions: [&Vec<String>; 2],
) -> Result<Backend, Error> {
    let (mut of_iptables, mut of_nftables) = (Vec::new(), Vec::new());
    if set_mark_chain.is_some() {
        of_iptables.push("externalSetMarkChain");
    }
    for (key, words) in ["conditionsV4", "conditionsV6"].into_iter().zip(conditions) {
        match words.first() {
            // No condition of nftables begins so.
            Some(first) if first.starts_with(['-', '!']) => of_iptables.push(key),
            Some(_) => of_nftables.push(key),
            None => {}
        }
    }
    let backend = match name {
        Some("iptables") => Backend::Iptables,
        Some("nftables") => Backend::Nftables,
        Some(other) => {
            return Err(Error::internal(format!("unrecognized backend {other:?}"))
                .details("backend can be \"iptables\", \"nftables\", or left out"));
        }
        None if !of_iptables.is_empty() => Backend::Iptables,
        None if !of_nftables.is_empty() => Backend::Nftables,
        None => Backend::Automatic,
    };
    let (asked, other, wrong) = match backend {
        Backend::Iptables => ("iptables", "nftables", of_nftables),
        _ => ("nftables", "iptables", of_iptables),
    };
    if backend == Backend::Automatic || wrong.is_empty() {
        return Ok(backend);
    }
    Err(Error::internal(format!(
        "{asked} backend was requested but configuration contains {other}-specific options [{}]",
        wrong.join(" ")
    )))
}

struct RawMapping {
    host_port: i64,
    container_port: i64,
    protocol: String,
    host_ip: Option<IpAddr>,
}

impl RawMapping {
    fn of(object: &Object<'_>) -> Result<RawMapping, DecodeError> {
        Ok(RawMapping {
            host_port: object.integer("hostPort")?.unwrap_or(0),
            container_port: object.integer("containerPort")?.unwrap_or(0),
            protocol: object.string("protocol")?.unwrap_or_default().to_lowercase(),
            host_ip: object.parsed::<IpAddr>("hostIP", "an IP address")?.map(|ip| ip.to_canonical()),
        })
    }

    fn check(self) -> Result<Mapping, Error> {
        let port = |what: &str, number: i64| {
            u16::try_from(number).ok().filter(|port| *port > 0).ok_or_else(|| {
                Error::internal(format!("Invalid {what} port number: {number}"))
                    .details("ports are from 1 to 65535")
            })
        };
        let container_port = port("container", self.container_port)?;
        let host_port = port("host", self.host_port)?;
        let known = PROTOCOLS.into_iter().find(|(name, _)| *name == self.protocol);
        let (protocol_name, protocol) = known.ok_or_else(|| {
            Error::internal(format!("Invalid protocol of host port {host_port}: {:?}", self.protocol))
                .details("protocol can be \"tcp\", \"udp\" or \"sctp\"")
        })?;
        Ok(Mapping { protocol, protocol_name, host_port, container_port, host_ip: self.host_ip })
    }
}

#[cfg(test)]
mod tests {
    use cni::{Config, Environment, Version};
    use serde_json::{Value, json};

    use super::*;

    fn parse(config: Value) -> Result<Settings, String> {
        let mut config = config;
        config["name"] = json!("net");
        let config = Config::parse(config.to_string().into_bytes()).unwrap();
        let request = Request { environment: Environment::default(), config, version: Version::V1_0_0 };
        Settings::parse(&request).map_err(|error| error.msg)
    }

    #[test]
    fn options_that_only_one_backend_has_ask_for_it() {
        let backend = |config| parse(config).map(|settings| settings.backend);
        assert_eq!(backend(json!({})), Ok(Backend::Automatic));
        assert_eq!(backend(json!({"conditionsV4": [""], "conditionsV6": []})), Ok(Backend::Automatic));
        assert_eq!(backend(json!({"conditionsV4": ["-s", "10.0.0.1"]})), Ok(Backend::Iptables));
        assert_eq!(backend(json!({"conditionsV6": ["ip6", "saddr", "::1"]})), Ok(Backend::Nftables));
        assert_eq!(backend(json!({"externalSetMarkChain": "KUBE-MARK-MASQ"})), Ok(Backend::Iptables));
        assert_eq!(
            backend(json!({"backend": "nftables", "externalSetMarkChain": "A", "conditionsV4": ["!", "-d"]})),
            Err("nftables backend was requested but configuration contains iptables-specific options \
                 [externalSetMarkChain conditionsV4]"
                .to_owned())
        );
        assert_eq!(
            backend(json!({"backend": "iptables", "conditionsV4": ["ip", "daddr"]})),
            Err("iptables backend was requested but configuration contains nftables-specific options \
                 [conditionsV4]"
                .to_owned())
        );
        assert_eq!(backend(json!({"backend": "ebtables"})), Err("unrecognized backend \"ebtables\"".into()));
    }

    #[test]
    fn a_mark_is_one_bit_of_32() {
        assert_eq!(parse(json!({})).unwrap().mark, 0x2000);
        assert_eq!(parse(json!({"markMasqBit": 0})).unwrap().mark, 1);
        assert_eq!(parse(json!({"markMasqBit": 31})).unwrap().mark, 1 << 31);
        for bit in [-1, 32] {
            let refused = parse(json!({"markMasqBit": bit}));
            assert_eq!(refused, Err("MasqMarkBit must be between 0 and 31".to_owned()));
        }
        let both = parse(json!({"markMasqBit": 5, "externalSetMarkChain": "A"}));
        assert_eq!(both, Err("Cannot specify externalSetMarkChain and markMasqBit".to_owned()));
    }

    #[test]
    fn a_mapping_names_two_ports_and_a_protocol_that_has_them() {
        let mapping = |host: i64, container: i64, protocol: &str, ip: &str| {
            let mapping = json!({"hostPort": host, "containerPort": container, "protocol": protocol,
                                 "hostIP": ip});
            parse(json!({"runtimeConfig": {"portMappings": [mapping]}})).map(|s| s.mappings[0].clone())
        };
        let tcp = mapping(8080, 80, "TCP", "").unwrap();
        assert_eq!((tcp.protocol, tcp.protocol_name, tcp.host_ip), (6, "tcp", None));
        assert_eq!(mapping(0, 80, "tcp", ""), Err("Invalid host port number: 0".to_owned()));
        assert_eq!(mapping(1, 65536, "tcp", ""), Err("Invalid container port number: 65536".to_owned()));
        assert_eq!(mapping(80, 80, "", ""), Err("Invalid protocol of host port 80: \"\"".to_owned()));
        assert!(
            mapping(80, 80, "udp", "localhost")
                .unwrap_err()
                .contains("\"runtimeConfig.portMappings[0].hostIP\"")
        );

        let any6 = mapping(80, 80, "udp", "::").unwrap();
        assert!(!any6.applies_to("10.0.0.2".parse().unwrap()));
        assert!(any6.applies_to("fd00::2".parse().unwrap()));
        assert_eq!(any6.destination(), None);
    }
}
