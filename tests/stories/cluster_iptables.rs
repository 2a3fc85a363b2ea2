//! Nodes drop what they forward by iptables-legacy, which the image has no program for.
//!
//! ```text
//!   node1  a                       node2  b
//!     └──────────────┬───────────────┘
//!                 switch: API server
//! ```

use anyhow::ensure;
use flannel_rs_tests::kubernetes::{Manifests, PATIENCE, PodSpec, Proxy, Shape, cluster_story};
use lab::wait_for;

const FLANNEL: [&str; 2] = ["--namespace=kube-flannel", "daemonset/kube-flannel-ds"];

#[test]
fn the_hosts_iptables_is_called_where_the_manifest_allows_it() {
    cluster_story(&Shape::new(Proxy::Nftables), |cluster| {
        for node in cluster.lab().nodes() {
            node.run("iptables-legacy -P FORWARD DROP")?;
        }
        let pods = cluster.run(&[PodSpec::new("a", 1), PodSpec::new("b", 2)])?;
        let [a, b] = &pods[..] else { unreachable!("two pods were asked for") };
        wait_for("flanneld to say what it may not do", PATIENCE, || {
            let log = cluster.api().kubectl(&[&["logs"], &FLANNEL[..]].concat())?;
            ensure!(log.contains("mount the host's / at /host"), "{log}");
            Ok(())
        })?;
        ensure!(cluster.ask_from(a, b.server()).is_err(), "nothing drops packets, so nothing is shown here");

        let manifests = Manifests::new()?;
        let components = manifests.components()?;
        let allowed: Vec<_> = components.into_iter().filter(|path| path.ends_with("host-iptables")).collect();
        let kustomization = manifests.kustomization(&allowed)?;
        cluster.api().kubectl(&["apply", "-k", &kustomization.display().to_string()])?;
        cluster.api().kubectl(&[&["rollout", "status", "--timeout=120s"], &FLANNEL[..]].concat())?;
        wait_for("the other pod to be reached", PATIENCE, || cluster.ask_from(a, b.server()).map(drop))?;
        let rules = cluster.lab().node(1).run("iptables-legacy -S FORWARD")?;
        ensure!(rules.contains("-P FORWARD DROP") && rules.contains("flanneld forward"), "{rules}");
        cluster.delete(&pods)
    });
}
