//! `flannelctl lab`: several nodes on this machine.

mod demo;
mod show;

use std::ffi::OsString;
use std::process::{ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use ::lab::{Backend, Break, Entered, Families, Lab, Lifetime, StoreKind, Topology};
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde_json::json;

use crate::output::{Output, Tone};

/// How long a node is waited for until it is called broken.
const PATIENCE: Duration = Duration::from_secs(15);

/// What to do with a lab.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Build a lab that stays until `lab down`.
    Up {
        #[command(flatten)]
        name: Name,
        #[command(flatten)]
        shape: Shape,
        /// Pods to attach to each node.
        #[arg(long, default_value_t = 1)]
        pods: usize,
    },
    /// Show the nodes.
    Status {
        #[command(flatten)]
        name: Name,
    },
    /// Attach pods to every node by the CNI plugins, and show all pods.
    Pods {
        #[command(flatten)]
        name: Name,
        /// How many more pods each node gets.
        #[arg(default_value_t = 0)]
        more: usize,
    },
    /// Let every pod ping every other.
    Ping {
        #[command(flatten)]
        name: Name,
    },
    /// Break a node behind its flanneld's back, and see it heal.
    Break {
        #[command(flatten)]
        name: Name,
        #[arg(value_parser = clap::builder::PossibleValuesParser::new(Break::ALL.map(Break::name)))]
        what: String,
        /// Which node, from 1.
        #[arg(long, default_value_t = 1)]
        node: usize,
    },
    /// Plug in all cables and start every flanneld that does not run.
    Mend {
        #[command(flatten)]
        name: Name,
    },
    /// Run a command on a node (node1) or in a pod (node1/a).
    Exec {
        #[command(flatten)]
        name: Name,
        place: String,
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Take a lab down.
    Down {
        #[command(flatten)]
        name: Name,
    },
    /// Build three nodes, let their pods ping each other, break things, watch them heal, clean up.
    Demo {
        #[command(flatten)]
        shape: Shape,
    },
    /// Hold the user namespace of a lab that was built without root.
    #[command(hide = true)]
    KeepUserNamespace,
}

/// Which lab.
#[derive(Debug, Args)]
pub(crate) struct Name {
    /// The lab's name; labs of different names live side by side.
    #[arg(long, default_value = "lab")]
    name: String,
}

/// What a lab is made of.
#[derive(Debug, Args)]
pub(crate) struct Shape {
    /// How many nodes.
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// The backend.
    #[arg(long, default_value = "vxlan", value_parser = ["vxlan", "host-gw", "udp", "alloc"])]
    backend: String,
    /// IPv6 only.
    #[arg(long, conflicts_with = "dual")]
    ipv6: bool,
    /// IPv4 and IPv6.
    #[arg(long)]
    dual: bool,
    /// Where the leases are kept; etcd needs the program of that name.
    #[arg(long, default_value = "file", value_parser = ["file", "etcd"])]
    store: String,
    /// A flag for flanneld on every node, such as --flag=--ip-masq; can be given several times.
    #[arg(long = "flag", value_name = "FLAG", allow_hyphen_values = true)]
    flags: Vec<String>,
}

impl Shape {
    fn topology(&self) -> Topology {
        let backend = match self.backend.as_str() {
            "host-gw" => Backend::HostGw,
            "udp" => Backend::Udp,
            "alloc" => Backend::Alloc,
            _ => Backend::Vxlan,
        };
        let families = match (self.ipv6, self.dual) {
            (true, _) => Families::Ipv6,
            (_, true) => Families::Dual,
            _ => Families::Ipv4,
        };
        // As nearly everybody runs flanneld: without it the CNI plugins masquerade what pods send to
        // other nodes too.
        let flags = ["--ip-masq".to_owned()].into_iter().chain(self.flags.iter().cloned()).collect();
        Topology {
            store: if self.store == "etcd" { StoreKind::Etcd } else { StoreKind::File },
            flags,
            ..Topology::new(self.nodes, backend).families(families)
        }
    }
}

pub(crate) fn run(verb: Verb, out: &mut Output) -> Result<ExitCode> {
    let lifetime = match &verb {
        Verb::KeepUserNamespace => {
            ::lab::keep_user_namespace()?;
            return Ok(ExitCode::SUCCESS);
        }
        Verb::Demo { .. } => Lifetime::Command,
        Verb::Up { name, .. } => Lifetime::Begin(&name.name),
        Verb::Down { name } => Lifetime::End(&name.name),
        Verb::Status { name }
        | Verb::Pods { name, .. }
        | Verb::Ping { name }
        | Verb::Break { name, .. }
        | Verb::Mend { name }
        | Verb::Exec { name, .. } => Lifetime::Within(&name.name),
    };
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if let Entered::Ran(status) = ::lab::enter_user_namespace(&args, lifetime)? {
        return Ok(exit_code(status));
    }
    match verb {
        Verb::Up { name, shape, pods } => up(&name.name, &shape, pods, out)?,
        Verb::Status { name } => show::nodes(&Lab::open(&name.name)?, out)?,
        Verb::Pods { name, more } => pods(&Lab::open(&name.name)?, more, out)?,
        Verb::Ping { name } => return ping(&Lab::open(&name.name)?, out),
        Verb::Break { name, what, node } => break_node(Lab::open(&name.name)?, &what, node, out)?,
        Verb::Mend { name } => mend(Lab::open(&name.name)?, out)?,
        Verb::Exec { name, place, command } => return exec(&Lab::open(&name.name)?, &place, &command),
        Verb::Down { name } => Lab::open(&name.name)?.down()?,
        Verb::Demo { shape } => demo::run(shape.topology(), out)?,
        Verb::KeepUserNamespace => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn up(name: &str, shape: &Shape, pods: usize, out: &mut Output) -> Result<()> {
    let began = Instant::now();
    let lab = Lab::up(Some(name), shape.topology())?;
    if let Err(error) = lab.start() {
        return Err(error).context("the nodes do not find each other; the lab was taken down again");
    }
    attach(&lab, pods)?;
    if out.is_json() {
        show::nodes(&lab, out)?;
    } else {
        show::drawing(&lab, &lab.pods()?, out)?;
        out.line(format!("\nup after {:.1?}; now try", began.elapsed()))?;
        // Behind the command of `exec` it would be an argument of that command.
        let name = if name == "lab" { String::new() } else { format!(" --name {name}") };
        let verbs = [
            (format!("ping{name}"), "every pod pings every other"),
            (format!("break{name} device"), "deletes flannel's device on node1; see it come back"),
            (
                format!("exec{name} node1 ip route"),
                "any command on a node, or in a pod: exec node1/a ip address",
            ),
            (format!("down{name}"), "takes all of it away"),
        ];
        let width = verbs.iter().map(|(verb, _)| verb.len()).max().unwrap_or_default();
        for (verb, what) in verbs {
            out.line(format!("  flannelctl lab {verb:<width$}  {what}"))?;
        }
    }
    lab.stay()
}

/// Gives every node some more pods, called a, b, c, …
fn attach(lab: &Lab, more: usize) -> Result<()> {
    for node in lab.nodes() {
        let taken: Vec<String> = node.pods()?.iter().map(|pod| pod.name().to_owned()).collect();
        let names = ('a'..='z').map(String::from).chain((1..).map(|n| format!("p{n}")));
        for name in names.filter(|name| !taken.contains(name)).take(more) {
            node.attach(&name)?;
        }
    }
    Ok(())
}

fn pods(lab: &Lab, more: usize, out: &mut Output) -> Result<()> {
    attach(lab, more)?;
    show::pods(&lab.pods()?, out)
}

fn ping(lab: &Lab, out: &mut Output) -> Result<ExitCode> {
    let pods = lab.pods()?;
    if pods.len() < 2 {
        bail!("there are {} pods: `flannelctl lab pods 1` attaches one to each node", pods.len());
    }
    let replies = lab.ping_all(&pods);
    show::matrix(&pods, &replies, out)?;
    let all = replies.iter().all(|reply| reply.answer.is_ok());
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn break_node(lab: Lab, what: &str, node: usize, out: &mut Output) -> Result<()> {
    let what =
        Break::ALL.into_iter().find(|way| way.name() == what).context("no such way to break a node")?;
    let node = lab.nodes().get(node.wrapping_sub(1)).with_context(|| format!("there is no node{node}"))?;
    let (done, healed) = if what.heals() {
        let (done, took) = lab.break_and_heal(node, what, PATIENCE)?;
        (done, Some(took))
    } else {
        (lab.break_node(node, what)?, None)
    };
    if out.is_json() {
        let seconds = healed.map(|took| took.as_secs_f64());
        out.json(&json!({ "node": node.name(), "done": done, "healed_after_seconds": seconds }))?;
    } else {
        done.iter().try_for_each(|command| out.line(format!("on {}: {command}", node.name())))?;
        out.line(match (healed, what) {
            (Some(took), _) => out.toned(Tone::Good, format!("healed after {took:.1?}")),
            (None, Break::GarbageLease) => {
                "look for it with `flannelctl lab exec node1 flannelctl status`".to_owned()
            }
            (None, _) => {
                "`flannelctl lab mend` puts it right; until then, try `flannelctl lab ping`".to_owned()
            }
        })?;
    }
    lab.stay()
}

fn mend(lab: Lab, out: &mut Output) -> Result<()> {
    for node in lab.nodes() {
        lab.set_cable(node, true)?;
    }
    lab.start()?;
    show::nodes(&lab, out)?;
    lab.stay()
}

fn exec(lab: &Lab, place: &str, command: &[String]) -> Result<ExitCode> {
    let (node, pod) = match place.split_once('/') {
        Some((node, pod)) => (node, Some(pod)),
        None => (place, None),
    };
    let node = lab.nodes().iter().find(|candidate| candidate.name() == node).with_context(|| {
        format!(
            "there is no {node} in the lab: want node1 to node{}, or node1/a for a pod",
            lab.nodes().len()
        )
    })?;
    let status = match pod {
        None => node.exec(node.namespace(), command)?,
        Some(name) => {
            let pods = node.pods()?;
            let pod = pods.iter().find(|candidate| candidate.name() == name).with_context(|| {
                format!("there is no pod {name} on {}: `flannelctl lab pods` lists them", node.name())
            })?;
            node.exec(pod.namespace(), command)?
        }
    };
    Ok(exit_code(status))
}

fn exit_code(status: ExitStatus) -> ExitCode {
    status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}
