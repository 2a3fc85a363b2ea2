//! Pods on a network whose addresses a DHCP server gives out.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::Child;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use fabric::LinkName;
use kernel::{address, link};
use serde_json::json;

use crate::node::{Call, Node};

/// How long a lease lasts that is prolonged: half of it is what a busy machine may be late by.
const SHORT: u32 = 12;
/// How long the daemon tries to get an address: longer than that, so that it would get one that was not
/// prolonged.
const PATIENCE: &str = "13s";

/// A program that ends with its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server on the bridge with one address to give.
fn server(node: &Node, lifetime: u32) -> Running {
    let file = |name: &str| node.path(name).display().to_string();
    let leases = file(&format!("udhcpd-{lifetime}.leases"));
    fs::write(&leases, "").unwrap();
    let config = format!(
        "start 10.7.0.10\nend 10.7.0.10\ninterface cni0\nmin_lease 1\nlease_file {leases}\npidfile {}\n\
         opt lease {lifetime}\nopt subnet 255.255.255.0\nopt router 10.7.0.1\n",
        file("udhcpd.pid")
    );
    fs::write(node.path("udhcpd.conf"), config).unwrap();
    Running(node.spawn("busybox", &["udhcpd", "-f", "-a", "20", &file("udhcpd.conf")]))
}

/// The daemon of the plugin, once it listens, and the lines that it says from then on.
fn daemon(node: &Node) -> (Running, Receiver<String>) {
    let [socket, pidfile, program] =
        ["dhcp.sock", "dhcp.pid", "bin/dhcp"].map(|name| node.path(name).display().to_string());
    let words = ["daemon", "-socketpath", &socket, "-resendtimeout", PATIENCE, "-pidfile", &pidfile];
    let mut child = node.spawn(&program, &words);
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let (says, said) = mpsc::channel();
    thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| says.send(line)));
    wait_for(&said, "listening");
    (Running(child), said)
}

/// Waits for a line that says so.
fn wait_for(said: &Receiver<String>, text: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut others = Vec::new();
    loop {
        let rest = deadline.saturating_duration_since(Instant::now());
        match said.recv_timeout(rest) {
            Ok(line) if line.contains(text) => return,
            Ok(line) => others.push(line),
            Err(error) => panic!("no {text:?} of the daemon, but {others:#?}: {error}"),
        }
    }
}

#[test]
fn leases_are_kept_for_as_long_as_their_pods_live() {
    let Some(node) = Node::here() else { return };
    node.on_host(|socket| {
        let name: LinkName = "cni0".parse().unwrap();
        kernel::bridge::create_bridge(socket, &kernel::bridge::Bridge::named(name)).unwrap();
        let index = link::index(socket, name).unwrap().unwrap();
        address::add(socket, index, "10.7.0.1/24".parse().unwrap()).unwrap();
        link::set_up(socket, index).unwrap();
    });
    let attach = |id: &'static str| Call {
        plugin: "bridge",
        config: json!({
            "cniVersion": "1.1.0", "name": "lan", "type": "bridge", "bridge": "cni0",
            "ipam": {"type": "dhcp", "daemonSocketPath": node.path("dhcp.sock"), "priority": 50,
                     "provide": [{"option": "host-name", "value": "pod"}]},
        }),
        ..node.attachment(id, &node.pod(id))
    };

    let nobody = format!("no DHCP server gave an address within {PATIENCE}");

    // No daemon.
    let mut first = attach("a");
    let error = node.fail("ADD", &first);
    assert!(error["msg"].to_string().contains("error dialing DHCP daemon"), "{error}");
    assert!(error["details"].to_string().contains("flannel-cni dhcp daemon"), "{error}");

    // A lease that is prolonged, by a server that would have given the address to another one by then.
    let (mut running, said) = daemon(&node);
    let short = server(&node, SHORT);
    let result = node.succeed("ADD", &first);
    assert_eq!(result["ips"][0], json!({"address": "10.7.0.10/24", "gateway": "10.7.0.1", "interface": 2}));
    assert_eq!(result["routes"], json!([{"dst": "0.0.0.0/0", "gw": "10.7.0.1", "priority": 50}]));
    first.config["prevResult"] = result;
    node.succeed("STATUS", &first);
    for _ in 0..2 {
        wait_for(&said, "10.7.0.10 leased from 10.7.0.1");
    }
    node.succeed("CHECK", &first);
    let second = attach("b");
    let error = node.fail("ADD", &second);
    assert!(error["msg"].to_string().contains(&nobody), "{error}");
    node.succeed("DEL", &second);
    node.succeed("DEL", &first);
    wait_for(&said, "10.7.0.10 was given back");
    drop(short);

    // A lease that is longer than this test, and only free because it was given back.
    let long = server(&node, 3600);
    for id in ["c", "d"] {
        let call = attach(id);
        assert_eq!(node.succeed("ADD", &call)["ips"][0]["address"], "10.7.0.10/24");
        node.succeed("DEL", &call);
        node.succeed("DEL", &call);
    }
    drop(long);

    // No server.
    let started = Instant::now();
    let last = attach("e");
    let error = node.fail("ADD", &last);
    assert!(error["msg"].to_string().contains(&nobody), "{error}");
    assert!(started.elapsed() < Duration::from_secs(60));

    let pid = rustix::process::Pid::from_child(&running.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(running.0.wait().unwrap().success());
    assert!(!node.path("dhcp.sock").exists() && !node.path("dhcp.pid").exists());
    node.assert_nothing_left("lan", &["a", "b", "c", "d", "e"]);
}
