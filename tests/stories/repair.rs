//! Whatever is broken behind flanneld's back is put right by itself.
//!
//! ```text
//!   node1  a      node2  b
//!     └─────────────┴──── switch
//! ```

use anyhow::{Context, ensure};
use flannel_rs_tests::{everyone_answers, is_put_right, mac, shows};
use lab::{Families, Lab, Topology, story};

#[test]
fn everything_of_vxlan_comes_back() {
    story(Topology::vxlan(2).families(Families::Dual), |lab| {
        lab.start()?;
        let pods = [lab.node(1).attach("a")?, lab.node(2).attach("b")?];
        everyone_answers(lab, &pods)?;
        let (node, peer) = (lab.node(1), lab.node(2).subnet_file()?.subnets());
        let (ipv4, ipv6) = (peer.ipv4.context("no IPv4 subnet")?, peer.ipv6.context("no IPv6 subnet")?);
        let own = node.subnet_file()?.subnets().ipv4.context("no IPv4 subnet")?;
        let (vtep, vtep_v6) = (mac(lab.node(2), "flannel.1")?, mac(lab.node(2), "flannel-v6.1")?);

        let route = || shows(node, &format!("ip route show {ipv4}"), "flannel.1");
        let route_v6 = || shows(node, &format!("ip -6 route show {ipv6}"), "flannel-v6.1");
        let neighbor = || shows(node, "ip neigh show dev flannel.1 nud permanent", &vtep);
        let neighbor_v6 = || shows(node, "ip neigh show dev flannel-v6.1 nud permanent", &vtep_v6);
        let fdb = || shows(node, "bridge fdb show dev flannel.1", &format!("{vtep} dst 192.168.64.2"));
        let fdb_v6 = || shows(node, "bridge fdb show dev flannel-v6.1", &vtep_v6);
        let address = || shows(node, "ip address show dev flannel.1", &format!("{}/32", own.network()));
        let everything = || {
            [route(), route_v6(), neighbor(), neighbor_v6(), fdb(), fdb_v6(), address()].into_iter().collect()
        };

        is_put_right(node, &format!("ip route del {ipv4}"), route)?;
        is_put_right(node, &format!("ip -6 route del {ipv6}"), route_v6)?;
        is_put_right(node, &format!("ip neigh del {} dev flannel.1", ipv4.network()), neighbor)?;
        is_put_right(node, &format!("ip neigh del {} dev flannel-v6.1", ipv6.network()), neighbor_v6)?;
        is_put_right(node, &format!("bridge fdb del {vtep} dev flannel.1 dst 192.168.64.2"), fdb)?;
        is_put_right(node, &format!("bridge fdb del {vtep_v6} dev flannel-v6.1 dst fd64::2"), fdb_v6)?;
        is_put_right(node, &format!("ip address del {}/32 dev flannel.1", own.network()), address)?;
        is_put_right(node, "ip link set flannel.1 down", everything)?;
        is_put_right(node, "ip link set flannel-v6.1 down", everything)?;
        is_put_right(node, "ip link set flannel.1 mtu 1300", || {
            shows(node, "ip link show flannel.1", "mtu 1450")
        })?;
        is_put_right(node, "ip route flush proto 102", everything)?;
        everyone_answers(lab, &pods)?;

        let own_mac = mac(node, "flannel.1")?;
        is_put_right(node, "ip link del flannel.1", everything)?;
        is_put_right(node, "ip link del flannel-v6.1", everything)?;
        everyone_answers(lab, &pods)?;
        let new_mac = mac(node, "flannel.1")?;
        ensure!(own_mac == new_mac, "the device had {own_mac} and came back with {new_mac}");

        // What systemd does to a device whose address it did not choose: peers send to the old one.
        node.run("ip link set flannel.1 address 0e:00:00:00:00:01")?;
        everyone_answers(lab, &pods)
    });
}

#[test]
fn host_routes_come_back() {
    story(Topology::host_gw(2).families(Families::Dual), |lab| {
        lab.start()?;
        let pods = [lab.node(1).attach("a")?, lab.node(2).attach("b")?];
        everyone_answers(lab, &pods)?;
        let (node, peer) = (lab.node(1), lab.node(2).subnet_file()?.subnets());
        for subnet in peer.iter() {
            let shown = if subnet.addr().is_ipv4() { "ip route show" } else { "ip -6 route show" };
            is_put_right(node, &format!("ip route del {subnet}"), || {
                shows(node, &format!("{shown} {subnet}"), "dev eth0")
            })?;
        }
        everyone_answers(lab, &pods)?;
        // Setting the device down takes its IPv6 address too, which nobody but its owner can know.
        is_put_right(node, "ip link set eth0 down", || {
            node.run("ip link set eth0 up")?;
            node.run("ip address replace fd64::1/64 dev eth0 nodad")?;
            let ipv4 = peer.ipv4.context("no IPv4 subnet")?;
            shows(node, &format!("ip route show {ipv4}"), "dev eth0")
        })?;
        everyone_answers(lab, &pods)
    });
}

/// A peer that left while flanneld was down leaves nothing behind, and one that came back with
/// another Ethernet address is known by the new one alone.
#[test]
fn nothing_stale_survives_a_restart() {
    story(Topology::vxlan(3).etcd(), |lab: &Lab| {
        lab.start()?;
        let gone = lab.node(3).subnet_file()?.subnets().ipv4.context("no IPv4 subnet")?;
        let old = mac(lab.node(2), "flannel.1")?;
        lab.node(1).kill()?;
        lab.node(2).kill()?;
        lab.node(3).kill()?;
        flannel_rs_tests::delete_key(
            lab,
            &format!("{}{}-{}", flannel_rs_tests::LEASES, gone.network(), gone.prefix_len()),
        )?;
        lab.node(2).run("ip link del flannel.1")?;
        for file in [lab.node(2).files().leases, lab.node(2).files().status] {
            let _ = std::fs::remove_file(file);
        }
        lab.node(1).start()?;
        lab.node(2).start()?;
        lab.wait_ready()?;
        let node = lab.node(1);
        lab::wait_for("the stale peer to be gone", flannel_rs_tests::PATIENCE, || {
            let shown = node.run("ip route")? + &node.run("ip neigh")? + &node.run("bridge fdb")?;
            let new = mac(lab.node(2), "flannel.1")?;
            ensure!(
                !shown.contains(&gone.network().to_string()) && !shown.contains("192.168.64.3"),
                "{shown}"
            );
            ensure!(shown.contains(&new) && (new == old || !shown.contains(&old)), "{shown}");
            Ok(())
        })
    });
}
