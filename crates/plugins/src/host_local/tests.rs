use std::fs;
use std::path::Path;

use cni::{Config, Environment, Verb};
use serde_json::{Value, json};

use super::*;

struct Node {
    directory: tempfile::TempDir,
}

impl Node {
    fn new() -> Node {
        Node { directory: tempfile::tempdir().unwrap() }
    }

    fn network(&self) -> std::path::PathBuf {
        self.directory.path().join("net")
    }

    fn config(&self, ranges: Value) -> Value {
        json!({
            "cniVersion": "1.1.0", "name": "net",
            "ipam": {"type": "host-local", "dataDir": self.directory.path(), "ranges": ranges}
        })
    }

    fn call(&self, verb: Verb, id: &str, args: &str, config: &Value) -> Result<Option<AddResult>, Error> {
        let environment = Environment {
            command: verb.as_str().into(),
            container_id: id.into(),
            netns: "/nowhere".into(),
            ifname: "eth0".into(),
            args: args.into(),
            path: "/nowhere".into(),
            netns_override: false,
        };
        let config = Config::parse(config.to_string().into_bytes()).unwrap();
        cni::plugin::dispatch(&HostLocal, environment, config)
    }

    fn add(&self, id: &str, config: &Value) -> Result<Vec<String>, String> {
        self.add_with(id, "", config)
    }

    fn add_with(&self, id: &str, args: &str, config: &Value) -> Result<Vec<String>, String> {
        let result = self.call(Verb::Add, id, args, config).map_err(|error| error.msg)?.unwrap();
        Ok(result.ips.iter().map(|ip| ip.address.to_string()).collect())
    }

    fn files(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.network())
            .map(|entries| entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect())
            .unwrap_or_default();
        names.sort();
        names
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn an_address_of_each_set_is_reserved_in_the_files_of_the_reference_plugin() {
    let node = Node::new();
    let config = node.config(json!([[{"subnet": "10.1.2.0/24"}], [{"subnet": "2001:db8:1::/64"}]]));
    assert_eq!(node.add("dummy", &config), Ok(vec!["10.1.2.2/24".into(), "2001:db8:1::2/64".into()]));
    assert_eq!(
        node.files(),
        ["10.1.2.2", "2001:db8:1::2", "last_reserved_ip.0", "last_reserved_ip.1", "lock"]
    );
    assert_eq!(read(&node.network().join("10.1.2.2")), "dummy\r\neth0");
    assert_eq!(read(&node.network().join("last_reserved_ip.1")), "2001:db8:1::2");
    node.call(Verb::Check, "dummy", "", &config).unwrap();
    node.call(Verb::Del, "dummy", "", &config).unwrap();
    assert_eq!(node.files(), ["last_reserved_ip.0", "last_reserved_ip.1", "lock"]);
    node.call(Verb::Del, "dummy", "", &config).unwrap();
    let error = node.call(Verb::Check, "dummy", "", &config).unwrap_err();
    assert_eq!(error.msg, "host-local: Failed to find address added by container dummy");
}

#[test]
fn an_address_given_back_rests_until_the_others_were_used() {
    let node = Node::new();
    let config = node.config(json!([[{"subnet": "10.1.2.0/29"}]]));
    assert_eq!(node.add("a", &config), Ok(vec!["10.1.2.2/29".into()]));
    node.call(Verb::Del, "a", "", &config).unwrap();
    for (id, last) in [("b", 3), ("c", 4), ("d", 5), ("e", 6), ("f", 2)] {
        assert_eq!(node.add(id, &config), Ok(vec![format!("10.1.2.{last}/29")]));
    }
    let error = node.add("g", &config).unwrap_err();
    assert_eq!(
        error,
        "failed to allocate for range 0: no IP addresses available in range set: 10.1.2.1-10.1.2.6"
    );
    let status = node.call(Verb::Status, "", "", &config).unwrap_err();
    assert_eq!(status.code, 50);
}

#[test]
fn one_attachment_gets_one_address() {
    let node = Node::new();
    let config = node.config(json!([[{"subnet": "10.1.2.0/24"}]]));
    node.add("a", &config).unwrap();
    assert_eq!(
        node.add("a", &config).unwrap_err(),
        "failed to allocate for range 0: 10.1.2.2 has been allocated to a, duplicate allocation is not allowed"
    );
}

#[test]
fn a_failing_set_gives_back_what_earlier_sets_gave() {
    let node = Node::new();
    let config = node.config(json!([[{"subnet": "10.1.2.0/24"}], [{"subnet": "10.1.3.0/30"}]]));
    node.add("a", &config).unwrap();
    node.add("b", &config).unwrap_err();
    assert!(!node.files().contains(&"10.1.2.3".to_owned()));
    let error = node.add_with("b", "IP=192.0.2.1", &node.config(json!([[{"subnet": "10.1.2.0/24"}]])));
    assert_eq!(error.unwrap_err(), "failed to allocate all requested IPs: 192.0.2.1");
    assert!(!node.files().contains(&"10.1.2.3".to_owned()));
}

#[test]
fn addresses_can_be_wished_for() {
    let node = Node::new();
    let mut config = node.config(json!([[{"subnet": "10.1.2.0/24"}], [{"subnet": "fc00::/64"}]]));
    config["args"] = json!({"cni": {"ips": ["fc00::7/64"]}});
    let ips = node.add_with("a", "IgnoreUnknown=1;IP=10.1.2.50", &config);
    assert_eq!(ips, Ok(vec!["10.1.2.50/24".into(), "fc00::7/64".into()]));
    assert_eq!(
        node.add_with("b", "IP=10.1.2.50", &config).unwrap_err(),
        "failed to allocate for range 0: requested IP address 10.1.2.50 is not available in range set 10.1.2.1-10.1.2.254"
    );
    assert_eq!(
        node.add_with("b", "IP=10.1.2.1", &config).unwrap_err(),
        "failed to allocate for range 0: requested ip 10.1.2.1 is subnet's gateway"
    );
    config["runtimeConfig"] = json!({"ips": ["10.1.2.60"], "ipRanges": [[{"subnet": "10.9.0.0/24"}]]});
    config["args"] = Value::Null;
    assert_eq!(
        node.add("c", &config),
        Ok(vec!["10.9.0.2/24".into(), "10.1.2.60/24".into(), "fc00::2/64".into()])
    );
}

#[test]
fn a_lease_cut_short_by_a_loss_of_power_blocks_nothing() {
    let node = Node::new();
    let config = node.config(json!([[{"subnet": "10.1.2.0/30"}]]));
    fs::create_dir_all(node.network()).unwrap();
    for torn in ["", "\0\0\0\0"] {
        fs::write(node.network().join("10.1.2.2"), torn).unwrap();
        assert_eq!(node.add("a", &config), Ok(vec!["10.1.2.2/30".into()]));
        node.call(Verb::Del, "a", "", &config).unwrap();
    }
    fs::write(node.network().join(".10.1.2.2.unfinished"), "a").unwrap();
    node.add("b", &config).unwrap();
    assert_eq!(node.files(), ["10.1.2.2", "last_reserved_ip.0", "lock"]);
}

#[test]
fn leases_of_old_versions_without_an_interface_are_given_back() {
    let node = Node::new();
    let config = node.config(json!([[{"subnet": "10.1.2.0/24"}]]));
    fs::create_dir_all(node.network()).unwrap();
    fs::write(node.network().join("10.1.2.9"), "old").unwrap();
    node.call(Verb::Check, "old", "", &config).unwrap();
    node.call(Verb::Del, "old", "", &config).unwrap();
    assert_eq!(node.files(), ["lock"]);
}

#[test]
fn gc_gives_back_what_no_attachment_holds() {
    let node = Node::new();
    let mut config = node.config(json!([[{"subnet": "10.1.2.0/24"}]]));
    for id in ["a", "b", "c"] {
        node.add(id, &config).unwrap();
    }
    fs::write(node.network().join("10.1.2.9"), "old").unwrap();
    config["cni.dev/valid-attachments"] =
        json!([{"containerID": "b", "ifname": "eth0"}, {"containerID": "old", "ifname": "eth0"}]);
    node.call(Verb::Gc, "", "", &config).unwrap();
    assert_eq!(node.files(), ["10.1.2.3", "10.1.2.9", "last_reserved_ip.0", "lock"]);
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused() {
    let node = Node::new();
    let refused = |config: &Value| node.add("a", config).unwrap_err();
    assert_eq!(refused(&json!({"name": "net"})), "IPAM config missing 'ipam' key");
    assert_eq!(refused(&node.config(json!([]))), "no IP ranges specified");
    assert_eq!(refused(&node.config(json!([[]]))), "invalid range set 0: empty range set");
    assert_eq!(
        refused(&node.config(json!([[{"subnet": "10.1.0.0/16"}], [{"subnet": "10.1.2.0/24"}]]))),
        "range set 0 overlaps with 1"
    );
    let mut old = node.config(json!([[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.1.2.0/24"}]]));
    old["cniVersion"] = json!("0.2.0");
    assert_eq!(refused(&old), "CNI version 0.2.0 does not support more than 1 address per family");
    assert_eq!(
        refused(&node.config(json!([[{"subnet": 7}]]))),
        "\"ipam.ranges[0][0].subnet\" must be a string, found 7"
    );
    // Giving back works all the same.
    assert!(node.call(Verb::Del, "a", "", &node.config(json!([[{"subnet": 7}]]))).is_ok());
}

/// Notes on a lease what is noted on one from before the last reboot. False where the file system cannot.
fn age(lease: &Path) -> bool {
    let note = b"00000000-0000-4000-8000-000000000000 4 4026532000 /run/netns/gone";
    rustix::fs::setxattr(lease, "user.flannel.sandbox", note, rustix::fs::XattrFlags::empty()).is_ok()
}

#[test]
fn what_a_reboot_left_is_taken_back_when_it_is_missed() {
    let node = Node::new();
    let config = node.config(json!([[{"subnet": "10.1.2.0/29"}]]));
    for id in ["a", "b", "c", "d", "e"] {
        node.add(id, &config).unwrap();
    }
    let lease = |last: u8| node.network().join(format!("10.1.2.{last}"));
    if !(age(&lease(3)) && age(&lease(4)) && age(&lease(5))) {
        return;
    }
    // A runtime that starts the same container again after the reboot.
    assert_eq!(node.add("b", &config), Ok(vec!["10.1.2.3/29".into()]));
    assert!(!lease(4).exists() && !lease(5).exists(), "all of them were taken back at once");
    // Nothing is known about the sandboxes of these, so they stay.
    assert_eq!(read(&lease(2)), "a\r\neth0");
    assert_eq!(read(&lease(6)), "e\r\neth0");
    // What is wished for again, and what is reported.
    assert!(age(&lease(6)));
    assert_eq!(node.add_with("f", "IP=10.1.2.6", &config), Ok(vec!["10.1.2.6/29".into()]));
    node.add("g", &config).unwrap();
    node.add("h", &config).unwrap();
    assert_eq!(node.call(Verb::Status, "", "", &config).unwrap_err().code, 50);
    assert!(age(&lease(2)));
    node.call(Verb::Status, "", "", &config).unwrap();
}

#[test]
fn a_lease_whose_sandbox_lives_is_never_taken_back() {
    let node = Node::new();
    let config = node.config(json!([[{"subnet": "10.1.2.0/30"}]]));
    let environment = Environment {
        command: "ADD".into(),
        container_id: "a".into(),
        netns: "/proc/self/ns/net".into(),
        ifname: "eth0".into(),
        path: "/nowhere".into(),
        netns_override: true,
        ..Environment::default()
    };
    let parsed = Config::parse(config.to_string().into_bytes()).unwrap();
    cni::plugin::dispatch(&HostLocal, environment, parsed).unwrap();
    assert!(node.add("b", &config).unwrap_err().contains("no IP addresses available"));
    assert_eq!(read(&node.network().join("10.1.2.2")), "a\r\neth0");
}
