//! The network below goes away and comes back: a cable, a card, an address.
//!
//! ```text
//!   node1  a      node2  b
//!     └─────────────┴──── switch: etcd
//! ```

use anyhow::{Result, bail, ensure};
use flannel_rs_tests::{PATIENCE, reaches, shows};
use lab::{Lab, Topology, story, wait_for};

#[test]
fn a_cable_that_was_pulled_is_no_reason_to_forget_anybody() {
    story(Topology::vxlan(2).etcd(), |lab| {
        lab.start()?;
        let (a, b) = (lab.node(1).attach("a")?, lab.node(2).attach("b")?);
        reaches(&a, &b)?;
        lab.set_cable(lab.node(1), false)?;
        wait_for("the store to be out of reach", PATIENCE, || {
            let store = lab.node(1).status()?.store;
            ensure!(!store.reachable || store.error.is_some() || a.ping(b.ipv4()?).is_err(), "{store:?}");
            Ok(())
        })?;
        shows(lab.node(1), "ip route", "dev flannel.1")?;
        lab.set_cable(lab.node(1), true)?;
        reaches(&a, &b)
    });
}

/// A card that is taken out takes the tunnel along; it comes back with another interface index.
#[test]
fn a_card_that_was_replaced_gets_its_tunnel_back() {
    story(Topology::vxlan(2).etcd(), |lab| {
        replace_the_card(lab)?;
        shows(lab.node(1), "ip -d link show flannel.1", "local 192.168.64.1 dev eth0")
    });
}

#[test]
fn a_card_that_was_replaced_gets_its_routes_back() {
    story(Topology::host_gw(2).etcd(), replace_the_card);
}

fn replace_the_card(lab: &Lab) -> Result<()> {
    lab.start()?;
    let (a, b) = (lab.node(1).attach("a")?, lab.node(2).attach("b")?);
    reaches(&a, &b)?;
    let subnet = lab.node(1).subnet_file()?;

    let node = lab.node(1);
    node.run("ip link del eth0")?;
    wait_for("the device to be gone", PATIENCE, || {
        if node.run("ip -br link")?.contains("eth0") { bail!("eth0 is still there") } else { Ok(()) }
    })?;
    let name = node.namespace().name().to_owned();
    for command in [
        format!("ip link add node1 type veth peer name eth0 netns {name}"),
        "ip link set node1 master seg0 up".to_owned(),
    ] {
        lab.switch().run(&command.split(' ').collect::<Vec<_>>())?;
    }
    node.run("ip link set eth0 up")?;
    node.run("ip address add 192.168.64.1/24 dev eth0")?;
    node.run("ip route add default via 192.168.64.254")?;

    reaches(&a, &b)?;
    reaches(&b, &a)?;
    ensure!(node.is_running(), "flanneld ended");
    ensure!(node.subnet_file()? == subnet, "{:?}", node.subnet_file()?);
    Ok(())
}
