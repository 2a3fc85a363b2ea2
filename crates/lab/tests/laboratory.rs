//! The lab itself, before any flanneld: cables, addresses, ping, and that nothing stays behind.

use std::fs;
use std::time::Duration;

use lab::{Binaries, Families, Lab, Ping, Pinging, Topology, permitted, wait_for};

/// How long anything may take, on however busy a machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A lab whose daemon does nothing; none where namespaces may not be made.
#[expect(clippy::print_stderr, reason = "only what the macros print is shown beside the test")]
fn lab(topology: Topology) -> Option<Lab> {
    if let Err(reason) = permitted() {
        assert!(std::env::var_os("CI").is_none(), "in CI nothing may be skipped: {reason:#}");
        eprintln!("skipped: {reason:#}");
        return None;
    }
    Some(Lab::up_with(None, topology, &idle()).expect("a lab can be built"))
}

/// Programs that are there and are no daemon.
fn idle() -> Binaries {
    Binaries { flanneld: "/bin/cat".into(), flannel_cni: "/bin/false".into() }
}

/// What there still is of a lab.
fn left_of(name: &str) -> Vec<String> {
    let namespaces = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let mut left: Vec<String> =
        namespaces.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    left.retain(|file| file.starts_with(&format!("flab-{name}-")));
    if fs::metadata(format!("/run/flab/{name}")).is_ok() {
        left.push("its directory".to_owned());
    }
    left
}

/// Waits until a ping has sent more than it has by now.
fn goes_on(pinging: &Pinging) -> anyhow::Result<()> {
    let before = pinging.sent();
    wait_for("a ping to go on", PATIENCE, || {
        anyhow::ensure!(pinging.sent() > before, "it has sent {before}");
        Ok(())
    })
}

#[test]
fn nodes_of_every_segment_and_family_reach_each_other() {
    let topology = Topology { segments: 2, ..Topology::vxlan(3).families(Families::Dual) };
    let Some(lab) = lab(topology) else { return };
    for node in lab.nodes() {
        for peer in lab.nodes() {
            for address in peer.addresses() {
                // The first packet may have to wait for neighbor discovery.
                wait_for(&format!("{} to reach {address}", node.name()), PATIENCE, || {
                    let report = Ping::once(address.addr()).from(node.namespace())?;
                    anyhow::ensure!(report.lost() == 0, "{report:?}");
                    Ok(())
                })
                .unwrap();
            }
        }
    }
}

#[test]
fn a_pulled_cable_loses_packets_and_they_are_counted() {
    let Some(lab) = lab(Topology::vxlan(2)) else { return };
    let ping = Ping { interval: Duration::from_millis(5), ..Ping::once(lab.node(2).address()) };
    let pinging = ping.keep_on(lab.node(1).namespace()).unwrap();
    lab.set_cable(lab.node(2), false).unwrap();
    wait_for("a ping to get lost", PATIENCE, || {
        let report = Ping { patience: Duration::from_millis(100), ..ping }.from(lab.node(1).namespace())?;
        anyhow::ensure!(report.lost() == 1, "{report:?}");
        Ok(())
    })
    .unwrap();
    goes_on(&pinging).unwrap();
    lab.set_cable(lab.node(2), true).unwrap();
    wait_for("the cable to carry", PATIENCE, || {
        let report = Ping { count: 20, ..ping }.from(lab.node(1).namespace())?;
        anyhow::ensure!(report.lost() == 0, "{report:?}");
        Ok(())
    })
    .unwrap();
    goes_on(&pinging).unwrap();
    let report = pinging.stop().unwrap();
    assert!(report.lost() > 0 && report.sent > report.lost(), "{report:?}");
}

#[test]
fn a_lab_leaves_neither_processes_nor_namespaces_nor_files() {
    let Some(lab) = lab(Topology::vxlan(2)) else { return };
    let name = lab.name().to_owned();
    lab.node(1).start_command(&["sleep".to_owned(), "1000".to_owned()]).unwrap();
    let pid = lab.node(1).pid().unwrap();
    assert!(left_of(&name).len() >= 4);
    drop(lab);
    assert_eq!(left_of(&name), [""; 0]);
    assert!(!fs::exists(format!("/proc/{pid}")).unwrap(), "process {pid} is still there");
}

#[test]
fn a_lab_that_stays_is_found_again_with_its_processes() {
    let Some(lab) = lab(Topology::vxlan(2)) else { return };
    let name = format!("stays{}", std::process::id() % 100_000);
    let kept = Lab::up_with(Some(&name), lab.topology().clone(), &idle()).unwrap();
    kept.node(2).start_command(&["sleep".to_owned(), "1000".to_owned()]).unwrap();
    let pid = kept.node(2).pid();
    kept.stay().unwrap();

    let found = Lab::open(&name).unwrap();
    assert_eq!((found.node(1).pid(), found.node(2).pid()), (None, pid));
    assert!(Lab::up_with(Some(&name), lab.topology().clone(), &idle()).is_err(), "two labs of one name");
    found.down().unwrap();
    assert_eq!(left_of(&name), [""; 0]);
    assert!(format!("{:#}", Lab::open(&name).unwrap_err()).contains("lab up"));
}
