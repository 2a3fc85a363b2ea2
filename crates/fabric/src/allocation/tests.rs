use super::*;
use crate::fixture::{bare, with_ipv6};
use proptest::prelude::*;

fn config(keys: &str) -> NetworkConfig {
    NetworkConfig::from_json(&format!(r#"{{{keys}, "Backend": {{"Type": "alloc"}}}}"#)).unwrap()
}

fn leased(keys: &[&str]) -> LeaseSet {
    keys.iter().map(|key| bare(key, 1)).collect()
}

/// All that could be drawn.
fn candidates(config: &NetworkConfig, leases: &LeaseSet) -> Vec<Subnets> {
    let mut bound = 0;
    let _ = choose(config, leases, &mut |below| {
        bound = below;
        0
    });
    (0..bound).map(|at| choose(config, leases, &mut |below| at.min(below - 1)).unwrap()).collect()
}

#[test]
fn the_first_hundred_free_subnets_are_drawn_from() {
    let config = config(r#""Network": "10.3.0.0/16""#);
    let all = candidates(&config, &leased(&["10.3.2.0-24"]));
    assert_eq!(all.len(), 100);
    assert_eq!(all[0].key(), "10.3.1.0-24");
    assert_eq!(all[1].key(), "10.3.3.0-24", "a leased subnet is passed over");
    assert_eq!(all[99].key(), "10.3.101.0-24");
}

#[test]
fn leases_of_other_lengths_are_avoided() {
    let config = config(r#""Network": "10.3.0.0/16", "SubnetMax": "10.3.20.0""#);
    let all = candidates(
        &config,
        &leased(&["10.3.4.0-22", "10.3.9.128-25", "10.3.9.0-26", "10.3.16.0-21", "10.4.0.0-16"]),
    );
    let keys: Vec<String> = all.iter().map(Subnets::key).collect();
    let free = [1, 2, 3, 8, 10, 11, 12, 13, 14, 15].map(|n| format!("10.3.{n}.0-24"));
    assert_eq!(keys, free);
}

#[test]
fn a_lease_that_is_no_part_of_the_network_takes_nothing() {
    let config = config(r#""Network": "10.3.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:3::/48""#);
    let free = candidates(&config, &leased(&[]));
    for key in
        ["10.3.0.0-16", "10.0.0.0-8", "10.4.0.0-16", "10.3.0.0-16&fd00:3::-48", "10.4.0.0-16&fd00::-16"]
    {
        assert_eq!(candidates(&config, &leased(&[key])), free, "{key}");
    }
}

#[test]
fn the_last_subnet_is_leased_and_the_first_is_not() {
    let config = config(r#""Network": "10.3.0.0/28""#);
    let keys: Vec<String> = candidates(&config, &LeaseSet::default()).iter().map(Subnets::key).collect();
    assert_eq!(keys, ["10.3.0.4-30", "10.3.0.8-30", "10.3.0.12-30"]);
}

#[test]
fn the_walk_does_not_start_over_at_the_end_of_the_address_space() {
    let config = config(r#""Network": "255.255.255.0/24", "SubnetLen": 26"#);
    let taken = leased(&["255.255.255.64-26", "255.255.255.192-26"]);
    assert_eq!(candidates(&config, &taken).len(), 1);
    let full = leased(&["255.255.255.64-26", "255.255.255.128-26", "255.255.255.192-26"]);
    assert!(choose(&config, &full, &mut |_| 0).is_err());
    let ipv6 = self::config(
        r#""EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff0/124""#,
    );
    let last = "0.0.0.0-0&ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffc-126";
    assert_eq!(candidates(&ipv6, &leased(&[last])).len(), 2);
}

#[test]
fn a_full_network_says_how_full_and_what_to_do() {
    let config = config(r#""Network": "10.3.0.0/28""#);
    let error =
        choose(&config, &leased(&["10.3.0.0-29", "10.3.0.8-29"]), &mut |_| 0).unwrap_err().to_string();
    assert_eq!(
        error,
        "out of subnets: 2 leases take all 3 subnets of SubnetMin 10.3.0.4 to SubnetMax 10.3.0.12, 10.3.0.0/29 and \
         10.3.0.8/29 more than one each; remove the leases of nodes that are gone (flannelctl leases shows them), widen \
         the range, or lease smaller subnets with a longer SubnetLen"
    );
}

#[test]
fn ipv6_is_chosen_beside_leases_that_have_none() {
    let dual = NetworkConfig::from_json(&with_ipv6(true, r#"{"Type":"alloc"}"#)).unwrap();
    let leases = leased(&["10.244.1.0-24", "10.244.2.0-24&fd00:10:244:1::-64"]);
    let chosen = choose(&dual, &leases, &mut |_| 0).unwrap();
    assert_eq!(chosen.key(), "10.244.3.0-24&fd00:10:244:2::-64");
    let ipv6_only = NetworkConfig::from_json(&with_ipv6(false, r#"{"Type":"alloc"}"#)).unwrap();
    assert_eq!(choose(&ipv6_only, &leases, &mut |_| 0).unwrap().key(), "0.0.0.0-0&fd00:10:244:2::-64");
}

#[test]
fn a_lease_fits_by_family_range_and_length() {
    let config = config(r#""Network": "10.3.0.0/16", "SubnetMax": "10.3.9.0""#);
    let dual = NetworkConfig::from_json(&with_ipv6(true, r#"{"Type":"alloc"}"#)).unwrap();
    let ipv6 = NetworkConfig::from_json(&with_ipv6(false, r#"{"Type":"alloc"}"#)).unwrap();
    for (config, key, fit) in [
        (&config, "10.3.1.0-24", true),
        (&config, "10.3.9.0-24", true),
        (&config, "10.3.0.0-24", false),
        (&config, "10.3.10.0-24", false),
        (&config, "10.3.1.0-25", false),
        (&config, "10.3.1.0-24&fd00::-64", false),
        (&dual, "10.244.1.0-24", false),
        (&dual, "10.244.1.0-24&fd00:10:244:1::-64", true),
        (&dual, "10.244.1.0-24&fd00:10:245:1::-64", false),
        (&dual, "0.0.0.0-0&fd00:10:244:1::-64", false),
        (&ipv6, "0.0.0.0-0&fd00:10:244:1::-64", true),
        (&ipv6, "10.244.1.0-24&fd00:10:244:1::-64", false),
    ] {
        assert_eq!(fits(&key.parse().unwrap(), config), fit, "{key}");
    }
    assert!(!fits(&Subnets::default(), &config));
}

#[test]
fn a_source_that_breaks_its_bound_does_no_harm() {
    let config = config(r#""Network": "10.3.0.0/28""#);
    assert!(fits(&choose(&config, &LeaseSet::default(), &mut |below| below + 7).unwrap(), &config));
}

proptest! {
    #[test]
    fn the_candidates_are_those_of_a_plain_search(
        leases in proptest::collection::vec((0..4096u32, 22..=30u8), 0..60),
        len in 22..=28u8, min in 0..64u32, max in 0..64u32,
    ) {
        let size = 1u32 << (32 - len);
        let base = 0x0a03_0000u32;
        let (min, max) = (base + (min.min(max) * 1024) / size * size, base + (min.max(max) * 1024) / size * size);
        let config = config(&format!(
            r#""Network": "10.3.0.0/16", "SubnetLen": {len}, "SubnetMin": "{}", "SubnetMax": "{}""#,
            Ipv4Addr::from_bits(min), Ipv4Addr::from_bits(max),
        ));
        prop_assume!(min != 0);
        let leases: LeaseSet = leases
            .into_iter()
            .map(|(n, len)| Ipv4Net::new_assert(Ipv4Addr::from_bits(base + n * 16), len).trunc())
            .map(|net| bare(&Subnets { ipv4: Some(net), ipv6: None }.key(), 1))
            .collect();
        let plain: Vec<Subnets> = (min..=max)
            .step_by(size as usize)
            .map(|ip| Ipv4Net::new_assert(Ipv4Addr::from_bits(ip), len))
            .filter(|net| leases.overlapping_ipv4(*net).next().is_none())
            .take(100)
            .map(|net| Subnets { ipv4: Some(net), ipv6: None })
            .collect();
        prop_assert_eq!(candidates(&config, &leases), plain);
    }
}
