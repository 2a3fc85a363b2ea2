//! [`Pod`]: a namespace attached to a node by the CNI plugins, as a container runtime does it.

use std::io::Write;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::namespace::Namespace;
use crate::node::Node;
use crate::ping::{Ping, Pinging};

/// A pod: a namespace with an `eth0` that the flannel plugin made.
#[derive(Debug)]
pub struct Pod<'lab> {
    name: String,
    node: &'lab Node,
    namespace: Namespace,
    addresses: Vec<IpNet>,
    /// How long ADD took; none for a pod that was attached by an earlier process.
    took: Option<Duration>,
}

/// What a container runtime asks of a plugin.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attachment<'a> {
    pub(crate) container: &'a str,
    pub(crate) netns: &'a Path,
    pub(crate) interface: &'a str,
}

impl Node {
    /// The network configuration that pods of this node are attached with.
    pub fn cni_config(&self) -> Value {
        json!({
            "cniVersion": "1.0.0",
            "name": "cbr0",
            "type": "flannel",
            "subnetFile": self.files().subnet,
            "dataDir": self.cni_state(),
            "ipam": { "dataDir": self.cni_networks() },
            "delegate": { "hairpinMode": true, "isDefaultGateway": true },
        })
    }

    /// Runs a plugin as a container runtime does: `verb` is ADD, DEL, CHECK, STATUS, GC or VERSION.
    pub fn cni(&self, plugin: &str, verb: &str, pod: &str, config: &Value) -> Result<Output> {
        let container = self.pod_namespace(pod);
        let netns = Path::new(kernel::netns::DIRECTORY).join(&container);
        let interface = if plugin == "loopback" { "lo" } else { "eth0" };
        let attachment = Attachment { container: &container, netns: &netns, interface };
        self.run_plugin(plugin, verb, attachment, config)
    }

    #[expect(clippy::disallowed_methods, reason = "a lab runs plugins as a container runtime does")]
    fn run_plugin(&self, plugin: &str, verb: &str, to: Attachment<'_>, config: &Value) -> Result<Output> {
        let program = self.cni_path().join(plugin);
        let running = || -> Result<Output> {
            let mut child = Command::new(&program)
                .env("CNI_COMMAND", verb)
                .env("CNI_CONTAINERID", to.container)
                .env("CNI_NETNS", to.netns)
                .env("CNI_IFNAME", to.interface)
                .env("CNI_PATH", self.cni_path())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()?;
            let mut stdin = child.stdin.take().expect("stdin was asked to be a pipe");
            // A plugin that has enough may stop reading.
            let _ = stdin.write_all(config.to_string().as_bytes());
            drop(stdin);
            Ok(child.wait_with_output()?)
        };
        self.namespace.within(running)?.with_context(|| format!("running {}", program.display()))
    }

    /// The namespace (and the container id) of a pod.
    pub(crate) fn pod_namespace(&self, pod: &str) -> String {
        format!("{}-{pod}", self.namespace.name())
    }

    /// Makes a pod and attaches it.
    pub fn attach(&self, pod: &str) -> Result<Pod<'_>> {
        let namespace = Namespace::create(&self.pod_namespace(pod))?;
        let what = || format!("attaching pod {pod} on {}", self.name());
        let began = Instant::now();
        let output = self.cni("flannel", "ADD", pod, &self.cni_config()).with_context(what)?;
        let took = Some(began.elapsed());
        match succeeded(&output).and_then(|result| reported_addresses(&result)).with_context(what) {
            Ok(addresses) => Ok(Pod { name: pod.to_owned(), node: self, namespace, addresses, took }),
            Err(error) => {
                namespace.destroy()?;
                Err(error)
            }
        }
    }

    /// A pod that was attached before.
    pub(crate) fn attached(&self, pod: &str) -> Result<Pod<'_>> {
        let namespace = Namespace::existing(&self.pod_namespace(pod))?;
        let addresses = crate::wiring::addresses(&namespace, "eth0")?;
        Ok(Pod { name: pod.to_owned(), node: self, namespace, addresses, took: None })
    }

    /// The pods that are attached, by name.
    pub fn pods(&self) -> Result<Vec<Pod<'_>>> {
        let prefix = format!("{}-", self.namespace.name());
        let names = Namespace::names(&prefix);
        names.iter().map(|name| self.attached(&name[prefix.len()..])).collect()
    }
}

impl Pod<'_> {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node it runs on.
    pub fn node(&self) -> &Node {
        self.node
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its addresses, as the plugin reported them.
    pub fn addresses(&self) -> &[IpNet] {
        &self.addresses
    }

    /// How long the plugin took to attach it, from start to end of its process; none for a pod that an
    /// earlier process attached.
    pub fn took(&self) -> Option<Duration> {
        self.took
    }

    /// Its IPv4 address.
    pub fn ipv4(&self) -> Result<IpAddr> {
        self.addresses.iter().map(IpNet::addr).find(IpAddr::is_ipv4).context("the pod has no IPv4 address")
    }

    /// Its IPv6 address.
    pub fn ipv6(&self) -> Result<IpAddr> {
        self.addresses.iter().map(IpNet::addr).find(IpAddr::is_ipv6).context("the pod has no IPv6 address")
    }

    /// Pings once and returns the round-trip time.
    pub fn ping(&self, to: IpAddr) -> Result<Duration> {
        let report = Ping::once(to).from(&self.namespace)?;
        report.best().with_context(|| {
            let error = report.error.unwrap_or_else(|| "no answer".to_owned());
            format!("pod {} on {} pings {to}: {error}", self.name, self.node.name())
        })
    }

    /// Pings at an interval until stopped.
    pub fn keep_pinging(&self, to: IpAddr, interval: Duration) -> Result<Pinging> {
        Ping { interval, ..Ping::once(to) }.keep_on(&self.namespace)
    }

    /// Runs a program in the pod and returns what it printed.
    pub fn run(&self, command: &str) -> Result<String> {
        self.namespace.run(&command.split_whitespace().collect::<Vec<_>>())
    }

    /// Detaches the pod by the plugin and removes its namespace.
    pub fn detach(self) -> Result<()> {
        let output = self.node.cni("flannel", "DEL", &self.name, &self.node.cni_config())?;
        let detached = if output.status.success() { Ok(()) } else { succeeded(&output).map(drop) };
        self.namespace.destroy()?;
        detached.with_context(|| format!("detaching pod {} from {}", self.name, self.node.name()))
    }
}

fn reported_addresses(result: &Value) -> Result<Vec<IpNet>> {
    let ips = result["ips"].as_array().filter(|ips| !ips.is_empty());
    let ips = ips.with_context(|| format!("the plugin reports no address: {result}"))?;
    let address = |ip: &Value| Ok(ip["address"].as_str().context("an ip without address")?.parse()?);
    ips.iter().map(address).collect()
}

/// The result of a plugin, or its error as the CNI specification writes errors.
fn succeeded(output: &Output) -> Result<Value> {
    let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    if output.status.success() {
        return Ok(said);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    match said["msg"].as_str() {
        Some(message) => {
            let details = said["details"].as_str().map(|details| format!(" ({details})")).unwrap_or_default();
            bail!("code {}: {message}{details}", said["code"])
        }
        None => bail!("{}: {}", output.status, stderr.trim()),
    }
}
