//! Things that happen to etcd: compaction while a node is cut off, loss of all data, leases without a TTL.
//!
//! ```text
//!   node1  a      node2  b      node3
//!     └─────────────┴────────────┴──── switch: etcd
//! ```

use anyhow::{Context, Result, ensure};
use flannel_rs_tests::{
    LEASES, PATIENCE, Traffic, delete_key, etcdctl, leases, reaches, read_key, write_key,
};
use lab::{Topology, story, wait_for};

/// The history that a watch would go on from is gone: only a new list tells what was missed.
#[test]
fn what_was_missed_and_compacted_is_made_up_for() {
    story(Topology::vxlan(3).etcd(), |lab| {
        lab.start()?;
        let (a, b) = (lab.node(1).attach("a")?, lab.node(2).attach("b")?);
        reaches(&a, &b)?;
        let gone = lab.node(3).subnet_file()?.subnets();
        lab.node(3).kill()?;

        lab.set_cable(lab.node(1), false)?;
        delete_key(lab, &format!("{LEASES}{}", gone.key()))?;
        write_key(
            lab,
            &format!("{LEASES}10.244.200.0-24"),
            r#"{"PublicIP":"192.168.64.200","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:00:00:00:00:c8"}}"#,
        )?;
        let status = etcdctl(lab, &["endpoint", "status", "--write-out=json"])?;
        let status: serde_json::Value = serde_json::from_str(&status)?;
        let revision = status[0]["Status"]["header"]["revision"].as_u64().context("no revision")?;
        etcdctl(lab, &["compact", &revision.to_string()])?;
        // Connections that survive a pulled cable do not survive this.
        lab.stop_store()?;
        lab.start_store()?;
        lab.set_cable(lab.node(1), true)?;

        wait_for("node1 to know who came and who left", PATIENCE, || {
            let routes = lab.node(1).run("ip route")?;
            ensure!(routes.contains("10.244.200.0/24"), "the newcomer is missing: {routes}");
            let left = gone.ipv4.context("no IPv4 subnet")?.to_string();
            ensure!(!routes.contains(&left), "who left is still there: {routes}");
            Ok(())
        })?;
        reaches(&a, &b)
    });
}

#[test]
fn an_etcd_that_lost_everything_is_told_again() {
    story(Topology::vxlan(2).etcd(), |lab| {
        lab.start()?;
        let (a, b) = (lab.node(1).attach("a")?, lab.node(2).attach("b")?);
        reaches(&a, &b)?;
        let before: Vec<_> = leases(lab)?;

        let traffic = Traffic::between(&a, &b)?;
        lab.stop_store()?;
        std::fs::remove_dir_all(lab.dir().join("etcd"))?;
        lab.start_store()?;
        lab.set_network(&lab.topology().net_conf())?;
        wait_for("both leases to be back", PATIENCE, || {
            let now = leases(lab)?;
            ensure!(now == before, "{now:?}");
            Ok(())
        })?;
        reaches(&a, &b)?;
        // Between the two returns each node may take the other for gone.
        traffic.lost()?;
        Ok(())
    });
}

/// The original turns a reservation into a lease of a day.
#[test]
fn a_reservation_is_used_and_stays_one() {
    story(Topology::vxlan(1).etcd(), |lab| {
        let key = format!("{LEASES}10.244.77.0-24");
        write_key(lab, &key, r#"{"PublicIP":"192.168.64.1","PublicIPv6":null}"#)?;
        lab.start()?;
        let subnet = lab.node(1).subnet_file()?.subnets();
        ensure!(subnet.key() == "10.244.77.0-24", "{subnet:?}");
        let value = read_key(lab, &key)?;
        ensure!(value.contains("VtepMAC"), "{value}");
        let shown = etcdctl(lab, &["get", "--write-out=json", &key])?;
        let shown: serde_json::Value = serde_json::from_str(&shown)?;
        ensure!(shown["kvs"][0]["lease"].as_u64().unwrap_or(0) == 0, "it has a TTL now: {shown}");
        Ok(())
    });
}

/// As when a node was away for longer than a day.
#[test]
fn a_lease_that_expires_is_taken_again() -> Result<()> {
    story(Topology::vxlan(1).etcd(), |lab| {
        lab.start()?;
        let before = leases(lab)?;
        let listed = etcdctl(lab, &["lease", "list"])?;
        let id = listed.lines().last().context("etcd has no lease")?.trim().to_owned();
        etcdctl(lab, &["lease", "revoke", &id])?;
        wait_for("the lease to be back", PATIENCE, || {
            let now = leases(lab)?;
            ensure!(now == before, "{now:?}");
            let ids = etcdctl(lab, &["lease", "list"])?;
            ensure!(!ids.contains(&id), "{ids}");
            Ok(())
        })
    });
    Ok(())
}
