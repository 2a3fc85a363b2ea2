//! The disk is full when subnet.env is to be written.
//!
//! ```text
//!   node1      its run directory is a tmpfs of 64 KiB, full
//!     └──── switch
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use flannel_rs_tests::{PATIENCE, says};
use lab::{Node, Topology, story, wait_for};

#[test]
fn a_full_disk_is_named_and_waited_for() {
    story(Topology::vxlan(1), |lab| {
        let node = lab.node(1);
        let disk = FullDisk::on(node)?;
        node.start()?;
        says(node, "No space left on device")?;
        ensure!(node.is_running(), "flanneld ended instead of waiting for space");
        ensure!(!node.files().subnet.exists(), "there is a subnet.env although nothing could be written");
        let log = node.log();
        ensure!(log.contains("subnet.env"), "the log does not say what could not be written: {log}");

        fs::remove_file(disk.filler())?;
        wait_for("subnet.env to be written", PATIENCE, || {
            let text = fs::read_to_string(node.files().subnet)?;
            ensure!(text.ends_with("FLANNEL_IPMASQ=false\n"), "{text}");
            Ok(())
        })?;
        node.wait_ready(0)?;
        drop(node.attach("a")?);
        Ok(())
    });
}

/// A file system without a free byte over a node's run directory, for as long as it lives.
struct FullDisk {
    directory: PathBuf,
}

impl FullDisk {
    fn on(node: &Node) -> Result<FullDisk> {
        let directory = node.files().subnet.parent().map(Path::to_owned).unwrap_or_default();
        run(&["mount", "-t", "tmpfs", "-o", "size=64k", "none", &directory.display().to_string()])?;
        let disk = FullDisk { directory };
        // As much as fits, and then the rest.
        let _ = fs::write(disk.filler(), vec![b'x'; 128 << 10]);
        ensure!(fs::write(disk.directory.join("probe"), "x").is_err(), "the disk is not full");
        let _ = fs::remove_file(disk.directory.join("probe"));
        Ok(disk)
    }

    fn filler(&self) -> PathBuf {
        self.directory.join("filler")
    }
}

impl Drop for FullDisk {
    fn drop(&mut self) {
        let _ = run(&["umount", "--lazy", &self.directory.display().to_string()]);
    }
}

#[expect(clippy::disallowed_methods, reason = "a mount is the machine's, not a namespace's")]
fn run(command: &[&str]) -> Result<()> {
    let output = std::process::Command::new(command[0]).args(&command[1..]).output()?;
    ensure!(output.status.success(), "{}: {}", command.join(" "), String::from_utf8_lossy(&output.stderr));
    Ok(())
}
