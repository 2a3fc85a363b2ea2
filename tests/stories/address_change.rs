//! The address of a running node changes, as by DHCP, and everybody follows.
//!
//! ```text
//!   node1  a      node2  b      192.168.64.2 becomes 192.168.64.52
//!     └─────────────┴──── switch: etcd
//! ```

use anyhow::{Result, ensure};
use flannel_rs_tests::{PATIENCE, leases, reaches, shows};
use lab::{Lab, Topology, story, wait_for};

#[test]
fn a_vxlan_node_that_changes_its_address_is_followed() {
    story(Topology::vxlan(2).etcd(), |lab| {
        follow(lab)?;
        wait_for("the device to follow", PATIENCE, || {
            shows(lab.node(2), "ip -d link show flannel.1", "local 192.168.64.52")
        })?;
        wait_for("the peer to follow", PATIENCE, || {
            let fdb = lab.node(1).run("bridge fdb show dev flannel.1")?;
            ensure!(fdb.contains("192.168.64.52") && !fdb.contains("192.168.64.2 "), "{fdb}");
            Ok(())
        })
    });
}

#[test]
fn a_host_gw_node_that_changes_its_address_is_followed() {
    story(Topology::host_gw(2).etcd(), |lab| {
        follow(lab)?;
        // Pods reach each other before: the peer still knows which card the old address was of.
        wait_for("the peer to follow", PATIENCE, || {
            let routes = lab.node(1).run("ip route show via 192.168.64.2")?;
            ensure!(routes.is_empty(), "{routes}");
            Ok(())
        })
    });
}

fn follow(lab: &Lab) -> Result<()> {
    lab.start()?;
    let (a, b) = (lab.node(1).attach("a")?, lab.node(2).attach("b")?);
    reaches(&a, &b)?;
    let (subnet, leased) = (lab.node(2).subnet_file()?, leases(lab)?.len());

    lab.node(2).run("ip address del 192.168.64.2/24 dev eth0")?;
    lab.node(2).run("ip address add 192.168.64.52/24 dev eth0")?;
    lab.node(2).run("ip route add default via 192.168.64.254")?;

    wait_for("the lease to have the new address", PATIENCE, || {
        let leases = leases(lab)?;
        ensure!(leases.len() == leased, "{leases:?}");
        ensure!(
            leases.iter().any(|(_, value)| value.contains(r#""PublicIP":"192.168.64.52""#)),
            "{leases:?}"
        );
        Ok(())
    })?;
    reaches(&a, &b)?;
    reaches(&b, &a)?;
    ensure!(lab.node(2).subnet_file()? == subnet, "{:?}", lab.node(2).subnet_file()?);
    Ok(())
}
