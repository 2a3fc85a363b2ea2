//! How long pods wait: ADD and DEL of the chain flannel + bridge + host-local, then portmap, without
//! ports and with one host port.
//!
//! One namespace as the node, sixty as pods, plugins started as a container runtime starts them. With
//! the original's plugins beside ours the two take turns at every step, so that whatever else the machine
//! does meets both. For DEL the table also says when the pod's device is gone from the node, since
//! deleting a device is what takes the kernel longest and may be left to it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use flannel_rs_benches::{Claim, Report, Samples, await_lock, await_quiet, begin, cni_directories};
use lab::Namespace;
use rustix::net::{AddressFamily, SocketType, netdevice};
use serde_json::{Value, json};

const PODS: usize = 60;
const AT_ONCE: usize = 8;
/// How often all pods are attached and detached.
const ROUNDS: usize = 3;
/// The plugins whose size is told.
const PLUGINS: &str = "flannel bandwidth bridge dhcp dummy firewall host-device host-local ipvlan loopback macvlan \
                       portmap ptp sbr static tap tuning vlan vrf";

fn main() -> Result<()> {
    begin("CNI: flannel + bridge + host-local, then portmap")?;
    let scratch = Claim::new()?;
    let mut report = Report::of("CNI");
    let mut nodes = Vec::new();
    for (name, plugins) in cni_directories(&scratch.directory())? {
        let node = Node::new(name, plugins)?;
        // The first attachment makes the bridge, and the tables of the firewall.
        for verb in [Verb::Add, Verb::Del] {
            node.chain(verb, 0, Ports::One).with_context(|| format!("trying the plugins of {name}"))?;
        }
        nodes.push(node);
    }
    await_quiet()?;
    starts(&nodes, &mut report)?;
    one_at_a_time(&nodes, Ports::None, &mut report)?;
    one_at_a_time(&nodes, Ports::One, &mut report)?;
    eight_at_once(&nodes, Ports::None, &mut report)?;
    eight_at_once(&nodes, Ports::One, &mut report)?;
    for node in &nodes {
        let (megabytes, files) = node.size()?;
        report.set_quantity("all plugins together", node.column, megabytes, "MB");
        report.set("— files", node.column, files.to_string());
    }
    report.print()
}

/// What it takes to start a plugin that is asked for nothing but the versions it speaks.
fn starts(nodes: &[Node], report: &mut Report) -> Result<()> {
    let mut samples = vec![Samples::default(); nodes.len()];
    for _ in 0..PODS * ROUNDS {
        for (node, samples) in nodes.iter().zip(&mut samples) {
            samples.push(node.call(Plugin::Portmap, Verb::Version, 0, Value::Null)?.0);
        }
    }
    for (node, samples) in nodes.iter().zip(samples) {
        report.set_tail("one program start that does nothing", node.column, &samples);
    }
    Ok(())
}

fn one_at_a_time(nodes: &[Node], ports: Ports, report: &mut Report) -> Result<()> {
    const ROWS: [&str; 5] =
        ["ADD", "ADD, portmap's part", "DEL", "DEL, portmap's part", "DEL until the device is gone"];
    let mut samples: BTreeMap<(&str, usize), Samples> = BTreeMap::new();
    for _ in 0..ROUNDS {
        for pod in 0..PODS {
            for (column, node) in nodes.iter().enumerate() {
                let took = node.chain(Verb::Add, pod, ports)?;
                samples.entry((ROWS[0], column)).or_default().push(took.chain);
                samples.entry((ROWS[1], column)).or_default().push(took.portmap);
            }
        }
        for pod in 0..PODS {
            for (column, node) in nodes.iter().enumerate() {
                let start = Instant::now();
                let took = node.chain(Verb::Del, pod, ports)?;
                node.await_no_device(pod)?;
                samples.entry((ROWS[2], column)).or_default().push(took.chain);
                samples.entry((ROWS[3], column)).or_default().push(took.portmap);
                samples.entry((ROWS[4], column)).or_default().push(start.elapsed());
                // The kernel works on behind it, and the other program is not to wait for that.
                await_lock()?;
            }
        }
    }
    for row in ROWS {
        for (column, node) in nodes.iter().enumerate() {
            report.set_tail(&format!("{row}, {ports}"), node.column, &samples[&(row, column)]);
        }
    }
    Ok(())
}

/// Attaches and detaches all pods, eight at a time; the time of all divided by their number.
fn eight_at_once(nodes: &[Node], ports: Ports, report: &mut Report) -> Result<()> {
    let mut each: BTreeMap<(&str, usize), Vec<Duration>> = BTreeMap::new();
    let pods = u32::try_from(PODS)?;
    for _ in 0..ROUNDS {
        for (column, node) in nodes.iter().enumerate() {
            for verb in [Verb::Add, Verb::Del] {
                let took = node.all_at_once(verb, ports)? / pods;
                each.entry((verb.name(), column)).or_default().push(took);
                await_lock()?;
            }
        }
    }
    for ((verb, column), took) in each {
        let row = format!("{verb}, {ports}, eight at once, per pod");
        report.set_durations(&row, nodes[column].column, &took);
    }
    Ok(())
}

/// A namespace that plays the node, and those of its pods.
struct Node {
    column: &'static str,
    namespace: Namespace,
    pods: Vec<Namespace>,
    plugins: PathBuf,
    claim: Claim,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verb {
    Add,
    Del,
    Version,
}

#[derive(Clone, Copy)]
enum Plugin {
    Flannel,
    Portmap,
}

/// The ports of the host that lead to a pod.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ports {
    None,
    One,
}

/// How long a verb took.
struct Took {
    /// All plugins.
    chain: Duration,
    /// `portmap` alone.
    portmap: Duration,
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Ports::None => "no ports",
            Ports::One => "one host port",
        })
    }
}

impl Node {
    fn new(column: &'static str, plugins: PathBuf) -> Result<Node> {
        let claim = Claim::new()?;
        let namespace = claim.namespace("node")?;
        let pods = (0..PODS).map(|number| claim.namespace(&format!("pod{number}")));
        let pods = pods.collect::<Result<_>>()?;
        let node = Node { column, namespace, pods, plugins, claim };
        fs::write(
            node.subnet_file(),
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
        )?;
        Ok(node)
    }

    /// Attaches or detaches a pod as a runtime does, the last plugin first for DEL.
    fn chain(&self, verb: Verb, pod: usize, ports: Ports) -> Result<Took> {
        let ports = match ports {
            Ports::None => json!([]),
            Ports::One => json!([{"hostPort": 20_000 + pod, "containerPort": 80, "protocol": "tcp"}]),
        };
        let runtime = json!({ "portMappings": ports });
        let (flannel, portmap) = if verb == Verb::Add {
            let (flannel, result) = self.call(Plugin::Flannel, verb, pod, self.flannel_conf())?;
            (flannel, self.call(Plugin::Portmap, verb, pod, portmap_conf(&runtime, result))?.0)
        } else {
            let (portmap, _) = self.call(Plugin::Portmap, verb, pod, portmap_conf(&runtime, Value::Null))?;
            (self.call(Plugin::Flannel, verb, pod, self.flannel_conf())?.0, portmap)
        };
        Ok(Took { chain: flannel + portmap, portmap })
    }

    fn all_at_once(&self, verb: Verb, ports: Ports) -> Result<Duration> {
        let next = AtomicUsize::new(0);
        let failure = Mutex::new(None);
        let start = Instant::now();
        thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(|| {
                    while let pod = next.fetch_add(1, Ordering::Relaxed)
                        && pod < PODS
                    {
                        if let Err(error) = self.chain(verb, pod, ports) {
                            *failure.lock().expect("no thread panics here") = Some(error);
                        }
                    }
                });
            }
        });
        let took = start.elapsed();
        failure.into_inner().expect("no thread panics here").map_or(Ok(took), Err)
    }

    /// Runs a plugin as a runtime does; how long it took and what it answered.
    #[expect(clippy::disallowed_methods, reason = "what is measured is the start and run of a program")]
    fn call(&self, plugin: Plugin, verb: Verb, pod: usize, conf: Value) -> Result<(Duration, Value)> {
        let name = match plugin {
            Plugin::Flannel => "flannel",
            Plugin::Portmap => "portmap",
        };
        let mut command = Command::new(self.plugins.join(name));
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", verb.name())
            .env("CNI_CONTAINERID", format!("pod{pod}"))
            .env("CNI_NETNS", self.pods[pod].path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.plugins)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let (took, output) = self.namespace.within(|| {
            let start = Instant::now();
            let mut child = command.spawn()?;
            // A plugin that fails early does not read it.
            let _ = child.stdin.take().expect("it was piped").write_all(conf.to_string().as_bytes());
            let output = child.wait_with_output()?;
            Ok::<_, std::io::Error>((start.elapsed(), output))
        })??;
        if !output.status.success() {
            bail!(
                "{name}: {}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        let answer =
            if output.stdout.is_empty() { Value::Null } else { serde_json::from_slice(&output.stdout)? };
        Ok((took, answer))
    }

    /// Waits until the pod's end of the cable, and so the node's, is out of sight.
    fn await_no_device(&self, pod: usize) -> Result<()> {
        self.pods[pod].within(|| {
            let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
            let end = Instant::now() + Duration::from_secs(5);
            while netdevice::name_to_index(&socket, "eth0").is_ok() {
                if Instant::now() > end {
                    bail!("the device of pod {pod} is still there 5 s after DEL");
                }
                thread::sleep(Duration::from_micros(200));
            }
            Ok(())
        })?
    }

    /// Megabytes and files of all plugins, each counted once however many names it has.
    fn size(&self) -> Result<(f64, usize)> {
        let mut sizes = BTreeMap::new();
        for name in PLUGINS.split_ascii_whitespace() {
            if let Ok(file) = fs::metadata(self.plugins.join(name)) {
                sizes.insert((file.dev(), file.ino()), file.len());
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "a hundred megabytes fit a double")]
        let megabytes = sizes.values().sum::<u64>() as f64 / 1e6;
        Ok((megabytes, sizes.len()))
    }

    fn flannel_conf(&self) -> Value {
        json!({
            "cniVersion": "0.3.1",
            "name": "cbr0",
            "type": "flannel",
            "subnetFile": self.subnet_file(),
            "dataDir": self.path("flannel"),
            "ipam": { "dataDir": self.path("networks") },
            "delegate": { "hairpinMode": true, "isDefaultGateway": true },
        })
    }

    fn subnet_file(&self) -> PathBuf {
        self.path("subnet.env")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.claim.directory().join(name)
    }
}

impl Verb {
    fn name(self) -> &'static str {
        match self {
            Verb::Add => "ADD",
            Verb::Del => "DEL",
            Verb::Version => "VERSION",
        }
    }
}

fn portmap_conf(runtime: &Value, previous: Value) -> Value {
    let mut conf = json!({
        "cniVersion": "0.3.1",
        "name": "cbr0",
        "type": "portmap",
        "capabilities": { "portMappings": true },
        "runtimeConfig": runtime,
    });
    if !previous.is_null() {
        conf["prevResult"] = previous;
    }
    conf
}
