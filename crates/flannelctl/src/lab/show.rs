//! How labs are shown: a drawing, the nodes, the pods, the matrix of pings.

use ::lab::{Lab, Node, Pod, Reply, Topology};
use anyhow::Result;
use fabric::dataplane::{Change, Dataplane};
use serde_json::json;

use crate::output::{Output, Tone};

/// More nodes than this are listed, not drawn.
const DRAWN: usize = 4;

/// The nodes as boxes on a switch, their pods inside.
///
/// ```text
///  ┌ node1 ───────────┐  ┌ node2 ───────────┐
///  │ a  10.244.7.2    │  │ a  10.244.33.2   │
///  │ flannel.1        │  │ flannel.1        │
///  └┬ 192.168.64.1 ───┘  └┬ 192.168.64.2 ───┘
///   └─────────────────────┴── switch
/// ```
pub(super) fn drawing(lab: &Lab, pods: &[Pod<'_>], out: &mut Output) -> Result<()> {
    out.line(out.toned(Tone::Strong, title(lab.topology())))?;
    if lab.nodes().len() > DRAWN {
        nodes(lab, out)?;
        return self::pods(pods, out);
    }
    let columns: Vec<Vec<String>> = lab.nodes().iter().map(|node| content(node, pods)).collect();
    let height = columns.iter().map(Vec::len).max().unwrap_or(0);
    let address =
        |node: &Node| node.addresses().iter().map(|net| net.addr().to_string()).collect::<Vec<_>>().join(" ");
    let inside = |node: &Node, lines: &[String]| {
        let lines = lines.iter().map(|line| line.chars().count());
        lines.chain([address(node).chars().count() + 2, 16]).max().unwrap_or(0)
    };
    let widths: Vec<usize> =
        lab.nodes().iter().zip(&columns).map(|(node, lines)| inside(node, lines)).collect();
    let mut top = String::new();
    let mut bottom = String::new();
    let mut switch = String::new();
    for (number, (node, width)) in lab.nodes().iter().zip(&widths).enumerate() {
        let rule = |text: &str| "─".repeat((width + 1).saturating_sub(text.chars().count() + 1));
        let (name, address) = (node.name(), address(node));
        top.push_str(&format!(" ┌ {name} {}┐ ", rule(&name)));
        bottom.push_str(&format!(" └┬ {address} {}┘ ", rule(&format!("{address} "))));
        let first = number == 0;
        let last = number + 1 == widths.len();
        switch.push_str(if first { "  └" } else { "┴" });
        switch.push_str(&if last { "── switch".to_owned() } else { "─".repeat(width + 5) });
    }
    out.line(top.trim_end())?;
    for row in 0..height {
        let mut line = String::new();
        for (lines, width) in columns.iter().zip(&widths) {
            let text = lines.get(row).map_or("", String::as_str);
            let padding = " ".repeat(width - text.chars().count());
            line.push_str(&format!(" │ {text}{padding} │ "));
        }
        out.line(line.trim_end())?;
    }
    out.line(bottom.trim_end())?;
    out.line(switch)
}

/// `3 nodes, vxlan, 10.244.0.0/16, leases in a directory`
fn title(topology: &Topology) -> String {
    let conf = topology.net_conf();
    let networks: Vec<&str> =
        ["Network", "IPv6Network"].iter().filter_map(|key| conf[*key].as_str()).collect();
    let store = match topology.store {
        ::lab::StoreKind::File => "a directory",
        ::lab::StoreKind::Etcd => "etcd",
    };
    let backend = conf["Backend"]["Type"].as_str().unwrap_or_default();
    format!("{} nodes, {backend}, {}, leases in {store}", topology.nodes, networks.join(" "))
}

/// What is inside of a node's box.
fn content(node: &Node, pods: &[Pod<'_>]) -> Vec<String> {
    let mut lines = Vec::new();
    for pod in pods.iter().filter(|pod| pod.node().name() == node.name()) {
        for (number, net) in pod.addresses().iter().enumerate() {
            let name = if number == 0 { format!("pod {}", pod.name()) } else { String::new() };
            lines.push(format!("{name:<6} {}", net.addr()));
        }
    }
    if let Ok(status) = node.status() {
        let subnets = status.lease.map(|lease| lease.subnets).unwrap_or_default();
        lines.extend(subnets.iter().map(|subnet| format!("lease  {subnet}")));
        lines.extend(
            status.network.iter().flat_map(|network| &network.links).map(|link| format!("device {link}")),
        );
    }
    lines
}

/// One line for each node.
pub(super) fn nodes(lab: &Lab, out: &mut Output) -> Result<()> {
    if out.is_json() {
        let nodes: Vec<_> = lab
            .nodes()
            .iter()
            .map(|node| {
                json!({
                    "name": node.name(),
                    "namespace": node.namespace().name(),
                    "addresses": node.addresses(),
                    "directory": node.dir(),
                    "flanneld": node.pid(),
                    "status": node.status().ok(),
                })
            })
            .collect();
        return out.json(&nodes);
    }
    let mut rows = Vec::new();
    for node in lab.nodes() {
        let status = node.status().unwrap_or_default();
        let texts = |of: &[ipnet::IpNet]| of.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let state = match (node.pid(), status.ready) {
            (None, _) => out.toned(Tone::Bad, "does not run"),
            (Some(_), true) => out.toned(Tone::Good, "ready"),
            (Some(_), false) => out.toned(Tone::Bad, "not ready"),
        };
        let reached = status.peers.iter().filter(|peer| peer.refused.is_none()).count();
        rows.push(vec![
            node.name(),
            texts(node.addresses()),
            status.lease.map_or("none".to_owned(), |lease| texts(&lease.subnets)),
            format!("{reached} of {}", status.peers.len()),
            status.repairs.len().to_string(),
            state,
        ]);
    }
    out.table(&["NODE", "ADDRESS", "LEASE", "PEERS", "REPAIRS", "FLANNELD"], &rows)
}

/// One line for each pod.
pub(super) fn pods(pods: &[Pod<'_>], out: &mut Output) -> Result<()> {
    if out.is_json() {
        let pods: Vec<_> = pods
            .iter()
            .map(|pod| {
                let namespace = pod.namespace().name();
                json!({ "node": pod.node().name(), "name": pod.name(), "addresses": pod.addresses(), "namespace": namespace })
            })
            .collect();
        return out.json(&pods);
    }
    let rows: Vec<Vec<String>> = pods
        .iter()
        .map(|pod| {
            let addresses: Vec<String> = pod.addresses().iter().map(ToString::to_string).collect();
            vec![
                format!("{}/{}", pod.node().name(), pod.name()),
                addresses.join(" "),
                pod.namespace().name().to_owned(),
            ]
        })
        .collect();
    out.table(&["POD", "ADDRESS", "NAMESPACE"], &rows)
}

/// Who reached whom, and how fast: a row for each pod that asked, a column for each that was asked.
pub(super) fn matrix(pods: &[Pod<'_>], replies: &[Reply], out: &mut Output) -> Result<()> {
    let name = |pod: &Pod<'_>| format!("{}/{}", pod.node().name(), pod.name());
    if out.is_json() {
        let replies: Vec<_> = replies
            .iter()
            .map(|reply| {
                let milliseconds = reply.answer.as_ref().ok().map(|time| time.as_secs_f64() * 1e3);
                json!({
                    "from": format!("{}/{}", reply.from.0, reply.from.1),
                    "to": format!("{}/{}", reply.to.0, reply.to.1),
                    "address": reply.address,
                    "milliseconds": milliseconds,
                    "error": reply.answer.as_ref().err(),
                })
            })
            .collect();
        return out.json(&replies);
    }
    let heads: Vec<String> = ["from \\ to".to_owned()].into_iter().chain(pods.iter().map(name)).collect();
    let mut rows = Vec::new();
    for from in pods {
        let mut row = vec![name(from)];
        for to in pods {
            let between = replies.iter().filter(|reply| {
                reply.from == (from.node().name(), from.name().to_owned())
                    && reply.to == (to.node().name(), to.name().to_owned())
            });
            let cells: Vec<String> = between
                .map(|reply| match &reply.answer {
                    Ok(time) => out.toned(Tone::Good, format!("{:.2} ms", time.as_secs_f64() * 1e3)),
                    Err(_) => out.toned(Tone::Bad, "lost"),
                })
                .collect();
            row.push(cells.join(" "));
        }
        rows.push(row);
    }
    out.table(&heads.iter().map(String::as_str).collect::<Vec<_>>(), &rows)?;
    let lost: Vec<&String> = replies.iter().filter_map(|reply| reply.answer.as_ref().err()).collect();
    lost.iter().take(5).try_for_each(|error| out.line(error))
}

/// A node's plan, a line for each object. A firewall table is named, not printed; settings, and rules
/// for hosts whose iptables drops what it forwards, are left out.
pub(super) fn plan(wanted: &Dataplane, out: &mut Output) -> Result<()> {
    for change in Change::all_of(wanted) {
        match &change {
            Change::SetTable(table) => {
                let rules: usize = table.chains.iter().map(|chain| chain.rules.len()).sum();
                out.line(format!("  nft: table {} with {rules} rules", table.name))?;
            }
            Change::SetSysctl(..) | Change::AcceptForward(_) => {}
            other => out.line(format!("  {other}"))?,
        }
    }
    Ok(())
}
