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

/// Where the files of the node are: here, or, in a container, where they are mounted. They are named as on the node.
const ROOTS: [&str; 2] = ["/", "/host"];

/// What there is on the node, in whose network namespace this thread is.
pub(crate) fn look() -> Seen {
    let chains = Nftables::open().and_then(|mut nftables| iptables::chains(&mut nftables));
    Seen {
        links: links().unwrap_or_default(),
        chains: chains.unwrap_or_default(),
        configurations: DIRECTORIES.iter().flat_map(|directory| configurations(&ROOTS, directory)).collect(),
        files: FILES.iter().filter(|file| is_in(&ROOTS, file)).map(PathBuf::from).collect(),
    }
}

fn links() -> anyhow::Result<Vec<String>> {
    let mut socket = Socket::open(Protocol::Route)?;
    Ok(link::list(&mut socket)?.iter().map(|link| link.name.to_string()).collect())
}

/// The files that a runtime considers, in no order.
fn configurations(roots: &[&str], directory: &str) -> Vec<Configuration> {
    let considered = |path: &PathBuf| {
        path.extension().is_some_and(|kind| kind == "conf" || kind == "conflist" || kind == "json")
    };
    let directories = roots.iter().map(|root| below(root, directory));
    let paths = directories.flat_map(|directory| fs::read_dir(directory).into_iter().flatten().flatten());
    paths
        .map(|entry| entry.path())
        .filter(considered)
        .filter_map(|path| {
            let text = fs::read_to_string(&path).ok()?;
            Some(Configuration { path: Path::new(directory).join(path.file_name()?), text })
        })
        .collect()
}

fn is_in(roots: &[&str], file: &str) -> bool {
    roots.iter().any(|root| below(root, file).exists())
}

fn below(root: &str, path: &str) -> PathBuf {
    Path::new(root).join(path.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_node_are_found_from_within_a_container_and_named_as_on_the_node() {
        let host = tempfile::tempdir().unwrap();
        let directory = host.path().join("etc/cni/net.d");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("05-other.conflist"), "{}").unwrap();
        fs::write(directory.join("notes.txt"), "").unwrap();
        let roots = ["/nowhere", host.path().to_str().unwrap()];
        let seen = configurations(&roots, "/etc/cni/net.d");
        let paths: Vec<_> = seen.iter().map(|conf| conf.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/etc/cni/net.d/05-other.conflist"]);
        assert!(is_in(&roots, "/etc/cni/net.d/notes.txt") && !is_in(&roots[..1], "/etc/cni/net.d/notes.txt"));
    }
}
