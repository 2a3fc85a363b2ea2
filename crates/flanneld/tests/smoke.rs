//! The built daemon on the real kernel: two nodes, each in a network namespace of its own, joined by
//! a veth pair, with leases in a directory.
//!
//! ```text
//!   a: eth0 192.0.2.1 ──────── eth0 192.0.2.2 :b
//! ```

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fabric::status::{Files, Status};

#[allow(clippy::disallowed_methods, reason = "a test runs the real programs to see what they see")]
fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    Command::new(program)
}

fn ip(arguments: &str) -> String {
    let output = command("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Two joined namespaces, gone with the value.
struct Pair {
    prefix: String,
    dir: tempfile::TempDir,
}

impl Pair {
    fn new(test: &str) -> Pair {
        let prefix = format!("flanneld-{test}-{}", std::process::id());
        let pair = Pair { prefix, dir: tempfile::tempdir().unwrap() };
        let (a, b) = (pair.namespace("a"), pair.namespace("b"));
        for namespace in [&a, &b] {
            ip(&format!("netns add {namespace}"));
            ip(&format!("-n {namespace} link set lo up"));
        }
        ip(&format!("-n {a} link add eth0 type veth peer name eth0 netns {b}"));
        for (namespace, address) in [(&a, "192.0.2.1/24"), (&b, "192.0.2.2/24")] {
            ip(&format!("-n {namespace} address add {address} dev eth0"));
            ip(&format!("-n {namespace} link set eth0 up"));
        }
        std::fs::create_dir_all(pair.dir.path().join("store")).unwrap();
        let config = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
        std::fs::write(pair.dir.path().join("store/config"), config).unwrap();
        pair
    }

    fn namespace(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    fn start(&self, name: &str) -> Daemon {
        self.start_one_of(name, "store", "subnet.env")
    }

    /// Starts one of several flannels in a namespace.
    fn start_one_of(&self, name: &str, store: &str, subnet_file: &str) -> Daemon {
        let dir = self.dir.path().join(name);
        let store = self.dir.path().join(store);
        let subnet_file = dir.join(subnet_file);
        let child = command("ip")
            .args(["netns", "exec", &self.namespace(name), env!("CARGO_BIN_EXE_flanneld"), "--ip-masq"])
            .arg(format!("--store=file:{}", store.display()))
            .arg(format!("--subnet-file={}", subnet_file.display()))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Daemon { child, dir, status_file: Files::beside(&subnet_file).status }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for name in ["a", "b"] {
            let _ = command("ip").args(["netns", "delete", &self.namespace(name)]).output();
        }
    }
}

/// A running flanneld, killed with the value.
struct Daemon {
    child: Child,
    dir: PathBuf,
    status_file: PathBuf,
}

impl Daemon {
    fn status(&self) -> Option<Status> {
        serde_json::from_slice(&std::fs::read(&self.status_file).ok()?).ok()
    }

    /// Asks to end; the exit code and what was logged.
    fn end(mut self) -> (Option<i32>, String) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = self.child.wait().unwrap();
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (status.code(), log)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until `look` finds something, on however busy a machine.
fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    const PATIENCE: Duration = Duration::from_secs(60);
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn ready(daemon: &Daemon, peers: usize) -> Status {
    let pid = daemon.child.id();
    wait_for("a ready node", || {
        daemon.status().filter(|status| status.pid == pid && status.ready && status.peers.len() == peers)
    })
}

fn key(path: &Path, key: &str) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{key}=")));
    line.unwrap_or_else(|| panic!("{key} is not in {text}")).to_owned()
}

#[test]
fn nodes_find_each_other_heal_restart_and_leave_their_network_in_place() {
    let pair = Pair::new("smoke");
    let (a, b) = (pair.start("a"), pair.start("b"));
    let status = ready(&a, 1);
    ready(&b, 1);
    assert_eq!(status.peers[0].public_ipv4, Some(Ipv4Addr::new(192, 0, 2, 2)));
    let subnet = key(&a.dir.join("subnet.env"), "FLANNEL_SUBNET");
    assert_eq!(key(&a.dir.join("subnet.env"), "FLANNEL_MTU"), "1450");

    let namespace = pair.namespace("a");
    let routes = || ip(&format!("-n {namespace} route show dev flannel.1"));
    let link = || ip(&format!("-n {namespace} -o link show flannel.1"));
    let mac = |link: String| link.split("link/ether ").nth(1).unwrap()[..17].to_owned();
    // The status may tell of a peer a moment before the kernel has its route.
    let routes_before =
        wait_for("the route to the peer", || Some(routes()).filter(|it| it.contains("via 10.5.")));
    let mac_before = mac(link());

    ip(&format!("-n {namespace} link delete flannel.1"));
    wait_for("the deleted device", || {
        let shown =
            command("ip").args(["-n", &namespace, "route", "show", "dev", "flannel.1"]).output().unwrap();
        (String::from_utf8_lossy(&shown.stdout) == routes_before).then_some(())
    });
    wait_for("the repair in the status", || a.status().filter(|status| !status.repairs.is_empty()));

    let second = command("ip")
        .args(["netns", "exec", &namespace, env!("CARGO_BIN_EXE_flanneld"), "--store=file:/nowhere"])
        .arg(format!("--subnet-file={}", a.dir.join("subnet.env").display()))
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(said.contains(&format!("process {}", a.child.id())), "{said}");

    let (code, log) = a.end();
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(routes(), routes_before, "the end of the daemon changes nothing");
    let again = pair.start("a");
    ready(&again, 1);
    assert_eq!(key(&again.dir.join("subnet.env"), "FLANNEL_SUBNET"), subnet);
    assert_eq!((routes(), mac(link())), (routes_before, mac_before));
}

#[test]
fn a_moved_address_is_followed_by_the_node_and_its_peers() {
    let pair = Pair::new("move");
    let (a, b) = (pair.start("a"), pair.start("b"));
    ready(&a, 1);
    ready(&b, 1);
    let namespace = pair.namespace("a");
    ip(&format!("-n {namespace} address delete 192.0.2.1/24 dev eth0"));
    ip(&format!("-n {namespace} address add 192.0.2.11/24 dev eth0"));
    wait_for("the peer's entry", || {
        let peer = b.status()?.peers.first().cloned()?;
        (peer.public_ipv4 == Some(Ipv4Addr::new(192, 0, 2, 11))).then_some(())
    });
    wait_for("the device", || {
        // For a moment there is none: it is made anew.
        let shown =
            command("ip").args(["-n", &namespace, "-d", "link", "show", "flannel.1"]).output().unwrap();
        String::from_utf8_lossy(&shown.stdout).contains("local 192.0.2.11").then_some(())
    });
}

#[test]
fn a_node_without_configuration_lives_is_not_ready_and_says_what_it_awaits() {
    let pair = Pair::new("wait");
    std::fs::remove_file(pair.dir.path().join("store/config")).unwrap();
    let namespace = pair.namespace("a");
    let child = command("ip")
        .args(["netns", "exec", &namespace, env!("CARGO_BIN_EXE_flanneld"), "--healthz-port=8081"])
        .arg(format!("--store=file:{}", pair.dir.path().join("store").display()))
        .arg(format!("--subnet-file={}", pair.dir.path().join("a/subnet.env").display()))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let dir = pair.dir.path().join("a");
    let daemon = Daemon { child, status_file: dir.join("status.json"), dir };
    let get = |path: &str| {
        let inside = kernel::netns::open(&Path::new("/run/netns").join(&namespace)).unwrap();
        wait_for("an answer", || {
            inside
                .enter(|| {
                    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, 8081)).ok()?;
                    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
                    let mut answer = String::new();
                    stream.read_to_string(&mut answer).ok()?;
                    Some(answer)
                })
                .unwrap()
        })
    };
    assert!(get("/healthz").ends_with("flanneld is running"));
    let waiting = get("/readyz");
    assert!(waiting.contains("503") && waiting.contains("awaited: the network configuration"), "{waiting}");

    let config = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#;
    std::fs::write(pair.dir.path().join("store/config"), config).unwrap();
    ready(&daemon, 0);
    assert!(get("/readyz").ends_with("flanneld is ready"));
}

#[test]
fn a_chain_of_others_that_drops_is_told_with_a_remedy_that_works() {
    let pair = Pair::new("drop");
    let namespace = pair.namespace("a");
    let inside = |words: &str| ip(&format!("netns exec {namespace} {words}"));
    inside("nft add table inet other");
    inside("nft add chain inet other f { type filter hook forward priority 10 ; policy drop ; }");
    let told = |daemon: &Daemon| {
        let failures = daemon.status().unwrap_or_default().failures;
        failures.into_iter().find(|failure| failure.topic == "firewall")
    };
    let a = pair.start("a");
    let failure = wait_for("the finding", || told(&a));
    assert!(failure.what.contains("chain f of nftables table inet other drops"), "{}", failure.what);
    drop(a);

    let (_, commands) = failure.remedy.split_once(": ").unwrap();
    commands.split("; ").for_each(|command| drop(inside(command)));
    let a = pair.start("a");
    ready(&a, 0);
    assert_eq!(told(&a), None);
}

#[test]
fn without_dev_a_name_is_not_resolved_and_an_address_is_dialled() {
    let root = tempfile::tempdir().unwrap();
    // By another process: were it this one, a program that another test starts meanwhile would hold the copy
    // open for writing until it runs, and the kernel runs no file that is being written.
    let copied = command("cp").arg(env!("CARGO_BIN_EXE_flanneld")).arg(root.path().join("flanneld")).status();
    assert!(copied.unwrap().success());
    let endpoints = [
        ("http://etcd.test:2379", "etcd.test"),
        ("http://127.0.0.1:1", "127.0.0.1:1: Network is unreachable"),
    ];
    for (endpoint, want) in endpoints {
        let mut child = command("unshare")
            .args(["--net", "chroot"])
            .arg(root.path())
            .args(["/flanneld", "--subnet-file=/subnet.env"])
            .arg(format!("--etcd-endpoints={endpoint}"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let said = wait_for("what is wrong", || {
            if let Some(status) = child.try_wait().unwrap() {
                return Some(format!("it has ended: {status}"));
            }
            let text = std::fs::read(root.path().join("status.json")).ok()?;
            let status: Status = serde_json::from_slice(&text).ok()?;
            status.failures.into_iter().find(|failure| failure.topic == "network").map(|failure| failure.what)
        });
        let _ = child.kill();
        let _ = child.wait();
        std::fs::remove_file(root.path().join("status.json")).unwrap();
        assert!(said.contains(want), "{said}");
    }
}

#[test]
fn two_flannels_share_a_host_without_fighting() {
    let pair = Pair::new("multi");
    let store = |name: &str, network: &str, backend: &str| {
        let dir = pair.dir.path().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let config = format!(r#"{{"Network":"{network}","Backend":{{"Type":"{backend}"}}}}"#);
        std::fs::write(dir.join("config"), config).unwrap();
    };
    store("vxlan", "10.11.0.0/16", "vxlan");
    store("hostgw", "10.12.0.0/16", "host-gw");
    let namespace = pair.namespace("a");
    let inside = |words: &str| ip(&format!("netns exec {namespace} {words}"));
    inside("iptables -P FORWARD DROP");
    let start = |node: &str, name: &str| pair.start_one_of(node, name, &format!("{name}.env"));
    let (vxlan, hostgw) = (start("a", "vxlan"), start("a", "hostgw"));
    let (b_vxlan, b_hostgw) = (start("b", "vxlan"), start("b", "hostgw"));
    for daemon in [&vxlan, &hostgw, &b_vxlan, &b_hostgw] {
        ready(daemon, 1);
    }
    let route = |network: &str| {
        let routes = ip(&format!("-n {namespace} route show proto 102"));
        routes.lines().find(|line| line.starts_with(network)).map(|line| line.trim().to_owned())
    };
    // With the numbers of tables and rules: one that was made anew has another.
    let held = |network: &str, tables: &str| {
        let table = inside(&format!("nft -a list table ip {tables}"));
        let accepts = inside("iptables -S FORWARD");
        let accepts = accepts.lines().filter(|line| line.contains(network)).count();
        (route(network), table, accepts)
    };
    let of_vxlan = || held("10.11.", "flannel-ipv4-vxlan");
    let of_hostgw = || held("10.12.", "flannel-ipv4-hostgw");
    let before = wait_for("routes to the peers and rules of both", || {
        let (vxlan, hostgw) = (of_vxlan(), of_hostgw());
        let are_there = vxlan.0.is_some() && hostgw.0.is_some() && (vxlan.2, hostgw.2) == (2, 2);
        are_there.then_some((vxlan, hostgw))
    });

    // A repair of the one is a look of its at everything, and one of the other as well.
    for (network, its_own, other) in [("10.11.", &vxlan, &hostgw), ("10.12.", &hostgw, &vxlan)] {
        let others = other.status().unwrap().repairs;
        let lost = route(network).unwrap();
        ip(&format!("-n {namespace} route delete {lost} proto 102"));
        wait_for("the repair in the status", || {
            its_own.status().filter(|status| status.repairs.len() == 1 && route(network).is_some())
        });
        assert_eq!(other.status().unwrap().repairs, others);
    }
    assert_eq!((of_vxlan(), of_hostgw()), before);

    // One is killed, and what it had changes meanwhile: nobody touches it until it is back.
    drop(vxlan);
    let lost = route("10.11.").unwrap();
    ip(&format!("-n {namespace} route delete {lost} proto 102"));
    let lost = route("10.12.").unwrap();
    ip(&format!("-n {namespace} route delete {lost} proto 102"));
    wait_for("the repair in the status", || hostgw.status().filter(|status| status.repairs.len() == 2));
    assert_eq!(route("10.11."), None);
    let vxlan = start("a", "vxlan");
    ready(&vxlan, 1);
    wait_for("the route to the peer", || route("10.11."));
    assert_eq!((of_vxlan(), of_hostgw()), before);
    for daemon in [&vxlan, &hostgw, &b_vxlan, &b_hostgw] {
        assert_eq!(daemon.status().unwrap().failures, []);
    }
    assert_eq!(hostgw.status().unwrap().repairs.len(), 2);
}
