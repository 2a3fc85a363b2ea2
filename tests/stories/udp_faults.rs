//! What others send that they should not, over the udp backend: it costs only itself, and whoever looks
//! finds it in the status and in the metrics. What is unusual but right arrives.
//!
//! ```text
//!   node1  a  GET node1:8471/metrics      node2  b (its node sends what it likes)
//!     └────────────────────────────────────┴──── switch
//! ```

use std::net::{IpAddr, UdpSocket};

use anyhow::{Context, Result, ensure};
use flannel_rs_tests::{PATIENCE, reaches};
use lab::{Binaries, Lab, Node, Topology, story, wait_for};

use crate::metrics::comes_to;
use crate::udp::{checksum_header, datagram};

#[test]
fn what_is_too_large_or_in_fragments_arrives_and_the_first_is_noted() {
    story(Topology::udp(2).flag("--healthz-port=8471"), |lab| {
        let (to, from, sender) = start(lab)?;
        let node = lab.node(1);
        let listener = listen(lab, to)?;
        let data: Vec<u8> = (0..3000).map(|at| (at % 251) as u8).collect();
        let (IpAddr::V4(from4), IpAddr::V4(to4)) = (from, to) else { unreachable!() };

        // Twice what the device of the pod takes, in one packet: the kernel cuts it.
        sender.send_to(&datagram(from4, to4, &data), (node.address(), 8285))?;
        arrives(&listener, &data, from)?;
        let noted = "flannel_datapath_oversized_packets_total{direction=\"incoming\"}";
        comes_to(node, noted, |count| count == 1.0)?;
        shows(node, "1 incoming larger than the MTU of pods")?;

        let [first, rest] = in_two(&datagram(from4, to4, &data[..2000]), 1024);
        for part in [rest, first] {
            sender.send_to(&part, (node.address(), 8285))?;
        }
        arrives(&listener, &data[..2000], from)?;
        comes_to(node, noted, |count| count == 1.0)?;
        let dropped = node.status()?.data_path.context("nothing is counted")?.incoming.dropped;
        ensure!(dropped.values().all(|count| *count == 0), "{dropped:?}");
        Ok(())
    });
}

#[test]
fn what_is_dropped_shows_in_status_and_metrics_by_its_reason() {
    story(Topology::udp(2).flag("--healthz-port=8471"), |lab| {
        let (to, from, sender) = start(lab)?;
        let node = lab.node(1);
        let (IpAddr::V4(from4), IpAddr::V4(to4)) = (from, to) else { unreachable!() };
        let mut wrong = datagram(from4, to4, b"wrong");
        wrong[30] ^= 1;
        let mut spent = datagram(from4, to4, b"spent");
        spent[8] = 1;
        checksum_header(&mut spent);
        let bad = [
            ("spoofed", datagram("10.244.250.9".parse()?, to4, b"of nobody")),
            ("not_ours", datagram(from4, from4, b"looped")),
            ("ttl_expired", spent),
            ("checksum", wrong),
            ("truncated", datagram(from4, to4, b"cut off")[..30].to_vec()),
            ("malformed", vec![0xff; 9000]),
        ];
        for (reason, packet) in bad {
            sender.send_to(&packet, (node.address(), 8285))?;
            let name = format!("flannel_datapath_drops_total{{direction=\"incoming\",reason=\"{reason}\"}}");
            comes_to(node, &name, |count| count == 1.0)?;
            shows(node, &format!("1 incoming dropped: {}", reason.replace('_', " ")))?;
        }
        // Out of the pod: it is forwarded once and then has nothing left for the tunnel.
        let pod = lab.pods()?.into_iter().find(|pod| pod.name() == "a").context("no pod")?;
        let socket = pod.namespace().within(|| UdpSocket::bind((to, 0)))??;
        socket.set_ttl(2)?;
        socket.send_to(b"spent", (from, 9))?;
        let name = "flannel_datapath_drops_total{direction=\"outgoing\",reason=\"ttl_expired\"}";
        comes_to(node, name, |count| count == 1.0)?;
        shows(node, "1 outgoing dropped: ttl expired")
    });
}

/// Starts two nodes with a pod each; the pods' addresses, and a socket on the second node.
fn start(lab: &Lab) -> Result<(IpAddr, IpAddr, UdpSocket)> {
    lab.start()?;
    let (a, b) = (lab.node(1).attach("a")?, lab.node(2).attach("b")?);
    reaches(&a, &b)?;
    let address = lab.node(2).address();
    Ok((a.ipv4()?, b.ipv4()?, lab.node(2).namespace().within(|| UdpSocket::bind((address, 0)))??))
}

fn listen(lab: &Lab, at: IpAddr) -> Result<UdpSocket> {
    let pods = lab.pods()?;
    let pod = pods.iter().find(|pod| pod.name() == "a").context("no pod")?;
    let listener = pod.namespace().within(|| UdpSocket::bind((at, 7777)))??;
    listener.set_read_timeout(Some(PATIENCE))?;
    Ok(listener)
}

fn arrives(listener: &UdpSocket, data: &[u8], from: IpAddr) -> Result<()> {
    let mut received = [0; 4096];
    let (length, source) = listener.recv_from(&mut received).context("waiting for the datagram")?;
    ensure!(received[..length] == *data && source.ip() == from, "{length} octets from {source}");
    Ok(())
}

/// An IPv4 packet as two fragments, the first with so many octets of what is in it.
fn in_two(packet: &[u8], first: usize) -> [Vec<u8>; 2] {
    let (header, content) = packet.split_at(20);
    let fragment = |content: &[u8], offset: usize, more: u16| {
        let mut part = [header, content].concat();
        let length = part.len() as u16;
        part[2..4].copy_from_slice(&length.to_be_bytes());
        part[6..8].copy_from_slice(&(more << 13 | (offset / 8) as u16).to_be_bytes());
        checksum_header(&mut part);
        part
    };
    [fragment(&content[..first], 0, 1), fragment(&content[first..], first, 0)]
}

/// Waits until `flannelctl status` says something.
fn shows(node: &Node, text: &str) -> Result<()> {
    let program = Binaries::find()?.flanneld.with_file_name("flannelctl");
    let command = format!("{} status --subnet-file {}", program.display(), node.files().subnet.display());
    wait_for(&format!("the status to have {text:?}"), PATIENCE, || {
        let shown = node.run(&command)?;
        ensure!(shown.contains(text), "{shown}");
        Ok(())
    })
}
