//! flanneld is killed and started again, over and over, and the pods do not notice.
//!
//! ```text
//!   node1  a  ⇄  node2  b      ping every 5 ms, both ways
//!     └────────────┴──── switch
//! ```

use anyhow::{Result, ensure};
use flannel_rs_tests::{Traffic, mac, reaches};
use lab::{Families, Lab, Topology, story};

#[test]
fn a_vxlan_node_restarts_without_losing_a_packet() {
    story(Topology::vxlan(2).families(Families::Dual).etcd().flag("--ip-masq"), |lab| {
        let before = |lab: &Lab| -> Result<[String; 2]> {
            Ok([mac(lab.node(1), "flannel.1")?, mac(lab.node(1), "flannel-v6.1")?])
        };
        nobody_notices_restarts(lab, before)
    });
}

#[test]
fn a_host_gw_node_restarts_without_losing_a_packet() {
    story(Topology::host_gw(2).families(Families::Dual).etcd().flag("--ip-masq"), |lab| {
        nobody_notices_restarts(lab, |_| Ok(()))
    });
}

/// `kept` is what must be the same after every start.
fn nobody_notices_restarts<T: PartialEq + std::fmt::Debug>(
    lab: &Lab,
    kept: impl Fn(&Lab) -> Result<T>,
) -> Result<()> {
    lab.start()?;
    let (a, b) = (lab.node(1).attach("a")?, lab.node(2).attach("b")?);
    reaches(&a, &b)?;
    let before = (lab.node(1).subnet_file()?, kept(lab)?);

    let traffic = Traffic::between(&a, &b)?;
    for _ in 0..3 {
        lab.node(1).kill()?;
        lab.start()?;
    }
    lab.node(1).stop()?;
    lab.start()?;
    traffic.lost_nothing()?;

    let after = (lab.node(1).subnet_file()?, kept(lab)?);
    ensure!(before == after, "before: {before:?}, after: {after:?}");
    Ok(())
}
