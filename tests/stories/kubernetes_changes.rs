//! Nodes go and come back, with other podCIDRs, or with somebody else's.
//!
//! ```text
//!   node1  a  ⇄  node2  b      node-9, an object only
//!     └────────────┴──── switch: kube-apiserver, etcd
//! ```

use anyhow::{Context, Result, ensure};
use fabric::status::LeaseState;
use flannel_rs_tests::kubernetes::SampleNode;
use flannel_rs_tests::{PATIENCE, Traffic, mac, reaches, shows};
use lab::{Topology, wait_for};

use crate::kubernetes::{Kube, PREFIX, kubernetes};

#[test]
fn a_node_that_is_deleted_and_made_again_is_as_it_was() {
    kubernetes(Topology::vxlan(2), |kube| {
        let (a, b) = kube.two_pods()?;
        let vtep = mac(kube.node(1), "flannel.1")?;

        kube.delete(1)?;
        wait_for("node1 to say so", PATIENCE, || state(kube, LeaseState::Lost))?;
        wait_for("node2 to forget it", PATIENCE, || routes(kube, 2, "10.244.1.0/24", 0))?;
        ensure!(kube.node(1).is_running(), "node1 must not end: its pods still run");
        shows(kube.node(1), "ip route show 10.244.2.0/24", "flannel.1")?;

        kube.create(1, &kube.pod_cidrs(1))?;
        wait_for("node1 to have its lease again", PATIENCE, || state(kube, LeaseState::Held))?;
        reaches(&a, &b)?;
        reaches(&b, &a)?;
        kube.wait_condition(1, "False", "FlannelIsUp")?;
        ensure!(mac(kube.node(1), "flannel.1")? == vtep, "the device has another address");
        Ok(())
    });
}

#[test]
fn a_node_whose_podcidr_changes_moves_over_and_names_its_old_bridge() {
    kubernetes(Topology::vxlan(2), |kube| {
        let (a, b) = kube.two_pods()?;

        kube.delete(1)?;
        kube.create(1, &["10.244.77.0/24".to_owned()])?;
        wait_for("subnet.env to follow", PATIENCE, || {
            let subnets = kube.node(1).subnet_file()?.subnets().to_string();
            ensure!(subnets == "10.244.77.0/24", "{subnets}");
            Ok(())
        })?;
        wait_for("node2 to follow", PATIENCE, || {
            routes(kube, 2, "10.244.77.0/24", 1)?;
            routes(kube, 2, "10.244.1.0/24", 0)
        })?;
        wait_for("the device to follow", PATIENCE, || {
            shows(kube.node(1), "ip -4 address show flannel.1", "10.244.77.0/32")
        })?;
        wait_for("the old bridge to be named", PATIENCE, || {
            let failures = kube.node(1).status()?.failures;
            let bridge =
                failures.iter().find(|failure| failure.topic == "bridge").context("no word of it")?;
            ensure!(bridge.remedy.contains("ip link delete cni0"), "{bridge:?}");
            Ok(())
        })?;

        // As the remedy says.
        a.detach()?;
        kube.node(1).run("ip link delete cni0")?;
        let c = kube.node(1).attach("c")?;
        reaches(&c, &b)?;
        wait_for("the word of it to go", PATIENCE, || {
            let failures = kube.node(1).status()?.failures;
            ensure!(failures.is_empty(), "{failures:?}");
            Ok(())
        })
    });
}

#[test]
fn of_two_nodes_with_one_podcidr_the_older_is_right_everywhere() {
    kubernetes(Topology::vxlan(2), |kube| {
        let (a, b) = kube.two_pods()?;
        let traffic = Traffic::between(&a, &b)?;
        // Somebody's controller gives the subnet of node2 to another one.
        another_second();
        let mut thief = SampleNode::vxlan(9);
        thief.pod_cidrs = vec!["10.244.2.0/24".to_owned()];
        kube.api.create_nodes(&[thief])?;
        wait_for("node1 to leave the newer one out, and to say so", PATIENCE, || {
            let status = kube.node(1).status()?;
            let said = serde_json::to_string(&status)?;
            ensure!(said.contains("node-9") || said.contains("172.16.0.9"), "{said}");
            Ok(())
        })?;
        shows(kube.node(1), "bridge fdb show dev flannel.1", "dst 192.168.64.2")?;
        traffic.lost_nothing()
    });
}

#[test]
fn a_node_that_is_given_the_podcidr_of_an_older_one_keeps_quiet_and_says_so() {
    kubernetes(Topology::vxlan(2), |kube| {
        kube.allow("events", &["", "events.k8s.io"], &["events"], &["create", "patch"])?;
        let mut older = SampleNode::vxlan(9);
        older.pod_cidrs = kube.pod_cidrs(1);
        kube.api.create_nodes(&[older])?;
        another_second();
        kube.create_all()?;
        kube.start(1, &[])?;
        kube.start(2, &[])?;
        wait_for("node1 to know", PATIENCE, || {
            let status = kube.node(1).status()?;
            let failure =
                status.failures.iter().find(|failure| failure.topic == "lease").context("no word")?;
            ensure!(failure.what.contains("172.16.0.9") || failure.what.contains("node-9"), "{failure:?}");
            Ok(())
        })?;
        kube.wait_condition(1, "True", "FlannelLeaseConflict")?;
        kube.wait_event(1, "FlannelLeaseConflict", "10.244.1.0/24")?;
        wait_for("node2 to know the older one", PATIENCE, || {
            shows(kube.node(2), "bridge fdb show dev flannel.1", "dst 172.16.0.9")
        })?;

        // The older one goes, and the younger has the subnet to itself.
        kube.api.request("DELETE", "/api/v1/nodes/node-9", &serde_json::Value::Null)?;
        kube.wait_condition(1, "False", "FlannelIsUp")?;
        wait_for("node2 to follow", PATIENCE, || {
            shows(kube.node(2), "bridge fdb show dev flannel.1", "dst 192.168.64.1")
        })
    });
}

#[test]
fn malformed_annotations_of_another_node_cost_only_that_node() {
    kubernetes(Topology::vxlan(2), |kube| {
        let (a, b) = kube.two_pods()?;
        let traffic = Traffic::between(&a, &b)?;
        let mut strange: Vec<SampleNode> = (20..26).map(SampleNode::vxlan).collect();
        for (node, subnet) in strange.iter_mut().zip(20..) {
            node.pod_cidrs = vec![format!("10.244.{subnet}.0/24")];
        }
        let mut spoil = |index: usize, name: &str, value: &str| {
            strange[index].annotations.retain(|(is, _)| *is != format!("{PREFIX}{name}"));
            strange[index].annotations.push((format!("{PREFIX}{name}"), value.to_owned()));
        };
        spoil(0, "public-ip", "nonsense");
        spoil(1, "backend-data", "{");
        spoil(2, "backend-data", r#"{"VNI":1,"VtepMAC":"zz"}"#);
        spoil(3, "backend-type", "");
        spoil(4, "public-ip", "fd00::1");
        strange[5].annotations.clear();
        strange[5].pod_cidrs.clear();
        kube.api.create_nodes(&strange)?;
        let good = SampleNode { pod_cidrs: vec!["10.244.30.0/24".to_owned()], ..SampleNode::vxlan(30) };
        kube.api.create_nodes(&[good])?;
        wait_for("the good one behind them to be met", PATIENCE, || routes(kube, 1, "10.244.30.0/24", 1))?;
        for subnet in [20, 21, 22, 24] {
            routes(kube, 1, &format!("10.244.{subnet}.0/24"), 0)?;
        }
        wait_for("those that cannot be understood to be named", PATIENCE, || {
            let skipped = kube.node(1).status()?.skipped;
            let is_named = |name| skipped.iter().any(|skipped| skipped.key.contains(name));
            ensure!(["node-20", "node-21", "node-24"].into_iter().all(is_named), "{skipped:?}");
            Ok(())
        })?;
        traffic.lost_nothing()
    });
}

/// Lets what is made from now on be younger than all there is: the API's dates are whole seconds.
fn another_second() {
    std::thread::sleep(std::time::Duration::from_millis(1100));
}

fn state(kube: &Kube<'_>, wanted: LeaseState) -> Result<()> {
    let lease = kube.node(1).status()?.lease.context("no lease in the status")?;
    ensure!(lease.state == wanted, "{lease:?}");
    Ok(())
}

/// How many routes a node has to a subnet.
fn routes(kube: &Kube<'_>, number: usize, subnet: &str, count: usize) -> Result<()> {
    let routes = kube.node(number).run(&format!("ip route show {subnet}"))?;
    ensure!(routes.lines().count() == count, "want {count}: {routes:?}");
    Ok(())
}
