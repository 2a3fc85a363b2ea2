//! A node's underlay in the test's namespace: `eth0`, with one address per family.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use fabric::dataplane::{Change, Dataplane, Link, LinkKind, NextHop, Observed, Prune, Route, Target, Vxlan};
use fabric::link_name::LinkName;
use fabric::mac::Mac;
use fabric::ownership::{Ownership, ROUTE_PROTOCOL};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use kernel::link::{self, Operational, Veth};
use kernel::netlink::Socket;
use kernel::{Kernel, Linux, Scope, address, netns, sysctl};
use proptest::prelude::ProptestConfig;

pub(crate) const LOCAL4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 0, 1));
pub(crate) const LOCAL6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1));

pub(crate) fn name(text: &str) -> LinkName {
    text.parse().unwrap()
}

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// Makes the underlay and opens the kernel.
pub(crate) fn open() -> Linux {
    // An address that is still being checked changes its state a second later.
    sysctl::write("net/ipv6/conf/default/accept_dad", "0").unwrap();
    // A namespace begins with what the first one has, which another program may have switched on.
    sysctl::write("net/ipv4/ip_forward", "0").unwrap();
    let mut linux = Linux::open().unwrap();
    let socket = linux.socket();
    let lo = link::index(socket, name("lo")).unwrap().unwrap();
    link::set_up(socket, lo).unwrap();
    let eth0 = create_device(socket, "eth0");
    address::add(socket, eth0, net("192.168.0.1/16")).unwrap();
    address::add(socket, eth0, net("fd00::1/64")).unwrap();
    settled(&mut linux, "eth0", Operational::Up);
    linux
}

/// Waits until the kernel has found out what state a device is in: it tells of it some time later.
fn settled(linux: &mut Linux, device: &str, state: Operational) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let found = link::by_name(linux.socket(), name(device)).unwrap().unwrap().operational;
        if found == state {
            return;
        }
        assert!(Instant::now() < deadline, "{device} is {found:?}, want {state:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Makes a device that is up: one end of a veth pair, the other end of which is called `x-…`.
pub(crate) fn create_device(socket: &mut Socket, device: &str) -> u32 {
    let here = netns::current().unwrap();
    let peer = name(&format!("x-{device}"));
    let veth = Veth {
        name: name(device),
        mac: None,
        mtu: None,
        master: None,
        peer_name: peer,
        peer_mac: None,
        peer_namespace: here.as_fd(),
    };
    link::create_veth(socket, &veth).unwrap();
    let peer = link::index(socket, peer).unwrap().unwrap();
    link::set_up(socket, peer).unwrap();
    link::index(socket, name(device)).unwrap().unwrap()
}

/// The VXLAN device of one family, as flannel wants it.
pub(crate) fn vxlan(device: &str, local: IpAddr) -> Link {
    Link {
        name: name(device),
        kind: LinkKind::Vxlan(Vxlan {
            vni: 1,
            underlay: name("eth0"),
            local,
            port: None,
            learning: false,
            gbp: false,
        }),
        mtu: 1400,
        mac: Some(Mac([2, 0, 0, 0, 0, 1])),
    }
}

pub(crate) fn scope() -> Scope {
    Scope {
        links: vec![name("flannel.1"), name("flannel-v6.1")],
        sysctls: vec!["net/ipv4/ip_forward".to_owned(), "net/ipv6/conf/flannel.1/accept_ra".to_owned()],
        tables: Vec::new(),
    }
}

pub(crate) fn ownership() -> Ownership {
    Ownership::new(
        [name("flannel.1"), name("flannel-v6.1")],
        [net("10.0.0.0/8"), net("fc00::/16")],
        fabric::lease::Subnets::default(),
    )
}

/// How a peer is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Through the IPv4 tunnel, the gateway in the route.
    Plain,
    /// Through the IPv4 tunnel, the gateway in a next-hop object.
    Object,
    /// Through the underlay.
    Direct,
    /// Through the IPv6 tunnel.
    Ipv6,
    /// Through the underlay, IPv6.
    Ipv6Direct,
    /// Nowhere.
    Blackhole,
}

/// Adds what it takes to reach peer number `peer`, at address number `node` of the underlay.
pub(crate) fn add_peer(plan: &mut Dataplane, peer: u16, node: u16, way: Way) {
    let [high, low] = peer.to_be_bytes();
    let [node_high, node_low] = node.to_be_bytes();
    let subnet4 = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, high, low, 0), 24));
    let subnet6 = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfc00, 0, 0, peer, 0, 0, 0, 0), 64));
    let node4 = IpAddr::V4(Ipv4Addr::new(192, 168, node_high, node_low));
    let node6 = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, node));
    let mac = Mac([2, 1, high, low, node_high, node_low]);
    let (link4, link6) = (name("flannel.1"), name("flannel-v6.1"));

    let (destination, target) = match way {
        Way::Plain | Way::Object => {
            plan.neighbors.insert((link4, subnet4.addr()), mac);
            plan.fdb.insert((link4, mac), node4);
            let next_hop = NextHop { gateway: subnet4.addr(), link: link4, onlink: true };
            if way == Way::Plain {
                (subnet4, Target::Via(next_hop))
            } else {
                let id = 0x0f00_0000 + u32::from(peer);
                plan.next_hops.insert(id, next_hop);
                (subnet4, Target::NextHopObject(id))
            }
        }
        Way::Ipv6 => {
            plan.neighbors.insert((link6, subnet6.addr()), mac);
            plan.fdb.insert((link6, mac), node6);
            (subnet6, Target::Via(NextHop { gateway: subnet6.addr(), link: link6, onlink: true }))
        }
        Way::Direct => (subnet4, Target::Via(NextHop { gateway: node4, link: name("eth0"), onlink: false })),
        Way::Ipv6Direct => {
            (subnet6, Target::Via(NextHop { gateway: node6, link: name("eth0"), onlink: false }))
        }
        Way::Blackhole => (subnet4, Target::Blackhole),
    };
    let metric = Route::default_metric(&destination);
    plan.routes.insert(Route { destination, metric, target, protocol: ROUTE_PROTOCOL });
}

/// Both tunnels with their addresses, no peer.
pub(crate) fn tunnels() -> Dataplane {
    let mut plan = Dataplane::default();
    for (device, local) in [("flannel.1", LOCAL4), ("flannel-v6.1", LOCAL6)] {
        plan.links.insert(name(device), vxlan(device, local));
    }
    plan.addresses.insert((name("flannel.1"), net("10.200.0.0/32")));
    plan.addresses.insert((name("flannel-v6.1"), net("fc00:0:0:ffff::/128")));
    plan.sysctls.insert("net/ipv4/ip_forward".to_owned(), "1".to_owned());
    plan
}

/// Makes the kernel hold a plan, in one step, and shows that it does.
pub(crate) fn converge(linux: &mut Linux, wanted: &Dataplane) -> Vec<Change> {
    let observed = linux.observe(&scope()).unwrap();
    let changes = fabric::dataplane::changes(wanted, &observed, &ownership(), Prune::Yes);
    let failures = linux.apply(&changes);
    let said: Vec<String> = failures.iter().map(|f| format!("{}: {}", f.change, f.error)).collect();
    assert!(failures.is_empty(), "{said:#?}\nof {}", shown(&changes));
    assert_holds(linux, wanted);
    changes
}

/// Fails unless there is nothing left to do.
pub(crate) fn assert_holds(linux: &mut Linux, wanted: &Dataplane) -> Observed {
    let observed = linux.observe(&scope()).unwrap();
    let left = fabric::dataplane::changes(wanted, &observed, &ownership(), Prune::Yes);
    assert!(left.is_empty(), "left to do:\n{}\nthere is {observed:#?}", shown(&left));
    let ours = |route: &&Route| route.protocol == ROUTE_PROTOCOL;
    assert!(observed.routes.iter().filter(ours).eq(wanted.routes.iter()));
    assert_eq!(observed.next_hops, wanted.next_hops);
    assert_eq!(observed.neighbors, wanted.neighbors);
    let fdb: Vec<_> = wanted.fdb.iter().map(|((link, mac), to)| (*link, *mac, *to)).collect();
    assert!(observed.fdb.iter().eq(fdb.iter()), "{:?}", observed.fdb);
    observed
}

/// So many cases, or as many as `PROPTEST_CASES` says: each costs a real kernel some milliseconds.
pub(crate) fn cases(usual: u32) -> ProptestConfig {
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if std::env::var_os("PROPTEST_CASES").is_some() {
        config
    } else {
        ProptestConfig { cases: usual, ..config }
    }
}

pub(crate) fn shown(changes: &[Change]) -> String {
    changes.iter().map(|change| format!("{change}\n")).collect()
}
