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
use flannel_rs_benches::{Agent, Report, Rig, RouteWatch, Samples, agents, heading};
use lab::Namespace;

const NET_CONF: &str =
    r#"{"Network":"10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.200.0.0","Backend":{"Type":"vxlan"}}"#;
const PATIENCE: Duration = Duration::from_secs(60);
/// Where flanneld answers probes.
const PROBES: u16 = 8471;

fn main() -> Result<()> {
    heading("Convergence: one node, vxlan, IPv4, etcd")?;
    let mut report = Report::of("Convergence");
    for agent in agents()? {
        for peers in [100, 1_000, 10_000] {
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

    let start = Instant::now();
    let running = agent.start(rig.node(1), &["--ip-masq", &format!("--healthz-port={PROBES}")])?;
    let converged = watch.count(usize::from(peers), PATIENCE)?;
    report.set_duration(&format!("cold start to all routes, {peers} leases"), agent.name, converged - start);

    let spent = running.processor_time()?;
    report.set_duration(&format!("— processor time spent by then, {peers} leases"), agent.name, spent);

    // Let it finish whatever it does after the last route, as it would have before the next lease.
    thread::sleep(Duration::from_secs(3));
    let row = format!("resident memory, {peers} leases");
    report.set_quantity(&row, agent.name, running.resident_megabytes()?, "MB");

    if peers == 1_000 {
        let (spent, idle) = (running.processor_time()?, Duration::from_secs(30));
        thread::sleep(idle);
        let share = (running.processor_time()? - spent).as_secs_f64() / idle.as_secs_f64() * 100.0;
        report.set_quantity(&format!("processor when idle, {peers} leases"), agent.name, share, "%");
    }

    let (mut until_route, mut until_answer) = (Samples::default(), Samples::default());
    let spent = running.processor_time()?;
    for number in peers..peers + 60 {
        watch.forget()?;
        let start = Instant::now();
        rig.etcd().put_leased(&lease(number))?;
        until_answer.push(start.elapsed());
        let took = watch.one(subnet(number), PATIENCE)?.saturating_duration_since(start);
        until_route.push(took);
        // Leases come one by one: what the last one set off is over.
        thread::sleep(Duration::from_millis(250));
    }
    let row = format!("one more lease to its route, {peers} present, of 60");
    report.set_samples(&row, agent.name, &until_route);
    let row = format!("— etcd answers the put after, {peers} present");
    report.set_samples(&row, agent.name, &until_answer);
    let row = format!("— processor time per lease, {peers} present");
    report.set_duration(&row, agent.name, (running.processor_time()? - spent) / 60);

    let more: Vec<(String, String)> = (peers + 60..peers + 1_060).map(lease).collect();
    watch.forget()?;
    let (stop, node) = (AtomicBool::new(false), rig.node(1).namespace().clone());
    let (start, answered, converged, probes) = thread::scope(|scope| {
        let probing = scope.spawn(|| probe(&node, &stop));
        // From before the burst until well after it.
        thread::sleep(Duration::from_millis(100));
        let start = Instant::now();
        let mut burst = || -> Result<(Duration, Instant)> {
            rig.etcd().put_all_leased(&more)?;
            Ok((start.elapsed(), watch.count(1_000, PATIENCE)?))
        };
        let burst = burst();
        thread::sleep(Duration::from_secs(1));
        stop.store(true, Ordering::Relaxed);
        let probes = probing.join().expect("it does not panic")?;
        let (answered, converged) = burst?;
        Ok::<_, anyhow::Error>((start, answered, converged, probes))
    })?;
    let row = format!("— answers to probes of /healthz meanwhile, {peers} present");
    report.set_samples(&row, agent.name, &probes);
    report.set_duration(
        &format!("1,000 more leases at once, {peers} present"),
        agent.name,
        converged - start,
    );
    let row = format!("— etcd answers the transaction after, {peers} present");
    report.set_duration(&row, agent.name, answered);
    Ok(())
}

/// Asks for `/healthz` until it is told to stop; how long each answer took.
fn probe(node: &Namespace, stop: &AtomicBool) -> Result<Samples> {
    node.within(|| {
        let mut samples = Samples::default();
        while !stop.load(Ordering::Relaxed) {
            let asked = Instant::now();
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, PROBES))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
            stream.read_to_end(&mut Vec::new())?;
            samples.push(asked.elapsed());
            thread::sleep(Duration::from_millis(1));
        }
        Ok(samples)
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
