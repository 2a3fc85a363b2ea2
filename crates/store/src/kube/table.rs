//! All Nodes, as far as a lease depends on them, and the leases that they are. Pure.
//!
//! A Node that is sent again and again, as kubelets report their health, is recognised by a digest and
//! costs nothing more. Of two Nodes with the same podCIDRs the older one has the lease, on every node
//! alike; the others wait, are named among [`LeaseSet::skipped`], and get it when it is free.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use fabric::lease::{Lease, LeaseSet, Subnets};

use super::object::Object;
use super::record::{self, Families, Read};

/// All Nodes.
#[derive(Debug)]
pub(super) struct Table {
    prefix: String,
    families: Families,
    nodes: HashMap<Box<str>, Known>,
    set: LeaseSet,
    /// The leases of Nodes whose podCIDRs an older one has, by those and by right.
    waiting: BTreeMap<Subnets, BTreeMap<Right, Lease>>,
    /// The names of Nodes that have no podCIDRs.
    missing: BTreeSet<Box<str>>,
    /// Which list of Nodes is being read.
    round: u32,
}

/// Who has the better right to podCIDRs: the older one, and of two equally old ones, the first by name.
type Right = (u64, Box<str>);

/// What is known of a Node.
#[derive(Debug)]
struct Known {
    digest: u64,
    round: u32,
    claim: Option<(Subnets, u64)>,
}

impl Table {
    pub(super) fn new(prefix: String, families: Families) -> Table {
        Table {
            prefix,
            families,
            nodes: HashMap::new(),
            set: LeaseSet::default(),
            waiting: BTreeMap::new(),
            missing: BTreeSet::new(),
            round: 0,
        }
    }

    /// The leases of all Nodes.
    pub(super) fn leases(&self) -> &LeaseSet {
        &self.set
    }

    /// The names of Nodes that have no podCIDRs.
    pub(super) fn missing(&self) -> &BTreeSet<Box<str>> {
        &self.missing
    }

    /// All Nodes are about to be listed.
    pub(super) fn begin(&mut self) {
        self.round += 1;
    }

    /// All Nodes have been listed: those that were not among them are no more. Says whether there were such.
    pub(super) fn finish(&mut self) -> bool {
        let round = self.round;
        let gone = self.nodes.iter().filter(|(_, known)| known.round != round);
        let gone: Vec<Box<str>> = gone.map(|(name, _)| name.clone()).collect();
        gone.iter().fold(false, |changed, name| self.remove(name) | changed)
    }

    /// Takes in a Node as it is now; says whether that changed the leases.
    pub(super) fn insert(&mut self, object: &Object<'_>) -> bool {
        let name = &*object.metadata.name;
        let digest = object.digest(&self.prefix);
        if let Some(known) = self.nodes.get_mut(name) {
            known.round = self.round;
            if known.digest == digest {
                return false;
            }
        }
        if object.pod_cidrs().next().is_none() {
            self.missing.insert(name.into());
        } else {
            self.missing.remove(name);
        }
        let read = record::read(object, &self.prefix, self.families);
        let Read { lease, complaint } = read.unwrap_or(Read { lease: None, complaint: None });
        let claim = lease.as_ref().map(|lease| (lease.subnets, lease.created));
        let known = Known { digest, round: self.round, claim };
        let before = self.nodes.insert(name.into(), known).and_then(|known| known.claim);
        let mut changed = false;
        if before.is_some() && before != claim {
            changed |= self.give_up(name, before);
        }
        if let Some(lease) = lease {
            changed |= self.take(name, lease);
        }
        changed | self.complain(name, complaint)
    }

    /// A Node is no more; says whether that changed the leases.
    pub(super) fn remove(&mut self, name: &str) -> bool {
        let Some(known) = self.nodes.remove(name) else { return false };
        self.missing.remove(name);
        let changed = self.give_up(name, known.claim);
        self.complain(name, None) | changed
    }

    /// The name of the Node that has the lease of these subnets.
    pub(super) fn holder(&self, subnets: &Subnets) -> Option<&str> {
        let is_waiting =
            |right: &Right| self.waiting.get(subnets).is_some_and(|waiting| waiting.contains_key(right));
        let mut claims = self.nodes.iter().filter_map(|(name, known)| Some((name, known.claim?)));
        let holder = claims.find(|(name, (claimed, created))| {
            claimed == subnets && !is_waiting(&(*created, (*name).clone()))
        });
        holder.map(|(name, _)| &**name)
    }

    /// Enters the lease of a Node whose claim is in `nodes` already.
    fn take(&mut self, name: &str, lease: Lease) -> bool {
        let subnets = lease.subnets;
        let right = (lease.created, Box::from(name));
        let Some(held) = self.set.get(&subnets).cloned() else {
            self.set.insert(lease);
            return true;
        };
        if let Some(known) = self.waiting.get_mut(&subnets).and_then(|waiting| waiting.get_mut(&right)) {
            *known = lease;
            return false;
        }
        let other = self.other_holder(&subnets, name);
        match other {
            None if *held == lease => false,
            None => {
                self.set.insert(lease);
                true
            }
            Some(other) if other < right => {
                self.waiting.entry(subnets).or_default().insert(right, lease);
                self.explain(&subnets);
                true
            }
            Some(other) => {
                self.set.insert(lease);
                self.waiting.entry(subnets).or_default().insert(other, (*held).clone());
                self.explain(&subnets);
                true
            }
        }
    }

    /// Who has the lease of these subnets, besides a Node.
    fn other_holder(&self, subnets: &Subnets, but: &str) -> Option<Right> {
        let waiting = self.waiting.get(subnets);
        self.nodes.iter().find_map(|(name, known)| {
            let (claimed, created) = known.claim?;
            let right = (created, name.clone());
            let holds = claimed == *subnets && &**name != but;
            (holds && !waiting.is_some_and(|waiting| waiting.contains_key(&right))).then_some(right)
        })
    }

    /// Takes out what a Node claimed, and gives it to whoever waits for it.
    fn give_up(&mut self, name: &str, claim: Option<(Subnets, u64)>) -> bool {
        let Some((subnets, created)) = claim else { return false };
        let Some(waiting) = self.waiting.get_mut(&subnets) else {
            self.set.remove(&subnets);
            return true;
        };
        if waiting.remove(&(created, Box::from(name))).is_none()
            && let Some(((_, heir), lease)) = waiting.pop_first()
        {
            self.set.insert(lease);
            self.set.skipped.remove(&*heir);
        }
        self.set.skipped.remove(name);
        self.explain(&subnets);
        true
    }

    /// Says of all Nodes that wait for these subnets why they do.
    fn explain(&mut self, subnets: &Subnets) {
        let Some(waiting) = self.waiting.get(subnets) else { return };
        if waiting.is_empty() {
            self.waiting.remove(subnets);
            return;
        }
        let names: Vec<Box<str>> = waiting.keys().map(|(_, name)| name.clone()).collect();
        let holder = self.holder(subnets).unwrap_or("another").to_owned();
        for name in names {
            let why = format!(
                "its podCIDR {subnets} is that of the older node {holder} as well: delete one of the two Nodes, and \
                 it gets another podCIDR when it registers again"
            );
            self.set.skipped.insert(name.to_string(), why);
        }
    }

    /// Notes what is wrong with a Node, unless it waits; says whether that is news.
    fn complain(&mut self, name: &str, complaint: Option<String>) -> bool {
        match complaint {
            Some(complaint) => {
                self.set.skipped.insert(name.to_owned(), complaint.clone()).as_ref() != Some(&complaint)
            }
            None => {
                let claim = self.nodes.get(name).and_then(|known| known.claim);
                let waits = claim.is_some_and(|(subnets, created)| {
                    let right = (created, Box::from(name));
                    self.waiting.get(&subnets).is_some_and(|waiting| waiting.contains_key(&right))
                });
                !waits && self.set.skipped.remove(name).is_some()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::object::object;
    use super::*;

    const P: &str = "flannel.alpha.coreos.com/";

    fn table() -> Table {
        Table::new(P.to_owned(), Families { ipv4: true, ipv6: false })
    }

    /// A node that was created in a second, with a subnet and a public address of small numbers.
    fn node(name: &str, second: u8, subnet: u8, public: &str) -> String {
        json!({
            "metadata": {
                "name": name,
                "uid": format!("{name}-{second}"),
                "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z"),
                "annotations": { format!("{P}kube-subnet-manager"): "true", format!("{P}public-ip"): public },
            },
            "spec": { "podCIDR": format!("10.0.{subnet}.0/24") },
        })
        .to_string()
    }

    fn insert(table: &mut Table, text: &str) -> bool {
        table.insert(&object(text.as_bytes()).unwrap())
    }

    fn leases(table: &Table) -> Vec<String> {
        let shown = |lease: &Lease| {
            format!("{} at {}", lease.subnets, lease.attributes.public_addresses().next().unwrap())
        };
        table.leases().iter().map(|lease| shown(lease)).collect()
    }

    #[test]
    fn a_node_comes_changes_and_goes() {
        let mut table = table();
        assert!(insert(&mut table, &node("a", 1, 1, "192.0.2.1")));
        assert!(!insert(&mut table, &node("a", 1, 1, "192.0.2.1")), "the same again");
        assert!(insert(&mut table, &node("a", 1, 1, "192.0.2.2")));
        assert_eq!(leases(&table), ["10.0.1.0/24 at 192.0.2.2"]);
        assert!(insert(&mut table, &node("a", 1, 2, "192.0.2.2")), "another podCIDR");
        assert_eq!(leases(&table), ["10.0.2.0/24 at 192.0.2.2"]);
        assert!(insert(&mut table, &node("a", 1, 2, "nonsense")));
        assert_eq!(leases(&table), Vec::<String>::new());
        assert!(table.leases().skipped["a"].contains("nonsense"));
        assert!(insert(&mut table, &node("a", 1, 2, "192.0.2.2")));
        assert!(table.leases().skipped.is_empty());
        assert!(table.remove("a"));
        assert!(!table.remove("a"));
        assert_eq!(leases(&table), Vec::<String>::new());
    }

    #[test]
    fn of_two_nodes_with_one_podcidr_the_older_has_it_in_whichever_order_they_come() {
        for order in [["old", "new"], ["new", "old"]] {
            let mut table = table();
            let text = |name: &str| match name {
                "old" => node("old", 1, 7, "192.0.2.1"),
                _ => node("new", 2, 7, "192.0.2.2"),
            };
            order.iter().for_each(|name| assert!(insert(&mut table, &text(name)), "{name}"));
            assert_eq!(leases(&table), ["10.0.7.0/24 at 192.0.2.1"]);
            assert!(table.leases().skipped["new"].contains("older node old"));
            assert!(!table.leases().skipped.contains_key("old"));
            assert!(!insert(&mut table, &node("new", 2, 7, "192.0.2.3")), "it waits, whatever it says");
            assert_eq!(table.holder(&"10.0.7.0-24".parse().unwrap()), Some("old"));
            assert!(table.remove("old"));
            assert_eq!(leases(&table), ["10.0.7.0/24 at 192.0.2.3"]);
            assert!(table.leases().skipped.is_empty());
        }
    }

    #[test]
    fn a_list_takes_away_what_is_not_in_it() {
        let mut table = table();
        table.begin();
        insert(&mut table, &node("a", 1, 1, "192.0.2.1"));
        insert(&mut table, &node("b", 1, 2, "192.0.2.2"));
        assert!(!table.finish());
        table.begin();
        insert(&mut table, &node("b", 1, 2, "192.0.2.2"));
        assert_eq!(table.leases().len(), 2, "nothing goes before the list is complete");
        assert!(table.finish());
        assert_eq!(leases(&table), ["10.0.2.0/24 at 192.0.2.2"]);
    }

    proptest! {
        /// Whatever happened before, the table is as if only the last words of each Node had come.
        #[test]
        fn the_way_does_not_matter(steps in proptest::collection::vec((0usize..5, 0u8..3, 0u8..4, 0u8..4), 0..40)) {
            let mut walked = table();
            let mut last = BTreeMap::new();
            for (name, second, subnet, public) in steps {
                let name = ["a", "b", "c", "d", "e"][name];
                if public == 0 {
                    walked.remove(name);
                    last.remove(name);
                } else {
                    let address = if public == 1 { "bad".to_owned() } else { format!("192.0.2.{public}") };
                    let text = node(name, second, subnet, &address);
                    let before = walked.leases().clone();
                    let changed = insert(&mut walked, &text);
                    prop_assert_eq!(changed || before == *walked.leases(), true, "a change was not told");
                    last.insert(name, text);
                }
            }
            let mut direct = table();
            for text in last.values() {
                insert(&mut direct, text);
            }
            prop_assert_eq!(walked.leases(), direct.leases());
        }
    }
}
