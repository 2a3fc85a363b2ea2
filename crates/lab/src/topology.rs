//! [`Topology`]: what a lab is made of.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What a lab is made of. Start from [`Topology::vxlan`] or its siblings and change what matters.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Topology {
    /// How many nodes there are, at most 200.
    pub nodes: usize,
    /// The address families of the underlay and of the pod network.
    pub families: Families,
    /// The `Backend` object of net-conf.json.
    pub backend: Value,
    /// Members of net-conf.json besides networks, families and backend; they win over ours.
    pub network: Value,
    /// Where the leases are kept.
    pub store: StoreKind,
    /// Flags of flanneld on every node, besides those that a lab needs.
    pub flags: Vec<String>,
    /// Ethernet segments; node n is in segment (n-1) modulo this. The switch routes between them.
    pub segments: usize,
    /// The MTU of the underlay.
    pub mtu: u32,
    /// Whether nodes have a default route (by way of the switch).
    pub default_route: bool,
}

/// The backends that a lab can be asked for by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// `vxlan`
    Vxlan,
    /// `host-gw`
    HostGw,
    /// `udp`
    Udp,
    /// `alloc`
    Alloc,
}

/// Address families.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Families {
    /// IPv4 only.
    Ipv4,
    /// IPv6 only.
    Ipv6,
    /// Both.
    Dual,
}

/// Where a lab keeps its leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoreKind {
    /// In a directory.
    File,
    /// In an etcd that runs in the switch's namespace; needs the program `etcd`.
    Etcd,
}

impl Backend {
    /// The name in net-conf.json.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Vxlan => "vxlan",
            Backend::HostGw => "host-gw",
            Backend::Udp => "udp",
            Backend::Alloc => "alloc",
        }
    }
}

impl Families {
    /// Whether IPv4 is among them.
    pub fn ipv4(self) -> bool {
        self != Families::Ipv6
    }

    /// Whether IPv6 is among them.
    pub fn ipv6(self) -> bool {
        self != Families::Ipv4
    }
}

impl Topology {
    /// Nodes of one segment with a backend's defaults, IPv4, leases in a directory.
    pub fn new(nodes: usize, backend: Backend) -> Topology {
        Topology {
            nodes,
            families: Families::Ipv4,
            backend: json!({ "Type": backend.name() }),
            network: json!({}),
            store: StoreKind::File,
            flags: Vec::new(),
            segments: 1,
            mtu: 1500,
            default_route: true,
        }
    }

    /// Nodes with the vxlan backend.
    pub fn vxlan(nodes: usize) -> Topology {
        Topology::new(nodes, Backend::Vxlan)
    }

    /// Nodes with the host-gw backend.
    pub fn host_gw(nodes: usize) -> Topology {
        Topology::new(nodes, Backend::HostGw)
    }

    /// Nodes with the udp backend.
    pub fn udp(nodes: usize) -> Topology {
        Topology::new(nodes, Backend::Udp)
    }

    /// Nodes with the alloc backend.
    pub fn alloc(nodes: usize) -> Topology {
        Topology::new(nodes, Backend::Alloc)
    }

    /// With these address families.
    pub fn families(self, families: Families) -> Topology {
        Topology { families, ..self }
    }

    /// With this `Backend` object.
    pub fn backend(self, backend: Value) -> Topology {
        Topology { backend, ..self }
    }

    /// With the leases in an etcd of its own.
    pub fn etcd(self) -> Topology {
        Topology { store: StoreKind::Etcd, ..self }
    }

    /// With one more flag for flanneld.
    pub fn flag(mut self, flag: impl Into<String>) -> Topology {
        self.flags.push(flag.into());
        self
    }

    /// net-conf.json.
    pub fn net_conf(&self) -> Value {
        let mut conf = json!({
            "EnableIPv4": self.families.ipv4(),
            "EnableIPv6": self.families.ipv6(),
            "Backend": self.backend,
        });
        if self.families.ipv4() {
            conf["Network"] = json!("10.244.0.0/16");
        }
        if self.families.ipv6() {
            conf["IPv6Network"] = json!("fd10:244::/48");
        }
        if let Value::Object(more) = &self.network {
            for (key, value) in more {
                conf[key] = value.clone();
            }
        }
        conf
    }

    /// The segment of a node, from 0.
    pub fn segment_of(&self, node: usize) -> usize {
        (node - 1) % self.segments
    }

    /// The underlay addresses of node `node` (from 1), IPv4 first.
    pub fn addresses(&self, node: usize) -> Vec<IpNet> {
        self.host(self.segment_of(node), u8::try_from(node).expect("a lab has at most 200 nodes"))
    }

    /// The switch's addresses in a segment, IPv4 first.
    pub fn gateways(&self, segment: usize) -> Vec<IpNet> {
        self.host(segment, 254)
    }

    /// The switch's address in the first segment, under which etcd listens.
    pub fn switch_address(&self) -> IpAddr {
        self.gateways(0)[0].addr()
    }

    fn host(&self, segment: usize, host: u8) -> Vec<IpNet> {
        let segment = u8::try_from(segment).expect("a lab has few segments");
        let ipv4 = Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 64 + segment, host), 24);
        let ipv6 = Ipv6Addr::new(0xfd64, u16::from(segment), 0, 0, 0, 0, 0, u16::from(host));
        let ipv6 = Ipv6Net::new_assert(ipv6, 64);
        let ipv4 = self.families.ipv4().then_some(IpNet::V4(ipv4));
        let ipv6 = self.families.ipv6().then_some(IpNet::V6(ipv6));
        ipv4.into_iter().chain(ipv6).collect()
    }
}
