use std::path::Path;
use std::time::Duration;

use fabric::config::NetworkConfig;
use fabric::lease::{Attributes, Lease, LeaseSet, Subnets};
use tempfile::TempDir;
use tokio::sync::watch;

use super::Directory;
use crate::registry::{Registry, Written};
use crate::{AcquireError, Claim, Kept, KeptState, Store, StoreError, Terms};

const CONFIG: &str = r#"{"Network":"10.5.0.0/20","SubnetLen":24,"SubnetMin":"10.5.1.0",
    "SubnetMax":"10.5.8.0","Backend":{"Type":"host-gw"}}"#;

fn node(number: usize) -> Attributes {
    let json = format!(r#"{{"PublicIP":"192.0.2.{number}","PublicIPv6":null,"BackendType":"host-gw"}}"#);
    Attributes::from_json(json.as_bytes()).unwrap()
}

fn claim(number: usize) -> Claim {
    let config = NetworkConfig::from_json(CONFIG).unwrap();
    Claim { config, attributes: node(number), previous: Subnets::default() }
}

async fn wait_for(
    leases: &mut watch::Receiver<Option<LeaseSet>>,
    mut is_so: impl FnMut(&LeaseSet) -> bool,
) -> LeaseSet {
    let mut seen = leases.clone();
    let wait = seen.wait_for(|leases| leases.as_ref().is_some_and(&mut is_so));
    match tokio::time::timeout(Duration::from_secs(120), wait).await {
        Ok(leases) => leases.unwrap().clone().unwrap(),
        Err(_) => panic!("waited in vain; last seen: {:?}", *leases.borrow()),
    }
}

fn store() -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::file(dir.path().join("leases")).unwrap();
    (dir, store)
}

fn read(dir: &TempDir, name: &str) -> String {
    std::fs::read_to_string(dir.path().join("leases").join(name)).unwrap()
}

fn write(dir: &TempDir, name: &str, text: &str) {
    std::fs::write(dir.path().join("leases").join(name), text).unwrap();
}

#[tokio::test]
async fn files_hold_the_keys_and_values_of_etcd() {
    let (dir, store) = store();
    let missing = store.network_config().await.unwrap_err();
    assert!(matches!(missing, StoreError::NoNetworkConfig { .. }), "{missing}");
    store.set_network_config(CONFIG).await.unwrap();
    assert_eq!((store.network_config().await.unwrap(), read(&dir, "config")), (CONFIG.into(), CONFIG.into()));
    let lease = store.acquire(&claim(1)).await.unwrap();
    let value = r#"{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"host-gw"}"#;
    assert_eq!(read(&dir, &format!("subnets/{}", lease.subnets.key())), value);
    assert!(store.remove(&lease.subnets).await.unwrap());
    assert!(!store.remove(&lease.subnets).await.unwrap());
    assert_eq!(std::fs::read_dir(dir.path().join("leases/terms")).unwrap().count(), 0);
}

#[tokio::test]
async fn eight_nodes_racing_for_eight_subnets_all_get_one_and_a_ninth_is_refused() {
    let (dir, _) = store();
    let racers: Vec<_> = (1..=8)
        .map(|number| {
            let store = Store::file(dir.path().join("leases")).unwrap();
            tokio::spawn(async move { store.acquire(&claim(number)).await.unwrap() })
        })
        .collect();
    let mut won = std::collections::BTreeMap::new();
    for racer in racers {
        let lease = racer.await.unwrap();
        won.insert(lease.subnets, lease.created);
    }
    assert_eq!(won.len(), 8);
    let created: std::collections::BTreeSet<u64> = won.values().copied().collect();
    assert_eq!(created.len(), 8, "no two leases are equally old");
    let ninth = Store::file(dir.path().join("leases")).unwrap().acquire(&claim(9)).await.unwrap_err();
    assert!(matches!(ninth, AcquireError::NoneFree(_)), "{ninth}");
}

#[tokio::test]
async fn whatever_anybody_does_to_the_files_is_seen() {
    let (dir, store) = store();
    let mut leases = store.leases();
    wait_for(&mut leases, LeaseSet::is_empty).await;
    // By our own hand,
    let lease = Store::file(dir.path().join("leases")).unwrap().acquire(&claim(1)).await.unwrap();
    wait_for(&mut leases, |leases| leases.get(&lease.subnets).map(|found| &**found) == Some(&lease)).await;
    // by somebody's editor, which makes a reservation,
    let other = if lease.subnets.key() == "10.5.2.0-24" { "10.5.3.0-24" } else { "10.5.2.0-24" };
    write(&dir, &format!("subnets/{other}"), r#"{"PublicIP":"192.0.2.2"}"#);
    let seen = wait_for(&mut leases, |leases| leases.len() == 2).await;
    assert_eq!(seen.get(&Subnets::from_key(other).unwrap()).unwrap().created, 0, "older than all others");
    let reservations = store.list().await.unwrap().reservations;
    assert_eq!(reservations.into_iter().map(|subnets| subnets.key()).collect::<Vec<_>>(), [other]);
    // by a program that is stopped in the middle,
    write(&dir, &format!("subnets/{other}"), r#"{"PublicIP":"192.0"#);
    let seen = wait_for(&mut leases, |leases| leases.len() == 1).await;
    assert!(seen.skipped.contains_key(other), "{seen:?}");
    write(&dir, &format!("subnets/{other}"), "");
    wait_for(&mut leases, |leases| leases.skipped.get(other).is_some_and(|why| why.contains("EOF"))).await;
    // and by a broom.
    std::fs::remove_file(dir.path().join("leases/subnets").join(other)).unwrap();
    wait_for(&mut leases, |leases| (leases.len(), leases.skipped.len()) == (1, 0)).await;
}

#[tokio::test]
async fn a_lease_runs_out_with_its_node_and_is_renewed_while_it_lives() {
    let (dir, store) = store();
    // A busy machine may be five seconds late with a renewal.
    let terms = Terms { ttl: Duration::from_secs(6), renew_margin: Duration::from_secs(5) };
    let store = store.with_terms(terms);
    let mut leases = store.leases();
    let dead = store.acquire(&claim(1)).await.unwrap();
    let alive = store.acquire(&claim(2)).await.unwrap();
    let attributes = watch::Sender::new(alive.attributes.clone());
    let (own, kept) = watch::channel(Kept { lease: alive.clone(), state: KeptState::Held, expires: None });
    let keeper = {
        let (store, lease, seen) = (store.clone(), alive.clone(), attributes.subscribe());
        tokio::spawn(async move { match store.keep(lease, &claim(1).config, seen, own).await {} })
    };
    wait_for(&mut leases, |leases| leases.len() == 2).await;
    wait_for(&mut leases, |leases| leases.get(&dead.subnets).is_none()).await;
    assert!(!dir.path().join("leases/subnets").join(dead.subnets.key()).exists(), "it is taken away");
    assert!(!dir.path().join("leases/terms").join(dead.subnets.key()).exists());
    let much_later = std::time::Instant::now() + Duration::from_secs(7);
    while std::time::Instant::now() < much_later {
        assert!(leases.borrow().as_ref().unwrap().get(&alive.subnets).is_some());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(kept.borrow().state, KeptState::Held);
    keeper.abort();
    wait_for(&mut leases, LeaseSet::is_empty).await;
}

#[tokio::test]
async fn a_lease_that_is_removed_under_a_living_node_comes_back() {
    let (dir, store) = store();
    let lease = store.acquire(&claim(1)).await.unwrap();
    let file = dir.path().join("leases/subnets").join(lease.subnets.key());
    let attributes = watch::Sender::new(lease.attributes.clone());
    let (own, mut kept) =
        watch::channel(Kept { lease: lease.clone(), state: KeptState::Held, expires: None });
    let keeper = {
        let (store, lease, seen) = (store.clone(), lease.clone(), attributes.subscribe());
        tokio::spawn(async move { match store.keep(lease, &claim(1).config, seen, own).await {} })
    };
    wait_for(&mut store.leases(), |leases| leases.len() == 1).await;
    std::fs::remove_file(&file).unwrap();
    let back = kept.wait_for(|kept| kept.lease.created > lease.created);
    tokio::time::timeout(Duration::from_secs(60), back).await.unwrap().unwrap();
    assert!(file.exists());
    keeper.abort();
}

#[tokio::test]
async fn a_directory_that_is_gone_removes_nobody_and_is_found_again() {
    let (dir, store) = store();
    let lease = store.acquire(&claim(1)).await.unwrap();
    let mut leases = store.leases();
    wait_for(&mut leases, |leases| leases.len() == 1).await;
    let (here, away) = (dir.path().join("leases"), dir.path().join("away"));
    std::fs::rename(&here, &away).unwrap();
    let error = store.list().await.unwrap_err().to_string();
    assert!(error.contains(&here.display().to_string()), "{error}");
    assert_eq!(leases.borrow().as_ref().unwrap().len(), 1);
    std::fs::rename(&away, &here).unwrap();
    write(&dir, "subnets/10.5.0.0-25", r#"{"PublicIP":"192.0.2.2"}"#);
    let seen = wait_for(&mut leases, |leases| leases.len() == 2).await;
    assert!(seen.get(&lease.subnets).is_some());
}

#[tokio::test]
async fn the_follower_ends_with_the_last_handle() {
    let (_dir, store) = store();
    let mut leases = store.leases();
    wait_for(&mut leases, LeaseSet::is_empty).await;
    let clone = store.clone();
    drop(store);
    assert!(leases.has_changed().is_ok());
    drop(clone);
    let ended = async { while leases.changed().await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(60), ended).await.unwrap();
}

#[tokio::test]
async fn writes_compare_first_also_with_what_an_editor_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let directory = Directory::open(dir.path()).unwrap();
    let Written::Done(first) = directory.create("10.5.1.0-24", "1", None).await.unwrap() else {
        panic!("free")
    };
    assert_eq!(directory.create("10.5.1.0-24", "2", None).await.unwrap(), Written::Conflict);
    std::fs::write(dir.path().join("subnets/10.5.1.0-24"), "edited").unwrap();
    assert_eq!(directory.replace(&first, "3", None).await.unwrap(), Written::Conflict);
    assert_eq!(directory.delete(&first).await.unwrap(), Written::Conflict);
    let edited = directory.get("10.5.1.0-24").await.unwrap().unwrap();
    let Written::Done(second) = directory.replace(&edited, "4", None).await.unwrap() else {
        panic!("unchanged")
    };
    assert_eq!((second.created, second.modified > first.modified), (first.created, true));
}

#[tokio::test]
async fn numbers_go_on_growing_when_their_file_is_lost_or_torn() {
    let (dir, store) = store();
    let mut last = 0;
    for (number, torn) in [(1, None), (2, Some("")), (3, Some("12x")), (4, None)] {
        if let Some(torn) = torn {
            write(&dir, "revision", torn);
        }
        let Lease { created, .. } = store.acquire(&claim(number)).await.unwrap();
        assert!(created > last, "{created} after {last}");
        last = created;
    }
}

#[tokio::test]
async fn a_crash_between_two_files_leaves_no_lease_and_one_that_is_half_written_is_not_seen() {
    let (dir, store) = store();
    // The terms were written, the lease was not; and a lease was on its way to its place.
    write(&dir, "terms/10.5.1.0-24", r#"{"created":1,"modified":1,"expires":1}"#);
    write(&dir, "subnets/.new-10.5.2.0-24", r#"{"PublicIP":"192.0"#);
    let listing = store.list().await.unwrap();
    assert!(listing.leases.is_empty() && listing.leases.skipped.is_empty(), "{listing:?}");
    let lease = store.acquire(&claim(1)).await.unwrap();
    assert_eq!(store.list().await.unwrap().leases.len(), 1, "{lease:?}");
}

mod with_any_content {
    use super::*;
    use proptest::prelude::*;

    fn anything() -> impl Strategy<Value = (String, Vec<u8>)> {
        let key = prop_oneof![
            "[0-9]{1,3}\\.[0-9]{1,3}\\.[0-9]{1,3}\\.0-[0-9]{1,2}",
            "10\\.5\\.[1-8]\\.0-24(&fd00:[0-9a-f]{1,4}::-64)?",
            "[a-zA-Z0-9&:-][a-zA-Z0-9&:. -]{0,30}",
        ];
        let value = prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..200),
            "\\{\"PublicIP\":\"[0-9]{1,3}\\.0\\.2\\.1\"(,\"BackendData\":[0-9]{0,3})?\\}"
                .prop_map(String::into_bytes),
        ];
        (key, value)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn a_list_is_what_can_be_read_and_the_rest_has_a_reason(
            entries in proptest::collection::btree_map("[a-z]", anything(), 0..12)
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let (dir, store) = store();
            let mut keys = std::collections::BTreeMap::new();
            for (key, value) in entries.into_values() {
                std::fs::write(dir.path().join("leases/subnets").join(&key), &value).unwrap();
                keys.insert(key, value);
            }
            let leases = runtime.block_on(store.list()).unwrap().leases;
            prop_assert!(leases.len() + leases.skipped.len() <= keys.len());
            for (key, value) in &keys {
                let subnets = Subnets::from_key(key).ok().filter(|subnets| subnets.key() == *key);
                let read = subnets.zip(Attributes::from_json(value).ok());
                match read {
                    Some((subnets, attributes)) => {
                        prop_assert_eq!(&leases.get(&subnets).unwrap().attributes, &attributes);
                    }
                    None => prop_assert!(!leases.skipped[key].is_empty()),
                }
            }
        }
    }

    #[test]
    fn the_lock_is_made_beside_the_leases() {
        let dir = tempfile::tempdir().unwrap();
        let path: &Path = &dir.path().join("lock");
        let first = crate::file::Lock::take(path).unwrap();
        drop(first);
        crate::file::Lock::take(path).unwrap();
    }
}
