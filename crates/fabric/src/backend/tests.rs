use super::*;
use crate::dataplane::{Change, LinkKind, Observed};
use crate::fixture::{self, HOST_GW, VXLAN, external, intent, lease, macs, raw, with_ipv6};
use crate::host::Reach;
use crate::lease::LeaseSet;
use crate::plan::Intent;

/// The outcome for one lease on node 1, and what it adds to the kernel.
fn outcome(intent: &Intent, lease: &Lease) -> (Result<Path, String>, Vec<String>) {
    let Intent { config, host, macs, .. } = intent;
    let mut dataplane = Dataplane::default();
    config.backend.device(config, host, *macs, &mut dataplane);
    let before = Change::all_of(&dataplane);
    let path = config.backend.peer(config, host, lease, &mut dataplane);
    let after = Change::all_of(&dataplane);
    (path, after.iter().filter(|change| !before.contains(change)).map(Change::to_string).collect())
}

fn refusal(intent: &Intent, lease: &Lease) -> String {
    let (path, changes) = outcome(intent, lease);
    assert_eq!(changes, [""; 0], "a refused lease leaves nothing behind");
    path.unwrap_err()
}

#[test]
fn a_lease_that_cannot_be_right_costs_only_itself() {
    for json in [VXLAN, HOST_GW] {
        let intent = intent(json);
        let with = |change: &dyn Fn(&mut Lease)| {
            let mut lease = lease(&intent, 2);
            change(&mut lease);
            refusal(&intent, &lease)
        };
        let subnet = |text: &'static str| with(&|lease| lease.subnets.ipv4 = Some(text.parse().unwrap()));
        let public =
            |text: &'static str| with(&|lease| lease.attributes.public_ipv4 = Some(text.parse().unwrap()));
        for (reason, want) in [
            (with(&|lease| lease.attributes.backend_type = "".into()), "its backend is \"\", ours is"),
            (
                with(&|lease| lease.attributes.backend_type = "wireguard".into()),
                "its backend is \"wireguard\"",
            ),
            (with(&|lease| lease.subnets.ipv4 = None), "IPv4: the lease has no subnet of this family"),
            (subnet("10.245.2.0/24"), "10.245.2.0/24 is not a part of the network 10.244.0.0/16"),
            (subnet("10.244.0.0/16"), "10.244.0.0/16 is not a part of the network"),
            (subnet("10.0.0.0/8"), "10.0.0.0/8 is not a part of the network"),
            (subnet("10.244.1.0/24"), "10.244.1.0/24 overlaps 10.244.1.0/24, which is this node's own"),
            (subnet("10.244.1.128/25"), "overlaps 10.244.1.0/24"),
            (subnet("10.244.0.0/23"), "overlaps 10.244.1.0/24"),
            (with(&|lease| lease.attributes.public_ipv4 = None), "the lease names no address of the node"),
            (public("127.0.0.1"), "127.0.0.1 is not that of a node"),
            (public("224.0.0.1"), "224.0.0.1 is not that of a node"),
            (public("255.255.255.255"), "255.255.255.255 is not that of a node"),
            (public("192.168.0.1"), "192.168.0.1 is this node's own"),
            (
                public("10.244.2.7"),
                "10.244.2.0/24 contains 10.244.2.7, a node's address, which would be cut off",
            ),
        ] {
            assert!(reason.contains(want), "{reason}\n  lacks {want}");
        }
    }
}

#[test]
fn a_subnet_that_would_cut_off_this_node_is_refused() {
    let mut intent = intent(VXLAN);
    intent.host.external.ipv4 = Some("10.244.9.9".parse().unwrap());
    let reason = refusal(&intent, &lease(&intent, 9));
    assert!(reason.contains("contains 10.244.9.9, a node's address"), "{reason}");
}

#[test]
fn vxlan_leases_without_a_usable_endpoint_are_refused() {
    let intent = intent(VXLAN);
    for (data, want) in [
        (None, "which has no VtepMAC"),
        (Some("null"), "which has no VtepMAC"),
        (Some("{}"), "its BackendData is {}, which has no VtepMAC; want {\"VNI\":1,\"VtepMAC\":"),
        (Some("[1]"), "which is no JSON object"),
        (Some("\"text\""), "which is no JSON object"),
        (Some(r#"{"VtepMAC":7}"#), "of which VtepMAC is no text"),
        (Some(r#"{"VtepMAC":"0e:2a:00"}"#), "of which VtepMAC is no MAC address"),
        (Some(r#"{"VtepMAC":"00:00:00:00:00:00"}"#), "of which VtepMAC is not the address of one device"),
        (Some(r#"{"VtepMAC":"01:00:5e:00:00:01"}"#), "of which VtepMAC is not the address of one device"),
        (Some(r#"{"VtepMAC":"0e:2a:00:00:04:01"}"#), "is this node's own"),
        (Some(r#"{"VNI":2,"VtepMAC":"0e:2a:00:00:04:02"}"#), "of which VNI is not ours"),
        (Some(r#"{"VNI":"1","VtepMAC":"0e:2a:00:00:04:02"}"#), "of which VNI is no number"),
    ] {
        let mut lease = lease(&intent, 2);
        lease.attributes.backend_data = data.and_then(raw);
        let reason = refusal(&intent, &lease);
        assert!(reason.contains(want), "{reason}\n  lacks {want}");
    }
}

#[test]
fn vxlan_data_of_older_and_other_writers_is_read() {
    let intent = intent(VXLAN);
    for data in [
        r#"{"VtepMAC":"0e:2a:00:00:04:02"}"#,
        r#"{ "vni" : 1, "vtepmac" : "0E:2A:00:00:04:02", "More": {} }"#,
        r#"{"VNI":null,"VtepMAC":"0e-2a-00-00-04-02"}"#,
    ] {
        let mut lease = lease(&intent, 2);
        lease.attributes.backend_data = raw(data);
        assert_eq!(outcome(&intent, &lease), outcome(&intent, &fixture::lease(&intent, 2)), "{data}");
    }
}

#[test]
fn one_bad_family_leaves_the_other() {
    let intent = intent(&with_ipv6(true, r#"{"Type":"vxlan"}"#));
    let mut v4_only = lease(&intent, 2);
    v4_only.subnets.ipv6 = None;
    let (path, changes) = outcome(&intent, &v4_only);
    assert_eq!(path, Err("IPv6: the lease has no subnet of this family (IPv4 is programmed)".to_owned()));
    assert_eq!(changes.len(), 3, "{changes:#?}");

    let mut bad_v4 = lease(&intent, 2);
    bad_v4.attributes.backend_data = raw("{}");
    let (path, changes) = outcome(&intent, &bad_v4);
    let reason = path.unwrap_err();
    assert!(
        reason.starts_with("IPv4: its BackendData") && reason.ends_with("(IPv6 is programmed)"),
        "{reason}"
    );
    assert!(
        changes.len() == 3 && changes.iter().all(|change| change.contains("flannel-v6.1")),
        "{changes:#?}"
    );
}

#[test]
fn a_family_that_we_do_not_have_is_no_reason_to_refuse() {
    let ours = intent(VXLAN);
    let dual = intent(&with_ipv6(true, r#"{"Type":"vxlan"}"#));
    assert_eq!(outcome(&ours, &lease(&dual, 2)).0, Ok(Path::Tunnel));
}

#[test]
fn of_two_nodes_with_one_vtep_mac_only_one_is_programmed() {
    let intent = intent(VXLAN);
    let (older, mut newer) = (lease(&intent, 2), lease(&intent, 3));
    newer.attributes.backend_data = older.attributes.backend_data.clone();
    let plan = intent.plan(&[older.clone(), newer.clone()].into_iter().collect());
    assert_eq!(plan.peers[&newer.subnets], Ok(Path::Tunnel));
    let reason = plan.peers[&older.subnets].clone().unwrap_err();
    assert!(
        reason.contains("0e:2a:00:00:04:02 is also that of the node at 192.168.0.3, whose lease is newer"),
        "{reason}"
    );
}

#[test]
fn direct_routing_is_for_peers_on_a_link_of_ours() {
    let mut intent = intent(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#);
    let (path, changes) = outcome(&intent, &lease(&intent, 2));
    assert_eq!(path, Ok(Path::Direct));
    assert_eq!(changes, ["ip route replace 10.244.2.0/24 via 192.168.0.2 dev eth0 proto 102"]);

    let mut behind_router = lease(&intent, 2);
    behind_router.attributes.public_ipv4 = Some("192.168.77.2".parse().unwrap());
    assert_eq!(outcome(&intent, &behind_router).0, Ok(Path::Tunnel));

    // A second link of the host leads there.
    intent.host.underlay.push(crate::host::UnderlayRoute {
        destination: "192.168.77.0/24".parse().unwrap(),
        link: "eth1".parse().unwrap(),
        reach: Reach::Direct,
    });
    let (path, changes) = outcome(&intent, &behind_router);
    assert_eq!(path, Ok(Path::Direct));
    assert_eq!(changes, ["ip route replace 10.244.2.0/24 via 192.168.77.2 dev eth1 proto 102"]);
}

#[test]
fn host_gw_refuses_peers_behind_a_router() {
    let intent = intent(HOST_GW);
    let mut lease = lease(&intent, 2);
    lease.attributes.public_ipv4 = Some("192.168.77.2".parse().unwrap());
    let reason = refusal(&intent, &lease);
    assert!(
        reason.contains("192.168.77.2 is behind a router") && reason.contains("DirectRouting"),
        "{reason}"
    );
}

#[test]
fn host_gw_refuses_to_work_behind_nat_in_the_originals_words() {
    let config = intent(HOST_GW).config;
    let mut nat = external(1);
    assert_eq!(config.backend.check(&config, &nat), Ok(()));
    nat.public_ipv4 = Some("203.0.113.7".parse().unwrap());
    let reason = config.backend.check(&config, &nat).unwrap_err();
    assert_eq!(
        reason,
        "your PublicIP differs from interface IP, meaning that probably you're on a NAT, which is not supported by \
         host-gw backend: the public address is 203.0.113.7, eth0 has 192.168.0.1; drop --public-ip, or use vxlan"
    );
    let vxlan = intent(VXLAN).config;
    assert_eq!(vxlan.backend.check(&vxlan, &nat), Ok(()));
}

#[test]
fn an_interface_must_have_the_enabled_families_and_room_for_the_tunnel() {
    let dual = intent(&with_ipv6(true, r#"{"Type":"vxlan"}"#)).config;
    let check = |change: &dyn Fn(&mut ExternalInterface)| {
        let mut external = external(1);
        change(&mut external);
        dual.backend.check(&dual, &external)
    };
    assert_eq!(check(&|_| {}), Ok(()));
    assert!(
        check(&|e| e.public_ipv4 = None)
            .unwrap_err()
            .contains("IPv4 is enabled, but eth0 has no IPv4 address")
    );
    assert!(check(&|e| e.public_ipv6 = None).unwrap_err().contains("--public-ipv6"));
    assert_eq!(check(&|e| e.mtu = 1350), Ok(()));
    assert_eq!(
        check(&|e| e.mtu = 1349).unwrap_err(),
        "the MTU of eth0 is 1349, which leaves a path of 1349; want 1350 at least: vxlan over IPv6 takes 70 bytes, \
         and IPv6 needs 1280"
    );
}

#[test]
fn the_announced_mtu_fits_every_enabled_family() {
    let mtu = |json: &str, interface: u32| {
        let config = intent(json).config;
        config.backend.mtu(&config, &ExternalInterface { mtu: interface, ..external(1) })
    };
    assert_eq!(mtu(VXLAN, 1500), 1450);
    assert_eq!(mtu(&with_ipv6(true, r#"{"Type":"vxlan"}"#), 1500), 1430);
    assert_eq!(mtu(&with_ipv6(false, r#"{"Type":"vxlan"}"#), 1500), 1430);
    assert_eq!(mtu(&with_ipv6(true, r#"{"Type":"vxlan","MTU":1400}"#), 1500), 1330);
    assert_eq!(
        mtu(&with_ipv6(true, r#"{"Type":"vxlan","MTU":9000}"#), 1500),
        1430,
        "the interface carries no more"
    );
    assert_eq!(mtu(HOST_GW, 1500), 1500);
    assert_eq!(mtu(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"alloc"}}"#, 9000), 9000);
}

#[test]
fn attributes_have_the_originals_text() {
    let text = |json: &str| {
        let config = intent(json).config;
        config.backend.attributes(&config, &external(1), macs(1)).to_json()
    };
    assert_eq!(
        text(VXLAN),
        r#"{"PublicIP":"192.168.0.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:2a:00:00:04:01"}}"#
    );
    assert_eq!(
        text(&with_ipv6(true, r#"{"Type":"vxlan","VNI":7}"#)),
        r#"{"PublicIP":"192.168.0.1","PublicIPv6":"fd09::1","BackendType":"vxlan","BackendData":{"VNI":7,"VtepMAC":"0e:2a:00:00:04:01"},"BackendV6Data":{"VNI":7,"VtepMAC":"0e:2a:00:00:06:01"}}"#
    );
    assert_eq!(
        text(&with_ipv6(false, r#"{"Type":"vxlan"}"#)),
        r#"{"PublicIP":"0.0.0.0","PublicIPv6":"fd09::1","BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":"0e:2a:00:00:06:01"}}"#
    );
    assert_eq!(text(HOST_GW), r#"{"PublicIP":"192.168.0.1","PublicIPv6":null,"BackendType":"host-gw"}"#);
    assert_eq!(
        text(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"alloc"}}"#),
        r#"{"PublicIP":"192.168.0.1","PublicIPv6":null}"#
    );
}

#[test]
fn alloc_leaves_peers_to_others() {
    let intent = intent(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"alloc"}}"#);
    assert_eq!(outcome(&intent, &lease(&intent, 2)), (Ok(Path::None), vec![]));
}

#[test]
fn generated_macs_begin_with_the_prefix() {
    let Backend::Vxlan(mut vxlan) = intent(VXLAN).config.backend else { panic!("not vxlan") };
    assert_eq!(vxlan.generate_mac([0xff; 6]), Mac([0xfe, 0xff, 0xff, 0xff, 0xff, 0xff]));
    vxlan.mac_prefix = Some([0x0e, 0x2a]);
    assert_eq!(vxlan.generate_mac([1, 2, 3, 4, 5, 6]), Mac([0x0e, 0x2a, 3, 4, 5, 6]));
}

#[test]
fn a_device_waits_for_what_it_needs() {
    let mut intent = intent(VXLAN);
    let links = |intent: &Intent| {
        let mut dataplane = Dataplane::default();
        intent.config.backend.device(&intent.config, &intent.host, intent.macs, &mut dataplane);
        (dataplane.links.len(), dataplane.addresses.len())
    };
    assert_eq!(links(&intent), (1, 1));
    intent.host.own = Default::default();
    assert_eq!(links(&intent), (1, 0), "no lease yet: a device without an address");
    intent.macs.ipv4 = None;
    assert_eq!(links(&intent), (0, 0));
}

#[test]
fn a_public_address_behind_nat_is_told_to_peers_and_not_sent_from() {
    let mut intent = intent(VXLAN);
    intent.host.external.public_ipv4 = Some([203, 0, 113, 7].into());
    let local = |intent: &Intent| {
        let links = intent.plan(&LeaseSet::default()).dataplane.links;
        let LinkKind::Vxlan(vxlan) = &links.values().next().unwrap().kind else { panic!("not vxlan") };
        vxlan.local.to_string()
    };
    let attributes = intent.config.backend.attributes(&intent.config, &intent.host.external, intent.macs);
    assert_eq!(attributes.public_ipv4, intent.host.external.public_ipv4);
    assert_eq!(local(&intent), "192.168.0.1", "no device has the public one");

    let mut observed = Observed::default();
    observed.addresses.insert(("lo".parse().unwrap(), "203.0.113.7/32".parse().unwrap()));
    intent.host.look_at(&observed, &intent.ownership());
    assert_eq!(local(&intent), "203.0.113.7", "as in the original");
}
