//! A lease is lost, or somebody else has it.
//!
//! ```text
//!   node1  a      node2  b      somebody else, 192.168.64.99
//!     └─────────────┴─────────────┴──── switch: etcd
//! ```

use anyhow::{Result, bail, ensure};
use fabric::status::LeaseState;
use flannel_rs_tests::{LEASES, PATIENCE, Traffic, delete_key, reaches, read_key, write_key};
use lab::{Lab, Topology, story, wait_for};

/// The original exits, with status 0.
#[test]
fn a_revoked_lease_is_taken_again() {
    story(Topology::vxlan(2).etcd(), |lab| {
        lab.start()?;
        let (a, b) = (lab.node(1).attach("a")?, lab.node(2).attach("b")?);
        reaches(&a, &b)?;
        let key = own_key(lab)?;
        let (subnet, value) = (lab.node(1).subnet_file()?, read_key(lab, &key)?);

        delete_key(lab, &key)?;
        wait_for("the lease to be back", PATIENCE, || {
            let now = read_key(lab, &key)?;
            if now != value { bail!("it is {now}") } else { Ok(()) }
        })?;
        ensure!(lab.node(1).subnet_file()? == subnet, "{:?}", lab.node(1).subnet_file()?);
        reaches(&a, &b)
    });
}

#[test]
fn of_two_nodes_with_one_subnet_the_loser_keeps_quiet_and_says_so() {
    story(Topology::vxlan(2).etcd(), |lab| {
        lab.start()?;
        let (a, b) = (lab.node(1).attach("a")?, lab.node(2).attach("b")?);
        reaches(&a, &b)?;
        let key = own_key(lab)?;
        let theirs = r#"{"PublicIP":"192.168.64.99","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:00:00:00:00:99"}}"#;

        write_key(lab, &key, theirs)?;
        wait_for("node1 to notice", PATIENCE, || {
            let lease = lab.node(1).status()?.lease;
            let Some(lease) = lease else { bail!("no lease in the status") };
            ensure!(lease.state == LeaseState::Taken, "{lease:?}");
            ensure!(lease.detail.contains("192.168.64.99"), "{lease:?}");
            Ok(())
        })?;
        ensure!(lab.node(1).is_running(), "node1 must not end: its pods still run");
        ensure!(read_key(lab, &key)? == theirs, "node1 took the lease back by force");

        // The other one goes, and all is as before.
        delete_key(lab, &key)?;
        wait_for("node1 to have its lease again", PATIENCE, || {
            let value = read_key(lab, &key)?;
            ensure!(value.contains("192.168.64.1\""), "{value}");
            Ok(())
        })?;
        reaches(&b, &a)?;
        Traffic::between(&a, &b)?;
        Ok(())
    });
}

fn own_key(lab: &Lab) -> Result<String> {
    Ok(format!("{LEASES}{}", lab.node(1).subnet_file()?.subnets().key()))
}
