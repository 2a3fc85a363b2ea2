//! Pods get through the host's firewalls, and out under the node's address, whatever is done to the rules.
//!
//! ```text
//!   node1  a      node2  b
//!     └─────────────┴──── switch (the world outside, which knows no way back to a pod)
//! ```

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use flannel_rs_tests::{PATIENCE, everyone_answers, is_put_right, shows};
use lab::{Families, Lab, Namespace, Topology, story, wait_for};

#[test]
fn flushed_rules_come_back() {
    story(Topology::vxlan(2).families(Families::Dual).flag("--ip-masq"), |lab| {
        lab.start()?;
        let a = lab.node(1).attach("a")?;
        let outside = lab.topology().gateways(0);
        let masqueraded = || outside.iter().try_for_each(|net| a.ping(net.addr()).map(drop));
        wait_for("the world outside to answer", PATIENCE, masqueraded)?;
        let node = lab.node(1);
        let rules = || shows(node, "nft list table ip flannel-ipv4", "masquerade");
        is_put_right(node, "nft flush ruleset", rules)?;
        is_put_right(node, "nft flush table ip flannel-ipv4", rules)?;
        is_put_right(node, "nft flush chain ip6 flannel-ipv6 postrtg", || {
            shows(node, "nft list table ip6 flannel-ipv6", "masquerade")
        })?;
        is_put_right(node, "nft insert rule ip flannel-ipv4 postrtg return", || {
            let shown = node.run("nft list chain ip flannel-ipv4 postrtg")?;
            ensure!(!shown.lines().any(|line| line.trim() == "return"), "{shown}");
            Ok(())
        })?;
        wait_for("the world outside to answer", PATIENCE, masqueraded)
    });
}

/// An `accept` in one table does not undo a `drop` in another: the rules must be where the drop is.
#[test]
fn pods_get_through_a_forward_chain_of_iptables_nft_that_drops() {
    through_a_chain_that_drops("iptables-nft");
}

#[test]
fn pods_get_through_a_forward_chain_of_iptables_legacy_that_drops() {
    through_a_chain_that_drops("iptables-legacy");
}

fn through_a_chain_that_drops(iptables: &str) {
    story(Topology::vxlan(2).families(Families::Dual), |lab| {
        let drop = |lab: &Lab, number: usize| -> Result<()> {
            lab.node(number).run(&format!("{iptables} -P FORWARD DROP"))?;
            lab.node(number)
                .run(&format!("{} -P FORWARD DROP", iptables.replace("iptables", "ip6tables")))?;
            Ok(())
        };
        // On one node the chain drops before flanneld starts, on the other Docker comes later.
        drop(lab, 1)?;
        lab.start()?;
        let pods = [lab.node(1).attach("a")?, lab.node(2).attach("b")?];
        everyone_answers(lab, &pods)?;
        drop(lab, 2)?;
        everyone_answers(lab, &pods)?;

        // And when somebody else writes the whole chain anew.
        lab.node(1).run(&format!("{iptables} -F"))?;
        everyone_answers(lab, &pods)?;
        let rules = lab.node(1).run(&format!("{iptables} -S"))?;
        ensure!(rules.contains("-P FORWARD DROP"), "the policy is not ours to change: {rules}");
        Ok(())
    });
}

/// The original's iptables mode empties its chains at every start and fills them again.
#[test]
fn no_flow_leaves_unmasqueraded_while_flanneld_restarts() {
    story(Topology::vxlan(1).flag("--ip-masq"), |lab| {
        lab.start()?;
        let a = lab.node(1).attach("a")?;
        let outside = lab.topology().gateways(0)[0].addr();
        wait_for("the world outside to answer", PATIENCE, || a.ping(outside).map(drop))?;
        let (stop, sent) = (AtomicBool::new(false), AtomicU32::new(0));
        let naked = thread::scope(|scope| {
            let counting = scope.spawn(|| unmasqueraded(lab, a.namespace(), outside, (&stop, &sent)));
            // However quick a start is, flows are started during each.
            let restarts = (0..5).try_for_each(|_| {
                lab.node(1).kill()?;
                let before = sent.load(Ordering::Relaxed);
                lab.start()?;
                wait_for("flows to be started", PATIENCE, || {
                    ensure!(sent.load(Ordering::Relaxed) > before + 20, "{before} were so before");
                    Ok(())
                })
            });
            stop.store(true, Ordering::Relaxed);
            restarts.and(counting.join().expect("counting does not panic"))
        })?;
        let sent = sent.into_inner();
        ensure!(naked == 0, "{naked} of {sent} flows left under the pod's own address");
        Ok(())
    });
}

/// Starts a flow a millisecond from a pod to the world outside, and counts them; how many of them arrive
/// from an address of a pod.
fn unmasqueraded(
    lab: &Lab,
    pod: &Namespace,
    outside: IpAddr,
    (stop, sent): (&AtomicBool, &AtomicU32),
) -> Result<u32> {
    let receiver = lab.switch().within(|| UdpSocket::bind((outside, 9)))??;
    receiver.set_nonblocking(true)?;
    let mut naked = 0;
    pod.within(|| {
        while !stop.load(Ordering::Relaxed) {
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.send_to(b"?", (outside, 9))?;
            sent.fetch_add(1, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(1));
            while let Ok((_, from)) = receiver.recv_from(&mut [0; 8]) {
                naked += u32::from(from.ip().to_string().starts_with("10.244."));
            }
        }
        Ok(naked)
    })?
}

/// Off is a state too: rules of an earlier run do not stay.
#[test]
fn rules_that_are_no_longer_wanted_go() {
    story(Topology::vxlan(1), |lab| {
        let node = lab.node(1);
        node.start_with(&["--ip-masq"])?;
        node.wait_ready(0)?;
        wait_for("the rules", PATIENCE, || shows(node, "nft list table ip flannel-ipv4", "masquerade"))?;
        node.stop()?;
        node.start_with(&["--iptables-forward-rules=false"])?;
        node.wait_ready(0)?;
        wait_for("the rules to go", PATIENCE, || {
            let rules = node.run("nft list ruleset")?;
            ensure!(!rules.contains("flannel-ipv4"), "{rules}");
            Ok(())
        })
    });
}
