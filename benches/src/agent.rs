//! The programs under test: ours, and the original where the environment names it.

use std::env;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::{Binaries, Namespace, Process, wait_for};
use rustix::process::Signal;

use crate::rig::Node;

/// A flanneld.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// `ours` or `original`, the heading of its column.
    pub name: &'static str,
    program: PathBuf,
}

/// A flanneld that runs on a node. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    process: Process,
}

/// Ours first, then the original if `FLANNEL_ORIGINAL` names it.
pub fn agents() -> Result<Vec<Agent>> {
    let mut agents = vec![Agent { name: "ours", program: Binaries::find()?.flanneld }];
    if let Some(program) = env::var_os("FLANNEL_ORIGINAL").map(PathBuf::from) {
        if !program.is_file() {
            bail!("FLANNEL_ORIGINAL={}: there is no such program", program.display());
        }
        agents.push(Agent { name: "original", program });
    }
    Ok(agents)
}

/// Directories with the plugins `flannel`, `bridge`, `host-local`, `loopback` and `portmap`: ours (made
/// of links to the multi-call binary, below `scratch`), then the original's if `CNI_ORIGINAL` names it.
pub fn cni_directories(scratch: &Path) -> Result<Vec<(&'static str, PathBuf)>> {
    let ours = scratch.join("cni-bin");
    fs::create_dir_all(&ours)?;
    let program = fs::canonicalize(Binaries::find()?.flannel_cni)?;
    for plugin in ["flannel", "bridge", "host-local", "loopback", "portmap"] {
        if speaks_cni_as(&program, plugin)? {
            symlink(&program, ours.join(plugin))?;
        }
    }
    let mut directories = vec![("ours", ours)];
    if let Some(original) = env::var_os("CNI_ORIGINAL").map(PathBuf::from) {
        if !original.join("flannel").is_file() {
            bail!("CNI_ORIGINAL={}: there is no plugin flannel in it", original.display());
        }
        directories.push(("original", original));
    }
    Ok(directories)
}

/// Whether the multi-call binary has this plugin.
#[expect(clippy::disallowed_methods, reason = "plugins are programs")]
fn speaks_cni_as(program: &Path, plugin: &str) -> Result<bool> {
    let asked = Command::new(program)
        .arg0(plugin)
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running {}", program.display()))?;
    // Under a name that it does not know it only says what it has.
    Ok(asked.status.success() && asked.stdout.starts_with(b"{"))
}

impl Agent {
    /// Starts it on a node, against the rig's etcd.
    pub fn start(&self, node: &Node, flags: &[&str]) -> Result<Running> {
        let mut command = vec![
            self.program.display().to_string(),
            format!("--etcd-endpoints={}", node.etcd_endpoint()),
            format!("--subnet-file={}", node.subnet_file().display()),
            "--iface=eth0".to_owned(),
        ];
        command.extend(flags.iter().map(|flag| (*flag).to_owned()));
        let log = node.directory().join(format!("{}.log", self.name));
        Ok(Running { process: Process::spawn(node.namespace(), &command, &log)? })
    }

    /// Starts it on a node of a lab, as node `name` of Kubernetes.
    pub fn start_on_kubernetes(
        &self,
        node: &lab::Node,
        (name, kubeconfig, net_conf): (&str, &Path, &Path),
        subnet_file: &Path,
    ) -> Result<Running> {
        let command = [
            "env".to_owned(),
            format!("NODE_NAME={name}"),
            // As many events as there are nodes at the start, or the original never gets ready.
            "EVENT_QUEUE_DEPTH=20000".to_owned(),
            self.program.display().to_string(),
            "--kube-subnet-mgr".to_owned(),
            format!("--kubeconfig-file={}", kubeconfig.display()),
            format!("--net-config-path={}", net_conf.display()),
            format!("--subnet-file={}", subnet_file.display()),
            "--iface=eth0".to_owned(),
            "--ip-masq".to_owned(),
        ];
        let log = node.dir().join(format!("{}.log", self.name));
        Ok(Running { process: Process::spawn(node.namespace(), &command, &log)? })
    }

    /// Starts it and waits until it has written `subnet.env`.
    pub fn start_ready(&self, node: &Node, flags: &[&str]) -> Result<Running> {
        let file = node.subnet_file();
        let _ = fs::remove_file(&file);
        let running = self.start(node, flags)?;
        wait_for("subnet.env", Duration::from_secs(30), || fs::metadata(&file).context("not there"))
            .with_context(|| format!("see the log of {} in {}", self.name, node.directory().display()))?;
        Ok(running)
    }
}

impl Running {
    /// Resident memory in megabytes (10⁶).
    pub fn resident_megabytes(&self) -> Result<f64> {
        #[expect(clippy::cast_precision_loss, reason = "a few megabytes fit a double")]
        Ok(self.process.resident_memory()? as f64 / 1e6)
    }

    /// Processor time spent so far, in user and kernel mode, all threads.
    pub fn processor_time(&self) -> Result<Duration> {
        Ok(kernel::process::processor_time(self.process.pid())?)
    }

    /// Waits until it has finished what it was doing: for a while it has spent next to nothing. For one that
    /// never does, it waits no longer than ten seconds.
    pub fn settle(&self) {
        const WHILE: Duration = Duration::from_millis(200);
        const NEXT_TO_NOTHING: Duration = Duration::from_millis(1);
        let _ = wait_for("the daemon to settle", Duration::from_secs(10), || {
            let before = self.processor_time()?;
            thread::sleep(WHILE);
            let spent = self.processor_time()? - before;
            ensure!(spent < NEXT_TO_NOTHING, "it spends {spent:?} in {WHILE:?}");
            Ok(())
        });
    }

    /// Kills it the hard way.
    pub fn kill(mut self) -> Result<()> {
        self.process.end(Signal::KILL, Duration::from_secs(5))
    }
}

/// Takes away from a node what a flanneld with vxlan has left on it, whose `subnet.env` is this one.
pub fn forget(node: &Namespace, subnet_file: &Path) -> Result<()> {
    node.run(&["ip", "link", "delete", "flannel.1"])?;
    node.run(&["nft", "flush", "ruleset"])?;
    for file in [subnet_file, &subnet_file.with_file_name("leases.json")] {
        match fs::remove_file(file) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.end(Signal::KILL, Duration::from_secs(5));
    }
}
