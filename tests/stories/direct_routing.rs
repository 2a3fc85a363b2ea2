//! With `DirectRouting` a peer on the same segment is reached by a plain route, others by the tunnel.
//!
//! ```text
//!   node1  a     node3  c           node2  b
//!     └────────────┴── segment 0      └── segment 1
//!                          └─ switch, a router ─┘
//! ```

use flannel_rs_tests::{everyone_answers, shows};
use lab::{Families, Topology, story};
use serde_json::json;

#[test]
fn neighbors_are_reached_directly_and_others_through_the_tunnel() {
    let mut topology = Topology::vxlan(3)
        .families(Families::Dual)
        .backend(json!({ "Type": "vxlan", "DirectRouting": true }));
    topology.segments = 2;
    story(topology, |lab| {
        lab.start()?;
        let pods = [lab.node(1).attach("a")?, lab.node(2).attach("b")?, lab.node(3).attach("c")?];
        everyone_answers(lab, &pods)?;
        let route_to = |pod: usize, version: &str| {
            format!("ip {version} route get {}", pods[pod].addresses()[usize::from(version == "-6")].addr())
        };
        shows(lab.node(1), &route_to(1, "-4"), "dev flannel.1")?;
        shows(lab.node(1), &route_to(1, "-6"), "dev flannel-v6.1")?;
        shows(lab.node(1), &route_to(2, "-4"), "via 192.168.64.3 dev eth0")?;
        shows(lab.node(1), &route_to(2, "-6"), "dev eth0")
    });
}
