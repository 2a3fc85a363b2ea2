//! A node is taken over from the original under traffic: what the original made is adopted or
//! cleaned up, and no packet is lost on the way.
//!
//! ```text
//!   node1  a      node2  b      node9, which left the cluster long ago
//!     └─────────────┴──── switch: etcd
//! ```
//!
//! The state is made with the commands that make what the original was seen to leave (`golden/`).

use anyhow::{Result, ensure};
use flannel_rs_tests::{LEASES, PATIENCE, Traffic, everyone_answers, mac, reaches, shows, write_key};
use lab::{Lab, Node, Topology, story, wait_for};

const VTEPS: [&str; 2] = ["5e:e8:1a:0c:42:0e", "82:9e:1c:8a:97:d7"];

/// The original's firewall, in its iptables mode.
const IPTABLES: &[&str] = &[
    "iptables -t nat -N FLANNEL-POSTRTG",
    "iptables -t nat -A POSTROUTING -m comment --comment flanneld_masq -j FLANNEL-POSTRTG",
    "iptables -t nat -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment flanneld_masq -j RETURN",
    "iptables -t nat -A FLANNEL-POSTRTG -s 10.244.1.0/24 -d 10.244.0.0/16 -m comment --comment flanneld_masq -j RETURN",
    "iptables -t nat -A FLANNEL-POSTRTG -s 10.244.0.0/16 -d 10.244.1.0/24 -m comment --comment flanneld_masq -j RETURN",
    "iptables -t nat -A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d 10.244.1.0/24 -m comment --comment flanneld_masq -j RETURN",
    "iptables -t nat -A FLANNEL-POSTRTG -s 10.244.0.0/16 ! -d 224.0.0.0/4 -m comment --comment flanneld_masq -j MASQUERADE --random-fully",
    "iptables -t nat -A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d 10.244.0.0/16 -m comment --comment flanneld_masq -j MASQUERADE --random-fully",
    "iptables -N FLANNEL-FWD",
    "iptables -A FORWARD -m comment --comment flanneld_forward -j FLANNEL-FWD",
    "iptables -A FLANNEL-FWD -s 10.244.0.0/16 -m comment --comment flanneld_forward -j ACCEPT",
    "iptables -A FLANNEL-FWD -d 10.244.0.0/16 -m comment --comment flanneld_forward -j ACCEPT",
];

#[test]
fn a_vxlan_node_is_taken_over_without_loss() {
    story(Topology::vxlan(2).etcd().flag("--ip-masq"), |lab| {
        for node in lab.nodes() {
            as_the_original_left_it(lab, node)?;
        }
        let node = lab.node(1);
        for command in IPTABLES {
            let words: Vec<String> = command.split(' ').map(|word| word.replace('_', " ")).collect();
            node.namespace().run(&words.iter().map(String::as_str).collect::<Vec<_>>())?;
        }
        // A peer that left while nobody looked.
        for command in [
            "ip neigh add 10.244.9.0 lladdr 0e:00:00:00:00:09 dev flannel.1 nud permanent",
            "bridge fdb add 0e:00:00:00:00:09 dev flannel.1 dst 192.168.64.9 self permanent",
            "ip route add 10.244.9.0/24 via 10.244.9.0 dev flannel.1 onlink",
        ] {
            node.run(command)?;
        }
        let (a, b) = (node.attach("a")?, lab.node(2).attach("b")?);
        reaches(&a, &b)?;

        let traffic = Traffic::between(&a, &b)?;
        lab.start()?;
        wait_for("the peer that left to be forgotten", PATIENCE, || {
            let shown = node.run("ip route")? + &node.run("ip neigh")? + &node.run("bridge fdb")?;
            ensure!(!shown.contains("10.244.9.0") && !shown.contains("0e:00:00:00:00:09"), "{shown}");
            Ok(())
        })?;
        wait_for("the original's chains to be gone", PATIENCE, || {
            let shown = node.run("iptables -t nat -S")? + &node.run("iptables -S")?;
            ensure!(!shown.contains("FLANNEL-POSTRTG"), "{shown}");
            Ok(())
        })?;
        traffic.lost_nothing()?;
        everyone_answers(lab, &[a, b])?;

        for (node, vtep) in lab.nodes().iter().zip(VTEPS) {
            ensure!(mac(node, "flannel.1")? == vtep, "{} has another Ethernet address", node.name());
        }
        shows(node, "ip route show 10.244.2.0/24", "dev flannel.1")?;
        let routes = node.run("ip route show 10.244.2.0/24")?;
        ensure!(routes.lines().count() == 1, "the peer has two routes: {routes}");
        Ok(())
    });
}

/// Device, addresses, peer, lease and subnet.env of one of two nodes.
fn as_the_original_left_it(lab: &Lab, node: &Node) -> Result<()> {
    let (own, peer) = if node.name() == "node1" { (1, 2) } else { (2, 1) };
    let (vtep, peer_vtep) = (VTEPS[own - 1], VTEPS[peer - 1]);
    for command in [
        format!(
            "ip link add flannel.1 mtu 1450 address {vtep} type vxlan id 1 dev eth0 local 192.168.64.{own} dstport 8472 nolearning"
        ),
        format!("ip address add 10.244.{own}.0/32 dev flannel.1"),
        "ip link set flannel.1 up".to_owned(),
        format!("ip neigh add 10.244.{peer}.0 lladdr {peer_vtep} dev flannel.1 nud permanent"),
        format!("bridge fdb add {peer_vtep} dev flannel.1 dst 192.168.64.{peer} self permanent"),
        format!("ip route add 10.244.{peer}.0/24 via 10.244.{peer}.0 dev flannel.1 onlink"),
        "sysctl -qw net.ipv4.ip_forward=1".to_owned(),
    ] {
        node.run(&command)?;
    }
    let subnet_env = format!(
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.{own}.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    );
    std::fs::write(node.files().subnet, subnet_env)?;
    let lease = format!(
        r#"{{"PublicIP":"192.168.64.{own}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{vtep}"}}}}"#
    );
    write_key(lab, &format!("{LEASES}10.244.{own}.0-24"), &lease)
}

#[test]
fn a_host_gw_node_is_taken_over_without_loss() {
    story(Topology::host_gw(2).etcd(), |lab| {
        for (own, peer) in [(1, 2), (2, 1)] {
            let node = lab.node(own);
            node.run(&format!("ip route add 10.244.{peer}.0/24 via 192.168.64.{peer} dev eth0"))?;
            node.run(&format!("ip route add 10.244.9.0/24 via 192.168.64.{peer} dev eth0"))?;
            let subnet_env = format!(
                "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.{own}.1/24\nFLANNEL_MTU=1500\nFLANNEL_IPMASQ=false\n"
            );
            std::fs::write(node.files().subnet, subnet_env)?;
            let lease =
                format!(r#"{{"PublicIP":"192.168.64.{own}","PublicIPv6":null,"BackendType":"host-gw"}}"#);
            write_key(lab, &format!("{LEASES}10.244.{own}.0-24"), &lease)?;
        }
        let (a, b) = (lab.node(1).attach("a")?, lab.node(2).attach("b")?);
        reaches(&a, &b)?;

        let traffic = Traffic::between(&a, &b)?;
        lab.start()?;
        wait_for("the peer that left to be forgotten", PATIENCE, || {
            let routes = lab.node(1).run("ip route")?;
            ensure!(!routes.contains("10.244.9.0"), "{routes}");
            ensure!(routes.matches("10.244.2.0/24").count() == 1, "{routes}");
            Ok(())
        })?;
        traffic.lost_nothing()
    });
}
