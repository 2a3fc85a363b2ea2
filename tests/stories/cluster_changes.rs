//! A cluster changes under its pods: flanneld is replaced, the API server goes away, a node is deleted
//! and comes back. Traffic between pods that stay never notices.
//!
//! ```text
//!   node1  a                       node2  b
//!     └──────────────┬───────────────┘
//!                 switch: API server
//! ```

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use flannel_rs_tests::kubernetes::{Cluster, PATIENCE, PodSpec, Proxy, Shape, TestPod, cluster_story};
use lab::wait_for;
use serde_json::Value;

/// Long enough for requests to fail and retries to slow down.
const AWAY: Duration = Duration::from_secs(6);

#[test]
fn nobody_notices_an_update_and_an_api_server_that_is_away() {
    cluster_story(&Shape::new(Proxy::Iptables), |cluster| {
        let pods = cluster.run(&[PodSpec::new("a", 1), PodSpec::new("b", 2)])?;
        let [a, b] = &pods[..] else { unreachable!("two pods were asked for") };
        let service_of_b = cluster.expose(b, 30080)?;

        let traffic = Traffic::begin(cluster, a, b, service_of_b)?;
        cluster.roll_flannel()?;
        cluster.wait_ready()?;
        traffic.lost_nothing()?;

        let traffic = Traffic::begin(cluster, a, b, service_of_b)?;
        cluster.api().kill()?;
        thread::sleep(AWAY);
        cluster.api().restart()?;
        traffic.lost_nothing()?;

        // A server that accepts requests and never answers.
        let traffic = Traffic::begin(cluster, a, b, service_of_b)?;
        cluster.api().hang()?;
        thread::sleep(AWAY);
        cluster.api().go_on()?;
        cluster.wait_ready()?;
        traffic.lost_nothing()?;
        cluster.delete(&pods)
    });
}

#[test]
fn a_node_that_is_deleted_and_comes_back_is_met_again() {
    cluster_story(&Shape::new(Proxy::Nftables), |cluster| {
        let a = cluster.run(&[PodSpec::new("a", 1)])?.remove(0);
        let b = cluster.run(&[PodSpec::new("b", 2)])?.remove(0);
        meet(cluster, &a, &b)?;

        cluster.delete(&[b])?;
        cluster.api().kubectl(&["delete", "node", "node2"])?;
        wait_for("the other node to forget it", PATIENCE, || {
            let routes = cluster.lab().node(1).run("ip route show dev flannel.1")?;
            ensure!(routes.trim().is_empty(), "there is still {routes}");
            Ok(())
        })?;
        // The node may be given another subnet. The plugin says that a bridge of the old one is in the
        // way, and what to do.
        cluster.lab().node(2).run("ip link delete cni0")?;
        // A kubelet introduces its node when it starts, and at no other time.
        cluster.restart_kubelet(2)?;
        cluster.wait_ready()?;
        // A flanneld that lived on holds its old subnet until it has seen the new node.
        let subnet = wait_for("flanneld to have the subnet of the new node", PATIENCE, || {
            let node = cluster.api().request("GET", "/api/v1/nodes/node2", &Value::Null)?;
            let subnet = node["spec"]["podCIDR"].as_str().unwrap_or_default().parse::<ipnet::IpNet>()?;
            let taken = cluster.lab().node(2).subnet_file()?.subnets().to_string();
            ensure!(taken == subnet.to_string(), "it has {taken}, and the node {subnet}");
            Ok(subnet)
        })?;
        let newcomer = cluster.run(&[PodSpec::new("newcomer", 2)])?.remove(0);
        meet(cluster, &a, &newcomer)?;
        ensure!(subnet.contains(&newcomer.address), "{} is not of {subnet}", newcomer.address);
        cluster.delete(&[a, newcomer])
    });
}

/// Waits until two pods see each other as they are.
fn meet(cluster: &Cluster<'_>, one: &TestPod, other: &TestPod) -> Result<()> {
    for (from, to) in [(one, other), (other, one)] {
        wait_for("pods to reach each other", PATIENCE, || {
            let said = cluster.ask_from(from, to.server())?;
            ensure!(said == format!("{} {}", to.name, from.address), "{} says {said:?}", to.name);
            Ok(())
        })?;
    }
    Ok(())
}

/// Packets and connections that go on meanwhile.
struct Traffic<'a, 'lab> {
    cluster: &'a Cluster<'lab>,
    pods: [&'a TestPod; 2],
}

impl<'a, 'lab> Traffic<'a, 'lab> {
    /// From `a` to `b` by its service, from `b` to `a` by its address.
    fn begin(
        cluster: &'a Cluster<'lab>,
        a: &'a TestPod,
        b: &'a TestPod,
        service: SocketAddr,
    ) -> Result<Traffic<'a, 'lab>> {
        // Services are programmed a moment after they are made.
        wait_for("the service to answer", PATIENCE, || cluster.ask_from(a, service))?;
        meet(cluster, a, b)?;
        cluster.begin_flow(a, service)?;
        cluster.begin_flow(b, a.server())?;
        Ok(Traffic { cluster, pods: [a, b] })
    }

    fn lost_nothing(self) -> Result<()> {
        self.pods.into_iter().try_for_each(|pod| self.cluster.end_flow(pod))
    }
}
