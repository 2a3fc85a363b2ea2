//! Who changes something is heard.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use kernel::link;
use kernel::monitor::{Drained, Monitor};
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::namespace;
use crate::underlay::{Way, add_peer, converge, name, open, tunnels};

/// How long anything may take to be heard, on however busy a machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Gathers what is heard until it is `enough`.
fn heard(monitor: &mut Monitor, what: &str, enough: impl Fn(&Drained) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    let mut all = Vec::new();
    loop {
        if let Some(last) = all.last()
            && enough(last)
        {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: only heard {all:?}");
        let timeout = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
        let fd = monitor.as_fd();
        rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).unwrap();
        all.push(monitor.drain());
    }
}

/// Fails unless there is nothing more to be heard soon: the kernel tells of some things, such as a
/// device's carrier, a while after they were asked for, and of those but once a second.
fn falls_silent(monitor: &mut Monitor) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let last = monitor.drain();
        let longer = Timespec { tv_sec: 1, tv_nsec: 250_000_000 };
        let fd = monitor.as_fd();
        if rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&longer)).unwrap() == 0 {
            return;
        }
        assert!(Instant::now() < deadline, "never silent, last heard {last:?}");
    }
}

#[test]
fn every_kind_of_change_is_heard_and_silence_is_silent() {
    if !namespace::enter(&["ip", "bridge", "nft"]) {
        return;
    }
    let mut linux = open();
    let mut plan = tunnels();
    add_peer(&mut plan, 1, 7, Way::Plain);
    add_peer(&mut plan, 2, 8, Way::Object);
    converge(&mut linux, &plan);
    let mut monitor = Monitor::open().unwrap();
    monitor.watch([name("flannel.1"), name("eth0")]);
    falls_silent(&mut monitor);
    assert!(!monitor.drain().is_anything());

    type Heard = fn(&Drained) -> bool;
    let changes: [(&str, Heard); 8] = [
        ("ip route del 10.0.1.0/24", |heard| heard.routes && !heard.neighbors),
        ("ip neigh del 10.0.1.0 dev flannel.1", |heard| heard.neighbors && !heard.routes),
        ("bridge fdb del 02:01:00:01:00:07 dev flannel.1 dst 192.168.0.7 self", |heard| heard.neighbors),
        ("ip nexthop del id 251658242", |heard| heard.next_hops),
        ("ip link set flannel.1 mtu 1300", |heard| heard.links && !heard.firewall),
        ("ip addr add 192.168.7.7/32 dev eth0", |heard| heard.addresses && heard.is_addressing()),
        ("nft add table ip foreign", |heard| heard.firewall && !heard.routes),
        // The kernel does not tell of the IPv4 routes that go with a device.
        ("ip link del flannel.1", |heard| heard.links),
    ];
    for (command, enough) in changes {
        namespace::run(command);
        heard(&mut monitor, command, enough);
    }
    falls_silent(&mut monitor);
}

#[test]
fn what_one_does_oneself_can_be_left_out_and_what_others_do_is_heard() {
    if !namespace::enter(&["ip"]) {
        return;
    }
    let mut linux = open();
    let mut plan = tunnels();
    converge(&mut linux, &plan);
    let mut monitor = Monitor::open().unwrap();
    monitor.watch([name("flannel.1"), name("eth0")]);
    monitor.leave_out(linux.port());
    falls_silent(&mut monitor);

    add_peer(&mut plan, 1, 7, Way::Plain);
    add_peer(&mut plan, 2, 8, Way::Object);
    converge(&mut linux, &plan);
    let drained = monitor.drain();
    assert!(drained.forwarding && !drained.is_certain(), "{drained:?}");
    for command in
        ["ip route del 10.0.1.0/24", "ip neigh del 10.0.1.0 dev flannel.1", "ip nexthop del id 251658242"]
    {
        namespace::run(command);
        heard(&mut monitor, command, Drained::is_certain);
    }
}

#[test]
fn pods_that_come_and_go_are_not_heard() {
    if !namespace::enter(&["ip"]) {
        return;
    }
    open();
    namespace::run("ip link add cni0 type bridge && ip link set cni0 up && ip addr add 10.1.0.1/24 dev cni0");
    let mut monitor = Monitor::open().unwrap();
    monitor.watch([name("eth0")]);
    falls_silent(&mut monitor);
    namespace::run(
        "ip link add veth0 type veth peer veth1 && ip link set veth0 up && ip link set veth1 up \
         && ip neigh add 10.1.0.2 lladdr 02:00:00:00:00:02 dev cni0 && ip addr add fe80::7/64 dev veth0 nodad \
         && ip link del veth0",
    );
    let drained = monitor.drain();
    assert!(!drained.is_anything(), "{drained:?}");
}

#[test]
fn what_cannot_be_heard_is_said() {
    if !namespace::enter(&[]) {
        return;
    }
    let mut linux = open();
    converge(&mut linux, &tunnels());
    let mut monitor = Monitor::open().unwrap();
    let mut plan = tunnels();
    for peer in 0..10_000 {
        add_peer(&mut plan, peer, 256 + peer, Way::Object);
    }
    converge(&mut linux, &plan);
    assert!(monitor.drain().overrun);
    falls_silent(&mut monitor);
    assert!(!monitor.drain().overrun, "said once");
    let index = link::index(linux.socket(), name("eth0")).unwrap().unwrap();
    link::set_mtu(linux.socket(), index, 1400).unwrap();
    heard(&mut monitor, "mtu", |heard| heard.links && !heard.overrun);
}
