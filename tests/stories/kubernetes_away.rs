//! The API server goes away: nothing is removed, nothing is lost, and a node that restarts meanwhile lives
//! on what it remembers.
//!
//! ```text
//!   node1  a  ⇄  node2  b      node3 (joins later)
//!     └────────────┴──────────────┴──── switch: kube-apiserver, etcd
//! ```

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use flannel_rs_tests::{PATIENCE, Traffic, everyone_answers, reaches, shows};
use lab::{Topology, wait_for};

use crate::kubernetes::{Kube, kubernetes};

/// Long enough for requests to fail and retries to slow down.
const AWAY: Duration = Duration::from_secs(6);

#[test]
fn an_api_server_that_is_away_stops_no_traffic_and_newcomers_are_met_when_it_is_back() {
    kubernetes(Topology::vxlan(3), |kube| {
        kube.create_all()?;
        for number in [1, 2] {
            kube.start(number, &[])?;
        }
        for number in [1, 2] {
            kube.node(number).wait_ready(1)?;
        }
        let (a, b) = (kube.node(1).attach("a")?, kube.node(2).attach("b")?);
        reaches(&a, &b)?;

        let traffic = Traffic::between(&a, &b)?;
        kube.api.kill()?;
        noticed(kube)?;
        // What is repaired meanwhile is repaired out of what is known.
        kube.node(1).run("ip link set flannel.1 mtu 1300")?;
        wait_for("the repair", PATIENCE, || shows(kube.node(1), "ip link show flannel.1", "mtu 1450"))?;
        thread::sleep(AWAY);
        kube.api.restart()?;
        kube.start(3, &[])?;
        for number in [1, 2, 3] {
            kube.node(number).wait_ready(2)?;
        }
        traffic.lost_nothing()?;
        let c = kube.node(3).attach("c")?;
        everyone_answers(kube.lab, &[a, b, c])
    });
}

#[test]
fn a_server_that_comes_and_goes_or_hangs_takes_nothing_away() {
    kubernetes(Topology::vxlan(2), |kube| {
        let (a, b) = kube.two_pods()?;
        let traffic = Traffic::between(&a, &b)?;
        for _ in 0..3 {
            kube.api.kill()?;
            noticed(kube)?;
            kube.api.restart()?;
            back(kube)?;
        }
        kube.api.hang()?;
        thread::sleep(AWAY);
        kube.api.go_on()?;
        back(kube)?;
        traffic.lost_nothing()?;
        let status = kube.node(1).status()?;
        ensure!(status.peers.len() == 1 && status.repairs.is_empty(), "{status:?}");
        Ok(())
    });
}

#[test]
fn a_node_that_reboots_while_the_server_is_away_starts_from_its_snapshot() {
    kubernetes(Topology::vxlan(2), |kube| {
        let (a, b) = kube.two_pods()?;
        let node = kube.node(1);
        let subnet = node.subnet_file()?;
        wait_for("the peer to be in the snapshot", PATIENCE, || {
            let snapshot = std::fs::read_to_string(node.files().leases)?;
            ensure!(snapshot.contains("10.244.2.0-24"), "{snapshot}");
            Ok(())
        })?;

        kube.api.kill()?;
        let traffic = Traffic::between(&a, &b)?;
        node.kill()?;
        kube.start(1, &["--ip-masq"])?;
        from_the_snapshot(kube)?;
        traffic.lost_nothing()?;

        // As after a reboot: nothing of the last run is left in the kernel.
        node.kill()?;
        node.run("ip link del flannel.1")?;
        kube.start(1, &["--ip-masq"])?;
        from_the_snapshot(kube)?;
        reaches(&a, &b)?;
        ensure!(node.subnet_file()? == subnet, "{:?}", node.subnet_file()?);

        kube.api.restart()?;
        wait_for("the store to be used again", PATIENCE, || {
            let status = node.status()?;
            ensure!(status.store.reachable && !status.store.from_snapshot, "{:?}", status.store);
            Ok(())
        })?;
        kube.wait_condition(1, "False", "FlannelIsUp")?;
        reaches(&a, &b)
    });
}

fn noticed(kube: &Kube<'_>) -> Result<()> {
    wait_for("flanneld to notice", PATIENCE, || {
        ensure!(!kube.node(1).status()?.store.reachable, "the status says that the store is reachable");
        Ok(())
    })
}

fn back(kube: &Kube<'_>) -> Result<()> {
    wait_for("flanneld to be back", PATIENCE, || {
        let store = kube.node(1).status()?.store;
        ensure!(store.reachable, "{store:?}");
        Ok(())
    })
}

fn from_the_snapshot(kube: &Kube<'_>) -> Result<()> {
    let node = kube.node(1);
    wait_for("the node to start from its snapshot, and to say so", PATIENCE, || {
        let status = node.status()?;
        ensure!(Some(status.pid) == node.pid(), "no word of this run yet");
        ensure!(status.ready && status.store.from_snapshot && !status.store.reachable, "{:?}", status.store);
        ensure!(status.peers.len() == 1, "{} peers", status.peers.len());
        Ok(())
    })
}
