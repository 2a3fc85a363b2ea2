//! [`Machine`]: a node of a lab with everything that a container runtime expects of a machine.
//!
//! It has process, mount, IPC, host name and cgroup namespaces of its own inside the node's network
//! namespace; `/run`, `/var/lib`, `/opt` and `/tmp` are empty, `/etc` is an overlay, and flanneld's
//! files are at `/run/flannel`, where they are on a real node. Dropping it ends its first process, with
//! which the kernel takes everything else away, and removes its cgroups.

use std::fs::{self, File};
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::{Binaries, Lab, Node, Pod, wait_for};

use crate::PATIENCE;

/// A node that runs container runtimes.
#[derive(Debug)]
pub struct Machine<'lab> {
    node: &'lab Node,
    name: String,
    outside: Child,
    /// The process id, as seen from outside, of its first process.
    first: u32,
    /// By name.
    services: Vec<(String, Child)>,
}

impl<'lab> Machine<'lab> {
    /// Makes one of a node of the lab, and installs our plugins as a user would.
    pub fn start(node: &'lab Node) -> Result<Machine<'lab>> {
        let machine = Machine::bare(node)?;
        machine.install()?;
        Ok(machine)
    }

    /// Makes one of a node of the lab, without any plugins.
    #[expect(
        clippy::disallowed_methods,
        reason = "a machine is made by the programs that a person would use"
    )]
    pub fn bare(node: &'lab Node) -> Result<Machine<'lab>> {
        sweep();
        let script = node.dir().join("machine.sh");
        fs::write(&script, include_str!("machine.sh"))?;
        let name = node.namespace().name().to_owned();
        let mut command = Command::new("/bin/sh");
        command.arg(&script).arg(&name).arg(node.dir()).arg("cgroups").stdin(Stdio::null());
        let log = File::create(node.dir().join("machine.log"))?;
        command.stdout(log.try_clone()?).stderr(log).process_group(0);
        let outside = node.namespace().within(|| command.spawn())??;
        let mut machine = Machine { node, name, first: 0, outside, services: Vec::new() };
        machine.first = wait_for("the machine to be up", PATIENCE, || machine.first_process())?;
        Ok(machine)
    }

    /// The child of `unshare`, once it has mounted everything.
    fn first_process(&self) -> Result<u32> {
        let unshare = self.outside.id();
        let said = || fs::read_to_string(self.node.dir().join("machine.log")).unwrap_or_default();
        let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"))
            .with_context(|| format!("the machine has ended: {}", said()))?;
        let first = children.split_whitespace().next().with_context(said)?.parse()?;
        ensure!(Path::new(&format!("/proc/{first}/root/run/ready")).exists(), "not ready: {}", said());
        Ok(first)
    }

    /// Installs our plugins.
    pub fn install(&self) -> Result<()> {
        let flannelctl = Binaries::find()?.flanneld.with_file_name("flannelctl");
        self.run(&[&flannelctl.display().to_string(), "cni", "install"]).map(drop)
    }

    /// The node that it is.
    pub fn node(&self) -> &'lab Node {
        self.node
    }

    /// A file of this machine, as seen from outside.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.first))
    }

    /// Writes a file of this machine.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        let outside = self.path(path);
        fs::create_dir_all(outside.parent().unwrap_or(Path::new("/")))?;
        fs::write(&outside, text).with_context(|| format!("writing {path}"))
    }

    /// Starts a service; its output goes to `<name>.log` in the node's directory.
    pub fn serve(&mut self, name: &str, command: &[&str]) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log_file(name))?;
        let mut service = self.command(command);
        service.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let service = service.spawn().with_context(|| format!("starting {name}"))?;
        self.services.push((name.to_owned(), service));
        Ok(())
    }

    /// Kills a service, and only that process: what it started lives on.
    pub fn kill_service(&mut self, name: &str) -> Result<()> {
        // nsenter stays outside, as the parent of the service.
        let at = self.services.iter().position(|(service, _)| service == name);
        let (_, mut nsenter) = self.services.remove(at.with_context(|| format!("{name} does not run"))?);
        let id = nsenter.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"))?;
        let service: i32 = children.split_whitespace().next().context("the service has ended")?.parse()?;
        let service = rustix::process::Pid::from_raw(service).context("no process")?;
        rustix::process::kill_process(service, rustix::process::Signal::KILL)?;
        nsenter.wait()?;
        Ok(())
    }

    /// What a service has said so far.
    pub fn log(&self, service: &str) -> String {
        fs::read_to_string(self.log_file(service)).unwrap_or_default()
    }

    fn log_file(&self, service: &str) -> PathBuf {
        self.node.dir().join(format!("{service}.log"))
    }

    /// Runs a program to its end and returns what it printed; fails if the program does.
    pub fn run(&self, command: &[&str]) -> Result<String> {
        let output = self.output(command)?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "{}: {}: {}{}", command.join(" "), output.status, out, err.trim());
        Ok(out.into_owned())
    }

    fn output(&self, command: &[&str]) -> Result<Output> {
        self.command(command).output().with_context(|| format!("running {}", command.join(" ")))
    }

    /// The words that, put before those of a command, run it on this machine.
    pub fn entrance(&self) -> Vec<String> {
        let target = format!("--target={}", self.first);
        let words = ["nsenter", &target, "--mount", "--pid", "--net", "--ipc", "--uts", "--cgroup", "--"];
        words.map(str::to_owned).to_vec()
    }

    #[expect(clippy::disallowed_methods, reason = "stories run the very programs a person would")]
    fn command(&self, command: &[&str]) -> Command {
        let entrance = self.entrance();
        let mut nsenter = Command::new(&entrance[0]);
        nsenter.args(&entrance[1..]).args(command).current_dir("/").env_remove("NOTIFY_SOCKET");
        nsenter.env("PATH", "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin");
        nsenter
    }

    /// Fails unless nothing is left of any container: cables, addresses, remembered results, rules.
    pub fn nothing_is_left(&self) -> Result<()> {
        let cables = self.node.run("ip -o link show type veth")?;
        // The node's own cable to the switch is one.
        ensure!(cables.lines().count() == 1, "cables are left: {cables}");
        for (what, dir) in [
            ("addresses", "/var/lib/cni/networks/cbr0"),
            ("remembered results", "/var/lib/cni/results"),
            ("remembered delegates", "/var/lib/cni/flannel"),
        ] {
            let entries = fs::read_dir(self.path(dir)).into_iter().flatten().flatten();
            let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
            let left: Vec<String> =
                names.filter(|name| name != "lock" && !name.starts_with("last_reserved_ip")).collect();
            ensure!(left.is_empty(), "{what} are left: {left:?}");
        }
        let rules = self.node.run("nft list ruleset")?;
        ensure!(!rules.contains(&HOST_PORT.to_string()), "rules are left: {rules}");
        Ok(())
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        // Its child, the machine's first process, dies with it, and everything inside with that one.
        let _ = self.outside.kill();
        let _ = self.outside.wait();
        for (_, service) in &mut self.services {
            let _ = service.wait();
        }
        for hierarchy in hierarchies() {
            let own = hierarchy.join(&self.name);
            // The kernel lets go of a cgroup a moment after its last process.
            let _ = wait_for("the cgroups to be gone", PATIENCE, || remove_cgroups(&own));
        }
    }
}

/// Where cgroups are: the root of version 2, or a directory for each hierarchy of version 1.
fn hierarchies() -> Vec<PathBuf> {
    let root = PathBuf::from("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return vec![root];
    }
    let entries = fs::read_dir(&root).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// Removes the cgroups of machines whose test was killed: they are named after a network namespace that
/// is gone, the lab having been swept away.
pub fn sweep() {
    for hierarchy in hierarchies() {
        for entry in fs::read_dir(&hierarchy).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let is_ours = name.to_string_lossy().starts_with("flab-");
            if is_ours && !Path::new("/run/netns").join(&name).exists() {
                // One that still has a process is left to the next sweep.
                let _ = remove_cgroups(&entry.path());
            }
        }
    }
}

/// Removes a cgroup and those below.
fn remove_cgroups(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(path)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroups(&entry.path())?;
        }
    }
    fs::remove_dir(path).with_context(|| format!("removing {}", path.display()))
}

/// The port of the node that containers answer on.
pub const HOST_PORT: u16 = 8080;
/// The port inside the container.
pub const CONTAINER_PORT: u16 = 80;
/// What a container runs: it greets whoever connects.
pub const SERVER: [&str; 7] = ["/bin/nc", "-ll", "-p", "80", "-e", "/bin/echo", "hello"];

/// A running container, whatever runs it.
pub struct Container<'a> {
    /// Its address.
    pub address: IpAddr,
    /// Runs a program in it and returns what it printed.
    pub exec: &'a dyn Fn(&[&str]) -> Result<String>,
}

/// Waits until a container on the first node has everything that a container needs: an address of the
/// node's subnet, a way to and from a pod of the second node without NAT, and the host port for others
/// and itself.
pub fn is_connected(lab: &Lab, peer: &Pod<'_>, container: &Container<'_>) -> Result<()> {
    let node = lab.node(1);
    let subnet = node.subnet_file()?.subnets().ipv4.context("no IPv4 subnet")?;
    let address = container.address;
    ensure!(matches!(address, IpAddr::V4(own) if subnet.contains(&own)), "{address} is not of {subnet}");

    wait_for("the container to be reached from another node", PATIENCE, || peer.ping(address).map(drop))?;
    let server = Mirror::start(peer)?;
    wait_for("the container to reach another node", PATIENCE, || {
        let seen = (container.exec)(&connect(peer.ipv4()?, server.port))?;
        ensure!(seen.trim() == address.to_string(), "the other node sees {seen:?} instead of {address}");
        Ok(())
    })?;
    let host = SocketAddr::new(node.address(), HOST_PORT);
    wait_for("the container to answer on the host port", PATIENCE, || {
        let said = lab.node(2).namespace().within(|| ask(host))??;
        ensure!(said.trim() == "hello", "it says {said:?}");
        Ok(())
    })?;
    wait_for("the container to reach itself through the host port", PATIENCE, || {
        let said = (container.exec)(&connect(host.ip(), host.port()))?;
        ensure!(said.trim() == "hello", "it says {said:?}");
        Ok(())
    })
}

fn connect(address: IpAddr, port: u16) -> [&'static str; 3] {
    let line = format!("nc -w 2 {address} {port} </dev/null");
    // A handful of lines in the life of a test.
    ["/bin/sh", "-c", line.leak()]
}

fn ask(host: SocketAddr) -> Result<String> {
    const LIMIT: Duration = Duration::from_secs(2);
    let mut stream =
        TcpStream::connect_timeout(&host, LIMIT).with_context(|| format!("connecting to {host}"))?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(said)
}

/// A server in a pod that tells everybody from which address they come.
struct Mirror {
    port: u16,
    thread: Option<JoinHandle<()>>,
    end: SocketAddr,
    pod: lab::Namespace,
}

impl Mirror {
    fn start(pod: &Pod<'_>) -> Result<Mirror> {
        let listener = pod.namespace().within(|| TcpListener::bind("0.0.0.0:0"))??;
        let port = listener.local_addr()?.port();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let Ok(peer) = stream.peer_addr() else { continue };
                if peer.ip().is_loopback() {
                    return;
                }
                // Whoever hangs up early hears nothing.
                let _ = std::io::Write::write_all(&mut &stream, peer.ip().to_string().as_bytes());
            }
        });
        let end = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), port);
        Ok(Mirror { port, thread: Some(thread), end, pod: pod.namespace().clone() })
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        let knocked = self.pod.within(|| TcpStream::connect(self.end).is_ok());
        if knocked.unwrap_or(false) {
            let _ = self.thread.take().map(JoinHandle::join);
        }
    }
}

/// Fails with what a service said last, if `outcome` is a failure.
pub fn explained<T>(outcome: Result<T>, machine: &Machine<'_>, service: &str) -> Result<T> {
    match outcome {
        Ok(value) => Ok(value),
        Err(error) => {
            let log = machine.log(service);
            let tail: Vec<&str> = log.lines().rev().take(15).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            bail!("{error:#}; {service} said last:\n{}", tail.join("\n"))
        }
    }
}
