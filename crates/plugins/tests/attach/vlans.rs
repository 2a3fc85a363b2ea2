//! A bridge sorts its pods' frames by VLAN.
//!
//! ```text
//!   cni0.100 10.5.0.1 ═ port ┐
//!                           cni0 ┬ port [100] ══════════ eth0 of pod a
//!                                ├ port [200] ══════════ eth0 of pod b
//!                                └ port [1, 100 tagged] ═ eth0 of pod c, eth0.100 on it
//! ```
//!
//! What the kernel has is read by the real `bridge`. A kernel that cannot do it is skipped, but not in the
//! machine that can (`FLANNEL_VM=1`).

use std::time::{Duration, Instant};

use kernel::bridge::{self, Bridge};
use kernel::{command, link, netns};
use rustix::io::Errno;
use serde_json::{Value, json};

use crate::node::{Call, Node, possible};

/// A node whose kernel has bridges that sort by VLAN.
fn sorting_node() -> Option<Node> {
    if !possible() {
        return None;
    }
    let node = Node::new();
    let probe = Bridge { vlan_filtering: true, ..Bridge::named("probe".parse().unwrap()) };
    let made = node.on_host(|socket| {
        let made = bridge::create_bridge(socket, &probe);
        link::delete_by_name(socket, probe.name).unwrap();
        made
    });
    match made {
        Ok(()) => Some(node),
        Err(error) if error.errno() == Some(Errno::OPNOTSUPP) => {
            assert!(std::env::var_os("FLANNEL_VM").is_none_or(|vm| vm != "1"), "{error}");
            eprintln!("skipped here: this kernel's bridges have no VLAN filtering");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// A call of `bridge` without addresses.
fn layer_2<'a>(node: &Node, id: &'a str, members: Value) -> Call<'a> {
    let mut config = json!({"cniVersion": "1.1.0", "name": "net1", "type": "bridge"});
    config.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
    Call { plugin: "bridge", id, ifname: "eth0", netns: node.pod(id), config }
}

/// A call of `bridge` with an address of 10.5.0.0/24, whose gateway is the host.
fn layer_3<'a>(node: &Node, id: &'a str, members: Value) -> Call<'a> {
    let mut call = layer_2(node, id, members);
    call.config["isGateway"] = json!(true);
    call.config["ipam"] =
        json!({"type": "host-local", "dataDir": node.path("networks"), "subnet": "10.5.0.0/24"});
    call
}

/// ADD; the call then carries the result, as a runtime does it.
fn add(node: &Node, call: &mut Call<'_>) -> Value {
    let result = node.succeed("ADD", call);
    call.config["prevResult"] = result.clone();
    result
}

/// The VLANs of a device as `bridge vlan show` lists them: `100 PVID Egress Untagged`, `200`, …
fn vlans_of(node: &Node, device: &str) -> Vec<String> {
    let shown = node.on_host(|_| command::run("bridge", &["-j", "vlan", "show"], "").unwrap());
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let Some(found) = shown.as_array().unwrap().iter().find(|entry| entry["ifname"] == device) else {
        return Vec::new();
    };
    let words = |vlan: &Value| {
        let flags = vlan["flags"].as_array().into_iter().flatten().map(|flag| flag.as_str().unwrap());
        let end = vlan["vlanEnd"].as_u64().map(|end| format!("-{end}")).unwrap_or_default();
        std::iter::once(format!("{}{end}", vlan["vlan"]))
            .chain(flags.map(str::to_owned))
            .collect::<Vec<_>>()
            .join(" ")
    };
    found["vlans"].as_array().unwrap().iter().map(words).collect()
}

fn host_port(result: &Value) -> &str {
    result["interfaces"][1]["name"].as_str().unwrap()
}

/// Runs a program in a pod.
fn run(call: &Call<'_>, words: &[&str]) -> Result<String, kernel::KernelError> {
    let namespace = netns::open(call.netns.as_ref()).unwrap();
    namespace.enter(|| command::run(words[0], &words[1..], "")).unwrap()
}

fn reaches(call: &Call<'_>, to: &str) -> bool {
    run(call, &["ping", "-c", "1", "-W", "2", to]).is_ok()
}

/// Waits for an answer: a device that was just made may lose what is sent at first.
fn wait_for_answer(call: &Call<'_>, from: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !reaches(call, from) {
        assert!(Instant::now() < deadline, "{from} does not answer {}", call.id);
    }
}

#[test]
fn a_port_passes_the_vlans_of_the_configuration_and_no_others() {
    let Some(node) = sorting_node() else { return };
    let own = |id| format!("{id} PVID Egress Untagged");
    let trunk = json!([{"id": 101}, {"minID": 200, "maxID": 203}, {"minID": 203, "maxID": 204}]);
    let tagged = ["101", "200", "201", "202", "203", "204"].map(str::to_owned);
    let with = |first: Vec<String>| [first, tagged.to_vec()].concat();
    let cases = [
        ("own", json!({"vlan": 100}), vec![own(100)]),
        (
            "kept",
            json!({"vlan": 100, "preserveDefaultVlan": true}),
            vec!["1 Egress Untagged".into(), own(100)],
        ),
        ("trunk", json!({"vlanTrunk": trunk}), with(vec![own(1)])),
        ("both", json!({"vlan": 100, "vlanTrunk": trunk}), with(vec![own(100)])),
        (
            "all",
            json!({"vlan": 100, "vlanTrunk": trunk, "preserveDefaultVlan": true}),
            with(vec!["1 Egress Untagged".into(), own(100)]),
        ),
        // Its own VLAN is in the list as well: it stays the one of untagged frames.
        ("twice", json!({"vlan": 101, "vlanTrunk": [{"id": 101}]}), vec![own(101)]),
        // The bridge sorts already: a port without a wish is in the VLAN that every port starts with.
        ("none", json!({}), vec![own(1)]),
        ("empty", json!({"vlanTrunk": []}), vec![own(1)]),
    ];
    for (id, members, wanted) in cases {
        let mut call = layer_2(&node, id, members);
        let result = add(&node, &mut call);
        assert_eq!(vlans_of(&node, host_port(&result)), wanted, "{id}");
        node.succeed("CHECK", &call);
        node.succeed("DEL", &call);
        node.succeed("DEL", &call);
        assert!(!node.host_links().contains(&host_port(&result).to_owned()), "{id}");
    }
}

#[test]
fn a_list_of_no_vlans_still_makes_a_bridge_that_sorts() {
    let Some(node) = sorting_node() else { return };
    node.succeed("ADD", &layer_2(&node, "a", json!({"vlanTrunk": []})));
    let shown = node.on_host(|_| command::run("ip", &["-d", "link", "show", "cni0"], "").unwrap());
    assert!(shown.contains("vlan_filtering 1"), "{shown}");
}

#[test]
fn vlans_of_a_bridge_that_does_not_sort_are_refused_with_the_remedy() {
    let Some(node) = Node::here() else { return };
    // Made by a pod without VLANs.
    node.succeed("ADD", &layer_2(&node, "a", json!({})));
    for (id, keys) in [("vlan", json!({"vlan": 100})), ("trunk", json!({"vlanTrunk": [{"id": 42}]}))] {
        let call = layer_2(&node, id, keys);
        let error = node.fail("ADD", &call);
        let msg =
            "failed to create bridge \"cni0\": \"cni0\" already exists and does not sort frames by VLAN";
        assert_eq!(error["msg"], msg);
        assert!(error["details"].as_str().unwrap().contains("type bridge vlan_filtering 1"), "{error}");
        node.succeed("DEL", &call);
    }
    // A list of none asks for nothing.
    node.succeed("ADD", &layer_2(&node, "b", json!({"vlanTrunk": []})));
}

#[test]
fn check_sees_a_vlan_that_was_lost() {
    let Some(node) = sorting_node() else { return };
    let mut call = layer_2(&node, "a", json!({"vlan": 100, "vlanTrunk": [{"id": 200}]}));
    let result = add(&node, &mut call);
    let port = host_port(&result);
    for id in ["200", "100"] {
        node.on_host(|_| command::run("bridge", &["vlan", "del", "dev", port, "vid", id], "").unwrap());
        assert_eq!(node.fail("CHECK", &call)["msg"], format!("bridge port {port} has lost VLAN {id}"));
    }
}

#[test]
fn pods_reach_those_of_their_vlan_and_its_gateway() {
    let Some(node) = sorting_node() else { return };
    let mut first = layer_3(&node, "a", json!({"vlan": 100}));
    let result = add(&node, &mut first);
    let interfaces = result["interfaces"].as_array().unwrap();
    assert_eq!(interfaces.len(), 4, "{result}");
    assert_eq!(interfaces[3]["name"], "cni0.100");
    let shown = node.on_host(|_| command::run("ip", &["-4", "-o", "address", "show"], "").unwrap());
    assert!(shown.contains("cni0.100    inet 10.5.0.1/24"), "{shown}");
    let gateway_port: Vec<Vec<String>> = node
        .host_links()
        .iter()
        .filter(|name| name.starts_with("veth") && *name != host_port(&result))
        .map(|name| vlans_of(&node, name))
        .collect();
    assert_eq!(gateway_port, [["100 PVID Egress Untagged"]]);

    let mut second = layer_3(&node, "b", json!({"vlan": 100}));
    assert_eq!(add(&node, &mut second)["interfaces"][3], interfaces[3]);
    let mut other = layer_3(&node, "c", json!({"vlan": 200, "isGateway": false}));
    other.config["isGateway"] = json!(false);
    add(&node, &mut other);
    wait_for_answer(&first, "10.5.0.1");
    wait_for_answer(&first, "10.5.0.3");
    wait_for_answer(&second, "10.5.0.2");
    // In the same network, but in another VLAN.
    assert!(!reaches(&other, "10.5.0.2"));
    assert!(!reaches(&other, "10.5.0.1"));

    // A third takes and sends frames with the tag.
    let mut trunk = layer_2(&node, "d", json!({"vlanTrunk": [{"id": 100}]}));
    add(&node, &mut trunk);
    for words in [
        ["ip", "link", "add", "link", "eth0", "name", "eth0.100", "type", "vlan", "id", "100"].as_slice(),
        &["ip", "address", "add", "10.5.0.99/24", "dev", "eth0.100"],
        &["ip", "link", "set", "eth0", "up"],
        &["ip", "link", "set", "eth0.100", "up"],
    ] {
        run(&trunk, words).unwrap();
    }
    wait_for_answer(&trunk, "10.5.0.2");
    wait_for_answer(&trunk, "10.5.0.1");

    for call in [&first, &second, &other] {
        node.succeed("CHECK", call);
        node.succeed("DEL", call);
    }
    node.succeed("DEL", &trunk);
    assert_eq!(node.leases("net1"), Vec::<String>::new());
    // The gateway stays, as the bridge does.
    assert_eq!(node.host_links().iter().filter(|name| name.starts_with("veth")).count(), 1);
    assert!(node.host_links().contains(&"cni0.100".to_owned()));
}

#[test]
fn a_gateway_of_a_vlan_that_was_left_half_made_is_completed() {
    let Some(node) = sorting_node() else { return };
    // What a killed ADD leaves: the pair is there, its port is in no VLAN yet and its device down.
    node.on_host(|_| {
        let run = |text: &str| {
            let words: Vec<&str> = text.split(' ').collect();
            command::run(words[0], &words[1..], "").unwrap();
        };
        run("ip link add cni0 type bridge vlan_filtering 1");
        run("ip link add veth1 master cni0 up type veth peer name cni0.100");
    });
    let mut call = layer_3(&node, "a", json!({"vlan": 100}));
    add(&node, &mut call);
    assert_eq!(vlans_of(&node, "veth1"), ["100 PVID Egress Untagged"]);
    wait_for_answer(&call, "10.5.0.1");
}

#[test]
fn many_pods_at_once_share_one_gateway_of_their_vlan() {
    let Some(node) = sorting_node() else { return };
    let ids: Vec<String> = (0..8).map(|n| format!("p{n}")).collect();
    let calls: Vec<Call<'_>> = ids.iter().map(|id| layer_3(&node, id, json!({"vlan": 100}))).collect();
    let started: Vec<_> = calls.iter().map(|call| node.start("ADD", call)).collect();
    for child in started {
        let answer = crate::node::answer(&child.wait_with_output().unwrap());
        assert!(answer.success, "{}", answer.json);
    }
    for call in &calls {
        wait_for_answer(call, "10.5.0.1");
        node.succeed("DEL", call);
    }
    assert_eq!(node.host_links().iter().filter(|name| name.starts_with("veth")).count(), 1);
}

#[test]
fn a_bridge_whose_name_leaves_no_room_for_the_vlan_is_refused_with_the_remedy() {
    let Some(node) = sorting_node() else { return };
    let call = layer_3(&node, "a", json!({"vlan": 4000, "bridge": "bridgeoffifteen"}));
    let error = node.fail("ADD", &call);
    assert!(error["msg"].as_str().unwrap().contains("\"bridgeoffifteen.4000\""), "{error}");
    assert!(error["details"].as_str().unwrap().contains("shorter \"bridge\""), "{error}");
    assert_eq!(node.leases("net1"), Vec::<String>::new());
}
