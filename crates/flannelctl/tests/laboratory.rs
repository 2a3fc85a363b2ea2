//! The tool on a laboratory, as a person uses it.

use std::fs;
use std::process::{Command, Output};

use lab::permitted;

/// A lab of its own for one test, taken down at its end however it ends.
struct Lab(String);

impl Lab {
    #[expect(clippy::print_stderr, reason = "only what the macros print is shown beside the test")]
    fn up(name: &str, options: &[&str]) -> Option<Lab> {
        if let Err(reason) = permitted() {
            assert!(std::env::var_os("CI").is_none(), "in CI nothing may be skipped: {reason:#}");
            eprintln!("skipped: {reason:#}");
            return None;
        }
        let lab = Lab(format!("{name}{}", std::process::id() % 1_000_000));
        lab.run("up", options);
        Some(lab)
    }

    /// `flannelctl lab VERB`, which must succeed; what it printed.
    fn run(&self, verb: &str, options: &[&str]) -> String {
        let output = self.output(verb, options);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "lab {verb} {options:?}: {}\n{said}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn output(&self, verb: &str, options: &[&str]) -> Output {
        flannelctl(&[&["lab", verb, "--name", &self.0], options].concat())
    }

    /// `flannelctl …` on the first node.
    fn on_node1(&self, command: &[&str]) -> Output {
        self.output("exec", &[&["node1", "flannelctl"], command].concat())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.output("down", &[]);
    }
}

#[expect(clippy::disallowed_methods, reason = "the program under test is run as a person runs it")]
fn flannelctl(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_flannelctl")).args(args).output().expect("flannelctl can be started")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_lab_that_is_up_pings_breaks_heals_and_leaves_nothing() {
    let Some(lab) = Lab::up("heals", &["--nodes", "2", "--dual"]) else { return };
    let name = lab.0.clone();
    assert!(lab.run("ping", &[]).contains("node1/a"));
    for what in ["route", "device", "firewall"] {
        assert!(lab.run("break", &[what]).contains("healed after"), "{what}");
    }
    let again = flannelctl(&["lab", "up", "--name", &name]);
    assert!(!again.status.success(), "two labs of one name");
    lab.run("down", &[]);
    let left = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let left: Vec<_> = left.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    assert!(!left.iter().any(|file| file.starts_with(&format!("flab-{name}-"))), "{left:?}");
}

#[test]
fn status_and_plan_tell_whether_the_node_is_well() {
    let Some(lab) = Lab::up("well", &["--nodes", "2"]) else { return };
    let status = lab.on_node1(&["status", "-o", "json"]);
    assert!(status.status.success());
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).expect("status prints JSON");
    assert_eq!((&status["ready"], &status["running"]), (&true.into(), &true.into()));
    assert_eq!(status["peers"][0]["path"], "tunnel");
    lab::wait_for("a plan that has nothing to do", std::time::Duration::from_secs(60), || {
        let plan = lab.on_node1(&["plan"]);
        anyhow::ensure!(stdout(&plan).starts_with("nothing"), "{plan:?}");
        Ok(())
    })
    .expect("the kernel holds the plan");

    lab.run("break", &["kill"]);
    let dead = lab.on_node1(&["status"]);
    assert_eq!(dead.status.code(), Some(1));
    assert!(stdout(&dead).contains("flanneld does not run"), "{}", stdout(&dead));
    lab.run("exec", &["node1", "ip", "route", "flush", "proto", "102"]);
    let plan = stdout(&lab.on_node1(&["plan"]));
    assert!(plan.starts_with("ip route replace 10.244."), "{plan}");
}

#[test]
fn cleanup_waits_for_flanneld_to_end_and_leaves_what_is_not_ours() {
    let Some(lab) = Lab::up("clean", &["--nodes", "2", "--pods", "0"]) else { return };
    let refused = lab.on_node1(&["cleanup"]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("flanneld runs here"), "{refused:?}");

    lab.run("exec", &["node1", "ip", "route", "add", "10.9.0.0/16", "via", "192.168.64.254"]);
    lab.run("exec", &["node1", "nft", "add", "table", "ip", "mine"]);
    lab.run("break", &["kill"]);
    let dry_run = lab.on_node1(&["cleanup", "--dry-run"]);
    assert!(dry_run.status.success(), "{dry_run:?}");
    let shown = stdout(&dry_run);
    for command in ["ip link delete flannel.1", "nft delete table ip flannel-ipv4", "rm /run/flab/"] {
        assert!(shown.contains(command), "{shown}");
    }
    assert!(lab.run("exec", &["node1", "ip", "link"]).contains("flannel.1"), "a dry run changes nothing");

    let cleaned = lab.on_node1(&["cleanup"]);
    assert!(cleaned.status.success(), "{cleaned:?}");
    let links = lab.run("exec", &["node1", "ip", "link"]);
    let routes = lab.run("exec", &["node1", "ip", "route"]);
    let tables = lab.run("exec", &["node1", "nft", "list", "tables"]);
    assert!(links.contains("eth0") && !links.contains("flannel"), "{links}");
    assert!(routes.contains("10.9.0.0/16") && !routes.contains("proto 102"), "{routes}");
    assert_eq!(tables.trim(), "table ip mine");
    assert!(stdout(&lab.on_node1(&["cleanup"])).contains("nothing of flannel"));
}

#[test]
fn cleanup_knows_the_device_of_udp_where_no_status_is_left() {
    let Some(lab) = Lab::up("cleanudp", &["--nodes", "1", "--pods", "0", "--backend", "udp"]) else { return };
    lab.run("break", &["kill"]);
    lab.run("exec", &["node1", "ip", "tuntap", "add", "flannel1", "mode", "tun"]);
    lab.run("exec", &["node1", "sh", "-c", "rm ${FLANNELD_SUBNET_FILE%/*}/status.json"]);
    let cleaned = lab.on_node1(&["cleanup"]);
    assert!(cleaned.status.success(), "{cleaned:?}");
    assert!(stdout(&cleaned).contains("ip link delete flannel0"), "{cleaned:?}");
    let links = lab.run("exec", &["node1", "ip", "link"]);
    assert!(!links.contains("flannel0") && links.contains("flannel1"), "{links}");
    let routes = lab.run("exec", &["node1", "ip", "route"]);
    assert!(!routes.contains("proto 102"), "{routes}");
}
