//! Starts that the original refuses, and configurations that cannot be used.
//!
//! ```text
//!   node1  a      node2  b      no default route
//!     └─────────────┴──── switch: etcd
//! ```

use anyhow::{Result, ensure};
use flannel_rs_tests::{PATIENCE, reaches, says};
use lab::{Topology, story, wait_for};
use serde_json::json;

#[test]
fn no_default_route_is_needed_where_one_address_is_the_obvious_choice() {
    let mut topology = Topology::vxlan(2);
    topology.default_route = false;
    story(topology, |lab| {
        lab.start()?;
        let (a, b) = (lab.node(1).attach("a")?, lab.node(2).attach("b")?);
        reaches(&a, &b)
    });
}

#[test]
fn a_node_whose_card_comes_late_starts_when_it_is_there() {
    story(Topology::vxlan(2), |lab| {
        let node = lab.node(1);
        node.run("ip link set eth0 down")?;
        node.run("ip address flush dev eth0")?;
        node.start()?;
        wait_for("flanneld to wait or to say why not", PATIENCE, || {
            let log = node.log();
            ensure!(log.contains("interface") || log.contains("address"), "{log}");
            Ok(())
        })?;
        node.run("ip link set eth0 up")?;
        node.run("ip address add 192.168.64.1/24 dev eth0")?;
        node.run("ip route add default via 192.168.64.254")?;
        // As a service manager would.
        if !node.is_running() {
            node.start()?;
        }
        lab.start()?;
        let (a, b) = (lab.node(1).attach("a")?, lab.node(2).attach("b")?);
        reaches(&a, &b)
    });
}

/// The original retries such a configuration every second and says nothing about the key.
#[test]
fn a_configuration_that_cannot_be_used_is_explained_and_waited_for() {
    story(Topology::vxlan(1).etcd(), |lab| {
        let good = lab.topology().net_conf();
        let mut bad = good.clone();
        bad["SubnetLen"] = json!(31);
        bad["Backend"]["Vni"] = json!(7);
        lab.set_network(&bad)
            .or_else(|_| flannel_rs_tests::write_key(lab, "/coreos.com/network/config", &bad.to_string()))?;
        let node = lab.node(1);
        node.start()?;
        says(node, "SubnetLen")?;
        ensure!(node.is_running() && !node.files().subnet.exists(), "it did not wait");
        lab.set_network(&good)?;
        node.wait_ready(0)?;
        Ok(())
    });
}

#[test]
fn a_key_that_nobody_knows_is_told_with_the_one_that_was_meant() {
    let mut topology = Topology::vxlan(1).backend(json!({ "Type": "vxlan", "DirectRoutng": true }));
    topology.network = json!({ "SubnetLenn": 24 });
    story(topology, |lab| -> Result<()> {
        lab.start()?;
        says(lab.node(1), "SubnetLenn")?;
        says(lab.node(1), "DirectRoutng")?;
        says(lab.node(1), "DirectRouting")
    });
}
