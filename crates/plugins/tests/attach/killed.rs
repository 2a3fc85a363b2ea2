//! Plugins that are killed in the midst of their work.
//!
//! A hundred of them; `CNI_KILLS` says another number.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::node::{Call, Node};

/// The calls of a pod's life in order, as a runtime makes them.
const LIFE: [(&str, &str); 4] =
    [("ADD", "flannel"), ("ADD", "portmap"), ("DEL", "portmap"), ("DEL", "flannel")];

#[test]
fn a_hundred_killed_plugins_leave_nothing_that_del_or_gc_does_not_take_away() {
    let Some(node) = Node::here() else { return };
    let kills: u32 = std::env::var("CNI_KILLS").map_or(100, |number| number.parse().unwrap());
    let netns = node.pod("all");
    // Guesses of how long each call takes, made better as plugins turn out to be done, or not, when killed.
    let mut lengths = [Duration::from_millis(10); LIFE.len()];
    let mut killed = 0;
    for round in 0..kills * 10 {
        if killed == kills {
            break;
        }
        let id = format!("k{round}");
        let mut calls = ["flannel", "portmap"].map(|plugin| call(&node, plugin, &id, &netns));
        let [flannel, portmap] = &mut calls;
        let last = round as usize % LIFE.len();
        for (verb, plugin) in &LIFE[..last] {
            let result = node.succeed(verb, if *plugin == "flannel" { flannel } else { portmap });
            if (*verb, *plugin) == LIFE[0] {
                portmap.config["prevResult"] = result;
            }
        }
        let (verb, plugin) = LIFE[last];
        let mut child = node.start(verb, if plugin == "flannel" { flannel } else { portmap });
        // Not in step with which call it is.
        thread::sleep(lengths[last] * (round / 4 % 50) / 50);
        child.kill().unwrap();
        if child.wait_with_output().unwrap().status.success() {
            lengths[last] = lengths[last] * 9 / 10;
        } else {
            killed += 1;
            lengths[last] = lengths[last] * 51 / 50;
        }
        for call in calls.iter_mut().rev() {
            if round % 3 == 0 {
                call.config["cni.dev/valid-attachments"] = Value::Array(Vec::new());
                node.succeed("GC", call);
            } else {
                node.succeed("DEL", call);
            }
        }
        node.assert_nothing_left("cbr0", &["all"]);
    }
    assert_eq!(killed, kills, "plugins were done before they were killed");
}

/// A pod with rules of all kinds.
fn call<'a>(node: &Node, plugin: &'a str, id: &'a str, netns: &str) -> Call<'a> {
    let mut call = Call { plugin, ..node.attachment(id, netns) };
    if plugin == "flannel" {
        call.config["delegate"]["ipMasq"] = json!(true);
        call.config["delegate"]["macspoofchk"] = json!(true);
    } else {
        let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "udp"}]);
        call.config = json!({
            "cniVersion": "1.1.0", "name": "cbr0", "type": "portmap", "runtimeConfig": {"portMappings": ports}
        });
    }
    call
}
