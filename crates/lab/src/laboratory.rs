//! [`Lab`]: all of it, from the first cable to the last namespace removed.

use std::fs::File;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use store::{EtcdOptions, Store, StoreError};

use crate::binaries::Binaries;
use crate::namespace::Namespace;
use crate::node::{Node, UNDERLAY};
use crate::pod::Pod;
use crate::process::Process;
use crate::state;
use crate::topology::{StoreKind, Topology};
use crate::wait::{PATIENCE, wait_for};
use crate::wiring;

/// A switch and its nodes. Dropping it takes everything away, unless it was told to stay.
#[derive(Debug)]
pub struct Lab {
    pub(crate) name: String,
    pub(crate) topology: Topology,
    pub(crate) switch: Namespace,
    pub(crate) nodes: Vec<Node>,
    pub(crate) etcd: Mutex<Option<Process>>,
    pub(crate) stays: bool,
    /// Locked for as long as the lab is ours: a lab whose lock is free has lost its owner.
    pub(crate) _owner: Option<File>,
}

/// One pod's ping to another's address.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Who asked: node and pod.
    pub from: (String, String),
    /// Who was asked.
    pub to: (String, String),
    /// Under which address.
    pub address: IpAddr,
    /// The round-trip time, or what went wrong.
    pub answer: Result<Duration, String>,
}

impl Lab {
    /// Builds the switch, the nodes and the store; starts no flanneld. Without a name the lab gets one
    /// that nobody else has.
    pub fn up(name: Option<&str>, topology: Topology) -> Result<Lab> {
        if !(1..=200).contains(&topology.nodes) {
            bail!("a lab has 1 to 200 nodes, not {}", topology.nodes);
        }
        let binaries = Binaries::find()?;
        Lab::up_with(name, topology, &binaries)
    }

    /// [`Lab::up`] with programs of your own.
    pub fn up_with(name: Option<&str>, topology: Topology, binaries: &Binaries) -> Result<Lab> {
        let (name, owner) = state::claim(name)?;
        // From here on dropping the lab takes away whatever was built of it.
        let mut lab = Lab::assemble(name, topology, binaries);
        lab._owner = Some(owner);
        lab.build()?;
        Ok(lab)
    }

    /// The values of a lab; touches nothing.
    pub(crate) fn assemble(name: String, topology: Topology, binaries: &Binaries) -> Lab {
        let prefix = state::prefix(&name);
        let mut flags = match topology.store {
            StoreKind::File => vec![format!("--store=file:{}", state::store_dir(&name).display())],
            StoreKind::Etcd => vec![format!("--etcd-endpoints={}", endpoint(&topology))],
        };
        flags.extend(topology.flags.iter().cloned());
        let nodes = (1..=topology.nodes)
            .map(|index| Node {
                index,
                namespace: Namespace::named(format!("{prefix}node{index}")),
                dir: state::dir(&name).join(format!("node{index}")),
                addresses: topology.addresses(index),
                binaries: binaries.clone(),
                flags: flags.clone(),
                daemon: Mutex::new(None),
            })
            .collect();
        let switch = Namespace::named(format!("{prefix}switch"));
        Lab { name, topology, switch, nodes, etcd: Mutex::new(None), stays: false, _owner: None }
    }

    fn build(&self) -> Result<()> {
        Namespace::create(self.switch.name())?;
        for path in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            wiring::set_sysctl(&self.switch, path, "1")?;
        }
        wiring::skip_duplicate_address_detection(&self.switch, "default")?;
        for segment in 0..self.topology.segments {
            let bridge = format!("seg{segment}");
            wiring::create_bridge(&self.switch, &bridge, self.topology.mtu)?;
            for address in self.topology.gateways(segment) {
                wiring::add_address(&self.switch, &bridge, address)?;
            }
        }
        for node in &self.nodes {
            self.build_node(node).with_context(|| format!("building {}", node.name()))?;
        }
        if self.topology.store == StoreKind::Etcd {
            self.start_store()?;
        }
        self.set_network(&self.topology.net_conf())
    }

    fn build_node(&self, node: &Node) -> Result<()> {
        Namespace::create(node.namespace.name())?;
        let segment = self.topology.segment_of(node.index);
        let bridge = format!("seg{segment}");
        wiring::connect(
            (&self.switch, &bridge, &node.name()),
            (&node.namespace, UNDERLAY),
            self.topology.mtu,
        )?;
        for address in &node.addresses {
            wiring::add_address(&node.namespace, UNDERLAY, *address)?;
        }
        if self.topology.default_route {
            for gateway in self.topology.gateways(segment) {
                wiring::add_default_route(&node.namespace, UNDERLAY, gateway)?;
            }
        }
        node.furnish()
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is made of.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The directory that holds all of its files.
    pub fn dir(&self) -> PathBuf {
        state::dir(&self.name)
    }

    /// The directory of the file store.
    pub fn store_dir(&self) -> PathBuf {
        state::store_dir(&self.name)
    }

    /// The switch between the nodes, which is also the world outside of the pod network.
    pub fn switch(&self) -> &Namespace {
        &self.switch
    }

    /// The nodes, in order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A node by its number, from 1.
    pub fn node(&self, number: usize) -> &Node {
        &self.nodes[number - 1]
    }

    /// Starts flanneld on every node that has none running, and waits until each knows all others.
    pub fn start(&self) -> Result<()> {
        for node in &self.nodes {
            if !node.is_running() {
                node.start()?;
            }
        }
        self.wait_ready()
    }

    /// Waits until every node on which flanneld runs is ready and knows all the others.
    pub fn wait_ready(&self) -> Result<()> {
        let running: Vec<&Node> = self.nodes.iter().filter(|node| node.is_running()).collect();
        for node in &running {
            node.wait_ready(running.len() - 1)?;
        }
        Ok(())
    }

    /// All pods of all nodes.
    pub fn pods(&self) -> Result<Vec<Pod<'_>>> {
        let mut pods = Vec::new();
        for node in &self.nodes {
            pods.extend(node.pods()?);
        }
        Ok(pods)
    }

    /// Every pod pings every address of every other pod, all of them at once.
    pub fn ping_all(&self, pods: &[Pod<'_>]) -> Vec<Reply> {
        let place = |pod: &Pod<'_>| (pod.node().name(), pod.name().to_owned());
        let ask = |from: &Pod<'_>, to: &Pod<'_>| -> Vec<Reply> {
            let addresses = to.addresses().iter().map(|net| net.addr());
            let reply = |address| {
                let answer = from.ping(address).map_err(|error| format!("{error:#}"));
                Reply { from: place(from), to: place(to), address, answer }
            };
            addresses.map(reply).collect()
        };
        thread::scope(|scope| {
            let threads: Vec<_> = pods
                .iter()
                .map(|from| scope.spawn(move || pods.iter().flat_map(|to| ask(from, to)).collect::<Vec<_>>()))
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().expect("a ping does not panic")).collect()
        })
    }

    /// Pulls a node's cable out of the switch, or puts it back.
    pub fn set_cable(&self, node: &Node, plugged: bool) -> Result<()> {
        let set = if plugged { wiring::set_up } else { wiring::set_down };
        set(&self.switch, &node.name())
    }

    /// Runs `ask` with the store that the nodes lease from, inside the switch's namespace.
    pub fn with_store<T: Send>(&self, ask: impl AsyncFnOnce(&Store) -> Result<T> + Send) -> Result<T> {
        self.switch.within(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let store = match self.topology.store {
                    StoreKind::File => Store::file(self.store_dir())?,
                    StoreKind::Etcd => {
                        let endpoints = vec![endpoint(&self.topology)];
                        Store::etcd(EtcdOptions { endpoints, ..EtcdOptions::default() })?
                    }
                };
                ask(&store).await
            })
        })?
    }

    /// Writes the network configuration to the store.
    pub fn set_network(&self, net_conf: &serde_json::Value) -> Result<()> {
        let text = net_conf.to_string();
        // An etcd that has just been started may take longer than its clients are patient.
        let written = wait_for("the store to take a network configuration", PATIENCE, || {
            match self.with_store(async |store| Ok(store.set_network_config(&text).await))? {
                Err(error @ (StoreError::Unreachable { .. } | StoreError::Refused { .. })) => {
                    Err(error.into())
                }
                done => Ok(done),
            }
        })?;
        written.context("writing the network configuration")
    }

    /// Starts the etcd of the lab again after [`Lab::stop_store`]; its data is still there.
    pub fn start_store(&self) -> Result<()> {
        let url = endpoint(&self.topology);
        let data = self.dir().join("etcd");
        let command = [
            "etcd".to_owned(),
            format!("--data-dir={}", data.display()),
            format!("--listen-client-urls={url}"),
            format!("--advertise-client-urls={url}"),
            "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
        ];
        let etcd = Process::spawn(&self.switch, &command, &self.dir().join("etcd.log"))
            .context("a lab with etcd needs that program: `make setup` installs it")?;
        *self.etcd.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(etcd);
        let address = (self.topology.switch_address(), ETCD_PORT);
        wait_for("etcd to listen", PATIENCE, || {
            self.switch
                .within(|| std::net::TcpStream::connect(address))?
                .map(drop)
                .context("connecting to it")
        })
    }

    /// Kills the etcd of the lab; the nodes keep what they have.
    pub fn stop_store(&self) -> Result<()> {
        let etcd = self.etcd.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        etcd.context("this lab has no etcd that runs")?.end(rustix::process::Signal::KILL, PATIENCE)
    }

    /// The etcd endpoint of the lab.
    pub fn etcd_endpoint(&self) -> String {
        endpoint(&self.topology)
    }

    /// Takes the lab down, and says what could not be taken away.
    pub fn down(mut self) -> Result<()> {
        self.stays = true;
        self.remove()
    }

    fn remove(&self) -> Result<()> {
        state::remove(&self.name)?;
        // Children that were killed are zombies until somebody asks for them.
        for node in &self.nodes {
            if let Some(mut daemon) = node.daemon().take() {
                daemon.end(rustix::process::Signal::KILL, PATIENCE)?;
            }
        }
        let etcd = self.etcd.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        etcd.map_or(Ok(()), |mut etcd| etcd.end(rustix::process::Signal::KILL, PATIENCE))
    }
}

impl Drop for Lab {
    #[expect(clippy::print_stderr, reason = "a destructor has nobody else to tell")]
    fn drop(&mut self) {
        let done = if self.stays { Ok(()) } else { self.remove() };
        if let Err(error) = done {
            eprintln!("taking down the lab {}: {error:#}", self.name);
        }
    }
}

const ETCD_PORT: u16 = 2379;

fn endpoint(topology: &Topology) -> String {
    format!("http://{}", std::net::SocketAddr::new(topology.switch_address(), ETCD_PORT))
}
