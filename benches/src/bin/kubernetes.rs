//! What a large cluster costs flanneld: a start among very many Nodes, their heartbeats, one more Node.
//!
//! One node in a namespace, vxlan, a real API server on a real etcd in another. The Nodes of its peers are
//! objects of realistic size that no kubelet stands behind; a route counts when the kernel announces it.
//!
//! The original is given a queue of events that all Nodes fit into; with its default it never gets ready
//! among more than five thousand.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flannel_rs_benches::{Agent, Report, RouteWatch, Samples, agents, heading};
use flannel_rs_tests::kubernetes::{ApiServer, Connection, SampleNode};
use lab::{Lab, Topology};
use serde_json::json;

const NET_CONF: &str = r#"{"Network":"10.128.0.0/9","Backend":{"Type":"vxlan"}}"#;
const PATIENCE: Duration = Duration::from_secs(120);
/// The number of the Node that the node under test is.
const OURSELVES: u16 = 20_000;
const HEARTBEATS: u32 = 2_000;
const NEWCOMERS: u16 = 60;
const MERGE: &str = "application/strategic-merge-patch+json";

fn main() -> Result<()> {
    heading("Kubernetes: one node, vxlan, IPv4, a real API server, Nodes of 15 KB")?;
    let mut report = Report::of("Kubernetes");
    for nodes in [1_000, 5_000, 10_000] {
        for agent in agents()? {
            measure(&agent, nodes, &mut report)
                .with_context(|| format!("measuring {} among {nodes} nodes", agent.name))?;
        }
    }
    report.print()
}

fn measure(agent: &Agent, nodes: u16, report: &mut Report) -> Result<()> {
    let lab = Lab::up(None, Topology::vxlan(1))?;
    let api = ApiServer::start(&lab)?;
    let node = lab.node(1);
    api.create_nodes(&(1..=nodes).map(SampleNode::vxlan).collect::<Vec<_>>())?;
    let ours = SampleNode { name: node.name(), annotations: Vec::new(), ..SampleNode::vxlan(OURSELVES) };
    api.create_nodes(&[ours])?;
    let (net_conf, subnet_file) = (lab.dir().join("net-conf.json"), node.dir().join("bench/subnet.env"));
    fs::write(&net_conf, NET_CONF)?;
    let mut routes = RouteWatch::new(node.namespace())?;

    let start = Instant::now();
    let running = agent.start_on_kubernetes(
        node,
        (&node.name(), &api.flannel_kubeconfig(), &net_conf),
        &subnet_file,
    )?;
    let (ready, all) = thread::scope(|scope| {
        let ready = scope.spawn(|| appears(&subnet_file));
        let all = routes.count(usize::from(nodes), PATIENCE);
        (ready.join().expect("looking for a file does not panic"), all)
    });
    report.set_duration(&format!("cold start to ready, {nodes} nodes"), agent.name, ready? - start);
    report.set_duration(&format!("cold start to all routes, {nodes} nodes"), agent.name, all? - start);
    let spent = running.processor_time()?;
    report.set_duration(&format!("— processor time spent by then, {nodes} nodes"), agent.name, spent);
    // Let it finish whatever it does after the last route.
    thread::sleep(Duration::from_secs(5));
    let row = format!("resident memory, {nodes} nodes");
    report.set_quantity(&row, agent.name, running.resident_megabytes()?, "MB");

    let mut connection = api.connect()?;
    let spent = running.processor_time()?;
    for beat in 0..HEARTBEATS {
        heartbeat(&mut connection, beat, nodes)?;
    }
    // The last ones are still on their way.
    thread::sleep(Duration::from_millis(500));
    let each = (running.processor_time()? - spent).as_secs_f64() * 1e3 / f64::from(HEARTBEATS);
    let row = format!("processor time per heartbeat of another node, {nodes} nodes");
    report.set_quantity(&row, agent.name, each, "ms");

    newcomers(&mut connection, &mut routes, nodes, (agent.name, report))?;
    let row = format!("resident memory after that, {nodes} nodes");
    report.set_quantity(&row, agent.name, running.resident_megabytes()?, "MB");
    running.kill()?;
    drop((connection, api));
    lab.down()
}

/// What a kubelet writes all the time: none of a lease's business.
fn heartbeat(connection: &mut Connection, beat: u32, nodes: u16) -> Result<()> {
    let path = format!("/api/v1/nodes/node-{}/status", 1 + beat % u32::from(nodes));
    let condition = json!({ "type": "Ready", "status": "True", "message": format!("heartbeat {beat}") });
    let patch = json!({ "status": { "conditions": [condition] } });
    connection.send("PATCH", &path, MERGE, patch.to_string()).map(drop)
}

/// Nodes that come one by one, each until its route is there.
fn newcomers(
    connection: &mut Connection,
    routes: &mut RouteWatch,
    nodes: u16,
    (column, report): (&str, &mut Report),
) -> Result<()> {
    let (mut from_asking, mut from_answer) = (Samples::default(), Samples::default());
    for number in nodes + 1..=nodes + NEWCOMERS {
        let sample = SampleNode::vxlan(number);
        let object = sample.object().to_string();
        routes.forget()?;
        let asked = Instant::now();
        connection.send("POST", "/api/v1/nodes", "application/json", object)?;
        let answered = Instant::now();
        let [high, low] = number.to_be_bytes();
        let routed = routes.one(Ipv4Addr::new(10, 128 + high, low, 0), PATIENCE)?;
        from_asking.push(routed.saturating_duration_since(asked));
        from_answer.push(routed.saturating_duration_since(answered));
        // Nodes come one by one: what the last one set off is over.
        thread::sleep(Duration::from_millis(250));
    }
    report.set_samples(
        &format!("a Node is created → its route, {nodes} present, of {NEWCOMERS}"),
        column,
        &from_asking,
    );
    let row = format!("— after the API server has answered, {nodes} present");
    report.set_samples(&row, column, &from_answer);
    Ok(())
}

/// When a file is there.
fn appears(path: &Path) -> Result<Instant> {
    let deadline = Instant::now() + PATIENCE;
    while !path.exists() {
        ensure!(Instant::now() < deadline, "{} does not appear", path.display());
        thread::sleep(Duration::from_millis(1));
    }
    Ok(Instant::now())
}
