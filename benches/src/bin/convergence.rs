//! How fast the kernel follows the leases: cold start, one more lease, a thousand at once; and memory.
//!
//! One node in a namespace, vxlan, a real etcd in another. Leases of peers that do not exist are
//! written straight into etcd; a route counts when the kernel announces it over netlink.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use flannel_rs_benches::{
    Agent, Node, Report, Rig, RouteWatch, Running, Samples, agents, await_quiet, begin, forget,
};
use lab::Namespace;

const NET_CONF: &str =
    r#"{"Network":"10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.200.0.0","Backend":{"Type":"vxlan"}}"#;
const PATIENCE: Duration = Duration::from_secs(60);
/// Where flanneld answers probes.
const PROBES: u16 = 8471;

/// How often it is started, and how many times a thousand leases come at once.
const TIMES: u16 = 3;
/// How many leases come one by one.
const SINGLE: u16 = 60;
/// Of how many of them the processor time is told together.
const AT_ONCE: u16 = 20;
const BURST: u16 = 1_000;

fn main() -> Result<()> {
    begin("Convergence: one node, vxlan, IPv4, etcd")?;
    let mut report = Report::of("Convergence");
    for peers in [100, 1_000, 10_000] {
        for agent in agents()? {
            measure(&agent, peers, &mut report)
                .with_context(|| format!("measuring {} with {peers} leases", agent.name))?;
        }
    }
    report.print()
}

fn measure(agent: &Agent, peers: u16, report: &mut Report) -> Result<()> {
    let mut rig = Rig::new(1, NET_CONF)?;
    let all: Vec<(String, String)> = (0..peers).map(lease).collect();
    for some in all.chunks(2_000) {
        rig.etcd().put_all_leased(some)?;
    }
    let mut watch = RouteWatch::new(rig.node(1).namespace())?;
    let running = starts(agent, rig.node(1), &mut watch, peers, report)?;
    running.settle();
    let row = format!("resident memory, {peers} leases");
    report.set_quantity(&row, agent.name, running.resident_megabytes()?, "MB");
    if peers == 1_000 {
        idle(agent, &running, peers, report)?;
    }
    one_by_one(agent, &running, (&mut rig, &mut watch), peers, report)?;
    bursts(agent, &running, (&mut rig, &mut watch), peers, report)
}

/// Starts it until all routes are there, a few times, each time as if there had been no flanneld on the node.
fn starts(
    agent: &Agent,
    node: &Node,
    watch: &mut RouteWatch,
    peers: u16,
    report: &mut Report,
) -> Result<Running> {
    let (mut took, mut spent, mut last) = (Vec::new(), Vec::new(), None);
    for _ in 0..TIMES {
        if let Some(running) = last.take() {
            Running::kill(running)?;
            forget(node.namespace(), &node.subnet_file())?;
        }
        await_quiet()?;
        watch.forget()?;
        let start = Instant::now();
        let running = agent.start(node, &["--ip-masq", &format!("--healthz-port={PROBES}")])?;
        took.push(watch.count(usize::from(peers), PATIENCE)? - start);
        spent.push(running.processor_time()?);
        last = Some(running);
    }
    report.set_durations(&format!("cold start to all routes, {peers} leases"), agent.name, &took);
    report.set_durations(&format!("— processor time spent by then, {peers} leases"), agent.name, &spent);
    last.context("it was not started")
}

/// What it costs to have nothing to do.
fn idle(agent: &Agent, running: &Running, peers: u16, report: &mut Report) -> Result<()> {
    // Ours passes over everything every ten seconds: two of those are in it, wherever it begins.
    const WHILE: Duration = Duration::from_secs(20);
    let spent = running.processor_time()?;
    thread::sleep(WHILE);
    let share = (running.processor_time()? - spent).as_secs_f64() / WHILE.as_secs_f64() * 100.0;
    report.set_quantity(&format!("processor when idle, {peers} leases"), agent.name, share, "%");
    Ok(())
}

/// Leases that come one by one, each until its route is there.
fn one_by_one(
    agent: &Agent,
    running: &Running,
    (rig, watch): (&mut Rig, &mut RouteWatch),
    peers: u16,
    report: &mut Report,
) -> Result<()> {
    let (mut until_route, mut until_answer) = (Samples::default(), Samples::default());
    let (mut spent, mut before) = (Vec::new(), running.processor_time()?);
    for number in peers..peers + SINGLE {
        watch.forget()?;
        let start = Instant::now();
        rig.etcd().put_leased(&lease(number))?;
        until_answer.push(start.elapsed());
        until_route.push(watch.one(subnet(number), PATIENCE)?.saturating_duration_since(start));
        // Leases come one by one: what the last one set off is over.
        thread::sleep(Duration::from_millis(250));
        // Some of it is done later, for several at once.
        if (number - peers + 1).is_multiple_of(AT_ONCE) {
            let now = running.processor_time()?;
            spent.push((now - before) / u32::from(AT_ONCE));
            before = now;
        }
    }
    let row = format!("one more lease to its route, {peers} present, of {SINGLE}");
    report.set_samples(&row, agent.name, &until_route);
    let row = format!("— etcd answers the put after, {peers} present");
    report.set_samples(&row, agent.name, &until_answer);
    report.set_durations(&format!("— processor time per lease, {peers} present"), agent.name, &spent);
    Ok(())
}

/// A thousand leases at once, a few times.
fn bursts(
    agent: &Agent,
    running: &Running,
    (rig, watch): (&mut Rig, &mut RouteWatch),
    peers: u16,
    report: &mut Report,
) -> Result<()> {
    let (mut took, mut answered, mut probes) = (Vec::new(), Vec::new(), Samples::default());
    for burst in 0..TIMES {
        let first = peers + SINGLE + burst * BURST;
        let more: Vec<(String, String)> = (first..first + BURST).map(lease).collect();
        running.settle();
        watch.forget()?;
        let (stop, node) = (AtomicBool::new(false), rig.node(1).namespace().clone());
        thread::scope(|scope| {
            let probing = scope.spawn(|| probe(&node, &stop, &mut probes));
            // From before the burst until well after it.
            thread::sleep(Duration::from_millis(100));
            let start = Instant::now();
            let mut burst = || -> Result<()> {
                rig.etcd().put_all_leased(&more)?;
                answered.push(start.elapsed());
                took.push(watch.count(usize::from(BURST), PATIENCE)? - start);
                Ok(())
            };
            let done = burst();
            thread::sleep(Duration::from_millis(500));
            stop.store(true, Ordering::Relaxed);
            probing.join().expect("it does not panic")?;
            done
        })?;
    }
    report.set_durations(&format!("1,000 more leases at once, {peers} present"), agent.name, &took);
    let row = format!("— etcd answers the transaction after, {peers} present");
    report.set_durations(&row, agent.name, &answered);
    let row = format!("— answers to probes of /healthz meanwhile, {peers} present");
    report.set_samples(&row, agent.name, &probes);
    Ok(())
}

/// Asks for `/healthz` until it is told to stop, and enters how long each answer took.
fn probe(node: &Namespace, stop: &AtomicBool, samples: &mut Samples) -> Result<()> {
    node.within(|| {
        while !stop.load(Ordering::Relaxed) {
            let asked = Instant::now();
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, PROBES))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
            stream.read_to_end(&mut Vec::new())?;
            samples.push(asked.elapsed());
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    })?
}

/// The subnet of peer `number`, from 0.
fn subnet(number: u16) -> Ipv4Addr {
    let [high, low] = (number + 256).to_be_bytes();
    Ipv4Addr::new(10, high, low, 0)
}

/// Key and value of the lease of peer `number`.
fn lease(number: u16) -> (String, String) {
    let [high, low] = number.to_be_bytes();
    let key = format!("/coreos.com/network/subnets/{}-24", subnet(number));
    let value = format!(
        r#"{{"PublicIP":"172.16.{high}.{low}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"0e:00:00:01:{high:02x}:{low:02x}"}}}}"#
    );
    (key, value)
}
