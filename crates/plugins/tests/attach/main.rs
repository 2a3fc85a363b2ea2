//! Pods come and go on one node.
//!
//! ```text
//!   namespace "host"                        namespace per pod
//!   cni0 10.244.1.1 ── veth… ═══════════════ eth0 10.244.1.N
//! ```
//!
//! The plugins run as a runtime runs them: as programs, in the host's namespace, with their variables
//! and standard input.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a story that cannot go on says so and ends")]

mod chained;
mod devices;
mod dhcp;
mod killed;
mod node;
mod ports;
mod vlans;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use fabric::LinkName;
use kernel::{address, link, netns};
use node::{Call, Node, answer};
use serde_json::json;

const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

#[test]
fn every_version_gets_a_result_of_its_own_shape() {
    let Some(node) = Node::here() else { return };
    for (at, version) in VERSIONS.iter().enumerate() {
        let (last, id) = (at + 2, format!("v{at}"));
        let mut call = node.attachment(&id, &node.pod(&id));
        call.config = node.config(version, "cbr0");
        let result = node.succeed("ADD", &call);
        assert_eq!(result["cniVersion"], **version);
        let ipv4 = match *version {
            "0.1.0" | "0.2.0" => &result["ip4"]["ip"],
            _ => &result["ips"][0]["address"],
        };
        assert_eq!(*ipv4, format!("10.244.1.{last}/24"), "{result}");
        if version.starts_with("0.3") || *version == "0.4.0" {
            assert_eq!(result["ips"][1]["version"], "6");
            assert_eq!(result["dns"], json!({}));
        }
        if at >= 4 {
            call.config["prevResult"] = result;
            node.succeed("CHECK", &call);
        }
        node.succeed("DEL", &call);
        node.assert_nothing_left("cbr0", &[&id]);
    }
    assert_eq!(node.bridge_addresses(), ["10.244.1.1/24", "fd00:10:244:1::1/64"]);
}

#[test]
fn sixty_four_pods_at_once_get_addresses_of_their_own() {
    let Some(node) = Node::here() else { return };
    let ids: Vec<String> = (0..64).map(|n| format!("p{n}")).collect();
    let calls: Vec<Call<'_>> = ids.iter().map(|id| node.attachment(id, &node.pod(id))).collect();
    let started: Vec<_> = calls.iter().map(|call| node.start("ADD", call)).collect();
    let mut addresses = BTreeSet::new();
    for child in started {
        let answer = answer(&child.wait_with_output().unwrap());
        assert!(answer.success, "{}", answer.json);
        for ip in answer.json["ips"].as_array().unwrap() {
            assert!(addresses.insert(ip["address"].to_string()), "{ip} was given twice");
        }
    }
    assert_eq!(addresses.len(), 128);
    assert_eq!(node.host_links().len(), 64);
    let deletions: Vec<_> = calls.iter().map(|call| node.start("DEL", call)).collect();
    for child in deletions {
        let answer = answer(&child.wait_with_output().unwrap());
        assert!(answer.success, "{}", answer.json);
    }
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    node.assert_nothing_left("cbr0", &ids);
}

#[test]
fn a_network_may_have_the_longest_name_that_is_a_file_s() {
    let Some(node) = Node::here() else { return };
    let name = "n".repeat(255);
    let call = Call { config: node.config("1.1.0", &name), ..node.attachment("long", &node.pod("long")) };
    node.succeed("ADD", &call);
    node.succeed("DEL", &call);
    node.assert_nothing_left(&name, &["long"]);
}

/// Not every runtime unmounts lazily (`umount2(2)`, `MNT_DETACH`), which does not ask who has it open.
#[test]
fn nobody_has_the_pods_namespace_open_once_del_has_answered() {
    let Some(node) = Node::here() else { return };
    for id in ["a", "b", "c", "d"] {
        let mut call = node.attachment(id, &node.pod(id));
        call.config["delegate"]["ipMasq"] = json!(true);
        for verb in ["ADD", "DEL"] {
            node.succeed(verb, &call);
        }
        rustix::mount::unmount(&call.netns, rustix::mount::UnmountFlags::empty()).unwrap();
    }
}

#[test]
fn del_takes_everything_away_whatever_is_left_of_the_pod() {
    let Some(node) = Node::here() else { return };
    let mut config = node.config("1.1.0", "cbr0");
    // So that there is something in the firewall too.
    config["delegate"]["ipMasq"] = json!(true);
    let attached = |id: &'static str| {
        let call = Call { config: config.clone(), ..node.attachment(id, &node.pod(id)) };
        node.succeed("ADD", &call);
        assert_eq!(node.masquerade_rules(), 2);
        call
    };

    let twice = attached("twice");
    node.succeed("DEL", &twice);
    node.succeed("DEL", &twice);
    node.assert_nothing_left("cbr0", &["twice"]);

    let gone = attached("gone");
    node.end("gone");
    node.succeed("DEL", &gone);
    node.assert_nothing_left("cbr0", &[]);

    // The namespace lives, but the runtime does not say where, or names a file that is none.
    let untold = attached("untold");
    node.succeed("DEL", &Call { netns: String::new(), ..untold });
    node.assert_nothing_left("cbr0", &["untold"]);
    let file = node.path("subnet.env").display().to_string();
    let misled = attached("misled");
    node.succeed("DEL", &Call { netns: file, ..misled });
    node.assert_nothing_left("cbr0", &["misled"]);

    // A state file cut short by a loss of power.
    let torn = attached("torn");
    fs::write(node.path("state").join("torn"), "{\"cniVersion\":\"1.1.").unwrap();
    node.succeed("DEL", &torn);
    node.assert_nothing_left("cbr0", &["torn"]);
    let lost = attached("lost");
    fs::remove_file(node.path("state").join("lost")).unwrap();
    node.succeed("DEL", &lost);
    node.assert_nothing_left("cbr0", &["lost"]);
}

#[test]
fn a_failed_del_can_be_tried_again() {
    let Some(node) = Node::here() else { return };
    let call = node.attachment("a", &node.pod("a"));
    node.succeed("ADD", &call);
    fs::rename(node.path("bin/bridge"), node.path("bin/elsewhere")).unwrap();
    let error = node.fail("DEL", &call);
    assert!(error["msg"].to_string().contains("failed to find plugin"), "{error}");
    assert_eq!(node.states(), ["a"]);
    fs::rename(node.path("bin/elsewhere"), node.path("bin/bridge")).unwrap();
    node.succeed("DEL", &call);
    node.assert_nothing_left("cbr0", &["a"]);
}

#[test]
fn interfaces_and_networks_of_one_pod_do_not_get_in_each_others_way() {
    let Some(node) = Node::here() else { return };
    let first = node.attachment("a", &node.pod("a"));
    let second = Call { ifname: "eth1", ..first.clone() };
    let mut other = node.config("1.1.0", "other");
    other["delegate"] = json!({"bridge": "cni0"});
    other["ipam"]["dataDir"] = json!(node.path("networks"));
    let third = Call { ifname: "net1", config: other, ..first.clone() };
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
        let calls = [&first, &second, &third];
        for call in calls {
            // A default route each is more than a pod takes.
            let mut call = call.clone();
            if call.ifname != "eth0" {
                call.config["delegate"] = json!({"isGateway": true});
                call.config["ipam"]["routes"] = json!([]);
                fs::write(node.path("narrow.env"), narrow_lease(call.ifname)).unwrap();
                call.config["subnetFile"] = json!(node.path("narrow.env"));
            }
            node.succeed("ADD", &call);
        }
        assert_eq!(node.states().len(), 3, "{:?}", node.states());
        assert_eq!(node.host_links().len(), 3);
        for at in order {
            node.succeed("DEL", calls[at]);
        }
        node.assert_nothing_left("cbr0", &["a"]);
        node.assert_nothing_left("other", &["a"]);
    }
}

/// The same subnet in a network of its own, so that routes of several interfaces do not collide.
fn narrow_lease(ifname: &str) -> String {
    let network = if ifname == "eth1" { "10.245.0.0/16" } else { "10.246.0.0/16" };
    format!(
        "FLANNEL_NETWORK={network}\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n"
    )
}

#[test]
fn a_pod_before_flanneld_is_told_to_come_again() {
    let Some(node) = Node::here() else { return };
    let call = node.attachment("a", &node.pod("a"));
    fs::remove_file(node.path("subnet.env")).unwrap();
    let error = node.fail("ADD", &call);
    assert_eq!(error["code"], 11);
    let expected = format!(
        "failed to load flannel 'subnet.env' file: open {}: no such file or directory. Check the flannel pod log for this node.",
        node.path("subnet.env").display()
    );
    assert_eq!(error["msg"], expected);
    assert!(error["details"].to_string().contains("flannelctl status"), "{error}");
    assert_eq!(node.fail("STATUS", &call)["code"], 50);
    node.succeed("DEL", &call);
    node.lease();
    node.succeed("STATUS", &call);
    node.succeed("ADD", &call);
    node.succeed("DEL", &call);
    node.assert_nothing_left("cbr0", &["a"]);
}

#[test]
fn a_bridge_with_another_address_is_named_with_the_remedy() {
    let Some(node) = Node::here() else { return };
    node.on_host(|socket| {
        let name: LinkName = "cni0".parse().unwrap();
        kernel::bridge::create_bridge(socket, &kernel::bridge::Bridge::named(name)).unwrap();
        let index = link::index(socket, name).unwrap().unwrap();
        address::add(socket, index, "10.99.0.1/24".parse().unwrap()).unwrap();
    });
    let mut call = node.attachment("a", &node.pod("a"));
    let error = node.fail("ADD", &call);
    assert_eq!(
        error["msg"],
        "failed to set bridge addr: \"cni0\" already has an IP address different from 10.244.1.1/24"
    );
    assert!(error["details"].to_string().contains("ip addr del 10.99.0.1/24 dev cni0"), "{error}");
    // What was begun is gone without a DEL, except for the state that makes a DEL possible.
    assert_eq!(node.host_links(), Vec::<String>::new());
    assert_eq!(node.leases("cbr0"), Vec::<String>::new());
    node.succeed("DEL", &call);
    call.config["delegate"]["forceAddress"] = json!(true);
    node.succeed("ADD", &call);
    assert_eq!(node.bridge_addresses(), ["10.244.1.1/24", "fd00:10:244:1::1/64"]);
    node.succeed("DEL", &call);
    node.assert_nothing_left("cbr0", &["a"]);
}

#[test]
fn a_bridge_that_lost_its_address_with_its_last_port_is_used_again() {
    let Some(node) = Node::here() else { return };
    node.on_host(|socket| {
        let name: LinkName = "cni0".parse().unwrap();
        kernel::bridge::create_bridge(socket, &kernel::bridge::Bridge::named(name)).unwrap();
    });
    let mut call = node.attachment("a", &node.pod("a"));
    // Layer 2 only: the bridge takes the address of its port, and loses it.
    let layer_2 = Call {
        plugin: "bridge",
        config: json!({"cniVersion": "1.1.0", "name": "cbr0", "type": "bridge"}),
        ..call.clone()
    };
    let result = node.succeed("ADD", &layer_2);
    assert!(result.get("ips").is_none());
    let mut checked = layer_2.clone();
    checked.config["prevResult"] = result;
    node.succeed("CHECK", &checked);
    node.succeed("DEL", &layer_2);
    let result = node.succeed("ADD", &call);
    let mac = result["interfaces"][0]["mac"].as_str().unwrap();
    assert_ne!(mac, "00:00:00:00:00:00");
    call.config["prevResult"] = result;
    node.succeed("CHECK", &call);
    node.succeed("DEL", &call);
    node.assert_nothing_left("cbr0", &["a"]);
}

#[test]
fn check_sees_what_was_lost() {
    let Some(node) = Node::here() else { return };
    let netns = node.pod("a");
    let mut call = node.attachment("a", &netns);
    call.config["delegate"]["ipMasq"] = json!(true);
    let result = node.succeed("ADD", &call);
    call.config["prevResult"] = result;
    node.succeed("CHECK", &call);
    let complaint = |node: &Node| node.fail("CHECK", &call)["msg"].as_str().unwrap_or_default().to_owned();

    let bridge = node.on_host(|socket| link::index(socket, "cni0".parse().unwrap()).unwrap().unwrap());
    let gateway = "10.244.1.1/24".parse().unwrap();
    node.on_host(|socket| address::remove(socket, bridge, gateway).unwrap());
    assert_eq!(complaint(&node), "\"cni0\" has lost the gateway address 10.244.1.1/24");
    node.on_host(|socket| address::add(socket, bridge, gateway).unwrap());
    node.succeed("CHECK", &call);

    let pod = netns::open(netns.as_ref()).unwrap();
    pod.enter(|| {
        let mut socket = kernel::netlink::Socket::open(kernel::netlink::Protocol::Route).unwrap();
        let eth0 = link::index(&socket, "eth0".parse().unwrap()).unwrap().unwrap();
        address::remove(&mut socket, eth0, "10.244.1.2/24".parse().unwrap()).unwrap();
    })
    .unwrap();
    assert_eq!(complaint(&node), "Failed to match addr 10.244.1.2/24 on interface eth0");
    node.succeed("DEL", &call);
    assert!(complaint(&node).contains("Failed to find address added by container a"));
}

#[test]
fn gc_takes_away_what_no_attachment_holds() {
    let Some(node) = Node::here() else { return };
    let mut config = node.config("1.1.0", "cbr0");
    config["delegate"]["ipMasq"] = json!(true);
    let calls =
        ["keep", "drop"].map(|id| Call { config: config.clone(), ..node.attachment(id, &node.pod(id)) });
    for call in &calls {
        node.succeed("ADD", call);
    }
    let mut gc = calls[0].clone();
    gc.config["cni.dev/valid-attachments"] = json!([{"containerID": "keep", "ifname": "eth0"}]);
    node.succeed("GC", &gc);
    assert_eq!(node.states(), ["keep"]);
    assert_eq!(node.leases("cbr0"), ["10.244.1.2", "fd00:10:244:1::2"]);
    assert_eq!(node.host_links().len(), 1);
    assert_eq!(node.masquerade_rules(), 2);
    node.succeed("DEL", &calls[0]);
    node.assert_nothing_left("cbr0", &["keep", "drop"]);
}

#[test]
fn a_delegate_that_is_another_program_is_executed() {
    let Some(node) = Node::here() else { return };
    let call = node.attachment("a", &node.pod("a"));
    // A copy is another file, so it has to be started; it tells by a mark that it was.
    let script = format!("#!/bin/sh\ntouch {0}/started\nexec {0}/bin/real/bridge\n", node.path("").display());
    fs::create_dir(node.path("bin/real")).unwrap();
    fs::rename(node.path("bin/bridge"), node.path("bin/real/bridge")).unwrap();
    fs::write(node.path("bin/bridge"), script).unwrap();
    fs::set_permissions(node.path("bin/bridge"), fs::Permissions::from_mode(0o755)).unwrap();
    let result = node.succeed("ADD", &call);
    assert_eq!(result["ips"][0]["address"], "10.244.1.2/24");
    fs::remove_file(node.path("started")).unwrap();
    node.succeed("DEL", &call);
    fs::remove_file(node.path("started")).unwrap();
    node.assert_nothing_left("cbr0", &["a"]);

    // What it has to say about its failure comes through as it is.
    let refuse = "#!/bin/sh\necho '{\"code\": 123, \"msg\": \"not today\", \"details\": \"d\"}'\nexit 1\n";
    fs::write(node.path("bin/bridge"), refuse).unwrap();
    assert_eq!(node.fail("ADD", &call), json!({"code": 123, "msg": "not today", "details": "d"}));
}

#[test]
fn a_pod_cannot_send_under_another_ethernet_address_if_told_so() {
    let Some(node) = Node::here() else { return };
    let mut call = node.attachment("a", &node.pod("a"));
    call.config["delegate"]["macspoofchk"] = json!(true);
    call.config["runtimeConfig"] = json!({"mac": "02:00:00:00:00:77"});
    let result = node.succeed("ADD", &call);
    assert_eq!(result["interfaces"][2]["mac"], "02:00:00:00:00:77");
    let host_end = result["interfaces"][1]["name"].as_str().unwrap();
    let expected = format!(
        "table bridge nat {{\n\
         \tchain PREROUTING {{\n\
         \t\ttype filter hook prerouting priority dstnat; policy accept;\n\
         \t\tiifname \"{host_end}\" jump cni-br-iface-a-eth0 comment \"macspoofchk-a-eth0\"\n\
         \t}}\n\n\
         \tchain cni-br-iface-a-eth0-mac {{\n\
         \t\tether saddr 02:00:00:00:00:77 return comment \"macspoofchk-a-eth0\"\n\
         \t\tdrop comment \"macspoofchk-a-eth0\"\n\
         \t}}\n\n\
         \tchain cni-br-iface-a-eth0 {{\n\
         \t\tjump cni-br-iface-a-eth0-mac comment \"macspoofchk-a-eth0\"\n\
         \t}}\n}}\n"
    );
    assert_eq!(node.spoof_table().lines().collect::<Vec<_>>(), expected.lines().collect::<Vec<_>>());
    node.succeed("DEL", &call);
    assert!(!node.spoof_table().contains("macspoofchk"), "{}", node.spoof_table());
    node.assert_nothing_left("cbr0", &["a"]);
}

#[test]
fn loopback_is_set_up_and_down() {
    let Some(node) = Node::here() else { return };
    let netns = node.pod("a");
    let call = Call {
        plugin: "loopback",
        ifname: "lo",
        config: json!({"cniVersion": "1.0.0", "name": "lo", "type": "loopback"}),
        ..node.attachment("a", &netns)
    };
    let expected = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"mac": "00:00:00:00:00:00", "name": "lo", "sandbox": netns}],
        "ips": [{"address": "127.0.0.1/8", "interface": 0}, {"address": "::1/128", "interface": 0}],
    });
    assert_eq!(node.succeed("ADD", &call), expected);
    node.succeed("CHECK", &call);
    node.succeed("DEL", &call);
    assert_eq!(node.fail("CHECK", &call)["msg"], "loopback interface is down");
    node.end("a");
    node.succeed("DEL", &call);
}
