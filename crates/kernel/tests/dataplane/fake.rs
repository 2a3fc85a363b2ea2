//! The fake kernel is held against the real one: the same changes, the same refusals, the same state.

use fabric::dataplane::{Change, LinkKind, NextHop, Observed, Route, Target};
use fabric::link_name::LinkName;
use fabric::mac::Mac;
use fabric::ownership::ROUTE_PROTOCOL;
use ipnet::IpNet;
use kernel::{Fake, Kernel, Linux, link};
use proptest::prelude::*;

use crate::namespace;
use crate::underlay::{LOCAL4, LOCAL6, cases, name, net, open, scope, vxlan};

/// One thing that happens.
#[derive(Debug, Clone)]
enum Event {
    Change(Change),
    SetDown(LinkName),
}

fn device() -> impl Strategy<Value = LinkName> {
    prop_oneof![
        4 => Just(name("flannel.1")),
        4 => Just(name("flannel-v6.1")),
        2 => Just(name("eth0")),
        1 => Just(name("nosuch0")),
    ]
}

/// Forwarding entries of the underlay are of another kind, and deleting it leaves nothing to compare.
fn tunnel_device() -> impl Strategy<Value = LinkName> {
    device().prop_filter("no underlay", |name| name.as_str() != "eth0")
}

fn gateway() -> impl Strategy<Value = std::net::IpAddr> {
    let all = [
        "10.0.1.0",
        "10.0.2.0",
        "192.168.0.7",
        "192.168.0.1",
        "10.200.0.1",
        "fc00:0:0:1::",
        "fc00:0:0:2::",
        "fd00::7",
        "fd00::1",
        "fe80::7",
    ];
    proptest::sample::select(all.map(|text| text.parse().unwrap()).to_vec())
}

fn next_hop() -> impl Strategy<Value = NextHop> {
    (gateway(), device(), any::<bool>()).prop_map(|(gateway, link, onlink)| NextHop { gateway, link, onlink })
}

fn route() -> impl Strategy<Value = Route> {
    let destinations = ["10.0.1.0/24", "10.0.2.0/24", "fc00:0:0:1::/64", "fc00:0:0:2::/64"];
    let target = prop_oneof![
        6 => next_hop().prop_map(Target::Via),
        3 => (1u32..4).prop_map(Target::NextHopObject),
        2 => device().prop_map(Target::Device),
        1 => Just(Target::Blackhole),
    ];
    (proptest::sample::select(destinations.map(net).to_vec()), target)
        // A gateway of the other family cannot be written in a plan.
        .prop_filter("one family", |(destination, target)| match target {
            Target::Via(next_hop) => next_hop.gateway.is_ipv4() == destination.addr().is_ipv4(),
            _ => true,
        })
        .prop_map(|(destination, target)| Route {
            destination,
            metric: Route::default_metric(&destination),
            target,
            protocol: ROUTE_PROTOCOL,
        })
}

fn tunnel() -> impl Strategy<Value = fabric::dataplane::Link> {
    let kind =
        prop_oneof![Just(("flannel.1", LOCAL4)), Just(("flannel-v6.1", LOCAL6)), Just(("flannel.2", LOCAL4))];
    (
        kind,
        1u32..3,
        proptest::option::of(Just(4789)),
        prop_oneof![9 => Just("eth0"), 1 => Just("nosuch0")],
        1300u32..1600,
    )
        .prop_map(|((device, local), vni, port, underlay, mtu)| {
            let mut link = vxlan(device, local);
            let LinkKind::Vxlan(vxlan) = &mut link.kind else { return link };
            (vxlan.vni, vxlan.port, vxlan.underlay) = (vni, port, name(underlay));
            link.mtu = mtu;
            link
        })
}

fn address() -> impl Strategy<Value = IpNet> {
    let all = ["10.200.0.0/32", "10.200.0.1/24", "fc00:0:0:ffff::/128", "fc00:0:0:fffe::1/64"];
    proptest::sample::select(all.map(net).to_vec())
}

fn event() -> impl Strategy<Value = Event> {
    let mac = || (0u8..4).prop_map(|last| Mac([2, 0, 0, 0, 7, last]));
    let change = prop_oneof![
        4 => tunnel().prop_map(Change::CreateLink),
        1 => tunnel_device().prop_map(Change::DeleteLink),
        1 => (device(), prop_oneof![1 => Just(60), 5 => 1400u32..1600]).prop_map(|(link, mtu)| Change::SetMtu(link, mtu)),
        1 => (device(), any::<[u8; 6]>()).prop_map(|(link, mac)| Change::SetMac(link, Mac(mac))),
        3 => device().prop_map(Change::SetUp),
        3 => (device(), address()).prop_map(|(link, net)| Change::AddAddress(link, net)),
        1 => (device(), address()).prop_map(|(link, net)| Change::RemoveAddress(link, net)),
        3 => (device(), gateway(), mac()).prop_map(|(link, ip, mac)| Change::SetNeighbor(link, ip, mac)),
        1 => (device(), gateway()).prop_map(|(link, ip)| Change::RemoveNeighbor(link, ip)),
        3 => (tunnel_device(), mac(), gateway()).prop_map(|(link, mac, to)| Change::SetFdb(link, mac, to)),
        1 => (tunnel_device(), mac(), gateway()).prop_map(|(link, mac, to)| Change::RemoveFdb(link, mac, to)),
        4 => (1u32..4, next_hop()).prop_map(|(id, next_hop)| Change::AddNextHop(id, next_hop)),
        1 => (1u32..4).prop_map(Change::RemoveNextHop),
        8 => route().prop_map(Change::SetRoute),
        2 => route().prop_map(Change::RemoveRoute),
    ];
    prop_oneof![12 => change.prop_map(Event::Change), 1 => device().prop_map(Event::SetDown)]
}

/// What of a look can be compared: without numbers, without what is link-local or on other devices.
fn comparable(mut seen: Observed) -> Observed {
    let ours = |link: &LinkName| link.as_str().starts_with("flannel") || link.as_str() == "eth0";
    let is_local = |net: &IpNet| matches!(net, IpNet::V6(net) if net.addr().is_unicast_link_local());
    seen.links.retain(|link, _| ours(link));
    for (name, link) in &mut seen.links {
        link.index = 0;
        if name.as_str() == "eth0" {
            (link.mac, link.kind) = (None, fabric::dataplane::ObservedLinkKind::Other(String::new()));
        }
    }
    seen.addresses.retain(|(link, net)| ours(link) && !is_local(net));
    seen.routes.retain(|route| !is_local(&route.destination));
    seen
}

type Lines = std::collections::BTreeSet<String>;

fn lines(seen: &Observed) -> Lines {
    let mut lines = Lines::new();
    lines.extend(seen.sysctls.iter().map(|found| format!("{found:?}\n")));
    lines.extend(seen.links.iter().map(|found| format!("{found:?}\n")));
    lines.extend(seen.addresses.iter().map(|found| format!("address {found:?}\n")));
    lines.extend(seen.neighbors.iter().map(|found| format!("neighbor {found:?}\n")));
    lines.extend(seen.fdb.iter().map(|found| format!("fdb {found:?}\n")));
    lines.extend(seen.next_hops.iter().map(|found| format!("{found:?}\n")));
    lines.extend(seen.routes.iter().map(|found| format!("route {found}, {:?}\n", found.target)));
    lines
}

/// Lets everything happen to both kernels and compares them after each step.
fn compare(linux: &mut Linux, fake: &mut Fake, events: &[Event]) -> Result<(), String> {
    for (at, event) in events.iter().enumerate() {
        match event {
            Event::SetDown(link) => {
                if let Some(index) = link::index(linux.socket(), *link).unwrap() {
                    link::set_down(linux.socket(), index).unwrap();
                }
                fake.set_down(*link);
            }
            Event::Change(change) => {
                let errno =
                    |failures: Vec<kernel::Failure>| failures.first().map(|failure| failure.error.errno());
                let real = linux.apply(std::slice::from_ref(change));
                let shown = format!("{real:?}");
                let (real, faked) = (errno(real), errno(fake.apply(std::slice::from_ref(change))));
                if real != faked {
                    return Err(format!("step {at}, {change}:\nLinux {shown}\nfake {faked:?}"));
                }
            }
        }
        let real = comparable(linux.observe(&scope()).unwrap());
        let faked = comparable(fake.observe(&scope()).unwrap());
        if real != faked {
            let (real, faked) = (lines(&real), lines(&faked));
            let only = |these: &Lines, those: &Lines| these.difference(those).cloned().collect::<String>();
            return Err(format!(
                "step {at}, {event:?}:\nonly Linux has\n{}\nonly the fake has\n{}",
                only(&real, &faked),
                only(&faked, &real)
            ));
        }
    }
    Ok(())
}

#[test]
fn the_fake_does_and_refuses_what_linux_does_and_refuses() {
    if !namespace::enter(&[]) {
        return;
    }
    let config = cases(60);
    proptest!(config, |(events in proptest::collection::vec(event(), 1..40))| {
        let of_a_fresh_kernel = move || {
            // SAFETY: see `namespace::enter`.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
            let mut linux = open();
            let mut fake = Fake::new();
            fake.add_device(name("eth0"), 1500, &[net("192.168.0.1/16"), net("fd00::1/64")]);
            compare(&mut linux, &mut fake, &events)
        };
        let outcome = std::thread::spawn(of_a_fresh_kernel).join().unwrap();
        prop_assert!(outcome.is_ok(), "{}", outcome.unwrap_err());
    });
}
