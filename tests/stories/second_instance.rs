//! A second flanneld on a node is refused.
//!
//! ```text
//!   node1  flanneld, and another
//!     └──── switch
//! ```

use anyhow::{Context, ensure};
use lab::{Topology, story};

#[test]
fn a_second_instance_is_refused_by_name_pid_and_remedy() {
    story(Topology::vxlan(1), |lab| {
        lab.start()?;
        let node = lab.node(1);
        let pid = node.pid().context("flanneld runs")?.to_string();
        let before = node.run("ip -d link show flannel.1")?;

        let mut command = vec![lab::Binaries::find()?.flanneld.display().to_string()];
        command.push(format!("--subnet-file={}", node.files().subnet.display()));
        command.extend(node.flags().iter().cloned());
        let words: Vec<&str> =
            ["timeout", "60"].into_iter().chain(command.iter().map(String::as_str)).collect();
        let second = node.namespace().output(&words)?;
        let said = String::from_utf8_lossy(&second.stderr);
        ensure!(second.status.code() == Some(1), "{:?}: {said}", second.status);
        ensure!(said.contains(&pid), "the pid {pid} of the first is not named: {said}");
        ensure!(said.contains("flanneld.lock"), "what they share is not named: {said}");

        ensure!(node.is_running(), "the first instance ended");
        ensure!(node.run("ip -d link show flannel.1")? == before, "the second instance changed the device");
        Ok(())
    });
}
