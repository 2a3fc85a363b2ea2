//! A cluster to play with: `make cluster` and `make cluster-down`.
//!
//! ```text
//! test-cluster up [--proxy iptables|nftables] [--agent AGENT]
//! test-cluster down
//! ```
//!
//! An agent is a flanneld that runs on every node as a process, or `MANIFEST,IMAGE` for a DaemonSet.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program that talks to the terminal")]

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use flannel_rs_tests::kubernetes::{Agent, Cluster, Proxy, Shape, TEST_POD};
use flannel_rs_tests::machine;
use lab::{Lab, Topology};

/// The lab that it is in.
const NAME: &str = "cluster";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let done = match args.split_first() {
        Some((verb, flags)) if verb == "up" => shape(flags).and_then(|shape| up(&shape)),
        Some((verb, [])) if verb == "down" => down(),
        _ => Err(anyhow::anyhow!("usage: test-cluster up [--proxy MODE] [--agent AGENT] | down")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("test-cluster: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn shape(flags: &[String]) -> Result<Shape> {
    let mut shape = Shape::new(Proxy::Iptables);
    for flag in flags.chunks(2) {
        match flag.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["--proxy", "iptables"] => shape.proxy = Proxy::Iptables,
            ["--proxy", "nftables"] => shape.proxy = Proxy::Nftables,
            ["--agent", agent] => shape.agent = Agent::parse(agent),
            _ => bail!("{}: there is no such flag, or it lacks its value", flag.join(" ")),
        }
    }
    Ok(shape)
}

fn up(shape: &Shape) -> Result<()> {
    lab::permitted()?;
    let start = Instant::now();
    let lab = Lab::up(Some(NAME), Topology::vxlan(2))?;
    let cluster = Cluster::start(&lab, shape)?;
    let built = start.elapsed();
    if let Err(error) = cluster.wait_ready() {
        eprintln!("{}", cluster.dump());
        return Err(error);
    }
    println!("Two nodes, started in {built:.1?}, ready after {:.1?}.\n", start.elapsed());
    tell(&cluster)?;
    // What it holds lives on; `down` finds it by its namespaces.
    std::mem::forget(cluster);
    lab.stay()
}

/// Writes down how to get at it, and says so.
fn tell(cluster: &Cluster<'_>) -> Result<()> {
    let dir = cluster.lab().dir();
    let (api, switch) = (cluster.api(), cluster.lab().switch().path());
    let kubectl = format!(
        "exec nsenter --net={} {} --kubeconfig={} \"$@\"",
        switch.display(),
        api.program("kubectl"),
        api.admin_kubeconfig().display()
    );
    script(&dir.join("kubectl"), &kubectl)?;
    println!("  alias kubectl={}/kubectl", dir.display());
    println!("  kubectl get pods -A -o wide");
    println!("  kubectl run a --image={TEST_POD} -- serve 8080");
    println!("  kubectl exec a -- /bin/program ask 10.244.1.2:8080   # another pod, or a service");
    for number in 1..=cluster.lab().nodes().len() {
        let machine = cluster.node(number);
        let name = machine.node().name();
        script(
            &dir.join(&name).join("enter"),
            &format!("exec {} \"${{@:-bash}}\"", machine.entrance().join(" ")),
        )?;
        println!("  {}/{name}/enter   # a shell on {name}; its logs are beside it", dir.display());
    }
    println!("\n  make cluster-down");
    Ok(())
}

fn script(path: &Path, line: &str) -> Result<()> {
    fs::write(path, format!("#!/bin/bash\n{line}\n"))
        .with_context(|| format!("writing {}", path.display()))?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

fn down() -> Result<()> {
    match Lab::open(NAME) {
        Ok(lab) => lab.down()?,
        // One that was killed before it was up has lost its owner: the next lab sweeps it away.
        Err(_) => Lab::up(None, Topology::alloc(1))?.down()?,
    }
    machine::sweep();
    Ok(())
}
