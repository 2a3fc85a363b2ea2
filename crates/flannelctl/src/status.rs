//! `flannelctl status`: the node on one screen, and what other networks left on it.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use fabric::status::{Files, LeaseState, Peer, PeerPath, Status};

use crate::leftovers::{self, Leftover};
use crate::output::{Output, Tone, rough, since, until};

/// More peers than this are counted, not listed.
const PEERS: usize = 20;
/// How many of the latest repairs are shown.
const REPAIRS: usize = 5;

pub(crate) fn run(subnet_file: &Path, all: bool, out: &mut Output) -> Result<ExitCode> {
    let files = Files::beside(subnet_file);
    let status = read(&files)?;
    let running = is_running(&status, &files);
    let healthy = running && status.ready && status.failures.is_empty();
    let leftovers = leftovers::recognise(&leftovers::look(), &status);
    if out.is_json() {
        let mut json = serde_json::to_value(&status)?;
        json["running"] = running.into();
        json["leftovers"] = serde_json::to_value(&leftovers)?;
        out.json(&json)?;
    } else {
        show(&status, running, all, out)?;
        show_leftovers(&leftovers, out)?;
    }
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What flanneld says about itself.
pub(crate) fn read(files: &Files) -> Result<Status> {
    let path = files.status.display();
    let text = match fs::read(&files.status) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("flanneld has not run here: there is no {path} (start it, or name its --subnet-file)")
        }
        read => read.with_context(|| format!("reading {path}"))?,
    };
    serde_json::from_slice(&text)
        .with_context(|| format!("{path} is not what a flanneld writes; start flanneld anew"))
}

/// Whether the flanneld that wrote the status is still there. One in a container has its process id
/// there and another one here; its lock is the same.
fn is_running(status: &Status, files: &Files) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", status.pid)).unwrap_or_default();
    let locked = || File::open(&files.lock).is_ok_and(|lock| lock.try_lock_shared().is_err());
    is_live_flanneld(&stat) || locked()
}

/// Reads `/proc/<pid>/stat`: process id, name in parentheses, state. One that has ended stays there
/// until its parent asks for it.
fn is_live_flanneld(stat: &str) -> bool {
    let state = stat.split_once(" (flanneld) ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

fn show(status: &Status, running: bool, all: bool, out: &mut Output) -> Result<()> {
    let dated = if running { String::new() } else { format!(" {} ago", rough(since(status.written))) };
    let node = match (running, status.ready) {
        (false, _) => {
            out.toned(Tone::Bad, format!("flanneld does not run; what follows is its last word,{dated}"))
        }
        (true, true) => out.toned(Tone::Good, "ready"),
        (true, false) => out.toned(Tone::Bad, format!("not ready, awaiting {}", status.awaited.join(", "))),
    };
    let mut facts = vec![("node", node)];
    facts.push((
        "flanneld",
        format!("{}, process {}, started {} ago", status.version, status.pid, rough(since(status.started))),
    ));
    if let Some(network) = &status.network {
        let networks: Vec<String> = network.networks.iter().map(ToString::to_string).collect();
        let links = if network.links.is_empty() {
            String::new()
        } else {
            format!(" on {}", network.links.join(", "))
        };
        let masquerade = if network.masquerade { ", masqueraded towards the outside" } else { "" };
        facts.push((
            "network",
            format!(
                "{} by {}{links}, MTU of pods {}{masquerade}",
                networks.join(" "),
                network.backend,
                network.mtu
            ),
        ));
    }
    if let Some(external) = &status.external {
        let addresses: Vec<String> = external.addresses.iter().map(ToString::to_string).collect();
        let public = if external.public == external.addresses {
            String::new()
        } else {
            let public: Vec<String> = external.public.iter().map(ToString::to_string).collect();
            format!(", known to peers as {}", public.join(" "))
        };
        facts.push((
            "interface",
            format!("{} {}{public} ({})", external.link, addresses.join(" "), external.reason),
        ));
    }
    facts.push(("lease", lease(status, out)));
    facts.push(("store", store(status, out)));
    if let Some(kernel) = kernel(status, out) {
        facts.push(("kernel", kernel));
    }
    for (name, fact) in facts {
        out.line(format!("{} {fact}", out.toned(Tone::Strong, format!("{name:<10}"))))?;
    }
    data_path(status, out)?;
    peers(status, all, out)?;
    repairs(status, out)?;
    wrong(status, out)
}

/// What the kernel holds for us; nothing before the first pass.
fn kernel(status: &Status, out: &Output) -> Option<String> {
    let it = &status.reconciler;
    let sum = |counts: &std::collections::BTreeMap<String, u64>| counts.values().sum::<u64>();
    let (desired, failed, repaired) = (sum(&it.desired), sum(&it.failed), sum(&it.repaired));
    let refused = match failed {
        0 => String::new(),
        _ => out.toned(Tone::Bad, format!(", {failed} refused")),
    };
    let repaired =
        if repaired == 0 { String::new() } else { format!(", {repaired} put right since the start") };
    (desired > 0).then(|| format!("{desired} objects wanted{refused}{repaired}"))
}

fn lease(status: &Status, out: &Output) -> String {
    let Some(lease) = &status.lease else { return out.toned(Tone::Bad, "none yet") };
    let subnets: Vec<String> = lease.subnets.iter().map(ToString::to_string).collect();
    let state = match lease.state {
        LeaseState::Held => {
            let end =
                lease.expires.map_or(String::new(), |at| format!(", renewed within {}", rough(until(at))));
            format!("held{end}")
        }
        LeaseState::Lost => out.toned(Tone::Bad, format!("lost: {}", lease.detail)),
        LeaseState::Taken => out.toned(Tone::Bad, format!("taken by another node: {}", lease.detail)),
        LeaseState::FromSnapshot => "remembered from the last run, until the store answers".to_owned(),
    };
    format!("{} ({state})", subnets.join(" "))
}

fn store(status: &Status, out: &Output) -> String {
    let store = &status.store;
    let snapshot = if store.from_snapshot { "; the peers are those of the last run" } else { "" };
    let since = rough(since(store.since));
    if store.reachable {
        return format!("{}, reachable for {since}", store.name);
    }
    let error = store.error.as_ref().map_or(String::new(), |error| format!(": {error}"));
    out.toned(Tone::Bad, format!("{}, unreachable for {since}{error}{snapshot}", store.name))
}

/// What was carried and what was dropped, of a backend whose packets pass through flanneld.
fn data_path(status: &Status, out: &mut Output) -> Result<()> {
    let Some(data_path) = &status.data_path else { return Ok(()) };
    let (outgoing, incoming) = (&data_path.outgoing, &data_path.incoming);
    let carried = format!("{} packets sent, {} received", outgoing.packets, incoming.packets);
    out.line(format!("{} {carried}", out.toned(Tone::Strong, format!("{:<10}", "data path"))))?;
    for (way, traffic) in [("outgoing", outgoing), ("incoming", incoming)] {
        for (reason, count) in traffic.dropped.iter().filter(|(_, count)| **count > 0) {
            out.line(format!("           {count} {way} dropped: {}", reason.replace('_', " ")))?;
        }
        if traffic.oversized > 0 {
            out.line(format!("           {} {way} larger than the MTU of pods", traffic.oversized))?;
        }
    }
    let off: Vec<&str> =
        data_path.offloads.iter().filter(|(_, works)| !**works).map(|(name, _)| name.as_str()).collect();
    if !off.is_empty() {
        out.line(format!("           without {}, so slower than it could be", off.join(", ")))?;
    }
    Ok(())
}

fn peers(status: &Status, all: bool, out: &mut Output) -> Result<()> {
    let refused = |peer: &&Peer| peer.refused.is_some();
    let count =
        |path: PeerPath| status.peers.iter().filter(|peer| !refused(peer) && peer.path == path).count();
    let counts = [
        (count(PeerPath::Tunnel), "by tunnel"),
        (count(PeerPath::Direct), "directly"),
        (count(PeerPath::None), "left to others"),
        (status.peers.iter().filter(refused).count(), "refused"),
    ];
    let counted: Vec<String> =
        counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
    out.line("")?;
    let summary = if counted.is_empty() { "none".to_owned() } else { counted.join(", ") };
    out.line(format!("{} {summary}", out.toned(Tone::Strong, format!("{:<10}", "peers"))))?;
    let listed: Vec<&Peer> = if all || status.peers.len() <= PEERS {
        status.peers.iter().collect()
    } else {
        status.peers.iter().filter(refused).take(PEERS).collect()
    };
    if listed.is_empty() {
        return Ok(());
    }
    let rows: Vec<Vec<String>> = listed.into_iter().map(|peer| peer_row(peer, out)).collect();
    out.table(&["           SUBNET", "NODE", "PATH"], &rows)
}

fn peer_row(peer: &Peer, out: &Output) -> Vec<String> {
    let both = |ipv4: Option<String>, ipv6: Option<String>| {
        ipv4.into_iter().chain(ipv6).collect::<Vec<_>>().join(" ")
    };
    let path = match (&peer.refused, peer.path) {
        (Some(reason), _) => out.toned(Tone::Bad, format!("refused: {reason}")),
        (None, PeerPath::Tunnel) => "tunnel".to_owned(),
        (None, PeerPath::Direct) => "direct".to_owned(),
        (None, PeerPath::None) => "not by flannel".to_owned(),
    };
    let subnets = both(peer.ipv4.map(|net| net.to_string()), peer.ipv6.map(|net| net.to_string()));
    let nodes = both(peer.public_ipv4.map(|ip| ip.to_string()), peer.public_ipv6.map(|ip| ip.to_string()));
    vec![format!("           {subnets}"), nodes, path]
}

fn repairs(status: &Status, out: &mut Output) -> Result<()> {
    if status.repairs.is_empty() {
        return Ok(());
    }
    out.line("")?;
    out.line(out.toned(Tone::Strong, "repaired"))?;
    for repair in status.repairs.iter().rev().take(REPAIRS) {
        let first = repair.change.lines().next().unwrap_or_default();
        let more = if repair.more > 0 { format!(" (and {} more)", repair.more) } else { String::new() };
        out.line(format!("{:>10} ago: {}", rough(since(repair.at)), repair.why))?;
        out.line(out.toned(Tone::Quiet, format!("           {first}{more}")))?;
    }
    Ok(())
}

fn wrong(status: &Status, out: &mut Output) -> Result<()> {
    if !status.skipped.is_empty() {
        out.line("")?;
    }
    for skipped in &status.skipped {
        out.line(format!(
            "{} the record {:?} is left out: {}",
            out.toned(Tone::Bad, "wrong     "),
            skipped.key,
            skipped.reason
        ))?;
    }
    for failure in &status.failures {
        out.line("")?;
        out.line(format!(
            "{} {} (for {})",
            out.toned(Tone::Bad, "wrong     "),
            failure.what,
            rough(since(failure.since))
        ))?;
        if !failure.remedy.is_empty() {
            out.line(format!("{} {}", out.toned(Tone::Strong, "remedy    "), failure.remedy))?;
        }
    }
    Ok(())
}

/// What is of others; it says nothing about how we are.
fn show_leftovers(leftovers: &[Leftover], out: &mut Output) -> Result<()> {
    for Leftover { of, what, remedy } in leftovers {
        out.line("")?;
        out.line(format!("{} of {of}: {what}", out.toned(Tone::Strong, "leftover  ")))?;
        out.line(format!("{} {remedy}", out.toned(Tone::Strong, "remedy    ")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_the_dead_nor_others_are_taken_for_flanneld() {
        assert!(is_live_flanneld("812 (flanneld) S 1 812 812 0 -1"));
        for stat in ["812 (flanneld) Z 1 812 812 0 -1", "812 (sshd) S 1 812 812 0 -1", ""] {
            assert!(!is_live_flanneld(stat), "{stat:?}");
        }
    }
}
