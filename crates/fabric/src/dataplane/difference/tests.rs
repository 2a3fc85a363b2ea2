use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use proptest::prelude::*;

use super::super::model::{Model, name, net};
use super::super::{ObservedLinkKind, Target};
use super::*;
use crate::dataplane::NextHop;
use crate::firewall::{Family, Table, TableName};
use crate::fixture::{self, HOST_GW, VXLAN, intent, leases, with_ipv6};
use crate::host::RouteStyle;
use crate::instance::Instance;
use crate::lease::LeaseSet;
use crate::mac::Mac;
use crate::plan::{Intent, Plan};

/// Every kind of network that this build knows, by number.
fn network(kind: u8) -> Intent {
    let objects = |json: &str| {
        let mut intent = intent(json);
        intent.host.route_style = RouteStyle::NextHopObjects;
        intent
    };
    match kind % 9 {
        0 => intent(VXLAN),
        1 => objects(VXLAN),
        2 => intent(HOST_GW),
        3 => objects(HOST_GW),
        4 => intent(&with_ipv6(true, r#"{"Type":"vxlan"}"#)),
        5 => objects(&with_ipv6(true, r#"{"Type":"vxlan","DirectRouting":true}"#)),
        6 => intent(&with_ipv6(false, r#"{"Type":"vxlan"}"#)),
        7 => objects(&with_ipv6(true, r#"{"Type":"host-gw"}"#)),
        _ => {
            let mut intent = intent(&with_ipv6(true, r#"{"Type":"vxlan","Port":4789,"MTU":1400}"#));
            intent.options.blackhole_route = true;
            intent
        }
    }
}

fn plan(intent: &Intent, nodes: &BTreeSet<u8>) -> Plan {
    intent.plan(&leases(intent, nodes.iter().copied()))
}

/// Harm that others do to the kernel's state, and things of theirs that come and go.
#[derive(Debug, Clone)]
enum Harm {
    DeleteLink(bool),
    LinkDown(bool),
    ForeignLink(bool),
    Mac(bool),
    Mtu(bool),
    Port(bool),
    Sysctl,
    RemoveRoute(usize),
    RemoveNeighbor(usize),
    RemoveFdb(usize),
    RemoveNextHop(usize),
    RemoveAddress(usize),
    OtherNextHop(usize),
    OtherMac(usize),
    OtherNode(usize),
    StaleNeighbor(u8),
    StaleFdb(u8),
    SecondFdb(u8),
    StaleAddress(u8),
    ForeignAddress(u8),
    OriginalsRoute(u8),
    ForeignRoute(u8, u8),
    SecondRoute(u8),
    FlushTables,
    ForeignTable,
    ForwardDrops,
}

fn harm() -> impl Strategy<Value = Harm> {
    let flag = any::<bool>;
    let at = any::<usize>;
    let node = || 2..12u8;
    prop_oneof![
        flag().prop_map(Harm::DeleteLink),
        flag().prop_map(Harm::LinkDown),
        flag().prop_map(Harm::ForeignLink),
        flag().prop_map(Harm::Mac),
        flag().prop_map(Harm::Mtu),
        flag().prop_map(Harm::Port),
        Just(Harm::Sysctl),
        at().prop_map(Harm::RemoveRoute),
        at().prop_map(Harm::RemoveNeighbor),
        at().prop_map(Harm::RemoveFdb),
        at().prop_map(Harm::RemoveNextHop),
        at().prop_map(Harm::RemoveAddress),
        at().prop_map(Harm::OtherNextHop),
        at().prop_map(Harm::OtherMac),
        at().prop_map(Harm::OtherNode),
        node().prop_map(Harm::StaleNeighbor),
        node().prop_map(Harm::StaleFdb),
        node().prop_map(Harm::SecondFdb),
        node().prop_map(Harm::StaleAddress),
        node().prop_map(Harm::ForeignAddress),
        node().prop_map(Harm::OriginalsRoute),
        (node(), 0..4u8).prop_map(|(node, kind)| Harm::ForeignRoute(node, kind)),
        node().prop_map(Harm::SecondRoute),
        Just(Harm::FlushTables),
        Just(Harm::ForeignTable),
        Just(Harm::ForwardDrops),
    ]
}

fn tunnel(ipv4: bool) -> LinkName {
    name(if ipv4 { "flannel.1" } else { "flannel-v6.1" })
}

fn nth<T: Clone>(items: impl ExactSizeIterator<Item = T>, at: usize) -> Option<T> {
    let len = items.len();
    items.into_iter().nth(at % len.max(1))
}

fn do_harm(model: &mut Model, harm: &Harm) {
    let eth0 = |gateway: &str| {
        Target::Via(NextHop { gateway: gateway.parse().unwrap(), link: name("eth0"), onlink: false })
    };
    let pods = |node: u8| fixture::subnets(node).ipv4.map(IpNet::V4).unwrap();
    let vxlan = |model: &Model, ipv4| {
        let kind = model.state.links.get(&tunnel(ipv4)).map(|link| link.kind.clone());
        matches!(kind, Some(ObservedLinkKind::Vxlan { .. })).then(|| tunnel(ipv4))
    };
    match *harm {
        Harm::DeleteLink(ipv4) => {
            let _ = model.apply(&Change::DeleteLink(tunnel(ipv4)));
        }
        Harm::LinkDown(ipv4) => model.set_down(&tunnel(ipv4)),
        Harm::ForeignLink(ipv4) => {
            let _ = model.apply(&Change::DeleteLink(tunnel(ipv4)));
            model.add_link(tunnel(ipv4), 1500, ObservedLinkKind::Other("bridge".to_owned()));
        }
        Harm::Mac(ipv4) => {
            let _ = model.apply(&Change::SetMac(tunnel(ipv4), Mac([2, 0, 0, 0, 0, 1])));
        }
        Harm::Mtu(ipv4) => {
            let _ = model.apply(&Change::SetMtu(tunnel(ipv4), 1300));
        }
        Harm::Port(ipv4) => {
            if let Some(link) = model.state.links.get_mut(&tunnel(ipv4))
                && let ObservedLinkKind::Vxlan { port, .. } = &mut link.kind
            {
                *port = 4790;
            }
        }
        Harm::Sysctl => model.state.sysctls.values_mut().for_each(|value| *value = "2".to_owned()),
        Harm::RemoveRoute(at) => {
            if let Some(route) = nth(model.state.routes.clone().iter(), at) {
                model.apply(&Change::RemoveRoute(*route)).unwrap();
            }
        }
        Harm::RemoveNeighbor(at) => {
            if let Some((link, ip)) = nth(model.state.neighbors.clone().keys(), at) {
                model.apply(&Change::RemoveNeighbor(*link, *ip)).unwrap();
            }
        }
        Harm::RemoveFdb(at) => {
            if let Some((link, mac, to)) = nth(model.state.fdb.clone().iter(), at) {
                model.apply(&Change::RemoveFdb(*link, *mac, *to)).unwrap();
            }
        }
        Harm::RemoveNextHop(at) => {
            if let Some(id) = nth(model.state.next_hops.clone().keys(), at) {
                model.apply(&Change::RemoveNextHop(*id)).unwrap();
            }
        }
        Harm::RemoveAddress(at) => {
            let ours: Vec<_> = model
                .state
                .addresses
                .iter()
                .filter(|(link, _)| link.as_str().starts_with("fl"))
                .copied()
                .collect();
            if let Some((link, net)) = nth(ours.into_iter(), at) {
                model.apply(&Change::RemoveAddress(link, net)).unwrap();
            }
        }
        Harm::OtherNextHop(at) => {
            if let Some(id) = nth(model.state.next_hops.clone().keys(), at) {
                let gateway = "192.168.0.99".parse().unwrap();
                let other = NextHop { gateway, link: name("eth0"), onlink: false };
                model.state.next_hops.insert(*id, other);
            }
        }
        Harm::OtherMac(at) => {
            if let Some((link, ip)) = nth(model.state.neighbors.clone().keys(), at) {
                model.apply(&Change::SetNeighbor(*link, *ip, Mac([2, 0, 0, 0, 0, 9]))).unwrap();
            }
        }
        Harm::OtherNode(at) => {
            if let Some((link, mac, _)) = nth(model.state.fdb.clone().iter(), at) {
                model.apply(&Change::SetFdb(*link, *mac, "192.168.0.98".parse().unwrap())).unwrap();
            }
        }
        Harm::StaleNeighbor(node) => {
            if let Some(link) = vxlan(model, true) {
                let _ =
                    model.apply(&Change::SetNeighbor(link, pods(node).addr(), Mac([2, 0, 0, 0, 1, node])));
            }
        }
        Harm::StaleFdb(node) => {
            if let Some(link) = vxlan(model, true) {
                let to = IpAddr::from([192, 168, 0, node]);
                model.apply(&Change::SetFdb(link, Mac([2, 0, 0, 0, 1, node]), to)).unwrap();
            }
        }
        Harm::SecondFdb(node) => {
            if let Some((link, mac, to)) = nth(model.state.fdb.iter().copied(), usize::from(node))
                && to.is_ipv4()
            {
                model.state.fdb.insert((link, mac, IpAddr::from([192, 0, 2, node])));
            }
        }
        Harm::StaleAddress(node) => {
            let _ = model.apply(&Change::AddAddress(tunnel(true), IpNet::from(pods(node).addr())));
        }
        Harm::ForeignAddress(node) => {
            let _ =
                model.apply(&Change::AddAddress(tunnel(true), IpNet::from(IpAddr::from([10, 1, 1, node]))));
        }
        Harm::OriginalsRoute(node) => {
            let next_hop = NextHop { gateway: pods(node).addr(), link: tunnel(true), onlink: true };
            let target = Target::Via(next_hop);
            let route = Route { destination: pods(node), metric: 0, target, protocol: 3 };
            let _ = model.apply(&Change::SetRoute(route));
        }
        Harm::ForeignRoute(node, kind) => {
            let (destination, metric, protocol) = match kind {
                0 => (pods(node), 50, 3),
                1 => (pods(node), 0, 186),
                2 => (net("10.244.0.0/16"), 0, 3),
                _ => (IpNet::from(pods(node).addr()), 0, 4),
            };
            model.insert(destination, metric, eth0("192.168.0.97"), protocol);
        }
        Harm::SecondRoute(node) => {
            model.insert(pods(node), 0, eth0("192.168.0.96"), 3);
            model.insert(pods(node), 0, eth0("192.168.0.95"), 4);
        }
        Harm::FlushTables => model.state.tables.clear(),
        Harm::ForeignTable => {
            let name = TableName { family: Family::Inet, name: "firewalld".to_owned() };
            model.state.tables.insert(name.clone(), Table { name, comment: None, chains: vec![] });
        }
        Harm::ForwardDrops => {
            let nets = BTreeSet::from([net("10.99.0.0/16")]);
            model.state.accepted_forwards.insert(IpFamily::V4, nets);
            model.state.accepted_forwards.entry(IpFamily::V6).or_default();
        }
    }
}

/// A kernel on which some network ran with some peers, and was harmed.
fn harmed(kind: u8, nodes: &BTreeSet<u8>, harms: &[Harm]) -> Model {
    let mut model = Model::new();
    let intent = network(kind);
    let past = plan(&intent, nodes);
    model.apply_all(&changes(&past.dataplane, &model.state, &intent.ownership(), Prune::Yes));
    harms.iter().for_each(|harm| do_harm(&mut model, harm));
    model
}

fn nodes() -> impl Strategy<Value = BTreeSet<u8>> {
    proptest::collection::btree_set(1..12u8, 0..8)
}

/// What nobody gave us leave to touch: foreign devices but for those under our names, routes that
/// are not ours and do not stand where one of ours must, foreign addresses, tables and neighbors.
fn foreign(state: &Observed, wanted: &Dataplane, ownership: &Ownership) -> Observed {
    let keys: BTreeSet<_> = wanted.routes.iter().map(|route| (route.destination, route.metric)).collect();
    let mut rest = state.clone();
    rest.sysctls.clear();
    rest.accepted_forwards.clear();
    rest.links.retain(|name, _| !ownership.owns_link(name));
    rest.addresses.retain(|(link, _)| !ownership.owns_link(link));
    rest.neighbors.retain(|(link, _), _| !ownership.owns_link(link));
    rest.fdb.retain(|(link, ..)| !ownership.owns_link(link));
    rest.next_hops.clear();
    rest.routes.retain(|route| {
        let ours = ownership.owns_route(route) || route.link().is_some_and(|link| ownership.owns_link(&link));
        !ours && !keys.contains(&(route.destination, route.metric))
    });
    rest.tables.retain(|name, _| !ownership.owns_table(name));
    rest
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn any_state_becomes_the_plan_in_one_round_without_a_failure(
        past in 0..9u8, past_nodes in nodes(), harms in proptest::collection::vec(harm(), 0..12),
        kind in 0..9u8, nodes in nodes(),
    ) {
        let mut model = harmed(past, &past_nodes, &harms);
        let intent = network(kind);
        let (wanted, ownership) = (plan(&intent, &nodes).dataplane, intent.ownership());
        let before = foreign(&model.state, &wanted, &ownership);

        let first = changes(&wanted, &model.state, &ownership, Prune::Yes);
        model.apply_all(&first);

        prop_assert_eq!(model.missing(&wanted), Vec::<String>::new(), "after {:#?}", first);
        let again = changes(&wanted, &model.state, &ownership, Prune::Yes);
        prop_assert!(again.is_empty(), "still to do: {:#?}", again);
        let after = foreign(&model.state, &wanted, &ownership);
        prop_assert_eq!(&before, &after, "foreign objects were touched by {:#?}", first);
    }

    #[test]
    fn nothing_of_a_peer_is_removed_before_the_first_complete_list(
        kind in 0..9u8, present in nodes(), harms in proptest::collection::vec(harm(), 0..6),
    ) {
        let mut model = harmed(kind, &present, &harms);
        let intent = network(kind);
        let wanted = plan(&intent, &BTreeSet::new()).dataplane;
        let first = changes(&wanted, &model.state, &intent.ownership(), Prune::NotYet);
        prop_assert!(!first.iter().any(|change| match change {
            // What stands where our own blackhole route must.
            Change::RemoveRoute(route) => !wanted.routes.iter().any(|own| own.destination == route.destination),
            change => change.removes(),
        }), "{first:#?}");
        model.apply_all(&first);
        prop_assert_eq!(model.missing(&wanted), Vec::<String>::new());
    }

    #[test]
    fn from_one_plan_to_the_next_no_live_peer_is_lost(
        kind in 0..9u8, before in nodes(), after in nodes(),
    ) {
        let intent = network(kind);
        let (old, new) = (plan(&intent, &before).dataplane, plan(&intent, &after).dataplane);
        let mut model = harmed(kind, &before, &[]);
        let mut by_observing = model.clone();
        let lasting = Dataplane {
            routes: old.routes.intersection(&new.routes).copied().collect(),
            neighbors: old.neighbors.iter().filter(|(key, _)| new.neighbors.contains_key(key)).map(|(k, v)| (*k, *v)).collect(),
            fdb: old.fdb.iter().filter(|(key, _)| new.fdb.contains_key(key)).map(|(k, v)| (*k, *v)).collect(),
            ..Dataplane::default()
        };
        for change in between(&old, &new) {
            model.apply_all(&[change]);
            prop_assert_eq!(model.missing(&lasting), Vec::<String>::new());
        }
        prop_assert_eq!(model.missing(&new), Vec::<String>::new());
        let rest = changes(&new, &model.state, &intent.ownership(), Prune::Yes);
        prop_assert!(rest.iter().all(|change| matches!(change, Change::RemoveFdb(..) | Change::RemoveNextHop(..))), "{rest:#?}");
        model.apply_all(&rest);
        by_observing.apply_all(&changes(&new, &by_observing.state, &intent.ownership(), Prune::Yes));
        prop_assert_eq!(&model, &by_observing);
    }

    #[test]
    fn plans_of_the_changed_leases_alone_do_what_whole_plans_do(
        kind in 0..9u8, before in nodes(), after in nodes(), twice_before in nodes(), twice_after in nodes(),
    ) {
        let intent = network(kind);
        // Some nodes write their leases twice, in a smaller and later record.
        let set = |nodes: &BTreeSet<u8>, twice: &BTreeSet<u8>| -> LeaseSet {
            let mut set = leases(&intent, nodes.iter().copied());
            for node in twice {
                let mut lease = fixture::lease(&intent, *node);
                let smaller = |net: ipnet::Ipv4Net| net.subnets(25).unwrap().next().unwrap();
                lease.subnets.ipv4 = lease.subnets.ipv4.map(smaller);
                lease.subnets.ipv6 = lease.subnets.ipv6.map(|net| net.subnets(66).unwrap().next().unwrap());
                lease.created = if node % 2 == 0 { 0 } else { 100 };
                set.insert(lease);
            }
            set
        };
        let (before, after) = (set(&before, &twice_before), set(&after, &twice_after));
        let (old, new) = (intent.plan(&before), intent.plan(&after));
        let mut model = Model::new();
        let ownership = intent.ownership();
        model.apply_all(&changes(&old.dataplane, &model.state, &ownership, Prune::Yes));

        let (gone, come) = intent.plans_between(&before, &after);
        for change in between(&gone.dataplane, &come.dataplane) {
            match model.apply(&change) {
                // The object of a node that has another lease already.
                Err("EEXIST") if matches!(change, Change::AddNextHop(..)) => {}
                outcome => prop_assert_eq!(outcome, Ok(()), "{}", change),
            }
        }
        prop_assert_eq!(model.missing(&new.dataplane), Vec::<String>::new());
        let rest = changes(&new.dataplane, &model.state, &ownership, Prune::Yes);
        prop_assert!(rest.iter().all(|change| matches!(change, Change::RemoveFdb(..) | Change::RemoveNextHop(..))), "{rest:#?}");
        for (subnets, path) in &come.peers {
            prop_assert_eq!(new.peers.get(subnets), Some(path));
        }
    }
}

fn texts(changes: &[Change]) -> String {
    changes.iter().map(|change| format!("{change}\n")).collect()
}

/// A kernel that holds the plan for nodes 2 and 3.
fn settled(intent: &Intent) -> (Model, Dataplane) {
    let wanted = plan(intent, &BTreeSet::from([2, 3])).dataplane;
    let mut model = Model::new();
    model.apply_all(&changes(&wanted, &model.state, &intent.ownership(), Prune::Yes));
    (model, wanted)
}

#[test]
fn a_settled_kernel_needs_nothing() {
    for kind in 0..9 {
        let intent = network(kind);
        let (model, wanted) = settled(&intent);
        assert_eq!(changes(&wanted, &model.state, &intent.ownership(), Prune::Yes), []);
    }
}

#[test]
fn a_deleted_device_comes_back_with_all_that_was_on_it() {
    let intent = network(1);
    let (mut model, wanted) = settled(&intent);
    model.apply(&Change::DeleteLink(tunnel(true))).unwrap();
    assert_eq!(
        texts(&changes(&wanted, &model.state, &intent.ownership(), Prune::Yes)),
        "\
ip link add flannel.1 address 0e:2a:00:00:04:01 mtu 1450 up type vxlan id 1 local 192.168.0.1 dev eth0 nolearning
sysctl -w net.ipv6.conf.flannel/1.accept_ra=0
ip address add 10.244.1.0/32 dev flannel.1
ip neighbor replace 10.244.2.0 lladdr 0e:2a:00:00:04:02 dev flannel.1 nud permanent
ip neighbor replace 10.244.3.0 lladdr 0e:2a:00:00:04:03 dev flannel.1 nud permanent
bridge fdb replace 0e:2a:00:00:04:02 dev flannel.1 dst 192.168.0.2 self permanent
bridge fdb replace 0e:2a:00:00:04:03 dev flannel.1 dst 192.168.0.3 self permanent
ip nexthop add id 183763456 via 10.244.2.0 dev flannel.1 onlink proto 102
ip nexthop add id 183763712 via 10.244.3.0 dev flannel.1 onlink proto 102
ip route replace 10.244.2.0/24 nhid 183763456 proto 102
ip route replace 10.244.3.0/24 nhid 183763712 proto 102
"
    );
}

#[test]
fn a_device_of_another_kind_is_made_anew() {
    let intent = network(0);
    let (mut model, wanted) = settled(&intent);
    do_harm(&mut model, &Harm::ForeignLink(true));
    let text = texts(&changes(&wanted, &model.state, &intent.ownership(), Prune::Yes));
    assert!(text.starts_with("ip link delete flannel.1\nip link add flannel.1 "), "{text}");
    assert!(
        text.contains("ip route replace 10.244.3.0/24 via 10.244.3.0 dev flannel.1 onlink proto 102\n"),
        "{text}"
    );
}

#[test]
fn a_changed_mac_costs_the_neighbors_only() {
    let intent = network(0);
    let (mut model, wanted) = settled(&intent);
    // The kernel has not dropped the neighbors yet: it will when the address is set back.
    model.state.links.get_mut(&tunnel(true)).unwrap().mac = Some(Mac([2, 0, 0, 0, 0, 1]));
    assert_eq!(
        texts(&changes(&wanted, &model.state, &intent.ownership(), Prune::Yes)),
        "\
ip link set flannel.1 address 0e:2a:00:00:04:01
ip neighbor replace 10.244.2.0 lladdr 0e:2a:00:00:04:02 dev flannel.1 nud permanent
ip neighbor replace 10.244.3.0 lladdr 0e:2a:00:00:04:03 dev flannel.1 nud permanent
"
    );
}

#[test]
fn a_device_that_went_down_gets_its_routes_and_neighbors_back() {
    let intent = network(4);
    let (mut model, wanted) = settled(&intent);
    model.set_down(&tunnel(false));
    assert_eq!(
        texts(&changes(&wanted, &model.state, &intent.ownership(), Prune::Yes)),
        "\
ip link set flannel-v6.1 up
ip address add fd00:10:244:1::/128 dev flannel-v6.1
ip neighbor replace fd00:10:244:2:: lladdr 0e:2a:00:00:06:02 dev flannel-v6.1 nud permanent
ip neighbor replace fd00:10:244:3:: lladdr 0e:2a:00:00:06:03 dev flannel-v6.1 nud permanent
ip -6 route replace fd00:10:244:2::/64 via fd00:10:244:2:: dev flannel-v6.1 onlink proto 102
ip -6 route replace fd00:10:244:3::/64 via fd00:10:244:3:: dev flannel-v6.1 onlink proto 102
"
    );
}

#[test]
fn a_peer_that_left_is_taken_away_in_reverse_order() {
    let intent = network(1);
    let (model, _) = settled(&intent);
    let wanted = plan(&intent, &BTreeSet::from([3])).dataplane;
    assert_eq!(
        texts(&changes(&wanted, &model.state, &intent.ownership(), Prune::Yes)),
        "\
ip route delete 10.244.2.0/24 nhid 183763456 proto 102
ip nexthop delete id 183763456
bridge fdb delete 0e:2a:00:00:04:02 dev flannel.1 dst 192.168.0.2 self
ip neighbor delete 10.244.2.0 dev flannel.1
"
    );
    assert_eq!(changes(&wanted, &model.state, &intent.ownership(), Prune::NotYet), []);
}

#[test]
fn the_originals_routes_are_taken_over_without_a_gap() {
    for kind in [0, 1, 4] {
        let intent = network(kind);
        let (mut model, wanted) = settled(&intent);
        let originals = |route: &Route| {
            let ours = route.protocol == crate::ownership::ROUTE_PROTOCOL;
            let gateway = route.destination.addr();
            let link = tunnel(gateway.is_ipv4());
            let target = Target::Via(NextHop { gateway, link, onlink: true });
            if ours { Route { protocol: 3, target, ..*route } } else { *route }
        };
        model.state.routes = model.state.routes.iter().map(originals).collect();
        let takeover = changes(&wanted, &model.state, &intent.ownership(), Prune::NotYet);
        assert!(takeover.iter().all(|change| matches!(change, Change::SetRoute(_))), "{takeover:#?}");
        model.apply_all(&takeover);
        assert_eq!(changes(&wanted, &model.state, &intent.ownership(), Prune::Yes), []);
    }
}

#[test]
fn an_ipv6_route_on_another_device_goes_before_an_onlink_one_comes() {
    let direct = network(5);
    let (model, _) = settled(&direct);
    let mut tunnelled = direct.clone();
    tunnelled.host.underlay.clear();
    let wanted = plan(&tunnelled, &BTreeSet::from([2])).dataplane;
    let text = texts(&changes(&wanted, &model.state, &direct.ownership(), Prune::NotYet));
    let routes: Vec<&str> = text.lines().filter(|line| line.contains(" route ")).collect();
    assert_eq!(
        routes,
        [
            "ip route replace 10.244.2.0/24 nhid 183763456 proto 102",
            "ip -6 route delete fd00:10:244:2::/64 via fd09::2 dev eth0 proto 102",
            "ip -6 route replace fd00:10:244:2::/64 via fd00:10:244:2:: dev flannel-v6.1 onlink proto 102",
        ]
    );
}

#[test]
fn accepted_forwards_are_kept_only_where_the_chain_drops() {
    let intent = network(4);
    let (mut model, wanted) = settled(&intent);
    model.state.accepted_forwards.insert(IpFamily::V4, BTreeSet::from([net("10.99.0.0/16")]));
    assert_eq!(
        texts(&changes(&wanted, &model.state, &intent.ownership().after(&[net("10.99.0.0/16")]), Prune::Yes)),
        "\
iptables -A FORWARD -s 10.244.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT; iptables -A FORWARD -d 10.244.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT
iptables -D FORWARD -s 10.99.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT; iptables -D FORWARD -d 10.99.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT
"
    );
}

#[test]
fn a_kernel_without_ipv6_is_not_asked_to_set_its_files() {
    let intent = network(0);
    let (mut model, wanted) = settled(&intent);
    model.state.sysctls.clear();
    assert_eq!(changes(&wanted, &model.state, &intent.ownership(), Prune::Yes), []);
}

#[test]
fn what_two_leases_of_one_node_share_outlives_one_of_them() {
    for kind in [1, 3, 5] {
        let intent = network(kind);
        let first = fixture::lease(&intent, 2);
        let mut second = fixture::lease(&intent, 3);
        second.attributes = first.attributes.clone();
        let both: LeaseSet = [first.clone(), second.clone()].into_iter().collect();
        let one: LeaseSet = [first].into_iter().collect();
        let mut model = Model::new();
        let ownership = intent.ownership();
        model.apply_all(&changes(&intent.plan(&both).dataplane, &model.state, &ownership, Prune::Yes));

        let (gone, come) = intent.plans_between(&both, &one);
        model.apply_all(&between(&gone.dataplane, &come.dataplane));

        assert_eq!(model.missing(&intent.plan(&one).dataplane), [""; 0]);
    }
}

#[test]
fn a_route_to_an_object_that_was_not_seen_is_set_again() {
    let intent = network(1);
    let (mut model, wanted) = settled(&intent);
    // The object went between the two looks: its route was still seen.
    model.state.next_hops.remove(&183763456);
    assert_eq!(
        texts(&changes(&wanted, &model.state, &intent.ownership(), Prune::Yes)),
        "\
ip nexthop add id 183763456 via 10.244.2.0 dev flannel.1 onlink proto 102
ip route replace 10.244.2.0/24 nhid 183763456 proto 102
"
    );
}

#[test]
fn the_loser_comes_into_its_rights_when_the_winner_leaves() {
    let intent = network(0);
    let winner = fixture::lease(&intent, 2);
    let mut loser = fixture::lease(&intent, 3);
    loser.subnets.ipv4 = Some("10.244.2.0/25".parse().unwrap());
    let both: LeaseSet = [winner, loser.clone()].into_iter().collect();
    let alone: LeaseSet = [loser].into_iter().collect();
    let (gone, come) = intent.plans_between(&both, &alone);
    assert_eq!(
        texts(&between(&gone.dataplane, &come.dataplane)),
        "\
ip neighbor replace 10.244.2.0 lladdr 0e:2a:00:00:04:03 dev flannel.1 nud permanent
bridge fdb replace 0e:2a:00:00:04:03 dev flannel.1 dst 192.168.0.3 self permanent
ip route replace 10.244.2.0/25 via 10.244.2.0 dev flannel.1 onlink proto 102
ip route delete 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink proto 102
"
    );
}

#[test]
fn a_second_destination_of_an_address_is_removed() {
    let intent = network(0);
    let (mut model, wanted) = settled(&intent);
    let (link, mac, right) = *model.state.fdb.first().unwrap();
    model.state.fdb.insert((link, mac, "192.0.2.66".parse().unwrap()));
    let pruned = |model: &Model, prune| texts(&changes(&wanted, &model.state, &intent.ownership(), prune));
    let removal = format!("bridge fdb delete {mac} dev {link} dst 192.0.2.66 self\n");
    assert_eq!(pruned(&model, Prune::NotYet), removal, "a copy of every packet goes there");

    model.state.fdb.insert((link, mac, "192.0.2.67".parse().unwrap()));
    model.state.fdb.remove(&(link, mac, right));
    model.apply_all(&changes(&wanted, &model.state, &intent.ownership(), Prune::Yes));
    assert_eq!(pruned(&model, Prune::Yes), "");
}

#[test]
fn two_flannels_on_one_host_leave_each_other_alone() {
    // The network of the other one, on the same interface and, in part, to the same nodes.
    let other_network = HOST_GW.replace("10.244", "10.250");
    for style in [RouteStyle::Plain, RouteStyle::NextHopObjects] {
        let (mut ours, mut theirs) = (fixture::intent(HOST_GW), fixture::intent(&other_network));
        theirs.host.own.ipv4 = Some("10.250.1.0/24".parse().unwrap());
        theirs.options.instance = Instance::of("/run/other.env".as_ref());
        (ours.host.route_style, theirs.host.route_style) = (style, style);
        let lease = |n: u8| {
            let mut lease = fixture::lease(&theirs, n);
            lease.subnets.ipv4 = Some(format!("10.250.{n}.0/24").parse().unwrap());
            lease
        };
        let their_leases: LeaseSet = [2, 4].map(lease).into_iter().collect();
        let their_plan = theirs.plan(&their_leases).dataplane;
        let our_plan = ours.plan(&fixture::leases(&ours, [2, 3])).dataplane;

        let mut model = Model::new();
        model.state.accepted_forwards.insert(IpFamily::V4, BTreeSet::new());
        for (plan, intent) in [(&our_plan, &ours), (&their_plan, &theirs), (&our_plan, &ours)] {
            model.apply_all(&changes(plan, &model.state, &intent.ownership(), Prune::Yes));
        }
        for (plan, intent) in [(&our_plan, &ours), (&their_plan, &theirs)] {
            assert_eq!(texts(&changes(plan, &model.state, &intent.ownership(), Prune::Yes)), "");
        }
        // One of the two is cleaned up.
        let nothing = Dataplane::default();
        model.apply_all(&changes(&nothing, &model.state, &ours.ownership(), Prune::Yes));
        assert_eq!(model.missing(&their_plan), [""; 0]);
        assert_eq!(texts(&changes(&nothing, &model.state, &ours.ownership(), Prune::Yes)), "");
        assert_eq!(model.state.accepted_forwards[&IpFamily::V4], BTreeSet::from([net("10.250.0.0/16")]));
    }
}
