//! What keeps a node from the API: the wrong name, right, token or authority. Each is said with what is
//! wrong, nothing ends, and mending it is enough.
//!
//! ```text
//!   node1
//!     └──── switch: kube-apiserver, etcd
//! ```

use std::fs;

use anyhow::{Result, ensure};
use flannel_rs_tests::{PATIENCE, shows};
use lab::{Topology, wait_for};
use serde_json::{Value, json};

use crate::kubernetes::{Kube, kubernetes};

#[test]
fn a_node_that_the_api_does_not_know_is_waited_for() {
    kubernetes(Topology::vxlan(1), |kube| {
        kube.start(1, &[])?;
        complains(kube, &["node1"])?;
        kube.create(1, &kube.pod_cidrs(1))?;
        kube.node(1).wait_ready(0)?;
        kube.wait_condition(1, "False", "FlannelIsUp")
    });
}

#[test]
fn a_right_that_is_missing_is_named() {
    kubernetes(Topology::vxlan(1), |kube| {
        kube.create_all()?;
        let config = kube.lab.dir().join("reader.kubeconfig");
        fs::write(&config, kube.api.kubeconfig_for("reader", None)?)?;
        let rbac = "/apis/rbac.authorization.k8s.io/v1";
        let rule = json!({ "apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"] });
        let role = json!({ "metadata": { "name": "reader" }, "rules": [rule] });
        kube.api.request("POST", &format!("{rbac}/clusterroles"), &role)?;
        let binding = json!({
            "metadata": { "name": "reader" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "reader" },
            "subjects": [{ "kind": "User", "name": "reader" }],
        });
        kube.api.request("POST", &format!("{rbac}/clusterrolebindings"), &binding)?;
        kube.start_as(1, &config.display().to_string(), &[])?;
        complains(kube, &["patch", "nodes/status", "reader"])?;

        let rule = json!({ "apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"] });
        let role = json!({ "metadata": { "name": "writer" }, "rules": [rule] });
        kube.api.request("POST", &format!("{rbac}/clusterroles"), &role)?;
        let binding = json!({
            "metadata": { "name": "writer" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "writer" },
            "subjects": [{ "kind": "User", "name": "reader" }],
        });
        kube.api.request("POST", &format!("{rbac}/clusterrolebindings"), &binding)?;
        kube.node(1).wait_ready(0).map(drop)
    });
}

#[test]
fn a_token_that_is_not_good_any_more_is_named_and_a_new_one_taken_up() {
    kubernetes(Topology::vxlan(2), |kube| {
        kube.create_all()?;
        kube.start_all()?;
        kube.api.revoke_tokens()?;
        // A watch that is open goes on; what is asked anew is refused.
        kube.api.kill()?;
        kube.api.restart()?;
        wait_for("the status to name it", PATIENCE, || {
            let error = kube.node(1).status()?.store.error.unwrap_or_default();
            ensure!(error.contains("token"), "{error:?}");
            Ok(())
        })?;
        shows(kube.node(1), "ip route show 10.244.2.0/24", "flannel.1")?;
        kube.api.renew_token()?;
        wait_for("the new one to be taken up", PATIENCE, || {
            let store = kube.node(1).status()?.store;
            ensure!(store.reachable, "{store:?}");
            Ok(())
        })
    });
}

#[test]
fn a_server_of_another_authority_is_not_trusted_and_that_is_said() {
    kubernetes(Topology::vxlan(1), |kube| {
        kube.create_all()?;
        let text = fs::read_to_string(kube.api.flannel_kubeconfig())?;
        let other: String = text
            .lines()
            .map(|line| match line.trim_start().strip_prefix("certificate-authority-data: ") {
                Some(_) => {
                    format!("    certificate-authority: {}\n", kube.lab.dir().join("other.crt").display())
                }
                None => format!("{line}\n"),
            })
            .collect();
        // Any certificate that did not sign the server's: the server's own.
        fs::copy(kube.api.dir().join("kubelet-client.crt"), kube.lab.dir().join("other.crt"))?;
        let config = kube.lab.dir().join("other.kubeconfig");
        fs::write(&config, other)?;
        kube.start_as(1, &config.display().to_string(), &[])?;
        complains(kube, &["certificate"])?;
        // Authorities are replaced in place.
        fs::copy(kube.api.ca_file(), kube.lab.dir().join("other.crt"))?;
        kube.node(1).wait_ready(0).map(drop)
    });
}

/// Waits until the log and the status have these words, while flanneld goes on.
fn complains(kube: &Kube<'_>, words: &[&str]) -> Result<()> {
    let node = kube.node(1);
    wait_for(&format!("node1 to complain of {words:?}"), PATIENCE, || {
        ensure!(node.is_running(), "flanneld has ended: {}", node.log());
        let status: Value = serde_json::to_value(node.status()?)?;
        let said = format!("{} {}", status["failures"], status["store"]["error"]);
        ensure!(words.iter().all(|word| said.contains(word)), "{said}");
        Ok(())
    })
}
