//! A node is scraped while pods come, somebody interferes, and the store goes away.
//!
//! ```text
//!   node1  a  ⇄  node2        GET node1:8471/metrics
//!     └────────────┴──── switch: etcd
//! ```

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flannel_rs_tests::PATIENCE;
use lab::{Node, Topology, story, wait_for};

const PORT: u16 = 8471;

#[test]
fn what_happens_to_a_node_shows_in_its_metrics() {
    story(Topology::vxlan(2).etcd().flag(format!("--healthz-port={PORT}")), |lab| {
        for node in lab.nodes() {
            node.start_with(&[&format!("--ipam-dir={}", node.cni_networks().display())])?;
        }
        lab.wait_ready()?;
        let node = lab.node(1);
        for (name, value) in [
            ("flannel_ready", 1.0),
            ("flannel_peers{path=\"tunnel\"}", 1.0),
            ("flannel_lease_state{state=\"held\"}", 1.0),
            ("flannel_store_connected", 1.0),
            ("flannel_reconciler_desired_objects{kind=\"route\"}", 1.0),
            ("flannel_reconciler_programmed_objects{kind=\"route\"}", 1.0),
            ("flannel_reconciler_repairs_total{kind=\"route\"}", 0.0),
            ("flannel_ipam_addresses_used{family=\"ipv4\"}", 0.0),
            ("flannel_ipam_addresses_free{family=\"ipv4\"}", 253.0),
        ] {
            comes_to(node, name, |is| is == value)?;
        }

        let pod = node.attach("a")?;
        comes_to(node, "flannel_ipam_addresses_used{family=\"ipv4\"}", |used| used == 1.0)?;
        pod.detach()?;
        comes_to(node, "flannel_ipam_addresses_used{family=\"ipv4\"}", |used| used == 0.0)?;

        let peer = lab.node(2).subnet_file()?.subnets();
        node.run(&format!("ip route delete {}", peer.ipv4.context("no IPv4 subnet")?))?;
        comes_to(node, "flannel_reconciler_repairs_total{kind=\"route\"}", |repairs| repairs == 1.0)?;

        lab.stop_store()?;
        comes_to(node, "flannel_store_connected", |connected| connected == 0.0)?;
        comes_to(node, "flannel_store_errors_total", |errors| errors > 0.0)
    });
}

pub(crate) fn comes_to(node: &Node, name: &str, wanted: impl Fn(f64) -> bool) -> Result<()> {
    wait_for(name, PATIENCE, || {
        let value = scrape(node)?.get(name).copied();
        ensure!(value.is_some_and(&wanted), "it is {value:?}");
        Ok(())
    })
}

/// Every sample by name and labels.
fn scrape(node: &Node) -> Result<BTreeMap<String, f64>> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
    let mut stream = node.namespace().within(|| TcpStream::connect(address))??;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, page) = answer.split_once("\r\n\r\n").context("no end of the headers")?;
    ensure!(head.starts_with("HTTP/1.1 200 OK") && head.contains("application/openmetrics-text"), "{head}");
    ensure!(page.ends_with("# EOF\n"), "{page}");
    let samples = page.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').with_context(|| format!("no sample: {line}"))?;
            Ok((name.to_owned(), value.parse()?))
        })
        .collect()
}
