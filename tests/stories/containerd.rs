//! containerd, asked by CRI as the kubelet asks it, runs a pod on our plugins.
//!
//! ```text
//!   node1  containerd, pod a         node2  pod b
//!     └──────────── switch ───────────┘
//! ```

use anyhow::Result;
use flannel_rs_tests::PATIENCE;
use flannel_rs_tests::cri::Runtime;
use flannel_rs_tests::image::{self, IMAGE};
use flannel_rs_tests::machine::{Container, Machine, explained, is_connected};
use lab::{Topology, story, wait_for};

#[test]
fn containerd_runs_a_pod_and_may_be_killed_meanwhile() {
    story(Topology::vxlan(2).flag("--ip-masq"), |lab| {
        lab.start()?;
        let peer = lab.node(2).attach("b")?;
        let mut machine = Machine::start(lab.node(1))?;
        machine.write("/etc/containerd/config.toml", &config())?;
        let runtime = start(&mut machine)?;
        image::write(&machine.path("/tmp/image.tar"))?;
        machine.run(&["ctr", "-n", "k8s.io", "images", "import", "/tmp/image.tar"])?;

        let pod = explained(runtime.run_pod("a"), &machine, "containerd")?;
        let exec = |command: &[&str]| runtime.exec(&pod, command);
        is_connected(lab, &peer, &Container { address: pod.address, exec: &exec })?;

        // The pod outlives its runtime, and the next one knows how to take it away.
        machine.kill_service("containerd")?;
        wait_for("the pod to answer", PATIENCE, || peer.ping(pod.address).map(drop))?;
        let runtime = start(&mut machine)?;
        explained(runtime.remove_pod(&pod), &machine, "containerd")?;
        machine.nothing_is_left()
    });
}

fn start(machine: &mut Machine<'_>) -> Result<Runtime> {
    machine.serve("containerd", &["containerd"])?;
    let socket = machine.path("/run/containerd/containerd.sock");
    let ready = wait_for("containerd to have its network", PATIENCE, || {
        let runtime = Runtime::connect(&socket)?;
        runtime.network_ready()?;
        Ok(runtime)
    });
    explained(ready, machine, "containerd")
}

/// What a node without systemd and without a registry needs besides the defaults.
fn config() -> String {
    format!(
        r#"version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{IMAGE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
"#
    )
}
