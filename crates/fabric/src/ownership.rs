//! What is ours: the one place that decides what flannel may remove.
//!
//! The two ways to be wrong are not equal. Leaving one of our own objects behind costs a stale
//! route, which the next reconciliation or `flannelctl cleanup` takes away; removing somebody
//! else's takes his network down. So an object is ours only if something about it that nobody else
//! would write says so:
//!
//! * **devices**: those that the plan names (`flannel.<VNI>`, `flannel-v6.<VNI>`). Everything on such
//!   a device is ours with it: permanent neighbors, FDB entries with a destination. Learned entries
//!   are the kernel's.
//! * **addresses**: on a device of ours, and inside the flannel network. An address that an operator
//!   or NetworkManager put there, outside the network, is theirs.
//! * **routes**: those with our protocol number that lead into our network or through a device of
//!   ours; elsewhere they are those of another flannel on this host, with a network of its own. (What
//!   a changed network leaves behind is ours too, once.) And those that the original flannel would
//!   have made, which have the protocol `boot` like everything typed by hand: in the main table, unicast, with a
//!   gateway, to a subnet inside the flannel network that is not our own and is at least as long as
//!   the subnets leased in it. Nobody but flannel has a reason to write such a route, and where
//!   somebody did, it contradicts the leases. They are adopted, so that a node can be taken over from
//!   the original without losing a packet.
//! * **next-hop objects**: those with our protocol number, by which they are observed, that are on a
//!   device of ours or serve no route of another flannel.
//! * **firewall tables**: those of the original's names, which are ours as well; of another flannel on
//!   the same host, those with its name added.
//! * **accepting rules in `FORWARD`**: those with our comment for our network.

use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::dataplane::{Route, Target};
use crate::firewall::{Family, TableName};
use crate::instance::Instance;
use crate::lease::Subnets;
use crate::link_name::LinkName;

/// The route protocol number (`rtm_protocol`, `nh_protocol`) of flannel-rs: ASCII `f`, in the range
/// for user space and used by no routing daemon known to iproute2's `rt_protos`.
pub const ROUTE_PROTOCOL: u8 = b'f';
/// The protocol number of routes typed by hand, and of the original flannel (`RTPROT_BOOT`).
pub const ROUTE_PROTOCOL_BOOT: u8 = 3;
/// The name of our IPv4 firewall table; the original's too.
pub const IPV4_TABLE: &str = "flannel-ipv4";
/// The name of our IPv6 firewall table; the original's too.
pub const IPV6_TABLE: &str = "flannel-ipv6";

/// What of the kernel's objects is ours on this node.
#[derive(Debug, Clone)]
pub struct Ownership {
    links: BTreeSet<LinkName>,
    networks: Vec<IpNet>,
    former: Vec<IpNet>,
    own: Subnets,
    tables: [TableName; 2],
    everything: bool,
}

/// Ownership where nothing but our marks is known.
impl Default for Ownership {
    fn default() -> Ownership {
        Ownership::new([], [], Subnets::default())
    }
}

impl Ownership {
    /// Ownership on a node that wants `links`, in `networks`, with its `own` pod subnets.
    ///
    /// Without any network, because it is not known any more, all that bears our protocol number or
    /// comment counts as ours.
    pub fn new(
        links: impl IntoIterator<Item = LinkName>,
        networks: impl IntoIterator<Item = IpNet>,
        own: Subnets,
    ) -> Ownership {
        Ownership {
            links: links.into_iter().collect(),
            networks: networks.into_iter().collect(),
            former: Vec::new(),
            own,
            tables: own_tables(),
            everything: false,
        }
    }

    /// The same with the firewall tables of one flannel among several.
    pub fn of_instance(mut self, instance: &Instance) -> Ownership {
        self.tables = tables_of(instance);
        self
    }

    /// The same after a change of the network, of which the former routes and accepting rules are to
    /// be taken away.
    pub fn after(mut self, former: &[IpNet]) -> Ownership {
        self.former = former.to_vec();
        self
    }

    /// Ownership of all there is, for a comparison of two plans.
    pub(crate) fn everything() -> Ownership {
        Ownership { everything: true, ..Ownership::default() }
    }

    /// The devices that are ours.
    pub fn links(&self) -> impl Iterator<Item = LinkName> {
        self.links.iter().copied()
    }

    /// Whether a device, and with it every permanent neighbor and FDB entry on it, is ours.
    pub fn owns_link(&self, link: &LinkName) -> bool {
        self.everything || self.links.contains(link)
    }

    /// Whether an address on a device is ours.
    pub fn owns_address(&self, link: &LinkName, net: &IpNet) -> bool {
        self.everything || (self.owns_link(link) && self.networks.iter().any(|n| n.contains(&net.addr())))
    }

    /// Whether a route of the main table is ours, as far as the route itself tells: one that names a
    /// next-hop object is also ours if the object is on a device of ours.
    pub fn owns_route(&self, route: &Route) -> bool {
        let by_protocol = || {
            route.protocol == ROUTE_PROTOCOL
                && (self.owns_network(&route.destination)
                    || route.link().is_some_and(|link| self.owns_link(&link)))
        };
        self.everything || by_protocol() || self.is_originals(route)
    }

    /// Whether an accepting rule in `FORWARD` with our comment is ours.
    pub fn owns_forward(&self, net: &IpNet) -> bool {
        self.everything || self.owns_network(net)
    }

    /// Whether a firewall table is ours.
    pub fn owns_table(&self, name: &TableName) -> bool {
        self.everything || self.tables.contains(name)
    }

    /// The firewall tables that are ours.
    pub fn tables(&self) -> &[TableName] {
        &self.tables
    }

    /// Whether pod addresses of this range are, or were, those of our network.
    fn owns_network(&self, net: &IpNet) -> bool {
        self.networks.is_empty() || self.networks.iter().chain(&self.former).any(|ours| ours.contains(net))
    }

    /// Whether the original flannel would have made this route for a peer.
    fn is_originals(&self, route: &Route) -> bool {
        let Target::Via(_) = route.target else { return false };
        route.protocol == ROUTE_PROTOCOL_BOOT
            && route.metric == Route::default_metric(&route.destination)
            && self.networks.iter().any(|network| {
                network.contains(&route.destination) && network.prefix_len() < route.destination.prefix_len()
            })
            && !self
                .own
                .iter()
                .any(|own| own.contains(&route.destination) || route.destination.contains(&own))
    }
}

/// The firewall tables of the only flannel on a host.
pub fn own_tables() -> [TableName; 2] {
    tables_of(&Instance::default())
}

/// The firewall tables of one flannel among several: IPv4, IPv6.
pub fn tables_of(instance: &Instance) -> [TableName; 2] {
    let suffix = instance.table_suffix();
    [(Family::Ipv4, IPV4_TABLE), (Family::Ipv6, IPV6_TABLE)]
        .map(|(family, name)| TableName { family, name: format!("{name}{suffix}") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::NextHop;
    use crate::fixture::{VXLAN, intent, subnets};

    fn owned(destination: &str, gateway: Option<&str>, metric: u32, protocol: u8) -> bool {
        let target = match gateway {
            Some(gateway) => Target::Via(NextHop {
                gateway: gateway.parse().unwrap(),
                link: "eth0".parse().unwrap(),
                onlink: false,
            }),
            None => Target::Device("cni0".parse().unwrap()),
        };
        let route = Route { destination: destination.parse().unwrap(), metric, target, protocol };
        intent(VXLAN).ownership().owns_route(&route)
    }

    #[test]
    fn routes_of_our_protocol_are_ours_and_so_are_the_originals() {
        assert!(owned("10.244.2.0/24", Some("10.244.2.0"), 0, ROUTE_PROTOCOL));
        assert!(owned("10.244.2.0/24", Some("10.244.2.0"), 0, ROUTE_PROTOCOL_BOOT));
        assert!(owned("10.244.2.0/25", Some("192.168.0.2"), 0, ROUTE_PROTOCOL_BOOT));
    }

    #[test]
    fn another_flannel_on_the_host_keeps_its_own() {
        let route = |destination: &str, link: &str| Route {
            destination: destination.parse().unwrap(),
            metric: 0,
            target: Target::Via(NextHop {
                gateway: "192.168.0.2".parse().unwrap(),
                link: link.parse().unwrap(),
                onlink: false,
            }),
            protocol: ROUTE_PROTOCOL,
        };
        let (ours, theirs) = ("10.244.0.0/16".parse().unwrap(), "10.250.0.0/16".parse().unwrap());
        let ownership = intent(VXLAN).ownership();
        assert!(!ownership.owns_route(&route("10.250.2.0/24", "eth0")));
        assert!(ownership.owns_route(&route("10.250.2.0/24", "flannel.1")), "a device of ours");
        assert!(ownership.owns_forward(&ours) && !ownership.owns_forward(&theirs));
        let tables = tables_of(&Instance::of("/run/vxlan.env".as_ref()));
        assert_eq!(tables[0].to_string(), "ip flannel-ipv4-vxlan");
        assert!(!ownership.owns_table(&tables[0]));
        let named = ownership.clone().of_instance(&Instance::of("/run/vxlan.env".as_ref()));
        assert!(named.owns_table(&tables[0]) && !named.owns_table(&own_tables()[0]));

        let changed = ownership.after(&[theirs]);
        assert!(changed.owns_route(&route("10.250.2.0/24", "eth0")), "after a change of the network");
        assert!(changed.owns_forward(&theirs));
        let unknown = Ownership::new([], [], Subnets::default());
        assert!(unknown.owns_route(&route("10.250.2.0/24", "eth0")) && unknown.owns_forward(&theirs));
    }

    #[test]
    fn routes_of_others_are_not_ours() {
        assert!(!owned("10.244.1.0/24", None, 0, 2), "cni0's");
        assert!(!owned("10.244.2.0/24", None, 0, ROUTE_PROTOCOL_BOOT), "without a gateway");
        assert!(!owned("10.244.2.0/24", Some("192.168.0.2"), 10, ROUTE_PROTOCOL_BOOT), "with a metric");
        assert!(!owned("10.244.2.0/24", Some("192.168.0.2"), 0, 4), "static, of a routing daemon");
        assert!(!owned("10.244.0.0/16", Some("192.168.0.2"), 0, ROUTE_PROTOCOL_BOOT), "the whole network");
        assert!(!owned("10.0.0.0/8", Some("192.168.0.2"), 0, ROUTE_PROTOCOL_BOOT), "wider than the network");
        assert!(!owned("10.245.2.0/24", Some("192.168.0.2"), 0, ROUTE_PROTOCOL_BOOT), "outside the network");
        assert!(!owned("10.244.1.0/24", Some("192.168.0.2"), 0, ROUTE_PROTOCOL_BOOT), "our own subnet");
        assert!(!owned("10.244.1.128/25", Some("192.168.0.2"), 0, ROUTE_PROTOCOL_BOOT), "a part of our own");
        assert!(!owned("10.244.0.0/20", Some("192.168.0.2"), 0, ROUTE_PROTOCOL_BOOT), "contains our own");
    }

    #[test]
    fn devices_addresses_and_tables_are_ours_by_name() {
        let ownership = intent(VXLAN).ownership();
        let [ours, bridge] = ["flannel.1", "cni0"].map(|name| name.parse::<LinkName>().unwrap());
        assert_eq!(ownership.links().collect::<Vec<_>>(), [ours]);
        assert!(ownership.owns_link(&ours) && !ownership.owns_link(&bridge));
        let pod = subnets(1).ipv4.map(IpNet::V4).unwrap();
        assert!(ownership.owns_address(&ours, &pod));
        assert!(!ownership.owns_address(&bridge, &pod), "cni0's gateway address");
        assert!(!ownership.owns_address(&ours, &"10.1.1.1/32".parse().unwrap()), "put there by an operator");
        let table = |family, name: &str| TableName { family, name: name.to_owned() };
        assert!(ownership.owns_table(&table(Family::Ipv4, "flannel-ipv4")));
        assert!(!ownership.owns_table(&table(Family::Ipv6, "flannel-ipv4")));
        assert!(!ownership.owns_table(&table(Family::Ipv4, "filter")));
    }
}
