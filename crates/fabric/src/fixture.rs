//! Nodes and leases for tests: node `n` has 192.168.0.n and fd09::n on `eth0`, the pod subnets
//! 10.244.n.0/24 and fd00:10:244:n::/64, and VTEP MACs that end in n.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde_json::value::RawValue;

use crate::backend::VtepMacs;
use crate::config::NetworkConfig;
use crate::firewall::SourcePorts;
use crate::host::{ExternalInterface, Host, Reach, RouteStyle, UnderlayRoute};
use crate::instance::Instance;
use crate::lease::{Attributes, Lease, LeaseSet, Subnets};
use crate::mac::Mac;
use crate::plan::{Intent, Masquerade, Options};

pub(crate) const VXLAN: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;
pub(crate) const HOST_GW: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}"#;

/// A configuration for IPv6, alone or beside IPv4.
pub(crate) fn with_ipv6(ipv4: bool, backend: &str) -> String {
    format!(
        r#"{{"EnableIPv4":{ipv4},"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{backend}}}"#
    )
}

pub(crate) fn subnets(n: u8) -> Subnets {
    Subnets {
        ipv4: Some(format!("10.244.{n}.0/24").parse().unwrap()),
        ipv6: Some(format!("fd00:10:244:{n:x}::/64").parse().unwrap()),
    }
}

pub(crate) fn macs(n: u8) -> VtepMacs {
    VtepMacs { ipv4: Some(Mac([0x0e, 0x2a, 0, 0, 4, n])), ipv6: Some(Mac([0x0e, 0x2a, 0, 0, 6, n])) }
}

pub(crate) fn external(n: u8) -> ExternalInterface {
    let ipv4 = Some(Ipv4Addr::new(192, 168, 0, n));
    let ipv6 = Some(Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, n.into()));
    ExternalInterface {
        link: "eth0".parse().unwrap(),
        mtu: 1500,
        ipv4,
        ipv6,
        public_ipv4: ipv4,
        public_ipv6: ipv6,
    }
}

/// Node 1 under a configuration; its options are the defaults with `--ip-masq`.
pub(crate) fn intent(json: &str) -> Intent {
    let config = NetworkConfig::from_json(json).unwrap();
    let all = subnets(1);
    let underlay = |destination: &str, reach| UnderlayRoute {
        destination: destination.parse().unwrap(),
        link: "eth0".parse().unwrap(),
        reach,
    };
    Intent {
        host: Host {
            external: external(1),
            own: Subnets {
                ipv4: all.ipv4.filter(|_| config.ipv4.is_some()),
                ipv6: all.ipv6.filter(|_| config.ipv6.is_some()),
            },
            underlay: vec![
                underlay("0.0.0.0/0", Reach::Gateway),
                underlay("192.168.0.0/24", Reach::Direct),
                underlay("::/0", Reach::Gateway),
                underlay("fd09::/64", Reach::Direct),
            ],
            route_style: RouteStyle::Plain,
            public_here: Vec::new(),
        },
        config,
        options: Options {
            masquerade: Masquerade {
                ipv4: true,
                ipv6: true,
                except: Vec::new(),
                source_ports: SourcePorts::FullyRandom,
            },
            forward_rules: true,
            blackhole_route: false,
            instance: Instance::default(),
        },
        macs: macs(1),
    }
}

/// The lease of node `n` in the network of `intent`, as that node would write it.
pub(crate) fn lease(intent: &Intent, n: u8) -> Lease {
    let Intent { config, .. } = intent;
    let all = subnets(n);
    Lease {
        subnets: Subnets {
            ipv4: all.ipv4.filter(|_| config.ipv4.is_some()),
            ipv6: all.ipv6.filter(|_| config.ipv6.is_some()),
        },
        attributes: config.backend.attributes(config, &external(n), macs(n)),
        created: u64::from(n),
    }
}

/// The leases of several nodes.
pub(crate) fn leases(intent: &Intent, nodes: impl IntoIterator<Item = u8>) -> LeaseSet {
    nodes.into_iter().map(|n| lease(intent, n)).collect()
}

/// Backend data as it stands in a lease.
pub(crate) fn raw(json: &str) -> Option<Box<RawValue>> {
    Some(RawValue::from_string(json.to_owned()).unwrap())
}

/// A lease with an IPv4 subnet and nothing else of note.
pub(crate) fn bare(subnets: &str, created: u64) -> Lease {
    Lease { subnets: subnets.parse().unwrap(), attributes: Attributes::default(), created }
}

/// The lease of one of very many nodes in 10.0.0.0/8, with a vxlan endpoint.
pub(crate) fn numbered(intent: &Intent, n: u32) -> Lease {
    let mut lease = lease(intent, 200);
    let [_, a, b, c] = n.to_be_bytes();
    let subnet = Ipv4Addr::from_bits((10 << 24) + ((n + 0x8000) << 8));
    lease.subnets = Subnets { ipv4: Some(format!("{subnet}/24").parse().unwrap()), ipv6: None };
    lease.attributes.public_ipv4 = Some(Ipv4Addr::new(172, 16 + a, b, c));
    lease.attributes.backend_data = raw(&format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, Mac([2, 0, 0, a, b, c])));
    lease.created = n.into();
    lease
}
