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
        // The first host port brings chains that stay, empty, for those that come after.
        let first = cluster
            .run(&[PodSpec::new("first-1", 1).host_port(9001), PodSpec::new("first-2", 2).host_port(9002)])?;
        cluster.delete(&first)?;
        for number in [1, 2] {
            wait_for("nothing to be left of the first", PATIENCE, || {
                ensure!(!rules(number)?.contains(&format!("900{number}")), "its rules are left");
                Ok(())
            })?;
        }
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
            let said = wait_for(&format!("{} to be reached", pod.name), PATIENCE, || {
                cluster.ask_from(&pods[0], pod.server())
            })?;
            ensure!(said == format!("{} {}", pod.name, pods[0].address), "{} says {said:?}", pod.name);
        }

        cluster.delete(&pods)?;
        for number in [1, 2] {
            // The kubelet reports a pod as gone before it has tidied up after it.
            wait_for("nothing to be left", PATIENCE, || {
                cluster.node(number).nothing_is_left()?;
                let mut left = lines(&rules(number)?);
                left.retain(|line| !before[number - 1].contains(line));
                ensure!(left.is_empty(), "rules are left on node{number}: {left:#?}");
                Ok(())
            })?;
        }
        Ok(())
    });
}

/// Rules, without what their counters say.
fn lines(rules: &str) -> BTreeSet<String> {
    let words = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_counted = |at: usize| at > 0 && ["packets", "bytes"].contains(&words[at - 1]);
        let rest = (0..words.len()).filter(|at| !is_counted(*at)).map(|at| words[at]);
        rest.collect::<Vec<_>>().join(" ")
    };
    rules.lines().map(words).collect()
}
