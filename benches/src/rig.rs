//! [`Rig`]: nodes on one switch with an etcd, each a network namespace.
//!
//! Unlike a [`lab::Lab`] a rig does not care which flanneld runs on its nodes, and pods are wired by
//! hand, so that nothing but the program under test differs between two columns of a table.
//!
//! ```text
//!   n1 192.168.64.1   n2 192.168.64.2      switch 192.168.64.254, etcd :2379
//!      └── eth0 ────────── eth0 ──────────────── br0
//! ```

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ipnet::Ipv4Net;
use lab::Namespace;

use crate::claim::Claim;
use crate::etcd::Etcd;

const SWITCH: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 254);

/// Nodes on one switch with an etcd. Dropping it removes everything.
#[derive(Debug)]
pub struct Rig {
    etcd: Etcd,
    nodes: Vec<Node>,
    switch: Namespace,
    claim: Claim,
}

/// A node of a [`Rig`].
#[derive(Debug)]
pub struct Node {
    namespace: Namespace,
    directory: PathBuf,
}

impl Rig {
    /// A rig with this many nodes and this net-conf.json in its etcd.
    pub fn new(nodes: u8, net_conf: &str) -> Result<Rig> {
        let claim = Claim::new()?;
        let switch = claim.namespace("switch")?;
        for command in
            ["link add br0 type bridge", "link set br0 up", "address add 192.168.64.254/24 dev br0"]
        {
            ip(&switch, command)?;
        }
        let nodes =
            (1..=nodes).map(|number| Node::plug_in(&claim, number, &switch)).collect::<Result<Vec<_>>>()?;
        let mut etcd = Etcd::start(&switch, IpAddr::V4(SWITCH), &claim.directory())?;
        etcd.put("/coreos.com/network/config", net_conf)?;
        Ok(Rig { etcd, nodes, switch, claim })
    }

    /// A node, from 1.
    pub fn node(&self, number: usize) -> &Node {
        &self.nodes[number - 1]
    }

    /// The etcd.
    pub fn etcd(&mut self) -> &mut Etcd {
        &mut self.etcd
    }

    /// The namespace of the switch: the world outside the pod network.
    pub fn switch(&self) -> &Namespace {
        &self.switch
    }

    /// Attaches a pod to a node by hand and returns its namespace and address.
    pub fn attach(&self, number: usize) -> Result<(Namespace, Ipv4Addr)> {
        let node = self.node(number).namespace.clone();
        let subnet = self.node(number).subnet()?;
        let gateway = Ipv4Addr::from(u32::from(subnet.network()) + 1);
        let address = Ipv4Addr::from(u32::from(subnet.network()) + 2);
        let len = subnet.prefix_len();
        let pod = self.claim.namespace(&format!("pod{number}"))?;
        for command in [
            "link add cni0 type bridge".to_owned(),
            "link set cni0 up".to_owned(),
            format!("address add {gateway}/{len} dev cni0"),
            format!("link add veth1 type veth peer name eth0 netns {}", pod.name()),
            "link set veth1 master cni0 up".to_owned(),
        ] {
            ip(&node, &command)?;
        }
        for command in [
            "link set eth0 up".to_owned(),
            format!("address add {address}/{len} dev eth0"),
            format!("route add default via {gateway}"),
        ] {
            ip(&pod, &command)?;
        }
        Ok((pod, address))
    }
}

impl Node {
    fn plug_in(claim: &Claim, number: u8, switch: &Namespace) -> Result<Node> {
        let namespace = claim.namespace(&format!("n{number}"))?;
        let port = format!("port{number}");
        ip(switch, &format!("link add {port} type veth peer name eth0 netns {}", namespace.name()))?;
        ip(switch, &format!("link set {port} master br0 up"))?;
        ip(&namespace, "link set eth0 up")?;
        ip(&namespace, &format!("address add 192.168.64.{number}/24 dev eth0"))?;
        ip(&namespace, &format!("route add default via {SWITCH}"))?;
        namespace.run(&["sysctl", "-qw", "net.ipv4.ip_forward=1"])?;
        let directory = claim.directory().join(format!("n{number}"));
        fs::create_dir_all(&directory)?;
        Ok(Node { namespace, directory })
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Where its files and logs are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where its flanneld writes `subnet.env`.
    pub fn subnet_file(&self) -> PathBuf {
        self.directory.join("subnet.env")
    }

    /// The pod subnet it leased.
    pub fn subnet(&self) -> Result<Ipv4Net> {
        let text = fs::read_to_string(self.subnet_file())?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("FLANNEL_SUBNET="))
            .context("no FLANNEL_SUBNET")?;
        Ok(line.parse::<Ipv4Net>()?.trunc())
    }

    pub(crate) fn etcd_endpoint(&self) -> String {
        format!("http://{SWITCH}:2379")
    }
}

fn ip(namespace: &Namespace, command: &str) -> Result<()> {
    let words: Vec<&str> = ["ip"].into_iter().chain(command.split(' ')).collect();
    namespace.run(&words).map(drop)
}
