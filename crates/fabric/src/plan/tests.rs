use super::*;
use crate::dataplane::{Change, MAIN_TABLE};
use crate::fixture::{self, HOST_GW, VXLAN, bare, intent, lease, leases, with_ipv6};
use crate::host::RouteStyle;

/// A plan as the commands that make it, the way `flannelctl plan` shows it.
fn text(intent: &Intent, leases: &LeaseSet) -> String {
    let changes = Change::all_of(&intent.plan(leases).dataplane);
    changes.iter().map(|change| format!("{change}\n")).collect()
}

/// Holds a plan against a file of `plan/tests/`; `UPDATE_GOLDEN=1` writes the file.
fn golden(name: &str, intent: &Intent) {
    let text = text(intent, &leases(intent, 1..=3));
    let path = format!("{}/src/plan/tests/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    assert!(text == golden, "{path} differs from\n{text}");
}

#[test]
fn vxlan_for_ipv4() {
    golden("vxlan_ipv4", &intent(VXLAN));
}

#[test]
fn vxlan_for_ipv6() {
    golden("vxlan_ipv6", &intent(&with_ipv6(false, r#"{"Type":"vxlan"}"#)));
}

#[test]
fn vxlan_for_both_families() {
    let backend = r#"{"Type":"vxlan","VNI":42,"Port":4789,"GBP":true,"Learning":true}"#;
    golden("vxlan_dual", &intent(&with_ipv6(true, backend)));
}

#[test]
fn vxlan_with_next_hop_objects() {
    let mut intent = intent(&with_ipv6(true, r#"{"Type":"vxlan"}"#));
    intent.host.route_style = RouteStyle::NextHopObjects;
    golden("vxlan_next_hop_objects", &intent);
}

#[test]
fn vxlan_with_direct_routing() {
    let mut intent = intent(&with_ipv6(true, r#"{"Type":"vxlan","DirectRouting":true}"#));
    intent.host.route_style = RouteStyle::NextHopObjects;
    golden("vxlan_direct_routing", &intent);
}

#[test]
fn host_gw_for_both_families() {
    let mut intent = intent(&with_ipv6(true, r#"{"Type":"host-gw"}"#));
    intent.options.blackhole_route = true;
    intent.options.masquerade.source_ports = SourcePorts::Kept;
    intent.options.masquerade.except = ["10.0.0.0/8", "192.0.2.7/32", "fd00:99::/32", "0.0.0.0/0"]
        .iter()
        .map(|net| net.parse().unwrap())
        .collect();
    golden("host_gw_dual", &intent);
}

#[test]
fn host_gw_routes_to_one_node_share_its_next_hop_object() {
    let mut intent = intent(HOST_GW);
    intent.host.route_style = RouteStyle::NextHopObjects;
    let mut second = lease(&intent, 3);
    second.attributes = lease(&intent, 2).attributes;
    let plan = intent.plan(&[lease(&intent, 2), second].into_iter().collect());
    assert_eq!(plan.dataplane.next_hops.len(), 1);
    assert_eq!(plan.dataplane.routes.len(), 2);
}

#[test]
fn two_gateways_never_share_a_next_hop_object() {
    let mut intent = intent(r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan","DirectRouting":true}}"#);
    intent.host.route_style = RouteStyle::NextHopObjects;
    intent.host.own.ipv4 = None;
    // Node 2 has the very address 10.7.0.0 that names the tunnel to node 3's pods.
    let mut direct = lease(&intent, 2);
    direct.attributes.public_ipv4 = Some("10.7.0.0".parse().unwrap());
    intent.host.underlay[1].destination = "10.7.0.0/32".parse().unwrap();
    let mut tunnel = lease(&intent, 3);
    tunnel.subnets.ipv4 = Some("10.7.0.0/24".parse().unwrap());
    let plan = intent.plan(&[direct, tunnel].into_iter().collect());
    assert!(plan.peers.values().all(Result::is_ok), "{:?}", plan.peers);
    let targets: Vec<Target> = plan.dataplane.routes.iter().map(|route| route.target).collect();
    assert!(
        matches!(
            targets[..],
            [Target::Via(_), Target::NextHopObject(_)] | [Target::NextHopObject(_), Target::Via(_)]
        ),
        "{targets:?}"
    );
}

#[test]
fn the_younger_of_two_claimants_is_left_out_by_name() {
    let intent = intent(VXLAN);
    let older = lease(&intent, 2);
    let mut younger = lease(&intent, 3);
    younger.subnets.ipv4 = Some("10.244.2.0/25".parse().unwrap());
    let plan = intent.plan(&[older.clone(), younger.clone()].into_iter().collect());
    assert_eq!(plan.peers[&older.subnets], Ok(Path::Tunnel));
    assert_eq!(
        plan.peers[&younger.subnets],
        Err("10.244.2.0/24 is leased to the node at 192.168.0.2, which came first; the later claimant must give way \
             (restart flanneld there)"
            .to_owned())
    );
    assert_eq!(plan.dataplane.routes.len(), 1);
}

#[test]
fn a_lease_that_is_refused_takes_nothing_from_a_good_one() {
    let intent = intent(&with_ipv6(true, r#"{"Type":"vxlan"}"#));
    let mut everything = bare("10.244.0.0-17&::-0", 0);
    everything.attributes = lease(&intent, 9).attributes;
    let set = [everything.clone(), bare("10.244.2.0-25", 0), lease(&intent, 2)].into_iter().collect();
    let plan = intent.plan(&set);
    assert_eq!(plan.peers[&lease(&intent, 2).subnets], Ok(Path::Tunnel), "{:?}", plan.peers);
    assert!(plan.peers[&everything.subnets].is_err());
}

#[test]
fn the_own_lease_is_no_peer() {
    let intent = intent(VXLAN);
    let plan = intent.plan(&leases(&intent, 1..=2));
    assert_eq!(plan.peers.keys().map(Subnets::key).collect::<Vec<_>>(), ["10.244.2.0-24"]);
}

#[test]
fn a_table_is_wanted_only_where_something_is_asked_of_it() {
    let mut intent = intent(&with_ipv6(true, r#"{"Type":"vxlan"}"#));
    let tables = |intent: &Intent| -> Vec<String> {
        intent.plan(&LeaseSet::default()).dataplane.tables.keys().map(ToString::to_string).collect()
    };
    assert_eq!(tables(&intent), ["ip flannel-ipv4", "ip6 flannel-ipv6"]);
    intent.options.forward_rules = false;
    intent.options.masquerade.ipv6 = false;
    assert_eq!(tables(&intent), ["ip flannel-ipv4"]);
    assert!(intent.plan(&LeaseSet::default()).dataplane.accepted_forwards.is_empty());
    intent.options.masquerade.ipv4 = false;
    assert_eq!(tables(&intent), [""; 0]);
}

#[test]
fn an_exception_with_host_bits_is_masked_and_goes_to_its_family() {
    let mut intent = intent(VXLAN);
    intent.options.masquerade.except = vec!["10.1.2.3/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
    let text = text(&intent, &LeaseSet::default());
    assert!(text.contains("\t\tip saddr 10.244.0.0/16 ip daddr 10.0.0.0/8 return\n"), "{text}");
    assert!(!text.contains("fd00"), "{text}");
}

#[test]
fn the_blackhole_is_behind_every_other_route() {
    let mut intent = intent(&with_ipv6(true, r#"{"Type":"vxlan"}"#));
    intent.options.blackhole_route = true;
    let routes = intent.plan(&LeaseSet::default()).dataplane.routes;
    let text: Vec<String> = routes.iter().map(ToString::to_string).collect();
    assert_eq!(
        text,
        [
            "blackhole 10.244.1.0/24 metric 4294967294 proto 102",
            "blackhole fd00:10:244:1::/64 metric 4294967294 proto 102",
        ]
    );
    assert_eq!(MAIN_TABLE, 254);
}

#[test]
fn a_plan_for_some_is_a_part_of_the_plan_for_all() {
    let intent = intent(VXLAN);
    let all = leases(&intent, 1..=50);
    let some = leases(&intent, 7..=9);
    let (whole, part) = (intent.plan(&all), intent.plan_for(&some, &all));
    assert_eq!(part.peers.len(), 3);
    assert!(part.dataplane.routes.is_subset(&whole.dataplane.routes));
    assert!(
        part.dataplane.neighbors.iter().all(|(key, mac)| whole.dataplane.neighbors.get(key) == Some(mac))
    );
    assert_eq!(part.dataplane.links, whole.dataplane.links);
}

#[test]
fn ten_thousand_leases_are_planned_with_work_in_proportion() {
    // Not a timed test: every peer costs the same few objects, and none is looked at twice.
    let mut intent = intent(r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}"#);
    intent.host.own.ipv4 = Some("10.244.1.0/24".parse().unwrap());
    let many = |count: u32| -> LeaseSet { (0..count).map(|n| fixture::numbered(&intent, n)).collect() };
    for count in [100, 10_000] {
        let plan = intent.plan(&many(count));
        assert!(plan.peers.values().all(Result::is_ok));
        assert_eq!(plan.dataplane.routes.len(), count as usize);
        assert_eq!(plan.dataplane.fdb.len(), count as usize);
    }
}
