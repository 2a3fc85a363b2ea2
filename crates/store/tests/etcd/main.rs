//! The store on a real etcd, with etcdctl as the other hand.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod proxy;
mod server;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use fabric::config::NetworkConfig;
use fabric::lease::{Attributes, Lease, LeaseSet, Subnets};
use proxy::Proxy;
use server::Server;
use store::{
    AcquireError, Claim, EtcdOptions, Kept, KeptState, Secret, Store, StoreError, StoreHealth, Terms,
};
use tokio::net::TcpSocket;
use tokio::sync::watch;

const CONFIG: &str = r#"{"Network":"10.5.0.0/20","SubnetLen":24,"SubnetMin":"10.5.1.0",
    "SubnetMax":"10.5.8.0","Backend":{"Type":"host-gw"}}"#;
const SUBNETS: &str = "/coreos.com/network/subnets";

fn node(number: usize) -> Attributes {
    let json = format!(r#"{{"PublicIP":"192.0.2.{number}","PublicIPv6":null,"BackendType":"host-gw"}}"#);
    Attributes::from_json(json.as_bytes()).unwrap()
}

fn claim(number: usize) -> Claim {
    let config = NetworkConfig::from_json(CONFIG).unwrap();
    Claim { config, attributes: node(number), previous: Subnets::default() }
}

/// How long anything may take, on however busy a machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits for a set of leases, and says what was seen last if it does not come.
async fn wait_for(
    leases: &mut watch::Receiver<Option<LeaseSet>>,
    mut is_so: impl FnMut(&LeaseSet) -> bool,
) -> LeaseSet {
    let mut seen = leases.clone();
    let wait = seen.wait_for(|leases| leases.as_ref().is_some_and(&mut is_so));
    match tokio::time::timeout(PATIENCE, wait).await {
        Ok(leases) => leases.unwrap().clone().unwrap(),
        Err(_) => panic!("waited in vain; last seen: {:?}", *leases.borrow()),
    }
}

/// A task that keeps a lease, ended with the value.
struct Keeping {
    own: watch::Receiver<Kept>,
    attributes: watch::Sender<Attributes>,
    task: tokio::task::JoinHandle<()>,
}

impl Keeping {
    fn start(store: &Store, lease: Lease) -> Keeping {
        let attributes = watch::Sender::new(lease.attributes.clone());
        let (sender, own) =
            watch::channel(Kept { lease: lease.clone(), state: KeptState::Held, expires: None });
        let (store, seen) = (store.clone(), attributes.subscribe());
        let task =
            tokio::spawn(async move { match store.keep(lease, &claim(1).config, seen, sender).await {} });
        Keeping { own, attributes, task }
    }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn a_lease_is_written_as_the_original_writes_it_and_everybody_sees_it() {
    if !server::is_installed() {
        return;
    }
    let etcd = Server::start(&[]);
    let (store, other) = (etcd.store(), etcd.store());
    let missing = store.network_config().await.unwrap_err();
    assert!(matches!(missing, StoreError::NoNetworkConfig { .. }), "{missing}");
    assert!(missing.to_string().contains("/coreos.com/network/config"), "{missing}");
    store.set_network_config(CONFIG).await.unwrap();
    assert_eq!(etcd.etcdctl(&["get", "/coreos.com/network/config", "--print-value-only"]).trim_end(), CONFIG);
    assert_eq!(other.network_config().await.unwrap(), CONFIG);

    let mut leases = other.leases();
    assert_eq!(wait_for(&mut leases, |_| true).await.len(), 0);
    let lease = store.acquire(&claim(1)).await.unwrap();
    let seen = wait_for(&mut leases, |leases| leases.len() == 1).await;
    assert_eq!(**seen.get(&lease.subnets).unwrap(), lease);

    let key = format!("{SUBNETS}/{}", lease.subnets.key());
    let written = etcd.etcdctl(&["get", &key]);
    let expected =
        format!("{key}\n{}\n", r#"{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"host-gw"}"#);
    assert_eq!(written, expected);
    let term = etcd.etcdctl(&["lease", "timetolive", &etcd.lease_of(&key)]);
    assert!(term.contains("granted with TTL(86400s)"), "{term}");

    assert!(store.remove(&lease.subnets).await.unwrap());
    assert!(!store.remove(&lease.subnets).await.unwrap());
    wait_for(&mut leases, LeaseSet::is_empty).await;
    assert!(matches!(*store.health().borrow(), StoreHealth::Reachable { .. }));
}

#[tokio::test]
async fn eight_nodes_racing_for_eight_subnets_all_get_one_and_a_ninth_is_refused() {
    if !server::is_installed() {
        return;
    }
    let etcd = Server::start(&[]);
    for round in 0..5 {
        let racers: Vec<_> = (1..=8)
            .map(|number| {
                let store = etcd.store();
                tokio::spawn(async move { store.acquire(&claim(number)).await.unwrap().subnets })
            })
            .collect();
        let mut won = BTreeSet::new();
        for racer in racers {
            won.insert(racer.await.unwrap());
        }
        assert_eq!(won.len(), 8, "round {round}: {won:?}");
        let ninth = etcd.store().acquire(&claim(9)).await.unwrap_err();
        assert!(matches!(ninth, AcquireError::NoneFree(_)), "{ninth}");
        etcd.etcdctl(&["del", "--prefix", SUBNETS]);
    }
}

#[tokio::test]
async fn a_revoked_lease_comes_back_with_the_same_subnets() {
    if !server::is_installed() {
        return;
    }
    let etcd = Server::start(&[]);
    let store = etcd.store();
    let lease = store.acquire(&claim(1)).await.unwrap();
    let key = format!("{SUBNETS}/{}", lease.subnets.key());
    let mut keeping = Keeping::start(&store, lease.clone());
    for _ in 0..3 {
        wait_for(&mut store.leases(), |leases| leases.len() == 1).await;
        let created = keeping.own.borrow_and_update().lease.created;
        etcd.etcdctl(&["lease", "revoke", &etcd.lease_of(&key)]);
        let again = keeping.own.wait_for(|kept| kept.lease.created > created);
        let again = tokio::time::timeout(PATIENCE, again).await.unwrap().unwrap().clone();
        assert_eq!((again.lease.subnets, again.state), (lease.subnets, KeptState::Held));
        assert_ne!(etcd.lease_of(&key), "0");
    }
    // Changed attributes are published, by compare-and-swap on what is there.
    keeping.attributes.send_replace(node(77));
    wait_for(&mut store.leases(), |leases| leases.iter().all(|lease| lease.attributes == node(77))).await;
    // And somebody else's are left alone.
    etcd.etcdctl(&["put", &key, &node(2).to_json()]);
    let taken = keeping.own.wait_for(|kept| kept.state == KeptState::TakenByAnother { by: node(2) });
    tokio::time::timeout(PATIENCE, taken).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_lease_outlives_its_term_while_it_is_kept_and_goes_when_it_is_not() {
    if !server::is_installed() {
        return;
    }
    let etcd = Server::start(&[]);
    // A busy machine may be six seconds late with a renewal.
    let terms = Terms { ttl: Duration::from_secs(8), renew_margin: Duration::from_secs(6) };
    let store = etcd.store().with_terms(terms);
    let lease = store.acquire(&claim(1)).await.unwrap();
    let key = format!("{SUBNETS}/{}", lease.subnets.key());
    let first = etcd.lease_of(&key);
    let keeping = Keeping::start(&store, lease);
    let mut leases = store.leases();
    wait_for(&mut leases, |leases| leases.len() == 1).await;
    leases.mark_unchanged();
    let deadline = Instant::now() + Duration::from_secs(17);
    while Instant::now() < deadline {
        assert!(!leases.has_changed().unwrap(), "a renewal is not to be seen: {:?}", *leases.borrow());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_ne!(etcd.lease_of(&key), first);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let alive = etcd.etcdctl(&["lease", "list"]);
        // Below a heading. For a moment there is the next one as well.
        if alive.lines().count() == 2 {
            break;
        }
        assert!(Instant::now() < deadline, "never only one is alive: {alive}");
    }
    drop(keeping);
    wait_for(&mut leases, LeaseSet::is_empty).await;
}

#[tokio::test]
async fn a_reservation_stays_one_through_use_and_change() {
    if !server::is_installed() {
        return;
    }
    let etcd = Server::start(&[]);
    let key = format!("{SUBNETS}/10.5.3.0-24");
    etcd.etcdctl(&["put", &key, r#"{"PublicIP":"192.0.2.1"}"#]);
    let store = etcd.store();
    let lease = store.acquire(&claim(1)).await.unwrap();
    assert_eq!(lease.subnets.key(), "10.5.3.0-24");
    let keeping = Keeping::start(&store, lease.clone());
    keeping.attributes.send_replace(node(77));
    wait_for(&mut store.leases(), |leases| leases.iter().any(|lease| lease.attributes == node(77))).await;
    assert_eq!(etcd.lease_of(&key), "0");
    let listing = store.list().await.unwrap();
    assert_eq!(listing.reservations, BTreeSet::from([lease.subnets]));
}

#[tokio::test]
async fn garbage_among_the_leases_costs_only_itself() {
    if !server::is_installed() {
        return;
    }
    let etcd = Server::start(&[]);
    etcd.etcdctl(&["put", &format!("{SUBNETS}-old/10.5.9.0-24"), "not ours"]);
    etcd.etcdctl(&["put", &format!("{SUBNETS}/10.5.1.0-24"), &node(1).to_json()]);
    etcd.etcdctl(&["put", &format!("{SUBNETS}/10.5.2.0-24"), "\u{1}\u{ff}"]);
    let store = etcd.store();
    let mut leases = store.leases();
    wait_for(&mut leases, |leases| (leases.len(), leases.skipped.len()) == (1, 1)).await;
    etcd.etcdctl(&["put", &format!("{SUBNETS}/hello/world"), "{}"]);
    etcd.etcdctl(&["put", &format!("{SUBNETS}/10.5.4.0-24"), "null"]);
    etcd.etcdctl(&["put", &format!("{SUBNETS}/10.5.3.0-24"), &node(3).to_json()]);
    let seen = wait_for(&mut leases, |leases| leases.len() == 2).await;
    let skipped: Vec<&String> = seen.skipped.keys().collect();
    assert_eq!(skipped, ["10.5.2.0-24", "10.5.4.0-24", "hello/world"]);
}

#[tokio::test]
async fn an_etcd_that_is_killed_and_comes_back_costs_no_peer() {
    if !server::is_installed() {
        return;
    }
    let mut etcd = Server::start(&[]);
    let store = etcd.store();
    let lease = store.acquire(&claim(1)).await.unwrap();
    let _keeping = Keeping::start(&store, lease);
    etcd.etcdctl(&["put", &format!("{SUBNETS}/10.5.0.0-25"), &node(9).to_json()]);
    let mut leases = store.leases();
    wait_for(&mut leases, |leases| leases.len() == 2).await;
    leases.mark_unchanged();
    let mut health = store.health();
    for round in 0..2 {
        etcd.kill();
        let away = health.wait_for(|health| matches!(health, StoreHealth::Unreachable { .. }));
        tokio::time::timeout(PATIENCE, away).await.unwrap().unwrap();
        let error = store.network_config().await.unwrap_err().to_string();
        assert!(error.contains(&etcd.endpoint()) && error.contains("is etcd running"), "{error}");
        assert!(!leases.has_changed().unwrap(), "nobody goes while it is away");
        etcd.run();
        etcd.etcdctl(&["put", &format!("{SUBNETS}/10.5.0.{}-25", 128 * round), &node(round).to_json()]);
        wait_for(&mut leases, |leases| {
            assert!(leases.len() >= 2);
            leases.iter().any(|lease| lease.attributes == node(round))
        })
        .await;
        leases.mark_unchanged();
        let back = health.wait_for(|health| matches!(health, StoreHealth::Reachable { .. }));
        tokio::time::timeout(PATIENCE, back).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn an_etcd_that_was_set_back_is_listed_again_and_our_lease_is_put_into_it() {
    if !server::is_installed() {
        return;
    }
    let mut etcd = Server::start(&[]);
    let store = etcd.store();
    for number in [6, 7, 8] {
        etcd.etcdctl(&["put", &format!("{SUBNETS}/10.6.{number}.0-24"), &node(number).to_json()]);
    }
    let lease = store.acquire(&claim(1)).await.unwrap();
    let _keeping = Keeping::start(&store, lease.clone());
    let mut leases = store.leases();
    wait_for(&mut leases, |leases| leases.len() == 4).await;
    etcd.kill();
    std::fs::remove_dir_all(etcd.path("data")).unwrap();
    etcd.run();
    let seen = wait_for(&mut leases, |leases| leases.len() == 1).await;
    assert_eq!(seen.get(&lease.subnets).unwrap().attributes, node(1));
}

#[tokio::test]
async fn what_was_compacted_away_during_an_outage_is_listed_again() {
    if !server::is_installed() {
        return;
    }
    let etcd = Server::start(&[]);
    let wire = Proxy::to(etcd.port()).await;
    let options = EtcdOptions { endpoints: vec![format!("http://{}", wire.address)], ..etcd.options() };
    let store = Store::etcd(options).unwrap();
    for number in [1, 2] {
        etcd.etcdctl(&["put", &format!("{SUBNETS}/10.5.{number}.0-24"), &node(number).to_json()]);
    }
    let mut leases = store.leases();
    wait_for(&mut leases, |leases| leases.len() == 2).await;
    wire.cut();
    etcd.etcdctl(&["del", &format!("{SUBNETS}/10.5.1.0-24")]);
    etcd.etcdctl(&["put", &format!("{SUBNETS}/10.5.3.0-24"), &node(3).to_json()]);
    let now: serde_json::Value =
        serde_json::from_str(&etcd.etcdctl(&["get", "nothing", "-w", "json"])).unwrap();
    etcd.etcdctl(&["compact", &now["header"]["revision"].to_string()]);
    assert_eq!(leases.borrow().as_ref().unwrap().len(), 2);
    wire.mend();
    let seen = wait_for(&mut leases, |leases| {
        assert!(!leases.is_empty(), "never empty");
        leases.iter().any(|lease| lease.attributes == node(3))
    })
    .await;
    assert_eq!(seen.len(), 2);
}

#[tokio::test]
async fn a_connection_that_has_fallen_silent_is_noticed() {
    if !server::is_installed() {
        return;
    }
    let etcd = Server::start(&[]);
    let wire = Proxy::to(etcd.port()).await;
    let options = EtcdOptions { endpoints: vec![format!("http://{}", wire.address)], ..etcd.options() };
    let store = Store::etcd(options).unwrap();
    let mut leases = store.leases();
    wait_for(&mut leases, LeaseSet::is_empty).await;
    wire.silence();
    etcd.etcdctl(&["put", &format!("{SUBNETS}/10.5.3.0-24"), &node(3).to_json()]);
    let silent_since = Instant::now();
    wait_for(&mut leases, |leases| leases.len() == 1).await;
    assert!(silent_since.elapsed() < Duration::from_secs(60), "{:?}", silent_since.elapsed());
    assert!(wire.connections() > 1);
}

#[tokio::test]
async fn endpoints_that_are_down_or_dumb_do_not_block_the_others() {
    if !server::is_installed() {
        return;
    }
    let etcd = Server::start(&[]);
    let dumb = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    dumb.set_nonblocking(true).unwrap();
    // A port that is taken, so that it becomes nobody else's, and on which nobody listens.
    let closed = TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let endpoints = vec![
        format!("http://{}", closed.local_addr().unwrap()),
        "http://does-not-exist.invalid:2379".into(),
        format!("http://{}", dumb.local_addr().unwrap()),
        etcd.endpoint().replace("127.0.0.1", "localhost"),
    ];
    let store = Store::etcd(EtcdOptions { endpoints, ..EtcdOptions::default() }).unwrap();
    let written = store.set_network_config(CONFIG);
    tokio::time::timeout(PATIENCE, written).await.expect("the others are asked in the end").unwrap();
    let asked = || std::iter::from_fn(|| dumb.accept().ok()).count();
    assert_ne!(asked(), 0, "in order");
    store.network_config().await.unwrap();
    assert_eq!(asked(), 0, "the one that answered is asked first");
}

#[tokio::test]
async fn ten_thousand_leases_are_read_in_pages_and_followed_in_one_piece() {
    if !server::is_installed() {
        return;
    }
    let etcd = Server::start(&["--max-txn-ops=20000", "--max-request-bytes=4194304"]);
    let wire = Proxy::to(etcd.port()).await;
    let options = EtcdOptions { endpoints: vec![format!("http://{}", wire.address)], ..etcd.options() };
    let store = Store::etcd(options).unwrap();
    let mut leases = store.leases();
    wait_for(&mut leases, LeaseSet::is_empty).await;
    // Half a kilobyte each, written while nobody looks: the watch catches up with one message of
    // more than the four megabytes that gRPC clients take by themselves.
    wire.cut();
    let padding = "x".repeat(450);
    for part in 0..4 {
        let mut text = String::from("\n");
        for number in part * 2500..(part + 1) * 2500 {
            let (third, fourth) = (number / 256, number % 256);
            let value =
                format!(r#"{{\"PublicIP\":\"10.{third}.{fourth}.1\",\"BackendData\":\"{padding}\"}}"#);
            text.push_str(&format!("put {SUBNETS}/100.{third}.{fourth}.0-24 \"{value}\"\n"));
        }
        text.push_str("\n\n");
        etcd.transact(&text);
    }
    wire.mend();
    wait_for(&mut leases, |leases| leases.len() == 10_000).await;
    assert_eq!(store.list().await.unwrap().leases, leases.borrow().clone().unwrap());
}

#[tokio::test]
async fn tls_with_an_authority_alone_and_with_client_certificates() {
    if !server::is_installed() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    write_certificates(dir.path());
    let at = |name: &str| dir.path().join(name);
    let (cert, key, ca) = (at("server.pem"), at("server.key"), at("ca.pem"));
    let files = [format!("--cert-file={}", cert.display()), format!("--key-file={}", key.display())];
    let trusted = format!("--trusted-ca-file={}", ca.display());

    let open = Server::start_in(tempfile::tempdir().unwrap(), &[&files[0], &files[1]], true);
    let with_ca = EtcdOptions { ca_file: Some(ca.clone()), ..open.options() };
    Store::etcd(with_ca.clone()).unwrap().set_network_config(CONFIG).await.unwrap();
    // By name as well, and the follower too.
    let by_name = vec![open.endpoint().replace("127.0.0.1", "localhost")];
    let store = Store::etcd(EtcdOptions { endpoints: by_name, ..with_ca.clone() }).unwrap();
    assert_eq!(store.network_config().await.unwrap(), CONFIG);
    wait_for(&mut store.leases(), LeaseSet::is_empty).await;

    let error = async |options: EtcdOptions| match Store::etcd(options) {
        Ok(store) => store.network_config().await.unwrap_err().to_string(),
        Err(error) => error.to_string(),
    };
    let other_ca = EtcdOptions { ca_file: Some(at("other-ca.pem")), ..open.options() };
    let text = error(other_ca).await;
    assert!(text.contains("--etcd-cafile"), "{text}");
    let plain = EtcdOptions { endpoints: vec![open.endpoint().replace("https", "http")], ..with_ca };
    let text = error(plain).await;
    assert!(text.contains("use https://"), "{text}");

    let guarded = [files[0].as_str(), &files[1], "--client-cert-auth", &trusted];
    let closed = Server::start_in(tempfile::tempdir().unwrap(), &guarded, true);
    let without = EtcdOptions { ca_file: Some(ca.clone()), ..closed.options() };
    let text = error(without.clone()).await;
    assert!(text.contains("--etcd-certfile"), "{text}");
    let with = EtcdOptions { cert_file: Some(at("client.pem")), key_file: Some(at("client.key")), ..without };
    Store::etcd(with.clone()).unwrap().set_network_config(CONFIG).await.unwrap();
    let text = error(EtcdOptions { key_file: None, ..with }).await;
    assert!(text.contains("without its private key"), "{text}");

    let speaks_no_tls = Server::start(&[]);
    let endpoints = vec![speaks_no_tls.endpoint().replace("http", "https")];
    let text = error(EtcdOptions { endpoints, ca_file: Some(ca), ..EtcdOptions::default() }).await;
    assert!(text.contains("use http://"), "{text}");
}

/// An authority, certificates of a server and of a client, and an authority that signed neither.
fn write_certificates(dir: &std::path::Path) {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let write = |name: &str, text: String| std::fs::write(dir.join(name), text).unwrap();
    let authority = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        write(&format!("{name}.pem"), params.self_signed(&key).unwrap().pem());
        Issuer::new(params, key)
    };
    authority("other-ca");
    let ca = authority("ca");
    for (name, names) in [("server", vec!["localhost".into(), "127.0.0.1".into()]), ("client", vec![])] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        write(&format!("{name}.pem"), params.signed_by(&key, &ca).unwrap().pem());
        write(&format!("{name}.key"), key.serialize_pem());
    }
}

#[tokio::test]
async fn a_login_is_made_renewed_and_explained_when_it_is_refused() {
    if !server::is_installed() {
        return;
    }
    let mut etcd = Server::start(&[]);
    let login = |name: &str, password: &str| EtcdOptions {
        username: Some(name.into()),
        password: Some(Secret(password.into())),
        ..etcd.options()
    };
    let (root, guest) = (login("root", "s3cret"), login("guest", "gu3st"));
    let wrong = login("root", "wr0ng");
    // A login where none is wanted is no error.
    Store::etcd(root.clone()).unwrap().set_network_config(CONFIG).await.unwrap();
    etcd.etcdctl(&["user", "add", "root:s3cret"]);
    etcd.etcdctl(&["user", "grant-role", "root", "root"]);
    etcd.etcdctl(&["user", "add", "guest:gu3st"]);
    let early = Store::etcd(root.clone()).unwrap();
    early.network_config().await.unwrap();
    etcd.etcdctl(&["auth", "enable"]);
    assert_eq!(early.network_config().await.unwrap(), CONFIG, "logged in when etcd began to want it");

    let store = Store::etcd(root).unwrap();
    let lease = store.acquire(&claim(1)).await.unwrap();
    let mut leases = store.leases();
    wait_for(&mut leases, |leases| leases.len() == 1).await;
    // Its tokens do not survive a restart.
    etcd.kill();
    etcd.run();
    assert_eq!(store.network_config().await.unwrap(), CONFIG);
    assert!(store.remove(&lease.subnets).await.unwrap());
    wait_for(&mut leases, LeaseSet::is_empty).await;

    let error = async |options: EtcdOptions| {
        let store = Store::etcd(options).unwrap();
        let text = store.network_config().await.unwrap_err().to_string();
        assert!(!text.contains("wr0ng") && !text.contains("gu3st"), "{text}");
        assert!(!format!("{store:?}").contains("wr0ng"));
        text
    };
    let text = error(wrong).await;
    assert!(text.contains("check --etcd-username and --etcd-password"), "{text}");
    let text = error(guest).await;
    assert!(text.contains("grant the user read and write"), "{text}");
    let text = error(etcd.options()).await;
    assert!(text.contains("etcd wants a user"), "{text}");
}
