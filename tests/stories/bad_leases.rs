//! One bad record costs only itself.
//!
//! ```text
//!   node1  a  ⇄  node2  b      node3 (joins later)
//!     └────────────┴──────────────┴──── switch: etcd, with garbage in it
//! ```

use anyhow::{Context, Result, ensure};
use fabric::lease::Subnets;
use flannel_rs_tests::{LEASES, PATIENCE, Traffic, everyone_answers, reaches, write_key};
use lab::{Lab, Topology, story, wait_for};

/// A lease like a good one.
fn vxlan(public: &str, mac: &str) -> String {
    format!(
        r#"{{"PublicIP":"{public}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
    )
}

/// Keys and values that are wrong, each in its own way.
fn wrong() -> Vec<(&'static str, String)> {
    vec![
        ("garbage", "garbage".to_owned()),
        ("10.244.300.0-24", vxlan("192.168.64.61", "0e:00:00:00:00:61")),
        ("10.244.201.0-24", "{".to_owned()),
        ("10.244.202.0-24", "null".to_owned()),
        ("10.244.203.0-24", r#"{"PublicIP":"somewhere","PublicIPv6":null}"#.to_owned()),
        (
            "10.244.204.0-24",
            r#"{"PublicIP":"192.168.64.64","PublicIPv6":null,"BackendType":"vxlan"}"#.to_owned(),
        ),
        ("10.244.205.0-24", vxlan("192.168.64.65", "not a MAC")),
        (
            "10.244.206.0-24",
            r#"{"PublicIP":"192.168.64.66","PublicIPv6":null,"BackendType":"host-gw"}"#.to_owned(),
        ),
        ("0.0.0.0-0&fd10:244:0:7::-64", vxlan("192.168.64.67", "0e:00:00:00:00:67")),
        // Outside of the network: taking it would cut the tunnels off. The original takes it.
        ("192.168.64.0-24", vxlan("192.168.64.68", "0e:00:00:00:00:68")),
        ("0.0.0.0-0", vxlan("192.168.64.69", "0e:00:00:00:00:69")),
        ("10.244.0.0-16", vxlan("192.168.64.70", "0e:00:00:00:00:70")),
    ]
}

#[test]
fn bad_leases_cost_only_themselves() {
    story(Topology::vxlan(3).etcd(), |lab| {
        // Some before anyone starts,
        let (early, late) = wrong().into_iter().enumerate().partition::<Vec<_>, _>(|(at, _)| at % 2 == 0);
        for (_, (key, value)) in &early {
            write_key(lab, &format!("{LEASES}{key}"), value)?;
        }
        for number in [1, 2] {
            lab.node(number).start()?;
        }
        reach_each_other(lab, 2)?;
        let (a, b) = (lab.node(1).attach("a")?, lab.node(2).attach("b")?);
        reaches(&a, &b)?;

        // and some during traffic.
        let traffic = Traffic::between(&a, &b)?;
        for (_, (key, value)) in &late {
            write_key(lab, &format!("{LEASES}{key}"), value)?;
        }
        // Others claim part of what each node has.
        for number in [1, 2] {
            let own = lab.node(number).subnet_file()?.subnets().ipv4.context("no IPv4 subnet")?;
            let part = format!("{LEASES}{}-26", own.network());
            write_key(lab, &part, &vxlan("192.168.64.71", "0e:00:00:00:00:71"))?;
        }
        // The watch is not deaf after all that.
        lab.node(3).start()?;
        reach_each_other(lab, 3)?;
        traffic.lost_nothing()?;
        let c = lab.node(3).attach("c")?;
        everyone_answers(lab, &[a, b, c])?;

        let status = lab.node(1).status()?;
        let routes = lab.node(1).run("ip route")?;
        for (key, _) in wrong() {
            let named = status.skipped.iter().any(|skipped| skipped.key.ends_with(key))
                || status.peers.iter().any(|peer| {
                    let subnets = Subnets { ipv4: peer.ipv4, ipv6: peer.ipv6 };
                    peer.refused.is_some() && subnets.key() == key
                });
            ensure!(named, "the status says nothing about {key}: {status:#?}");
            // The underlay's own route is the kernel's.
            let subnet = format!("{} ", key.replace('-', "/"));
            let taken =
                routes.lines().any(|line| line.starts_with(&subnet) && !line.contains("proto kernel"));
            ensure!(!taken, "{key} has a route: {routes}");
        }
        Ok(())
    });
}

/// Waits until this many nodes are ready and know each other, whoever else they refuse to know.
fn reach_each_other(lab: &Lab, nodes: usize) -> Result<()> {
    for node in &lab.nodes()[..nodes] {
        wait_for(&format!("{} to know the others", node.name()), PATIENCE, || {
            let status = node.status()?;
            ensure!(status.ready && Some(status.pid) == node.pid(), "awaits {:?}", status.awaited);
            let others = lab.nodes()[..nodes].iter().filter(|other| other.name() != node.name());
            for other in others {
                let known = status.peers.iter().any(|peer| {
                    peer.refused.is_none() && peer.public_ipv4.map(Into::into) == Some(other.address())
                });
                ensure!(known, "it does not know {}: {:?}", other.name(), status.peers);
            }
            Ok(())
        })?;
    }
    Ok(())
}
