//! dockerd's own bridge gets the node's subnet, by the options that mk-docker-opts writes.
//!
//! ```text
//!   node1  dockerd, container        node2  pod b
//!     └──────────── switch ───────────┘
//! ```

use anyhow::{Context, Result, ensure};
use flannel_rs_tests::image::{self, IMAGE};
use flannel_rs_tests::machine::{
    CONTAINER_PORT, Container, HOST_PORT, Machine, SERVER, explained, is_connected,
};
use lab::{Binaries, Topology, story, wait_for};

#[test]
fn docker_runs_a_container_on_the_nodes_subnet() {
    story(Topology::vxlan(2).flag("--ip-masq"), |lab| {
        lab.start()?;
        let peer = lab.node(2).attach("b")?;
        let mut machine = Machine::start(lab.node(1))?;
        image::write(&machine.path("/tmp/image.tar"))?;
        let flannelctl = Binaries::find()?.flanneld.with_file_name("flannelctl");
        machine.run(&[&flannelctl.display().to_string(), "mk-docker-opts", "-c"])?;
        machine.serve(
            "dockerd",
            &[
                "/bin/sh",
                "-c",
                ". /run/docker_opts.env; exec dockerd $DOCKER_OPTS --exec-opt native.cgroupdriver=cgroupfs",
            ],
        )?;
        let up = wait_for("dockerd to answer", flannel_rs_tests::PATIENCE, || docker(&machine, &["version"]));
        explained(up, &machine, "dockerd")?;
        docker(&machine, &["load", "-q", "-i", "/tmp/image.tar"])?;

        let publish = format!("{HOST_PORT}:{CONTAINER_PORT}");
        let mut command = vec!["run", "-d", "--name", "pod-a", "-p", &publish, IMAGE];
        command.extend(SERVER);
        explained(docker(&machine, &command), &machine, "dockerd")?;
        let address = docker(&machine, &["inspect", "-f", "{{.NetworkSettings.IPAddress}}", "pod-a"])?;
        let address = address.trim().parse().with_context(|| format!("docker says {address:?}"))?;
        let exec = |command: &[&str]| docker(&machine, &[&["exec", "pod-a"], command].concat());
        is_connected(lab, &peer, &Container { address, exec: &exec })?;
        let mtu = machine.node().subnet_file()?.mtu.context("no MTU")?;
        let links = exec(&["/bin/ip", "link", "show", "eth0"])?;
        ensure!(links.contains(&format!("mtu {mtu}")), "want MTU {mtu}: {links}");

        docker(&machine, &["rm", "-f", "pod-a"])?;
        machine.nothing_is_left()
    });
}

fn docker(machine: &Machine<'_>, command: &[&str]) -> Result<String> {
    machine.run(&[&["docker"], command].concat())
}
