//! The MTU that pods are told fits the tunnel of every enabled family, so that nothing large is lost.
//!
//! ```text
//!   node1  a      node2  b      underlay of MTU 1500
//!     └─────────────┴──── switch
//! ```

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use flannel_rs_tests::{PATIENCE, reaches, shows};
use lab::{Families, Lab, Ping, Pod, Topology, story};
use serde_json::json;

#[test]
fn vxlan_over_ipv4_leaves_1450_octets() {
    story(Topology::vxlan(2), |lab| largest_packets_arrive(lab, 1450));
}

/// An IPv6 tunnel needs 70 octets. The original announces 1450 here and loses large IPv6 packets.
#[test]
fn vxlan_over_both_families_leaves_1430_octets() {
    story(Topology::vxlan(2).families(Families::Dual), |lab| largest_packets_arrive(lab, 1430));
}

#[test]
fn host_routes_leave_all_of_the_underlay() {
    story(Topology::host_gw(2), |lab| largest_packets_arrive(lab, 1500));
}

#[test]
fn udp_over_ipv4_leaves_1472_octets() {
    story(Topology::udp(2), |lab| largest_packets_arrive(lab, 1472));
}

#[test]
fn udp_over_both_families_leaves_1452_octets() {
    story(Topology::udp(2).families(Families::Dual), |lab| largest_packets_arrive(lab, 1452));
}

fn largest_packets_arrive(lab: &Lab, mtu: u32) -> Result<()> {
    lab.start()?;
    let (a, b) = (lab.node(1).attach("a")?, lab.node(2).attach("b")?);
    ensure!(lab.node(1).subnet_file()?.mtu == Some(mtu), "{:?}", lab.node(1).subnet_file()?);
    let shown = a.run("ip -o link show eth0")?;
    ensure!(shown.contains(&format!(" mtu {mtu} ")), "{shown}");
    reaches(&a, &b)?;
    for net in b.addresses() {
        // Not fragmented, not tried before: the very first one must fit.
        let sent = send(&a, net.addr(), mtu, PATIENCE)?;
        ensure!(sent.lost() == 0, "a packet of {mtu} octets to {} is lost: {:?}", net.addr(), sent.error);
        let too_long = send(&a, net.addr(), mtu + 1, Duration::from_secs(1))?;
        ensure!(too_long.lost() == 1, "a packet of {} octets fits through an MTU of {mtu}", mtu + 1);
    }
    Ok(())
}

/// One echo request in an IP packet of this length.
fn send(from: &Pod<'_>, to: IpAddr, length: u32, patience: Duration) -> Result<lab::Report> {
    let headers = if to.is_ipv4() { 20 + 8 } else { 40 + 8 };
    Ping { size: length as usize - headers, patience, ..Ping::once(to) }.from(from.namespace())
}

/// The original leaves an existing device at its old MTU while subnet.env has the new one.
#[test]
fn a_new_mtu_in_the_configuration_reaches_the_device_with_the_next_start() {
    story(Topology::vxlan(2), |lab| {
        lab.start()?;
        let mut network = lab.topology().net_conf();
        network["Backend"] = json!({ "Type": "vxlan", "MTU": 1400 });
        lab.set_network(&network)?;
        lab.node(1).kill()?;
        lab.start()?;
        ensure!(lab.node(1).subnet_file()?.mtu == Some(1350), "{:?}", lab.node(1).subnet_file()?);
        shows(lab.node(1), "ip link show flannel.1", "mtu 1350")
    });
}
