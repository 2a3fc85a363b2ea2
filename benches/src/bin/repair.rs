//! What is put right and how fast, and what a restart costs.
//!
//! Two nodes, each with a pod. Something is broken on node 1 and asked for every few milliseconds
//! until it is back; then flanneld is killed and started again, over and over, while the pods ping each
//! other every 5 ms and a third party counts pod addresses that leave the node unmasqueraded.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use flannel_rs_benches::{Agent, Report, Rig, Running, agents, await_quiet, begin};
use lab::{Namespace, Ping, wait_for};

/// How long to wait for a repair before calling it none.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often each thing is broken.
const BREAKS: usize = 5;
const RESTARTS: usize = 10;

fn main() -> Result<()> {
    begin("Repair and restart: two nodes, IPv4, etcd")?;
    let mut report = Report::of("Repair and restart");
    for agent in agents()? {
        repairs(&agent, &mut report).with_context(|| format!("breaking things under {}", agent.name))?;
        for (backend, nftables) in [("vxlan", false), ("vxlan", true), ("host-gw", false), ("host-gw", true)]
        {
            restarts(&agent, backend, nftables, &mut report)
                .with_context(|| format!("restarting {} with {backend}", agent.name))?;
        }
    }
    report.print()
}

fn net_conf(backend: &str, nftables: bool) -> String {
    format!(r#"{{"Network":"10.244.0.0/16","EnableNFTables":{nftables},"Backend":{{"Type":"{backend}"}}}}"#)
}

/// One thing to break: its name, the command that breaks it, the command that shows it, and a text
/// that is in what it shows when all is well.
struct Breakage<'a> {
    what: &'a str,
    command: Vec<&'a str>,
    look: Vec<&'a str>,
    whole: &'a str,
}

fn repairs(agent: &Agent, report: &mut Report) -> Result<()> {
    let rig = Rig::new(2, &net_conf("vxlan", true))?;
    await_quiet()?;
    let _agents =
        [agent.start_ready(rig.node(1), &["--ip-masq"])?, agent.start_ready(rig.node(2), &["--ip-masq"])?];
    let node = rig.node(1).namespace();
    let peer = rig.node(2).subnet()?;
    let (subnet, vtep) = (peer.to_string(), peer.network().to_string());
    let show_route = vec!["ip", "route", "show", subnet.as_str()];
    wait_for("the route to the peer", PATIENCE, || look(node, &show_route, "flannel.1"))?;
    let neighbor = node.run(&["ip", "neigh", "show", "dev", "flannel.1"])?;
    let words: Vec<&str> = neighbor.split_whitespace().collect();
    let mac = *words.get(2).with_context(|| format!("no neighbor on flannel.1: {neighbor:?}"))?;

    let breakages = [
        Breakage {
            what: "route deleted",
            command: vec!["ip", "route", "del", &subnet],
            look: show_route.clone(),
            whole: "flannel.1",
        },
        Breakage {
            what: "neighbor deleted",
            command: vec!["ip", "neigh", "del", &vtep, "dev", "flannel.1"],
            look: vec!["ip", "neigh", "show", "dev", "flannel.1", "nud", "permanent"],
            whole: &vtep,
        },
        Breakage {
            what: "FDB entry deleted",
            command: vec!["bridge", "fdb", "del", mac, "dev", "flannel.1", "dst", "192.168.64.2"],
            look: vec!["bridge", "fdb", "show", "dev", "flannel.1"],
            whole: "192.168.64.2",
        },
        Breakage {
            what: "device down, until the route is back",
            command: vec!["ip", "link", "set", "flannel.1", "down"],
            look: show_route.clone(),
            whole: "flannel.1",
        },
        Breakage {
            what: "device deleted, until the route is back",
            command: vec!["ip", "link", "del", "flannel.1"],
            look: show_route.clone(),
            whole: "flannel.1",
        },
        Breakage {
            what: "nft ruleset flushed",
            command: vec!["nft", "flush", "ruleset"],
            look: vec!["nft", "list", "ruleset"],
            whole: "masquerade",
        },
    ];
    for breakage in breakages {
        match repaired(node, &breakage)? {
            Some(took) => report.set_durations(breakage.what, agent.name, &took),
            None => report.set_never(breakage.what, agent.name, PATIENCE),
        }
    }
    Ok(())
}

/// How long it took each time; none if it is not repaired.
fn repaired(node: &Namespace, breakage: &Breakage<'_>) -> Result<Option<Vec<Duration>>> {
    let mut took = Vec::new();
    for _ in 0..BREAKS {
        // Deleting a device is work for the kernel that goes on behind the command.
        await_quiet()?;
        node.run(&breakage.command)?;
        let start = Instant::now();
        if wait_for(breakage.what, PATIENCE, || look(node, &breakage.look, breakage.whole)).is_err() {
            return Ok(None);
        }
        took.push(start.elapsed());
    }
    Ok(Some(took))
}

fn look(node: &Namespace, command: &[&str], whole: &str) -> Result<()> {
    let shown = node.run(command)?;
    if !shown.contains(whole) {
        bail!("{}: {shown:?}", command.join(" "));
    }
    Ok(())
}

fn restarts(agent: &Agent, backend: &str, nftables: bool, report: &mut Report) -> Result<()> {
    let firewall = if nftables { "EnableNFTables" } else { "default firewall" };
    let rig = Rig::new(2, &net_conf(backend, nftables))?;
    await_quiet()?;
    let mut first = Some(agent.start_ready(rig.node(1), &["--ip-masq"])?);
    let _second = agent.start_ready(rig.node(2), &["--ip-masq"])?;
    let subnet = rig.node(1).subnet()?;
    let (pod, _) = rig.attach(1)?;
    let (_, to) = rig.attach(2)?;
    wait_for("the pods to reach each other", PATIENCE, || {
        let seen = Ping::once(to.into()).from(&pod)?;
        if seen.lost() > 0 { bail!("no answer") } else { Ok(()) }
    })?;

    let ping = Ping {
        interval: Duration::from_millis(5),
        patience: Duration::from_secs(1),
        ..Ping::once(to.into())
    };
    let (mut lost, mut naked, mut sent) = (Vec::new(), Vec::new(), [0, 0]);
    for _ in 0..RESTARTS {
        let pinging = ping.keep_on(&pod)?;
        let stop = AtomicBool::new(false);
        let (unmasqueraded, flows) = thread::scope(|scope| {
            let counting = scope.spawn(|| unmasqueraded(&rig, &pod, &stop));
            let mut restart = || -> Result<()> {
                first.take().map(Running::kill).transpose()?;
                first = Some(agent.start(rig.node(1), &["--ip-masq"])?);
                thread::sleep(Duration::from_secs(1));
                Ok(())
            };
            let done = restart();
            stop.store(true, Ordering::Relaxed);
            let counted = counting.join().expect("the counting thread does not panic")?;
            done.map(|()| counted)
        })?;
        let pings = pinging.stop()?;
        sent = [sent[0] + u32::try_from(pings.sent)?, sent[1] + flows];
        lost.push(u32::try_from(pings.lost())?);
        naked.push(unmasqueraded);
    }
    let what = format!("{backend}, {firewall}, {RESTARTS} restarts");
    report.set_counts((&format!("{what}: pings lost"), "pings a restart"), agent.name, &lost, sent[0]);
    report.set_counts(
        (&format!("{what}: new flows that left unmasqueraded"), "flows a restart"),
        agent.name,
        &naked,
        sent[1],
    );
    if rig.node(1).subnet()? != subnet {
        bail!("the subnet changed from {subnet} to {}", rig.node(1).subnet()?);
    }
    Ok(())
}

/// Sends a datagram of a new flow from the pod to the switch every millisecond and counts those that
/// arrive with the pod's own address, and all.
fn unmasqueraded(rig: &Rig, pod: &Namespace, stop: &AtomicBool) -> Result<(u32, u32)> {
    let receiver = rig.switch().within(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 9)))??;
    receiver.set_nonblocking(true)?;
    let to = SocketAddr::from((Ipv4Addr::new(192, 168, 64, 254), 9));
    let (mut sent, mut naked) = (0_u32, 0_u32);
    pod.within(|| {
        while !stop.load(Ordering::Relaxed) {
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.send_to(b"?", to)?;
            sent += 1;
            thread::sleep(Duration::from_millis(1));
            while let Ok((_, from)) = receiver.recv_from(&mut [0; 8]) {
                naked += u32::from(from.ip().to_string().starts_with("10.244."));
            }
        }
        Ok::<_, std::io::Error>(())
    })??;
    Ok((naked, sent))
}
