//! Pods get devices of other kinds than a bridge's port.
//!
//! ```text
//!   namespace "host"                        namespace per pod
//!   eth9 192.168.77.1 ── macvlan, ipvlan, vlan ── eth0
//!    ║ (a cable)
//!   eth8                ── host-device ────────── eth0
//! ```
//!
//! A kind that this kernel lacks is skipped, but not in the machine that has them all (`FLANNEL_VM=1`).

use std::net::IpAddr;
use std::time::{Duration, Instant};

use fabric::LinkName;
use ipnet::IpNet;
use kernel::link::{self, Link, Veth};
use kernel::netlink::{Protocol, Socket};
use kernel::netns::{self, Namespace};
use kernel::route::{self, Route};
use kernel::routing_table::{self, Entry};
use kernel::rule;
use kernel::virtual_link::{self, IpvlanMode, Lower, MacvlanMode, VirtualKind, VirtualLink};
use kernel::{address, command, loan};
use rustix::fd::AsFd as _;
use rustix::io::Errno;
use serde_json::{Value, json};

use crate::node::{Call, Node, possible};

/// A node with a cable between its devices eth9 and eth8.
fn wired() -> Option<Node> {
    let node = Node::here()?;
    node.on_host(|socket| {
        let here = netns::current().unwrap();
        let cable = Veth {
            name: name("eth9"),
            mac: None,
            mtu: None,
            master: None,
            peer_name: name("eth8"),
            peer_mac: None,
            peer_namespace: here.as_fd(),
        };
        link::create_veth(socket, &cable).unwrap();
        let eth9 = link::index(socket, name("eth9")).unwrap().unwrap();
        let eth8 = link::index(socket, name("eth8")).unwrap().unwrap();
        link::set_up(socket, eth8).unwrap();
        address::add(socket, eth9, "192.168.77.1/24".parse().unwrap()).unwrap();
        let default = Route::new("0.0.0.0/0".parse().unwrap(), Some("192.168.77.254".parse().unwrap()), eth9);
        route::add(socket, &default).unwrap();
    });
    Some(node)
}

fn name(text: &str) -> LinkName {
    text.parse().unwrap()
}

/// A configuration with addresses of host-local in 10.5.0.0/24, and of IPv6 if the pod need not wait for
/// it.
fn config(node: &Node, plugin: &str, members: Value) -> Value {
    let mut config = json!({
        "cniVersion": "1.1.0", "name": "net1", "type": plugin,
        "ipam": {
            "type": "host-local", "dataDir": node.path("networks"),
            "ranges": [[{"subnet": "10.5.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}],
        },
    });
    config.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
    config
}

fn call<'a>(node: &Node, plugin: &'a str, id: &'a str, members: Value) -> Call<'a> {
    Call { plugin, id, ifname: "eth0", netns: node.pod(id), config: config(node, plugin, members) }
}

/// ADD; the call then carries the result, as a runtime does it.
fn add(node: &Node, call: &mut Call<'_>) -> Value {
    let result = node.succeed("ADD", call);
    call.config["prevResult"] = result.clone();
    result
}

fn inside<T>(netns: &str, work: impl FnOnce(&mut Socket) -> T) -> T {
    let namespace: Namespace = netns::open(netns.as_ref()).unwrap();
    namespace.enter(|| work(&mut Socket::open(Protocol::Route).unwrap())).unwrap()
}

fn device(netns: &str, text: &str) -> Option<Link> {
    inside(netns, |socket| link::by_name(socket, name(text)).unwrap())
}

fn host_device(node: &Node, text: &str) -> Option<Link> {
    node.on_host(|socket| link::by_name(socket, name(text)).unwrap())
}

/// Waits for an answer: before the kernel looks for a neighbor by IPv6 it checks that nobody has the
/// link-local address it asks from, at the host's end too, and then gives up what it was to send.
fn reaches(netns: &str, to: &str) {
    let namespace = netns::open(netns.as_ref()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match namespace.enter(|| command::run("ping", &["-c", "1", "-W", "1", to], "")).unwrap() {
            Ok(_) => return,
            Err(error) => assert!(Instant::now() < deadline, "{to} does not answer: {error}"),
        }
    }
}

/// Neither addresses nor veth pairs are left, and the pod has nothing but `lo`.
fn assert_gone(node: &Node, call: &Call<'_>) {
    let lo = ["lo".to_owned()];
    // The kernel may still be at it in the background.
    for _ in 0..6000 {
        let left: Vec<String> = if netns::open(call.netns.as_ref()).is_ok() {
            let links = inside(&call.netns, |socket| link::list(socket).unwrap());
            links.iter().map(|link| link.name.to_string()).collect()
        } else {
            lo.to_vec()
        };
        let pairs = node.host_links().iter().filter(|name| name.starts_with("veth")).count();
        if left == lo && pairs == 0 {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(device(&call.netns, "eth0"), None);
    assert!(!node.host_links().iter().any(|name| name.starts_with("veth")), "{:?}", node.host_links());
    assert_eq!(node.leases("net1"), Vec::<String>::new());
}

/// Whether this kernel has devices of a kind; says so if not.
fn has(node: &Node, kind: VirtualKind) -> bool {
    let made = node.on_host(|socket| {
        let index = link::index(socket, name("eth9")).unwrap().unwrap();
        let stands_alone = matches!(kind, VirtualKind::Dummy | VirtualKind::Vrf(_));
        let lower = (!stands_alone).then_some(Lower { index, namespace: None });
        let probe = VirtualLink { name: name("probe"), kind, lower, mtu: None, mac: None };
        let made = virtual_link::create(socket, &probe);
        link::delete_by_name(socket, name("probe")).unwrap();
        made
    });
    match made {
        Ok(()) => true,
        Err(error) if error.errno() == Some(Errno::OPNOTSUPP) => {
            assert!(std::env::var_os("FLANNEL_VM").is_none_or(|vm| vm != "1"), "{error}");
            eprintln!("skipped here: this kernel has no {} devices", kind.name());
            false
        }
        Err(error) => panic!("{error}"),
    }
}

const MACVLAN: VirtualKind = VirtualKind::Macvlan { mode: MacvlanMode::Bridge, broadcast_queue: None };

#[test]
fn ptp_connects_a_pod_with_the_host_and_through_it_with_its_neighbors() {
    let Some(node) = Node::here() else { return };
    let ranges = json!([[{"subnet": "10.5.0.0/24"}], [{"subnet": "fd05::/64"}]]);
    let routes = json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]);
    let mut calls = ["a", "b"].map(|id| call(&node, "ptp", id, json!({"ipMasq": true, "mtu": 1400})));
    for call in &mut calls {
        call.config["ipam"]["ranges"] = ranges.clone();
        call.config["ipam"]["routes"] = routes.clone();
        let result = add(&node, call);
        assert_eq!(result["interfaces"][1]["name"], "eth0");
        assert_eq!(result["ips"][0]["interface"], 1);
        assert_eq!(result["ips"][0]["gateway"], "10.5.0.1");
        node.succeed("CHECK", call);
    }
    let [a, b] = &calls;
    assert_eq!(device(&a.netns, "eth0").unwrap().mtu, 1400);
    assert_eq!(node.masquerade_rules(), 4);
    for to in ["10.5.0.1", "10.5.0.3", "fd05::1", "fd05::3"] {
        reaches(&a.netns, to);
    }
    // The network is reached through the gateway only.
    let routes = inside(&a.netns, |socket| routing_table::list(socket).unwrap());
    let network: IpNet = "10.5.0.0/24".parse().unwrap();
    let gateways: Vec<_> =
        routes.iter().filter(|it| it.destination == network).map(|it| it.gateway).collect();
    assert_eq!(gateways, ["10.5.0.1".parse::<IpAddr>().ok()]);

    // GC takes away the pod that nobody lists.
    let mut gc = a.clone();
    gc.config["cni.dev/valid-attachments"] = json!([{"containerID": "a", "ifname": "eth0"}]);
    node.succeed("GC", &gc);
    assert_eq!(device(&b.netns, "eth0"), None);
    assert_eq!(node.leases("net1"), ["10.5.0.2", "fd05::2"]);
    assert_eq!(node.masquerade_rules(), 2);
    node.succeed("CHECK", a);

    node.on_host(|socket| {
        let entries = routing_table::list(socket).unwrap();
        let to_pod: IpNet = "10.5.0.2/32".parse().unwrap();
        let entry = entries.iter().find(|entry| entry.destination == to_pod).unwrap();
        routing_table::remove(socket, entry).unwrap();
    });
    assert_eq!(node.fail("CHECK", a)["msg"], "Expected Route 10.5.0.2/32 on the host not found");
    // The runtime does not say where the pod is.
    node.succeed("DEL", &Call { netns: String::new(), ..a.clone() });
    node.succeed("DEL", a);
    assert_gone(&node, a);
    assert_eq!(node.masquerade_rules(), 0);
}

#[test]
fn a_pod_that_cannot_be_attached_by_ptp_leaves_nothing() {
    let Some(node) = Node::here() else { return };
    let mut call = call(&node, "ptp", "a", json!({}));
    call.config["ipam"]["routes"] = json!([{"dst": "10.99.0.0/16", "gw": "172.31.0.1"}]);
    let error = node.fail("ADD", &call);
    assert!(error["msg"].as_str().unwrap().starts_with("failed to add route '10.99.0.0/16"), "{error}");
    assert_gone(&node, &call);
    call.config["ipam"] = json!({"type": "static", "addresses": [{"address": "10.5.0.9/24"}]});
    let error = node.fail("ADD", &call);
    assert_eq!(error["msg"], "IPAM plugin gave 10.5.0.9/24 without a gateway");
    call.config["ipam"] = json!({});
    assert_eq!(node.fail("ADD", &call)["msg"], "no plugin name provided");
    assert_gone(&node, &call);
}

#[test]
fn static_addresses_are_those_of_the_configuration() {
    let Some(node) = Node::here() else { return };
    let mut call = call(&node, "ptp", "a", json!({}));
    call.config["ipam"] = json!({
        "type": "static",
        "addresses": [{"address": "10.5.0.9/32", "gateway": "169.254.1.1"}],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dns": {"nameservers": ["10.0.0.53"]},
    });
    let result = add(&node, &mut call);
    assert_eq!(result["ips"][0]["address"], "10.5.0.9/32");
    assert_eq!(result["dns"]["nameservers"][0], "10.0.0.53");
    reaches(&call.netns, "169.254.1.1");
    node.succeed("CHECK", &call);
    node.succeed("STATUS", &call);
    node.succeed("DEL", &call);
    assert_gone(&node, &call);
}

#[test]
fn pods_on_one_device_reach_each_other_by_macvlan() {
    let Some(node) = wired() else { return };
    if !has(&node, MACVLAN) {
        return;
    }
    let mut a = call(&node, "macvlan", "a", json!({"mtu": 1400, "mac": "02:00:00:00:00:0a"}));
    let mut b = call(&node, "macvlan", "b", json!({"master": "eth9"}));
    let result = add(&node, &mut a);
    assert_eq!(result["interfaces"][0]["mac"], "02:00:00:00:00:0a");
    assert_eq!(result["interfaces"][0]["sandbox"], a.netns);
    add(&node, &mut b);
    assert_eq!(device(&a.netns, "eth0").unwrap().mtu, 1400);
    reaches(&a.netns, "10.5.0.3");
    for call in [&a, &b] {
        node.succeed("CHECK", call);
        node.succeed("STATUS", call);
    }
    let mut other = b.clone();
    other.config["mode"] = json!("private");
    let error = node.fail("CHECK", &other);
    assert_eq!(error["msg"], "container macvlan mode bridge does not match expected value: private");
    for call in [&a, &b] {
        node.succeed("DEL", call);
        node.succeed("DEL", call);
    }
    for call in [&a, &b] {
        assert_gone(&node, call);
    }
}

#[test]
fn an_address_that_somebody_on_the_network_has_is_refused() {
    let Some(node) = wired() else { return };
    if !has(&node, MACVLAN) {
        return;
    }
    let ipam = json!({"type": "static", "addresses": [{"address": "10.5.0.9/24"}]});
    let [first, mut second] = ["a", "b"].map(|id| {
        let mut call =
            call(&node, "macvlan", id, json!({"master": "eth9", "mac": format!("02:00:00:00:00:0{id}")}));
        call.config["ipam"] = ipam.clone();
        call
    });
    node.succeed("ADD", &first);
    let msg = "failed to add IP addr 10.5.0.9 to \"eth0\": it is in use on the network, by 02:00:00:00:00:0a";
    assert_eq!(node.fail("ADD", &second)["msg"], msg);
    assert_gone(&node, &second);
    second.config["enabledad"] = json!(false);
    node.succeed("ADD", &second);
    node.succeed("DEL", &second);
    // Once nobody has it any more.
    node.succeed("DEL", &first);
    second.config["enabledad"] = json!(true);
    node.succeed("ADD", &second);
}

#[test]
fn a_macvlan_device_may_stand_on_one_of_the_pod() {
    let Some(node) = wired() else { return };
    if !has(&node, MACVLAN) {
        return;
    }
    let mut below = call(&node, "ptp", "a", json!({}));
    add(&node, &mut below);
    let mut call = Call {
        plugin: "macvlan",
        ifname: "net1",
        config: json!({"cniVersion": "1.1.0", "name": "net2", "master": "eth0", "linkInContainer": true}),
        ..below.clone()
    };
    let result = add(&node, &mut call);
    // Layer 2 only.
    assert_eq!(result.get("ips"), None);
    let (eth0, net1) = (device(&call.netns, "eth0").unwrap(), device(&call.netns, "net1").unwrap());
    assert_eq!((net1.lower, net1.is_up()), (Some(eth0.index), true));
    node.succeed("CHECK", &call);
    node.succeed("DEL", &call);
    assert_eq!(device(&call.netns, "net1"), None);
    node.succeed("DEL", &below);
    assert_gone(&node, &below);
}

#[test]
fn what_cannot_be_made_is_refused_and_leaves_nothing() {
    let Some(node) = wired() else { return };
    let mut call = call(&node, "macvlan", "a", json!({}));
    let mut refused = |members: Value| {
        call.config = config(&node, "macvlan", members);
        let error = node.fail("ADD", &call);
        assert_gone(&node, &call);
        error["msg"].as_str().unwrap().to_owned()
    };
    assert_eq!(
        refused(json!({"master": "eth9", "mtu": 1501})),
        "invalid MTU 1501, must be [0, master MTU(1500)]"
    );
    assert_eq!(refused(json!({"master": "nope"})), "failed to lookup master \"nope\": Link not found");
    assert_eq!(refused(json!({"mode": "x"})), "unknown macvlan mode: \"x\"");
    call.config = config(&node, "macvlan", json!({"master": "nope"}));
    assert_eq!(node.fail("STATUS", &call)["code"], 50);
    if has(&node, MACVLAN) {
        call.config = config(&node, "macvlan", json!({"master": "eth9"}));
        call.config["ipam"]["ranges"] = json!([[{"subnet": "10.5.0.0/30", "rangeStart": "10.5.0.1"}]]);
        call.config["ipam"]["routes"] = json!([{"dst": "10.99.0.0/16", "gw": "172.31.0.1"}]);
        let error = node.fail("ADD", &call);
        assert!(error["msg"].as_str().unwrap().contains("10.99.0.0/16"), "{error}");
        assert_gone(&node, &call);
    }
}

#[test]
fn a_kind_that_the_kernel_lacks_is_named_with_the_remedy() {
    let Some(node) = wired() else { return };
    let kinds = [
        ("ipvlan", VirtualKind::Ipvlan(IpvlanMode::L2), "CONFIG_IPVLAN"),
        ("vlan", VirtualKind::Vlan(7), "CONFIG_VLAN_8021Q"),
        ("dummy", VirtualKind::Dummy, "CONFIG_DUMMY"),
    ];
    for (plugin, kind, option) in kinds {
        let mut call = call(&node, plugin, plugin, json!({"master": "eth9", "vlanId": 7}));
        // The machine that has them all shows that they work; here they either do, or say why not.
        let answer = node.call("ADD", &call);
        if answer.success {
            call.config["prevResult"] = answer.json;
            assert_eq!(device(&call.netns, "eth0").unwrap().kind.name(), kind.name());
            node.succeed("CHECK", &call);
        } else {
            let (msg, details) = (answer.json["msg"].to_string(), answer.json["details"].to_string());
            assert!(msg.contains(&format!("failed to create {plugin}: ")), "{msg}");
            assert!(details.contains(option) && details.contains("modprobe"), "{details}");
        }
        node.succeed("DEL", &call);
        assert_gone(&node, &call);
    }
}

#[test]
fn pods_on_one_device_reach_each_other_by_ipvlan() {
    let Some(node) = wired() else { return };
    if !has(&node, VirtualKind::Ipvlan(IpvlanMode::L2)) {
        return;
    }
    for mode in ["l2", "l3"] {
        let members = json!({"master": "eth9", "mode": mode});
        let ids = [format!("a{mode}"), format!("b{mode}")];
        let mut calls = [&ids[0], &ids[1]].map(|id| call(&node, "ipvlan", id, members.clone()));
        for call in &mut calls {
            if mode == "l3" {
                // It has no neighbors, so that a gateway is none either.
                call.config["ipam"]["routes"] = json!([]);
            }
            add(&node, call);
        }
        let other = calls[1].config["prevResult"]["ips"][0]["address"].as_str().unwrap().to_owned();
        reaches(&calls[0].netns, other.split('/').next().unwrap());
        for call in &calls {
            node.succeed("CHECK", call);
            let mut wrong = call.clone();
            wrong.config["mode"] = json!("l3s");
            assert_eq!(
                node.fail("CHECK", &wrong)["msg"],
                format!("Container IPVlan mode {mode} does not match expected value: l3s")
            );
        }
        for call in &calls {
            node.succeed("DEL", call);
        }
        for call in &calls {
            assert_gone(&node, call);
        }
    }
}

#[test]
fn pods_at_both_ends_of_a_cable_reach_each_other_in_their_vlan() {
    let Some(node) = wired() else { return };
    if !has(&node, VirtualKind::Vlan(7)) {
        return;
    }
    let mut a = call(&node, "vlan", "a", json!({"master": "eth9", "vlanId": 7, "mtu": 1400}));
    let mut b = call(&node, "vlan", "b", json!({"master": "eth8", "vlanId": 7}));
    add(&node, &mut a);
    add(&node, &mut b);
    reaches(&a.netns, "10.5.0.3");
    for call in [&a, &b] {
        node.succeed("CHECK", call);
    }
    let mut wrong = a.clone();
    wrong.config["vlanId"] = json!(8);
    assert_eq!(node.fail("CHECK", &wrong)["msg"], "Container interface eth0 has VLAN ID 7, configured is 8");
    for call in [&a, &b] {
        node.succeed("DEL", call);
    }
    for call in [&a, &b] {
        assert_gone(&node, call);
    }
}

#[test]
fn a_dummy_device_holds_addresses() {
    let Some(node) = wired() else { return };
    if !has(&node, VirtualKind::Dummy) {
        return;
    }
    let mut call = call(&node, "dummy", "a", json!({}));
    call.config["ipam"]["routes"] = json!([]);
    add(&node, &mut call);
    node.succeed("CHECK", &call);
    inside(&call.netns, |socket| {
        let index = link::index(socket, name("eth0")).unwrap().unwrap();
        link::set_down(socket, index).unwrap();
    });
    assert_eq!(node.fail("CHECK", &call)["msg"], "Interface eth0 is down");
    node.succeed("DEL", &call);
    assert_gone(&node, &call);
}

#[test]
fn a_tap_device_is_there_for_a_program() {
    if !possible() {
        return;
    }
    // Where udev runs, it is there before the module.
    if !std::path::Path::new("/dev/net/tun").exists() {
        command::run("modprobe", &["tun"], "").unwrap();
    }
    let node = Node::new();
    let members =
        json!({"mtu": 1400, "mac": "02:00:00:00:00:0a", "owner": 1234, "group": 4321, "multiQueue": true});
    let mut call = call(&node, "tap", "a", members);
    add(&node, &mut call);
    let tap = device(&call.netns, "eth0").unwrap();
    assert_eq!((tap.kind.name(), tap.mtu, tap.is_up()), ("tun", 1400, true));
    assert_eq!(tap.mac.unwrap().to_string(), "02:00:00:00:00:0a");
    let namespace = netns::open(call.netns.as_ref()).unwrap();
    let shown = namespace.enter(|| command::run("ip", &["-d", "link", "show", "eth0"], "")).unwrap().unwrap();
    assert!(shown.contains("user 1234 group 4321"), "{shown}");
    node.succeed("CHECK", &call);
    let error = node.fail("ADD", &call);
    assert!(error["details"].to_string().contains("ADD without a DEL"), "{error}");
    node.succeed("DEL", &call);
    assert_gone(&node, &call);
}

#[test]
fn a_device_on_loan_comes_back_as_it_was() {
    let Some(node) = wired() else { return };
    let mut call = call(&node, "host-device", "a", json!({"device": "eth8"}));
    call.config["ipam"]["routes"] = json!([]);
    let before = host_device(&node, "eth8").unwrap();
    add(&node, &mut call);
    assert_eq!(host_device(&node, "eth8"), None);
    assert_eq!(device(&call.netns, "eth0").unwrap().mac, before.mac);
    node.succeed("CHECK", &call);
    // It is away.
    let again = Call { id: "b", netns: node.pod("b"), ..call.clone() };
    let error = node.fail("ADD", &again);
    assert_eq!(error["msg"], "failed to find host device: Link \"eth8\" not found");
    node.succeed("DEL", &again);
    assert!(device(&call.netns, "eth0").is_some());
    node.succeed("DEL", &call);
    node.succeed("DEL", &call);
    assert_gone(&node, &call);
    let after = host_device(&node, "eth8").unwrap();
    assert_eq!(after.mac, before.mac);
    assert_eq!(node.on_host(|socket| loan::alias(socket, after.index).unwrap()), "");
}

#[test]
fn a_device_that_cannot_be_lent_stays_where_it_is_and_up() {
    let Some(node) = wired() else { return };
    let mut first = call(&node, "ptp", "a", json!({}));
    add(&node, &mut first);
    let lend = Call {
        plugin: "host-device",
        config: config(&node, "host-device", json!({"device": "eth8"})),
        ..first.clone()
    };
    let error = node.fail("ADD", &lend);
    assert_eq!(
        error["msg"],
        "failed to move link: failed to rename host device \"eth8\" to \"eth0\": file exists"
    );
    assert!(host_device(&node, "eth8").unwrap().is_up());
    // That interface is not one on loan.
    let error = node.fail("DEL", &lend);
    assert_eq!(error["msg"], "failed to find original ifname for \"eth0\" (alias is not set)");
    node.succeed("DEL", &first);
    // Moved, but no address to be had.
    let mut lend = lend;
    lend.config["ipam"]["routes"] = json!([{"dst": "10.99.0.0/16", "gw": "172.31.0.1"}]);
    node.fail("ADD", &lend);
    assert!(host_device(&node, "eth8").unwrap().is_up());
    assert_gone(&node, &first);
}

#[test]
fn a_device_on_loan_stays_in_the_pod_while_another_has_its_name() {
    let Some(node) = wired() else { return };
    let mut call = call(&node, "host-device", "a", json!({"device": "eth8"}));
    call.config["ipam"]["routes"] = json!([]);
    add(&node, &mut call);
    let rename = |from: &'static str, to: &'static str| {
        node.on_host(|socket| {
            let index = link::index(socket, name(from)).unwrap().unwrap();
            // Up, it keeps its name on kernels older than Linux 6.2.
            link::set_down(socket, index).unwrap();
            link::set_name(socket, index, name(to)).unwrap();
        });
    };
    rename("eth9", "eth8");
    let error = node.fail("DEL", &call);
    assert_eq!(error["msg"], "failed to move \"eth8\" to hostNS: a device of the host is called eth8 by now");
    assert!(device(&call.netns, "eth0").unwrap().is_up());
    rename("eth8", "eth9");
    node.succeed("DEL", &call);
    assert!(host_device(&node, "eth8").is_some());
    assert_gone(&node, &call);
}

#[test]
fn a_device_that_came_home_by_itself_gets_its_name_back() {
    let Some(node) = wired() else { return };
    let mut call = call(&node, "host-device", "a", json!({"device": "eth8"}));
    call.config["ipam"]["routes"] = json!([]);
    add(&node, &mut call);
    // What the kernel does with a hardware device when its namespace ends; a virtual one would go too.
    node.on_host(|_| {
        let host = netns::current().unwrap();
        inside(&call.netns, |socket| {
            let index = link::index(socket, name("eth0")).unwrap().unwrap();
            loan::hand_over(socket, index, host.as_fd(), name("dev7"), "eth8").unwrap();
        });
    });
    node.end("a");
    node.succeed("DEL", &call);
    assert_eq!(host_device(&node, "dev7"), None);
    assert!(host_device(&node, "eth8").is_some());
    assert_eq!(node.leases("net1"), Vec::<String>::new());
}

/// The tables that rules send addresses to.
fn diverted(netns: &str) -> Vec<(String, u32)> {
    let rules = inside(netns, |socket| rule::list(socket).unwrap());
    rules.iter().filter_map(|rule| Some((rule.source?.addr().to_string(), rule.table))).collect()
}

fn routes_of(netns: &str, table: u32) -> Vec<Entry> {
    let mut routes = inside(netns, |socket| routing_table::list(socket).unwrap());
    routes.retain(|entry| entry.table == table);
    routes
}

#[test]
fn what_comes_from_an_address_leaves_by_its_interface() {
    let Some(node) = Node::here() else { return };
    let mut first = call(&node, "ptp", "a", json!({}));
    let mut second = Call { ifname: "eth1", ..first.clone() };
    second.config["name"] = json!("net2");
    second.config["ipam"]["ranges"] = json!([[{"subnet": "10.6.0.0/24"}]]);
    second.config["ipam"]["routes"] = json!([{"dst": "10.66.0.0/16"}]);
    add(&node, &mut first);
    add(&node, &mut second);
    let chained = json!({"cniVersion": "1.1.0", "name": "net2", "type": "sbr", "prevResult": second.config["prevResult"]});
    let sbr = Call { plugin: "sbr", config: chained, ..second.clone() };
    assert_eq!(node.succeed("ADD", &sbr), second.config["prevResult"]);
    assert_eq!(diverted(&sbr.netns), [("10.6.0.2".to_owned(), 100)]);
    let ipv4 = |entry: &Entry| entry.destination.addr().is_ipv4();
    let table = routes_of(&sbr.netns, 100);
    let destinations: Vec<String> =
        table.iter().filter(|entry| ipv4(entry)).map(|entry| entry.destination.to_string()).collect();
    assert_eq!(destinations, ["0.0.0.0/0", "10.6.0.0/24", "10.6.0.1/32", "10.66.0.0/16"]);
    let eth1 = device(&sbr.netns, "eth1").unwrap().index;
    assert!(!routes_of(&sbr.netns, 254).iter().any(|entry| entry.link == Some(eth1) && ipv4(entry)));
    node.succeed("CHECK", &sbr);
    node.succeed("DEL", &sbr);
    node.succeed("DEL", &sbr);
    assert_eq!(diverted(&sbr.netns), []);
    assert_eq!(node.fail("CHECK", &sbr)["msg"], "Expected rule from 10.6.0.2 not found");

    let mut filled = sbr.clone();
    filled.config["table"] = json!(77);
    node.succeed("ADD", &filled);
    assert_eq!(diverted(&sbr.netns), [("10.6.0.2".to_owned(), 77)]);
    node.succeed("DEL", &filled);
    assert_eq!(diverted(&sbr.netns), []);
    node.succeed("DEL", &Call { netns: "/var/run/netns/no-such".to_owned(), ..filled });
    node.succeed("DEL", &second);
    node.succeed("DEL", &first);
    assert_gone(&node, &first);
}

#[test]
fn a_gateway_of_the_configuration_counts_more_than_the_earlier_plugins() {
    let Some(node) = Node::here() else { return };
    let mut first = call(&node, "ptp", "a", json!({}));
    add(&node, &mut first);
    let mut sbr = Call { plugin: "sbr", ..first.clone() };
    sbr.config["gateways"] = json!(["10.5.0.1", "10.5.0.9"]);
    assert_eq!(
        node.fail("ADD", &sbr)["msg"],
        "gateways list contains multiple IPv4 addresses: 10.5.0.1 and 10.5.0.9"
    );
    // On the link for the kernel to take it.
    inside(&first.netns, |socket| {
        let index = link::index(socket, name("eth0")).unwrap().unwrap();
        route::add(socket, &Route::new("10.5.0.9/32".parse().unwrap(), None, index)).unwrap();
    });
    sbr.config["gateways"] = json!(["10.5.0.9"]);
    node.succeed("ADD", &sbr);
    let default = routes_of(&sbr.netns, 100).into_iter().find(|entry| entry.destination.prefix_len() == 0);
    assert_eq!(default.unwrap().gateway, "10.5.0.9".parse().ok());
    node.succeed("DEL", &sbr);
    node.succeed("DEL", &first);
    assert_gone(&node, &first);
}

#[test]
fn an_interface_moves_into_a_routing_domain_with_its_routes() {
    let Some(node) = wired() else { return };
    if !has(&node, VirtualKind::Vrf(5)) {
        return;
    }
    let mut first = call(&node, "ptp", "a", json!({}));
    first.config["ipam"]["ranges"] = json!([[{"subnet": "10.5.0.0/24"}], [{"subnet": "fd05::/64"}]]);
    first.config["ipam"]["routes"] = json!([{"dst": "10.66.0.0/16"}, {"dst": "fd66::/48"}]);
    add(&node, &mut first);
    let mut vrf = Call { plugin: "vrf", ..first.clone() };
    vrf.config["vrfname"] = json!("blue");
    vrf.config["table"] = json!(70);
    assert_eq!(node.succeed("ADD", &vrf), first.config["prevResult"]);
    let table: Vec<String> =
        routes_of(&vrf.netns, 70).iter().map(|entry| entry.destination.to_string()).collect();
    for wanted in ["10.5.0.0/24", "10.66.0.0/16", "fd05::/64", "fd66::/48", "fd05::2/128"] {
        assert!(table.contains(&wanted.to_owned()), "{wanted} is missing in {table:?}");
    }
    node.succeed("CHECK", &vrf);
    let mut wrong = vrf.clone();
    wrong.config["table"] = json!(71);
    assert_eq!(node.fail("CHECK", &wrong)["msg"], "VRF blue already exist with different routing table 70");
    node.succeed("DEL", &vrf);
    assert_eq!(device(&vrf.netns, "eth0").unwrap().master, None);
    assert_eq!(device(&vrf.netns, "blue"), None);
    node.succeed("DEL", &vrf);
    node.succeed("DEL", &first);
    assert_gone(&node, &first);
}
