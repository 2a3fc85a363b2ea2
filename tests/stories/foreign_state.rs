//! What is not flannel's is left alone: devices, addresses, routes, neighbors, rules, firewalls.
//!
//! ```text
//!   node1  a, and things that belong to others      node2  b
//!     └───────────────────────────────────────────────┴──── switch
//! ```

use anyhow::{Result, ensure};
use flannel_rs_tests::{everyone_answers, is_put_right, shows};
use lab::{Families, Node, Topology, story};

/// What others made: close to what flannel makes, and none of it flannel's.
const FOREIGN: &[&str] = &[
    // A tunnel of somebody else, with its peers.
    "ip link add vxlan7 type vxlan id 7 dstport 4789 local 192.168.64.1 dev eth0 nolearning",
    "ip link set vxlan7 up",
    "ip address add 172.20.1.1/24 dev vxlan7",
    "ip neigh add 172.20.1.9 lladdr 0e:00:00:00:00:09 dev vxlan7 nud permanent",
    "bridge fdb add 0e:00:00:00:00:09 dev vxlan7 dst 192.168.64.77 self permanent",
    // Neighbors and routes on the device that the nodes reach each other by.
    "ip neigh add 192.168.64.99 lladdr 0e:00:00:00:00:99 dev eth0 nud permanent",
    "ip route add 172.21.0.0/16 via 192.168.64.99",
    "ip route add 172.22.0.0/16 via 192.168.64.99 proto static metric 50",
    "ip -6 route add fd99::/48 via fd64::99",
    // Of the network's own addresses, but as nobody's flannel would write them.
    "ip route add blackhole 10.244.250.0/24",
    "ip route add 10.244.251.0/24 via 192.168.64.99 proto static",
    "ip route add 10.244.252.0/24 via 192.168.64.99 table 100",
    "ip route add 10.244.253.0/24 dev eth0",
    "ip rule add from 172.20.0.0/16 table 100 priority 1000",
    "ip nexthop add id 4711 via 192.168.64.99 dev eth0",
    // A firewall, written by nft and by iptables.
    "nft add table inet theirs",
    "nft add chain inet theirs c { type filter hook forward priority 5 ; }",
    "nft add rule inet theirs c ip saddr 203.0.113.0/24 drop",
    "iptables -t nat -A POSTROUTING -s 203.0.113.0/24 -j MASQUERADE",
    "iptables -N THEIRS",
    "iptables -A FORWARD -j THEIRS",
];

/// How all of it is shown, in an order that only its owners change.
const SHOWN: &[&str] = &[
    "ip -d link show vxlan7",
    "ip address show vxlan7 scope global",
    "ip neigh show nud permanent to 172.20.0.0/16",
    "ip neigh show nud permanent to 192.168.64.99",
    "bridge fdb show dev vxlan7",
    "ip route show 172.21.0.0/16",
    "ip route show 172.22.0.0/16",
    "ip -6 route show fd99::/48",
    "ip route show 10.244.250.0/24",
    "ip route show 10.244.251.0/24",
    "ip route show table 100",
    "ip route show 10.244.253.0/24",
    "ip rule show",
    "ip nexthop show id 4711",
    "nft list table inet theirs",
    "iptables -t nat -S POSTROUTING 1",
    "iptables -S THEIRS",
    "iptables -C FORWARD -j THEIRS",
];

#[test]
fn foreign_state_is_left_alone() {
    story(Topology::vxlan(2).families(Families::Dual).flag("--ip-masq"), |lab| {
        let node = lab.node(1);
        for command in FOREIGN {
            node.run(command)?;
        }
        let before = everything(node)?;

        lab.start()?;
        let pods = [node.attach("a")?, lab.node(2).attach("b")?];
        everyone_answers(lab, &pods)?;
        same(&before, &everything(node)?, "a start")?;

        is_put_right(node, "ip link del flannel.1", || shows(node, "ip route", "dev flannel.1"))?;
        same(&before, &everything(node)?, "a repair")?;

        node.kill()?;
        lab.start()?;
        everyone_answers(lab, &pods)?;
        same(&before, &everything(node)?, "a restart")
    });
}

fn everything(node: &Node) -> Result<Vec<String>> {
    SHOWN.iter().map(|command| node.run(command)).collect()
}

fn same(before: &[String], after: &[String], what: &str) -> Result<()> {
    for (command, (before, after)) in SHOWN.iter().zip(before.iter().zip(after)) {
        ensure!(before == after, "`{command}` after {what}: {after:?}, and before it: {before:?}");
    }
    Ok(())
}
