//! [`Namespace`]: a network namespace with a name.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::panic;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::thread;

use anyhow::{Context, Result, bail};
use kernel::netns;
use rustix::process::{Pid, Signal};

use crate::wait::{PATIENCE, wait_for};
use crate::wiring;

/// A network namespace with a name, below `/run/netns` as `ip netns` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes a namespace, its loopback device up.
    pub fn create(name: &str) -> Result<Namespace> {
        netns::create_named(name)?;
        let namespace = Namespace { name: name.to_owned() };
        wiring::set_up(&namespace, "lo")?;
        Ok(namespace)
    }

    /// The namespace of this name, there or not.
    pub(crate) fn named(name: String) -> Namespace {
        Namespace { name }
    }

    /// A namespace that is already there.
    pub fn existing(name: &str) -> Result<Namespace> {
        let namespace = Namespace { name: name.to_owned() };
        if !namespace.path().exists() {
            bail!("there is no network namespace {name}");
        }
        Ok(namespace)
    }

    /// The names of all namespaces that begin with `prefix`.
    pub fn names(prefix: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(netns::DIRECTORY) else { return Vec::new() };
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with(prefix))
            .collect();
        names.sort();
        names
    }

    /// Its name, for `ip netns exec`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it: what CNI calls `CNI_NETNS`.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(netns::DIRECTORY).join(&self.name)
    }

    /// Runs `deed` on a thread inside the namespace; sockets it opens and programs it starts are
    /// inside too.
    pub fn within<T: Send>(&self, deed: impl FnOnce() -> T + Send) -> Result<T> {
        let namespace = netns::open(&self.path())?;
        // On a thread of its own, which need not come back.
        let inside = || namespace.join_for_good().map(|()| deed());
        thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(done) => Ok(done?),
            Err(panic) => panic::resume_unwind(panic),
        })
    }

    /// Runs a program to its end inside the namespace.
    #[expect(clippy::disallowed_methods, reason = "a lab runs the very programs a person would")]
    pub fn output(&self, command: &[&str]) -> Result<Output> {
        let (program, args) = command.split_first().context("no program was named")?;
        self.within(|| Command::new(program).args(args).output())?
            .with_context(|| format!("running {} in {}", command.join(" "), self.name))
    }

    /// Runs a program inside the namespace and returns what it printed; fails if the program does.
    pub fn run(&self, command: &[&str]) -> Result<String> {
        let output = self.output(command)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{} in {}: {}: {}", command.join(" "), self.name, output.status, said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Ends every process in the namespace, then removes it.
    pub fn destroy(&self) -> Result<()> {
        let Ok(meta) = fs::metadata(self.path()) else { return Ok(()) };
        let inside = (meta.dev(), meta.ino());
        // A process that is just starting may be missed by one look.
        wait_for(&format!("the processes in {} to end", self.name), PATIENCE, || {
            let pids = processes_in(inside);
            for pid in &pids {
                let _ = rustix::process::kill_process(*pid, Signal::KILL);
            }
            if pids.is_empty() { Ok(()) } else { bail!("processes {pids:?}") }
        })?;
        Ok(netns::remove_named(&self.name)?)
    }
}

/// The processes whose first thread is in a namespace, given as the device and inode of its file.
fn processes_in(namespace: (u64, u64)) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| {
            let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let meta = fs::metadata(format!("/proc/{pid}/ns/net")).ok()?;
            ((meta.dev(), meta.ino()) == namespace).then(|| Pid::from_raw(pid)).flatten()
        })
        .collect()
}
