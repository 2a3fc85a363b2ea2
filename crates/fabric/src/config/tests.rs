use super::backend::VXLAN;
use super::*;
use crate::backend::vxlan::Vxlan;
use proptest::prelude::*;

fn read(json: &str) -> NetworkConfig {
    NetworkConfig::from_json(json).unwrap_or_else(|error| panic!("{json}: {error}"))
}

fn error(json: &str) -> String {
    match NetworkConfig::from_json(json) {
        Ok(config) => panic!("{json} was taken as {config:?}"),
        Err(error) => error.to_string(),
    }
}

/// A configuration with these keys before a vxlan backend.
fn vxlan(keys: &str) -> String {
    format!(r#"{{{keys}, "Backend": {{"Type": "vxlan"}}}}"#)
}

fn ipv4(keys: &str) -> Ipv4Network {
    read(&vxlan(keys)).ipv4.unwrap()
}

fn ipv6(keys: &str) -> Ipv6Network {
    read(&vxlan(&format!(r#""EnableIPv4": false, "EnableIPv6": true, {keys}"#))).ipv6.unwrap()
}

fn backend(keys: &str) -> Vxlan {
    let json = format!(r#"{{"Network": "10.3.0.0/16", "Backend": {{"Type": "vxlan" {keys}}}}}"#);
    let Backend::Vxlan(vxlan) = read(&json).backend else { panic!("not vxlan") };
    vxlan
}

#[test]
fn lengths_and_ranges_are_derived_as_in_the_original() {
    for (network, len, min, max) in [
        ("10.3.0.0/16", 24, "10.3.1.0", "10.3.255.0"),
        ("10.3.7.9/16", 24, "10.3.1.0", "10.3.255.0"),
        ("10.0.0.0/22", 24, "10.0.1.0", "10.0.3.0"),
        ("10.0.0.0/23", 25, "10.0.0.128", "10.0.1.128"),
        ("10.0.0.0/28", 30, "10.0.0.4", "10.0.0.12"),
        ("255.255.0.0/16", 24, "255.255.1.0", "255.255.255.0"),
    ] {
        let net = ipv4(&format!(r#""Network": "{network}""#));
        assert_eq!(
            (net.subnet_len, net.subnet_min.to_string(), net.subnet_max.to_string()),
            (len, min.into(), max.into()),
            "{network}"
        );
        assert_eq!(net.network, net.network.trunc(), "host bits are masked");
    }
    for (network, len, min, max) in [
        ("fc00::/48", 64, "fc00:0:0:1::", "fc00:0:0:ffff::"),
        ("fc00::/62", 64, "fc00:0:0:1::", "fc00:0:0:3::"),
        ("fd00::/63", 65, "fd00::8000:0:0:0", "fd00:0:0:1:8000::"),
        ("fd00::/124", 126, "fd00::4", "fd00::c"),
        ("ffff::/16", 64, "ffff:0:0:1::", "ffff:ffff:ffff:ffff::"),
    ] {
        let net = ipv6(&format!(r#""IPv6Network": "{network}""#));
        assert_eq!(
            (net.subnet_len, net.subnet_min.to_string(), net.subnet_max.to_string()),
            (len, min.into(), max.into()),
            "{network}"
        );
    }
    let net = ipv4(r#""Network": "10.0.0.0/16", "SubnetLen": 18"#);
    assert_eq!(
        (net.subnet_min.to_string(), net.subnet_max.to_string()),
        ("10.0.64.0".into(), "10.0.192.0".into())
    );
}

#[test]
fn given_values_are_taken_whatever_the_case_of_their_keys() {
    let net = ipv4(
        r#""network": "10.3.0.0/16", "subnetmin": "10.3.5.0", "SUBNETMAX": "10.3.8.16", "subnetLen": 28"#,
    );
    assert_eq!(
        (net.subnet_len, net.subnet_min.to_string(), net.subnet_max.to_string()),
        (28, "10.3.5.0".into(), "10.3.8.16".into())
    );
    let net = ipv6(
        r#""ipv6network": "fc00::/48", "ipv6subnetmin": "fc00::10", "ipv6subnetmax": "fc00::f0", "ipv6subnetlen": 124"#,
    );
    assert_eq!(
        (net.subnet_len, net.subnet_min.to_string(), net.subnet_max.to_string()),
        (124, "fc00::10".into(), "fc00::f0".into())
    );
    assert_eq!(
        read("{\"Network\": \"10.3.0.0/16\", \"bac\u{212a}end\": {\"Type\": \"vxlan\"}}").backend.name(),
        "vxlan"
    );
}

#[test]
fn of_equal_keys_the_last_counts() {
    assert_eq!(
        ipv4(r#""Network": "10.1.0.0/16", "network": "10.2.0.0/16""#).network.to_string(),
        "10.2.0.0/16"
    );
    assert_eq!(
        ipv4(r#""network": "10.1.0.0/16", "Network": "10.2.0.0/16""#).network.to_string(),
        "10.2.0.0/16"
    );
    assert_eq!(backend(r#", "VNI": 7, "vni": 8"#).vni, 8);
}

#[test]
fn null_and_zero_leave_the_default() {
    let net =
        ipv4(r#""EnableIPv4": null, "Network": "10.3.0.0/16", "SubnetLen": null, "SubnetMin": "0.0.0.0""#);
    assert_eq!((net.subnet_len, net.subnet_min.to_string()), (24, "10.3.1.0".into()));
    assert_eq!(ipv4(r#""Network": "10.3.0.0/16", "SubnetLen": 0"#).subnet_len, 24);
    assert_eq!(
        ipv6(r#""IPv6Network": "fc00::/48", "IPv6SubnetMin": null"#).subnet_min.to_string(),
        "fc00:0:0:1::"
    );
    let vxlan = backend(r#", "VNI": null, "Port": 0, "MTU": 0, "MacPrefix": """#);
    assert_eq!((vxlan.vni, vxlan.port, vxlan.mtu, vxlan.mac_prefix), (1, None, None, None));
}

#[test]
fn refusals_keep_the_originals_words_and_add_key_value_and_rule() {
    for (json, texts) in [
        ("", &["the network configuration is not one JSON object"][..]),
        ("null", &["please define a correct Network parameter in the flannel config"]),
        ("[]", &["expected an object"]),
        (r#"{"Network": "10.3.0.0/16"} x"#, &["trailing characters"]),
        ("{\"Network\": \"10.3.0.0/16\"", &["EOF while parsing"]),
        (
            &vxlan(r#""EnableIPv4": true"#),
            &["please define a correct Network parameter in the flannel config: Network is not set"],
        ),
        (
            &vxlan(r#""Network": "0.0.0.0/0""#),
            &["please define a correct Network parameter in the flannel config", "0.0.0.0/0"],
        ),
        (
            &vxlan(r#""Network": "10.3.0.0""#),
            &["invalid CIDR address: 10.3.0.0: Network is \"10.3.0.0\", want"],
        ),
        (&vxlan(r#""Network": """#), &["invalid CIDR address: :"]),
        (&vxlan(r#""Network": null"#), &["invalid CIDR address: null"]),
        (&vxlan(r#""Network": 5"#), &["invalid CIDR address: 5"]),
        (&vxlan(r#""Network": "fd00::/48""#), &["invalid IPv4 CIDR format", "IPv6Network"]),
        (
            &vxlan(r#""Network": "10.3.0.0/16", "SubnetLen": 31"#),
            &["SubnetLen must be less than /31: SubnetLen is 31, want 18 to 30"],
        ),
        (
            &vxlan(r#""Network": "10.3.0.0/16", "SubnetLen": 17"#),
            &[
                "network must be able to accommodate at least four subnets: SubnetLen is 17 and Network is 10.3.0.0/16, want SubnetLen 18 to 30",
            ],
        ),
        (
            &vxlan(r#""Network": "10.3.0.0/29", "SubnetLen": 30"#),
            &["network must be able to accommodate at least four subnets"],
        ),
        (
            &vxlan(r#""Network": "10.3.0.0/29""#),
            &["network is too small. Minimum useful network prefix is /28: Network is 10.3.0.0/29"],
        ),
        (
            &vxlan(r#""Network": "10.3.0.0/16", "SubnetMin": "10.4.0.0""#),
            &[
                "SubnetMin is not in the range of the Network: SubnetMin is 10.4.0.0, want 10.3.0.0 to 10.3.255.255",
            ],
        ),
        (
            &vxlan(r#""Network": "10.3.0.0/16", "SubnetMax": "10.2.0.0""#),
            &["SubnetMax is not in the range of the Network"],
        ),
        (
            &vxlan(r#""Network": "10.3.0.0/16", "SubnetMin": "10.3.1.7""#),
            &["SubnetMin is not on a SubnetLen boundary: 10.3.1.7", "/24", "10.3.1.0"],
        ),
        (
            &vxlan(r#""Network": "10.3.0.0/16", "SubnetMax": "10.3.9.1""#),
            &["SubnetMax is not on a SubnetLen boundary: 10.3.9.1"],
        ),
        (
            &vxlan(r#""Network": "10.3.0.0/16", "SubnetMin": "10.3.9.0", "SubnetMax": "10.3.5.0""#),
            &["SubnetMin 10.3.9.0 is greater than SubnetMax 10.3.5.0"],
        ),
        (&vxlan(r#""Network": "10.3.0.0/16", "SubnetMin": """#), &["invalid IP address format: SubnetMin"]),
        (
            &vxlan(r#""Network": "10.3.0.0/16", "SubnetMin": null"#),
            &["invalid IP address format: SubnetMin is null"],
        ),
        (
            &vxlan(r#""Network": "10.3.0.0/16", "SubnetMax": "fd00::""#),
            &["invalid IPv4 address format: SubnetMax"],
        ),
        (
            &vxlan(r#""Network": "10.3.0.0/16", "SubnetLen": "24""#),
            &["json: cannot unmarshal string into a field of type uint: SubnetLen is \"24\""],
        ),
        (&vxlan(r#""Network": "10.3.0.0/16", "SubnetLen": -1"#), &["SubnetLen is -1"]),
        (&vxlan(r#""Network": "10.3.0.0/16", "SubnetLen": 24.0"#), &["SubnetLen is 24.0"]),
        (
            &vxlan(r#""Network": "10.3.0.0/16", "SubnetLen": 18446744073709551615"#),
            &["SubnetLen must be less than /31"],
        ),
        (
            &vxlan(r#""Network": "10.3.0.0/16", "EnableIPv6": 1"#),
            &["cannot unmarshal number into a field of type bool: EnableIPv6 is 1"],
        ),
        (
            &vxlan(r#""Network": "10.3.0.0/16", "EnableIPv6": true"#),
            &["please define a correct IPv6Network parameter in the flannel config"],
        ),
        (&vxlan(r#""EnableIPv4": false"#), &["none defined stack"]),
    ] {
        let error = error(json);
        for text in texts {
            assert!(error.contains(text), "{json}\n  {error}\n  lacks {text}");
        }
    }
    let six = |keys: &str| vxlan(&format!(r#""EnableIPv4": false, "EnableIPv6": true, {keys}"#));
    for (keys, text) in [
        (r#""IPv6Network": "::/0""#, "please define a correct IPv6Network parameter in the flannel config"),
        (r#""IPv6Network": "10.3.0.0/16""#, "invalid IPv6 CIDR format"),
        (
            r#""IPv6Network": "fd00::/48", "IPv6SubnetLen": 127"#,
            "SubnetLen must be less than /127: IPv6SubnetLen is 127, want 50 to 126",
        ),
        (
            r#""IPv6Network": "fd00::/48", "IPv6SubnetLen": 49"#,
            "network must be able to accommodate at least four subnets: IPv6SubnetLen is 49",
        ),
        (r#""IPv6Network": "fd00::/125""#, "IPv6Network is too small. Minimum useful network prefix is /124"),
        (
            r#""IPv6Network": "fd00::/48", "IPv6SubnetMin": "fd01::""#,
            "IPv6SubnetMin is not in the range of the IPv6Network",
        ),
        (
            r#""IPv6Network": "fd00::/48", "IPv6SubnetMax": "fd01::""#,
            "IPv6SubnetMax is not in the range of the IPv6Network",
        ),
        (
            r#""IPv6Network": "fd00::/48", "IPv6SubnetMin": "fd00::1""#,
            "IPv6SubnetMin is not on a SubnetLen boundary: fd00::1",
        ),
        (
            r#""IPv6Network": "fd00::/48", "IPv6SubnetMax": "fd00::1""#,
            "IPv6SubnetMax is not on a SubnetLen boundary: fd00::1",
        ),
        (
            r#""IPv6Network": "fd00::/48", "IPv6SubnetMax": "fd00::""#,
            "IPv6SubnetMin fd00:0:0:1:: is greater than IPv6SubnetMax fd00::",
        ),
        (r#""IPv6Network": "fd00::/48", "IPv6SubnetMin": """#, "invalid IP address format"),
    ] {
        assert!(error(&six(keys)).contains(text), "{}\n  lacks {text}", error(&six(keys)));
    }
}

#[test]
fn backends_are_known_by_any_case_and_absent_ones_by_name() {
    let with = |backend: &str| format!(r#"{{"Network": "10.3.0.0/16", "Backend": {backend}}}"#);
    for (json, name) in [
        (r#"{"type": "VXLAN"}"#, "vxlan"),
        (r#"{"Type": "Host-GW"}"#, "host-gw"),
        (r#"{"Type": "alloc"}"#, "alloc"),
        (r#"{"Type": "UDP"}"#, "udp"),
    ] {
        assert_eq!(read(&with(json)).backend.name(), name);
    }
    for absent in ["wireguard", "ipip", "ipsec", "extension", "tencent-vpc"] {
        let error = error(&with(&format!(r#"{{"Type": "{absent}"}}"#)));
        assert_eq!(
            error,
            format!(
                "Backend.Type is {absent}: known, but not in this build yet; use vxlan, host-gw, udp or alloc"
            )
        );
    }
    assert!(error(&with("{}")).starts_with("unknown backend type: "));
    assert!(error(&with("null")).starts_with("unknown backend type: "));
    assert!(error(&with(r#"{"Type": "vxlann"}"#)).contains(
        "unknown backend type: vxlann; Backend.Type wants one of vxlan, host-gw, udp, alloc (did you mean vxlan?)"
    ));
    assert!(error(&with(r#""vxlan""#)).contains("error decoding Backend property of config"));
    assert!(error(&with(r#"{"Type": 7}"#)).contains("Backend.Type is 7"));
}

#[test]
fn vxlan_keys_are_read_and_checked() {
    let all = backend(
        r#", "VNI": 4096, "Port": 4789, "MTU": 9000, "GBP": true, "Learning": true, "DirectRouting": true, "MacPrefix": "0E-2A""#,
    );
    let want = Vxlan {
        vni: 4096,
        port: Some(4789),
        mtu: Some(9000),
        gbp: true,
        learning: true,
        direct_routing: true,
        mac_prefix: Some([0x0e, 0x2a]),
    };
    assert_eq!(all, want);
    assert_eq!(backend("").vni, 1);
    assert_eq!(backend(r#", "VNI": 0"#).vni, 0, "the kernel takes it");
    for (keys, text) in [
        (r#""VNI": 16777216"#, "VNI out of range: Backend.VNI is 16777216, want a number from 0 to 16777215"),
        (r#""VNI": -1"#, "Backend.VNI is -1"),
        (r#""VNI": 10000000"#, "flannel.10000000 (15 letters at most); want a VNI up to 9999999"),
        (r#""VNI": 1.5"#, "json: cannot unmarshal number into a field of type int: Backend.VNI is 1.5"),
        (r#""VNI": "1""#, "json: cannot unmarshal string into a field of type int: Backend.VNI is \"1\""),
        (r#""Port": 65536"#, "Port out of range: Backend.Port is 65536, want a number from 0 to 65535"),
        (r#""MTU": 100"#, "MTU out of range: Backend.MTU is 100, want 118 at least"),
        (r#""GBP": "yes""#, "Backend.GBP is \"yes\", want true or false"),
        (r#""MacPrefix": "0E2A""#, "Backend.MacPrefix is \"0E2A\", want two hexadecimal octets"),
        (r#""MacPrefix": "01-00""#, "group address"),
    ] {
        let json = format!(r#"{{"Network": "10.3.0.0/16", "Backend": {{"Type": "vxlan", {keys}}}}}"#);
        assert!(error(&json).contains(text), "{}\n  lacks {text}", error(&json));
    }
    let dual = |keys: &str| {
        format!(
            r#"{{"Network": "10.3.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00::/48", "Backend": {{"Type": "vxlan", {keys}}}}}"#
        )
    };
    assert!(
        error(&dual(r#""VNI": 10000"#))
            .contains("flannel-v6.10000 (15 letters at most); want a VNI up to 9999")
    );
    assert!(
        error(&dual(r#""MTU": 1349"#))
            .contains("want 1350 at least: vxlan over IPv6 takes 70 bytes, and IPv6 needs 1280")
    );
    read(&dual(r#""VNI": 9999, "MTU": 1350"#));
}

#[test]
fn what_seems_to_be_missing_is_looked_for_among_misspelt_keys() {
    let error = error(r#"{"Network": "10.3.0.0/16", "Backnd": {"Type": "vxlan"}}"#);
    assert!(error.contains("Backend is absent") && error.contains("Backnd"), "{error}");
    assert!(error.contains("did you mean Backend?"), "{error}");
}

#[test]
fn unknown_keys_are_warned_about_with_the_likeliest_meaning() {
    let json = r#"{"Network": "10.3.0.0/16", "SubnetLength": 24, "VNI": 5, "zzz": {}, "EnableNFTables": true,
        "Backend": {"Type": "vxlan", "MTUv6": 1400, "directRoute": true, "SubnetLen": 3, "Name": "x", "MacPrefix": "0E-2A"}}"#;
    let config = read(json);
    assert!(config.nftables);
    assert_eq!(
        config.warnings,
        [
            "unknown key SubnetLength has no effect; did you mean SubnetLen?",
            "unknown key VNI has no effect; VNI belongs inside Backend",
            "unknown key zzz has no effect",
            "unknown key Backend.MTUv6 has no effect; did you mean Backend.MTU?",
            "unknown key Backend.directRoute has no effect; did you mean Backend.DirectRouting?",
            "unknown key Backend.SubnetLen has no effect; SubnetLen belongs at the top level, beside Backend",
        ]
    );
    assert!(
        read(r#"{"Network": "10.3.0.0/16", "Backend": {"Type": "host-gw", "DNSServerList": []}}"#)
            .warnings
            .is_empty()
    );
}

#[test]
fn a_family_that_is_not_enabled_is_left_out() {
    let config = read(&vxlan(r#""Network": "10.3.0.0/16", "IPv6Network": "fd00::/48""#));
    assert_eq!(config.networks().collect::<Vec<_>>(), ["10.3.0.0/16".parse().unwrap()]);
    let config = read(&vxlan(r#""Network": "10.3.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00::/48""#));
    assert_eq!(config.networks().count(), 2);
}

fn json_value() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|value| value.to_string()),
        any::<i64>().prop_map(|value| value.to_string()),
        (0..140i64).prop_map(|value| value.to_string()),
        (any::<u32>(), 0..=32u8).prop_map(|(ip, len)| format!("\"{}/{len}\"", Ipv4Addr::from_bits(ip))),
        (any::<u128>(), 0..=128u8).prop_map(|(ip, len)| format!("\"{}/{len}\"", Ipv6Addr::from_bits(ip))),
        any::<u32>().prop_map(|ip| format!("\"{}\"", Ipv4Addr::from_bits(ip))),
        any::<u128>().prop_map(|ip| format!("\"{}\"", Ipv6Addr::from_bits(ip))),
        Just(r#"{"Type":"vxlan"}"#.to_owned()),
        "[ -~]{0,12}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn no_text_panics(text in "[{}\\[\\]:,\"0-9a-zA-Z/.\\\\ -]{0,60}|.{0,60}") {
        let _ = NetworkConfig::from_json(&text);
    }

    #[test]
    fn no_values_panic_and_what_is_taken_can_be_leased_from(
        entries in proptest::collection::vec((proptest::sample::select(&TOP_LEVEL[..]), json_value()), 0..14),
        vxlan in proptest::collection::vec((proptest::sample::select(&VXLAN[1..]), json_value()), 0..3),
    ) {
        let entry = |(key, value): &(&str, String)| format!("{key:?}: {value}");
        let vxlan: Vec<String> = vxlan.iter().map(|e| format!(", {}", entry(e))).collect();
        let mut all: Vec<String> = vec![r#""Network": "10.0.0.0/8""#.to_owned(), r#""IPv6Network": "fd00::/48""#.to_owned()];
        all.extend(entries.iter().map(entry));
        all.push(format!(r#""Backend": {{"Type": "vxlan" {}}}"#, vxlan.concat()));
        if let Ok(config) = NetworkConfig::from_json(&format!("{{{}}}", all.join(","))) {
            let subnets = crate::allocation::choose(&config, &Default::default(), &mut |_| 0).unwrap();
            prop_assert!(crate::allocation::fits(&subnets, &config));
            prop_assert!(config.networks().zip(subnets.iter()).all(|(network, subnet)| network.contains(&subnet)));
        }
    }
}
