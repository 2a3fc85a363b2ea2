//! Labs without root: the command runs again as root of a user namespace, where the kernel lets
//! anybody make network namespaces, bridges, veth pairs, vxlan devices and nftables tables.
//!
//! `unshare` and `nsenter` (util-linux) are asked to do it, because a process that has threads cannot
//! change its user namespace itself. `/run` is covered by a fresh tmpfs, so that nothing of the
//! machine is written to. A lab that stays is kept by a process that does nothing else.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::mount::MountFlags;
use rustix::process::Signal;

use crate::process::Process;
use crate::state::LABS;
use crate::wait::wait_for;

/// Set for a command that runs inside the user namespace already.
const INSIDE: &str = "FLANNEL_LAB_USER_NAMESPACE";
/// It was made for this command, which has to cover `/run`.
const FRESH: &str = "fresh";
/// It is that of a lab that stays.
const KEPT: &str = "kept";

/// What a command needs of the user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime<'a> {
    /// One of its own.
    Command,
    /// One that stays until [`Lifetime::End`], made here.
    Begin(&'a str),
    /// The one that was made before.
    Within(&'a str),
    /// The one that was made before, which ends with the command.
    End(&'a str),
}

/// Whether a command goes on.
#[derive(Debug)]
pub enum Entered {
    /// It may: it has root's rights, in a user namespace or for real.
    Here,
    /// It ran already, inside a user namespace.
    Ran(ExitStatus),
}

/// Runs this program with `args` again inside a user namespace, unless it is inside one already or the
/// caller is root.
pub fn enter_user_namespace(args: &[OsString], lifetime: Lifetime<'_>) -> Result<Entered> {
    match env::var(INSIDE).as_deref() {
        Ok(FRESH) => return cover_run().map(|()| Entered::Here),
        Ok(_) => return Ok(Entered::Here),
        Err(_) if rustix::process::geteuid().is_root() => return Ok(Entered::Here),
        Err(_) => {}
    }
    let mut command = match lifetime {
        Lifetime::Command => unshare()?,
        Lifetime::Begin(name) => nsenter(&begin(name)?)?,
        Lifetime::Within(name) | Lifetime::End(name) => nsenter(&keeper(name)?)?,
    };
    let status =
        command.args(args).status().context("running unshare or nsenter, which are part of util-linux")?;
    match lifetime {
        Lifetime::Begin(name) if !status.success() => end(name)?,
        Lifetime::End(name) if status.success() => end(name)?,
        _ => {}
    }
    Ok(Entered::Ran(status))
}

/// What the keeper of a lab that stays does: cover `/run`, and sleep until it is killed.
pub fn keep_user_namespace() -> Result<()> {
    if env::var(INSIDE).as_deref() != Ok(FRESH) {
        bail!("this command is flannelctl's own, for labs without root");
    }
    cover_run()?;
    loop {
        std::thread::park();
    }
}

/// The words with which a program is told to be the keeper of a lab's user namespace.
pub const KEEPER_ARGS: [&str; 2] = ["lab", "keep-user-namespace"];

/// Puts an empty tmpfs over `/run`, with the directory of all labs in it as a sign that it is done.
fn cover_run() -> Result<()> {
    rustix::mount::mount("tmpfs", "/run", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, None)
        .context("covering /run with a tmpfs in the user namespace")?;
    fs::create_dir_all(LABS).context("making the directory of all labs")
}

/// This program as root of a user namespace of its own.
#[expect(clippy::disallowed_methods, reason = "only another program can enter a user namespace for us")]
fn unshare() -> Result<Command> {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "--net", "--"]);
    command.arg(env::current_exe()?).env(INSIDE, FRESH);
    Ok(command)
}

/// This program inside a user namespace that is kept.
#[expect(clippy::disallowed_methods, reason = "only another program can enter a user namespace for us")]
fn nsenter(keeper: &Process) -> Result<Command> {
    let mut command = Command::new("nsenter");
    command.arg(format!("--target={}", keeper.pid()));
    command.args(["--user", "--mount", "--net", "--preserve-credentials", "--"]);
    command.arg(env::current_exe()?).env(INSIDE, KEPT);
    Ok(command)
}

/// Starts the keeper of a lab's user namespace.
fn begin(name: &str) -> Result<Process> {
    if keeper(name).is_ok() {
        bail!("a lab called {name} is up already: `flannelctl lab down --name {name}` takes it down");
    }
    let child = unshare()?
        .args(KEEPER_ARGS)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .context("running unshare, which is part of util-linux")?;
    let mut keeper = Process::of(child);
    let sign = PathBuf::from(format!("/proc/{}/root{LABS}", keeper.pid()));
    let ready = wait_for("a user namespace", Duration::from_secs(5), || {
        if sign.exists() { Ok(()) } else { bail!("{} is not there", sign.display()) }
    });
    if let Err(error) = ready {
        keeper.end(Signal::KILL, Duration::from_secs(5))?;
        return Err(error).context(
            "this system does not let everybody make user namespaces (see the sysctls \
             kernel.unprivileged_userns_clone and user.max_user_namespaces): run it as root",
        );
    }
    fs::write(record(name), serde_json::to_vec(&keeper)?)
        .with_context(|| format!("writing {}", record(name).display()))?;
    Ok(keeper)
}

/// Ends the keeper, and with it everything in its namespaces.
fn end(name: &str) -> Result<()> {
    keeper(name)?.end(Signal::KILL, Duration::from_secs(5))?;
    fs::remove_file(record(name)).with_context(|| format!("removing {}", record(name).display()))
}

/// The keeper of a lab's user namespace, if it lives.
fn keeper(name: &str) -> Result<Process> {
    let none = || format!("no lab called {name} is up: `flannelctl lab up --name {name}` builds one");
    let text = fs::read(record(name)).with_context(none)?;
    let keeper: Process = serde_json::from_slice(&text).with_context(none)?;
    if keeper.is_running() { Ok(keeper) } else { bail!(none()) }
}

/// Where the keeper of a lab is written down: in the user's own directory, never in a shared one.
fn record(name: &str) -> PathBuf {
    let own = env::var_os("XDG_RUNTIME_DIR").or_else(|| env::var_os("HOME")).map(PathBuf::from);
    own.unwrap_or_else(env::temp_dir).join(format!(".flannel-lab-{name}.json"))
}
