//! [`Host`]: the facts about one node that a plan depends on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::dataplane::{Observed, Route, Target};
use crate::lease::Subnets;
use crate::link_name::LinkName;
use crate::ownership::{Ownership, ROUTE_PROTOCOL};

/// The interface that carries traffic to other nodes, and the node's addresses on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalInterface {
    /// Its name.
    pub link: LinkName,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The IPv4 address on it.
    pub ipv4: Option<Ipv4Addr>,
    /// The IPv6 address on it.
    pub ipv6: Option<Ipv6Addr>,
    /// The IPv4 address that peers are told: `--public-ip`, else the one on the interface.
    pub public_ipv4: Option<Ipv4Addr>,
    /// The IPv6 address that peers are told: `--public-ipv6`, else the one on the interface.
    pub public_ipv6: Option<Ipv6Addr>,
}

/// How IPv4 routes to peers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RouteStyle {
    /// Each route carries its gateway.
    #[default]
    Plain,
    /// Each route names a next-hop object (Linux 5.3): inserting N plain routes with N gateways
    /// through one device costs O(N²) in the kernel, next-hop objects make it linear.
    NextHopObjects,
}

impl RouteStyle {
    /// With how many IPv4 leases routes are written by next-hop objects: from there on it is quicker.
    const OBJECTS_FROM: usize = 500;
    /// With how many it goes back to plain routes; lower, so that a node does not swing between them.
    const OBJECTS_TO: usize = 400;

    /// How routes are best written for so many leases, where they are written like this now and the
    /// kernel has next-hop objects.
    pub fn suited_to(self, leases: usize) -> RouteStyle {
        let enough = match self {
            RouteStyle::Plain => RouteStyle::OBJECTS_FROM,
            RouteStyle::NextHopObjects => RouteStyle::OBJECTS_TO,
        };
        if leases >= enough { RouteStyle::NextHopObjects } else { RouteStyle::Plain }
    }
}

/// A route of the host that is not flannel's, as far as a plan looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnderlayRoute {
    /// The destination.
    pub destination: IpNet,
    /// The device that packets leave through.
    pub link: LinkName,
    /// Whether packets go to the destination itself or to a gateway.
    pub reach: Reach,
}

/// How an address of the underlay is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// On the link itself.
    Direct,
    /// Through a router.
    Gateway,
}

/// All facts about the node that a plan depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// The interface to the other nodes.
    pub external: ExternalInterface,
    /// The pod subnets leased to this node.
    pub own: Subnets,
    /// The host's own routes in the main table, in the kernel's order, flannel's left out.
    pub underlay: Vec<UnderlayRoute>,
    /// How IPv4 routes to peers are written.
    pub route_style: RouteStyle,
    /// Those of the public addresses that this host has itself; one behind NAT has none.
    pub public_here: Vec<IpAddr>,
}

impl UnderlayRoute {
    /// The host's own routes in an observation: those that are not flannel's.
    pub fn all_of(observed: &Observed, ownership: &Ownership) -> Vec<UnderlayRoute> {
        // Another flannel on the host has routes to pods, none to nodes.
        let foreign = |route: &&Route| !ownership.owns_route(route) && route.protocol != ROUTE_PROTOCOL;
        let foreign = observed.routes.iter().filter(foreign);
        foreign
            .filter_map(|route| {
                let (link, reach) = match route.target {
                    Target::Device(link) => (link, Reach::Direct),
                    Target::Via(next_hop) => (next_hop.link, Reach::Gateway),
                    // Not one device, or none that is known: not a way to be sure of.
                    Target::NextHopObject(_) | Target::Blackhole | Target::Other => return None,
                };
                Some(UnderlayRoute { destination: route.destination, link, reach })
            })
            .collect()
    }
}

impl Host {
    /// A node of which nothing was observed yet.
    pub fn new(external: ExternalInterface, own: Subnets) -> Host {
        let (underlay, public_here) = (Vec::new(), Vec::new());
        Host { external, own, underlay, route_style: RouteStyle::default(), public_here }
    }

    /// Takes the facts that change under way from an observation.
    pub fn look_at(&mut self, observed: &Observed, ownership: &Ownership) {
        self.underlay = UnderlayRoute::all_of(observed, ownership);
        let ExternalInterface { public_ipv4, public_ipv6, .. } = self.external;
        let public = public_ipv4.map(IpAddr::V4).into_iter().chain(public_ipv6.map(IpAddr::V6));
        let has = |ip: &IpAddr| observed.addresses.iter().any(|(_, net)| net.addr() == *ip);
        self.public_here = public.filter(has).collect();
    }

    /// Whether `peer` is on one of the host's links, by longest prefix match over the main table.
    ///
    /// The original asks the kernel (RTM_GETROUTE) and calls a peer direct when exactly one route
    /// without a gateway comes back. Deciding from the observed routes instead keeps the plan pure
    /// and costs no system call per peer; policy routing rules are not looked at.
    pub fn reach(&self, peer: IpAddr) -> Option<Reach> {
        self.route_to(peer).map(|route| route.reach)
    }

    /// The route that packets to `peer` take, by longest prefix match; of equally long prefixes the
    /// one listed first, which is the one with the smaller metric in the kernel's order.
    pub fn route_to(&self, peer: IpAddr) -> Option<&UnderlayRoute> {
        let longer = |best: &'_ UnderlayRoute, next: &UnderlayRoute| {
            next.destination.prefix_len() > best.destination.prefix_len()
        };
        self.underlay.iter().filter(|route| route.destination.contains(&peer)).fold(None, |best, next| {
            match best {
                Some(best) if !longer(best, next) => Some(best),
                _ => Some(next),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{VXLAN, intent};

    #[test]
    fn many_leases_take_next_hop_objects_and_only_far_fewer_give_them_up() {
        use RouteStyle::{NextHopObjects, Plain};
        let mut style = Plain;
        let styles = [499, 500, 499, 400, 399, 400].map(|leases| {
            style = style.suited_to(leases);
            style
        });
        assert_eq!(styles, [Plain, NextHopObjects, NextHopObjects, NextHopObjects, Plain, Plain]);
    }

    #[test]
    fn the_longest_prefix_decides_and_of_equal_ones_the_first() {
        let mut host = intent(VXLAN).host;
        let route = |destination: &str, link: &str, reach| UnderlayRoute {
            destination: destination.parse().unwrap(),
            link: link.parse().unwrap(),
            reach,
        };
        host.underlay = vec![
            route("0.0.0.0/0", "eth0", Reach::Gateway),
            route("192.168.0.0/16", "eth0", Reach::Gateway),
            route("192.168.7.0/24", "eth1", Reach::Direct),
            route("192.168.7.0/24", "eth2", Reach::Gateway),
        ];
        let found = |peer: &str| {
            host.route_to(peer.parse().unwrap()).map(|route| (route.link.to_string(), route.reach))
        };
        assert_eq!(found("192.168.7.9"), Some(("eth1".to_owned(), Reach::Direct)));
        assert_eq!(found("192.168.8.9"), Some(("eth0".to_owned(), Reach::Gateway)));
        assert_eq!(found("8.8.8.8"), Some(("eth0".to_owned(), Reach::Gateway)));
        assert_eq!(found("fd09::2"), None);
        assert_eq!(host.reach("192.168.7.9".parse().unwrap()), Some(Reach::Direct));
    }
}
