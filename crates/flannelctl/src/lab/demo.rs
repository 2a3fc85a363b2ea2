//! `flannelctl lab demo`: what flannel-rs does, in a few seconds.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use ::lab::{Break, Lab, Node, Pod, Topology, wait_for};
use anyhow::{Context, Result, bail};

use super::{PATIENCE, show};
use crate::output::{Output, Tone};
use crate::plan;

/// How long flanneld stays dead, and how long pings go on after it is back.
const DEAD: Duration = Duration::from_millis(500);

pub(super) fn run(topology: Topology, out: &mut Output) -> Result<()> {
    if out.is_json() {
        bail!("the demo is for people: leave -o json away");
    }
    let began = Instant::now();
    let lab = Lab::up(None, topology)?;
    let name = lab.name().to_owned();
    tell(&lab, out).inspect_err(|error| {
        if !crate::is_closed_pipe(error) {
            // What the nodes said is about to be taken down with them.
            crate::output::complain(&lab.dump());
        }
    })?;
    lab.down()?;
    leaves_nothing(&name)?;
    heading(
        &format!("Everything is taken down again, nothing is left; that took {:.1?}", began.elapsed()),
        out,
    )
}

fn tell(lab: &Lab, out: &mut Output) -> Result<()> {
    let nodes = lab.nodes().len();
    let built = Instant::now();
    lab.start()?;
    heading(
        &format!("{nodes} nodes leased subnets and found each other within {:.1?}", built.elapsed()),
        out,
    )?;

    let pods: Vec<Pod<'_>> = lab.nodes().iter().map(|node| node.attach("a")).collect::<Result<_>>()?;
    let fastest = pods.iter().filter_map(Pod::took).min().unwrap_or_default();
    heading(&format!("The CNI plugins attached a pod to each, the fastest in {fastest:.1?}"), out)?;
    show::drawing(lab, &pods, out)?;

    heading("Every pod answers every other", out)?;
    ping(lab, &pods, out)?;

    heading("What each node put into its kernel (flannelctl plan --all)", out)?;
    for node in lab.nodes() {
        let planned = plan_of(node)?;
        out.line(format!("{}:", out.toned(Tone::Strong, node.name())))?;
        show::plan(&planned.wanted, out)?;
    }

    heading("Broken behind flanneld's back, and put right", out)?;
    let node = lab.node(1);
    for what in [Break::Route, Break::Neighbor, Break::Fdb, Break::DeviceDown, Break::Device, Break::Firewall]
    {
        if !can_break(node, what)? {
            continue;
        }
        let (done, took) = lab.break_and_heal(node, what, PATIENCE)?;
        for (number, command) in done.iter().enumerate() {
            let healed = if number + 1 == done.len() {
                out.toned(Tone::Good, format!("healed after {:>4} ms", took.as_millis()))
            } else {
                String::new()
            };
            out.line(format!("  {command:<74} {healed}").trim_end())?;
        }
    }

    heading("flanneld killed, and started again half a second later, while pods ping every 5 ms", out)?;
    kill(lab, &pods, out)?;

    heading("Every pod still answers every other", out)?;
    ping(lab, &pods, out)
}

fn heading(text: &str, out: &mut Output) -> Result<()> {
    out.line(format!("\n{} {}", out.toned(Tone::Good, "▸"), out.toned(Tone::Strong, text)))
}

fn ping(lab: &Lab, pods: &[Pod<'_>], out: &mut Output) -> Result<()> {
    let replies = lab.ping_all(pods);
    show::matrix(pods, &replies, out)?;
    if replies.is_empty() {
        bail!("there was nobody to ping");
    }
    match replies.iter().filter(|reply| reply.answer.is_err()).count() {
        0 => Ok(()),
        lost => bail!("{lost} of {} pings were lost", replies.len()),
    }
}

/// The node's plan, made in the node's namespace, once the daemon has written down the leases it is
/// made of and the kernel is equal to it.
fn plan_of(node: &Node) -> Result<plan::Planned> {
    wait_for(&format!("the kernel of {} to equal its plan", node.name()), PATIENCE, || {
        let planned = node.namespace().within(|| plan::make(&node.files()))??;
        match planned.changes.first() {
            None => Ok(planned),
            Some(change) => bail!("{} changes are due, the first is {change}", planned.changes.len()),
        }
    })
}

/// Whether the backend has such a thing at all.
fn can_break(node: &Node, what: Break) -> Result<bool> {
    let held = node.held()?;
    Ok(match what {
        Break::Route => !held.routes.is_empty(),
        Break::Neighbor => !held.neighbors.is_empty(),
        Break::Fdb => !held.fdb.is_empty(),
        Break::Device | Break::DeviceDown | Break::Address => !held.links.is_empty(),
        Break::Firewall => !held.tables.is_empty(),
        Break::Kill | Break::Cable | Break::GarbageLease => true,
    })
}

fn kill(lab: &Lab, pods: &[Pod<'_>], out: &mut Output) -> Result<()> {
    let [from, .., to] = pods else { return Ok(()) };
    let address = to.addresses().first().context("the pod has no address")?.addr();
    let pinging = from.keep_pinging(address, Duration::from_millis(5))?;
    let node = from.node();
    let before = node.status()?.lease.map(|lease| lease.subnets);
    let done = lab.break_node(node, Break::Kill)?;
    // Long enough for pings to notice, if there were anything to notice.
    thread::sleep(DEAD);
    let restart = Instant::now();
    node.start()?;
    let status = node.wait_ready(lab.nodes().len() - 1)?;
    let took = restart.elapsed();
    thread::sleep(DEAD);
    let report = pinging.stop()?;
    let same =
        if status.lease.map(|lease| lease.subnets) == before { "the same subnet" } else { "another subnet" };
    let lost = format!("{} of {} pings lost", report.lost(), report.sent);
    let lost = out.toned(if report.lost() == 0 { Tone::Good } else { Tone::Bad }, lost);
    out.line(format!(
        "  on {}: {}; ready again after {} ms with {same}, {lost}",
        node.name(),
        done.join("; "),
        took.as_millis()
    ))
}

/// Makes sure that the last line of the demo is true.
fn leaves_nothing(lab: &str) -> Result<()> {
    let names = fs::read_dir(kernel::netns::DIRECTORY)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let left: Vec<String> = names.filter(|name| name.starts_with(&format!("flab-{lab}-"))).collect();
    if left.is_empty() { Ok(()) } else { bail!("these namespaces were left: {}", left.join(", ")) }
}
