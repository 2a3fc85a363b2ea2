//! What a device does for the stack, and that it can be taken from it.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd as _;

use kernel::offload;

use crate::namespace::{self, run};
use crate::underlay::{name, open};

/// How many datagrams the one that is sent is to be cut into.
const PIECES: u64 = 20;

#[test]
fn udp_segmentation_is_left_on_with_the_others_and_can_be_turned_off() {
    if !namespace::enter(&["ip"]) {
        return;
    }
    let _linux = open();
    run("ip neighbor add 192.168.0.2 lladdr 02:00:00:00:00:02 dev eth0");
    let socket = UdpSocket::bind((Ipv4Addr::new(192, 168, 0, 1), 0)).unwrap();
    cut(&socket, 1000);
    let frames = || {
        let before = sent("eth0");
        socket.send_to(&[0; 1000 * PIECES as usize], (Ipv4Addr::new(192, 168, 0, 2), 9)).unwrap();
        sent("eth0") - before
    };
    offload::disable(name("eth0")).unwrap();
    // The stack's own greetings may be among them.
    assert!(frames() < PIECES, "the device is handed the whole of it");
    offload::disable_udp_segmentation(name("eth0")).unwrap();
    assert!(frames() >= PIECES, "the stack cuts it");
    let error = offload::disable_udp_segmentation(name("none0")).unwrap_err().to_string();
    assert!(error.contains("none0"), "{error}");
}

/// Frames that a device has been given.
fn sent(device: &str) -> u64 {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let line = table.lines().find_map(|line| line.trim().strip_prefix(device)?.strip_prefix(':')).unwrap();
    line.split_ascii_whitespace().nth(9).unwrap().parse().unwrap()
}

/// Has what is sent cut into datagrams of so many octets.
fn cut(socket: &UdpSocket, octets: libc::c_int) {
    // SAFETY: the kernel reads one number, from where the pointer leads, while this call lasts.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            (&raw const octets).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}
