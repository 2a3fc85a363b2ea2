//! Pods are attached where something is in the way, and plugins die in the middle of it.
//!
//! ```text
//!   node1  cni0, pods
//!     └──── switch
//! ```

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use flannel_rs_tests::{PATIENCE, shows};
use lab::{Families, Namespace, Node, Topology, story, wait_for};
use serde_json::{Value, json};

#[test]
fn a_pod_that_comes_before_flanneld_is_told_where_to_look() {
    story(Topology::vxlan(1), |lab| {
        let node = lab.node(1);
        let pod = Pod::new(node, "early")?;
        let added = node.cni("flannel", "ADD", "early", &node.cni_config())?;
        ensure!(!added.status.success(), "a pod was attached without a subnet");
        let error: Value = serde_json::from_slice(&added.stdout).context("the error is no JSON")?;
        let file = node.files().subnet.display().to_string();
        ensure!(error["code"] == 11, "want code 11, try again later: {error}");
        let text = error.to_string();
        ensure!(text.contains(&file) && text.contains("flanneld"), "{error}");

        let mut status = node.cni_config();
        status["cniVersion"] = json!("1.1.0");
        let output = node.cni("flannel", "STATUS", "early", &status)?;
        let error: Value = serde_json::from_slice(&output.stdout).context("the error is no JSON")?;
        ensure!(error["code"] == 50, "want code 50, the plugin is not available: {error}");

        // What was never attached is detached without complaint,
        let deleted = node.cni("flannel", "DEL", "early", &node.cni_config())?;
        ensure!(deleted.status.success(), "{}", String::from_utf8_lossy(&deleted.stdout));
        drop(pod);

        // and attached as soon as flanneld is up.
        lab.start()?;
        node.attach("late")?.detach()?;
        let output = node.cni("flannel", "STATUS", "late", &status)?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        Ok(())
    });
}

/// Left over from another network, say. The original answers every ADD with an error until somebody
/// deletes the bridge by hand.
#[test]
fn a_bridge_with_a_wrong_address_is_no_riddle() {
    story(Topology::vxlan(1), |lab| {
        lab.start()?;
        let node = lab.node(1);
        node.run("ip link add cni0 type bridge")?;
        node.run("ip address add 10.99.7.1/24 dev cni0")?;
        let _pod = Pod::new(node, "a")?;
        let added = node.cni("flannel", "ADD", "a", &node.cni_config())?;
        if added.status.success() {
            let subnet = node.subnet_file()?.subnets().ipv4.context("no IPv4 subnet")?;
            let gateway = std::net::Ipv4Addr::from(u32::from(subnet.network()) + 1);
            return shows(node, "ip address show cni0", &format!("{gateway}/24"));
        }
        let error: Value = serde_json::from_slice(&added.stdout).context("the error is no JSON")?;
        let text = error.to_string();
        ensure!(text.contains("10.99.7.1") && text.contains("cni0"), "neither name nor address: {error}");
        ensure!(text.contains("ip address del") || text.contains("ip link del"), "no remedy: {error}");
        Ok(())
    });
}

#[test]
fn nothing_is_left_of_a_hundred_plugins_killed_in_the_middle() {
    story(Topology::vxlan(1).families(Families::Dual), |lab| {
        lab.start()?;
        let node = lab.node(1);
        // The bridge, and how long an ADD takes here.
        let start = std::time::Instant::now();
        node.attach("first")?.detach()?;
        let took = start.elapsed();

        let mut completed = 0;
        for round in 0_u32..100 {
            let pod = Pod::new(node, "victim")?;
            completed += u32::from(pod.add_and_kill_after(took * round / 100)?);
            let deleted = node.cni("flannel", "DEL", "victim", &node.cni_config())?;
            ensure!(deleted.status.success(), "round {round}: {}", String::from_utf8_lossy(&deleted.stdout));
            nothing_is_left(node).with_context(|| format!("after round {round}"))?;
        }
        ensure!(completed < 100, "no plugin was killed in time");
        let last = node.attach("last")?;
        answers(&last, node)
    });
}

/// Without DEL: a runtime that crashed as well asks for a collection of garbage.
#[test]
fn garbage_collection_takes_away_what_nobody_detached() {
    story(Topology::vxlan(1), |lab| {
        lab.start()?;
        let node = lab.node(1);
        node.attach("first")?.detach()?;
        for round in 0..20_u32 {
            let pod = Pod::new(node, "victim")?;
            pod.add_and_kill_after(Duration::from_micros(500) * round)?;
        }
        let kept = node.attach("kept")?;
        let mut config = node.cni_config();
        config["cniVersion"] = json!("1.1.0");
        config["cni.dev/valid-attachments"] =
            json!([{ "containerID": kept.namespace().name(), "ifname": "eth0" }]);
        let collected = node.cni("flannel", "GC", "kept", &config)?;
        ensure!(collected.status.success(), "{}", String::from_utf8_lossy(&collected.stdout));
        let addresses = addresses(node)?;
        let own = kept.ipv4()?.to_string();
        ensure!(addresses == [own], "reserved: {addresses:?}");
        let states = fs::read_dir(node.cni_state())?.count();
        ensure!(states == 1, "{states} attachments are written down");
        answers(&kept, node)
    });
}

fn answers(pod: &lab::Pod<'_>, node: &Node) -> Result<()> {
    wait_for("the node to answer", PATIENCE, || pod.ping(node.address()).map(drop))
}

/// No cable to a pod, no reserved address, no attachment written down.
fn nothing_is_left(node: &Node) -> Result<()> {
    let cables = node.run("ip -o link show type veth")?;
    // The node's own cable to the switch is one.
    ensure!(cables.lines().count() == 1, "{cables}");
    let addresses = addresses(node)?;
    ensure!(addresses.is_empty(), "reserved: {addresses:?}");
    let states: Vec<_> = fs::read_dir(node.cni_state())?.collect::<Result<_, _>>()?;
    ensure!(states.is_empty(), "written down: {states:?}");
    Ok(())
}

/// The addresses that host-local holds reserved.
fn addresses(node: &Node) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(node.cni_networks().join("cbr0"))? {
        let name = entry?.file_name().into_string().unwrap_or_default();
        if name != "lock" && !name.starts_with("last_reserved_ip") {
            names.push(name);
        }
    }
    Ok(names)
}

/// A pod's namespace that is attached by hand.
struct Pod<'lab> {
    node: &'lab Node,
    namespace: Namespace,
}

impl<'lab> Pod<'lab> {
    fn new(node: &'lab Node, name: &str) -> Result<Pod<'lab>> {
        let namespace = Namespace::create(&format!("{}-{name}", node.namespace().name()))?;
        Ok(Pod { node, namespace })
    }

    /// Starts an ADD and kills it after a while; says whether it was done by then.
    #[expect(clippy::disallowed_methods, reason = "a plugin is run as a container runtime does, and killed")]
    fn add_and_kill_after(&self, moment: Duration) -> Result<bool> {
        let node = self.node;
        let config = node.cni_config().to_string();
        node.namespace().within(|| {
            let mut child = Command::new(node.cni_path().join("flannel"))
                .env("CNI_COMMAND", "ADD")
                .env("CNI_CONTAINERID", self.namespace.name())
                .env("CNI_NETNS", self.namespace.path())
                .env("CNI_IFNAME", "eth0")
                .env("CNI_PATH", node.cni_path())
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()?;
            let mut stdin = child.stdin.take().context("stdin was asked to be a pipe")?;
            stdin.write_all(config.as_bytes())?;
            drop(stdin);
            // The one sleep that is no wait: the moment of death.
            std::thread::sleep(moment);
            child.kill()?;
            let ended = child.wait()?;
            if ended.code().is_some_and(|code| code != 0) {
                bail!("the plugin failed by itself: {ended}");
            }
            Ok(ended.success())
        })?
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        let _ = self.namespace.destroy();
    }
}
