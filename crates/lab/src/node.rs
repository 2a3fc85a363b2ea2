//! [`Node`]: a namespace with a flanneld and what a machine has only once.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};
use fabric::status::{Files, Status};
use fabric::subnet_file::SubnetFile;
use ipnet::IpNet;
use rustix::process::Signal;

use crate::binaries::Binaries;
use crate::namespace::Namespace;
use crate::process::Process;
use crate::wait::{PATIENCE, wait_for};

/// A node: a network namespace, the directories that would be machine-wide on a real node, a flanneld.
#[derive(Debug)]
pub struct Node {
    /// From 1.
    pub(crate) index: usize,
    pub(crate) namespace: Namespace,
    pub(crate) dir: PathBuf,
    pub(crate) addresses: Vec<IpNet>,
    pub(crate) binaries: Binaries,
    /// What every start gets: where the leases are, and what the topology adds.
    pub(crate) flags: Vec<String>,
    pub(crate) daemon: Mutex<Option<Process>>,
}

/// The underlay device of every node.
pub(crate) const UNDERLAY: &str = "eth0";

impl Node {
    /// `node1`, `node2`, …
    pub fn name(&self) -> String {
        format!("node{}", self.index)
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The addresses of its underlay device, IPv4 first.
    pub fn addresses(&self) -> &[IpNet] {
        &self.addresses
    }

    /// Its first underlay address.
    pub fn address(&self) -> IpAddr {
        self.addresses[0].addr()
    }

    /// The directory that holds all of the node's files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The files flanneld keeps: subnet.env, status, snapshot, lock.
    pub fn files(&self) -> Files {
        Files::beside(&self.dir.join("run/flannel/subnet.env"))
    }

    /// The daemon's log, of all its runs.
    pub fn log_file(&self) -> PathBuf {
        self.dir.join("flanneld.log")
    }

    /// The daemon's log, of all its runs.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// The directory of the CNI plugins, for `CNI_PATH`: our multi-call binary under each name.
    pub fn cni_path(&self) -> PathBuf {
        self.dir.join("cni/bin")
    }

    /// Where the flannel plugin keeps what it delegated.
    pub fn cni_state(&self) -> PathBuf {
        self.dir.join("cni/flannel")
    }

    /// Where host-local keeps its addresses, a directory per network.
    pub fn cni_networks(&self) -> PathBuf {
        self.dir.join("cni/networks")
    }

    /// Makes the node's directories and puts the plugins in place.
    pub(crate) fn furnish(&self) -> Result<()> {
        for dir in [self.dir.join("run/flannel"), self.cni_path(), self.cni_state(), self.cni_networks()] {
            fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        }
        for plugin in ["flannel", "bridge", "host-local", "loopback"] {
            symlink(&self.binaries.flannel_cni, self.cni_path().join(plugin))?;
        }
        Ok(())
    }

    /// Starts flanneld. Does not wait for it to be ready: see [`Node::wait_ready`].
    pub fn start(&self) -> Result<()> {
        self.start_with(&[])
    }

    /// Starts flanneld with further flags.
    pub fn start_with(&self, flags: &[&str]) -> Result<()> {
        let mut command = vec![self.binaries.flanneld.display().to_string()];
        command.push(format!("--subnet-file={}", self.files().subnet.display()));
        command.extend(self.flags.iter().cloned());
        command.extend(flags.iter().map(|flag| (*flag).to_owned()));
        self.start_command(&command)
    }

    /// Starts another daemon in flanneld's place: the original, say.
    pub fn start_command(&self, command: &[String]) -> Result<()> {
        let mut daemon = self.daemon();
        if daemon.as_ref().is_some_and(Process::is_running) {
            bail!("flanneld runs on {} already", self.name());
        }
        *daemon = Some(Process::spawn(&self.namespace, command, &self.log_file())?);
        Ok(())
    }

    /// The flags with which flanneld finds the leases, and those that the topology adds.
    pub fn flags(&self) -> &[String] {
        &self.flags
    }

    /// Waits until flanneld says that it is ready and knows `peers` other nodes.
    pub fn wait_ready(&self, peers: usize) -> Result<Status> {
        wait_for(&format!("{} to be ready with {peers} peers", self.name()), PATIENCE, || {
            if !self.is_running() {
                bail!("flanneld has ended; the end of its log:\n{}", self.log_tail(10));
            }
            let status = self.status()?;
            if Some(status.pid) != self.pid() {
                bail!("no word from this flanneld yet; the end of its log:\n{}", self.log_tail(10));
            }
            if !status.ready {
                bail!("flanneld awaits: {}", status.awaited.join(", "));
            }
            let known = status.peers.iter().filter(|peer| peer.refused.is_none()).count();
            if known != peers {
                bail!("flanneld knows {known} peers");
            }
            Ok(status)
        })
    }

    /// Whether flanneld runs.
    pub fn is_running(&self) -> bool {
        self.daemon().as_ref().is_some_and(Process::is_running)
    }

    /// flanneld's process id, if it runs.
    pub fn pid(&self) -> Option<u32> {
        self.daemon().as_ref().filter(|daemon| daemon.is_running()).map(Process::pid)
    }

    /// flanneld's resident memory in bytes.
    pub fn resident_memory(&self) -> Result<u64> {
        self.daemon().as_ref().context("flanneld was not started")?.resident_memory()
    }

    /// Asks flanneld to end (SIGTERM) and waits until it has.
    pub fn stop(&self) -> Result<()> {
        self.end(Signal::TERM)
    }

    /// Kills flanneld (SIGKILL) and waits until it is gone.
    pub fn kill(&self) -> Result<()> {
        self.end(Signal::KILL)
    }

    fn end(&self, signal: Signal) -> Result<()> {
        let Some(mut daemon) = self.daemon().take() else {
            bail!("no flanneld was started on {}", self.name())
        };
        daemon.end(signal, PATIENCE).with_context(|| format!("ending flanneld on {}", self.name()))
    }

    /// What flanneld says about itself.
    pub fn status(&self) -> Result<Status> {
        let path = self.files().status;
        let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("understanding {}", path.display()))
    }

    /// The node's subnet.env.
    pub fn subnet_file(&self) -> Result<SubnetFile> {
        let path = self.files().subnet;
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        SubnetFile::parse(&text).with_context(|| format!("understanding {}", path.display()))
    }

    /// Runs a program on the node and returns what it printed: `node.run("ip route")`.
    pub fn run(&self, command: &str) -> Result<String> {
        self.namespace.run(&command.split_whitespace().collect::<Vec<_>>())
    }

    /// Runs a program in the foreground, on the node or in one of its pods, with the terminal. On the
    /// node, `flannelctl status` shows this node.
    #[expect(clippy::disallowed_methods, reason = "a lab runs the very programs a person would")]
    pub fn exec(&self, place: &Namespace, command: &[String]) -> Result<ExitStatus> {
        let (program, args) = command.split_first().context("no program was named")?;
        // The other programs of flannel-rs are beside its daemon.
        let beside = self.binaries.flanneld.with_file_name(program);
        let program = if beside.is_file() { beside } else { program.into() };
        let mut run = Command::new(&program);
        run.args(args).env("FLANNELD_SUBNET_FILE", self.files().subnet);
        place.within(|| run.status())?.with_context(|| format!("running {}", program.display()))
    }

    /// The last lines of the daemon's log.
    pub(crate) fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    pub(crate) fn daemon(&self) -> MutexGuard<'_, Option<Process>> {
        // A story that panicked while it held the lock still wants its lab cleaned up.
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
