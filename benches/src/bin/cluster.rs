//! What flannel is to a Kubernetes cluster: how soon it is ready, how soon a pod answers, and what an update
//! costs.
//!
//! Two nodes with real kubelet, containerd and kube-proxy are brought up from nothing, a few times over.
//! Then pods are created one after the other, each asked over and over from its node until it answers.
//! When ADD began and ended is read from the files that the runtime writes before and after it. At last
//! flanneld is replaced on both nodes while two pods exchange packets.
//!
//! For a column of the original name its manifest and an archive of its image:
//! `FLANNEL_ORIGINAL_DAEMONSET=kube-flannel.yml,image.tar`.

use std::env;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use flannel_rs_benches::{Report, Samples, await_quiet, begin};
use flannel_rs_tests::kubernetes::{self, Agent, Cluster, PATIENCE, PodSpec, Proxy, Shape, TestPod};
use lab::{Lab, Topology, wait_for};

const STARTS: usize = 3;
const PODS: usize = 20;

fn main() -> Result<()> {
    if !kubernetes::is_available() {
        return Ok(());
    }
    begin("A cluster of two nodes, flanneld as a DaemonSet")?;
    let mut agents = vec![("ours", Agent::Ours)];
    if let Ok(original) = env::var("FLANNEL_ORIGINAL_DAEMONSET") {
        agents.push(("original", Agent::parse(&original)));
    }
    let mut report = Report::of("A Kubernetes cluster of two nodes");
    for (name, agent) in agents {
        measure(name, &agent, &mut report).with_context(|| format!("measuring {name}"))?;
    }
    report.print()
}

fn measure(column: &str, agent: &Agent, report: &mut Report) -> Result<()> {
    let shape = Shape { proxy: Proxy::Iptables, agent: agent.clone() };
    let (mut nodes, mut set) = (Samples::default(), Samples::default());
    for round in 1..=STARTS {
        await_quiet()?;
        let start = Instant::now();
        let lab = Lab::up(None, Topology::vxlan(2))?;
        let cluster = Cluster::start(&lab, &shape)?;
        wait_for("the nodes to be ready", PATIENCE, || cluster.nodes_ready())?;
        nodes.push(start.elapsed());
        cluster.wait_ready()?;
        set.push(start.elapsed());
        if round == STARTS {
            report.set_samples("from nothing until both nodes are ready and have a network", column, &nodes);
            report.set_samples("… until the DaemonSet says so too", column, &set);
            pods(&cluster, column, report)?;
            update(&cluster, column, report)?;
        }
    }
    Ok(())
}

/// Pods one after the other, on both nodes in turns.
fn pods(cluster: &Cluster<'_>, column: &str, report: &mut Report) -> Result<()> {
    let (mut answered, mut attached, mut own) = (Samples::default(), Samples::default(), Samples::default());
    // The first on each node makes the bridge.
    for number in 0..PODS + 2 {
        let node = 1 + number % 2;
        let name = format!("pod-{number}");
        let results = cluster.node(node).path("/var/lib/cni/results");
        let before = results_in(&results).len();
        let (start, began) = (Instant::now(), SystemTime::now());
        cluster.create(&PodSpec::new(&name, node))?;
        let ended = wait_for("ADD to end", PATIENCE, || {
            let times = results_in(&results);
            ensure!(times.len() > before, "{} results", times.len());
            Ok(times.into_iter().max().unwrap_or(began))
        })?;
        // The runtime makes the namespace right before it calls the plugins.
        let namespace = fs::metadata(cluster.node(node).path("/run/netns"))?.modified()?;
        let address = newest_address(cluster, node)?;
        let pod = TestPod { name, node, address, port: kubernetes::PORT };
        wait_for("the pod to answer", PATIENCE, || cluster.ask(&pod, "/"))?;
        if number >= 2 {
            answered.push(start.elapsed());
            attached.push(ended.duration_since(began).unwrap_or_default());
            own.push(ended.duration_since(namespace).unwrap_or_default());
        }
    }
    report.set_samples("a pod is created until it answers", column, &answered);
    report.set_samples("… until ADD is done", column, &attached);
    report.set_samples("… of that from the new namespace to the result", column, &own);
    Ok(())
}

/// When the results of pods were written; loopback has some of its own.
fn results_in(dir: &Path) -> Vec<SystemTime> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let of_pods = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("cbr0-"));
    of_pods.filter_map(|entry| entry.metadata().ok()?.modified().ok()).collect()
}

/// The address that host-local gave last.
fn newest_address(cluster: &Cluster<'_>, node: usize) -> Result<std::net::IpAddr> {
    let last = cluster.node(node).path("/var/lib/cni/networks/cbr0/last_reserved_ip.0");
    let text = fs::read_to_string(&last).with_context(|| format!("reading {}", last.display()))?;
    Ok(text.trim().parse()?)
}

/// An update of the DaemonSet during traffic.
fn update(cluster: &Cluster<'_>, column: &str, report: &mut Report) -> Result<()> {
    let pods = cluster.run(&[PodSpec::new("a", 1), PodSpec::new("b", 2)])?;
    cluster.ask_from(&pods[0], pods[1].server())?;
    cluster.begin_flow(&pods[0], pods[1].server())?;
    let start = Instant::now();
    cluster.roll_flannel()?;
    let lasted: Duration = start.elapsed();
    let said = cluster.ask(&pods[0], "/flow")?;
    report.set_durations("a rolling update of both nodes", column, &[lasted]);
    let numbers: Vec<u32> = said.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [sent, lost, opened, failed] = numbers[..] else { bail!("the pod says of its traffic: {said:?}") };
    report.set_counts(("… meanwhile packets lost", "packets"), column, &[lost], sent);
    report.set_counts(("… and connections that failed", "connections"), column, &[failed], opened);
    Ok(())
}
