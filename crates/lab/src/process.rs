//! [`Process`]: a program that runs in a namespace and may outlive the one who started it.

use std::fs::{self, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

use crate::namespace::Namespace;
use crate::wait::wait_for;

/// A program that runs in a namespace.
#[derive(Debug, Serialize, Deserialize)]
pub struct Process {
    pid: i32,
    /// From `/proc/<pid>/stat`: a number that has been given to another process starts later.
    start_time: u64,
    #[serde(skip)]
    child: Option<Child>,
}

impl Process {
    /// Starts a program, its output appended to `log`.
    #[expect(clippy::disallowed_methods, reason = "a lab runs real daemons and watches over them itself")]
    pub fn spawn(namespace: &Namespace, command: &[String], log: &Path) -> Result<Process> {
        let (program, args) = command.split_first().context("no program was named")?;
        let out = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("opening {}", log.display()))?;
        let err = out.try_clone()?;
        let child = namespace
            .within(|| {
                Command::new(program)
                    .args(args)
                    .env_remove("NOTIFY_SOCKET")
                    .stdin(Stdio::null())
                    .stdout(out)
                    .stderr(err)
                    // A Ctrl-C on the terminal is for the one who runs the lab, not for its nodes.
                    .process_group(0)
                    .spawn()
            })?
            .with_context(|| format!("starting {program}"))?;
        Ok(Process::of(child))
    }

    /// A program that was just started.
    pub(crate) fn of(child: Child) -> Process {
        let pid = i32::try_from(child.id()).expect("the kernel's process ids fit");
        let start_time = stat(pid).map_or(0, |stat| stat.start_time);
        Process { pid, start_time, child: Some(child) }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid.unsigned_abs()
    }

    /// Whether any thread of it runs. What it holds (locks, ports, devices) is free when the last has ended.
    pub fn is_running(&self) -> bool {
        stat(self.pid).is_some_and(|stat| {
            // The first thread is a zombie from its own end on until its process is asked for.
            stat.start_time == self.start_time && (!matches!(stat.state, 'Z' | 'X') || stat.threads > 1)
        })
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if !self.is_running() {
            bail!("process {} has ended already", self.pid);
        }
        let pid = Pid::from_raw(self.pid).expect("a process id is not zero");
        rustix::process::kill_process(pid, signal).with_context(|| format!("signalling process {}", self.pid))
    }

    /// Sends a signal and waits until the process has ended.
    pub fn end(&mut self, signal: Signal, patience: Duration) -> Result<()> {
        if self.is_running() {
            self.signal(signal)?;
        }
        wait_for(&format!("process {} to end after {signal:?}", self.pid), patience, || {
            if self.is_running() { bail!("it still runs") } else { Ok(()) }
        })?;
        if let Some(mut child) = self.child.take() {
            child.wait()?;
        }
        Ok(())
    }

    /// Resident memory in bytes.
    pub fn resident_memory(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS line")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
        Ok(kib * 1024)
    }
}

struct Stat {
    state: char,
    threads: u32,
    start_time: u64,
}

/// The third, the twentieth and the twenty-second field of `/proc/<pid>/stat`; see proc_pid_stat(5).
fn stat(pid: i32) -> Option<Stat> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the program's name, may hold blanks and parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let threads = fields.nth(16)?.parse().ok()?;
    let start_time = fields.nth(1)?.parse().ok()?;
    Some(Stat { state, threads, start_time })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_of_stat_are_the_right_ones() {
        let stat_of_own = || stat(std::process::id().cast_signed()).unwrap();
        let own = std::thread::spawn(stat_of_own).join().unwrap();
        assert!(matches!(own.state, 'R' | 'S'), "{}", own.state);
        assert!(own.threads > 1, "this one waited for the other: {}", own.threads);
        let init = stat(1).unwrap();
        assert!(own.start_time > init.start_time);
    }
}
