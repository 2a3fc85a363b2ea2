//! How long pods wait: ADD and DEL of the chain flannel + bridge + host-local, and portmap where it is.
//!
//! One namespace as the node, sixty as pods, plugins started as a container runtime starts them. For
//! DEL the table also says when the pod's device is gone from the node, since deleting a device is
//! what takes the kernel longest and may be left to it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use flannel_rs_benches::{Report, Samples, cni_directories, heading};
use lab::Namespace;
use rustix::net::{AddressFamily, SocketType, netdevice};
use serde_json::{Value, json};

const PODS: usize = 60;
const AT_ONCE: usize = 8;

fn main() -> Result<()> {
    heading("CNI: flannel + bridge + host-local, then portmap")?;
    let scratch = tempfile::tempdir()?;
    let mut report = Report::default();
    for (name, plugins) in cni_directories(scratch.path())? {
        let node = Node::new(plugins)?;
        node.measure(name, &mut report).with_context(|| format!("measuring the plugins of {name}"))?;
    }
    report.print()
}

/// A namespace that plays the node, and those of its pods.
struct Node {
    namespace: Namespace,
    pods: Vec<Namespace>,
    plugins: PathBuf,
    directory: tempfile::TempDir,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verb {
    Add,
    Del,
}

#[derive(Clone, Copy)]
enum Plugin {
    Flannel,
    Portmap,
}

impl Node {
    fn new(plugins: PathBuf) -> Result<Node> {
        let prefix = format!("fb{}-cni", std::process::id());
        let namespace = Namespace::create(&prefix)?;
        let mut node = Node { namespace, pods: Vec::new(), plugins, directory: tempfile::tempdir()? };
        for number in 0..PODS {
            node.pods.push(Namespace::create(&format!("{prefix}-pod{number}"))?);
        }
        fs::write(
            node.subnet_file(),
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
        )?;
        Ok(node)
    }

    fn measure(&self, column: &str, report: &mut Report) -> Result<()> {
        // The first attachment makes the bridge.
        self.call(Plugin::Flannel, Verb::Add, 0, &Value::Null)?;
        self.call(Plugin::Flannel, Verb::Del, 0, &Value::Null)?;

        let with_portmap = self.plugins.join("portmap").exists();
        let (mut add, mut map, mut unmap, mut del, mut gone) = (
            Samples::default(),
            Samples::default(),
            Samples::default(),
            Samples::default(),
            Samples::default(),
        );
        for pod in 0..PODS {
            let (took, result) = self.call(Plugin::Flannel, Verb::Add, pod, &Value::Null)?;
            add.push(took);
            if with_portmap {
                map.push(self.call(Plugin::Portmap, Verb::Add, pod, &result)?.0);
            }
        }
        for pod in 0..PODS {
            if with_portmap {
                unmap.push(self.call(Plugin::Portmap, Verb::Del, pod, &Value::Null)?.0);
            }
            let start = Instant::now();
            let (took, _) = self.call(Plugin::Flannel, Verb::Del, pod, &Value::Null)?;
            del.push(took);
            self.await_no_device(pod)?;
            gone.push(start.elapsed());
        }
        report.set("ADD, one at a time, p50 (worst) of 60", column, add.median_and_worst());
        report.set("DEL, one at a time, p50 (worst) of 60", column, del.median_and_worst());
        report.set("— until the device is gone", column, gone.median_and_worst());
        if with_portmap {
            report.set("portmap ADD without ports, p50 (worst) of 60", column, map.median_and_worst());
            report.set("portmap DEL without ports, p50 (worst) of 60", column, unmap.median_and_worst());
        }

        let per_pod = self.all_at_once(Verb::Add)?;
        report.set_duration("ADD, eight at once, per pod", column, per_pod);
        let per_pod = self.all_at_once(Verb::Del)?;
        report.set_duration("DEL, eight at once, per pod", column, per_pod);
        Ok(())
    }

    /// Attaches or detaches all pods, eight at a time; the whole time divided by their number.
    fn all_at_once(&self, verb: Verb) -> Result<Duration> {
        let next = AtomicUsize::new(0);
        let failure = Mutex::new(None);
        let start = Instant::now();
        thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(|| {
                    while let pod = next.fetch_add(1, Ordering::Relaxed)
                        && pod < PODS
                    {
                        if let Err(error) = self.call(Plugin::Flannel, verb, pod, &Value::Null) {
                            *failure.lock().expect("no thread panics here") = Some(error);
                        }
                    }
                });
            }
        });
        let took = start.elapsed() / u32::try_from(PODS)?;
        failure.into_inner().expect("no thread panics here").map_or(Ok(took), Err)
    }

    /// Runs a plugin as a runtime does; how long it took and what it answered.
    #[expect(clippy::disallowed_methods, reason = "what is measured is the start and run of a program")]
    fn call(&self, plugin: Plugin, verb: Verb, pod: usize, previous: &Value) -> Result<(Duration, Value)> {
        let (name, conf) = match plugin {
            Plugin::Flannel => ("flannel", self.flannel_conf()),
            Plugin::Portmap => ("portmap", portmap_conf(previous)),
        };
        let mut command = Command::new(self.plugins.join(name));
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", if verb == Verb::Add { "ADD" } else { "DEL" })
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
        Path::join(self.directory.path(), name)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for namespace in self.pods.iter().chain([&self.namespace]) {
            let _ = namespace.destroy();
        }
    }
}

fn portmap_conf(previous: &Value) -> Value {
    let mut conf = json!({
        "cniVersion": "0.3.1",
        "name": "cbr0",
        "type": "portmap",
        "capabilities": { "portMappings": true },
    });
    if !previous.is_null() {
        conf["prevResult"] = previous.clone();
    }
    conf
}
