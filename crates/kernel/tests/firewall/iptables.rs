use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use fabric::dataplane::IpFamily;
use ipnet::IpNet;
use kernel::command::Program;
use kernel::iptables::{apply_forward, observe_forward};
use kernel::nftables::Nftables;

use crate::namespace::{enter, run, try_run};

const PROGRAMS: [&str; 5] = ["nft", "iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"];
/// Prefixes on and off byte boundaries, and a single address.
const NETWORKS: [&str; 6] =
    ["10.244.0.0/16", "10.32.0.0/12", "10.9.8.7/32", "fd00:244::/56", "fd00:8000::/33", "fd00::1/128"];

fn nets(nets: &[&str]) -> Vec<IpNet> {
    nets.iter().map(|net| net.parse().unwrap()).collect()
}

/// The program for a network in one variant of iptables.
fn program(net: &str, variant: &str) -> String {
    if net.contains(':') { format!("ip6tables-{variant}") } else { format!("iptables-{variant}") }
}

fn observed(nftables: &mut Nftables) -> BTreeMap<IpFamily, BTreeSet<IpNet>> {
    observe_forward(nftables).unwrap()
}

fn accepted(ipv4: &[&str], ipv6: &[&str]) -> BTreeMap<IpFamily, BTreeSet<IpNet>> {
    BTreeMap::from([
        (IpFamily::V4, nets(ipv4).into_iter().collect()),
        (IpFamily::V6, nets(ipv6).into_iter().collect()),
    ])
}

/// The `FORWARD` rules that a program lists, without the policy.
fn forward(program: &str) -> Vec<String> {
    let listed = run(&format!("{program} -S FORWARD"));
    listed.lines().filter(|line| line.starts_with("-A")).map(str::to_owned).collect()
}

#[test]
fn hosts_whose_forward_chains_accept_are_left_alone() {
    if !enter(&PROGRAMS) {
        return;
    }
    let mut nftables = Nftables::open().unwrap();
    assert_eq!(observed(&mut nftables), BTreeMap::new());
    apply_forward(&mut nftables, &nets(&NETWORKS), &[]).unwrap();
    assert_eq!(run("nft list ruleset"), "");
    let legacy_tables = "cat /proc/thread-self/net/ip_tables_names";
    assert!(!run(legacy_tables).contains("filter"), "looking made a table of iptables-legacy");

    run("iptables-nft -A FORWARD -i eth9 -j DROP; ip6tables-nft -P FORWARD ACCEPT");
    assert_eq!(observed(&mut nftables), BTreeMap::new());
    apply_forward(&mut nftables, &nets(&NETWORKS), &[]).unwrap();
    assert_eq!(forward("iptables-nft"), ["-A FORWARD -i eth9 -j DROP"]);
}

#[test]
fn rules_written_over_netlink_are_what_iptables_reads_checks_and_deletes() {
    if !enter(&PROGRAMS) {
        return;
    }
    let mut nftables = Nftables::open().unwrap();
    run("iptables-nft -P FORWARD DROP; ip6tables-nft -P FORWARD DROP");
    run("iptables-nft -A FORWARD -i docker0 -j ACCEPT");
    assert_eq!(observed(&mut nftables), accepted(&[], &[]));

    apply_forward(&mut nftables, &nets(&NETWORKS), &[]).unwrap();
    assert_eq!(observed(&mut nftables), accepted(&NETWORKS[..3], &NETWORKS[3..]));
    let listed = forward("iptables-nft");
    assert_eq!(listed[0], "-A FORWARD -i docker0 -j ACCEPT");
    assert_eq!(
        listed[1..3],
        [
            r#"-A FORWARD -s 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT"#,
            r#"-A FORWARD -d 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT"#,
        ]
    );

    // Once more changes nothing.
    apply_forward(&mut nftables, &nets(&NETWORKS), &[]).unwrap();
    assert_eq!(forward("iptables-nft"), listed);

    for net in NETWORKS {
        for side in ["-s", "-d"] {
            let program = program(net, "nft");
            let rule = format!("FORWARD {side} {net} -m comment --comment 'flanneld forward' -j ACCEPT");
            run(&format!("{program} -C {rule}"));
            run(&format!("{program} -L -n -v"));
            let saved = run(&format!("{program}-save"));
            assert!(saved.contains(&format!("{side} {net}")), "{saved}");
        }
    }

    // What iptables itself has rewritten is known again.
    run("iptables-nft-save | iptables-nft-restore; ip6tables-nft-save | ip6tables-nft-restore");
    assert_eq!(observed(&mut nftables), accepted(&NETWORKS[..3], &NETWORKS[3..]));
    assert_eq!(forward("iptables-nft"), listed);

    // Half of a pair is not enough, and is made whole.
    run("iptables-nft -D FORWARD -s 10.244.0.0/16 -m comment --comment 'flanneld forward' -j ACCEPT");
    assert_eq!(observed(&mut nftables), accepted(&NETWORKS[1..3], &NETWORKS[3..]));
    apply_forward(&mut nftables, &nets(&NETWORKS), &[]).unwrap();
    assert_eq!(observed(&mut nftables), accepted(&NETWORKS[..3], &NETWORKS[3..]));
    assert_eq!(forward("iptables-nft").len(), listed.len());

    for net in &NETWORKS[1..] {
        for side in ["-s", "-d"] {
            let rule = format!("FORWARD {side} {net} -m comment --comment 'flanneld forward' -j ACCEPT");
            run(&format!("{} -D {rule}", program(net, "nft")));
        }
    }
    apply_forward(&mut nftables, &[], &nets(&NETWORKS)).unwrap();
    assert_eq!(observed(&mut nftables), accepted(&[], &[]));
    assert_eq!(forward("iptables-nft"), ["-A FORWARD -i docker0 -j ACCEPT"]);
    assert!(forward("ip6tables-nft").is_empty());
}

#[test]
fn rules_of_the_administrator_are_not_taken_for_ours() {
    if !enter(&PROGRAMS) {
        return;
    }
    let mut nftables = Nftables::open().unwrap();
    run("iptables-nft -P FORWARD DROP");
    run(
        "iptables-nft -A FORWARD -s 10.244.0.0/16 -j ACCEPT; iptables-nft -A FORWARD -d 10.244.0.0/16 -j ACCEPT",
    );
    assert_eq!(observed(&mut nftables)[&IpFamily::V4], BTreeSet::new());
    apply_forward(&mut nftables, &nets(&["10.244.0.0/16"]), &[]).unwrap();
    apply_forward(&mut nftables, &[], &nets(&["10.244.0.0/16"])).unwrap();
    assert_eq!(
        forward("iptables-nft"),
        ["-A FORWARD -s 10.244.0.0/16 -j ACCEPT", "-A FORWARD -d 10.244.0.0/16 -j ACCEPT"]
    );
}

/// A host that ends `FORWARD` with a rule that rejects the rest, and where that rule came first.
fn rules_come_before_one_that_rejects_everything(variant: &str) {
    if !enter(&PROGRAMS) {
        return;
    }
    let mut nftables = Nftables::open().unwrap();
    let program = format!("iptables-{variant}");
    run(&format!("{program} -A FORWARD -p icmp -j ACCEPT"));
    run(&format!(
        "{program} -A FORWARD -m comment --comment rest -j REJECT --reject-with icmp-host-prohibited"
    ));
    let rest = "-A FORWARD -m comment --comment rest -j REJECT --reject-with icmp-host-prohibited";
    assert_eq!(observed(&mut nftables), BTreeMap::from([(IpFamily::V4, BTreeSet::new())]));
    apply_forward(&mut nftables, &nets(&["10.244.0.0/16", "fd00::/56"]), &[]).unwrap();
    let listed = forward(&program);
    assert_eq!(
        listed,
        [
            "-A FORWARD -p icmp -j ACCEPT",
            r#"-A FORWARD -s 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT"#,
            r#"-A FORWARD -d 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT"#,
            rest,
        ]
    );
    // Somebody puts another in front: ours are moved.
    run(&format!("{program} -I FORWARD 1 -j DROP"));
    assert_eq!(observed(&mut nftables)[&IpFamily::V4], BTreeSet::new());
    apply_forward(&mut nftables, &nets(&["10.244.0.0/16"]), &[]).unwrap();
    assert_eq!(observed(&mut nftables)[&IpFamily::V4], nets(&["10.244.0.0/16"]).into_iter().collect());
    let moved = forward(&program);
    assert_eq!(moved[..2], listed[1..3]);
    assert_eq!(moved[2..], ["-A FORWARD -j DROP", "-A FORWARD -p icmp -j ACCEPT", rest]);
}

#[test]
fn rules_come_before_one_that_rejects_everything_in_iptables_nft() {
    rules_come_before_one_that_rejects_everything("nft");
}

#[test]
fn rules_come_before_one_that_rejects_everything_in_iptables_legacy() {
    rules_come_before_one_that_rejects_everything("legacy");
}

#[test]
fn chains_with_a_policy_of_their_own_are_respected_and_those_that_only_reject_are_not_awaited() {
    if !enter(&PROGRAMS) {
        return;
    }
    let mut nftables = Nftables::open().unwrap();
    run("iptables-nft -P FORWARD DROP; iptables-nft -N before; iptables-nft -N reject");
    run("iptables-nft -A before -s 10.244.6.6 -j DROP; iptables-nft -A before -i eth7 -j ACCEPT");
    run("iptables-nft -A before -p udp -j DROP");
    run("iptables-nft -A reject -j LOG; iptables-nft -A reject -j REJECT");
    run("iptables-nft -A FORWARD -j before; iptables-nft -A FORWARD -j reject");
    apply_forward(&mut nftables, &nets(&["10.244.0.0/16"]), &[]).unwrap();
    let listed = forward("iptables-nft");
    assert_eq!(listed[0], "-A FORWARD -j before");
    assert!(listed[1].contains("flanneld forward") && listed[2].contains("flanneld forward"));
    assert_eq!(listed[3], "-A FORWARD -j reject");
}

#[test]
fn iptables_legacy_is_served_by_its_own_programs() {
    if !enter(&PROGRAMS) {
        return;
    }
    let mut nftables = Nftables::open().unwrap();
    run("iptables-legacy -P FORWARD DROP; ip6tables-legacy -P FORWARD DROP");
    run("iptables-legacy -A FORWARD -m comment --comment 'it'\"'\"'s \"theirs\"' -i docker0 -j ACCEPT");
    let theirs = forward("iptables-legacy");
    assert_eq!(observed(&mut nftables), accepted(&[], &[]));
    apply_forward(&mut nftables, &nets(&NETWORKS), &[]).unwrap();
    apply_forward(&mut nftables, &nets(&NETWORKS), &[]).unwrap();
    assert_eq!(observed(&mut nftables), accepted(&NETWORKS[..3], &NETWORKS[3..]));
    let listed = forward("iptables-legacy");
    assert_eq!(listed.len(), 7, "{listed:#?}");
    assert_eq!(listed[..1], theirs[..]);
    for net in NETWORKS {
        let rule = format!("FORWARD -d {net} -m comment --comment 'flanneld forward' -j ACCEPT");
        run(&format!("{} -C {rule}", program(net, "legacy")));
    }
    apply_forward(&mut nftables, &[], &nets(&NETWORKS)).unwrap();
    assert_eq!(observed(&mut nftables), accepted(&[], &[]));
    assert_eq!(forward("iptables-legacy"), theirs);
}

#[test]
fn a_network_counts_as_accepted_only_if_both_kinds_of_iptables_accept_it() {
    if !enter(&PROGRAMS) {
        return;
    }
    let mut nftables = Nftables::open().unwrap();
    let net = nets(&["10.244.0.0/16"]);
    run("iptables-nft -P FORWARD DROP");
    apply_forward(&mut nftables, &net, &[]).unwrap();
    run("iptables-legacy -P FORWARD DROP");
    assert_eq!(observed(&mut nftables)[&IpFamily::V4], BTreeSet::new());
    apply_forward(&mut nftables, &net, &[]).unwrap();
    assert_eq!(observed(&mut nftables)[&IpFamily::V4], net.iter().copied().collect());
    assert_eq!((forward("iptables-nft").len(), forward("iptables-legacy").len()), (2, 2));
}

/// The point of it all: `left`, `router` and `right` are namespaces, and the router's iptables drops.
#[test]
fn packets_pass_where_iptables_drops_by_default() {
    if !enter(&PROGRAMS) || !enter(&["ip", "ping"]) {
        return;
    }
    let tag = std::process::id();
    let (left, right) = (format!("fw-left-{tag}"), format!("fw-right-{tag}"));
    let _guard = Namespaces(vec![left.clone(), right.clone()]);
    for (name, at) in [(&left, 1), (&right, 2)] {
        run(&format!("ip netns add {name} && ip link add to{at} type veth peer name eth0 netns {name}"));
        run(&format!("ip addr add 10.244.{at}.1/24 dev to{at} && ip link set to{at} up"));
        run(&format!("ip -n {name} addr add 10.244.{at}.2/24 dev eth0 && ip -n {name} link set eth0 up"));
        run(&format!("ip -n {name} route add default via 10.244.{at}.1"));
    }
    run("sysctl -q -w net.ipv4.ip_forward=1");
    let ping = format!("ip netns exec {left} ping -q -c 1 -W 1 10.244.2.2");
    assert!(answers(&ping), "the topology does not work");
    let mut nftables = Nftables::open().unwrap();
    for drop in [
        "iptables-nft -P FORWARD DROP",
        "iptables-legacy -P FORWARD DROP",
        "iptables-nft -P FORWARD ACCEPT; iptables-nft -A FORWARD -j REJECT",
    ] {
        apply_forward(&mut nftables, &[], &nets(&["10.244.0.0/16"])).unwrap();
        run(drop);
        assert!(!try_run(&ping).0, "{drop} does not drop");
        apply_forward(&mut nftables, &nets(&["10.244.0.0/16"]), &[]).unwrap();
        assert!(answers(&ping), "dropped after {drop}:\n{}", run("iptables-save; iptables-legacy-save"));
    }
}

/// Whether there is an answer in the end: what is sent over a cable that was just plugged in may be lost.
fn answers(ping: &str) -> bool {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !try_run(ping).0 {
        if Instant::now() > deadline {
            return false;
        }
    }
    true
}

struct Namespaces(Vec<String>);

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.0 {
            try_run(&format!("ip netns delete {name}"));
        }
    }
}

#[test]
fn the_program_of_a_host_is_run_with_the_hosts_files_in_the_network_of_the_caller() {
    if !enter(&PROGRAMS) {
        return;
    }
    let host = Path::new("/proc/self/root");
    run("iptables-legacy -P FORWARD DROP");
    let save = Program::below(host, "iptables-legacy-save").unwrap();
    assert!(save.run(&["-t", "filter"], "").unwrap().contains(":FORWARD DROP"));
    assert_eq!(Program::below(host, "no-such-program"), None);
    let error = save.run(&["--no-such-option"], "").unwrap_err().to_string();
    assert!(error.contains("of the host at /proc/self/root"), "{error}");
}
