//! etcd goes away: nothing that worked stops working, a restart included, and what was missed is made
//! up for when it is back.
//!
//! ```text
//!   node1  a  ⇄  node2  b      node3 (joins later)
//!     └────────────┴──────────────┴──── switch: etcd
//! ```

use std::thread;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use flannel_rs_tests::{PATIENCE, Traffic, everyone_answers, reaches, shows};
use lab::{Lab, Topology, story, wait_for};

/// Long enough for requests to fail and retries to slow down.
const AWAY: Duration = Duration::from_secs(6);

#[test]
fn a_store_that_is_away_stops_no_traffic_and_newcomers_are_met_when_it_is_back() {
    story(Topology::vxlan(3).etcd(), |lab| {
        for number in [1, 2] {
            lab.node(number).start()?;
        }
        lab.wait_ready()?;
        let (a, b) = (lab.node(1).attach("a")?, lab.node(2).attach("b")?);
        reaches(&a, &b)?;

        let traffic = Traffic::between(&a, &b)?;
        lab.stop_store()?;
        wait_for("flanneld to notice", PATIENCE, || {
            ensure!(!lab.node(1).status()?.store.reachable, "the status says that the store is reachable");
            Ok(())
        })?;
        // What is repaired meanwhile is repaired out of what is known.
        lab.node(1).run("ip link set flannel.1 mtu 1300")?;
        wait_for("the repair", PATIENCE, || shows(lab.node(1), "ip link show flannel.1", "mtu 1450"))?;
        thread::sleep(AWAY);
        lab.start_store()?;
        lab.node(3).start()?;
        lab.wait_ready()?;
        traffic.lost_nothing()?;

        let c = lab.node(3).attach("c")?;
        everyone_answers(lab, &[a, b, c])
    });
}

#[test]
fn a_node_that_reboots_while_the_store_is_away_lives_on_what_it_remembers() {
    story(Topology::vxlan(2).etcd(), |lab| {
        lab.start()?;
        let (a, b) = (lab.node(1).attach("a")?, lab.node(2).attach("b")?);
        reaches(&a, &b)?;
        let subnet = lab.node(1).subnet_file()?;
        let peer = lab.node(2).subnet_file()?.subnets().key();
        wait_for("the peer to be in the snapshot", PATIENCE, || {
            let snapshot = std::fs::read_to_string(lab.node(1).files().leases)?;
            ensure!(snapshot.contains(&peer), "{snapshot}");
            Ok(())
        })?;

        lab.stop_store()?;
        let traffic = Traffic::between(&a, &b)?;
        lab.node(1).kill()?;
        lab.node(1).start()?;
        from_the_snapshot(lab)?;
        traffic.lost_nothing()?;

        // As after a reboot: nothing of the last run is left in the kernel.
        lab.node(1).kill()?;
        lab.node(1).run("ip link del flannel.1")?;
        lab.node(1).start()?;
        from_the_snapshot(lab)?;
        reaches(&a, &b)?;
        ensure!(lab.node(1).subnet_file()? == subnet, "{:?}", lab.node(1).subnet_file()?);

        lab.start_store()?;
        wait_for("the store to be used again", PATIENCE, || {
            let status = lab.node(1).status()?;
            ensure!(status.store.reachable && !status.store.from_snapshot, "{:?}", status.store);
            Ok(())
        })?;
        reaches(&a, &b)
    });
}

fn from_the_snapshot(lab: &Lab) -> Result<()> {
    let node = lab.node(1);
    wait_for("the node to start from its snapshot, and to say so", PATIENCE, || {
        let status = node.status()?;
        if Some(status.pid) != node.pid() {
            bail!("no word of this run yet");
        }
        ensure!(status.store.from_snapshot && !status.store.reachable, "{:?}", status.store);
        ensure!(status.peers.len() == 1, "{} peers", status.peers.len());
        Ok(())
    })
}
