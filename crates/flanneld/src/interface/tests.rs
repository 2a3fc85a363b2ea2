use super::again::still_stands;
use super::*;

const V4: Families = Families { ipv4: true, ipv6: false };
const V6: Families = Families { ipv4: false, ipv6: true };
const DUAL: Families = Families { ipv4: true, ipv6: true };

/// `eth0 192.0.2.1 fd00::1`, with `@kind` behind the name, and `?` (deprecated), `!` (unusable),
/// `~` (temporary) or `*` (not permanent) behind an address.
fn interface(text: &str) -> Interface {
    let mut words = text.split_whitespace();
    let (name, kind) = words.next().unwrap().split_once('@').unwrap_or((text.split(' ').next().unwrap(), ""));
    let addresses = words
        .map(|word| Address {
            ip: word.trim_end_matches(['?', '!', '~', '*']).parse().unwrap(),
            deprecated: word.ends_with('?'),
            unusable: word.ends_with('!'),
            temporary: word.ends_with('~'),
            permanent: !word.ends_with('*'),
        })
        .collect();
    Interface {
        name: name.parse().unwrap(),
        mtu: 1500,
        up: true,
        loopback: name == "lo",
        kind: kind.to_owned(),
        addresses,
    }
}

fn default_route(text: &str) -> DefaultRoute {
    let (family, links) = text.split_once(' ').unwrap();
    DefaultRoute { ipv6: family == "v6", links: links.split(' ').map(|link| link.parse().unwrap()).collect() }
}

fn around(interfaces: &[&str], routes: &[&str]) -> Surroundings {
    Surroundings {
        interfaces: interfaces.iter().map(|text| interface(text)).collect(),
        default_routes: routes.iter().map(|text| default_route(text)).collect(),
        reached: None,
        networks: vec!["10.244.0.0/16".parse().unwrap(), "fd44::/48".parse().unwrap()],
    }
}

/// The choice as `link ipv4 ipv6: reason`, or the error.
fn chosen(wanted: &Wanted, families: Families, around: &Surroundings) -> String {
    match choose(wanted, families, around) {
        Ok(Choice { external, reason }) => {
            let addresses = [external.ipv4.map(IpAddr::V4), external.ipv6.map(IpAddr::V6)];
            let addresses: Vec<_> = addresses.iter().flatten().map(|ip| ip.to_string()).collect();
            format!("{} {}: {reason}", external.link, addresses.join(" "))
        }
        Err(error) => error.to_string(),
    }
}

fn names(names: &[&str]) -> Wanted {
    Wanted { names: names.iter().map(|name| (*name).to_owned()).collect(), ..Wanted::default() }
}

fn pattern(text: &str) -> Wanted {
    Wanted { patterns: vec![Regex::new(text).unwrap()], ..Wanted::default() }
}

fn host() -> Surroundings {
    around(
        &[
            "lo 127.0.0.1 ::1",
            "eth0 192.0.2.1 fe80::1 2001:db8::1",
            "eth1 10.0.0.1 10.0.0.2 fd00::1",
            "cni0@bridge 10.244.1.1",
        ],
        &["v4 eth0", "v6 eth0"],
    )
}

#[test]
fn nothing_asked_for_takes_the_default_route() {
    let wanted = Wanted::default();
    assert_eq!(chosen(&wanted, V4, &host()), "eth0 192.0.2.1: the default route goes through it");
    assert_eq!(chosen(&wanted, V6, &host()), "eth0 2001:db8::1: the default route goes through it");
    assert_eq!(
        chosen(&wanted, DUAL, &host()),
        "eth0 192.0.2.1 2001:db8::1: the default route goes through it"
    );
}

#[test]
fn names_and_addresses_are_tried_in_order() {
    let cases = [
        (&["eth1"][..], V4, "eth1 10.0.0.1: -iface=eth1"),
        (&["10.0.0.2"], V4, "eth1 10.0.0.2: -iface=10.0.0.2"),
        (&["wlan0", "192.0.2.9", "eth1", "eth0"], V4, "eth1 10.0.0.1: -iface=eth1"),
        (&["fd00::1"], V6, "eth1 fd00::1: -iface=fd00::1"),
        (&["10.0.0.2"], DUAL, "eth1 10.0.0.2 fd00::1: -iface=10.0.0.2"),
        // The original crashes here.
        (&["fd00::1"], DUAL, "eth1 10.0.0.1 fd00::1: -iface=fd00::1"),
        (&["127.0.0.1"], V4, "lo 127.0.0.1: -iface=127.0.0.1"),
        (&["lo", "eth1"], V4, "eth1 10.0.0.1: -iface=eth1"),
        (&["fd00::1", "eth0"], V4, "eth0 192.0.2.1: -iface=eth0"),
        (&["cni0", "eth0"], DUAL, "eth0 192.0.2.1 2001:db8::1: -iface=eth0"),
    ];
    for (asked, families, want) in cases {
        assert_eq!(chosen(&names(asked), families, &host()), want, "{asked:?} {families:?}");
    }
}

#[test]
fn what_was_asked_for_and_is_not_there_is_refused_with_what_is() {
    assert_eq!(
        chosen(
            &names(&["wlan0", "192.0.2.9"]),
            V4,
            &around(&["lo 127.0.0.1", "eth0 192.0.2.1"], &["v4 eth0"])
        ),
        "no interface to the other nodes found: there is no interface -iface=wlan0; no interface has \
         -iface=192.0.2.9; the interfaces are lo (127.0.0.1), eth0 (192.0.2.1)"
    );
    assert!(
        chosen(&names(&["eth0"]), DUAL, &around(&["eth0 192.0.2.1"], &[]))
            .contains("eth0 has no IPv6 address")
    );
}

#[test]
fn patterns_match_addresses_before_names() {
    let cases = [
        (r"^10\.", V4, r"eth1 10.0.0.1: 10.0.0.1 matches -iface-regex=^10\."),
        (r"10\.0\.0\.2", V4, r"eth1 10.0.0.2: 10.0.0.2 matches -iface-regex=10\.0\.0\.2"),
        ("^eth", V4, "eth0 192.0.2.1: its name matches -iface-regex=^eth"),
        ("th1", V4, "eth1 10.0.0.1: its name matches -iface-regex=th1"),
        ("^fd00", V6, "eth1 fd00::1: fd00::1 matches -iface-regex=^fd00"),
        // One that matches in both families wins over one that matches in IPv4 alone.
        (
            r"^192\.|^10\.0|^fd00",
            DUAL,
            r"eth1 10.0.0.1 fd00::1: 10.0.0.1 matches -iface-regex=^192\.|^10\.0|^fd00",
        ),
        (r"^192\.", DUAL, r"eth0 192.0.2.1 2001:db8::1: 192.0.2.1 matches -iface-regex=^192\."),
    ];
    for (text, families, want) in cases {
        assert_eq!(chosen(&pattern(text), families, &host()), want, "{text} {families:?}");
    }
    assert!(chosen(&pattern("^wlan"), V4, &host()).contains("nothing matches -iface-regex=^wlan"));
}

#[test]
fn names_come_before_patterns_and_patterns_before_the_way_to_an_address() {
    let mut around = host();
    around.reached = Some(Ok(Reached { link: "eth1".parse().unwrap(), source: Some([10, 0, 0, 2].into()) }));
    let mut wanted = Wanted { can_reach: Some([10, 9, 9, 9].into()), ..pattern("^wlan") };
    wanted.names = vec!["wlan0".to_owned()];
    assert_eq!(
        chosen(&wanted, V4, &around),
        "eth1 10.0.0.2: -iface-can-reach=10.9.9.9 is reached through it"
    );
    wanted.patterns = vec![Regex::new("^eth0$").unwrap()];
    assert_eq!(chosen(&wanted, V4, &around), "eth0 192.0.2.1: its name matches -iface-regex=^eth0$");
}

#[test]
fn the_way_to_an_address_gives_interface_and_source() {
    let wanted = Wanted { can_reach: Some("2001:db8::9".parse().unwrap()), ..Wanted::default() };
    let mut around = host();
    around.reached =
        Some(Ok(Reached { link: "eth1".parse().unwrap(), source: Some("fd00::1".parse().unwrap()) }));
    // The original crashes on an IPv6 address here.
    assert_eq!(
        chosen(&wanted, DUAL, &around),
        "eth1 10.0.0.1 fd00::1: -iface-can-reach=2001:db8::9 is reached through it"
    );
    around.reached = Some(Err("network is unreachable".to_owned()));
    assert!(chosen(&wanted, V4, &around).contains("2001:db8::9 cannot be reached: network is unreachable"));
}

#[test]
fn a_public_address_selects_the_interface_only_where_it_is_local() {
    let local = Wanted { public_ipv4: Some([10, 0, 0, 2].into()), ..Wanted::default() };
    assert_eq!(chosen(&local, V4, &host()), "eth1 10.0.0.2: it has -public-ip=10.0.0.2");
    // In a network without IPv4 it says nothing.
    assert_eq!(chosen(&local, V6, &host()), "eth0 2001:db8::1: the default route goes through it");

    let nat = Wanted { public_ipv4: Some([203, 0, 113, 7].into()), ..Wanted::default() };
    let choice = choose(&nat, V4, &host()).unwrap();
    assert_eq!(choice.external.ipv4, Some([192, 0, 2, 1].into()));
    assert_eq!(choice.external.public_ipv4, Some([203, 0, 113, 7].into()));

    let named = Wanted { public_ipv4: Some([10, 0, 0, 2].into()), ..names(&["eth0"]) };
    let choice = choose(&named, V4, &host()).unwrap();
    assert_eq!(
        (choice.external.ipv4, choice.external.public_ipv4),
        (Some([192, 0, 2, 1].into()), Some([10, 0, 0, 2].into()))
    );
}

#[test]
fn default_routes_with_several_next_hops_or_interfaces_are_followed() {
    let reason = ": the default route goes through it";
    let multipath = around(&["eth0 fd00::1", "eth1 10.0.0.1"], &["v4 eth0 eth1"]);
    assert_eq!(chosen(&Wanted::default(), V4, &multipath), format!("eth1 10.0.0.1{reason}"));
    let apart = around(&["eth0 192.0.2.1", "eth1 10.0.0.1 fd00::1"], &["v4 eth0", "v6 eth1"]);
    assert_eq!(chosen(&Wanted::default(), DUAL, &apart), format!("eth1 10.0.0.1 fd00::1{reason}"));
    let v4_only = around(&["eth0 192.0.2.1 fd00::1"], &["v4 eth0"]);
    assert_eq!(chosen(&Wanted::default(), DUAL, &v4_only), format!("eth0 192.0.2.1 fd00::1{reason}"));
}

#[test]
fn without_a_default_route_the_only_interface_that_can_be_meant_is_taken() {
    let only = "it is the only one with a usable address";
    let cases: &[(&[&str], String)] = &[
        (&["lo 127.0.0.1", "eth0 192.0.2.1"], format!("eth0 192.0.2.1: {only}")),
        (&["eth0 192.0.2.1", "cni0@bridge 10.244.1.1"], format!("eth0 192.0.2.1: {only}")),
        (&["eth0 192.0.2.1", "docker0@bridge 172.17.0.1"], format!("eth0 192.0.2.1: {only}")),
        (&["br0@bridge 192.0.2.1", "cni0@bridge 10.244.1.1"], format!("br0 192.0.2.1: {only}")),
        (&["eth0 192.0.2.1", "flannel.1@vxlan 10.9.0.0"], format!("eth0 192.0.2.1: {only}")),
        (&["eth0 192.0.2.1", "eth1 169.254.3.4"], format!("eth0 192.0.2.1: {only}")),
    ];
    for (interfaces, want) in cases {
        assert_eq!(chosen(&Wanted::default(), V4, &around(interfaces, &[])), *want, "{interfaces:?}");
    }
    let two = chosen(&Wanted::default(), V4, &around(&["eth0 192.0.2.1", "eth1 10.0.0.1"], &[]));
    assert!(two.contains("eth0, eth1 could each be meant; say which with -iface"), "{two}");
    let none = chosen(&Wanted::default(), V4, &around(&["lo 127.0.0.1"], &[]));
    assert!(none.contains("there is no default route; no interface has a usable address"), "{none}");
    let mut down = around(&["eth0 192.0.2.1"], &[]);
    down.interfaces[0].up = false;
    assert!(chosen(&Wanted::default(), V4, &down).contains("eth0 (192.0.2.1, down)"));
}

#[test]
fn the_best_address_of_an_interface_stands_for_it() {
    let first = |addresses: &str, families: Families| {
        let text = chosen(&names(&["eth0"]), families, &around(&[&format!("eth0 {addresses}")], &[]));
        text.split(':').next().unwrap_or_default().to_owned()
    };
    assert_eq!(first("169.254.1.1 192.0.2.1", V4), "eth0 192.0.2.1", "global before link-local");
    assert_eq!(first("169.254.1.1", V4), "eth0 169.254.1.1", "link-local rather than none");
    assert_eq!(first("192.0.2.1? 192.0.2.2", V4), "eth0 192.0.2.2", "not a deprecated one");
    assert_eq!(first("192.0.2.1* 192.0.2.2", V4), "eth0 192.0.2.2", "a permanent one first");
    assert_eq!(first("192.0.2.3 192.0.2.2", V4), "eth0 192.0.2.3", "otherwise the kernel's order");
    let v6 = |addresses: &str| {
        choose(&names(&["eth0"]), V6, &around(&[&format!("eth0 {addresses}")], &[])).unwrap().external.ipv6
    };
    assert_eq!(v6("fd00::1! fd00::2"), Some("fd00::2".parse().unwrap()), "not one that is no duplicate-free");
    assert_eq!(v6("fd00::1~ fd00::2"), Some("fd00::2".parse().unwrap()), "not a privacy address");
}

#[test]
fn a_choice_stands_while_its_addresses_are_there() {
    let mut now = host();
    let choice = choose(&Wanted::default(), DUAL, &now).unwrap();
    assert!(still_stands(&choice, &now));
    now.interfaces.insert(0, interface("eth9 192.0.2.77"));
    now.default_routes = vec![default_route("v4 eth1")];
    assert!(still_stands(&choice, &now), "another way out is no reason to move");

    let without = |change: fn(&mut Interface)| {
        let mut now = now.clone();
        change(now.interfaces.iter_mut().find(|interface| interface.name.as_str() == "eth0").unwrap());
        still_stands(&choice, &now)
    };
    assert!(!without(|eth0| eth0.addresses.retain(|address| address.ip.is_ipv6())));
    assert!(!without(|eth0| eth0.addresses.retain(|address| address.ip.is_ipv4())));
    assert!(!without(|eth0| eth0.up = false));
    assert!(!without(|eth0| eth0.mtu = 1400));
    now.interfaces.retain(|interface| interface.name.as_str() != "eth0");
    assert!(!still_stands(&choice, &now));
}

#[test]
fn only_a_link_local_address_makes_way_and_none_makes_way_for_it() {
    let of = |addresses: &str| around(&[&format!("eth0 {addresses}")], &["v4 eth0"]);
    let wanted = Wanted::default();
    let full = "192.0.2.1 fe80::1 fd00::1";
    let choice = choose(&wanted, DUAL, &of(full)).unwrap();
    let again = |addresses: &str| choose_again(&choice, &wanted, DUAL, &of(addresses));
    for without in ["192.0.2.1 fe80::1", "192.0.2.1 fe80::1 fd00::1!", "192.0.2.9 fe80::1"] {
        let error = again(without).unwrap_err().to_string();
        assert!(error.contains("what eth0 has is fe80::1"), "{error}");
    }
    assert_eq!(again(full), Ok(choice.clone()), "it is back");
    assert_eq!(again("192.0.2.1 fe80::1 fd00::2").unwrap().external.ipv6, Some("fd00::2".parse().unwrap()));

    let poor = choose(&wanted, DUAL, &of("192.0.2.1 fe80::1")).unwrap();
    let later = |addresses: &str| choose_again(&poor, &wanted, DUAL, &of(addresses));
    assert_eq!(later("192.0.2.1 fe80::1 fe80::2"), Ok(poor.clone()));
    assert_eq!(later(full), Ok(choice.clone()));
    assert_eq!(later("192.0.2.1 fe80::2").unwrap().external.ipv6, Some("fe80::2".parse().unwrap()));

    let told = names(&["fe80::1"]);
    let choice = choose(&told, V6, &of(full)).unwrap();
    assert_eq!(choose_again(&choice, &told, V6, &of(full)), Ok(choice));
}

#[test]
fn an_interface_without_mtu_is_passed_over() {
    let mut around = around(&["eth0 192.0.2.1", "eth1 10.0.0.1"], &[]);
    around.interfaces[0].mtu = 0;
    assert_eq!(chosen(&names(&["eth0", "eth1"]), V4, &around), "eth1 10.0.0.1: -iface=eth1");
}
