//! The whole plan of a node: what its kernel should hold, and how each peer is reached.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;

use crate::backend::{Path, VtepMacs};
use crate::config::NetworkConfig;
use crate::dataplane::{Dataplane, Route, Target};
use crate::firewall::{SourcePorts, Table};
use crate::host::Host;
use crate::instance::Instance;
use crate::lease::{Lease, LeaseSet, Subnets};
use crate::ownership::{Ownership, ROUTE_PROTOCOL, tables_of};
use crate::{forward, masquerade};

/// What the operator asked for, apart from the network configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Families in which packets leaving the network are masqueraded: `--ip-masq`.
    pub masquerade: Masquerade,
    /// `--iptables-forward-rules`
    pub forward_rules: bool,
    /// `--ip-blackhole-route`
    pub blackhole_route: bool,
    /// Which flannel of the host this is, by `--subnet-file`.
    pub instance: Instance,
}

/// Masquerading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masquerade {
    /// For IPv4.
    pub ipv4: bool,
    /// For IPv6.
    pub ipv6: bool,
    /// Destinations that see pod addresses: `--ip-masq-except`.
    pub except: Vec<IpNet>,
    /// `--ip-masq-fully-random-disable`
    pub source_ports: SourcePorts,
}

/// What a node's kernel should hold, and how each peer is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The kernel objects.
    pub dataplane: Dataplane,
    /// Every lease but our own: its path, or why it, or one family of it, is left out.
    pub peers: BTreeMap<Subnets, Result<Path, String>>,
}

/// Everything that decides a plan, apart from the leases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    /// The network configuration.
    pub config: NetworkConfig,
    /// The operator's options.
    pub options: Options,
    /// Facts about the host.
    pub host: Host,
    /// The VTEPs' Ethernet addresses.
    pub macs: VtepMacs,
}

impl Intent {
    /// The plan for all of `leases`.
    pub fn plan(&self, leases: &LeaseSet) -> Plan {
        self.plan_for(leases, leases)
    }

    /// The plan for `some` of the leases; `all` decides between rivals.
    ///
    /// The cost grows with `some` alone, so that a changed lease among 10,000 is answered at once. Of
    /// two leases with the same VTEP MAC the newer one is right (a node that came back under another
    /// address keeps its MAC, and its old lease lives on for a day); that is decided within `some`,
    /// and the plan for all leases, which follows, has the last word.
    pub fn plan_for(&self, some: &LeaseSet, all: &LeaseSet) -> Plan {
        let Intent { config, host, .. } = self;
        let mut plan = Plan { dataplane: self.node(), peers: BTreeMap::new() };
        let mut newest_first: Vec<&Lease> =
            some.iter().map(|lease| &**lease).filter(|lease| lease.subnets != host.own).collect();
        newest_first.sort_by_key(|lease| Reverse(lease.created));
        for lease in newest_first {
            // A lease that would be refused anyhow (foreign, garbled) takes nothing from a good one.
            let sound = |rival: &&Arc<Lease>| {
                rival.subnets == host.own || config.backend.accepts(config, host, rival)
            };
            let path = match all.rivals(lease).find(sound) {
                Some(rival) => Err(claimed_by(rival)),
                None => config.backend.peer(config, host, lease, &mut plan.dataplane),
            };
            plan.peers.insert(lease.subnets, path);
        }
        plan
    }

    /// The plans for those leases alone that differ between two sets, and for those that dispute
    /// addresses with one that differs: before and after. See `dataplane::between`.
    pub fn plans_between(&self, before: &LeaseSet, after: &LeaseSet) -> (Plan, Plan) {
        let (mut gone, mut come) = before.differences(after);
        let changed: Vec<Subnets> = gone.iter().chain(come.iter()).map(|lease| lease.subnets).collect();
        for subnets in changed {
            // Who loses a rival comes into its rights.
            gone.extend_shared(before.overlapping(subnets));
            come.extend_shared(after.overlapping(subnets));
        }
        (self.plan_for(&gone, before), self.plan_for(&come, after))
    }

    /// Whether two intents differ in nothing but what is observed of the host.
    pub fn is_asked_alike(&self, other: &Intent) -> bool {
        let (Host { external, own, .. }, theirs) = (&self.host, &other.host);
        (&self.config, &self.options, self.macs, external, own)
            == (&other.config, &other.options, other.macs, &theirs.external, &theirs.own)
    }

    /// What is ours on this node.
    pub fn ownership(&self) -> Ownership {
        let Intent { config, options, host, .. } = self;
        Ownership::new(config.backend.links(config), config.networks(), host.own)
            .of_instance(&options.instance)
    }

    /// What the node needs whoever its peers are.
    fn node(&self) -> Dataplane {
        let Intent { config, options, host, macs } = self;
        let mut node = Dataplane::default();
        config.backend.device(config, host, *macs, &mut node);
        for network in config.networks() {
            if let Some(table) = self.table(network) {
                node.tables.insert(table.name.clone(), table);
            }
            if options.forward_rules {
                node.accepted_forwards.insert(network);
            }
        }
        if options.blackhole_route {
            node.routes.extend(host.own.iter().filter(|own| self.is_enabled(own)).map(blackhole));
        }
        node
    }

    /// The firewall table of one family, unless nothing is asked of it.
    ///
    /// Compatibility: name, comment and chains are the original's, one table for each family: whoever
    /// of the two starts next finds the other's table in place and replaces it in one transaction.
    fn table(&self, network: IpNet) -> Option<Table> {
        let Options { masquerade, forward_rules, instance, .. } = &self.options;
        let own = self.host.own;
        let [ipv4_name, ipv6_name] = tables_of(instance);
        let (name, masquerades, own) = match network {
            IpNet::V4(_) => (ipv4_name, masquerade.ipv4, own.ipv4.map(IpNet::V4)),
            IpNet::V6(_) => (ipv6_name, masquerade.ipv6, own.ipv6.map(IpNet::V6)),
        };
        let masquerade =
            masquerades.then(|| masquerade::chain(network, own, &masquerade.except, masquerade.source_ports));
        let forward = forward_rules.then(|| forward::chain(network));
        let chains: Vec<_> = masquerade.into_iter().chain(forward).collect();
        let comment = Some(format!("rules for {}", name.name));
        (!chains.is_empty()).then_some(Table { name, comment, chains })
    }

    fn is_enabled(&self, net: &IpNet) -> bool {
        self.config.networks().any(|network| network.addr().is_ipv4() == net.addr().is_ipv4())
    }
}

/// The metric of the blackhole route to the own pod subnet: the largest but one, since the kernel's
/// own IPv6 null route has the largest.
///
/// Compatibility: the original asks for no metric. Then IPv4 knows only one route to the subnet, so
/// that the blackhole cannot be made once `cni0` is up, and `cni0` is cut off where the blackhole
/// came first. Behind every other route it catches just what nothing else does.
const BLACKHOLE_METRIC: u32 = u32::MAX - 1;

fn blackhole(own: IpNet) -> Route {
    Route { destination: own, metric: BLACKHOLE_METRIC, target: Target::Blackhole, protocol: ROUTE_PROTOCOL }
}

fn claimed_by(rival: &Lease) -> String {
    let node = match rival.attributes.public_addresses().next() {
        Some(address) => format!("the node at {address}"),
        None => "a node without address".to_owned(),
    };
    format!(
        "{} is leased to {node}, which came first; the later claimant must give way (restart flanneld there)",
        rival.subnets
    )
}

#[cfg(test)]
mod tests;
