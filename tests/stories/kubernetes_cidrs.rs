//! Where nobody else hands out podCIDRs, the nodes do it themselves: each gets its own, and a node that is
//! not permitted to says what it lacks.

use anyhow::{Context, Result, ensure};
use flannel_rs_tests::{PATIENCE, everyone_answers, says};
use lab::{Families, Topology, wait_for};
use serde_json::{Value, json};

use crate::kubernetes::{Kube, kubernetes};

#[test]
fn nodes_that_nobody_gives_podcidrs_give_them_to_each_other() {
    kubernetes(Topology::vxlan(3).families(Families::Dual), |kube| {
        (1..=3).try_for_each(|number| kube.create(number, &[]))?;
        kube.start(1, &["--allocate-node-cidrs"])?;
        says(kube.node(1), "flannel needs the right")?;
        ensure!(cidrs(kube)?.is_empty(), "handed out without the right to");

        kube.allow("give", &[""], &["nodes"], &["patch"])?;
        kube.allow("lock", &["coordination.k8s.io"], &["leases"], &["get", "create", "update"])?;
        // What was forbidden is tried again after a while only.
        kube.node(1).stop()?;
        (1..=3).try_for_each(|number| kube.start(number, &["--allocate-node-cidrs"]))?;
        (1..=3).try_for_each(|number| kube.node(number).wait_ready(2).map(drop))?;
        distinct(kube, 3)?;
        let (a, b) = (kube.node(1).attach("a")?, kube.node(2).attach("b")?);
        everyone_answers(kube.lab, &[a, b])?;

        // A crowd that cannot help itself, since nobody runs there: the others do.
        for number in 0..60 {
            let node = json!({ "metadata": { "name": format!("mute-{number}") } });
            kube.api.request("POST", "/api/v1/nodes", &node)?;
        }
        wait_for("the others to be given podCIDRs", PATIENCE, || distinct(kube, 63))
    });
}

/// The podCIDRs of all nodes.
fn cidrs(kube: &Kube<'_>) -> Result<Vec<String>> {
    let list = kube.api.request("GET", "/api/v1/nodes", &Value::Null)?;
    let nodes = list["items"].as_array().context("no list")?.clone();
    let cidrs =
        nodes.iter().flat_map(|node| node["spec"]["podCIDRs"].as_array().cloned().unwrap_or_default());
    Ok(cidrs.filter_map(|cidr| cidr.as_str().map(str::to_owned)).collect())
}

/// That so many nodes have podCIDRs of both families, and no two the same.
fn distinct(kube: &Kube<'_>, nodes: usize) -> Result<()> {
    let mut all = cidrs(kube)?;
    ensure!(all.len() == 2 * nodes, "{} podCIDRs for {nodes} nodes", all.len());
    all.sort();
    all.dedup();
    ensure!(all.len() == 2 * nodes, "some nodes have the same: {all:?}");
    Ok(())
}
