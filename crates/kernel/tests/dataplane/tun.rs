//! TUN devices, as the udp backend wants them.

use fabric::dataplane::{Change, Link, LinkKind, ObservedLinkKind, Tun};
use kernel::netlink::{Protocol, Socket};
use kernel::{Kernel, Linux, Scope, link, tun};

use crate::namespace;
use crate::underlay::name;

#[test]
fn a_tun_device_outlives_its_readers_and_one_of_another_kind_is_told_apart() {
    if !namespace::enter(&[]) {
        return;
    }
    let device = name("flannel0");
    let wanted = Tun { multi_queue: true, queue_length: 1000 };
    let kind = LinkKind::Tun(wanted);
    let create = Change::CreateLink(Link { name: device, kind: kind.clone(), mtu: 1472, mac: None });
    let mut linux = Linux::open().unwrap();
    assert!(linux.apply(&[create]).is_empty());
    let look = |linux: &mut Linux| linux.observe(&Scope::default()).unwrap().links.remove(&device);
    let seen = look(&mut linux).unwrap();
    assert_eq!((seen.mtu, seen.up), (1472, true));
    assert_eq!(kind.conflict(&seen.kind), None);

    let mut socket = Socket::open(Protocol::Route).unwrap();
    let queues = [(); 2].map(|()| tun::queue(&socket, device, tun::has_virtio_header().unwrap()).unwrap());
    tun::set_offload(&queues[0], tun::Offload::CHECKSUM).unwrap();
    tun::detach(&queues[1]).unwrap();
    // The kernel's own greetings may have found nobody there yet.
    assert!(link::sending_drops(&mut socket, device).unwrap().is_some());
    drop(queues);
    assert_eq!(look(&mut linux).unwrap().index, seen.index, "it is persistent");

    // The form of its packets is chosen by who comes first: whoever made the device, say, for as long as
    // that takes.
    let plain = tun::queue(&socket, device, false).unwrap();
    if tun::has_virtio_header().unwrap() {
        let refused = tun::queue(&socket, device, true).unwrap_err().to_string();
        assert!(
            refused.contains("open a queue of flannel0") && refused.contains("another form"),
            "{refused}"
        );
    }
    assert!(tun::queue(&socket, device, false).is_ok(), "one in the same form");
    drop(plain);
    assert!(tun::queue(&socket, device, tun::has_virtio_header().unwrap()).is_ok());

    assert!(linux.apply(&[Change::DeleteLink(device)]).is_empty());
    assert!(tun::queue(&socket, device, false).is_err(), "a device that is gone is not made by opening it");
    assert_eq!(link::sending_drops(&mut socket, device).unwrap(), None);
    let single = ObservedLinkKind::Tun { frames: false, multi_queue: false };
    assert!(wanted.conflict(&single).unwrap().contains("multi_queue"));
    assert!(wanted.conflict(&ObservedLinkKind::Other("bridge".to_owned())).is_some());
}
