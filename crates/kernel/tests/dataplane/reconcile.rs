//! Observe, compare, apply, observe again.

use fabric::dataplane::{Change, Dataplane, LinkKind, Prune, changes};
use kernel::{Kernel, Linux, address, link};
use proptest::prelude::*;
use rustix::io::Errno;

use crate::namespace;
use crate::underlay::{
    Way, add_peer, assert_holds, cases, converge, name, net, open, ownership, scope, tunnels,
};

/// The programs in some test here.
const IP: &[&str] = &["ip", "bridge"];

fn way() -> impl Strategy<Value = Way> {
    prop_oneof![
        Just(Way::Plain),
        Just(Way::Object),
        Just(Way::Direct),
        Just(Way::Ipv6),
        Just(Way::Ipv6Direct),
        Just(Way::Blackhole),
    ]
}

fn plan() -> impl Strategy<Value = Dataplane> {
    let peers = proptest::collection::btree_map(0u16..12, (2u16..40, way()), 0..12);
    (peers, any::<[bool; 3]>(), 1280u32..1420).prop_map(|(peers, [gbp, learning, port], mtu)| {
        let mut plan = tunnels();
        for link in plan.links.values_mut() {
            link.mtu = mtu;
            let LinkKind::Vxlan(vxlan) = &mut link.kind else { continue };
            (vxlan.gbp, vxlan.learning, vxlan.port) = (gbp, learning, port.then_some(4789));
        }
        for (peer, (node, way)) in peers {
            add_peer(&mut plan, peer, node, way);
        }
        plan
    })
}

#[test]
fn any_plan_after_any_other_is_reached_in_one_step() {
    if !namespace::enter(&[]) {
        return;
    }
    let mut linux = open();
    let config = cases(40);
    // One kernel for all cases: each plan meets what the one before left.
    let linux = std::cell::RefCell::new(&mut linux);
    proptest!(config, |(wanted in plan())| {
        let mut linux = linux.borrow_mut();
        converge(&mut linux, &wanted);
        prop_assert!(converge(&mut linux, &wanted).is_empty(), "a second look finds nothing to do");
    });
}

#[test]
fn foreign_objects_survive_every_plan() {
    if !namespace::enter(IP) {
        return;
    }
    let mut linux = open();
    namespace::run(
        "ip link add foreign0 type bridge && ip link set foreign0 up && ip addr add 10.77.0.1/24 dev foreign0 \
         && ip route add 172.16.0.0/16 via 192.168.0.254 proto static \
         && ip route add 10.99.0.0/24 via 192.168.0.254 proto static metric 7 \
         && ip route add 10.98.0.0/24 dev eth0 \
         && ip nexthop add id 1 via 192.168.0.253 dev eth0 \
         && ip route add 172.17.0.0/16 nhid 1 \
         && ip route add 172.18.0.0/16 nexthop via 192.168.0.2 dev eth0 nexthop via 192.168.0.3 dev eth0 \
         && ip neigh add 192.168.0.254 lladdr 02:00:00:00:00:fe dev eth0 nud permanent \
         && ip -6 route add fc01::/64 via fd00::fe && ip rule add from 10.1.2.3 table 77 && ip rule add table 99",
    );
    let everything = "ip -o link show foreign0; ip -o addr show foreign0; ip route show table all | grep -v flannel \
         | sort; ip -6 route show table all | grep -v flannel | sort; ip nexthop; ip rule; ip neigh show dev eth0 nud permanent";
    let before = namespace::run(everything);

    let mut wanted = tunnels();
    for (peer, way) in
        [Way::Plain, Way::Object, Way::Direct, Way::Ipv6, Way::Ipv6Direct].into_iter().enumerate()
    {
        add_peer(&mut wanted, peer as u16, 50, way);
    }
    converge(&mut linux, &wanted);
    assert_ne!(namespace::run(everything), before, "the direct routes and the next hop show");
    converge(&mut linux, &tunnels());
    assert_eq!(namespace::run(everything), before);
}

#[test]
fn routes_of_the_original_are_adopted() {
    if !namespace::enter(IP) {
        return;
    }
    let mut linux = open();
    converge(&mut linux, &tunnels());
    namespace::run(
        "ip route add 10.0.3.0/24 via 192.168.0.9 dev eth0 && ip route add 10.0.4.0/24 via 192.168.0.9 dev eth0 \
         && ip route add 10.0.5.0/24 via 10.0.5.0 dev flannel.1 onlink",
    );
    let mut wanted = tunnels();
    add_peer(&mut wanted, 3, 9, Way::Direct);
    add_peer(&mut wanted, 5, 9, Way::Object);
    converge(&mut linux, &wanted);
    let routes = namespace::run("ip route");
    assert!(!routes.contains("10.0.4.0/24"), "a route to nobody's subnet is gone:\n{routes}");
    assert_eq!(routes.matches("10.0.3.0/24").count(), 1, "{routes}");
    assert_eq!(routes.matches("10.0.5.0/24").count(), 1, "{routes}");
}

#[test]
fn what_a_plan_says_is_what_the_programs_show() {
    if !namespace::enter(IP) {
        return;
    }
    let mut linux = open();
    let mut wanted = tunnels();
    add_peer(&mut wanted, 1, 7, Way::Plain);
    add_peer(&mut wanted, 2, 8, Way::Object);
    converge(&mut linux, &wanted);
    let link = namespace::run("ip -d link show flannel.1");
    for part in [
        "mtu 1400 qdisc noqueue state UNKNOWN",
        "link/ether 02:00:00:00:00:01",
        "vxlan id 1 local 192.168.0.1 dev eth0 srcport 0 0 dstport 8472 nolearning ttl auto ageing 300 udpcsum \
         noudp6zerocsumtx noudp6zerocsumrx",
    ] {
        assert!(link.contains(part), "{part:?} is not in\n{link}");
    }
    let routes = namespace::run("ip route show dev flannel.1");
    assert!(routes.contains("10.0.1.0/24 via 10.0.1.0 proto 102 onlink"), "{routes}");
    assert!(routes.contains("10.0.2.0/24 nhid 251658242 via 10.0.2.0 proto 102 onlink"), "{routes}");
    let neighbors = namespace::run("ip neigh show dev flannel.1");
    assert!(neighbors.contains("10.0.1.0 lladdr 02:01:00:01:00:07 PERMANENT"), "{neighbors}");
    let fdb = namespace::run("bridge fdb show dev flannel.1");
    assert!(fdb.contains("02:01:00:01:00:07 dst 192.168.0.7 self permanent"), "{fdb}");
    assert!(namespace::run("ip addr show flannel.1").contains("inet 10.200.0.0/32 scope global flannel.1"));
}

#[test]
fn the_text_of_a_plan_fed_to_the_programs_makes_the_same() {
    if !namespace::enter(&["ip", "bridge", "sysctl"]) {
        return;
    }
    let mut linux = open();
    let mut wanted = tunnels();
    let ways = [Way::Plain, Way::Object, Way::Direct, Way::Ipv6, Way::Ipv6Direct, Way::Blackhole];
    for (peer, way) in ways.into_iter().enumerate() {
        add_peer(&mut wanted, peer as u16, 50, way);
    }
    for change in Change::all_of(&wanted) {
        namespace::run(&change.to_string());
    }
    assert_holds(&mut linux, &wanted);
}

#[test]
fn a_device_that_was_deleted_or_set_down_gets_everything_back() {
    if !namespace::enter(&[]) {
        return;
    }
    let mut linux = open();
    let mut wanted = tunnels();
    for peer in 0..20 {
        add_peer(&mut wanted, peer, 100 + peer, if peer % 2 == 0 { Way::Plain } else { Way::Object });
    }
    for peer in 20..30 {
        add_peer(&mut wanted, peer, 100 + peer, Way::Ipv6);
    }
    converge(&mut linux, &wanted);
    for device in [name("flannel.1"), name("flannel-v6.1")] {
        link::delete_by_name(linux.socket(), device).unwrap();
        converge(&mut linux, &wanted);

        let index = link::index(linux.socket(), device).unwrap().unwrap();
        link::set_down(linux.socket(), index).unwrap();
        let lost = linux.observe(&scope()).unwrap();
        assert!(lost.routes.len() < wanted.routes.len() + 6, "setting a device down takes its routes");
        // What the kernel drops along with a device that goes down comes back in one step as well.
        converge(&mut linux, &wanted);
    }
}

#[test]
fn ipv6_goes_from_direct_to_onlink_and_back() {
    if !namespace::enter(&[]) {
        return;
    }
    let mut linux = open();
    let (mut direct, mut tunnel) = (tunnels(), tunnels());
    add_peer(&mut direct, 1, 7, Way::Ipv6Direct);
    add_peer(&mut tunnel, 1, 7, Way::Ipv6);
    for wanted in [&direct, &tunnel, &direct, &tunnel] {
        converge(&mut linux, wanted);
    }
}

#[test]
fn a_failure_keeps_nothing_else_from_being_done_and_names_its_change() {
    if !namespace::enter(&[]) {
        return;
    }
    let mut linux = open();
    converge(&mut linux, &tunnels());
    let mut wanted = tunnels();
    add_peer(&mut wanted, 1, 7, Way::Plain);
    let good = changes(&wanted, &linux.observe(&scope()).unwrap(), &ownership(), Prune::Yes);
    let link = wanted.links[&name("flannel.1")].clone();
    let mut mixed = vec![Change::CreateLink(link), Change::SetUp(name("nosuch0"))];
    mixed.extend(good);
    mixed.push(Change::SetMtu(name("flannel.1"), 1));
    mixed.push(Change::AddNextHop(
        7,
        fabric::dataplane::NextHop {
            gateway: "10.9.9.9".parse().unwrap(),
            link: name("flannel.1"),
            onlink: false,
        },
    ));
    let last = mixed.len() - 1;

    let failures = linux.apply(&mixed);
    let places: Vec<usize> = failures.iter().map(|failure| failure.index).collect();
    assert_eq!(places, [0, 1, last - 1, last]);
    assert_eq!(
        failures[0].error.errno(),
        Some(Errno::EXIST),
        "a device that is there is not reused in silence"
    );
    assert_eq!(failures[1].error.to_string(), "there is no device nosuch0");
    let text = failures[3].error.to_string();
    assert!(
        text.starts_with("cannot do `ip nexthop add id 7 via 10.9.9.9 dev flannel.1 proto 102`: ")
            && text.contains("gateway"),
        "the kernel's own words are in {text:?}"
    );
    assert_holds(&mut linux, &wanted);
}

#[test]
fn what_is_so_already_or_gone_already_is_no_failure() {
    if !namespace::enter(&[]) {
        return;
    }
    let mut linux = open();
    let mut wanted = tunnels();
    let ways = [Way::Plain, Way::Object, Way::Direct, Way::Ipv6, Way::Ipv6Direct, Way::Blackhole];
    for (peer, way) in ways.into_iter().enumerate() {
        add_peer(&mut wanted, peer as u16, 50, way);
    }
    converge(&mut linux, &wanted);
    let again: Vec<Change> = Change::all_of(&wanted)
        .into_iter()
        .filter(|change| !matches!(change, Change::CreateLink(_)))
        .collect();
    assert_eq!(linux.apply(&again), []);
    assert_holds(&mut linux, &wanted);

    let bare = Dataplane { links: wanted.links.clone(), ..Dataplane::default() };
    let removals = changes(&bare, &linux.observe(&scope()).unwrap(), &ownership(), Prune::Yes);
    assert!(removals.len() >= 15 && removals.iter().all(Change::removes));
    assert_eq!(linux.apply(&removals), []);
    assert_eq!(linux.apply(&removals), [], "a second time");
    let mut deletions: Vec<Change> = bare.links.keys().map(|name| Change::DeleteLink(*name)).collect();
    deletions.extend(deletions.clone());
    assert_eq!(linux.apply(&deletions), []);
    assert_eq!(linux.apply(&removals), [], "with the devices gone as well");
}

#[test]
fn a_next_hop_number_that_somebody_else_has_is_said() {
    if !namespace::enter(IP) {
        return;
    }
    let mut linux = open();
    converge(&mut linux, &tunnels());
    namespace::run("ip nexthop add id 251658241 via 192.168.0.253 dev eth0");
    let mut wanted = tunnels();
    add_peer(&mut wanted, 1, 7, Way::Object);
    let todo = changes(&wanted, &linux.observe(&scope()).unwrap(), &ownership(), Prune::Yes);
    let failures = linux.apply(&todo);
    let refused = failures.iter().find(|failure| matches!(failure.change, Change::AddNextHop(..))).unwrap();
    assert_eq!(refused.error.errno(), Some(Errno::EXIST));
}

#[test]
fn a_namespace_in_which_nothing_happened_yet_can_be_looked_at() {
    if !namespace::enter(&[]) {
        return;
    }
    let observed = Linux::open().unwrap().observe(&scope()).unwrap();
    assert!(observed.links.contains_key(&name("lo")));
    assert!(observed.routes.is_empty() && observed.addresses.is_empty());
}

#[test]
fn addresses_of_others_on_our_devices_stay() {
    if !namespace::enter(&[]) {
        return;
    }
    let mut linux = open();
    converge(&mut linux, &tunnels());
    let index = link::index(linux.socket(), name("flannel.1")).unwrap().unwrap();
    for address in ["169.254.7.7/32", "10.201.0.0/32"] {
        address::add(linux.socket(), index, net(address)).unwrap();
    }
    converge(&mut linux, &tunnels());
    let left: Vec<_> = address::list(linux.socket(), Some(index))
        .unwrap()
        .into_iter()
        .filter(|address| address.net.addr().is_ipv4())
        .map(|address| address.net.to_string())
        .collect();
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(left.contains(&"169.254.7.7/32".to_owned()) && left.contains(&"10.200.0.0/32".to_owned()));
}
