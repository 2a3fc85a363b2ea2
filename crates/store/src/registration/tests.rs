use std::time::{Duration, SystemTime};

use fabric::config::NetworkConfig;
use fabric::lease::{Attributes, Lease, LeaseSet, Subnets};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::memory::Memory;
use super::{Surroundings, acquire, keep};
use crate::follow::follow;
use crate::health::Health;
use crate::registry::{Expiry, Registry, Written};
use crate::{AcquireError, Claim, Kept, KeptState, StoreHealth, Terms};

const EIGHT_SUBNETS: &str = r#"{"Network":"10.5.0.0/20","SubnetLen":24,
    "SubnetMin":"10.5.1.0","SubnetMax":"10.5.8.0","Backend":{"Type":"host-gw"}}"#;
const DUAL: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/56",
    "Backend":{"Type":"host-gw"}}"#;
const IPV6_ONLY: &str = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/56",
    "Backend":{"Type":"host-gw"}}"#;

fn config(json: &str) -> NetworkConfig {
    NetworkConfig::from_json(json).unwrap()
}

fn attributes(json: &str) -> Attributes {
    Attributes::from_json(json.as_bytes()).unwrap()
}

/// A node at `192.0.2.<number>`.
fn node(number: usize) -> Attributes {
    attributes(&format!(r#"{{"PublicIP":"192.0.2.{number}","PublicIPv6":null,"BackendType":"host-gw"}}"#))
}

fn node_with_mac(number: usize, mac: &str) -> Attributes {
    attributes(&format!(
        r#"{{"PublicIP":"192.0.2.{number}","PublicIPv6":null,"BackendType":"vxlan",
            "BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
    ))
}

fn subnets(key: &str) -> Subnets {
    Subnets::from_key(key).unwrap()
}

fn claim(json: &str, attributes: Attributes) -> Claim {
    Claim { config: config(json), attributes, previous: Subnets::default() }
}

async fn lease(memory: &Memory, claim: &Claim) -> Result<Lease, AcquireError> {
    acquire(memory, Terms::default(), claim, None).await
}

// How a lease is come by

#[tokio::test(start_paused = true)]
async fn eight_nodes_racing_for_eight_subnets_all_get_one_and_a_ninth_is_refused() {
    let memory = Memory::new();
    let racers: Vec<JoinHandle<Lease>> = (1..=8)
        .map(|number| {
            let memory = memory.clone();
            tokio::spawn(async move { lease(&memory, &claim(EIGHT_SUBNETS, node(number))).await.unwrap() })
        })
        .collect();
    let mut won = std::collections::BTreeSet::new();
    for racer in racers {
        won.insert(racer.await.unwrap().subnets);
    }
    assert_eq!(won.len(), 8);
    let ninth = lease(&memory, &claim(EIGHT_SUBNETS, node(9))).await.unwrap_err();
    assert!(matches!(ninth, AcquireError::NoneFree(_)), "{ninth}");
    assert!(ninth.to_string().contains("out of subnets"), "{ninth}");
}

#[tokio::test(start_paused = true)]
async fn racers_with_two_families_share_neither_half() {
    let memory = Memory::new();
    // Sixteen of each family, so that halves are chosen alike all the time.
    let json = r#"{"Network":"10.5.0.0/20","EnableIPv6":true,"IPv6Network":"fd00:5::/60","SubnetLen":24,
        "SubnetMin":"10.5.0.0","IPv6SubnetMin":"fd00:5::","IPv6SubnetLen":64,"Backend":{"Type":"host-gw"}}"#;
    let racers: Vec<JoinHandle<Lease>> = (1..=12)
        .map(|number| {
            let memory = memory.clone();
            tokio::spawn(async move { lease(&memory, &claim(json, node(number))).await.unwrap() })
        })
        .collect();
    let (mut ipv4, mut ipv6) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
    for racer in racers {
        let subnets = racer.await.unwrap().subnets;
        assert!(ipv4.insert(subnets.ipv4.unwrap()), "{subnets} shares its IPv4 half");
        assert!(ipv6.insert(subnets.ipv6.unwrap()), "{subnets} shares its IPv6 half");
    }
    assert_eq!(memory.keys().len(), 12, "who makes way leaves nothing");
}

#[tokio::test(start_paused = true)]
async fn a_lease_with_our_address_is_reused_and_rewritten() {
    let memory = Memory::new();
    memory.put("10.5.3.0-24", &node(1).to_json(), Some(Duration::from_secs(60)));
    let ours = node_with_mac(1, "02:00:00:00:00:01");
    let lease = lease(&memory, &claim(EIGHT_SUBNETS, ours.clone())).await.unwrap();
    assert_eq!((lease.subnets, lease.created), (subnets("10.5.3.0-24"), 1));
    let record = memory.record("10.5.3.0-24").unwrap();
    assert_eq!(record.value, ours.to_json().as_bytes());
    assert_eq!(record.expires, Expiry::At(Instant::now() + Terms::default().ttl));
}

#[tokio::test(start_paused = true)]
async fn the_previous_subnet_is_taken_again_when_its_lease_has_run_out() {
    let memory = Memory::new();
    for _ in 0..20 {
        let claim = Claim { previous: subnets("10.5.7.0-24"), ..claim(EIGHT_SUBNETS, node(1)) };
        assert_eq!(lease(&memory, &claim).await.unwrap().subnets, claim.previous);
        memory.revoke("10.5.7.0-24");
    }
}

#[tokio::test(start_paused = true)]
async fn a_previous_subnet_that_another_node_has_is_left_to_it() {
    let memory = Memory::new();
    memory.put("10.5.7.0-24", &node(2).to_json(), None);
    let claim = Claim { previous: subnets("10.5.7.0-24"), ..claim(EIGHT_SUBNETS, node(1)) };
    assert_ne!(lease(&memory, &claim).await.unwrap().subnets, claim.previous);
    assert_eq!(memory.record("10.5.7.0-24").unwrap().value, node(2).to_json().as_bytes());
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_address_has_changed_is_known_by_its_mac() {
    let memory = Memory::new();
    memory.put(
        "10.5.7.0-24",
        &node_with_mac(1, "02:00:00:00:00:01").to_json(),
        Some(Duration::from_secs(60)),
    );
    let moved = node_with_mac(99, "02:00:00:00:00:01");
    let known = Claim { previous: subnets("10.5.7.0-24"), ..claim(EIGHT_SUBNETS, moved.clone()) };
    assert_eq!(lease(&memory, &known).await.unwrap().subnets, known.previous);
    // Its word alone is not enough: without the subnet from before it is another node.
    let stranger = claim(EIGHT_SUBNETS, node_with_mac(98, "02:00:00:00:00:01"));
    assert_ne!(lease(&memory, &stranger).await.unwrap().subnets, known.previous);
}

#[tokio::test(start_paused = true)]
async fn host_gw_nodes_are_not_taken_for_one_another() {
    let memory = Memory::new();
    memory.put("10.5.7.0-24", &node(2).to_json(), Some(Duration::from_secs(60)));
    let claim = Claim { previous: subnets("10.5.7.0-24"), ..claim(EIGHT_SUBNETS, node(1)) };
    assert_ne!(lease(&memory, &claim).await.unwrap().subnets, claim.previous);
}

#[tokio::test(start_paused = true)]
async fn a_network_of_ipv6_alone_knows_nodes_by_their_ipv6_address() {
    let memory = Memory::new();
    let v6 =
        |number: usize| attributes(&format!(r#"{{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::{number}"}}"#));
    let first = lease(&memory, &claim(IPV6_ONLY, v6(1))).await.unwrap();
    let second = lease(&memory, &claim(IPV6_ONLY, v6(2))).await.unwrap();
    assert_ne!(first.subnets, second.subnets);
    assert!(memory.keys().iter().all(|key| key.starts_with("0.0.0.0-0&fd00:5:")), "{:?}", memory.keys());
    let again = lease(&memory, &claim(IPV6_ONLY, v6(1))).await.unwrap();
    assert_eq!(again.subnets, first.subnets);
}

#[tokio::test(start_paused = true)]
async fn a_reservation_is_used_and_stays_one() {
    let memory = Memory::new();
    memory.put("10.5.3.0-24", r#"{"PublicIP":"192.0.2.1"}"#, None);
    let lease = lease(&memory, &claim(EIGHT_SUBNETS, node(1))).await.unwrap();
    assert_eq!(lease.subnets, subnets("10.5.3.0-24"));
    let record = memory.record("10.5.3.0-24").unwrap();
    assert_eq!((record.expires, record.value), (Expiry::Never, node(1).to_json().into_bytes()));
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_no_longer_fits_is_given_up_and_a_reservation_is_not() {
    let memory = Memory::new();
    memory.put("10.9.3.0-24", &node(1).to_json(), Some(Duration::from_secs(60)));
    memory.put("10.9.4.0-24", &node(1).to_json(), None);
    lease(&memory, &claim(EIGHT_SUBNETS, node(1))).await.unwrap();
    assert_eq!(memory.record("10.9.3.0-24"), None);
    assert!(memory.record("10.9.4.0-24").is_some());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_gains_ipv6_keeps_the_subnet_of_its_pods() {
    let memory = Memory::new();
    memory.put("10.5.77.0-24", &node(1).to_json(), Some(Duration::from_secs(60)));
    let lease = lease(&memory, &claim(DUAL, node(1))).await.unwrap();
    assert_eq!(lease.subnets.ipv4, subnets("10.5.77.0-24").ipv4);
    assert!(lease.subnets.ipv6.is_some());
    assert_eq!(memory.keys(), [lease.subnets.key()]);
}

#[tokio::test(start_paused = true)]
async fn a_key_whose_value_cannot_be_read_is_not_handed_out() {
    let memory = Memory::new();
    for number in 1..=7 {
        memory.put(&format!("10.5.{number}.0-24"), "not json", None);
    }
    let last = lease(&memory, &claim(EIGHT_SUBNETS, node(1))).await.unwrap();
    assert_eq!(last.subnets, subnets("10.5.8.0-24"));
    let none = lease(&memory, &claim(EIGHT_SUBNETS, node(2))).await.unwrap_err();
    assert!(matches!(none, AcquireError::NoneFree(_)), "{none}");
}

#[tokio::test(start_paused = true)]
async fn a_lease_of_the_whole_network_is_in_nobodys_way() {
    for (json, all, previous) in [
        (EIGHT_SUBNETS, "10.5.0.0-20", "10.5.7.0-24"),
        (DUAL, "10.5.0.0-16", "10.5.7.0-24&fd00:5:0:7::-64"),
        (DUAL, "10.5.0.0-16&fd00:5::-56", "10.5.7.0-24&fd00:5:0:7::-64"),
    ] {
        let memory = Memory::new();
        memory.put(all, &node(2).to_json(), None);
        let known = Claim { previous: subnets(previous), ..claim(json, node(1)) };
        assert_eq!(lease(&memory, &known).await.unwrap().subnets, known.previous);
        let new = lease(&memory, &claim(json, node(3))).await.unwrap();
        assert_eq!(memory.keys().len(), 3, "{new:?}");
        assert_eq!(memory.writes(), 2, "at the first try");
    }
    // What is half a lease counts by that half.
    let memory = Memory::new();
    memory.put("10.5.0.0-16&fd00:5:0:7::-64", &node(2).to_json(), None);
    let known = Claim { previous: subnets("10.5.7.0-24&fd00:5:0:7::-64"), ..claim(DUAL, node(1)) };
    assert_ne!(lease(&memory, &known).await.unwrap().subnets.ipv6, known.previous.ipv6);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_is_a_little_old_does_no_harm() {
    let memory = Memory::new();
    let old = LeaseSet::default();
    for number in 1..=8 {
        acquire(&memory, Terms::default(), &claim(EIGHT_SUBNETS, node(number)), Some(old.clone()))
            .await
            .unwrap();
    }
    assert_eq!(memory.keys().len(), 8);
    // It shows leases that are gone, too: only a fresh list may say that there is none left.
    let full: LeaseSet = memory
        .keys()
        .iter()
        .map(|key| Lease { subnets: subnets(key), attributes: node(99), created: 1 })
        .collect();
    memory.revoke("10.5.2.0-24");
    let claim = claim(EIGHT_SUBNETS, node(9));
    let lease = acquire(&memory, Terms::default(), &claim, Some(full)).await.unwrap();
    assert_eq!(lease.subnets, subnets("10.5.2.0-24"));
}

// How it is held on to

/// A node that keeps its lease, and what it is told.
struct Node {
    memory: Memory,
    key: String,
    attributes: watch::Sender<Attributes>,
    own: watch::Receiver<Kept>,
    leases: watch::Receiver<Option<LeaseSet>>,
    health: watch::Receiver<StoreHealth>,
    tasks: Vec<JoinHandle<()>>,
}

impl Node {
    async fn start(memory: &Memory, attributes: Attributes) -> Node {
        let lease = lease(memory, &claim(EIGHT_SUBNETS, attributes.clone())).await.unwrap();
        Node::keeping(memory, lease)
    }

    fn keeping(memory: &Memory, lease: Lease) -> Node {
        let (sender, leases) = watch::channel(None);
        let health = Health::new();
        let seen_health = health.subscribe();
        let followed = memory.clone();
        let follower = tokio::spawn(async move { match follow(&followed, &sender, &health).await {} });
        let attributes = watch::Sender::new(lease.attributes.clone());
        let (own, seen) =
            watch::channel(Kept { lease: lease.clone(), state: KeptState::Held, expires: None });
        let around = Surroundings {
            config: config(EIGHT_SUBNETS),
            attributes: attributes.subscribe(),
            leases: leases.clone(),
        };
        let (registry, key) = (memory.clone(), lease.subnets.key());
        let keeper =
            tokio::spawn(async move { match keep(&registry, Terms::default(), lease, around, own).await {} });
        let tasks = vec![follower, keeper];
        Node { memory: memory.clone(), key, attributes, own: seen, leases, health: seen_health, tasks }
    }

    async fn until(&mut self, what: &str, is_so: impl FnMut(&Kept) -> bool) -> Kept {
        let mut own = self.own.clone();
        let wait = own.wait_for(is_so);
        match tokio::time::timeout(Duration::from_secs(86_400 * 3), wait).await {
            Ok(kept) => kept.unwrap().clone(),
            Err(_) => panic!("waited for: {what}; last seen: {:?}", *self.own.borrow()),
        }
    }

    /// Lets everybody do what is to be done at this moment.
    async fn settled(&self) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_before_its_end_for_as_long_as_the_node_lives() {
    let memory = Memory::new();
    let node = Node::start(&memory, node(1)).await;
    let mut looks = 0;
    for _ in 0..24 * 10 {
        tokio::time::sleep(Duration::from_secs(3600)).await;
        looks += usize::from(memory.record(&node.key).is_some());
    }
    assert_eq!(looks, 240, "never gone in ten days");
    assert!((10..=13).contains(&memory.writes()), "{} writes in ten days", memory.writes());
    assert_eq!(node.own.borrow().state, KeptState::Held);
    let expires = node.own.borrow().expires.expect("the store says when");
    // The clock of these tests is not the wall's, by which the last renewal was ten days early.
    let left = expires.duration_since(SystemTime::now()).unwrap();
    assert!(left <= Terms::default().ttl && left > Terms::default().ttl / 2, "{left:?}");
    drop(node);
    tokio::time::sleep(Terms::default().ttl + Duration::from_secs(1)).await;
    assert!(memory.keys().is_empty(), "a node that is gone loses its lease");
}

#[tokio::test(start_paused = true)]
async fn a_renewal_changes_nothing_but_the_end_of_the_lease() {
    let memory = Memory::new();
    let mut node = Node::start(&memory, node(1)).await;
    memory.put("10.6.8.0-24", &self::node(2).to_json(), Some(Terms::default().ttl));
    node.settled().await;
    node.leases.mark_unchanged();
    let before = node.own.borrow().clone();
    for _ in 0..3 {
        memory.put("10.6.8.0-24", &self::node(2).to_json(), Some(Terms::default().ttl));
        tokio::time::sleep(Duration::from_secs(36_000)).await;
    }
    assert!(memory.writes() > 1, "ours was renewed as well");
    assert!(!node.leases.has_changed().unwrap());
    let after = node.own.borrow().clone();
    assert_eq!(Kept { expires: before.expires, ..after }, before);
}

#[tokio::test(start_paused = true)]
async fn a_revoked_lease_is_put_back_at_once_with_the_same_subnets() {
    let memory = Memory::new();
    let node = Node::start(&memory, node(1)).await;
    node.settled().await;
    memory.revoke(&node.key);
    node.settled().await;
    let record = memory.record(&node.key).expect("put back within a millisecond");
    assert_eq!(record.value, self::node(1).to_json().as_bytes());
    assert_eq!(node.own.borrow().state, KeptState::Held);
    assert_eq!(node.own.borrow().lease.created, record.created);
}

#[tokio::test(start_paused = true)]
async fn changed_attributes_are_written_at_once() {
    let memory = Memory::new();
    let node = Node::start(&memory, node(1)).await;
    node.settled().await;
    node.attributes.send_replace(self::node(77));
    node.settled().await;
    assert_eq!(memory.record(&node.key).unwrap().value, self::node(77).to_json().as_bytes());
    assert_eq!(node.own.borrow().lease.attributes, self::node(77));
}

#[tokio::test(start_paused = true)]
async fn a_reservation_that_is_kept_is_given_no_term() {
    let memory = Memory::new();
    memory.put("10.5.3.0-24", r#"{"PublicIP":"192.0.2.1"}"#, None);
    let node = Node::start(&memory, node(1)).await;
    node.attributes.send_replace(node_with_mac(1, "02:00:00:00:00:01"));
    tokio::time::sleep(Duration::from_secs(86_400 * 3)).await;
    let record = memory.record("10.5.3.0-24").unwrap();
    assert_eq!(record.expires, Expiry::Never);
    assert_eq!(memory.writes(), 2, "one to take it, one for the change");
}

#[tokio::test(start_paused = true)]
async fn another_node_in_our_lease_is_reported_left_alone_and_followed_by_us_when_it_is_gone() {
    let memory = Memory::new();
    let mut node = Node::start(&memory, node(1)).await;
    node.settled().await;
    memory.put(&node.key, &self::node(2).to_json(), Some(Duration::from_secs(300)));
    node.settled().await;
    assert_eq!(node.own.borrow().state, KeptState::TakenByAnother { by: self::node(2) });
    let writes = memory.writes();
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(memory.writes(), writes, "we keep quiet");
    memory.revoke(&node.key);
    node.until("ours again", |kept| kept.state == KeptState::Held).await;
    assert_eq!(memory.record(&node.key).unwrap().value, self::node(1).to_json().as_bytes());
}

#[tokio::test(start_paused = true)]
async fn of_two_nodes_with_one_address_the_earlier_one_keeps_quiet() {
    let memory = Memory::new();
    let mut earlier = Node::start(&memory, node_with_mac(1, "02:00:00:00:00:01")).await;
    let later = Node::start(&memory, node_with_mac(1, "02:00:00:00:00:02")).await;
    earlier.until("reported", |kept| matches!(kept.state, KeptState::TakenByAnother { .. })).await;
    let writes = memory.writes();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(memory.writes(), writes, "they do not fight");
    assert_eq!(later.own.borrow().state, KeptState::Held);
}

#[tokio::test(start_paused = true)]
async fn garbage_in_our_lease_is_repaired() {
    let memory = Memory::new();
    let node = Node::start(&memory, node(1)).await;
    node.settled().await;
    memory.put(&node.key, "{", None);
    node.settled().await;
    assert_eq!(memory.record(&node.key).unwrap().value, self::node(1).to_json().as_bytes());
}

#[tokio::test(start_paused = true)]
async fn a_write_whose_answer_is_lost_is_not_taken_for_a_theft() {
    let memory = Memory::new();
    let mut node = Node::start(&memory, node(1)).await;
    node.settled().await;
    memory.swallow_next_answer();
    node.attributes.send_replace(self::node(77));
    node.attributes.send_replace(self::node(78));
    node.settled().await;
    node.attributes.send_replace(self::node(79));
    let kept = node.until("written in the end", |kept| kept.lease.attributes == self::node(79)).await;
    assert_eq!(kept.state, KeptState::Held);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_takes_nothing_from_us_before_the_end_of_the_lease() {
    let memory = Memory::new();
    let mut node = Node::start(&memory, node(1)).await;
    node.settled().await;
    memory.set_away(true);
    tokio::time::sleep(Duration::from_secs(23 * 3600)).await;
    assert_eq!(node.own.borrow().state, KeptState::Held);
    assert!(matches!(*node.health.borrow(), StoreHealth::Unreachable { .. }));
    let lost = node.until("run out", |kept| kept.state != KeptState::Held).await;
    let KeptState::Lost { reason } = lost.state else { panic!("{lost:?}") };
    assert!(reason.contains("the store is away"), "{reason}");
    assert!(node.leases.borrow().as_ref().is_some_and(|leases| leases.len() == 1), "no peer is removed");
    memory.set_away(false);
    let back = node.until("back", |kept| kept.state == KeptState::Held).await;
    assert_eq!(memory.record(&node.key).unwrap().created, back.lease.created);
    node.until("it stays", |kept| kept.state == KeptState::Held).await;
}

#[tokio::test(start_paused = true)]
async fn subnets_that_were_leased_elsewhere_meanwhile_are_not_taken_back() {
    let memory = Memory::new();
    let mut node = Node::start(&memory, node(1)).await;
    node.settled().await;
    let wider = format!("{}-23", subnets(&node.key).ipv4.unwrap().supernet().unwrap().addr());
    memory.put(&wider, &self::node(2).to_json(), None);
    // The whole network is nobody's subnet.
    memory.put("10.5.0.0-20", &self::node(3).to_json(), None);
    node.settled().await;
    memory.revoke(&node.key);
    let lost = node.until("reported", |kept| kept.state != KeptState::Held).await;
    let KeptState::Lost { reason } = lost.state else { panic!("{lost:?}") };
    assert!(reason.contains("192.0.2.2"), "{reason}");
    let freed = Instant::now();
    memory.revoke(&wider);
    node.until("taken again when free", |kept| kept.state == KeptState::Held).await;
    assert!(freed.elapsed() < Duration::from_secs(1), "{:?}", freed.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_lease_from_a_snapshot_is_made_good_once_the_store_is_there() {
    let memory = Memory::new();
    memory.set_away(true);
    let lease = Lease { subnets: subnets("10.5.6.0-24"), attributes: node(1), created: 7 };
    let mut node = Node::keeping(&memory, lease);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(node.own.borrow().state, KeptState::Held, "nobody has said otherwise");
    memory.set_away(false);
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(node.memory.record("10.5.6.0-24").is_some());
    node.until("held", |kept| kept.state == KeptState::Held && kept.lease.created == 1).await;
}

// How the others are followed

#[tokio::test(start_paused = true)]
async fn an_unreadable_or_foreign_key_costs_only_itself_and_comes_back_when_repaired() {
    let memory = Memory::new();
    let mut node = Node::start(&memory, node(1)).await;
    memory.put("10.6.8.0-24", &self::node(2).to_json(), None);
    memory.put("hello", "world", None);
    node.settled().await;
    memory.put("10.6.8.0-24", "", None);
    memory.put("10.6.7.0-24", r#"{"PublicIP":"fd00::1"}"#, None);
    node.settled().await;
    {
        let seen = node.leases.borrow_and_update();
        let seen = seen.as_ref().unwrap();
        assert_eq!(seen.len(), 1);
        let skipped: Vec<&String> = seen.skipped.keys().collect();
        assert_eq!(skipped, ["10.6.7.0-24", "10.6.8.0-24", "hello"]);
    }
    memory.put("10.6.8.0-24", &self::node(2).to_json(), None);
    memory.revoke("hello");
    node.settled().await;
    let seen = node.leases.borrow();
    let seen = seen.as_ref().unwrap();
    assert_eq!((seen.len(), seen.skipped.len()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_key_that_names_the_subnets_of_another_costs_only_itself() {
    let memory = Memory::new();
    let node = Node::start(&memory, node(1)).await;
    let usual = "10.6.8.0-24&fd00:e::-64";
    memory.put(usual, &self::node(2).to_json(), None);
    for other in ["10.6.8.0-24&fd00:0e::-64", "10.6.8.0-024&fd00:e::-64"] {
        for value in ["", &self::node(3).to_json()] {
            memory.put(other, value, None);
            node.settled().await;
            let seen = node.leases.borrow().clone().unwrap();
            assert_eq!(seen.get(&subnets(usual)).unwrap().attributes, self::node(2));
            assert!(seen.skipped[other].contains(usual), "{:?}", seen.skipped);
        }
        memory.revoke(other);
        node.settled().await;
        let seen = node.leases.borrow().clone().unwrap();
        assert_eq!((seen.len(), seen.skipped.len()), (2, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_watch_goes_on_and_a_compacted_one_lists_again_without_losing_anybody() {
    let memory = Memory::new();
    memory.put("10.6.7.0-24", &node(7).to_json(), None);
    memory.put("10.6.8.0-24", &node(8).to_json(), None);
    let mut node = Node::start(&memory, node(1)).await;
    node.settled().await;
    let lists = memory.lists();

    memory.set_away(true);
    node.settled().await;
    memory.revoke("10.6.7.0-24");
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(node.leases.borrow().as_ref().unwrap().len(), 3, "nobody goes while the store is away");
    memory.set_away(false);
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(node.leases.borrow().as_ref().unwrap().len(), 2);
    assert_eq!(memory.lists(), lists, "it went on from where it was");

    memory.set_away(true);
    node.settled().await;
    memory.revoke("10.6.8.0-24");
    memory.put("10.6.6.0-24", &self::node(6).to_json(), None);
    memory.compact();
    memory.set_away(false);
    node.leases
        .wait_for(|leases| {
            let leases = leases.as_ref().unwrap();
            assert!(leases.len() >= 2, "never empty");
            leases.get(&subnets("10.6.6.0-24")).is_some() && leases.get(&subnets("10.6.8.0-24")).is_none()
        })
        .await
        .unwrap();
    assert_eq!(memory.lists(), lists + 1);
    assert!(matches!(*node.health.borrow(), StoreHealth::Reachable { .. }));
}

#[tokio::test(start_paused = true)]
async fn the_first_set_is_complete() {
    let memory = Memory::new();
    for number in 1..=8 {
        memory.put(&format!("10.5.{number}.0-24"), &node(number).to_json(), None);
    }
    let (sender, mut leases) = watch::channel(None);
    let health = Health::new();
    let follower = async { match follow(&memory, &sender, &health).await {} };
    let first = async { leases.wait_for(Option::is_some).await.unwrap().as_ref().unwrap().len() };
    tokio::select! {
        () = follower => unreachable!("it follows for ever"),
        len = first => assert_eq!(len, 8),
    }
}

#[tokio::test(start_paused = true)]
async fn the_memory_that_these_tests_rest_on_compares_before_it_writes() {
    let memory = Memory::new();
    let Written::Done(first) = memory.create("a", "1", None).await.unwrap() else { panic!("free") };
    assert_eq!(memory.create("a", "2", None).await.unwrap(), Written::Conflict);
    memory.put("a", "3", None);
    assert_eq!(memory.replace(&first, "4", None).await.unwrap(), Written::Conflict);
    assert_eq!(memory.delete(&first).await.unwrap(), Written::Conflict);
    assert_eq!(memory.record("a").unwrap().value, b"3");
}
