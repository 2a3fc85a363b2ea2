//! `subnet.env`: what the CNI plugin, Docker and the next start of flanneld read.

use ipnet::{Ipv4Net, Ipv6Net};

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
        todo!()
    }

    /// Reads a file line by line; keys that are not there stay empty, see [`Self::missing`].
    pub fn parse(_text: &str) -> Result<SubnetFile, SubnetFileError> {
        todo!()
    }

    /// The keys that a CNI plugin needs and the file lacks, in the original's words and order.
    pub fn missing(&self) -> Vec<&'static str> {
        todo!()
    }

    /// The pod subnets.
    pub fn subnets(&self) -> Subnets {
        Subnets { ipv4: self.subnet, ipv6: self.ipv6_subnet }
    }
}
