//! The udp backend: packets travel through flanneld, in the original's format, and what should not
//! get through does not.
//!
//! ```text
//!   node1  a      node2  b      node3 (at times a peer as the original is)
//!     └─────────────┴─────────────┴──── switch
//! ```

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flannel_rs_tests::packet_peer::PacketPeer;
use flannel_rs_tests::{LEASES, PATIENCE, Traffic, everyone_answers, reaches, write_key};
use lab::{Families, Namespace, Node, Ping, Pod, Topology, story, wait_for};
use serde_json::json;

const PORT: u16 = 8285;

#[test]
fn streams_cross_the_tunnel_whole_in_both_families_and_directions() {
    story(Topology::udp(2).families(Families::Dual), |lab| {
        lab.start()?;
        let (a, b) = (lab.node(1).attach("a")?, lab.node(2).attach("b")?);
        reaches(&a, &b)?;
        for (from, to) in [(&a, &b), (&b, &a)] {
            for address in to.addresses() {
                transfer((from.namespace(), to.namespace()), address.addr(), 20 << 20)?;
            }
        }
        Ok(())
    });
}

/// A peer that handles each packet by itself cannot tell ours from one of its kind, nor can ours.
#[test]
fn peers_of_the_originals_kind_are_understood() {
    story(Topology::udp(3).etcd().flag("--ip-masq"), |lab| {
        lab.node(1).start()?;
        lab.node(2).start()?;
        lab.wait_ready()?;
        let (a, b) = (lab.node(1).attach("a")?, lab.node(2).attach("b")?);
        let other = lab.node(3);
        let (own, address): (_, Ipv4Addr) = ("10.244.200.0/24".parse()?, "10.244.200.0".parse()?);
        let mut others = Vec::new();
        for node in &lab.nodes()[..2] {
            let subnet = node.subnet_file()?.subnet.context("no subnet")?.trunc();
            let IpAddr::V4(at) = node.address() else { unreachable!("the underlay is IPv4") };
            others.push((subnet, at));
        }
        let _peer = PacketPeer::start(other, own, others)?;
        let lease = format!(r#"{{"PublicIP":"{}","PublicIPv6":null}}"#, other.address());
        write_key(lab, &format!("{LEASES}10.244.200.0-24"), &lease)?;
        for pod in [&a, &b] {
            wait_for("the peer to answer", PATIENCE, || pod.ping(address.into()).map(drop))?;
        }
        let here = other.namespace();
        transfer((a.namespace(), here), address.into(), 2 << 20)?;
        transfer((here, a.namespace()), a.ipv4()?, 2 << 20)?;
        // As large as it gets in one piece, and larger.
        let largest = Ping { size: 1472 - 28, patience: PATIENCE, ..Ping::once(address.into()) };
        let largest = largest.from(b.namespace())?;
        ensure!(largest.lost() == 0, "{:?}", largest.error);
        b.run(&format!("ping -c 1 -W 45 -s 4000 {address}"))?;
        reaches(&a, &b)
    });
}

#[test]
fn streams_survive_restarts_and_the_device_stays() {
    story(Topology::udp(2).etcd(), |lab| {
        lab.start()?;
        let (a, b) = (lab.node(1).attach("a")?, lab.node(2).attach("b")?);
        reaches(&a, &b)?;
        let device = || lab.node(1).run("ip -o link show flannel0");
        let index = |shown: String| shown.split(':').next().unwrap_or_default().to_owned();
        let before = index(device()?);
        let (address, ends, received) = (b.ipv4()?, AtomicBool::new(false), AtomicUsize::new(0));
        let flows = || {
            let before = received.load(Ordering::Relaxed);
            wait_for("the stream to go on", PATIENCE, || {
                let more = received.load(Ordering::Relaxed) - before;
                ensure!(more > 4 << 20, "{more} octets have arrived since the last start, {before} before");
                Ok(())
            })
        };
        let streams = || {
            let left = |_| if ends.load(Ordering::Relaxed) { 0 } else { usize::MAX };
            stream((a.namespace(), b.namespace()), address, left, &received)
        };
        thread::scope(|scope| {
            let streaming = scope.spawn(streams);
            let restarts = (0..3).try_for_each(|_| {
                flows()?;
                lab.node(1).kill()?;
                lab.start()
            });
            let restarts = restarts.and_then(|()| flows());
            ends.store(true, Ordering::Relaxed);
            streaming.join().expect("the stream does not panic")?;
            restarts
        })?;
        ensure!(index(device()?) == before, "the device was made anew");
        reaches(&a, &b)
    });
}

/// What is lost is lost while flanneld is down, and not a packet after.
#[test]
fn nothing_is_lost_once_flanneld_is_back() {
    story(Topology::udp(2), |lab| {
        lab.start()?;
        let (a, b) = (lab.node(1).attach("a")?, lab.node(2).attach("b")?);
        reaches(&a, &b)?;
        lab.node(1).stop()?;
        ensure!(a.ping(b.ipv4()?).is_err(), "somebody carries packets although flanneld is down");
        lab.start()?;
        let traffic = Traffic::between(&a, &b)?;
        traffic.lost_nothing()?;
        let dropped = |status: &fabric::status::Status| -> Option<u64> {
            let path = status.data_path.as_ref()?;
            path.outgoing.dropped.get("queue_full_or_not_running").copied()
        };
        wait_for("the packets of the restart to be counted", PATIENCE, || {
            let status = lab.node(1).status()?;
            ensure!(dropped(&status).is_some_and(|count| count > 0), "{:?}", status.data_path);
            Ok(())
        })
    });
}

#[test]
fn a_deleted_device_comes_back_with_its_data_path() {
    story(Topology::udp(2), |lab| {
        lab.start()?;
        let (a, b) = (lab.node(1).attach("a")?, lab.node(2).attach("b")?);
        reaches(&a, &b)?;
        lab.node(1).run("ip link delete flannel0")?;
        reaches(&a, &b)?;
        lab.node(1).run("ip link set flannel0 down")?;
        reaches(&a, &b)?;
        wait_for("the failure to be forgotten", PATIENCE, || {
            let status = lab.node(1).status()?;
            ensure!(status.ready && status.failures.is_empty(), "{:?}", status.failures);
            Ok(())
        })
    });
}

/// What nobody on the other node sent is dropped, and counted by its reason.
#[test]
fn forged_and_broken_packets_are_dropped_and_counted() {
    story(Topology::udp(2), |lab| {
        lab.start()?;
        let (a, b) = (lab.node(1).attach("a")?, lab.node(2).attach("b")?);
        reaches(&a, &b)?;
        let (IpAddr::V4(to), IpAddr::V4(from)) = (a.ipv4()?, b.ipv4()?) else { unreachable!() };
        let listener = a.namespace().within(|| UdpSocket::bind((to, 7777)))??;
        listener.set_read_timeout(Some(PATIENCE))?;
        let good = || datagram(from, to, b"good");
        let mended = |at: usize, octet: u8| {
            let mut packet = good();
            packet[at] = octet;
            checksum_header(&mut packet);
            packet
        };
        let mut broken = good();
        broken[29] ^= 1;
        let mut bad_header = good();
        bad_header[11] ^= 1;
        let mut fragment = good();
        fragment[6..8].copy_from_slice(&[0x20, 0]);
        checksum_header(&mut fragment);
        let forged: [(&str, Vec<u8>); 8] = [
            ("spoofed", datagram("10.244.250.9".parse()?, to, b"of nobody")),
            ("spoofed", datagram("8.8.8.8".parse()?, to, b"of a stranger")),
            ("not_ours", datagram(from, from, b"looped")),
            ("ttl_expired", mended(8, 1)),
            ("header_checksum", bad_header),
            ("checksum", broken),
            ("truncated", good()[..30].to_vec()),
            ("malformed", b"hello".to_vec()),
        ];
        let sender = lab.node(2).namespace().within(|| UdpSocket::bind((lab.node(2).address(), 0)))??;
        let node1 = (lab.node(1).address(), PORT);
        for (_, packet) in &forged {
            sender.send_to(packet, node1)?;
        }
        // From this machine nobody has pods.
        let stranger = lab.switch().within(|| UdpSocket::bind(("192.168.64.254", PORT)))??;
        stranger.send_to(&good(), node1)?;
        // Passed on for the kernel to put together, which the rest of it never comes for.
        sender.send_to(&fragment, node1)?;
        sender.send_to(&good(), node1)?;

        let mut received = [0; 100];
        let (length, source) = listener.recv_from(&mut received).context("waiting for the good one")?;
        ensure!(received[..length] == *b"good" && source.ip() == from, "{:?}", &received[..length]);
        wait_for("all to be counted", PATIENCE, || {
            let status = lab.node(1).status()?;
            let dropped = status.data_path.context("nothing is counted")?.incoming.dropped;
            for (reason, _) in &forged {
                let want = if *reason == "spoofed" { 3 } else { 1 };
                ensure!(dropped.get(*reason) == Some(&want), "{reason}: {dropped:?}");
            }
            Ok(())
        })?;
        listener.set_read_timeout(Some(Duration::from_millis(1)))?;
        let more = listener.recv_from(&mut received).map(|(length, _)| received[..length].to_vec());
        ensure!(more.is_err(), "{more:?} got through");
        Ok(())
    });
}

/// As in the original: whoever reaches the port may send anything.
#[test]
fn any_source_is_believed_where_that_is_asked_for() {
    let backend = json!({ "Type": "udp", "AnySource": true });
    story(Topology::udp(2).backend(backend), |lab| {
        lab.start()?;
        let a = lab.node(1).attach("a")?;
        let IpAddr::V4(to) = a.ipv4()? else { unreachable!() };
        let listener = a.namespace().within(|| UdpSocket::bind((to, 7777)))??;
        listener.set_read_timeout(Some(PATIENCE))?;
        let stranger = lab.switch().within(|| UdpSocket::bind(("192.168.64.254", 0)))??;
        let packet = datagram("10.244.250.9".parse()?, to, b"anything");
        stranger.send_to(&packet, (lab.node(1).address(), PORT))?;
        let mut received = [0; 100];
        listener.recv_from(&mut received).context("waiting for the packet")?;
        Ok(())
    });
}

#[test]
fn who_sends_to_a_subnet_of_nobody_is_told() {
    story(Topology::udp(2), |lab| {
        lab.start()?;
        let a = lab.node(1).attach("a")?;
        let socket = a.namespace().within(|| UdpSocket::bind("0.0.0.0:0"))??;
        socket.connect("10.244.250.9:9")?;
        socket.send(b"anybody?")?;
        // A socket is not told of what may pass; the kernel counts it.
        wait_for("the answer", PATIENCE, || {
            let counters = a.run("cat /proc/net/snmp")?;
            let mut icmp = counters.lines().filter_map(|line| line.strip_prefix("Icmp: "));
            let (names, values) = (icmp.next().unwrap_or_default(), icmp.next().unwrap_or_default());
            let mut both = names.split(' ').zip(values.split(' '));
            let told = both.any(|(name, value)| name == "InDestUnreachs" && value == "1");
            ensure!(told, "{names}: {values}");
            Ok(())
        })?;
        Ok(())
    });
}

/// A path that carries less than the interface does: its packets are not lost in silence.
#[test]
fn a_narrower_path_makes_streams_use_smaller_packets() {
    story(Topology::udp(2), |lab| {
        lab.start()?;
        let (a, b) = (lab.node(1).attach("a")?, lab.node(2).attach("b")?);
        reaches(&a, &b)?;
        let (node, peer) = (lab.node(1), lab.node(2).address());
        node.run(&format!("ip route add {peer} dev eth0 mtu lock 1400"))?;
        transfer((a.namespace(), b.namespace()), b.ipv4()?, 4 << 20)?;
        shows_route_mtu(&a, b.ipv4()?, 1372)?;
        wait_for("what was too big to be counted", PATIENCE, || {
            let dropped = node.status()?.data_path.context("nothing is counted")?.outgoing.dropped;
            ensure!(dropped.get("too_big").is_some_and(|count| *count > 0), "{dropped:?}");
            Ok(())
        })
    });
}

/// An errno that would also be that of a kernel that cannot cut, of a route that takes nothing at all.
#[test]
fn a_route_that_refuses_everything_for_a_while_costs_no_offload() {
    const CUTS_NOTHING: &str = "does not cut datagrams apart";
    story(Topology::udp(2), |lab| {
        lab.start()?;
        let (a, b) = (lab.node(1).attach("a")?, lab.node(2).attach("b")?);
        reaches(&a, &b)?;
        let (node, peer) = (lab.node(1), lab.node(2).address());
        ensure!(node.log().contains("the data path of flannel0 is open"), "its log lines are not shown");
        let flood = a.namespace().within(|| UdpSocket::bind("0.0.0.0:0"))??;
        flood.connect((b.ipv4()?, 9))?;
        node.run(&format!("ip route add blackhole {peer}"))?;
        wait_for("many to be refused", PATIENCE, || {
            for _ in 0..2000 {
                // Of one that nobody takes the pod may be told.
                let _ = flood.send(&[7; 1200]);
            }
            let dropped = node.status()?.data_path.context("nothing is counted")?.outgoing.dropped;
            ensure!(dropped.get("refused").is_some_and(|count| *count > 1000), "{dropped:?}");
            Ok(())
        })?;
        node.run(&format!("ip route delete blackhole {peer}"))?;
        reaches(&a, &b)?;
        transfer((a.namespace(), b.namespace()), b.ipv4()?, 4 << 20)?;
        ensure!(!node.log().contains(CUTS_NOTHING), "given up for good");
        Ok(())
    });
}

/// Our device stays, and so does our route. The original makes a device of the next name, and cannot be
/// told to do without a metric.
#[test]
fn the_original_can_be_gone_back_to_on_a_running_node() {
    story(Topology::udp(2), |lab| {
        lab.start()?;
        let (a, b) = (lab.node(1).attach("a")?, lab.node(2).attach("b")?);
        reaches(&a, &b)?;
        let (node, to) = (lab.node(1), b.ipv4()?);
        let leads_through = |device: &str| {
            let shown = node.run(&format!("ip route get {to}"))?;
            ensure!(shown.contains(&format!("dev {device} ")), "not through {device}: {shown}");
            Ok(())
        };
        leads_through("flannel0")?;
        node.stop()?;
        node.run("ip tuntap add dev flannel1 mode tun")?;
        node.run("ip link set flannel1 up")?;
        node.run("ip route add 10.244.0.0/16 dev flannel1")?;
        leads_through("flannel1")?;
        // And ours again.
        node.run("ip link delete flannel1")?;
        lab.start()?;
        leads_through("flannel0")?;
        reaches(&a, &b)
    });
}

/// Host processes may be bound to the address of their node.
#[test]
fn a_node_reaches_pods_from_its_own_address() {
    story(Topology::udp(2), |lab| {
        lab.start()?;
        let (a, b) = (lab.node(1).attach("a")?, lab.node(2).attach("b")?);
        reaches(&a, &b)?;
        let host = lab.node(1).namespace().within(|| UdpSocket::bind((lab.node(1).address(), 0)))??;
        let listener = b.namespace().within(|| UdpSocket::bind((b.addresses()[0].addr(), 7777)))??;
        listener.set_read_timeout(Some(PATIENCE))?;
        host.send_to(b"from the node", (b.ipv4()?, 7777))?;
        let (_, source) = listener.recv_from(&mut [0; 100]).context("waiting for the datagram")?;
        ensure!(source.ip() == lab.node(1).address(), "from {source}");
        Ok(())
    });
}

fn shows_route_mtu(pod: &Pod<'_>, to: IpAddr, mtu: u32) -> Result<()> {
    let shown = pod.run(&format!("ip route get {to}"))?;
    ensure!(shown.contains(&format!("mtu {mtu}")), "the pod was not told: {shown}");
    Ok(())
}

#[test]
fn a_port_that_is_taken_is_named_and_had_when_it_is_free() {
    story(Topology::udp(2), |lab| {
        let node = lab.node(1);
        let taken = node.namespace().within(|| UdpSocket::bind((node.address(), PORT)))??;
        lab.node(2).start()?;
        node.start()?;
        wait_for("the failure to be named", PATIENCE, || {
            let failures = node.status()?.failures;
            let named = failures.iter().any(|failure| {
                failure.topic == "udp"
                    && failure.what.contains("ss -ulpn")
                    && failure.what.contains("192.168.64.1:8285")
            });
            ensure!(named, "{failures:?}");
            Ok(())
        })?;
        ensure!(!node.status()?.ready, "ready although no packet can flow");
        drop(taken);
        lab.wait_ready()?;
        let (a, b) = (node.attach("a")?, lab.node(2).attach("b")?);
        everyone_answers(lab, &[a, b])
    });
}

#[test]
fn a_host_without_tun_devices_is_told_what_it_needs() {
    story(Topology::udp(1), |lab| {
        let node = lab.node(1);
        let mut hidden: Vec<String> =
            ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /dev/net && exec \"$@\"", "sh"]
                .map(String::from)
                .to_vec();
        hidden.extend(flanneld(node)?);
        node.start_command(&hidden)?;
        wait_for("the failure to be named", PATIENCE, || {
            let failures = node.status()?.failures;
            let named = failures.iter().any(|failure| {
                failure.what.contains("/dev/net/tun") && failure.what.contains("modprobe tun")
            });
            ensure!(named, "{failures:?}");
            Ok(())
        })
    });
}

#[test]
fn an_interface_too_small_for_the_tunnel_is_refused_with_the_size_it_needs() {
    story(Topology::udp(1), |lab| {
        let node = lab.node(1);
        node.run("ip link set eth0 mtu 80")?;
        node.start()?;
        wait_for("the refusal", PATIENCE, || {
            let log = node.log();
            ensure!(log.contains("want 96 at least") && log.contains("--iface"), "{log}");
            Ok(())
        })
    });
}

/// With the program that this one was built beside.
pub(crate) fn flanneld(node: &Node) -> Result<Vec<String>> {
    let program = lab::Binaries::find()?.flanneld.display().to_string();
    let mut command = vec![program, format!("--subnet-file={}", node.files().subnet.display())];
    command.extend(node.flags().iter().cloned());
    Ok(command)
}

/// Sends so many octets over a stream, which must arrive as they were sent.
pub(crate) fn transfer(between: (&Namespace, &Namespace), address: IpAddr, length: usize) -> Result<()> {
    let received = AtomicUsize::new(0);
    stream(between, address, |sent| length - sent, &received)?;
    let received = received.into_inner();
    ensure!(received == length, "{received} of {length} octets arrived");
    Ok(())
}

/// Sends octets over a stream for as long as `left` of those that were sent is not zero. All of them must
/// arrive as they were sent; `received` says how many have.
fn stream(
    (from, to): (&Namespace, &Namespace),
    address: IpAddr,
    left: impl Fn(usize) -> usize,
    received: &AtomicUsize,
) -> Result<()> {
    let listener = to.within(|| TcpListener::bind((address, 0)))??;
    let port = listener.local_addr()?.port();
    let mut sender = from.within(|| TcpStream::connect((address, port)))??;
    sender.set_write_timeout(Some(PATIENCE * 2))?;
    let (receiver, _) = listener.accept()?;
    receiver.set_read_timeout(Some(PATIENCE * 2))?;
    let octets = pattern();
    let sent = thread::scope(|scope| {
        let receiving = scope.spawn(|| receive(receiver, &octets, received));
        let mut sent = 0;
        let sending = loop {
            // Each piece begins where the pattern does.
            let piece = (octets.len() - CYCLE).min(left(sent));
            if piece == 0 {
                break Ok(());
            }
            if let Err(error) = sender.write_all(&octets[..piece]) {
                break Err(error);
            }
            sent += piece;
        };
        drop(sender);
        // A receiver that has given up breaks the sender's pipe: it knows why.
        receiving.join().expect("the receiver does not panic")?;
        sending.context("sending")?;
        anyhow::Ok(sent)
    })?;
    let received = received.load(Ordering::Relaxed);
    ensure!(received == sent, "{received} of {sent} octets arrived");
    Ok(())
}

fn receive(mut stream: TcpStream, octets: &[u8], received: &AtomicUsize) -> Result<()> {
    let mut buffer = vec![0; octets.len() - CYCLE];
    loop {
        let count = stream.read(&mut buffer).context("receiving")?;
        if count == 0 {
            return Ok(());
        }
        let at = received.fetch_add(count, Ordering::Relaxed);
        let right = buffer[..count] == octets[at % CYCLE..][..count];
        ensure!(right, "octets between {at} and {} are wrong", at + count);
    }
}

/// No power of two: what is missing, or comes twice, shows.
const CYCLE: usize = 251;

/// Cycles of octets, one more than are sent in one piece.
fn pattern() -> Vec<u8> {
    (0..CYCLE as u8).cycle().take(CYCLE * 257).collect()
}

/// A UDP datagram to port 7777, in an IP packet.
pub(crate) fn datagram(from: Ipv4Addr, to: Ipv4Addr, data: &[u8]) -> Vec<u8> {
    let length = (8 + data.len()) as u16;
    let mut upper =
        [&7777u16.to_be_bytes()[..], &7777u16.to_be_bytes(), &length.to_be_bytes(), &[0, 0], data].concat();
    let pseudo = [&from.octets()[..], &to.octets(), &[0, 17], &length.to_be_bytes(), &upper].concat();
    upper[6..8].copy_from_slice(&checksum(&pseudo).to_be_bytes());
    let mut packet = vec![0x45, 0, 0, 0, 0, 1, 0, 0, 64, 17, 0, 0];
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet[2..4].copy_from_slice(&(20 + length).to_be_bytes());
    checksum_header(&mut packet);
    packet.extend(upper);
    packet
}

pub(crate) fn checksum_header(packet: &mut [u8]) {
    packet[10..12].fill(0);
    let sum = checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

fn checksum(octets: &[u8]) -> u16 {
    let mut sum: u32 = octets
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
