//! Single devices, as plugins make them.

use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt as _;

use fabric::mac::Mac;
use kernel::bridge::{self, Bridge, PortFlags, Side, Vlans};
use kernel::link::{self, Kind, Veth};
use kernel::netlink::{Protocol, Socket};
use kernel::{address, loan, netns, route, sysctl, virtual_link};
use rustix::io::Errno;

use crate::namespace;
use crate::underlay::{create_device, name, net};

/// A named namespace that goes with the test, also if it fails.
struct Named(String);

impl Named {
    fn create(purpose: &str) -> (Named, netns::Namespace) {
        let name = format!("kernel-test-{purpose}-{}", std::process::id());
        let namespace = netns::create_named(&name).unwrap();
        (Named(name), namespace)
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _ = netns::remove_named(&self.0);
    }
}

#[test]
fn a_veth_is_made_with_its_other_end_in_the_pods_namespace() {
    if !namespace::enter(&["ip"]) {
        return;
    }
    let (named, pod) = Named::create("veth");
    let mut host = Socket::open(Protocol::Route).unwrap();
    bridge::create_bridge(&mut host, &Bridge::named(name("cni0"))).unwrap();
    let cni0 = link::by_name(&mut host, name("cni0")).unwrap().unwrap();
    assert!(cni0.is_up() && cni0.kind == Kind::Bridge { vlan_filtering: false });
    let mac = Mac([2, 0, 0, 0, 0, 9]);
    let veth = Veth {
        name: name("veth0"),
        mac: None,
        mtu: Some(1450),
        master: Some(cni0.index),
        peer_name: name("eth0"),
        peer_mac: Some(mac),
        peer_namespace: pod.as_fd(),
    };
    link::create_veth(&mut host, &veth).unwrap();
    let end = link::by_name(&mut host, name("veth0")).unwrap().unwrap();
    assert_eq!((end.mtu, end.master, end.is_up()), (1450, Some(cni0.index), true));
    bridge::set_port_flags(&mut host, end.index, PortFlags { hairpin: Some(true), isolated: Some(true) })
        .unwrap();
    let shown = namespace::run("ip -d link show veth0");
    assert!(shown.contains("hairpin on") && shown.contains("isolated on"), "{shown}");
    assert_eq!(link::create_veth(&mut host, &veth).unwrap_err().errno(), Some(Errno::EXIST));

    // Inside the pod, on this thread and back.
    let own = netns::current().unwrap();
    pod.enter(|| {
        assert!(netns::current().unwrap().is_same(&pod));
        let mut inside = Socket::open(Protocol::Route).unwrap();
        let eth0 = link::by_name(&mut inside, name("eth0")).unwrap().unwrap();
        assert_eq!((eth0.mac, eth0.mtu, eth0.is_up()), (Some(mac), 1450, false));
        link::set_up(&mut inside, eth0.index).unwrap();
        for net in [net("10.244.1.2/24"), net("fc00::2/64")] {
            address::add(&mut inside, eth0.index, net).unwrap();
        }
        let addresses = address::list(&mut inside, Some(eth0.index)).unwrap();
        assert!(addresses.iter().any(|found| found.net == net("fc00::2/64") && !found.is_tentative()));
        let gateway = "10.244.1.1".parse().unwrap();
        let default = route::Route::new(net("0.0.0.0/0"), Some(gateway), eth0.index);
        route::add(&mut inside, &default).unwrap();
        assert_eq!(route::add(&mut inside, &default).unwrap_err().errno(), Some(Errno::EXIST));
        let special = route::Route {
            table: 4000,
            mtu: Some(1300),
            advertised_mss: Some(1200),
            metric: Some(5),
            source: Some("10.244.1.2".parse().unwrap()),
            ..route::Route::new(net("10.96.0.0/12"), Some(gateway), eth0.index)
        };
        route::add(&mut inside, &special).unwrap();
        let found = route::lookup(&mut inside, "1.1.1.1".parse().unwrap()).unwrap();
        assert_eq!((found.link, found.gateway), (eth0.index, Some(gateway)));
        let shown = namespace::run("ip route; ip route show table 4000; ip addr show eth0");
        for part in [
            "default via 10.244.1.1 dev eth0",
            "10.96.0.0/12 via 10.244.1.1 dev eth0 src 10.244.1.2 metric 5 mtu 1300 advmss 1200",
            "inet 10.244.1.2/24 brd 10.244.1.255 scope global eth0",
            "inet6 fc00::2/64 scope global nodad",
        ] {
            assert!(shown.contains(part), "{part:?} is not in\n{shown}");
        }
        route::remove(&mut inside, &default).unwrap();
        route::remove(&mut inside, &default).unwrap();
        address::remove(&mut inside, eth0.index, net("10.244.1.2/24")).unwrap();
        address::remove(&mut inside, eth0.index, net("10.244.1.2/24")).unwrap();
    })
    .unwrap();
    assert!(netns::current().unwrap().is_same(&own), "the thread is back where it was");

    link::delete_by_name(&mut host, name("veth0")).unwrap();
    assert!(!link::exists(&host, name("veth0")).unwrap());
    link::delete_by_name(&mut host, name("veth0")).unwrap();
    drop(named);
}

#[test]
fn a_device_can_be_changed_in_every_way_a_plugin_asks() {
    if !namespace::enter(&[]) {
        return;
    }
    let mut socket = Socket::open(Protocol::Route).unwrap();
    let index = create_device(&mut socket, "d0");
    let mac = Mac([2, 7, 7, 7, 7, 7]);
    link::set_mtu(&mut socket, index, 1234).unwrap();
    link::set_mac(&mut socket, index, mac).unwrap();
    link::set_promiscuous(&mut socket, index, true).unwrap();
    link::set_down(&mut socket, index).unwrap();
    link::set_name(&mut socket, index, name("d1")).unwrap();
    bridge::create_bridge(&mut socket, &Bridge::named(name("br0"))).unwrap();
    let br0 = link::index(&socket, name("br0")).unwrap().unwrap();
    link::set_master(&mut socket, index, Some(br0)).unwrap();
    let found = link::by_index(&mut socket, index).unwrap().unwrap();
    assert_eq!((found.name, found.mtu, found.mac, found.master), (name("d1"), 1234, Some(mac), Some(br0)));
    assert!(found.flags & link::PROMISCUOUS != 0 && !found.is_up());
    link::set_promiscuous(&mut socket, index, false).unwrap();
    link::set_master(&mut socket, index, None).unwrap();
    let found = link::by_name(&mut socket, name("d1")).unwrap().unwrap();
    assert_eq!(found.master, None);
    assert_eq!(link::by_name(&mut socket, name("d0")).unwrap(), None);
    // A device that goes between two looks is no error: it is not there.
    assert_eq!(link::by_index(&mut socket, 9999).unwrap(), None);
    assert_eq!(loan::alias(&mut socket, 9999).unwrap(), "");
    assert_eq!(virtual_link::kind(&mut socket, 9999).unwrap(), None);
    assert!(link::list(&mut socket).unwrap().contains(&found));
    link::delete(&mut socket, index).unwrap();
    link::delete(&mut socket, index).unwrap();
}

#[test]
fn looking_for_a_device_that_is_not_there_loads_no_module() {
    // Which program loads modules is a setting of the whole machine: only where that is nobody else's.
    if std::env::var_os("FLANNEL_VM").is_none() {
        eprintln!("skipped here: make test-vm counts what the kernel calls");
        return;
    }
    if !namespace::enter(&[]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (program, calls) = (directory.path().join("modprobe"), directory.path().join("calls"));
    let script = format!("#!/bin/sh\necho \"$@\" >>{}\nexec modprobe \"$@\"\n", calls.display());
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let usual = sysctl::read("kernel/modprobe").unwrap().unwrap();
    sysctl::write("kernel/modprobe", program.to_str().unwrap()).unwrap();
    let socket = Socket::open(Protocol::Route).unwrap();
    assert_eq!(link::index(&socket, name("nowhere0")).unwrap(), None);
    let before = std::fs::read_to_string(&calls).unwrap_or_default();
    // A program that keeps its rights has it called.
    rustix::net::netdevice::name_to_index(&socket, "nowhere0").unwrap_err();
    let after = std::fs::read_to_string(&calls).unwrap();
    sysctl::write("kernel/modprobe", &usual).unwrap();
    assert!(!before.contains("nowhere0"), "{before}");
    assert!(after.contains("netdev-nowhere0"), "{after}");
    // What the thread may is as it was.
    create_device(&mut Socket::open(Protocol::Route).unwrap(), "somewhere0");
}

#[test]
fn bridge_ports_have_vlans() {
    if !namespace::enter(&[]) {
        return;
    }
    let mut socket = Socket::open(Protocol::Route).unwrap();
    let filtering = Bridge { vlan_filtering: true, ..Bridge::named(name("br0")) };
    if let Err(error) = bridge::create_bridge(&mut socket, &filtering) {
        // CONFIG_BRIDGE_VLAN_FILTERING is an option of the kernel; that of the test machine has it.
        assert_eq!(error.errno(), Some(Errno::OPNOTSUPP), "{error}");
        assert!(std::env::var_os("FLANNEL_VM").is_none(), "{error}");
        eprintln!("skipped here: this kernel's bridges have no VLAN filtering");
        return;
    }
    let br0 = link::index(&socket, name("br0")).unwrap().unwrap();
    let port = create_device(&mut socket, "port0");
    link::set_master(&mut socket, port, Some(br0)).unwrap();
    let pvid = Vlans { ids: 100..=100, pvid: true, untagged: true };
    bridge::add_vlans(&mut socket, port, Side::Port, &pvid).unwrap();
    let trunk = Vlans { ids: 200..=202, pvid: false, untagged: false };
    bridge::add_vlans(&mut socket, port, Side::Port, &trunk).unwrap();
    bridge::add_vlans(&mut socket, br0, Side::Bridge, &trunk).unwrap();
    bridge::remove_vlans(&mut socket, port, Side::Port, &Vlans { ids: 201..=201, ..trunk.clone() }).unwrap();
    let on_port: Vec<(u16, bool)> =
        bridge::vlans(&mut socket, port).unwrap().iter().map(|vlan| (*vlan.ids.start(), vlan.pvid)).collect();
    assert!(on_port.contains(&(100, true)) && on_port.contains(&(200, false)), "{on_port:?}");
    assert!(on_port.iter().all(|(id, _)| *id != 201), "{on_port:?}");
    assert!(bridge::vlans(&mut socket, br0).unwrap().iter().any(|vlan| vlan.ids == (202..=202)));
}

#[test]
fn a_refusal_has_the_kernels_own_words() {
    if !namespace::enter(&[]) {
        return;
    }
    let mut socket = Socket::open(Protocol::Route).unwrap();
    let lo = link::index(&socket, name("lo")).unwrap().unwrap();
    let beyond = route::Route::new(net("10.1.0.0/16"), Some("10.2.3.4".parse().unwrap()), lo);
    assert_eq!(
        route::add(&mut socket, &beyond).unwrap_err().to_string(),
        "cannot add a route to 10.1.0.0/16 via 10.2.3.4 through device number 1: Nexthop has invalid gateway: \
         Network is unreachable (os error 101)"
    );
}

#[test]
fn a_named_namespace_comes_and_goes() {
    if !namespace::enter(&["ip"]) {
        return;
    }
    let (named, namespace) = Named::create("named");
    assert!(namespace::run("ip netns list").contains(&named.0));
    assert!(!namespace.is_same(&netns::current().unwrap()));
    assert_eq!(netns::create_named(&named.0).unwrap_err().errno(), Some(Errno::EXIST));
    netns::remove_named(&named.0).unwrap();
    netns::remove_named(&named.0).unwrap();
    assert!(!namespace::run("ip netns list").contains(&named.0));
    assert!(netns::create_named("../evil").is_err());
}

#[test]
fn a_default_route_names_all_devices_that_it_leads_through() {
    if !namespace::enter(&["ip"]) {
        return;
    }
    let mut socket = Socket::open(Protocol::Route).unwrap();
    let devices = ["eth0", "eth1"].map(|device| create_device(&mut socket, device));
    namespace::run("ip address add 192.0.2.1/24 dev eth0; ip address add 198.51.100.1/24 dev eth1");
    namespace::run(
        "ip -6 address add fd00::1/64 dev eth0 nodad; ip -6 address add fd01::1/64 dev eth1 nodad",
    );
    let hops = "nexthop via 192.0.2.9 dev eth0 nexthop via 198.51.100.9 dev eth1";
    namespace::run(&format!("ip route add default {hops}"));
    namespace::run("ip -6 route add default nexthop via fd00::9 nexthop via fd01::9");
    namespace::run("ip route add default via 198.51.100.9 metric 7; ip route add blackhole default metric 9");
    namespace::run("ip nexthop add id 3 via 192.0.2.9 dev eth0; ip route add default nhid 3 metric 8");
    let mut found: Vec<_> = route::default_routes(&mut socket)
        .unwrap()
        .into_iter()
        .map(|route| (route.destination.addr().is_ipv6(), route.metric, route.links))
        .collect();
    found.sort();
    let [eth0, eth1] = devices;
    let want = [
        (false, 0, vec![eth0, eth1]),
        (false, 7, vec![eth1]),
        (false, 8, vec![eth0]),
        (false, 9, vec![]),
        (true, 1024, vec![eth0, eth1]),
    ];
    assert_eq!(found, want);
}
