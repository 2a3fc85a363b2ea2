//! The API server that other stories build on is a real one: it knows who may do what, and comes back with
//! what it knew.
//!
//! ```text
//!   node1      node2
//!     └──────────┴──── switch: kube-apiserver, etcd
//! ```

use anyhow::{Result, ensure};
use flannel_rs_tests::PATIENCE;
use flannel_rs_tests::kubernetes::{ApiServer, SampleNode, is_available};
use lab::{Topology, story, wait_for};
use serde_json::{Value, json};

#[test]
fn an_api_server_tells_who_may_do_what_and_remembers() {
    if !is_available() {
        return;
    }
    story(Topology::alloc(1), |lab| {
        let api = ApiServer::start(lab)?;
        api.create_nodes(&(1..=100).map(SampleNode::vxlan).collect::<Vec<_>>())?;
        ensure!(count_nodes(&api)? == 100, "{} nodes", count_nodes(&api)?);

        // Flannel's account, from a node.
        let flannel = format!("--kubeconfig={}", api.flannel_kubeconfig().display());
        let kubectl = |args: &str| lab.node(1).run(&format!("{} {flannel} {args}", api.program("kubectl")));
        ensure!(kubectl("get nodes --no-headers")?.lines().count() == 100);
        ensure!(kubectl("auth can-i patch nodes --subresource=status")?.trim() == "yes");
        ensure!(kubectl("auth can-i patch nodes").is_err(), "flannel may change nodes");

        api.kill()?;
        ensure!(kubectl("get nodes").is_err(), "a server that was killed answers");
        api.restart()?;
        ensure!(count_nodes(&api)? == 100, "{} nodes", count_nodes(&api)?);

        api.move_to("192.168.64.253".parse()?)?;
        ensure!(kubectl("get nodes --no-headers")?.lines().count() == 100);

        api.revoke_tokens()?;
        wait_for("the old token to be refused", PATIENCE, || {
            ensure!(kubectl("get nodes").is_err(), "it is still good");
            Ok(())
        })?;
        api.renew_token()?;
        // The server may know the account that is gone for a moment yet.
        let seen = wait_for("the new token to be good", PATIENCE, || kubectl("get nodes --no-headers"))?;
        ensure!(seen.lines().count() == 100, "{seen}");
        let relabel = json!({ "metadata": { "labels": { "story": "told" } } });
        let node = api.request("PATCH", "/api/v1/nodes/node-7", &relabel)?;
        ensure!(node["metadata"]["labels"]["story"] == "told", "{node}");
        Ok(())
    });
}

fn count_nodes(api: &ApiServer) -> Result<usize> {
    let nodes = api.request("GET", "/api/v1/nodes", &Value::Null)?;
    Ok(nodes["items"].as_array().map_or(0, Vec::len))
}
