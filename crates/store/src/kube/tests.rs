//! The whole store against a server that says what the test has it say.

use std::time::Duration;

use fabric::config::NetworkConfig;
use fabric::lease::{Attributes, Lease, LeaseSet, Subnets};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::mock::{Mock, PATIENCE, PREFIX, Watcher, bare, node};
use crate::{AcquireError, Claim, Kept, KeptState, KubeEvent, Store, StoreError};

const NETWORK: &str = r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}"#;

type Leases = watch::Receiver<Option<LeaseSet>>;

fn claim() -> Claim {
    Claim {
        config: NetworkConfig::from_json(NETWORK).unwrap(),
        attributes: attributes("192.0.2.1"),
        previous: Subnets::default(),
    }
}

fn attributes(public: &str) -> Attributes {
    let json = format!(r#"{{"PublicIP":"{public}","BackendType":"vxlan","BackendData":{{"VNI":1}}}}"#);
    Attributes::from_json(json.as_bytes()).unwrap()
}

/// A store that follows, its mock, and the watch; nodes 1 and 2 are there.
async fn followed() -> (Store, Mock, Leases, Watcher) {
    let mut mock = Mock::start().await;
    let store = Store::kube(mock.options()).unwrap();
    let mut leases = store.leases();
    let mut watcher = mock.expect("GET", "/api/v1/nodes?watch=1").await.watch();
    watcher.say("ADDED", &node(1)).await;
    watcher.say("ADDED", &node(2)).await;
    assert!(leases.borrow().is_none(), "not all have come");
    watcher.complete(10).await;
    assert_eq!(next(&mut leases).await, ["10.0.1.0/24", "10.0.2.0/24"]);
    (store, mock, leases, watcher)
}

/// Lets time pass for everybody but the network.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

/// The leases that are published next.
async fn next(leases: &mut Leases) -> Vec<String> {
    tokio::time::timeout(PATIENCE, leases.changed()).await.expect("nothing is published").unwrap();
    let set = leases.borrow_and_update().clone().unwrap();
    set.iter().map(|lease| lease.subnets.to_string()).collect()
}

#[tokio::test]
async fn leases_follow_the_nodes_and_nothing_else_of_them() {
    let (store, _mock, mut leases, mut watcher) = followed().await;
    let mut beat = node(2);
    beat["metadata"]["resourceVersion"] = "11".into();
    beat["status"]["conditions"] = json!([{ "type": "Ready" }]);
    watcher.say("MODIFIED", &beat).await;
    watcher.say("ADDED", &bare(4)).await;
    watcher.say("ADDED", &node(3)).await;
    assert_eq!(
        next(&mut leases).await.len(),
        3,
        "neither a heartbeat nor a node without flannel is published"
    );
    watcher.say("DELETED", &node(2)).await;
    assert_eq!(next(&mut leases).await, ["10.0.1.0/24", "10.0.3.0/24"]);
    let mut torn = node(3);
    torn["metadata"]["annotations"][format!("{PREFIX}public-ip")] = "here".into();
    watcher.say("MODIFIED", &torn).await;
    assert_eq!(next(&mut leases).await, ["10.0.1.0/24"]);
    assert!(leases.borrow().as_ref().unwrap().skipped["n3"].contains("public-ip"));
    assert!(matches!(*store.health().borrow(), crate::StoreHealth::Reachable { .. }));
    drop((store, leases));
    watcher.closed().await;
}

#[tokio::test]
async fn a_server_without_streaming_lists_is_read_page_by_page() {
    let mut mock = Mock::start().await;
    let store = Store::kube(mock.options()).unwrap();
    let mut leases = store.leases();
    let asked = mock.expect("GET", "/api/v1/nodes?watch=1").await;
    assert!(
        asked.path.contains("sendInitialEvents=true&resourceVersionMatch=NotOlderThan"),
        "{}",
        asked.path
    );
    asked.refuse(422, r#"{"message":"sendInitialEvents is forbidden for watch"}"#);
    let page = |nodes: &[Value], next: &str| {
        json!({ "metadata": { "resourceVersion": "20", "continue": next }, "items": nodes }).to_string()
    };
    mock.expect("GET", "/api/v1/nodes?limit=500&resourceVersion=0")
        .await
        .answer(page(&[node(1), node(2)], "a+b="));
    mock.expect("GET", "/api/v1/nodes?limit=500&continue=a%2Bb%3D").await.answer(page(&[node(3)], ""));
    assert_eq!(next(&mut leases).await.len(), 3);
    let asked = mock.expect("GET", "/api/v1/nodes?watch=1").await;
    assert!(asked.path.ends_with("&resourceVersion=20"), "{}", asked.path);
    let mut watcher = asked.watch();
    watcher.say("DELETED", &node(1)).await;
    assert_eq!(next(&mut leases).await.len(), 2);
}

#[tokio::test]
async fn a_server_whose_etcd_is_too_old_for_streaming_lists_is_read_page_by_page_as_well() {
    let mut mock = Mock::start().await;
    let store = Store::kube(mock.options()).unwrap();
    let mut leases = store.leases();
    let mut watcher = mock.expect("GET", "/api/v1/nodes?watch=1").await.watch();
    let sorry = json!({ "kind": "Status", "code": 500, "message": "RequestWatchProgress is disabled" });
    watcher.say("ERROR", &sorry).await;
    let list = json!({ "metadata": { "resourceVersion": "20" }, "items": [node(1)] }).to_string();
    mock.expect("GET", "/api/v1/nodes?limit=500").await.answer(list);
    assert_eq!(next(&mut leases).await, ["10.0.1.0/24"]);
    mock.expect("GET", "/api/v1/nodes?watch=1").await.refuse(410, "{}");
    mock.expect("GET", "/api/v1/nodes?watch=1").await.refuse(422, "{}");
    let not_older = "/api/v1/nodes?limit=500&resourceVersion=20&resourceVersionMatch=NotOlderThan";
    mock.expect("GET", not_older).await.refuse(504, r#"{"message":"Too large resource version"}"#);
    mock.expect("GET", "/api/v1/nodes?watch=1").await.refuse(422, "{}");
    mock.expect("GET", "/api/v1/nodes?limit=500&resourceVersion=0").await;
}

#[tokio::test]
async fn a_watch_that_ends_or_breaks_goes_on_where_it_was() {
    let (_store, mut mock, mut leases, mut watcher) = followed().await;
    let bookmark = json!({ "metadata": { "resourceVersion": "30" }, "spec": {} });
    watcher.say("BOOKMARK", &bookmark).await;
    drop(watcher);
    let asked = mock.expect("GET", "/api/v1/nodes?watch=1").await;
    assert!(asked.path.ends_with("&resourceVersion=30"), "{}", asked.path);
    let mut watcher = asked.watch();
    let mut third = node(3);
    third["metadata"]["resourceVersion"] = "31".into();
    watcher.say("ADDED", &third).await;
    assert_eq!(next(&mut leases).await.len(), 3);
    mock.cut();
    let asked = mock.expect("GET", "/api/v1/nodes?watch=1").await;
    assert!(asked.path.ends_with("&resourceVersion=31"), "{}", asked.path);
    assert!(!leases.has_changed().unwrap(), "nothing is gone");
}

#[tokio::test]
async fn what_was_missed_is_listed_again_and_nothing_goes_before_that_is_complete() {
    let (_store, mut mock, mut leases, mut watcher) = followed().await;
    let expired = json!({ "kind": "Status", "code": 410, "message": "too old resource version" });
    watcher.say("ERROR", &expired).await;
    let mut watcher = mock.expect("GET", "/api/v1/nodes?watch=1").await.watch();
    watcher.say("ADDED", &node(2)).await;
    watcher.say("ADDED", &node(5)).await;
    watcher.complete(40).await;
    assert_eq!(next(&mut leases).await, ["10.0.2.0/24", "10.0.5.0/24"]);
    drop(watcher);
    mock.expect("GET", "/api/v1/nodes?watch=1").await.refuse(410, r#"{"message":"gone"}"#);
    let asked = mock.expect("GET", "/api/v1/nodes?watch=1").await;
    assert!(asked.path.contains("sendInitialEvents"), "{}", asked.path);
    let mut watcher = asked.watch();
    watcher.say("ADDED", &node(5)).await;
    assert!(!leases.has_changed().unwrap());
    watcher.complete(41).await;
    assert_eq!(next(&mut leases).await, ["10.0.5.0/24"]);
}

#[tokio::test]
async fn a_server_that_asks_for_patience_is_asked_again_when_it_said() {
    let mut mock = Mock::start().await;
    let store = Store::kube(mock.options()).unwrap();
    let acquired = tokio::spawn(async move { (store.acquire(&claim()).await, store) });
    mock.expect("GET", "/api/v1/nodes/n1").await.refuse_for(
        429,
        r#"{"message":"too many requests"}"#,
        Some(1),
    );
    let began = tokio::time::Instant::now();
    let asked = mock.expect("GET", "/api/v1/nodes/n1").await;
    assert!(began.elapsed() >= Duration::from_millis(900), "{:?}", began.elapsed());
    asked.answer(node(1).to_string());
    let (lease, store) = acquired.await.unwrap();
    assert_eq!(lease.unwrap().subnets.to_string(), "10.0.1.0/24");
    let _leases = store.leases();
    mock.expect("GET", "/api/v1/nodes?watch=1").await.refuse_for(429, "", Some(1));
    let began = tokio::time::Instant::now();
    mock.expect("GET", "/api/v1/nodes?watch=1").await;
    assert!(began.elapsed() >= Duration::from_millis(900), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_server_that_hangs_costs_a_bounded_time_and_is_named() {
    let mut mock = Mock::start().await;
    let store = Store::kube(mock.options()).unwrap();
    let server = mock.address;
    let acquired = tokio::spawn(async move { store.acquire(&claim()).await });
    let _unanswered = mock.next().await;
    tokio::time::pause();
    let error = acquired.await.unwrap().unwrap_err().to_string();
    assert!(error.contains(&format!("http://{server} does not answer: no answer within 10s")), "{error}");
}

#[tokio::test]
async fn a_connection_that_is_dead_is_not_waited_for_longer_than_needed() {
    let mut mock = Mock::start().await;
    let store = Store::kube(mock.options()).unwrap();
    let acquired = tokio::spawn(async move { store.acquire(&claim()).await });
    mock.expect("GET", "/api/v1/nodes/n1").await.answer(bare(1).to_string());
    let _unanswered = mock.expect("PATCH", "/api/v1/nodes/n1/status").await;
    pass(Duration::from_secs(5)).await;
    mock.expect("PATCH", "/api/v1/nodes/n1/status").await.answer(node(1).to_string());
    assert_eq!(acquired.await.unwrap().unwrap().subnets.to_string(), "10.0.1.0/24");
}

#[tokio::test]
async fn a_watch_that_falls_silent_is_given_up_if_the_server_does_not_answer_either() {
    let (_store, mut mock, leases, _watcher) = followed().await;
    pass(Duration::from_secs(71)).await;
    let probe = mock.expect("GET", "/api/v1/nodes/n1").await;
    pass(Duration::from_secs(11)).await;
    drop(probe);
    let asked = mock.expect("GET", "/api/v1/nodes?watch=1").await;
    assert!(asked.path.ends_with("&resourceVersion=10"), "{}", asked.path);
    assert!(!leases.has_changed().unwrap(), "nothing is gone");
}

#[tokio::test]
async fn a_token_that_was_replaced_is_used_at_once() {
    let mut mock = Mock::start().await;
    let store = Store::kube(mock.options()).unwrap();
    let acquired = tokio::spawn(async move { store.acquire(&claim()).await });
    let asked = mock.next().await;
    assert_eq!(asked.token, "Bearer first");
    mock.write("token", "second\n");
    asked.answer(bare(1).to_string());
    let asked = mock.expect("PATCH", "/api/v1/nodes/n1/status").await;
    assert_eq!(asked.token, "Bearer second");
    asked.refuse(401, r#"{"message":"Unauthorized"}"#);
    mock.write("token", "third\n");
    let asked = mock.expect("PATCH", "/api/v1/nodes/n1/status").await;
    assert_eq!(asked.token, "Bearer third", "a refusal may be about a token that was just replaced");
    asked.refuse(401, r#"{"message":"Unauthorized"}"#);
    let error = acquired.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("401: Unauthorized") && error.contains("has expired"), "{error}");
}

#[tokio::test]
async fn a_node_without_annotations_is_given_ours() {
    let mut mock = Mock::start().await;
    let store = Store::kube(mock.options()).unwrap();
    let acquired = tokio::spawn(async move { store.acquire(&claim()).await });
    mock.expect("GET", "/api/v1/nodes/n1").await.answer(bare(1).to_string());
    let asked = mock.expect("PATCH", "/api/v1/nodes/n1/status").await;
    let wanted = json!({ "metadata": { "annotations": {
        format!("{PREFIX}kube-subnet-manager"): "true",
        format!("{PREFIX}backend-type"): "vxlan",
        format!("{PREFIX}backend-data"): r#"{"VNI":1}"#,
        format!("{PREFIX}public-ip"): "192.0.2.1",
    }}});
    assert_eq!(asked.body, wanted);
    asked.answer(node(1).to_string());
    let lease = acquired.await.unwrap().unwrap();
    assert_eq!((lease.subnets.to_string().as_str(), lease.created), ("10.0.1.0/24", 1_767_225_601));
}

#[tokio::test]
async fn what_keeps_a_node_from_a_lease_is_named_with_the_remedy_and_nothing_is_published() {
    let mut mock = Mock::start().await;
    let mut options = mock.options();
    options.annotation_prefix = "example.org/net".to_owned();
    let store = Store::kube(options).unwrap();
    let no_cidr = json!({ "metadata": { "name": "n1" }, "spec": {} });
    let with = |cidrs: &[&str]| json!({ "metadata": { "name": "n1" }, "spec": { "podCIDRs": cidrs } });
    for (node, said) in [
        (
            Some(no_cidr),
            "node \"n1\": pod cidr not assigned: its spec.podCIDR is empty; let the controller-manager",
        ),
        (Some(with(&["fd00::/64"])), "of a family that net-conf.json does not enable"),
        (
            Some(with(&["192.168.0.0/24"])),
            "net config doesn't contain its PodCIDR 192.168.0.0/24; make the Network",
        ),
        (Some(with(&["a"])), "podCIDR \"a\" cannot be read"),
        (None, "there is no Node of that name; the kubelet makes it"),
    ] {
        let asking = store.clone();
        let acquired = tokio::spawn(async move { asking.acquire(&claim()).await });
        let asked = mock.expect("GET", "/api/v1/nodes/n1").await;
        match &node {
            Some(node) => asked.answer(node.to_string()),
            None => asked.refuse(404, r#"{"message":"not found"}"#),
        }
        let error = acquired.await.unwrap().unwrap_err();
        assert_eq!(node.is_some(), matches!(error, AcquireError::NoPodCidr { .. }));
        assert!(error.to_string().contains(said), "{error}");
    }
    assert!(mock.is_quiet());
}

/// A node that keeps its lease.
struct Keeping {
    store: Store,
    mock: Mock,
    watcher: Watcher,
    attributes: watch::Sender<Attributes>,
    kept: watch::Receiver<Kept>,
}

async fn keeping() -> Keeping {
    let (store, mut mock, _, watcher) = followed().await;
    let asking = store.clone();
    let acquired = tokio::spawn(async move { asking.acquire(&claim()).await });
    mock.expect("GET", "/api/v1/nodes/n1").await.answer(node(1).to_string());
    let lease: Lease = acquired.await.unwrap().unwrap();
    let attributes = watch::Sender::new(attributes("192.0.2.1"));
    let (own, kept) = watch::channel(Kept { lease: lease.clone(), state: KeptState::Held, expires: None });
    let (keeper, wanted) = (store.clone(), attributes.subscribe());
    tokio::spawn(async move { keeper.keep(lease, &claim().config, wanted, own).await });
    Keeping { store, mock, watcher, attributes, kept }
}

impl Keeping {
    async fn until(&mut self, wanted: impl Fn(&Kept) -> bool) -> Kept {
        let found = self.kept.wait_for(|kept| wanted(kept));
        tokio::time::timeout(PATIENCE, found).await.expect("it never stands so").unwrap().clone()
    }
}

#[tokio::test]
async fn annotations_are_written_again_when_they_change_or_somebody_takes_them_away() {
    let mut keeping = keeping().await;
    keeping.attributes.send_replace(attributes("192.0.2.9"));
    let asked = keeping.mock.expect("PATCH", "/api/v1/nodes/n1/status").await;
    assert_eq!(
        asked.body,
        json!({ "metadata": { "annotations": { format!("{PREFIX}public-ip"): "192.0.2.9" } } })
    );
    let mut moved = node(1);
    moved["metadata"]["annotations"][format!("{PREFIX}public-ip")] = "192.0.2.9".into();
    asked.answer(moved.to_string());
    let kept = keeping.until(|kept| kept.lease.attributes == attributes("192.0.2.9")).await;
    assert_eq!(kept.state, KeptState::Held);
    keeping.watcher.say("MODIFIED", &bare(1)).await;
    let asked = keeping.mock.expect("PATCH", "/api/v1/nodes/n1/status").await;
    assert_eq!(asked.body["metadata"]["annotations"].as_object().unwrap().len(), 4);
    asked.answer(moved.to_string());
}

#[tokio::test]
async fn a_node_that_is_deleted_and_created_again_gets_its_lease_back_where_it_is_now() {
    let mut keeping = keeping().await;
    keeping.watcher.say("DELETED", &node(1)).await;
    keeping.mock.expect("GET", "/api/v1/nodes/n1").await.refuse(404, "{}");
    keeping
        .until(|kept| matches!(&kept.state, KeptState::Lost { reason } if reason.contains("deleted")))
        .await;
    let mut again = bare(1);
    again["metadata"]["uid"] = "another".into();
    again["spec"] = json!({});
    keeping.watcher.say("ADDED", &again).await;
    let kept = keeping
        .until(|kept| matches!(&kept.state, KeptState::Lost { reason } if reason.contains("not assigned")))
        .await;
    assert_eq!(kept.lease.subnets.to_string(), "10.0.1.0/24", "the pods of before are still there");
    again["spec"]["podCIDR"] = "10.0.77.0/24".into();
    keeping.watcher.say("MODIFIED", &again).await;
    keeping.mock.expect("PATCH", "/api/v1/nodes/n1/status").await.answer(again.to_string());
    let kept = keeping.until(|kept| kept.state == KeptState::Held).await;
    assert_eq!(kept.lease.subnets.to_string(), "10.0.77.0/24");
}

#[tokio::test]
async fn a_podcidr_that_an_older_node_has_is_not_ours() {
    let mut keeping = keeping().await;
    let mut older = node(7);
    older["metadata"]["creationTimestamp"] = "2020-01-01T00:00:00Z".into();
    older["spec"] = node(1)["spec"].clone();
    keeping.watcher.say("ADDED", &older).await;
    let kept = keeping.until(|kept| matches!(kept.state, KeptState::TakenByAnother { .. })).await;
    assert_eq!(kept.state, KeptState::TakenByAnother { by: attributes("192.0.2.7") });
    assert!(keeping.store.leases().borrow().as_ref().unwrap().skipped["n1"].contains("older node n7"));
    keeping.watcher.say("DELETED", &older).await;
    keeping.until(|kept| kept.state == KeptState::Held).await;
}

#[tokio::test]
async fn the_node_of_a_pod_is_asked_for_once() {
    let mut mock = Mock::start().await;
    let mut options = mock.options();
    options.node_name = String::new();
    let error = Store::kube(options.clone()).unwrap_err().to_string();
    assert!(error.contains("NODE_NAME"), "{error}");
    (options.pod_namespace, options.pod_name) = ("kube-flannel".into(), "ds-1".into());
    let store = Store::kube(options).unwrap();
    let node = store.kube_node().unwrap();
    let asking = node.clone();
    let name = tokio::spawn(async move { asking.name().await });
    mock.expect("GET", "/api/v1/namespaces/kube-flannel/pods/ds-1")
        .await
        .answer(r#"{"spec":{"nodeName":"n9"}}"#);
    assert_eq!(name.await.unwrap().unwrap(), "n9");
    assert_eq!(node.name().await.unwrap(), "n9");
    assert!(mock.is_quiet());
}

#[tokio::test]
async fn the_condition_is_written_where_it_says_something_else() {
    let mut mock = Mock::start().await;
    let node = Store::kube(mock.options()).unwrap().kube_node().unwrap();
    let setting = |unavailable: bool| {
        let node = node.clone();
        tokio::spawn(async move { node.set_network_unavailable(unavailable, "R", "m").await })
    };
    let condition = json!({ "type": "NetworkUnavailable", "status": "False", "reason": "R", "message": "m",
        "lastTransitionTime": "2026-01-01T00:00:00Z" });
    let mut object = bare(1);
    object["status"]["conditions"] = json!([{ "type": "Ready" }, condition]);
    let set = setting(false);
    mock.expect("GET", "/api/v1/nodes/n1").await.answer(object.to_string());
    set.await.unwrap().unwrap();
    let set = setting(true);
    mock.expect("GET", "/api/v1/nodes/n1").await.answer(object.to_string());
    let asked = mock.expect("PATCH", "/api/v1/nodes/n1/status").await;
    let written = &asked.body["status"]["conditions"][0];
    assert_eq!((&written["type"], &written["status"]), (&json!("NetworkUnavailable"), &json!("True")));
    assert_eq!(written["lastTransitionTime"], written["lastHeartbeatTime"], "it has just changed");
    asked.answer("{}");
    set.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_taint_is_taken_off_and_the_others_stay_whoever_writes_at_the_same_time() {
    let mut mock = Mock::start().await;
    let node = Store::kube(mock.options()).unwrap().kube_node().unwrap();
    let removing = node.clone();
    let removed = tokio::spawn(async move { removing.remove_taint("start").await });
    let mut object = bare(1);
    object["spec"]["taints"] = json!([{ "key": "start", "effect": "NoSchedule" }, { "key": "other" }]);
    for status in [409, 200] {
        mock.expect("GET", "/api/v1/nodes/n1").await.answer(object.to_string());
        let asked = mock.expect("PATCH", "/api/v1/nodes/n1").await;
        assert_eq!(asked.body["spec"]["taints"], json!([{ "key": "other" }]));
        assert_eq!(asked.body["metadata"]["resourceVersion"], "5");
        asked.refuse(status, "{}");
    }
    assert!(removed.await.unwrap().unwrap());
}

#[tokio::test]
async fn what_is_not_permitted_is_left_alone() {
    let mut mock = Mock::start().await;
    let node = Store::kube(mock.options()).unwrap().kube_node().unwrap();
    let message = "ä".repeat(2000);
    let event = KubeEvent { is_warning: true, reason: "FlannelLeaseLost".into(), message };
    let publishing = (node.clone(), event.clone());
    let published = tokio::spawn(async move { publishing.0.publish_event(&publishing.1).await });
    let asked = mock.expect("POST", "/api/v1/namespaces/default/events").await;
    assert_eq!((&asked.body["type"], &asked.body["reason"]), (&json!("Warning"), &json!("FlannelLeaseLost")));
    assert_eq!(asked.body["involvedObject"]["name"], "n1");
    assert_eq!(asked.body["message"].as_str().unwrap().len(), 1024);
    asked.refuse(403, r#"{"message":"events is forbidden"}"#);
    assert!(!published.await.unwrap().unwrap());
    assert!(!node.publish_event(&event).await.unwrap());
    assert!(mock.is_quiet());
}

#[tokio::test]
async fn what_a_store_of_nodes_cannot_do_is_refused_with_the_remedy() {
    let mock = Mock::start().await;
    let store = Store::kube(mock.options()).unwrap();
    let error = store.set_network_config("{}").await.unwrap_err().to_string();
    assert!(error.contains("net-conf.json") && error.contains("kube-flannel-cfg"), "{error}");
    let error = store.remove(&"10.0.1.0-24".parse().unwrap()).await.unwrap_err().to_string();
    assert!(error.contains("kubectl delete node"), "{error}");
    assert_eq!(store.network_config().await.unwrap(), NETWORK);
    let mut options = mock.options();
    options.net_config_path = "/nowhere/net-conf.json".into();
    let error = Store::kube(options).unwrap().network_config().await.unwrap_err();
    assert!(matches!(error, StoreError::NoNetworkConfig { .. }));
}
