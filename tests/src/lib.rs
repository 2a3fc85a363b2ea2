//! What the stories share: the words in which several of them are told.
//!
//! The stories themselves are in `stories/`, a file each; the laboratory they take place in is the
//! crate `lab`.

#![forbid(unsafe_code)]

pub mod cri;
pub mod image;
pub mod kubernetes;
pub mod machine;
pub mod packet_peer;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::{Lab, Node, Ping, Pinging, Pod, wait_for};

/// How long anything may take that takes a moment on an idle machine: long for one that is busy, and less
/// than the minute after which a silent connection is given up, which must not be what mends a story.
pub const PATIENCE: Duration = Duration::from_secs(45);

/// Between the echo requests of traffic that must not notice what happens.
pub const STEADILY: Duration = Duration::from_millis(5);

/// Where the leases are in etcd.
pub const LEASES: &str = "/coreos.com/network/subnets/";

/// Waits until every pod's ping to every address of every other pod is answered.
pub fn everyone_answers(lab: &Lab, pods: &[Pod<'_>]) -> Result<()> {
    wait_for("every pod to answer every other", PATIENCE, || {
        let silent: Vec<String> = lab
            .ping_all(pods)
            .into_iter()
            .filter_map(|reply| {
                reply.answer.err().map(|error| format!("{} -> {}: {error}", reply.from.0, reply.to.0))
            })
            .collect();
        ensure!(silent.is_empty(), "{}", silent.join("; "));
        Ok(())
    })
}

/// Waits until one pod reaches every address of another.
pub fn reaches(from: &Pod<'_>, to: &Pod<'_>) -> Result<()> {
    wait_for("the ping to be answered", PATIENCE, || {
        to.addresses().iter().try_for_each(|net| from.ping(net.addr()).map(drop))
    })
}

/// Traffic that must not lose a packet.
#[derive(Debug)]
pub struct Traffic {
    flows: Vec<(String, Pinging)>,
}

impl Traffic {
    /// Each of two pods pings every address of the other every 5 ms, from now on.
    pub fn between(one: &Pod<'_>, other: &Pod<'_>) -> Result<Traffic> {
        let mut flows = Vec::new();
        for (from, to) in [(one, other), (other, one)] {
            for net in to.addresses() {
                let flow = format!("{} -> {} ({})", from.name(), to.name(), net.addr());
                // What is not lost may come late on a busy machine.
                let patience = Duration::from_secs(10);
                let ping = Ping { interval: STEADILY, patience, ..Ping::once(net.addr()) };
                flows.push((flow, ping.keep_on(from.namespace())?));
            }
        }
        Ok(Traffic { flows })
    }

    /// Ends it and says how many packets were lost.
    pub fn lost(self) -> Result<Vec<String>> {
        let mut losses = Vec::new();
        for (flow, pinging) in self.flows {
            // Whatever happened may have been too quick for a single packet.
            let now = pinging.sent();
            wait_for(&format!("{flow} to go on"), PATIENCE, || {
                ensure!(pinging.sent() > now + 50, "{} packets were sent", pinging.sent());
                Ok(())
            })?;
            let report = pinging.stop()?;
            if report.lost() > 0 {
                let error = report.error.as_deref().unwrap_or("no answer");
                losses.push(format!("{flow}: {} of {} lost: {error}", report.lost(), report.sent));
            }
        }
        Ok(losses)
    }

    /// Ends it; fails if a single packet was lost.
    pub fn lost_nothing(self) -> Result<()> {
        let losses = self.lost()?;
        ensure!(losses.is_empty(), "{}", losses.join("; "));
        Ok(())
    }
}

/// Breaks something on a node, waits until `whole` says that it is put right, and prints how long that
/// took; a bench measures it on a quiet machine.
#[expect(clippy::print_stderr, reason = "shown with the story that printed it")]
pub fn is_put_right(node: &Node, breakage: &str, whole: impl FnMut() -> Result<()>) -> Result<()> {
    node.run(breakage)?;
    let start = Instant::now();
    wait_for(&format!("`{breakage}` to be put right"), PATIENCE, whole)?;
    eprintln!("{}: `{breakage}` put right after {:?}", node.name(), start.elapsed());
    Ok(())
}

/// Fails unless a command on a node prints a text.
pub fn shows(node: &Node, command: &str, text: &str) -> Result<()> {
    let printed = node.run(command)?;
    ensure!(printed.contains(text), "`{command}` has no {text:?}: {printed}");
    Ok(())
}

/// Waits until a node's log has a text.
pub fn says(node: &Node, text: &str) -> Result<()> {
    wait_for(&format!("{} to say {text:?}", node.name()), PATIENCE, || {
        let log = node.log();
        let tail: Vec<&str> = log.lines().rev().take(5).collect();
        ensure!(log.contains(text), "{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
        Ok(())
    })
}

/// Writes a key to the lab's etcd behind everybody's back.
pub fn write_key(lab: &Lab, key: &str, value: &str) -> Result<()> {
    etcdctl(lab, &["put", "--", key, value]).map(drop)
}

/// Deletes a key of the lab's etcd behind everybody's back.
pub fn delete_key(lab: &Lab, key: &str) -> Result<()> {
    let printed = etcdctl(lab, &["del", key])?;
    ensure!(printed.trim() == "1", "there was no {key}");
    Ok(())
}

/// A key of the lab's etcd.
pub fn read_key(lab: &Lab, key: &str) -> Result<String> {
    let printed = etcdctl(lab, &["get", "--print-value-only", key])?;
    let value = printed.trim_end();
    ensure!(!value.is_empty(), "there is no {key}");
    Ok(value.to_owned())
}

/// All leases of the lab's etcd: keys without their prefix, and values.
pub fn leases(lab: &Lab) -> Result<Vec<(String, String)>> {
    let printed = etcdctl(lab, &["get", "--prefix", LEASES])?;
    let mut lines = printed.lines();
    let mut leases = Vec::new();
    while let Some(key) = lines.next() {
        let value = lines.next().with_context(|| format!("{key} has no value"))?;
        leases.push((key.strip_prefix(LEASES).unwrap_or(key).to_owned(), value.to_owned()));
    }
    Ok(leases)
}

/// Runs etcdctl on the lab's etcd and returns what it printed.
pub fn etcdctl(lab: &Lab, args: &[&str]) -> Result<String> {
    let endpoint = lab.etcd_endpoint();
    let patient = ["--dial-timeout=60s", "--command-timeout=60s"];
    let command = ["env", "ETCDCTL_API=3", "etcdctl", "--endpoints", &endpoint];
    lab.switch().run(&[&command[..], &patient, args].concat())
}

/// The Ethernet address of a device.
pub fn mac(node: &Node, link: &str) -> Result<String> {
    let printed = node.run(&format!("ip -o link show {link}"))?;
    let mut words = printed.split_whitespace().skip_while(|word| *word != "link/ether").skip(1);
    match words.next() {
        Some(mac) => Ok(mac.to_owned()),
        None => bail!("{link} has no Ethernet address: {printed}"),
    }
}
