//! On a Kubernetes cluster pods are reached in every way that Kubernetes knows, and see each other as
//! they are.
//!
//! ```text
//!   node1  a, kubelet, containerd, kube-proxy      node2  b, h (in the node's network), …
//!     └────────────────────────────┬─────────────────────────┘
//!                               switch: API server, and the world outside
//! ```

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use flannel_rs_tests::PATIENCE;
use flannel_rs_tests::kubernetes::{
    Cluster, PORT, PodSpec, Proxy, Shape, TestPod, ask, cluster_story, test_pod_program,
};
use lab::{Process, wait_for};
use rustix::process::Signal;

#[test]
fn pods_are_reached_in_every_way_with_kube_proxy_on_iptables() {
    cluster_story(&Shape::new(Proxy::Iptables), |cluster| pods_are_reached(cluster));
}

#[test]
fn pods_are_reached_in_every_way_with_kube_proxy_on_nftables() {
    cluster_story(&Shape::new(Proxy::Nftables), |cluster| pods_are_reached(cluster));
}

const HOST_PORT: u16 = 9080;
const NODE_PORT: u16 = 30080;

fn pods_are_reached(cluster: &Cluster<'_>) -> Result<()> {
    let pods = cluster.run(&[
        PodSpec::new("a", 1).host_port(HOST_PORT),
        PodSpec::new("b", 2),
        PodSpec::new("h", 2).host_network(9090),
    ])?;
    let [a, b, h] = &pods[..] else { unreachable!("three pods were asked for") };
    let service_of_a = cluster.expose(a, NODE_PORT + 1)?;
    let service_of_b = cluster.expose(b, NODE_PORT)?;
    let (node1, node2) = (cluster.lab().node(1).address(), cluster.lab().node(2).address());

    // By address, and nobody stands between them.
    sees(cluster, a, b.server(), &format!("b {}", a.address))?;
    sees(cluster, b, a.server(), &format!("a {}", b.address))?;
    sees(cluster, a, service_of_b, &format!("b {}", a.address))?;
    // A node's own network is outside of the pod network, and a pod's way out is its node.
    sees(cluster, a, h.server(), &format!("h {node1}"))?;
    let gateway = ask(cluster.lab().node(2).namespace(), a.server(), "/")?;
    sees(cluster, h, a.server(), &gateway)?;
    ensure!(gateway.starts_with("a 10.244."), "to a pod a node is {gateway}");
    // Itself, by way of its service, and the API server by way of its own.
    sees(cluster, a, service_of_a, "a ")?;
    wait_for("the API server to refuse to speak plain HTTP", PATIENCE, || {
        let refused = cluster.ask_from(b, "10.96.0.1:443".parse()?).unwrap_or_else(|error| error.to_string());
        ensure!(refused.contains("HTTPS server"), "the API server says {refused}");
        Ok(())
    })?;

    // From outside.
    let outside = cluster.lab().switch();
    for node in [node1, node2] {
        let port = SocketAddr::new(node, NODE_PORT);
        let said = wait_for("the node port to answer", PATIENCE, || ask(outside, port, "/"))?;
        ensure!(said.starts_with("b "), "{port} says {said:?}");
    }
    sees(cluster, a, SocketAddr::new(node2, NODE_PORT), "b ")?;
    let port = SocketAddr::new(node1, HOST_PORT);
    let said = wait_for("the host port to answer", PATIENCE, || ask(outside, port, "/"))?;
    ensure!(said == format!("a {}", cluster.api().address().ip()), "{port} says {said:?}");
    sees(cluster, b, port, "a ")?;

    // To the outside a pod is its node.
    let mut world = World::start(cluster)?;
    sees(cluster, a, world.server, &format!("world {node1}"))?;
    sees(cluster, b, world.server, &format!("world {node2}"))?;
    world.process.end(Signal::KILL, PATIENCE)?;

    // What people do all day.
    let kubectl = |args: &[&str]| cluster.api().kubectl(args);
    let said = kubectl(&["exec", "a", "--", "/bin/program", "ask", &b.server().to_string()])?;
    ensure!(said.trim() == format!("b {}", a.address), "kubectl exec says {said:?}");
    ensure!(kubectl(&["logs", "a"])?.is_empty(), "the pod has nothing to say");
    cluster.delete(&pods)
}

/// Waits until a server answers a pod so.
fn sees(cluster: &Cluster<'_>, pod: &TestPod, server: SocketAddr, wanted: &str) -> Result<()> {
    wait_for(&format!("{} to reach {server}", pod.name), PATIENCE, || {
        let said = cluster.ask_from(pod, server)?;
        ensure!(said.starts_with(wanted), "{server} says {said:?} to {} instead of {wanted:?}", pod.name);
        Ok(())
    })
}

/// A server outside of the cluster.
struct World {
    server: SocketAddr,
    process: Process,
}

impl World {
    fn start(cluster: &Cluster<'_>) -> Result<World> {
        let lab = cluster.lab();
        let server = SocketAddr::new(lab.topology().switch_address(), PORT);
        let program = test_pod_program()?.display().to_string();
        let command = ["env", "NAME=world", &program, "serve", &PORT.to_string()].map(str::to_owned);
        let process = Process::spawn(lab.switch(), &command, &lab.dir().join("world.log"))?;
        wait_for("the world to answer", PATIENCE, || ask(lab.switch(), server, "/"))
            .context("starting a server in the switch")?;
        Ok(World { server, process })
    }
}
