use std::collections::{BTreeMap, BTreeSet};

use fabric::dataplane::{Change, Dataplane, Prune, changes};
use fabric::firewall::{
    Chain, ChainKind, Hook, HookPoint, Is, Match, Policy, Rule, SourcePorts, Table, Verdict, priority,
};
use fabric::ownership::{Ownership, own_tables};
use ipnet::IpNet;
use kernel::{Kernel, Linux, Scope};

use crate::namespace::{enter, run};

fn wanted(network: &str) -> Dataplane {
    let network: IpNet = network.parse().unwrap();
    let base = |name: &str, kind, point, priority, rules| Chain {
        name: name.to_owned(),
        hook: Some(Hook { kind, point, priority, policy: Policy::Accept }),
        comment: Some("a chain of flannel".to_owned()),
        rules,
    };
    let source = || Match::Source(Is::Equal, network);
    let masquerade = Rule::new(vec![source()], Verdict::Masquerade(SourcePorts::FullyRandom));
    let table = Table {
        name: own_tables()[0].clone(),
        comment: Some("rules for flannel-ipv4".to_owned()),
        chains: vec![
            base("postrtg", ChainKind::Nat, HookPoint::Postrouting, priority::SRCNAT, vec![masquerade]),
            base(
                "forward",
                ChainKind::Filter,
                HookPoint::Forward,
                priority::FILTER,
                vec![Rule::new(vec![source()], Verdict::Accept)],
            ),
        ],
    };
    Dataplane {
        tables: BTreeMap::from([(table.name.clone(), table)]),
        accepted_forwards: BTreeSet::from([network]),
        ..Dataplane::default()
    }
}

/// Looks, decides and acts once; returns what was done.
fn reconcile(linux: &mut Linux, wanted: &Dataplane) -> Vec<Change> {
    let scope = Scope { tables: own_tables().to_vec(), ..Scope::default() };
    let observed = linux.observe(&scope).unwrap();
    let changes = changes(wanted, &observed, &Ownership::default(), Prune::Yes);
    let failures = linux.apply(&changes);
    assert!(failures.is_empty(), "{failures:?}");
    changes
}

#[test]
fn whatever_happens_to_the_firewall_is_repaired_and_then_left_alone() {
    if !enter(&["nft", "iptables-nft", "iptables-legacy"]) {
        return;
    }
    let mut linux = Linux::open().unwrap();
    let pods = wanted("10.244.0.0/16");
    assert_eq!(reconcile(&mut linux, &pods).len(), 1, "no chain drops: the table only");
    assert_eq!(reconcile(&mut linux, &pods), []);
    for damage in [
        "nft flush ruleset",
        "nft delete table ip flannel-ipv4",
        "nft flush chain ip flannel-ipv4 postrtg",
        "nft insert rule ip flannel-ipv4 forward drop",
        "iptables-nft -P FORWARD DROP",
        "iptables-nft -F FORWARD",
        "iptables-nft -I FORWARD 1 -j REJECT",
        "iptables-legacy -P FORWARD DROP",
        "iptables-legacy -D FORWARD 1",
        "iptables-nft -F FORWARD; nft flush ruleset; iptables-nft -P FORWARD DROP",
    ] {
        run(damage);
        assert_ne!(reconcile(&mut linux, &pods), [], "after {damage}");
        assert_eq!(reconcile(&mut linux, &pods), [], "after {damage}");
        assert_eq!(run("nft list table ip flannel-ipv4"), pods.tables[&own_tables()[0]].to_string());
    }

    // Another network, and then none at all.
    let others = wanted("10.42.0.0/16");
    reconcile(&mut linux, &others);
    assert_eq!(reconcile(&mut linux, &others), []);
    let rules = run("iptables-nft -S FORWARD; iptables-legacy -S FORWARD");
    assert_eq!((rules.matches("10.42.0.0/16").count(), rules.matches("10.244").count()), (4, 0), "{rules}");
    reconcile(&mut linux, &Dataplane::default());
    assert_eq!(reconcile(&mut linux, &Dataplane::default()), []);
    let rules = run("iptables-nft -S FORWARD; iptables-legacy -S FORWARD; nft list ruleset");
    assert!(!rules.contains("flannel") && !rules.contains("10.42"), "{rules}");
}
