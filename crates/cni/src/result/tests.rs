use proptest::prelude::*;

use super::*;

fn dual_stack() -> AddResult {
    AddResult {
        version: Version::V1_1_0,
        interfaces: vec![
            Interface {
                name: "cni0".into(),
                mac: "02:00:00:00:00:01".into(),
                mtu: 1450,
                ..Interface::default()
            },
            Interface {
                name: "eth0".into(),
                mac: "02:00:00:00:00:02".into(),
                sandbox: "/run/netns/a".into(),
                ..Interface::default()
            },
        ],
        ips: vec![
            IpConfig {
                interface: Some(1),
                address: "10.244.1.2/24".parse().unwrap(),
                gateway: Some("10.244.1.1".parse().unwrap()),
            },
            IpConfig { interface: Some(1), address: "fc00::2/64".parse().unwrap(), gateway: None },
        ],
        routes: vec![
            Route { mtu: 1400, table: Some(7), ..Route::to("10.244.0.0/16".parse().unwrap()) },
            Route::to("fc00::/48".parse().unwrap()),
        ],
        dns: Dns::default(),
    }
}

#[test]
fn version_1_prints_members_in_alphabetical_order_and_leaves_empty_ones_out() {
    let text = dual_stack().convert(Version::V1_0_0).unwrap().to_json();
    let expected = r#"{
    "cniVersion": "1.0.0",
    "interfaces": [
        {
            "mac": "02:00:00:00:00:01",
            "mtu": 1450,
            "name": "cni0"
        },
        {
            "mac": "02:00:00:00:00:02",
            "name": "eth0",
            "sandbox": "/run/netns/a"
        }
    ],
    "ips": [
        {
            "address": "10.244.1.2/24",
            "gateway": "10.244.1.1",
            "interface": 1
        },
        {
            "address": "fc00::2/64",
            "interface": 1
        }
    ],
    "routes": [
        {
            "dst": "10.244.0.0/16",
            "mtu": 1400,
            "table": 7
        },
        {
            "dst": "fc00::/48"
        }
    ]
}"#;
    assert_eq!(text, expected);
}

#[test]
fn version_0_3_names_the_family_of_addresses_and_always_prints_dns() {
    let mut result = dual_stack();
    result.interfaces.truncate(1);
    result.ips.truncate(1);
    result.routes.truncate(1);
    let expected = r#"{
    "cniVersion": "0.3.1",
    "interfaces": [
        {
            "name": "cni0",
            "mac": "02:00:00:00:00:01"
        }
    ],
    "ips": [
        {
            "version": "4",
            "interface": 1,
            "address": "10.244.1.2/24",
            "gateway": "10.244.1.1"
        }
    ],
    "routes": [
        {
            "dst": "10.244.0.0/16",
            "mtu": 1400,
            "table": 7
        }
    ],
    "dns": {}
}"#;
    assert_eq!(result.convert(Version::V0_3_1).unwrap().to_json(), expected);
}

#[test]
fn version_0_2_keeps_one_address_per_family_with_its_routes() {
    let expected = r#"{
    "cniVersion": "0.2.0",
    "ip4": {
        "ip": "10.244.1.2/24",
        "gateway": "10.244.1.1",
        "routes": [
            {
                "dst": "10.244.0.0/16"
            }
        ]
    },
    "ip6": {
        "ip": "fc00::2/64",
        "routes": [
            {
                "dst": "fc00::/48"
            }
        ]
    },
    "dns": {}
}"#;
    assert_eq!(dual_stack().convert(Version::V0_2_0).unwrap().to_json(), expected);
}

#[test]
fn a_result_without_addresses_has_no_place_in_the_oldest_versions() {
    let error = AddResult::empty(Version::V1_0_0).convert(Version::V0_1_0).unwrap_err();
    assert_eq!(error.msg, "cannot convert: no valid IP addresses");
    // What came in that version goes out in it unchanged.
    assert!(AddResult::empty(Version::V0_2_0).convert(Version::V0_2_0).is_ok());
}

#[test]
fn a_result_without_a_version_has_the_one_of_the_configuration() {
    let result =
        AddResult::parse(br#"{"ip4":{"ip":"10.0.0.2/24","routes":[{"dst":"0.0.0.0/0"}]}}"#, Version::V0_2_0);
    let result = result.unwrap();
    assert_eq!(result.version, Version::V0_2_0);
    assert_eq!(result.ips.len(), 1);
    assert_eq!(result.routes.len(), 1);
    assert_eq!(AddResult::parse(b"null", Version::V1_0_0), Ok(AddResult::empty(Version::V1_0_0)));
    assert!(AddResult::parse(br#"{"cniVersion":"7.0.0"}"#, Version::V1_0_0).is_err());
}

fn any_address() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        (any::<[u8; 4]>(), 0u8..=32).prop_map(|(a, p)| IpNet::new(IpAddr::from(a), p).unwrap()),
        (any::<[u16; 8]>(), 0u8..=128).prop_map(|(a, p)| IpNet::new(IpAddr::from(a), p).unwrap()),
    ]
}

fn any_result() -> impl Strategy<Value = AddResult> {
    let interface = ("[a-z<&]{0,15}", "[0-9a-f:]{0,17}", 0i64..9000, "[/a-z]{0,9}")
        .prop_map(|(name, mac, mtu, sandbox)| Interface { name, mac, mtu, sandbox, ..Interface::default() });
    let ip = (proptest::option::of(0i64..4), any_address(), proptest::option::of(any::<[u8; 4]>()))
        .prop_map(|(interface, address, gw)| IpConfig { interface, address, gateway: gw.map(IpAddr::from) });
    let route = (any_address(), 0i64..9000, proptest::option::of(0i64..300))
        .prop_map(|(dst, mtu, table)| Route { mtu, table, ..Route::to(dst) });
    let list = |n| 0usize..n;
    (
        proptest::collection::vec(interface, list(4)),
        proptest::collection::vec(ip, list(4)),
        proptest::collection::vec(route, list(4)),
        proptest::collection::vec(".*", list(3)),
    )
        .prop_map(|(interfaces, ips, routes, search)| AddResult {
            version: Version::V1_1_0,
            interfaces,
            ips,
            routes,
            dns: Dns { search, ..Dns::default() },
        })
}

proptest! {
    #[test]
    fn the_current_version_round_trips(result in any_result()) {
        let text = result.to_json();
        prop_assert_eq!(AddResult::parse(text.as_bytes(), Version::V0_1_0), Ok(result));
    }

    #[test]
    fn every_version_reads_what_it_prints(result in any_result(), version in proptest::sample::select(&Version::ALL[..])) {
        if let Ok(converted) = result.convert(version) {
            let text = converted.to_json();
            let read = AddResult::parse(text.as_bytes(), Version::V0_1_0).unwrap();
            prop_assert_eq!(read.to_json(), text);
        }
    }
}

#[test]
fn an_empty_list_of_a_network_takes_the_place_of_what_ipam_says() {
    let of_network = |text: &str| {
        let value = json::parse(text.as_bytes()).unwrap();
        Dns::of_network(&json::Object::of(&value, "the test").unwrap()).unwrap()
    };
    assert_eq!(of_network(r#"{"nameservers": [], "search": null}"#), Some(Dns::default()));
    assert_eq!(of_network(r#"{"domain": "", "search": null}"#), None);
    assert_eq!(of_network("{}"), None);
    assert_eq!(of_network(r#"{"domain": "a"}"#).unwrap().domain, "a");
}
