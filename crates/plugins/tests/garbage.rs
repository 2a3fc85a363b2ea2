//! Whatever comes on standard input, a plugin answers: with an error object that can be read.
//!
//! Only verbs that change nothing are called, with directories that are nobody's.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "tests")]

use cni::plugin::answer;
use cni::{Environment, Verb};
use plugins::delegate::PLUGINS;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// Every member that a plugin looks at, as it should be.
fn sound(directory: &str) -> Value {
    let mut sound = json!({
        "cniVersion": "1.1.0", "name": "net", "type": "flannel",
        "subnetFile": format!("{directory}/subnet.env"), "dataDir": directory,
        "delegate": {"hairpinMode": true, "isDefaultGateway": true, "mtu": 1400},
        "bridge": "fuzz0", "isGateway": true, "isDefaultGateway": true, "forceAddress": false, "ipMasq": true,
        "ipMasqBackend": "nftables", "mtu": 1400, "hairpinMode": false, "promiscMode": false, "vlan": 100,
        "vlanTrunk": [{"minID": 1, "maxID": 5}, {"id": 7}], "preserveDefaultVlan": false, "macspoofchk": false,
        "enabledad": false, "disableContainerInterface": false, "portIsolation": false,
        "dns": {"nameservers": ["10.0.0.1"], "domain": "a", "search": ["b"], "options": ["c"]},
        "ipam": {
            "type": "host-local", "dataDir": directory, "resolvConf": "/nowhere/resolv.conf",
            "daemonSocketPath": format!("{directory}/dhcp.sock"),
            "routes": [{"dst": "10.0.0.0/8", "gw": "10.1.0.1", "mtu": 1, "advmss": 1, "priority": 1, "table": 1, "scope": 1}],
            "subnet": "10.9.0.0/24",
            "ranges": [[{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.5", "rangeEnd": "10.1.0.9", "gateway": "10.1.0.1"}]]
        },
        "args": {"cni": {"ips": ["10.1.0.7"], "mac": "02:00:00:00:00:01"}},
        "runtimeConfig": {
            "bandwidth": {"ingressRate": 8, "ingressBurst": 8}, "mac": "02:00:00:00:00:02",
            "ips": ["10.9.0.7/24"], "ipRanges": [[{"subnet": "fc00::/64"}]]
        },
        "prevResult": {
            "cniVersion": "1.1.0", "interfaces": [{"name": "fuzz0", "mac": "02:00:00:00:00:01"}],
            "ips": [{"address": "10.1.0.7/24", "gateway": "10.1.0.1", "interface": 0}],
            "routes": [{"dst": "0.0.0.0/0"}], "dns": {}
        },
        "cni.dev/valid-attachments": [{"containerID": "a", "ifname": "eth0"}]
    });
    let more = json!({
        "sysctl": {"net.core.somaxconn": "1"}, "mac": "02:00:00:00:00:03", "promisc": true, "allmulti": false,
        "txQLen": 7, "ingressRate": 8000, "ingressBurst": 8000, "egressRate": 8000, "egressBurst": 8000,
    });
    let devices = json!({
        "master": "eth9", "linkInContainer": false, "mode": "bridge", "bcqueuelen": 5, "vlanId": 7,
        "device": "eth9", "hwaddr": "02:00:00:00:00:04", "kernelpath": "/sys/devices/a", "pciBusID": "0000:00:00.0",
        "multiQueue": true, "owner": 1, "group": 2, "vrfname": "blue", "table": 70,
        "gateways": ["10.1.0.1", "fc00::1"], "addSourceHints": true,
    });
    for members in [more, devices] {
        sound.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
    }
    sound
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        "(10|300|fc00:|)[.:0-9a-f]{0,12}(/[0-9]{1,3})?".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((".{0,6}", inner), 0..4)
                .prop_map(|members| Value::from(members.into_iter().collect::<Map<String, Value>>())),
        ]
    })
}

/// Puts a value somewhere into a document, by a path of turns; places that tests must not leave stay.
fn spoil(document: &mut Value, turns: &[usize], value: Value) {
    let next = match document {
        Value::Object(members) => {
            let keys: Vec<String> = members
                .keys()
                .filter(|key| !["dataDir", "subnetFile", "name"].contains(&key.as_str()))
                .cloned()
                .collect();
            match turns.first() {
                Some(turn) if !keys.is_empty() => members.get_mut(&keys[turn % keys.len()]),
                _ => return,
            }
        }
        Value::Array(entries) if !entries.is_empty() => {
            let count = entries.len();
            turns.first().and_then(|turn| entries.get_mut(turn % count))
        }
        _ => None,
    };
    match next {
        Some(next) if turns.len() > 1 && (next.is_object() || next.is_array()) => {
            spoil(next, &turns[1..], value)
        }
        Some(next) => *next = value,
        None => {}
    }
}

fn call_all(stdin: &[u8]) {
    for plugin in PLUGINS.iter().copied() {
        for verb in [Verb::Check, Verb::Status] {
            let environment = Environment {
                command: verb.as_str().into(),
                container_id: "a".into(),
                netns: "/nowhere/netns".into(),
                ifname: "eth0".into(),
                args: "IgnoreUnknown=1".into(),
                path: "/nowhere".into(),
                netns_override: false,
            };
            if let Err(error) = answer(plugin, environment, &mut &stdin[..]) {
                let read = cni::Error::parse(error.to_json().as_bytes());
                assert_eq!(read, Ok(error));
            }
        }
    }
}

proptest! {
    #[test]
    fn bytes(stdin in proptest::collection::vec(any::<u8>(), 0..200)) {
        call_all(&stdin);
    }

    #[test]
    fn sound_configurations_with_unsound_members(
        turns in proptest::collection::vec(any::<usize>(), 1..5),
        value in any_value(),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let mut document = sound(&directory.path().display().to_string());
        spoil(&mut document, &turns, value);
        call_all(document.to_string().as_bytes());
    }

    #[test]
    fn configurations_cut_short(length in 0_usize..2400) {
        let text = sound("/nowhere/data").to_string();
        let end = (0..=length.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap();
        call_all(&text.as_bytes()[..end]);
    }
}
