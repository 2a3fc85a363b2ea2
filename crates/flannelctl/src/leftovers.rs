//! What other networks left on this node, or still do here: recognised by what it is called, and
//! named with the remedy. Nothing of it is ours to remove.
//!
//! A node that ran Calico, Canal or Cilium, that was set up anew by kubeadm, or whose k3s runs a flannel
//! of its own, has devices, chains and configurations that keep pods off our network in ways which
//! nobody suspects. [`recognise`] is a pure decision over [`Seen`]; [`look()`] sees.

mod look;

use std::collections::BTreeSet;
use std::path::PathBuf;

use fabric::status::Status;
use serde::Serialize;
use serde_json::Value;

pub(crate) use look::look;

/// What there is on the node, as far as it was allowed to look.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) links: Vec<String>,
    /// The names of the firewall's chains.
    pub(crate) chains: BTreeSet<String>,
    /// The network configurations that a runtime reads, directory by directory.
    pub(crate) configurations: Vec<Configuration>,
    /// Those of [`look::FILES`] that are there.
    pub(crate) files: Vec<PathBuf>,
}

#[derive(Debug, Clone)]
pub(crate) struct Configuration {
    pub(crate) path: PathBuf,
    pub(crate) text: String,
}

/// Something that is not ours and may be in the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Leftover {
    /// Whose it is.
    pub(crate) of: &'static str,
    /// What was seen.
    pub(crate) what: String,
    /// What to do about it.
    pub(crate) remedy: String,
}

/// By what a project's traces are known. A `*` stands for the rest of the name.
struct Project {
    name: &'static str,
    links: &'static [&'static str],
    chains: &'static [&'static str],
    plugins: &'static [&'static str],
    remedy: &'static str,
}

const PROJECTS: &[Project] = &[
    Project {
        name: "Calico or Canal",
        links: &["cali*", "vxlan.calico", "vxlan-v6.calico", "wireguard.cali", "wg-v6.cali"],
        chains: &["cali-*"],
        plugins: &["calico", "calico-ipam"],
        remedy: "delete its DaemonSet (calico-node, canal), recreate the pods of this node, then reboot it or remove devices \
                 and chains by hand",
    },
    Project {
        name: "Cilium",
        links: &["cilium_*", "lxc_health"],
        chains: &["CILIUM_*"],
        plugins: &["cilium-cni"],
        remedy: "delete its DaemonSet, run `cilium cleanup` or reboot the node, and recreate the pods of this node",
    },
    Project {
        name: "Weave Net",
        links: &["weave", "vethwe-*", "vxlan-6784"],
        chains: &["WEAVE", "WEAVE-*"],
        plugins: &["weave-net", "weave-ipam"],
        remedy: "delete its DaemonSet, then `weave reset` or a reboot of the node",
    },
    Project {
        name: "Antrea",
        links: &["antrea-gw0", "antrea-tun0"],
        chains: &["ANTREA-*"],
        plugins: &["antrea"],
        remedy: "delete its DaemonSet, then delete the bridge (`ovs-vsctl del-br br-int`) or reboot the node",
    },
    Project {
        name: "kube-router",
        links: &["kube-bridge", "kube-dummy-if"],
        chains: &[],
        plugins: &[],
        remedy: "delete its DaemonSet, then `kube-router --cleanup-config` or a reboot of the node",
    },
    Project {
        name: "kindnet",
        links: &[],
        chains: &["KIND-MASQ-AGENT"],
        plugins: &[],
        remedy: "delete its DaemonSet and reboot the node",
    },
];

/// Plugins that call the network's own one: their configuration comes first on purpose.
const WRAPPERS: [&str; 2] = ["multus", "multus-shim"];
/// What flannel calls its devices, whatever the backend.
const FLANNELS: [&str; 6] =
    ["flannel0", "flannel.ipip", "flannel-wg", "flannel-wg-v6", "flannel.*", "flannel-v6.*"];

/// Names what is on the node and not of the network that `status` is about.
pub(crate) fn recognise(seen: &Seen, status: &Status) -> Vec<Leftover> {
    let mut found: Vec<Leftover> = PROJECTS.iter().filter_map(|project| of_project(seen, project)).collect();
    found.extend(other_flannels(seen, status));
    found.extend(configurations(seen));
    found
}

/// The devices and chains of a project.
fn of_project(seen: &Seen, project: &Project) -> Option<Leftover> {
    let links = seen.links.iter().map(String::as_str).filter(|name| any(project.links, name));
    let chains = seen.chains.iter().map(String::as_str).filter(|name| any(project.chains, name));
    let parts = [counted("device", links.collect()), counted("chain", chains.collect())];
    let what: Vec<String> = parts.into_iter().flatten().collect();
    let of_project =
        || Leftover { of: project.name, what: what.join(", "), remedy: project.remedy.to_owned() };
    (!what.is_empty()).then(of_project)
}

/// `the device cali1`, `4 chains, such as cali-FORWARD`
fn counted(kind: &str, names: Vec<&str>) -> Option<String> {
    match names.as_slice() {
        [] => None,
        [one] => Some(format!("the {kind} {one}")),
        [first, ..] => Some(format!("{} {kind}s, such as {first}", names.len())),
    }
}

/// Another flannel, of another backend, of another time, or at work right now.
fn other_flannels(seen: &Seen, status: &Status) -> Vec<Leftover> {
    let mut found = Vec::new();
    let ours = status.network.as_ref().map(|network| network.links.as_slice()).unwrap_or_default();
    let others: Vec<&str> = seen
        .links
        .iter()
        .map(String::as_str)
        .filter(|name| any(&FLANNELS, name) && !ours.iter().any(|own| own == name))
        .collect();
    if status.network.is_some()
        && let Some(first) = others.first()
    {
        found.push(Leftover {
            of: "another flannel",
            what: counted("device", others.clone()).unwrap_or_default(),
            remedy: format!("if no other flannel of this node uses it: `ip link delete {first}`"),
        });
    }
    let chains: Vec<&str> =
        seen.chains.iter().map(String::as_str).filter(|name| any(&["FLANNEL-*"], name)).collect();
    if status.ready && !chains.is_empty() {
        found.push(Leftover {
            of: "another flannel",
            what: counted("chain", chains).unwrap_or_default(),
            remedy:
                "flanneld removes these when it starts, so somebody has written them since: stop the other \
                     flannel, such as the one inside of k3s (`--flannel-backend=none`), then restart this one"
                    .to_owned(),
        });
    }
    for file in &seen.files {
        found.push(Leftover {
            of: "the flannel inside of k3s",
            what: format!("the file {}", file.display()),
            remedy: "start k3s with `--flannel-backend=none`, which ends its own flannel; once it is gone, delete the file"
                .to_owned(),
        });
    }
    found
}

/// Configurations that the runtime takes instead of flannel's, and those of others that it passes over.
fn configurations(seen: &Seen) -> Vec<Leftover> {
    let mut directories: Vec<_> = seen.configurations.iter().map(|conf| conf.path.parent()).collect();
    directories.dedup();
    let mut found = Vec::new();
    for directory in directories {
        let mut here: Vec<_> =
            seen.configurations.iter().filter(|conf| conf.path.parent() == directory).collect();
        here.sort_by(|a, b| a.path.cmp(&b.path));
        let kinds: Vec<Vec<String>> = here.iter().map(|conf| plugins(&conf.text)).collect();
        // The last one of flannel's is the one that its installers write: `.conf` sorts before `.conflist`.
        let flannel = kinds.iter().rposition(|kinds| kinds.iter().any(|kind| kind == "flannel"));
        for (at, (conf, kinds)) in here.iter().zip(&kinds).enumerate() {
            if kinds.iter().any(|kind| WRAPPERS.contains(&kind.as_str())) {
                continue;
            }
            let project = PROJECTS
                .iter()
                .find(|project| kinds.iter().any(|kind| project.plugins.contains(&kind.as_str())));
            let before = flannel.is_some_and(|flannel| at < flannel);
            let path = conf.path.display();
            let of = project.map_or("another network", |project| project.name);
            if before {
                found.push(Leftover {
                    of,
                    what: format!(
                        "the runtime takes {path} instead of flannel's configuration, which sorts after it"
                    ),
                    remedy: format!(
                        "move it away (`mv {path} {path}.off`) and recreate the pods of this node"
                    ),
                });
            } else if project.is_some() {
                found.push(Leftover {
                    of,
                    what: format!("the configuration {path}"),
                    remedy: format!("the runtime uses it if flannel's is missing: `rm {path}`"),
                });
            }
        }
    }
    found
}

/// The plugins that a configuration or a list of them calls.
fn plugins(text: &str) -> Vec<String> {
    let value: Value = serde_json::from_str(text).unwrap_or_default();
    let listed = value["plugins"].as_array().cloned().unwrap_or_default();
    let kinds = listed.iter().chain([&value]).filter_map(|plugin| plugin["type"].as_str());
    kinds.map(str::to_owned).collect()
}

fn any(patterns: &[&str], name: &str) -> bool {
    patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(start) => name.len() > start.len() && name.starts_with(start),
        None => name == *pattern,
    })
}

#[cfg(test)]
mod tests {
    use fabric::status::Network;

    use super::*;

    fn links(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn node() -> Status {
        Status {
            ready: true,
            network: Some(Network { links: vec!["flannel.1".to_owned()], ..Network::default() }),
            ..Status::default()
        }
    }

    fn conf(path: &str, kinds: &[&str]) -> Configuration {
        let plugins: Vec<_> = kinds.iter().map(|kind| serde_json::json!({ "type": kind })).collect();
        let text = serde_json::json!({ "name": "x", "plugins": plugins }).to_string();
        Configuration { path: path.into(), text }
    }

    fn said(seen: &Seen) -> Vec<String> {
        recognise(seen, &node()).into_iter().map(|found| format!("{}: {}", found.of, found.what)).collect()
    }

    #[test]
    fn a_node_of_ours_has_no_leftovers() {
        let seen = Seen {
            links: links(&["lo", "eth0", "flannel.1", "cni0", "lxcbr0"]),
            chains: ["FORWARD", "KUBE-SERVICES", "forward", "DOCKER-USER"].map(str::to_owned).into(),
            configurations: vec![
                conf("/etc/cni/net.d/00-multus.conf", &["multus"]),
                conf("/etc/cni/net.d/10-flannel.conflist", &["flannel", "portmap"]),
                conf("/etc/cni/net.d/87-podman-bridge.conflist", &["bridge", "portmap"]),
            ],
            files: Vec::new(),
        };
        assert_eq!(said(&seen), [""; 0]);
    }

    #[test]
    fn what_calico_and_cilium_leave_is_counted() {
        let seen = Seen {
            links: links(&["cali1a2b", "cali3c4d", "cilium_host"]),
            chains: ["cali-FORWARD"].map(str::to_owned).into(),
            ..Seen::default()
        };
        assert_eq!(
            said(&seen),
            [
                "Calico or Canal: 2 devices, such as cali1a2b, the chain cali-FORWARD",
                "Cilium: the device cilium_host"
            ]
        );
    }

    #[test]
    fn a_configuration_that_sorts_before_flannels_is_told_and_one_behind_it_of_a_known_project_too() {
        let seen = Seen {
            configurations: vec![
                conf("/etc/cni/net.d/10-canal.conflist", &["calico", "portmap"]),
                conf("/etc/cni/net.d/10-flannel.conflist", &["flannel", "portmap"]),
                Configuration {
                    path: "/etc/cni/net.d/10-flannel.conf".into(),
                    text: r#"{"type":"flannel"}"#.to_owned(),
                },
                conf("/etc/cni/net.d/20-cilium.conflist", &["cilium-cni"]),
                Configuration { path: "/etc/cni/net.d/30.conf".into(), text: "{".to_owned() },
            ],
            ..Seen::default()
        };
        let taken = "instead of flannel's configuration, which sorts after it";
        assert_eq!(
            said(&seen),
            [
                format!("Calico or Canal: the runtime takes /etc/cni/net.d/10-canal.conflist {taken}"),
                format!("another network: the runtime takes /etc/cni/net.d/10-flannel.conf {taken}"),
                "Cilium: the configuration /etc/cni/net.d/20-cilium.conflist".to_owned(),
            ]
        );
    }

    #[test]
    fn a_device_of_the_backend_before_is_told() {
        let seen = Seen { links: links(&["flannel0", "flannel.1"]), ..Seen::default() };
        assert_eq!(said(&seen), ["another flannel: the device flannel0"]);
        let network = Network { links: vec!["flannel0".to_owned()], ..Network::default() };
        let udp = Status { network: Some(network), ..node() };
        let found = recognise(&seen, &udp);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].remedy.ends_with("`ip link delete flannel.1`"), "{found:?}");
    }

    #[test]
    fn a_flannel_inside_of_k3s_is_known_by_its_file_and_its_chains() {
        let seen = Seen {
            links: links(&["flannel.1", "flannel-wg"]),
            chains: ["FLANNEL-FWD", "FLANNEL-POSTRTG"].map(str::to_owned).into(),
            files: vec![look::FILES[0].into()],
            ..Seen::default()
        };
        let said = said(&seen);
        assert_eq!(said[0], "another flannel: the device flannel-wg");
        assert_eq!(said[1], "another flannel: 2 chains, such as FLANNEL-FWD");
        assert!(said[2].starts_with("the flannel inside of k3s: the file /var/lib/rancher/k3s"), "{said:?}");
    }
}
