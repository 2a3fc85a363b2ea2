//! Eight nodes start at the same moment in a network of eight subnets; a ninth finds it full.
//!
//! ```text
//!   node1 … node8      node9
//!     └───────┴──────────┴──── switch: etcd
//! ```

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use flannel_rs_tests::{PATIENCE, leases, says};
use lab::{Topology, story, wait_for};
use serde_json::json;

#[test]
fn eight_nodes_share_eight_subnets_and_a_ninth_is_told_that_none_is_left() {
    let mut topology = Topology::vxlan(9).etcd();
    topology.network = json!({ "SubnetLen": 24, "SubnetMin": "10.244.1.0", "SubnetMax": "10.244.8.0" });
    story(topology, |lab| {
        let eight = &lab.nodes()[..8];
        std::thread::scope(|scope| {
            let starts: Vec<_> = eight.iter().map(|node| scope.spawn(|| node.start())).collect();
            starts.into_iter().try_for_each(|start| start.join().expect("a start does not panic"))
        })?;
        lab.wait_ready()?;
        let taken: BTreeSet<_> =
            eight.iter().map(|node| Ok(node.subnet_file()?.subnets().ipv4)).collect::<Result<_>>()?;
        ensure!(taken.len() == 8, "{taken:?}");
        ensure!(leases(lab)?.len() == 8, "{:?}", leases(lab)?);

        let ninth = lab.node(9);
        ninth.start()?;
        says(ninth, "out of subnets")?;
        ensure!(!ninth.files().subnet.exists(), "the ninth node wrote a subnet.env");
        // It takes the first subnet that is given back.
        let (first, _) = &leases(lab)?[0];
        let owner = eight
            .iter()
            .find(|node| {
                let subnets = node.subnet_file().map(|file| file.subnets().key());
                subnets.is_ok_and(|key| key == *first)
            })
            .expect("one of the eight owns the first lease");
        owner.kill()?;
        flannel_rs_tests::delete_key(lab, &format!("{}{first}", flannel_rs_tests::LEASES))?;
        if !ninth.is_running() {
            ninth.start()?;
        }
        wait_for("the ninth node to have the subnet", PATIENCE, || {
            ensure!(ninth.subnet_file()?.subnets().key() == *first, "{:?}", ninth.subnet_file()?);
            Ok(())
        })
    });
}
