//! The udp backend with two families, of which one has no socket: the other is carried all the same.
//!
//! ```text
//!   node1  a (can listen in one family only)      node2  b
//!     └─────────────────────────────────────────────┴──── switch
//! ```

use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::{Context, Result, ensure};
use flannel_rs_tests::{PATIENCE, reaches};
use lab::{Families, Node, Pod, Topology, story, wait_for};

#[test]
fn a_family_whose_port_is_taken_costs_only_itself_until_it_is_free() {
    story(Topology::udp(2).families(Families::Dual), |lab| {
        lab.start()?;
        let (a, b) = (lab.node(1).attach("a")?, lab.node(2).attach("b")?);
        reaches(&a, &b)?;
        let node = lab.node(1);
        for address in node.addresses().iter().map(|net| net.addr()) {
            node.stop()?;
            let taken = node.namespace().within(|| UdpSocket::bind((address, 8285)))??;
            node.start()?;
            let listen = SocketAddr::new(address, 8285).to_string();
            let cost = if address.is_ipv4() { "over IPv4" } else { "over IPv6" };
            is_named(node, "udp", cost, &[&listen, "ss -ulpn"])?;
            // Meanwhile the other one flows, both ways.
            let carried = |ip: &IpAddr| ip.is_ipv4() != address.is_ipv4();
            for (from, to) in [(&a, &b), (&b, &a)] {
                let to = addresses(to).into_iter().find(carried).context("no address of the family")?;
                wait_for("the other family to flow", PATIENCE, || from.ping(to).map(drop))?;
            }
            ensure!(!node.status()?.ready, "ready although one family cannot flow");
            drop(taken);
            lab.wait_ready()?;
            reaches(&a, &b)?;
            ensure!(node.status()?.failures.is_empty(), "{:?}", node.status()?.failures);
        }
        Ok(())
    });
}

#[test]
fn a_node_that_is_left_with_a_link_local_address_carries_ipv4_until_the_other_is_back() {
    story(Topology::udp(2).families(Families::Dual), |lab| {
        lab.start()?;
        let (a, b) = (lab.node(1).attach("a")?, lab.node(2).attach("b")?);
        reaches(&a, &b)?;
        let node = lab.node(1);
        let net = node.addresses().iter().find(|net| net.addr().is_ipv6()).context("no IPv6 address")?;
        let ipv4_flows = || {
            wait_for("IPv4 to flow", PATIENCE, || a.ping(b.ipv4()?).map(drop))?;
            wait_for("IPv4 to flow back", PATIENCE, || b.ping(a.ipv4()?).map(drop))
        };
        let both_flow = || {
            lab.wait_ready()?;
            reaches(&a, &b)?;
            wait_for("nothing to be wrong", PATIENCE, || {
                let failures = node.status()?.failures;
                ensure!(failures.is_empty(), "{failures:?}");
                Ok(())
            })
        };

        // Its address stands for it while it is away.
        node.run(&format!("ip address del {net} dev eth0"))?;
        is_named(node, "interface", "give the node an address", &[&net.addr().to_string(), "fe80::"])?;
        ipv4_flows()?;
        node.run(&format!("ip address add {net} dev eth0"))?;
        both_flow()?;

        // Who starts without it knows none but the other.
        node.stop()?;
        node.run(&format!("ip address del {net} dev eth0"))?;
        node.start()?;
        is_named(node, "udp", "over IPv6", &["[fe80::", "link-local", "ip address add"])?;
        ipv4_flows()?;
        node.run(&format!("ip address add {net} dev eth0"))?;
        both_flow()
    });
}

fn addresses(pod: &Pod<'_>) -> Vec<IpAddr> {
    pod.addresses().iter().map(|net| net.addr()).collect()
}

/// Waits until the status says what is wrong, and what that means.
fn is_named(node: &Node, topic: &str, remedy: &str, what: &[&str]) -> Result<()> {
    wait_for("the failure to be named", PATIENCE, || {
        let failures = node.status()?.failures;
        let named = failures.iter().any(|failure| {
            failure.topic == topic
                && failure.remedy.contains(remedy)
                && what.iter().all(|words| failure.what.contains(words))
        });
        ensure!(named, "{failures:?}");
        Ok(())
    })
}
