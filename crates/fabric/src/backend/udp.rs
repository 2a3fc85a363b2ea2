//! `udp`: packets of pods travel as the payload of UDP datagrams, which a data path in user space
//! sends and receives.
//!
//! A node has one TUN device, `flannel0`, with the network address of its pod subnet as a /32 or /128,
//! and a route to the whole network through it: what the kernel sends there, the data path sends on to
//! the node that has the destination. A peer costs no kernel object at all, only an entry in the
//! table of the data path ([`Dataplane::tunnel`]).
//!
//! A datagram holds one IP packet and nothing else. The port is the same on all nodes and in no lease:
//! peers are sent to on our own. IPv4 pods travel over IPv4, as in the original. IPv6 is an addition: a
//! node that has it says so by `BackendV6Data`, which the original never writes, and only such a peer
//! is sent any, over IPv6.
//!
//! MTU: UDP over IPv4 takes 28 bytes, over IPv6 48. Pods have one MTU for both families.

use super::{Path, Peer};
use crate::config::json::Object;
use crate::config::{ConfigError, NetworkConfig};
use crate::dataplane::{Dataplane, IpFamily, Link, LinkKind, Route, Target, Tun};
use crate::host::{ExternalInterface, Host};
use crate::lease::{Attributes, Lease};
use crate::link_name::LinkName;
use crate::ownership::ROUTE_PROTOCOL;
use ipnet::IpNet;

/// The `udp` parameters of the network configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Udp {
    /// `Port`: of all nodes.
    pub port: u16,
    /// `AnySource`: whether packets of any source are taken from anybody, as in the original, instead
    /// of only those of its own pods from each node.
    pub any_source: bool,
}

/// The port of the original.
const DEFAULT_PORT: u16 = 8285;
/// The original's pattern is `flannel%d`, which makes this name wherever it is free.
const DEVICE: &str = "flannel0";
/// What waits in each queue of the device: twice the kernel's default, since a reader that sends takes
/// packets in bursts.
const QUEUE_LENGTH: u32 = 1000;
/// Compatibility: our device stays when flanneld ends. The original, started after it, makes one called
/// flannel1, adds its route to the network without a metric, and does not mind if there is one already:
/// it has to come before ours, or nobody would carry the packets.
const BEHIND_THE_ORIGINALS: u32 = 1;
/// The smallest MTU of IPv4 (RFC 791) and of IPv6 (RFC 8200 §5).
const SMALLEST_MTU: [u32; 2] = [68, 1280];
/// What a node writes into its lease that takes IPv6 packets.
const ANNOUNCEMENT: &str = r#"{"IPv6":true}"#;

/// What UDP adds to a packet, by the family of the outer header.
fn overhead(outer: IpFamily) -> u32 {
    match outer {
        IpFamily::V4 => 20 + 8,
        IpFamily::V6 => 40 + 8,
    }
}

impl Default for Udp {
    fn default() -> Udp {
        Udp { port: DEFAULT_PORT, any_source: false }
    }
}

impl Udp {
    /// Reads the keys of `Backend`.
    pub(crate) fn from_keys(keys: &Object) -> Result<Udp, ConfigError> {
        let field = |name| keys.field_in("Backend.", name);
        let port = match field("Port").integer()? {
            None => DEFAULT_PORT,
            Some(port @ 1..=65535) => port as u16,
            Some(port) => {
                let range = "a number from 1 to 65535, the same on all nodes";
                return Err(field("Port").refuse(format_args!("Port out of range: {port}"), range));
            }
        };
        Ok(Udp { port, any_source: field("AnySource").boolean()?.unwrap_or(false) })
    }

    /// The device.
    pub fn link(&self) -> LinkName {
        DEVICE.parse().expect("flannel0 is a name that fits")
    }

    /// Compatibility: no backend type, as the original writes none; and of IPv6 the original says
    /// nothing at all.
    pub(super) fn attributes(&self, config: &NetworkConfig, external: &ExternalInterface) -> Attributes {
        let public_ipv6 = external.public_ipv6.filter(|_| config.ipv6.is_some());
        let announcement = || serde_json::value::RawValue::from_string(ANNOUNCEMENT.to_owned());
        Attributes {
            public_ipv4: external.public_ipv4.filter(|_| config.ipv4.is_some()),
            public_ipv6,
            backend_v6_data: public_ipv6.map(|_| announcement().expect("the announcement is JSON")),
            ..Attributes::default()
        }
    }

    pub(super) fn mtu(&self, config: &NetworkConfig, external: &ExternalInterface) -> u32 {
        let of = |net: IpNet| external.mtu.saturating_sub(overhead(IpFamily::of(&net)));
        config.networks().map(of).min().unwrap_or(external.mtu)
    }

    pub(super) fn check(&self, config: &NetworkConfig, external: &ExternalInterface) -> Result<(), String> {
        let [ipv4, ipv6] = SMALLEST_MTU;
        let (smallest, overhead) = match config.ipv6 {
            Some(_) => (ipv6, overhead(IpFamily::V6)),
            None => (ipv4, overhead(IpFamily::V4)),
        };
        if self.mtu(config, external) >= smallest {
            return Ok(());
        }
        Err(format!(
            "the MTU of {} is {}, want {} at least: udp takes {overhead} bytes, and pods need {smallest}; raise it \
             (ip link set {} mtu 1500) or choose another interface with --iface",
            external.link,
            external.mtu,
            smallest + overhead,
            external.link,
        ))
    }

    /// The device with its addresses and the routes to the networks.
    pub(super) fn device(&self, config: &NetworkConfig, host: &Host, into: &mut Dataplane) {
        let name = self.link();
        let kind = LinkKind::Tun(Tun { multi_queue: true, queue_length: QUEUE_LENGTH });
        into.links.insert(name, Link { name, kind, mtu: self.mtu(config, &host.external), mac: None });
        // Router advertisements from a pod must not give the host a route or an address.
        into.sysctls.insert(format!("net/ipv6/conf/{name}/accept_ra"), "0".to_owned());
        if config.ipv4.is_some() {
            // What the data path tells pods by ICMP comes from this node's own address. The kernel would
            // take that for a forgery, and does so with what the original sends. Where any source is
            // taken from anybody it must, or they could speak for this node.
            let accept = if self.any_source { "0" } else { "1" };
            into.sysctls.insert(format!("net/ipv4/conf/{name}/accept_local"), accept.to_owned());
        }
        let own = host.own.iter().filter(|own| config.networks().any(|net| net.contains(own)));
        into.addresses.extend(own.map(|own| (name, IpNet::from(own.network()))));
        into.routes.extend(config.networks().map(|network| Route {
            destination: network,
            metric: Route::default_metric(&network) + BEHIND_THE_ORIGINALS,
            target: Target::Device(name),
            protocol: ROUTE_PROTOCOL,
        }));
    }

    /// Notes who has one pod subnet.
    pub(super) fn peer(&self, lease: &Lease, peer: &Peer, into: &mut Dataplane) -> Result<Path, String> {
        let announced = || {
            let data = lease.attributes.backend_v6_data.as_deref().map_or("null", |raw| raw.get());
            Object::parse(data).is_ok_and(|keys| keys.field("IPv6").boolean() == Ok(Some(true)))
        };
        if IpFamily::of(&peer.subnet) == IpFamily::V6 && !announced() {
            return Err(format!(
                "its flannel does not say that it takes IPv6 packets (BackendV6Data {ANNOUNCEMENT}), and the \
                 original's udp backend knows none"
            ));
        }
        into.tunnel.insert(peer.subnet, peer.public);
        Ok(Path::Tunnel)
    }
}

/// Whether a lease's backend type is that of this backend: none, as the original writes it.
pub(super) fn is_ours(backend_type: &str) -> bool {
    backend_type.is_empty() || backend_type == "udp"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Backend;
    use crate::fixture::{intent, lease, leases, with_ipv6};
    use crate::lease::LeaseSet;

    const UDP: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"udp"}}"#;

    #[test]
    fn the_keys_are_those_of_the_original_and_one_more() {
        let read = |keys: &str| {
            let config =
                NetworkConfig::from_json(&format!(r#"{{"Network":"10.244.0.0/16","Backend":{keys}}}"#))?;
            let Backend::Udp(udp) = config.backend else { panic!("not udp") };
            Ok::<_, ConfigError>((udp, config.warnings))
        };
        assert_eq!(read(r#"{"Type":"udp"}"#), Ok((Udp { port: 8285, any_source: false }, vec![])));
        let keys = r#"{"type":"UDP","port":9999,"AnySource":true}"#;
        assert_eq!(read(keys), Ok((Udp { port: 9999, any_source: true }, vec![])));
        for port in ["0", "65536", "-1"] {
            let error = read(&format!(r#"{{"Type":"udp","Port":{port}}}"#)).unwrap_err().to_string();
            assert!(error.contains("Backend.Port") && error.contains("1 to 65535"), "{error}");
        }
    }

    #[test]
    fn without_a_backend_it_is_udp_as_in_the_original() {
        let config = NetworkConfig::from_json(r#"{"Network":"10.244.0.0/16"}"#).unwrap();
        assert_eq!(config.backend, Backend::Udp(Udp { port: 8285, any_source: false }));
        assert!(config.warnings[0].contains("vxlan"), "{:?}", config.warnings);
    }

    #[test]
    fn a_peer_is_an_entry_of_the_table_and_no_kernel_object() {
        let intent = intent(UDP);
        let alone = intent.plan(&LeaseSet::default()).dataplane;
        let with_peers = intent.plan(&leases(&intent, 1..=3)).dataplane;
        let tunnel: Vec<String> =
            with_peers.tunnel.iter().map(|(subnet, node)| format!("{subnet} {node}")).collect();
        assert_eq!(tunnel, ["10.244.2.0/24 192.168.0.2", "10.244.3.0/24 192.168.0.3"]);
        assert_eq!(Dataplane { tunnel: Default::default(), ..with_peers }, alone);
    }

    #[test]
    fn nobody_can_speak_for_this_node_where_any_source_is_taken() {
        let accepted = |json: &str| {
            let sysctls = intent(json).plan(&LeaseSet::default()).dataplane.sysctls;
            sysctls.get("net/ipv4/conf/flannel0/accept_local").cloned()
        };
        assert_eq!(accepted(UDP).as_deref(), Some("1"));
        let any = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"udp","AnySource":true}}"#;
        assert_eq!(accepted(any).as_deref(), Some("0"));
    }

    #[test]
    fn peers_of_the_original_are_sent_ipv4_only() {
        let intent = intent(&with_ipv6(true, r#"{"Type":"udp"}"#));
        let ours = lease(&intent, 2);
        let plan = intent.plan(&[ours.clone()].into_iter().collect());
        assert_eq!(plan.dataplane.tunnel.len(), 2);
        let mut originals = ours.clone();
        originals.attributes.backend_v6_data = None;
        let plan = intent.plan(&[originals].into_iter().collect());
        assert_eq!(plan.dataplane.tunnel.len(), 1);
        let refused = plan.peers[&ours.subnets].clone().unwrap_err();
        assert!(refused.contains("IPv6: its flannel does not say"), "{refused}");
        assert!(refused.contains("IPv4 is programmed"), "{refused}");
    }

    #[test]
    fn a_lease_of_another_backend_is_no_peer() {
        let intent = intent(UDP);
        let mut other = lease(&intent, 2);
        assert_eq!(&*other.attributes.backend_type, "");
        other.attributes.backend_type = "vxlan".into();
        let plan = intent.plan(&[other.clone()].into_iter().collect());
        assert!(plan.peers[&other.subnets].is_err() && plan.dataplane.tunnel.is_empty());
    }

    #[test]
    fn the_mtu_fits_every_family_and_one_that_is_too_small_is_refused() {
        let mtu = |json: &str, mtu: u32| {
            let mut intent = intent(json);
            intent.host.external.mtu = mtu;
            let (config, external) = (&intent.config, &intent.host.external);
            config.backend.check(config, external).map(|()| config.backend.mtu(config, external))
        };
        let dual = with_ipv6(true, r#"{"Type":"udp"}"#);
        assert_eq!((mtu(UDP, 1500), mtu(&dual, 1500)), (Ok(1472), Ok(1452)));
        assert_eq!((mtu(UDP, 96), mtu(&dual, 1328)), (Ok(68), Ok(1280)));
        let error = mtu(UDP, 95).unwrap_err();
        assert!(error.contains("want 96 at least") && error.contains("--iface"), "{error}");
        assert!(mtu(&dual, 1327).unwrap_err().contains("want 1328 at least"));
    }
}
