//! podman with the CNI backend runs a container on our plugins.
//!
//! ```text
//!   node1  podman, container        node2  pod b
//!     └──────────── switch ───────────┘
//! ```

use anyhow::Context;
use flannel_rs_tests::image::{self, IMAGE};
use flannel_rs_tests::machine::{CONTAINER_PORT, Container, HOST_PORT, Machine, SERVER, is_connected};
use lab::{Topology, story};

const CONTAINERS_CONF: &str = r#"
[containers]
apparmor_profile = ""
[network]
network_backend = "cni"
cni_plugin_dirs = ["/opt/cni/bin"]
network_config_dir = "/etc/cni/net.d"
default_network = "cbr0"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"#;
const STORAGE_CONF: &str = r#"
[storage]
driver = "overlay"
graphroot = "/var/lib/containers/storage"
runroot = "/run/containers/storage"
"#;

#[test]
fn podman_runs_a_container_on_our_network() {
    story(Topology::vxlan(2).flag("--ip-masq"), |lab| {
        lab.start()?;
        let peer = lab.node(2).attach("b")?;
        let machine = Machine::start(lab.node(1))?;
        machine.write("/etc/containers/containers.conf", CONTAINERS_CONF)?;
        machine.write("/etc/containers/storage.conf", STORAGE_CONF)?;
        machine.write("/etc/containers/policy.json", r#"{"default":[{"type":"insecureAcceptAnything"}]}"#)?;
        image::write(&machine.path("/tmp/image.tar"))?;
        machine.run(&["podman", "load", "-q", "-i", "/tmp/image.tar"])?;

        let publish = format!("{HOST_PORT}:{CONTAINER_PORT}");
        let mut command =
            vec!["podman", "run", "-d", "--name", "pod-a", "--stop-timeout=0", "-p", &publish, IMAGE];
        command.extend(SERVER);
        machine.run(&command)?;
        let address = machine.run(&[
            "podman",
            "inspect",
            "-f",
            "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}",
            "pod-a",
        ])?;
        let exec = |command: &[&str]| machine.run(&[&["podman", "exec", "pod-a"], command].concat());
        let address = address.trim().parse().with_context(|| format!("podman says {address:?}"))?;
        is_connected(lab, &peer, &Container { address, exec: &exec })?;

        machine.run(&["podman", "rm", "-f", "-t", "0", "pod-a"])?;
        machine.nothing_is_left()
    });
}
