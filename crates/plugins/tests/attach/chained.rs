//! What comes after bridge in a list of plugins: tuned interfaces and limited bandwidth. And addresses of
//! containers that ended without a word.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use fabric::LinkName;
use kernel::link_settings::{self, LinkSettings};
use kernel::netlink::{Protocol, Socket};
use kernel::qdisc;
use kernel::virtual_link::{self, VirtualKind, VirtualLink};
use kernel::{link, netns, sysctl};
use serde_json::{Value, json};

use crate::node::{Call, Node};

/// A pod that flannel has attached, and a plugin that comes after it.
fn chained<'a>(node: &Node, plugin: &'a str, id: &'a str, keys: Value) -> Call<'a> {
    let attachment = node.attachment(id, &node.pod(id));
    let result = node.succeed("ADD", &attachment);
    let mut config = json!({
        "cniVersion": "1.1.0", "name": "cbr0", "type": plugin, "prevResult": result,
        "dataDir": node.path("tuning"),
    });
    config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    Call { plugin, config, ..attachment }
}

fn in_pod<T>(call: &Call<'_>, work: impl FnOnce(&mut Socket) -> T) -> T {
    let namespace = netns::open(Path::new(&call.netns)).unwrap();
    namespace.enter(|| work(&mut Socket::open(Protocol::Route).unwrap())).unwrap()
}

fn settings(call: &Call<'_>) -> LinkSettings {
    in_pod(call, |socket| {
        let index = link::index(socket, "eth0".parse().unwrap()).unwrap().unwrap();
        link_settings::read(socket, index).unwrap().unwrap()
    })
}

#[test]
fn a_tuned_interface_is_as_it_was_after_del() {
    let Some(node) = Node::here() else { return };
    let keys = json!({
        "mac": "c2:11:22:33:44:55", "mtu": 1300, "promisc": true, "allmulti": true, "txQLen": 77,
        "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1", "net.ipv4.ip_local_port_range": "2000 3000"},
    });
    let call = chained(&node, "tuning", "a", keys);
    let before = settings(&call);
    let result = node.succeed("ADD", &call);
    assert_eq!(result["interfaces"][2]["mac"], "c2:11:22:33:44:55");
    assert_eq!(result["ips"], call.config["prevResult"]["ips"]);
    let tuned = LinkSettings {
        mac: Some("c2:11:22:33:44:55".parse().unwrap()),
        mtu: Some(1300),
        promiscuous: Some(true),
        all_multicast: Some(true),
        queue_length: Some(77),
    };
    assert_eq!(settings(&call), tuned);
    let arp_filter = "net/ipv4/conf/eth0/arp_filter";
    assert_eq!(in_pod(&call, |_| sysctl::read(arp_filter).unwrap().unwrap()), "1");
    let file = node.path("tuning").join("a_eth0.json");
    let kept: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(kept["mtu"], before.mtu.unwrap());

    node.succeed("CHECK", &call);
    in_pod(&call, |_| sysctl::write(arp_filter, "0").unwrap());
    let error = node.fail("CHECK", &call);
    assert!(error["msg"].as_str().unwrap().contains("arp_filter is 1, current value is 0"), "{error}");

    node.succeed("DEL", &call);
    assert_eq!(settings(&call), before);
    assert!(!file.exists());
    node.succeed("DEL", &call);

    // An interface that cannot be tuned in one respect is not tuned in the others.
    let mut half = call.clone();
    half.config["mtu"] = json!(9_999_999);
    node.fail("ADD", &half);
    assert_eq!(settings(&call), before);
    assert!(!file.exists());

    // A namespace that is gone takes its file along.
    node.succeed("ADD", &call);
    node.end("a");
    node.succeed("DEL", &call);
    assert!(!file.exists());
}

/// How long it takes to send 300 kB from one address to another.
fn transfer(listener: TcpListener, connect: impl FnOnce() -> TcpStream) -> Duration {
    const BYTES: usize = 300_000;
    let reader = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut bytes = vec![0; BYTES];
        stream.read_exact(&mut bytes).unwrap();
    });
    let mut stream = connect();
    let started = Instant::now();
    stream.write_all(&vec![7; BYTES]).unwrap();
    reader.join().unwrap();
    started.elapsed()
}

#[test]
fn a_pod_receives_and_sends_no_faster_than_its_limits() {
    let Some(node) = Node::here() else { return };
    // 1 MB/s, and 10 kB at once.
    let limits = json!({"ingressRate": 8_000_000, "ingressBurst": 80_000,
                        "egressRate": 8_000_000, "egressBurst": 80_000});
    let call = chained(&node, "bandwidth", "a", json!({"runtimeConfig": {"bandwidth": limits}}));
    let result = node.succeed("ADD", &call);
    let ifb = result["interfaces"][3]["name"].as_str().unwrap();
    assert!(node.host_links().iter().any(|name| name == ifb));
    node.succeed("CHECK", &call);

    let host = || node.on_host(|_| TcpListener::bind("10.244.1.1:0").unwrap());
    let listener = host();
    let to = listener.local_addr().unwrap();
    let sent = transfer(listener, || in_pod(&call, |_| TcpStream::connect(to).unwrap()));
    let listener = in_pod(&call, |_| TcpListener::bind("10.244.1.2:0").unwrap());
    let to = listener.local_addr().unwrap();
    let received = transfer(listener, || node.on_host(|_| TcpStream::connect(to).unwrap()));
    // Without limits it is a millisecond.
    let least = Duration::from_millis(230);
    assert!(sent > least && received > least, "sent in {sent:?}, received in {received:?}");

    // Another ADD changes nothing; a lost limit and a lost redirection are found.
    node.fail("ADD", &call);
    node.succeed("CHECK", &call);
    let veth: LinkName = result["interfaces"][1]["name"].as_str().unwrap().parse().unwrap();
    let veth = node.on_host(|socket| link::index(socket, veth).unwrap().unwrap());
    node.on_host(|socket| qdisc::remove_redirection(socket, veth).unwrap());
    assert!(node.fail("CHECK", &call)["msg"].as_str().unwrap().contains("is not redirected to"));
    node.on_host(|socket| qdisc::remove_limit(socket, veth).unwrap());
    assert_eq!(node.fail("CHECK", &call)["msg"], "Failed to find qdisc");

    // The same interface can be limited again, once it is not limited any more.
    node.succeed("DEL", &call);
    node.succeed("ADD", &call);
    node.succeed("CHECK", &call);
    node.succeed("DEL", &call);
    assert_eq!(node.on_host(|socket| qdisc::limit_of(socket, veth).unwrap()), None);
    node.succeed("DEL", &node.attachment("a", &call.netns));
    node.assert_nothing_left("cbr0", &["a"]);
}

#[test]
fn devices_of_limits_go_with_their_containers() {
    let Some(node) = Node::here() else { return };
    let limits = json!({"egressRate": 8_000_000, "egressBurst": 80_000});
    let attach = |id| {
        let call = chained(&node, "bandwidth", id, limits.clone());
        node.succeed("ADD", &call);
        call
    };
    let ifbs = || node.host_links().iter().filter(|name| name.starts_with("bwp")).count();

    let gone = attach("gone");
    node.end("gone");
    node.succeed("DEL", &gone);
    assert_eq!(ifbs(), 0);

    let (kept, lost) = (attach("kept"), attach("lost"));
    assert_eq!(ifbs(), 2);
    // An ADD was killed right after it had made its device.
    node.on_host(|socket| {
        let name = "bwp0123456789ab".parse().unwrap();
        let unfinished = VirtualLink { name, kind: VirtualKind::Ifb, lower: None, mtu: None, mac: None };
        virtual_link::create(socket, &unfinished).unwrap();
    });
    let mut collection = lost.clone();
    collection.config["cni.dev/valid-attachments"] = json!([{"containerID": "kept", "ifname": "eth0"}]);
    node.succeed("GC", &Call { config: json!({"cniVersion": "1.1.0", "name": "other"}), ..lost.clone() });
    assert_eq!(ifbs(), 2, "another network's GC");
    node.succeed("GC", &collection);
    assert_eq!(ifbs(), 1);
    node.succeed("CHECK", &kept);
    node.succeed("DEL", &kept);
    assert_eq!(ifbs(), 0);
}

#[test]
fn addresses_of_containers_that_a_crash_ended_are_taken_back() {
    let Some(node) = Node::here() else { return };
    let ipam = |id, netns: &str| Call {
        plugin: "host-local",
        config: json!({
            "cniVersion": "1.1.0", "name": "small", "type": "bridge",
            "ipam": {"type": "host-local", "dataDir": node.path("networks"),
                     "ranges": [[{"subnet": "10.9.0.0/29"}]]},
        }),
        ..node.attachment(id, netns)
    };
    // A namespace that somebody still holds open, and nobody is in, is gone as well, but keeps its number:
    // another one with it, of any test on this machine, would be taken for it.
    let mut held = Vec::new();
    let mut pod = |id| {
        let path = node.pod(id);
        held.push(netns::open(Path::new(&path)).unwrap());
        path
    };
    let ids = ["a", "b", "c", "d", "e"];
    for id in ids {
        node.succeed("ADD", &ipam(id, &pod(id)));
    }
    // All are taken, by sandboxes that live.
    let late = ipam("f", &pod("f"));
    let error = node.fail("ADD", &late);
    assert!(error["msg"].as_str().unwrap().contains("no IP addresses available in range set"), "{error}");
    assert_eq!(node.leases("small").len(), 5);

    node.end("b");
    node.end("d");
    assert_eq!(node.succeed("ADD", &late)["ips"][0]["address"], "10.9.0.3/29");
    assert_eq!(node.leases("small"), ["10.9.0.2", "10.9.0.3", "10.9.0.4", "10.9.0.6"]);
    // What is deleted late takes nothing away from the new holder.
    node.succeed("DEL", &ipam("b", ""));
    assert_eq!(node.leases("small").len(), 4);
    // A container that is started again under its old id, in a new sandbox.
    node.end("f");
    let again = ipam("f", &pod("f"));
    assert_eq!(node.succeed("ADD", &again)["ips"][0]["address"], "10.9.0.5/29");
}
