//! [`Status`]: what a running flanneld says about itself, for `flannelctl status` and for programs.
//!
//! flanneld writes it as JSON beside `subnet.env` whenever it changes (see [`Files`]), always as a
//! whole and atomically, so that a reader needs neither a socket nor a running daemon: the last
//! word of one that died is still there, and [`Status::pid`] tells whether it lives. Times are
//! seconds since 1970 in UTC. A reader must tolerate fields that it does not know.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::backend::Path;
use crate::firewall::SourcePorts;
use crate::instance::Instance;
use crate::plan;

/// Seconds since 1970 in UTC.
pub type UnixSeconds = u64;

/// The files that flanneld keeps beside the subnet file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// `subnet.env` itself.
    pub subnet: PathBuf,
    /// The [`Status`], JSON.
    pub status: PathBuf,
    /// The leases last known to be good, JSON.
    pub leases: PathBuf,
    /// Held (`flock`) by the running daemon, whose process id is inside.
    pub lock: PathBuf,
}

impl Files {
    /// The files that belong to a subnet file.
    ///
    /// Several daemons may share a directory if their subnet files have different names, as in the
    /// original: beside `vxlan.env` the files are called `vxlan.status.json` and so on.
    pub fn beside(subnet_file: &FilePath) -> Files {
        let prefix = Instance::of(subnet_file).file_prefix();
        let beside = |name: &str| subnet_file.with_file_name(format!("{prefix}{name}"));
        Files {
            subnet: subnet_file.to_owned(),
            status: beside("status.json"),
            leases: beside("leases.json"),
            lock: beside("flanneld.lock"),
        }
    }
}

/// The state of a node as its flanneld sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The version of flanneld.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// When it started.
    pub started: UnixSeconds,
    /// When this was written.
    pub written: UnixSeconds,
    /// Whether pods on this node reach pods on all known nodes: what `/readyz` says.
    pub ready: bool,
    /// What must still happen before it is ready, in words; empty when ready.
    pub awaited: Vec<String>,
    /// The network; absent until its configuration was read.
    pub network: Option<Network>,
    /// What the operator asked for by flags; absent from a daemon that does not say.
    pub asked: Option<Asked>,
    /// The interface to the other nodes; absent until chosen.
    pub external: Option<External>,
    /// This node's lease; absent until acquired.
    pub lease: Option<OwnLease>,
    /// The store.
    pub store: Store,
    /// The other nodes, by subnet; shared, since there may be ten thousand of them.
    pub peers: Arc<Vec<Peer>>,
    /// Records of the store that were left out.
    pub skipped: Vec<Skipped>,
    /// What was put right behind somebody's back, newest last; only the most recent are kept.
    pub repairs: Vec<Repair>,
    /// What is wrong now and what to do about it.
    pub failures: Vec<Failure>,
    /// What it took to keep the kernel as wanted.
    pub reconciler: Reconciler,
    /// What went through flanneld itself; absent where the kernel carries all packets.
    pub data_path: Option<DataPath>,
}

/// The network configuration in effect.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Network {
    /// The networks that all pod subnets are leased out of, IPv4 first.
    pub networks: Vec<IpNet>,
    /// The backend's name, such as `vxlan`.
    pub backend: String,
    /// The MTU announced to pods.
    pub mtu: u32,
    /// Devices of ours on this node, such as `flannel.1`.
    pub links: Vec<String>,
    /// Whether packets leaving the network are masqueraded.
    pub masquerade: bool,
}

/// What the operator asked for by flags: [`plan::Options`], so that a plan can be made outside of the
/// daemon as well.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Asked {
    /// Whether IPv4 packets leaving the network are masqueraded.
    pub masquerade_ipv4: bool,
    /// Whether IPv6 packets leaving the network are masqueraded.
    pub masquerade_ipv6: bool,
    /// Destinations that see pod addresses.
    pub masquerade_except: Vec<IpNet>,
    /// Whether masquerading keeps source ports where it can.
    pub masquerade_keeps_ports: bool,
    /// Whether forwarded packets of the network are accepted.
    pub forward_rules: bool,
    /// Whether there is a blackhole route for the node's own subnet.
    pub blackhole_route: bool,
    /// Which flannel of the host it is; empty for the one whose subnet file is `subnet.env`.
    pub instance: Instance,
}

impl From<&plan::Options> for Asked {
    fn from(options: &plan::Options) -> Asked {
        Asked {
            masquerade_ipv4: options.masquerade.ipv4,
            masquerade_ipv6: options.masquerade.ipv6,
            masquerade_except: options.masquerade.except.clone(),
            masquerade_keeps_ports: options.masquerade.source_ports == SourcePorts::Kept,
            forward_rules: options.forward_rules,
            blackhole_route: options.blackhole_route,
            instance: options.instance.clone(),
        }
    }
}

impl From<&Asked> for plan::Options {
    fn from(asked: &Asked) -> plan::Options {
        let keeps_ports = asked.masquerade_keeps_ports;
        plan::Options {
            masquerade: plan::Masquerade {
                ipv4: asked.masquerade_ipv4,
                ipv6: asked.masquerade_ipv6,
                except: asked.masquerade_except.clone(),
                source_ports: if keeps_ports { SourcePorts::Kept } else { SourcePorts::FullyRandom },
            },
            forward_rules: asked.forward_rules,
            blackhole_route: asked.blackhole_route,
            instance: asked.instance.clone(),
        }
    }
}

/// The interface to the other nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct External {
    /// Its name.
    pub link: String,
    /// Its MTU.
    pub mtu: u32,
    /// The node's addresses on it, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// The addresses that peers are told, IPv4 first.
    pub public: Vec<IpAddr>,
    /// Why it was chosen, in words: `--iface=eth1`, `the default route goes through it`, ...
    pub reason: String,
}

/// This node's lease.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OwnLease {
    /// The pod subnets, IPv4 first.
    pub subnets: Vec<IpNet>,
    /// Whether it is ours.
    pub state: LeaseState,
    /// What a reader should know about the state: why it was lost, who took it; empty when held.
    pub detail: String,
    /// When the store forgets it unless it is renewed; absent for a reservation, or when unknown.
    pub expires: Option<UnixSeconds>,
}

/// Whether a lease is held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeaseState {
    /// The store confirmed it.
    #[default]
    Held,
    /// The store no longer has it; getting it back is being tried.
    Lost,
    /// Another node holds its subnet.
    Taken,
    /// It is remembered from the last run; the store has not been reached yet.
    FromSnapshot,
}

/// The store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Store {
    /// What it is and where, without credentials: `etcd http://10.0.0.1:2379 /coreos.com/network`.
    pub name: String,
    /// Whether the last request was answered.
    pub reachable: bool,
    /// Since when it is reachable, or is not.
    pub since: UnixSeconds,
    /// The most recent error; absent if there was none since it became reachable.
    pub error: Option<String>,
    /// Whether the peers are those of the snapshot of the last run, because the store has not been
    /// reached yet.
    pub from_snapshot: bool,
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its IPv4 pod subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<Ipv4Net>,
    /// Its IPv6 pod subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Ipv6Net>,
    /// Where it is reached, IPv4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_ipv4: Option<Ipv4Addr>,
    /// Where it is reached, IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_ipv6: Option<Ipv6Addr>,
    /// How it is reached.
    pub path: PeerPath,
    /// Why it is not reached, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// How a peer is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeerPath {
    /// Encapsulated.
    Tunnel,
    /// By a plain route.
    Direct,
    /// Not by flannel: refused, or the backend leaves it to others.
    None,
}

impl From<Path> for PeerPath {
    fn from(path: Path) -> PeerPath {
        match path {
            Path::Tunnel => PeerPath::Tunnel,
            Path::Direct => PeerPath::Direct,
            Path::None => PeerPath::None,
        }
    }
}

/// A record of the store that was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Its key.
    pub key: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Something that was put right because it was changed behind our back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repair {
    /// When.
    pub at: UnixSeconds,
    /// What was done, as the command that does the same.
    pub change: String,
    /// How many changes of the same kind the repair took beside it.
    #[serde(default)]
    pub more: usize,
    /// What was found.
    pub why: String,
}

/// What it took to keep the kernel as wanted; counted since flanneld started, by kind of object
/// ([`Kind::name`](crate::dataplane::Kind::name)).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reconciler {
    /// How many objects are wanted in the kernel, as of the last pass.
    pub desired: BTreeMap<String, u64>,
    /// How many changes the kernel refused in the last pass.
    pub failed: BTreeMap<String, u64>,
    /// How many changes were made.
    pub changed: BTreeMap<String, u64>,
    /// How many of them put right what somebody else had changed.
    pub repaired: BTreeMap<String, u64>,
    /// How many passes were made.
    pub passes: u64,
    /// How long they took altogether, in microseconds.
    pub pass_microseconds: u64,
    /// When the last one ended.
    pub last_pass: UnixSeconds,
}

/// What the data path of a backend that carries packets itself counted since flanneld started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DataPath {
    /// From pods of this node to other nodes.
    pub outgoing: Traffic,
    /// From other nodes to pods of this node.
    pub incoming: Traffic,
    /// What the kernel can do for it, by the kernel's names, and whether it does.
    pub offloads: BTreeMap<String, bool>,
}

/// What went one way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Traffic {
    /// Packets passed on.
    pub packets: u64,
    /// Their octets, IP headers included.
    pub octets: u64,
    /// Packets passed on although they are larger than the device's MTU.
    pub oversized: u64,
    /// Packets dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
}

/// Something that is wrong now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What it is about: `kernel`, `subnet file`, `lease`, `interface`, `network`, ...
    pub topic: String,
    /// Since when.
    pub since: UnixSeconds,
    /// What was attempted and what happened.
    pub what: String,
    /// What to do about it; empty if nothing is known.
    pub remedy: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_survives_its_json_and_unknown_fields_are_tolerated() {
        let status = Status {
            version: "0.1.0".to_owned(),
            pid: 7,
            lease: Some(OwnLease { state: LeaseState::FromSnapshot, ..OwnLease::default() }),
            peers: Arc::new(vec![Peer {
                ipv4: Some("10.5.1.0/24".parse().unwrap()),
                ipv6: None,
                public_ipv4: Some("192.0.2.1".parse().unwrap()),
                public_ipv6: None,
                path: PeerPath::Tunnel,
                refused: None,
            }]),
            ..Status::default()
        };
        let mut json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["peers"][0]["path"], "tunnel");
        assert_eq!(json["lease"]["state"], "from-snapshot");
        json["from a later version"] = true.into();
        assert_eq!(serde_json::from_value::<Status>(json).unwrap(), status);
    }

    #[test]
    fn daemons_with_subnet_files_of_different_names_share_no_file() {
        let usual = Files::beside(FilePath::new("/run/flannel/subnet.env"));
        assert_eq!(usual.status, FilePath::new("/run/flannel/status.json"));
        assert_eq!(usual.lock, FilePath::new("/run/flannel/flanneld.lock"));
        let other = Files::beside(FilePath::new("/vxlan.env"));
        assert_eq!(other.leases, FilePath::new("/vxlan.leases.json"));
    }
}
