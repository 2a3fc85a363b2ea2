//! Looks at the node. What cannot be looked at, for want of rights or because the directory is not
//! mounted into the container, is passed over.

use std::fs;
use std::path::{Path, PathBuf};

use kernel::netlink::{Protocol, Socket};
use kernel::nftables::Nftables;
use kernel::{iptables, link};

use super::{Configuration, Seen};

/// Where runtimes read network configurations: most of them, k3s, and MicroK8s.
const DIRECTORIES: [&str; 3] = [
    "/etc/cni/net.d",
    "/var/lib/rancher/k3s/agent/etc/cni/net.d",
    "/var/snap/microk8s/current/args/cni-network",
];
/// Files that only a flannel inside of another program writes.
pub(crate) const FILES: [&str; 1] = ["/var/lib/rancher/k3s/agent/etc/flannel/net-conf.json"];

/// What there is on the node, in whose network namespace this thread is.
pub(crate) fn look() -> Seen {
    let chains = Nftables::open().and_then(|mut nftables| iptables::chains(&mut nftables));
    Seen {
        links: links().unwrap_or_default(),
        chains: chains.unwrap_or_default(),
        configurations: DIRECTORIES
            .iter()
            .flat_map(|directory| configurations(Path::new(directory)))
            .collect(),
        files: FILES.iter().map(PathBuf::from).filter(|file| file.exists()).collect(),
    }
}

fn links() -> anyhow::Result<Vec<String>> {
    let mut socket = Socket::open(Protocol::Route)?;
    Ok(link::list(&mut socket)?.iter().map(|link| link.name.to_string()).collect())
}

/// The files that a runtime considers, in no order.
fn configurations(directory: &Path) -> Vec<Configuration> {
    let read = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let considered = |path: &PathBuf| {
        path.extension().is_some_and(|kind| kind == "conf" || kind == "conflist" || kind == "json")
    };
    read.filter(considered)
        .filter_map(|path| Some(Configuration { text: fs::read_to_string(&path).ok()?, path }))
        .collect()
}
