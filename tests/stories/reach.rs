//! Every pod reaches every other pod, whatever the backend and the families, and the world outside.
//!
//! ```text
//!   node1  a, b      node2  c      node3  d
//!     └───────────────┴───────────────┴──── switch (the world outside)
//! ```

use anyhow::{Result, ensure};
use flannel_rs_tests::{PATIENCE, everyone_answers, reaches};
use lab::{Families, Lab, Topology, story, wait_for};

#[test]
fn pods_reach_each_other_over_vxlan() {
    story(Topology::vxlan(3).flag("--ip-masq"), everyone_reaches_everyone);
}

#[test]
fn pods_reach_each_other_over_vxlan_with_both_families() {
    story(Topology::vxlan(3).families(Families::Dual).flag("--ip-masq"), everyone_reaches_everyone);
}

/// With etcd: there the original gives every node the same lease, since it knows them by IPv4 address.
#[test]
fn pods_reach_each_other_over_vxlan_with_ipv6_alone() {
    story(Topology::vxlan(3).families(Families::Ipv6).etcd().flag("--ip-masq"), everyone_reaches_everyone);
}

#[test]
fn pods_reach_each_other_by_host_routes() {
    story(Topology::host_gw(3).flag("--ip-masq"), everyone_reaches_everyone);
}

#[test]
fn pods_reach_each_other_by_host_routes_with_both_families() {
    story(Topology::host_gw(3).families(Families::Dual).etcd().flag("--ip-masq"), everyone_reaches_everyone);
}

#[test]
fn pods_reach_each_other_over_udp_with_both_families() {
    story(Topology::udp(3).families(Families::Dual).flag("--ip-masq"), everyone_reaches_everyone);
}

#[test]
fn pods_reach_each_other_over_udp_with_ipv6_alone() {
    story(Topology::udp(2).families(Families::Ipv6), |lab| {
        lab.start()?;
        everyone_answers(lab, &[lab.node(1).attach("a")?, lab.node(2).attach("b")?])
    });
}

/// `alloc` leases subnets and leaves the way to them to others.
#[test]
fn alloc_leases_subnets_and_touches_no_route() {
    story(Topology::alloc(2), |lab| {
        lab.start()?;
        let (a, b, c) = (lab.node(1).attach("a")?, lab.node(1).attach("b")?, lab.node(2).attach("c")?);
        reaches(&a, &b)?;
        ensure!(a.ping(c.ipv4()?).is_err(), "nobody made a route to the other node");
        let routes = lab.node(1).run("ip route show via 192.168.64.2")?;
        ensure!(routes.is_empty(), "{routes}");
        Ok(())
    });
}

fn everyone_reaches_everyone(lab: &Lab) -> Result<()> {
    lab.start()?;
    let pods = [
        lab.node(1).attach("a")?,
        lab.node(1).attach("b")?,
        lab.node(2).attach("c")?,
        lab.node(3).attach("d")?,
    ];
    everyone_answers(lab, &pods)?;
    // The switch knows no way back to a pod address: only masqueraded packets are answered.
    for outside in lab.topology().gateways(0) {
        wait_for("the world outside to answer", PATIENCE, || pods[0].ping(outside.addr()).map(drop))?;
    }
    let [a, ..] = pods;
    a.detach()?;
    let left = std::fs::read_dir(lab.node(1).cni_state())?.count();
    ensure!(left == 1, "{left} attachments are written down after one of two was taken away");
    Ok(())
}
