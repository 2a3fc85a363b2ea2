//! What a large cluster costs flanneld: a start among very many Nodes, their heartbeats, one more Node.
//!
//! One node in a namespace, vxlan, a real API server on a real etcd in another. The Nodes of its peers are
//! objects of realistic size that no kubelet stands behind; a route counts when the kernel announces it.
//!
//! The original is given a queue of events that all Nodes fit into; with its default it never gets ready
//! among more than five thousand.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flannel_rs_benches::{Agent, Report, RouteWatch, Running, Samples, agents, await_quiet, begin, forget};
use flannel_rs_tests::kubernetes::{self, ApiServer, Connection, SampleNode};
use lab::{Lab, Node, Topology};
use serde_json::json;

const NET_CONF: &str = r#"{"Network":"10.128.0.0/9","Backend":{"Type":"vxlan"}}"#;
const PATIENCE: Duration = Duration::from_secs(120);
/// The number of the Node that the node under test is.
const OURSELVES: u16 = 20_000;
/// How often it is started.
const STARTS: usize = 3;
const HEARTBEATS: u32 = 1_000;
const NEWCOMERS: u16 = 60;
const MERGE: &str = "application/strategic-merge-patch+json";

fn main() -> Result<()> {
    if !kubernetes::is_available() {
        return Ok(());
    }
    begin("Kubernetes: one node, vxlan, IPv4, a real API server, Nodes of 15 KB")?;
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

    let files = Files { kubeconfig: api.flannel_kubeconfig(), net_conf, subnet: subnet_file };
    let running = starts(agent, node, &files, (&mut routes, nodes), report)?;
    // Let it finish whatever it does after the last route.
    running.settle();
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

/// What a flanneld reads and writes.
struct Files {
    kubeconfig: PathBuf,
    net_conf: PathBuf,
    subnet: PathBuf,
}

/// Starts it until all routes are there, a few times, each time as if there had been no flanneld on the node.
fn starts(
    agent: &Agent,
    node: &Node,
    files: &Files,
    (routes, nodes): (&mut RouteWatch, u16),
    report: &mut Report,
) -> Result<Running> {
    let (mut until_ready, mut until_all, mut spent, mut last) = (vec![], vec![], vec![], None);
    for _ in 0..STARTS {
        if let Some(running) = last.take() {
            Running::kill(running)?;
            forget(node.namespace(), &files.subnet)?;
        }
        await_quiet()?;
        routes.forget()?;
        let start = Instant::now();
        let with = (node.name(), &*files.kubeconfig, &*files.net_conf);
        let running = agent.start_on_kubernetes(node, (&with.0, with.1, with.2), &files.subnet)?;
        let (ready, all) = thread::scope(|scope| {
            let ready = scope.spawn(|| appears(&files.subnet));
            let all = routes.count(usize::from(nodes), PATIENCE);
            (ready.join().expect("looking for a file does not panic"), all)
        });
        until_ready.push(ready? - start);
        until_all.push(all? - start);
        spent.push(running.processor_time()?);
        last = Some(running);
    }
    report.set_durations(&format!("cold start to ready, {nodes} nodes"), agent.name, &until_ready);
    report.set_durations(&format!("cold start to all routes, {nodes} nodes"), agent.name, &until_all);
    let row = format!("— processor time spent by then, {nodes} nodes");
    report.set_durations(&row, agent.name, &spent);
    last.context("it was not started")
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
        thread::sleep(Duration::from_millis(150));
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
