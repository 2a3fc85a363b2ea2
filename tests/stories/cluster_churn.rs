//! Pods come and go by the dozen: whoever is gone leaves nothing on its node.
//!
//! ```text
//!   node1  22 pods                 node2  22 pods
//!     └──────────────┬───────────────┘
//!                 switch: API server
//! ```

use std::collections::BTreeSet;

use anyhow::ensure;
use flannel_rs_tests::kubernetes::{PATIENCE, PodSpec, Proxy, Shape, cluster_story};
use lab::wait_for;

const PODS: u16 = 44;

#[test]
fn forty_four_pods_leave_nothing() {
    cluster_story(&Shape::new(Proxy::Iptables), |cluster| {
        let rules = |number: usize| cluster.lab().node(number).run("nft list ruleset");
        let before = [lines(&rules(1)?), lines(&rules(2)?)];
        // Every other one has a port of its node.
        let specs: Vec<PodSpec> = (0..PODS)
            .map(|number| {
                let spec = PodSpec::new(&format!("pod-{number}"), 1 + usize::from(number % 2));
                if number % 4 < 2 { spec.host_port(10_000 + number) } else { spec }
            })
            .collect();
        let pods = cluster.run(&specs)?;
        let mut addresses: Vec<_> = pods.iter().map(|pod| pod.address).collect();
        addresses.sort();
        addresses.dedup();
        ensure!(addresses.len() == pods.len(), "only {} addresses for {} pods", addresses.len(), pods.len());
        // The first asks everybody.
        for pod in &pods[1..] {
            let said = cluster.ask_from(&pods[0], pod.server())?;
            ensure!(said == format!("{} {}", pod.name, pods[0].address), "{} says {said:?}", pod.name);
        }

        cluster.delete(&pods)?;
        for number in [1, 2] {
            // The kubelet reports a pod as gone before it has tidied up after it.
            wait_for("nothing to be left", PATIENCE, || {
                cluster.node(number).nothing_is_left()?;
                let left = lines(&rules(number)?);
                ensure!(
                    left == before[number - 1],
                    "rules were {:#?}, and are {left:#?}",
                    before[number - 1]
                );
                Ok(())
            })?;
        }
        Ok(())
    });
}

/// Rules without their counters.
fn lines(rules: &str) -> BTreeSet<String> {
    let rule = |line: &str| line.split(" counter packets").next().unwrap_or_default().trim().to_owned();
    rules.lines().map(rule).collect()
}
