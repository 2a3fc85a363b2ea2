//! The follower: turns lists and watches of Nodes into the whole set of leases at every moment.
//!
//! Where the server can, it sends all Nodes as the beginning of the watch; where not, they are listed
//! page by page first. A watch that ends is taken up where it was, by the version that the server names
//! in its bookmarks; where that is too old, all is listed again, and nothing goes before that list is
//! complete. While the server is away the last set stays published as it is.

use std::convert::Infallible;
use std::time::Duration;

use fabric::backend::Backend;
use fabric::config::NetworkConfig;
use fabric::lease::LeaseSet;
use http::StatusCode;
use http_body_util::BodyExt;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::allocate::Missing;
use super::client::{Ask, Stream};
use super::failure::{self, Failure};
use super::framing::{Items, Lines, TooLarge};
use super::object::{self, Entry, Object};
use super::protobuf::{self, Frames};
use super::record::{Families, OwnNode};
use super::table::Table;
use super::{Kube, encoded};
use crate::backoff::{self, Backoff};

/// How many Nodes are asked for at once where they are listed page by page: some 8 MB.
const PAGE: usize = 500;
/// How long a server may be silent in the midst of a list.
const SILENT_IN_LIST: Duration = Duration::from_secs(30);
/// How long a watch may be silent before the server is asked whether it is still there: a little more
/// than the time between two bookmarks.
const SILENT: Duration = Duration::from_secs(70);
/// How long the server is asked to let a watch last, at least; they are spread over twice that.
const WATCH_LASTS: u64 = 300;

const RIGHT: &str =
    "flannel needs the rights to get, list and watch nodes: see the ClusterRole in its manifest";
const WATCH: &str = "watch the nodes";
const LIST: &str = "list the nodes";

/// Why following has stopped for the moment.
#[derive(Debug)]
enum End {
    /// The server has ended the watch, as it does every few minutes.
    Over,
    /// It can go on from where it was, once the server is back.
    Lost(Failure),
    /// Changes were missed for good: list again. The reason, for the log.
    StartOver(String),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> End {
        End::Lost(failure)
    }
}

/// What becomes of the entries of a watch.
struct Fed {
    leases_changed: bool,
    own_changed: bool,
    /// All Nodes have come.
    is_complete: bool,
}

/// Publishes the leases for as long as it is polled.
pub(super) async fn follow(kube: &Kube, leases: &watch::Sender<Option<LeaseSet>>) -> Infallible {
    let mut backoff = Backoff::new();
    let (families, selector) = loop {
        match prepare(kube).await {
            Ok(prepared) => break prepared,
            Err(reason) => {
                debug!(reason, "cannot follow the leases yet");
                tokio::time::sleep(backoff.delay()).await;
            }
        }
    };
    let mut follower = Follower {
        kube,
        leases,
        selector,
        table: Table::new(kube.prefix.clone(), families),
        own: None,
        reached: None,
        newest: None,
        backoff: Backoff::new(),
    };
    let (mut last_error, mut last_reason) = (String::new(), String::new());
    loop {
        let wait = match follower.run().await {
            End::Over => {
                debug!("the watch has ended, taking it up again");
                backoff::up_to(Duration::from_millis(100))
            }
            End::Lost(failure) => {
                kube.health.failed(&failure.error);
                // What is the same again is not said again.
                let error = failure.error.to_string();
                if error != last_error {
                    warn!(error, "lost sight of the leases, the last known ones stay in force");
                    last_error = error;
                }
                let asked = failure.after.map(|after| after + backoff::up_to(after / 2));
                follower.backoff.delay().max(asked.unwrap_or_default())
            }
            End::StartOver(reason) => {
                follower.newest = follower.reached.take();
                if reason != last_reason {
                    info!(reason, "listing the nodes again");
                    last_reason = reason;
                }
                follower.backoff.delay()
            }
        };
        tokio::time::sleep(wait).await;
    }
}

/// The families of the network, and which Nodes matter.
async fn prepare(kube: &Kube) -> Result<(Families, String), String> {
    let text = kube.network_config().await.map_err(|error| error.to_string())?;
    let config = NetworkConfig::from_json(&text).map_err(|error| error.to_string())?;
    // Without a name our own Node is not told apart, which is no reason not to follow the others.
    let name = kube.name().await.map_err(|error| error.to_string());
    let selector = match config.backend {
        // Nobody is sent to, so nobody else matters.
        Backend::Alloc => {
            format!("&fieldSelector=metadata.name%3D{}", encoded(name?))
        }
        _ => String::new(),
    };
    Ok((Families::from(&config), selector))
}

struct Follower<'a> {
    kube: &'a Kube,
    leases: &'a watch::Sender<Option<LeaseSet>>,
    selector: String,
    table: Table,
    own: Option<OwnNode>,
    /// The version of the Nodes that `table` is at; none if they have to be listed.
    reached: Option<String>,
    /// The last such version: a list must not be older.
    newest: Option<String>,
    backoff: Backoff,
}

impl Follower<'_> {
    /// Follows until the watch ends.
    async fn run(&mut self) -> End {
        match self.try_run().await {
            Err(end) => end,
            Ok(never) => match never {},
        }
    }

    async fn try_run(&mut self) -> Result<Infallible, End> {
        if self.reached.is_none() {
            self.table.begin();
            match self.stream_all().await {
                Err(End::Lost(failure)) if self.reached.is_none() && is_not_offered(&failure) => {
                    debug!(error = %failure.error, "the server sends no lists as watches");
                }
                outcome => return outcome,
            }
            let mut own = None;
            let kube = self.kube;
            let name = kube.known_name();
            let table = &mut self.table;
            // From the server's memory, which spares its etcd. It may be behind: not behind what we know.
            let at = match self.newest.take() {
                None => "&resourceVersion=0".to_owned(),
                Some(version) => format!("&resourceVersion={version}&resourceVersionMatch=NotOlderThan"),
            };
            let version = list(kube, (&self.selector, &at), &mut |object| {
                if name.as_deref() == Some(&object.metadata.name) {
                    own = Some(OwnNode::new(object, &kube.prefix));
                }
                table.insert(object);
            })
            .await?;
            self.own = own;
            self.complete(version);
        }
        let from = format!("&resourceVersion={}", self.reached.as_deref().unwrap_or_default());
        let stream = match self.open(&from).await {
            Err(failure) if failure.is(StatusCode::GONE) => {
                return Err(End::StartOver(failure.error.to_string()));
            }
            outcome => outcome?,
        };
        // On a quiet cluster it may be a minute before anything comes.
        self.kube.health.answered();
        self.read(stream, true).await
    }

    /// Has all Nodes sent as the beginning of the watch.
    async fn stream_all(&mut self) -> Result<Infallible, End> {
        let stream = self.open(INITIAL).await?;
        self.read(stream, false).await
    }

    async fn open(&self, from: &str) -> Result<Stream, Failure> {
        // Not all at the same moment: nodes that were started together would come back together.
        let lasts = WATCH_LASTS + backoff::below(WATCH_LASTS as usize) as u64;
        let path = format!(
            "/api/v1/nodes?watch=1&allowWatchBookmarks=true&timeoutSeconds={lasts}{from}{}",
            self.selector
        );
        self.kube.client.stream(&Ask::get(WATCH, path, RIGHT)).await
    }

    /// Reads a watch to its end.
    async fn read(&mut self, mut stream: Stream, mut is_complete: bool) -> Result<Infallible, End> {
        let (mut lines, mut frames) = (Lines::default(), Frames::default());
        let is_protobuf = stream.is_protobuf;
        let name = self.kube.known_name();
        loop {
            let patience = if is_complete { SILENT } else { SILENT_IN_LIST };
            let Ok(frame) = tokio::time::timeout(patience, stream.body.frame()).await else {
                if !is_complete {
                    return Err(failure::too_late(LIST, &stream.server, patience).into());
                }
                // A server that is there answers this; it may just have nothing to say.
                self.kube.ask_for_own_node().await.or_else(|failure| match failure.status {
                    Some(_) => Ok(None),
                    None => Err(failure),
                })?;
                continue;
            };
            let chunk = match frame {
                None if is_complete => return Err(End::Over),
                None => {
                    return Err(failure::lost(LIST, &stream.server, "it has ended the list too early").into());
                }
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                Some(Err(error)) => {
                    return Err(failure::lost(WATCH, &stream.server, &failure::causes(&error)).into());
                }
            };
            let server = &stream.server;
            let mut fed = Fed { leases_changed: false, own_changed: false, is_complete };
            if is_protobuf {
                frames.feed(&chunk, |frame| {
                    self.feed(protobuf::entry(frame), server, name.as_deref(), &mut fed)
                })?;
            } else {
                lines.feed(&chunk, |line| match line {
                    [] => Ok(()),
                    line => self.feed(object::entry(line), server, name.as_deref(), &mut fed),
                })?;
            }
            if fed.is_complete && !is_complete {
                is_complete = true;
                let version = self.reached.clone().unwrap_or_default();
                self.complete(version);
            } else if is_complete {
                if fed.own_changed {
                    self.tell_own();
                }
                if fed.leases_changed {
                    self.publish();
                }
                self.tell_missing();
                self.backoff.reset();
                self.kube.health.answered();
            }
        }
    }

    /// Takes in one entry of a watch.
    fn feed(
        &mut self,
        entry: Result<Entry<'_>, String>,
        server: &str,
        name: Option<&str>,
        fed: &mut Fed,
    ) -> Result<(), End> {
        let entry = entry.map_err(|why| failure::nonsense(WATCH, server, &why))?;
        let object = &entry.object;
        let is_own = name == Some(&*object.metadata.name);
        match &*entry.kind {
            "ADDED" | "MODIFIED" => {
                fed.leases_changed |= self.table.insert(object);
                if is_own {
                    let own = Some(OwnNode::new(object, &self.kube.prefix));
                    fed.own_changed |= self.own != own;
                    self.own = own;
                }
            }
            "DELETED" => {
                fed.leases_changed |= self.table.remove(&object.metadata.name);
                if is_own {
                    self.own = None;
                    fed.own_changed = true;
                }
            }
            "BOOKMARK" => {
                let ends_list =
                    object.any_annotation("k8s.io/initial-events-end").is_some_and(|value| value == "true");
                fed.is_complete |= ends_list;
            }
            "ERROR" => {
                let said = object.message.as_deref().unwrap_or("no reason given").to_owned();
                return Err(match object.code {
                    Some(410) => End::StartOver(said),
                    Some(code) => {
                        let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                        failure::refused((WATCH, RIGHT), server, (status, None), said.as_bytes()).into()
                    }
                    None => failure::nonsense(WATCH, server, &said).into(),
                });
            }
            other => debug!(kind = other, "an entry of the watch of a kind that is not known"),
        }
        let version = &object.metadata.resource_version;
        if fed.is_complete && !version.is_empty() {
            self.reached.get_or_insert_default().clear();
            self.reached.get_or_insert_default().push_str(version);
        }
        Ok(())
    }

    /// All Nodes have come.
    fn complete(&mut self, version: String) {
        self.table.finish();
        self.reached = Some(version);
        self.tell_own();
        self.tell_missing();
        // A set that is as it was wakes nobody.
        if self.leases.borrow().as_ref() != Some(self.table.leases()) {
            self.publish();
        }
        self.backoff.reset();
        self.kube.health.answered();
    }

    fn publish(&self) {
        self.leases.send_replace(Some(self.table.leases().clone()));
    }

    fn tell_missing(&self) {
        let missing = self.table.missing();
        let ours = self.kube.name.get().is_some_and(|name| missing.contains(name.as_str()));
        let missing = Missing { nodes: missing.len(), ours };
        self.kube.missing.send_if_modified(|known| std::mem::replace(known, missing) != missing);
    }

    fn tell_own(&self) {
        self.kube.seen.send_replace(Some(self.own.clone()));
    }
}

const INITIAL: &str = "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";

/// A server that does not know what is asked for, is told not to do it, or has an etcd that is too old
/// for it (3.4.24 and before); that one is sorry only after it has agreed.
fn is_not_offered(failure: &Failure) -> bool {
    [StatusCode::UNPROCESSABLE_ENTITY, StatusCode::BAD_REQUEST, StatusCode::INTERNAL_SERVER_ERROR]
        .iter()
        .any(|status| failure.is(*status))
}

impl From<TooLarge> for End {
    fn from(_: TooLarge) -> End {
        End::StartOver("the server has sent more than any node can be".to_owned())
    }
}

/// Hands all Nodes to `each`, page by page if the server likes; the version that they are at. `at` says
/// which version is wanted: the newest, if it is empty.
pub(super) async fn list(
    kube: &Kube,
    (selector, at): (&str, &str),
    each: &mut (dyn FnMut(&Object<'_>) + Send),
) -> Result<String, Failure> {
    let mut next = at.to_owned();
    loop {
        let path = format!("/api/v1/nodes?limit={PAGE}{next}{selector}");
        let mut stream = kube.client.stream(&Ask::get(LIST, path, RIGHT)).await?;
        let mut keep = |object: Result<Object<'_>, String>| -> Result<(), Unreadable> {
            each(&object?);
            Ok(())
        };
        let (mut json, mut proto) = (Items::default(), protobuf::Items::default());
        let nonsense = |why: &str, server: &str| failure::nonsense(LIST, server, why);
        loop {
            let frame = tokio::time::timeout(SILENT_IN_LIST, stream.body.frame());
            let frame = frame.await.map_err(|_| failure::too_late(LIST, &stream.server, SILENT_IN_LIST))?;
            let chunk = match frame {
                None => break,
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                Some(Err(error)) => {
                    return Err(failure::lost(LIST, &stream.server, &failure::causes(&error)));
                }
            };
            let fed = match stream.is_protobuf {
                true => proto.feed(&chunk, |item| keep(protobuf::object(item))),
                false => json.feed(&chunk, |item| keep(object::object(item))),
            };
            fed.map_err(|Unreadable(why)| nonsense(&why, &stream.server))?;
        }
        let end = if stream.is_protobuf { proto.end() } else { json.end() };
        let end = end.map_err(|why| nonsense(&why, &stream.server))?;
        if end.r#continue.is_empty() {
            return Ok(end.resource_version);
        }
        next = format!("&continue={}", encoded(&end.r#continue));
    }
}

struct Unreadable(String);

impl From<String> for Unreadable {
    fn from(why: String) -> Unreadable {
        Unreadable(why)
    }
}

impl From<TooLarge> for Unreadable {
    fn from(_: TooLarge) -> Unreadable {
        Unreadable("a node that is larger than any can be".to_owned())
    }
}
