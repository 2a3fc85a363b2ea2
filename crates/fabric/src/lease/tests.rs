use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::*;
use crate::fixture::bare;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::prelude::*;

#[test]
fn keys_round_trip_in_the_originals_form() {
    for key in [
        "10.12.13.0-24",
        "10.12.13.0-24&fd00:12:13::-56",
        "10.5.1.0-24&fd00:0:0:1::-64",
        "0.0.0.0-0&fd00:0:0:1::-64",
    ] {
        let subnets: Subnets = key.parse().unwrap();
        assert_eq!(subnets.key(), key);
    }
    let ipv6_only: Subnets = "0.0.0.0-0&fd00:0:0:1::-64".parse().unwrap();
    assert_eq!(ipv6_only.ipv4, None);
    assert_eq!("10.12.13.0-024".parse::<Subnets>().unwrap().key(), "10.12.13.0-24", "leading zeros are read");
}

#[test]
fn what_is_no_key_is_refused_by_name() {
    // The first dozen is the original's own list (`subnet_test.go`).
    for key in [
        "10",
        "10.12.13.0",
        "10.12.13-24",
        "10.12.13.300-24",
        "10.12.13.0-24hi",
        "&2001::-56",
        "10.12.13.0-24&:12:13:-56",
        "10.12.13.0-24&20011::-56",
        "10.12.13.0-24&2001-56",
        "10.12.13.0-24&2001::",
        "10.12.13.0-24&2001::-56hi",
        "10.12.13.0-24&",
        "",
        "-",
        "&",
        "10.12.13.0-32",
        "10.12.13.0--1",
        "10.12.13.0-+24",
        "10.12.13.0-24&fd00::-128",
        "10.12.13.0-24&FD00::-64",
        "10.12.13.0-24&::ffff:1.2.3.0-120",
        "10.12.13.7-24",
        "10.12.13.0-24&fd00::1-64",
        "abc10.12.13.0-24",
        " 10.12.13.0-24",
        "0.0.0.0-0",
        "010.12.13.0-24",
    ] {
        let error = key.parse::<Subnets>().unwrap_err().to_string();
        assert!(error.starts_with(&format!("{key:?} names no pod subnet: ")), "{error}");
    }
}

#[test]
fn lease_values_have_the_originals_text() {
    let node = Attributes {
        public_ipv4: Some("1.2.3.4".parse().unwrap()),
        backend_type: "vxlan".into(),
        backend_data: crate::fixture::raw(r#"{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:ff"}"#),
        ..Attributes::default()
    };
    let text = r#"{"PublicIP":"1.2.3.4","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:ff"}}"#;
    assert_eq!(node.to_json(), text);
    assert_eq!(Attributes::from_json(text.as_bytes()).unwrap(), node);
    assert_eq!(Attributes::default().to_json(), r#"{"PublicIP":"0.0.0.0","PublicIPv6":null}"#);
}

#[test]
fn lease_values_of_others_are_read_with_tolerance() {
    let read = |text: &str| Attributes::from_json(text.as_bytes()).unwrap();
    let udp = read(r#"{"PublicIP":"1.2.3.4","Unknown":[1]}"#);
    assert_eq!((udp.public_ipv4, &*udp.backend_type), (Some([1, 2, 3, 4].into()), ""));
    let null =
        read(r#"{"PublicIP":"0.0.0.0","PublicIPv6":"fd00::1","BackendType":"host-gw","BackendData":null}"#);
    assert_eq!((null.public_ipv4, null.backend_data.is_none()), (None, true));
    let folded = read(r#"{"publicip":"1.2.3.4","backendTYPE":"vxlan"}"#);
    assert_eq!((folded.public_ipv4, &*folded.backend_type), (Some([1, 2, 3, 4].into()), "vxlan"));
}

#[test]
fn garbage_as_a_lease_value_is_an_error_that_shows_it() {
    for garbage in ["", "garbage", "[]", r#"{"PublicIP":"nonsense"}"#, r#"{"PublicIP":5}"#, "{} {}"] {
        let error = Attributes::from_json(garbage.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(&format!("{garbage:?}")), "{error}");
    }
    let long = "x".repeat(5000);
    assert!(Attributes::from_json(long.as_bytes()).unwrap_err().to_string().len() < 400);
}

#[test]
fn leases_of_one_backend_share_its_name() {
    let of = |key: &str, backend: &str| {
        let mut lease = bare(key, 1);
        lease.attributes.backend_type = backend.into();
        lease
    };
    let leases = [of("10.1.1.0-24", "vxlan"), of("10.1.2.0-24", "vxlan"), of("10.1.3.0-24", "host-gw")];
    let set: LeaseSet = leases.into_iter().collect();
    let names: Vec<_> = set.iter().map(|lease| &lease.attributes.backend_type).collect();
    assert!(Arc::ptr_eq(names[0], names[1]));
    assert_eq!((&**names[1], &**names[2]), ("vxlan", "host-gw"));
}

#[test]
fn of_two_claimants_the_older_is_right() {
    let set: LeaseSet =
        [bare("10.1.1.0-24", 5), bare("10.1.1.0-25", 3), bare("10.1.2.0-24", 1)].into_iter().collect();
    let rival = |key: &str| {
        let lease = set.get(&key.parse().unwrap()).unwrap();
        set.rivals(lease).next().map(|rival| rival.subnets.key())
    };
    assert_eq!(rival("10.1.1.0-24").as_deref(), Some("10.1.1.0-25"));
    assert_eq!(rival("10.1.1.0-25"), None);
    assert_eq!(rival("10.1.2.0-24"), None);
}

#[test]
fn two_leases_of_one_ipv6_subnet_are_rivals_whichever_came_first_into_the_set() {
    let older = bare("10.1.1.0-24&fd00:0:0:1::-64", 1);
    let newer = bare("10.1.2.0-24&fd00:0:0:1::-64", 2);
    for leases in [[older.clone(), newer.clone()], [newer.clone(), older.clone()]] {
        let mut set: LeaseSet = leases.into_iter().collect();
        assert_eq!(set.rivals(&newer).next().unwrap().subnets, older.subnets);
        assert_eq!(set.rivals(&older).next(), None);
        set.remove(&older.subnets);
        assert_eq!(set.rivals(&newer).next(), None);
    }
}

#[test]
fn equal_age_is_decided_by_the_key_on_every_node() {
    let (a, b) = (bare("10.1.1.0-24", 7), bare("10.1.1.0-25", 7));
    let set: LeaseSet = [a.clone(), b.clone()].into_iter().collect();
    assert!(
        set.rivals(&a).next().is_none() != set.rivals(&b).next().is_none(),
        "exactly one of them is right"
    );
}

/// Keys in a small space, so that overlaps are frequent.
fn keys() -> impl Strategy<Value = Subnets> {
    let ipv4 = || (0..64u32, 24..=28u8);
    let ipv6 = || (0..16u128, 60..=66u8);
    let v4 =
        |(n, len): (u32, u8)| Ipv4Net::new_assert(Ipv4Addr::from_bits(0x0a00_0000 + n * 16), len).trunc();
    let v6 = |(n, len): (u128, u8)| {
        Ipv6Net::new_assert(Ipv6Addr::from_bits((0xfd << 120) + (n << 62)), len).trunc()
    };
    prop_oneof![
        ipv4().prop_map(move |a| Subnets { ipv4: Some(v4(a)), ipv6: None }),
        ipv6().prop_map(move |b| Subnets { ipv4: None, ipv6: Some(v6(b)) }),
        (ipv4(), ipv6()).prop_map(move |(a, b)| Subnets { ipv4: Some(v4(a)), ipv6: Some(v6(b)) }),
    ]
}

fn set_of(leases: &[(Subnets, u64)]) -> LeaseSet {
    let lease = |(subnets, created): &(Subnets, u64)| Lease {
        subnets: *subnets,
        attributes: Attributes::default(),
        created: *created,
    };
    leases.iter().map(lease).collect()
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

proptest! {
    #[test]
    fn no_key_panics(key in "[0-9a-f.:&-]{0,40}|.{0,40}") {
        if let Ok(subnets) = Subnets::from_key(&key) {
            prop_assert_eq!(Subnets::from_key(&subnets.key()), Ok(subnets));
        }
    }

    #[test]
    fn no_value_panics(value in proptest::collection::vec(any::<u8>(), 0..80)) {
        let _ = Attributes::from_json(&value);
    }

    #[test]
    fn overlaps_are_all_found_and_nothing_else(
        leases in proptest::collection::vec((keys(), 0..4u64), 0..30),
        removed in proptest::collection::vec(any::<proptest::sample::Index>(), 0..6),
        probe in keys(),
    ) {
        let mut set = set_of(&leases);
        for index in removed {
            if !leases.is_empty() {
                set.remove(&index.get(&leases).0);
            }
        }
        let wanted = |family: Option<IpNet>| -> Vec<Subnets> {
            let Some(net) = family else { return Vec::new() };
            let hit = |lease: &&Arc<Lease>| lease.subnets.iter().any(|other| {
                other.addr().is_ipv4() == net.addr().is_ipv4() && overlap(&other, &net)
            });
            set.iter().filter(hit).map(|lease| lease.subnets).collect()
        };
        let sorted = |mut found: Vec<Subnets>| { found.sort(); found };
        let ipv4 = probe.ipv4.map(|net| set.overlapping_ipv4(net).map(|l| l.subnets).collect()).unwrap_or_default();
        prop_assert_eq!(sorted(ipv4), sorted(wanted(probe.ipv4.map(IpNet::V4))));
        let ipv6 = probe.ipv6.map(|net| set.overlapping_ipv6(net).map(|l| l.subnets).collect()).unwrap_or_default();
        prop_assert_eq!(sorted(ipv6), sorted(wanted(probe.ipv6.map(IpNet::V6))));
    }

    #[test]
    fn leases_without_a_rival_never_overlap(leases in proptest::collection::vec((keys(), 0..4u64), 0..30)) {
        let set = set_of(&leases);
        let winners: Vec<_> = set.iter().filter(|lease| set.rivals(lease).next().is_none()).collect();
        for (at, a) in winners.iter().enumerate() {
            for b in &winners[at + 1..] {
                prop_assert!(!a.subnets.iter().any(|x| b.subnets.iter().any(|y| overlap(&x, &y))), "{} {}", a.subnets, b.subnets);
            }
        }
    }

    #[test]
    fn differences_turn_one_set_into_the_other(
        before in proptest::collection::vec((keys(), 0..3u64), 0..20),
        after in proptest::collection::vec((keys(), 0..3u64), 0..20),
    ) {
        let (mut before, after) = (set_of(&before), set_of(&after));
        let (gone, come) = before.differences(&after);
        prop_assert!(gone.iter().all(|lease| before.get(&lease.subnets) == Some(lease)));
        prop_assert!(come.iter().all(|lease| before.get(&lease.subnets) != Some(lease)));
        gone.iter().for_each(|lease| { before.remove(&lease.subnets); });
        come.iter().for_each(|lease| before.insert(Lease::clone(lease)));
        // Equal in what it holds and in what it remembers about it.
        prop_assert_eq!(before, after);
    }
    #[test]
    fn steps_towards_a_set_get_there(
        before in proptest::collection::vec((keys(), 0..3u64), 0..20),
        after in proptest::collection::vec((keys(), 0..3u64), 0..20),
        most in 1..5usize,
    ) {
        let (mut now, target) = (set_of(&before), set_of(&after));
        let left = |from: &LeaseSet| from.distance(&target, usize::MAX);
        while left(&now) > 0 {
            let next = now.towards(&target, most);
            prop_assert_eq!(left(&next), left(&now).saturating_sub(most));
            now = next;
        }
        let there = now.towards(&target, most);
        prop_assert!(there.is_same(&target));
        prop_assert_eq!(there, target);
    }
}
