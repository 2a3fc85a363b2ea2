//! Ways to break a node behind its flanneld's back, and how to see that it healed.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fabric::LinkName;
use fabric::dataplane::{Change, Observed, ObservedLinkKind};
use fabric::ownership::{ROUTE_PROTOCOL, own_tables};
use kernel::{Kernel, Linux, Scope, link};

use crate::laboratory::Lab;
use crate::node::Node;
use crate::topology::StoreKind;

/// A way to break a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Break {
    /// Delete a route to another node's pods.
    Route,
    /// Delete the neighbor entry of another node's tunnel endpoint.
    Neighbor,
    /// Delete the forwarding entry of another node's tunnel endpoint.
    Fdb,
    /// Take the address off flannel's device.
    Address,
    /// Delete flannel's device.
    Device,
    /// Set flannel's device down.
    DeviceDown,
    /// Delete flannel's firewall tables.
    Firewall,
    /// Kill flanneld; [`Node::start`] starts it again.
    Kill,
    /// Pull the cable; [`Lab::set_cable`] plugs it in again.
    Cable,
    /// Write a lease that nobody can read; it stays in the store.
    GarbageLease,
}

impl Break {
    /// All of them.
    pub const ALL: [Break; 10] = [
        Break::Route,
        Break::Neighbor,
        Break::Fdb,
        Break::Address,
        Break::Device,
        Break::DeviceDown,
        Break::Firewall,
        Break::Kill,
        Break::Cable,
        Break::GarbageLease,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Break::Route => "route",
            Break::Neighbor => "neighbor",
            Break::Fdb => "fdb",
            Break::Address => "address",
            Break::Device => "device",
            Break::DeviceDown => "device-down",
            Break::Firewall => "firewall",
            Break::Kill => "kill",
            Break::Cable => "cable",
            Break::GarbageLease => "garbage-lease",
        }
    }

    /// Whether a running flanneld puts it right by itself.
    pub fn heals(self) -> bool {
        !matches!(self, Break::Kill | Break::Cable | Break::GarbageLease)
    }
}

impl Lab {
    /// Breaks a node; says what was done, as the commands that do the same.
    pub fn break_node(&self, node: &Node, what: Break) -> Result<Vec<String>> {
        let done = match what {
            Break::Kill => {
                let pid = node.pid().context("flanneld does not run")?;
                node.kill()?;
                vec![format!("kill -9 {pid}")]
            }
            Break::Cable => {
                self.set_cable(node, false)?;
                vec![format!("ip link set {} down (at the switch)", node.name())]
            }
            Break::GarbageLease => self.write_garbage_lease()?,
            Break::DeviceDown => {
                let name = *node.held()?.links.keys().next().context("this backend has no device")?;
                node.namespace().within(|| -> Result<()> {
                    let mut linux = Linux::open()?;
                    let index = link::index(linux.socket(), name)?.context("the device is gone")?;
                    Ok(link::set_down(linux.socket(), index)?)
                })??;
                vec![format!("ip link set {name} down")]
            }
            _ => {
                let changes = removals(what, &node.held()?);
                if changes.is_empty() {
                    bail!("{} has no {} that could be broken", node.name(), what.name());
                }
                node.apply(&changes)?;
                changes.iter().map(Change::to_string).collect()
            }
        };
        Ok(done)
    }

    fn write_garbage_lease(&self) -> Result<Vec<String>> {
        let (key, value) = ("10.244.300.0-24", "not a lease");
        match self.topology().store {
            StoreKind::File => {
                let path = self.store_dir().join("subnets").join(key);
                fs::write(&path, value).with_context(|| format!("writing {}", path.display()))?;
                Ok(vec![format!("echo {value} > {}", path.display())])
            }
            StoreKind::Etcd => {
                let key = format!("/coreos.com/network/subnets/{key}");
                let endpoint = format!("--endpoints={}", self.etcd_endpoint());
                self.switch().run(&["env", "ETCDCTL_API=3", "etcdctl", &endpoint, "put", &key, value])?;
                Ok(vec![format!("etcdctl put {key} '{value}'")])
            }
        }
    }
}

/// What takes away one thing of a kind, or, of things that belong together, all.
fn removals(what: Break, held: &Observed) -> Vec<Change> {
    let via_others = |route: &&fabric::dataplane::Route| route.target != fabric::dataplane::Target::Blackhole;
    match what {
        Break::Route => {
            held.routes.iter().find(via_others).map(|route| Change::RemoveRoute(*route)).into_iter().collect()
        }
        Break::Neighbor => held
            .neighbors
            .keys()
            .next()
            .map(|(link, ip)| Change::RemoveNeighbor(*link, *ip))
            .into_iter()
            .collect(),
        Break::Fdb => {
            held.fdb.first().map(|(link, mac, to)| Change::RemoveFdb(*link, *mac, *to)).into_iter().collect()
        }
        Break::Address => {
            held.addresses.iter().map(|(link, net)| Change::RemoveAddress(*link, *net)).collect()
        }
        Break::Device => held.links.keys().map(|link| Change::DeleteLink(*link)).collect(),
        Break::Firewall => held.tables.keys().map(|name| Change::DeleteTable(name.clone())).collect(),
        Break::DeviceDown | Break::Kill | Break::Cable | Break::GarbageLease => Vec::new(),
    }
}

impl Node {
    /// What flannel holds in the node's kernel now: its devices with everything on them, its routes,
    /// next hops and firewall tables.
    pub fn held(&self) -> Result<Observed> {
        self.namespace().within(|| -> Result<Observed> {
            let mut linux = Linux::open()?;
            let links: Vec<LinkName> = link::list(linux.socket())?
                .into_iter()
                .filter(|link| link.name.as_str().starts_with("flannel"))
                .map(|link| link.name)
                .collect();
            let scope = Scope { links: links.clone(), sysctls: Vec::new(), tables: own_tables().into() };
            let mut held = linux.observe(&scope)?;
            held.links.retain(|name, link| links.contains(name) && matches!(link.kind, ObservedLinkKind::Vxlan { .. }));
            for link in held.links.values_mut() {
                // A device that was made anew has another number and is the same to everybody.
                link.index = 0;
            }
            let is_link_local =
                |net: &ipnet::IpNet| matches!(net, ipnet::IpNet::V6(net) if net.addr().is_unicast_link_local());
            held.addresses.retain(|(link, net)| links.contains(link) && !is_link_local(net));
            held.routes.retain(|route| route.protocol == ROUTE_PROTOCOL);
            held.accepted_forwards = BTreeMap::new();
            Ok(held)
        })?
    }

    /// Makes changes in the node's kernel, behind the back of its flanneld.
    pub fn apply(&self, changes: &[Change]) -> Result<()> {
        let failures = self.namespace().within(|| -> Result<_> { Ok(Linux::open()?.apply(changes)) })??;
        match failures.first() {
            Some(failure) => bail!("{}: {}", failure.change, failure.error),
            None => Ok(()),
        }
    }

    /// Waits until flannel holds in the node's kernel what it held before; says how long it took.
    pub fn wait_healed(&self, before: &Observed, patience: Duration) -> Result<Duration> {
        const BETWEEN_LOOKS: Duration = Duration::from_millis(1);
        let start = Instant::now();
        loop {
            let now = self.held()?;
            if now == *before {
                return Ok(start.elapsed());
            }
            if start.elapsed() > patience {
                bail!(
                    "{} has not healed after {patience:?}: it held\n{before:#?}\nand holds\n{now:#?}",
                    self.name()
                );
            }
            thread::sleep(BETWEEN_LOOKS);
        }
    }
}

impl Lab {
    /// Breaks a node, waits until it has healed, and says what was done and how long that took.
    pub fn break_and_heal(
        &self,
        node: &Node,
        what: Break,
        patience: Duration,
    ) -> Result<(Vec<String>, Duration)> {
        let before = node.held()?;
        // From before the break: flanneld may be done before the command that broke it has returned.
        let began = Instant::now();
        let done = self.break_node(node, what)?;
        node.wait_healed(&before, patience)?;
        Ok((done, began.elapsed()))
    }
}
