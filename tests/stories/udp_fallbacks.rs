//! The udp backend where a kernel or a network card does less than others do: everything arrives all the
//! same, and what is lacking is said once.
//!
//! ```text
//!   node1  a (lacks something)      node2  b (has everything)
//!     └──────────────────────────────┴──── switch
//! ```

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use fabric::LinkName;
use flannel_rs_tests::{PATIENCE, reaches};
use lab::{Binaries, Families, Node, Pod, Topology, story, wait_for};

use crate::udp::{flanneld, transfer};

/// What the log says of a kernel that lacks something, and of one that refuses what it said it can do.
const LACKING: &str = "this kernel is slower than others";
const REFUSED: &str = "does not cut datagrams apart";

/// By a filter that answers as such kernels do. The first in the list may well be met.
#[test]
fn older_kernels_carry_streams_both_ways_and_say_what_they_lack() {
    let cases: [(&[&str], &[&str]); 6] = [
        (&["uso"], &["USO"]),
        (&["uso", "udp-gro"], &["UDP_GRO", "USO"]),
        (&["uso", "udp-gro", "udp-segment"], &["UDP_GRO", "UDP_SEGMENT", "USO"]),
        (&["udp-segment"], &["UDP_SEGMENT"]),
        (&["tun-offload"], &["TSO", "USO"]),
        (&["vnet-header", "udp-gro", "udp-segment"], &["TSO", "UDP_GRO", "UDP_SEGMENT", "USO"]),
    ];
    story(Topology::udp(2).families(Families::Dual), |lab| {
        let (node, other) = (lab.node(1), lab.node(2));
        other.start()?;
        let mut pods = None;
        for (without, lacking) in cases {
            start_without(node, without)?;
            lab.wait_ready()?;
            let (a, b) = match &pods {
                Some(pods) => pods,
                None => pods.insert((node.attach("a")?, other.attach("b")?)),
            };
            everything_arrives(a, b, 2 << 20)?;
            ensure!(off(node)? == named(lacking), "without {without:?}: {:?} are off", off(node)?);
            ensure!(off(other)?.is_empty(), "{:?} are off although nothing is lacking", off(other)?);
            let said = lines(node, LACKING);
            ensure!(said.len() == 1 && lacking.iter().all(|name| said[0].contains(name)), "{said:?}");
            ensure!(lines(node, REFUSED).is_empty(), "{:?}", lines(node, REFUSED));
            node.stop()?;
            // No kernel forgets what it can do while a device lives; and each case has a log of its own.
            node.run("ip link delete flannel0")?;
            std::fs::remove_file(node.log_file())?;
        }
        Ok(())
    });
}

/// Kernels before 6.11 let nobody send datagrams to be cut to a device that computes no checksums: EIO.
#[test]
fn a_card_without_checksums_costs_speed_and_no_packet() {
    story(Topology::udp(2).families(Families::Dual), |lab| {
        let eth0: LinkName = "eth0".parse()?;
        for node in lab.nodes() {
            node.namespace().within(|| kernel::offload::disable_checksums(eth0))??;
        }
        lab.start()?;
        let (a, b) = (lab.node(1).attach("a")?, lab.node(2).attach("b")?);
        everything_arrives(&a, &b, 2 << 20)?;
        for node in lab.nodes() {
            let said = lines(node, REFUSED);
            // In the test machine the kernel is known to refuse it.
            if said.is_empty() && std::env::var_os("FLANNEL_VM").is_none() {
                ensure!(!off(node)?.contains("UDP_SEGMENT"), "it was given up and nobody was told");
                continue;
            }
            ensure!(said.len() == 1 && said[0].contains("Input/output error"), "{said:?}");
            wait_for("the status to tell it", PATIENCE, || {
                ensure!(off(node)?.contains("UDP_SEGMENT"), "{:?} are off", off(node)?);
                Ok(())
            })?;
            let dropped = node.status()?.data_path.unwrap_or_default().outgoing.dropped;
            ensure!(dropped.get("refused") == Some(&0), "{dropped:?}");
        }
        Ok(())
    });
}

/// Starts flanneld on a kernel that lacks something.
fn start_without(node: &Node, lacking: &[&str]) -> Result<()> {
    let wrapper = Binaries::find()?.flanneld.with_file_name("older-kernel");
    let mut command = vec![wrapper.display().to_string()];
    command.extend(lacking.iter().map(|name| (*name).to_owned()));
    command.push("--".to_owned());
    command.extend(flanneld(node)?);
    node.start_command(&command)
}

/// Streams in both directions and families, whole.
fn everything_arrives(a: &Pod<'_>, b: &Pod<'_>, length: usize) -> Result<()> {
    reaches(a, b)?;
    for (from, to) in [(a, b), (b, a)] {
        for address in to.addresses() {
            transfer((from.namespace(), to.namespace()), address.addr(), length)?;
        }
    }
    Ok(())
}

/// What the status says that the kernel does not do.
fn off(node: &Node) -> Result<BTreeSet<String>> {
    let offloads = node.status()?.data_path.unwrap_or_default().offloads;
    ensure!(offloads.len() == 4, "{offloads:?}");
    Ok(offloads.into_iter().filter(|(_, works)| !works).map(|(name, _)| name).collect())
}

fn named(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// The lines of a node's log that have a text.
fn lines(node: &Node, text: &str) -> Vec<String> {
    node.log().lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
}
