//! The data path of the `udp` backend: opened when its device is there, opened anew when the device or
//! the address is another, and told who has which pod subnet.
//!
//! Who has what is told straight from the leases, as soon as they change: the table is no kernel
//! object, so there is nothing to look at and nothing that could refuse.

use std::convert::Infallible;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fabric::backend::Backend;
use fabric::backend::udp::Udp;
use fabric::config::NetworkConfig;
use fabric::host::ExternalInterface;
use fabric::lease::LeaseSet;
use fabric::plan::Intent;
use fabric::status;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use udp::{DataPath, Offloads, Peers, Settings, Snapshot, UdpError};

use crate::board::{Board, Step};
use crate::retry::Retry;

/// How often the counters are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often the status file is written anew because packets were dropped or too large, or an offload was
/// given up.
const DROPS: Duration = Duration::from_secs(2);
/// How often because packets were carried.
const PACKETS: Duration = Duration::from_secs(10);
/// With more changed leases than this, the whole table is made anew.
const BULK: usize = 1024;

/// The data path, if the network has one; a cheap handle.
#[derive(Debug, Default, Clone)]
pub struct Tunnel {
    peers: Arc<Peers>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    path: Option<DataPath>,
    /// What those counted that are no more; none if there never was one.
    past: Option<Snapshot>,
}

/// What the data path depends on.
#[derive(Debug)]
pub struct Inputs {
    /// The interface to the other nodes.
    pub external: watch::Receiver<ExternalInterface>,
    /// What the node wants; none until it has a lease.
    pub intent: watch::Receiver<Option<Intent>>,
    /// The leases of the store; none until the first list is complete.
    pub leases: watch::Receiver<Option<LeaseSet>>,
    /// The leases of the last run, for until then.
    pub remembered: Option<LeaseSet>,
    /// Changes when links or addresses may have changed.
    pub kernel_changed: watch::Receiver<u64>,
}

impl Tunnel {
    /// Carries packets until dropped, if the network's backend is `udp`.
    pub async fn serve(&self, config: &NetworkConfig, inputs: Inputs, board: &Board) -> Infallible {
        let Backend::Udp(udp) = &config.backend else {
            board.done(Step::DataPath);
            // Lest the leases of the last run stay in memory.
            drop(inputs);
            return std::future::pending().await;
        };
        let Inputs { external, intent, leases, remembered, kernel_changed } = inputs;
        tokio::select! {
            never = self.follow(intent, leases, remembered) => never,
            never = self.carry((udp, config), external, kernel_changed, board) => never,
        }
    }

    /// What was counted since flanneld started; none if there is no data path.
    pub fn snapshot(&self) -> Option<Snapshot> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = state.path.as_ref().map(DataPath::snapshot);
        match (state.past, now) {
            (Some(past), Some(now)) => Some(past.and(now)),
            (past, now) => now.or(past),
        }
    }

    /// What is shown of it; none if there is no data path.
    fn counted(&self) -> Option<status::DataPath> {
        let snapshot = self.snapshot()?;
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Some(counted(snapshot, state.path.as_ref().map(DataPath::offloads)))
    }

    /// Keeps a data path open.
    async fn carry(
        &self,
        (udp, config): (&Udp, &NetworkConfig),
        mut external: watch::Receiver<ExternalInterface>,
        mut kernel_changed: watch::Receiver<u64>,
        board: &Board,
    ) -> Infallible {
        board.wait_for(Step::Node).await;
        let mut retry = Retry::new("open the data path");
        loop {
            let settings = settings(udp, config, &external.borrow_and_update());
            kernel_changed.mark_unchanged();
            let ended = Arc::new(Notify::new());
            let opened = {
                let (settings, peers, ended) =
                    (settings.clone(), Arc::clone(&self.peers), Arc::clone(&ended));
                let start = move || {
                    DataPath::start(&settings, &peers, move |error| {
                        tracing::warn!("{error}");
                        ended.notify_one();
                    })
                };
                tokio::task::spawn_blocking(start).await
            };
            let problem = match opened {
                Ok(Ok(path)) => {
                    let refused = path.refused().to_vec();
                    self.replace(Some(path)).await;
                    if refused.is_empty() {
                        board.failing("udp", []);
                        board.done(Step::DataPath);
                        retry = Retry::new("open the data path");
                    }
                    let reopen = async {
                        tokio::select! {
                            () = other_settings(&mut external, &settings, (udp, config)) => {}
                            () = fewer_refused(refused, &mut retry, &mut kernel_changed, board) => {}
                        }
                    };
                    tokio::select! {
                        never = self.show(board) => match never {},
                        () = ended.notified() => "the device is gone".to_owned(),
                        () = reopen => {
                            self.replace(None).await;
                            continue;
                        }
                    }
                }
                Ok(Err(error)) => error.to_string(),
                Err(panicked) => panicked.to_string(),
            };
            self.replace(None).await;
            board.failing("udp", [(problem.clone(), "pods reach no other node until then".to_owned())]);
            tokio::select! {
                () = retry.pause(&problem) => {}
                // A device that is made anew, an address that comes back.
                _ = kernel_changed.changed() => {}
            }
        }
    }

    /// Keeps the counters in the status up to date: always in memory, and in the file as often as is
    /// worth writing it.
    async fn show(&self, board: &Board) -> Infallible {
        let mut shown = (Instant::now(), None);
        loop {
            let tunnel = self.clone();
            // Some of the counters are the device's, which the kernel may let us wait for.
            let counted = tokio::task::spawn_blocking(move || tunnel.counted()).await;
            let Ok(Some(now)) = counted else { return std::future::pending().await };
            let odd = |way: &status::Traffic| (way.dropped.clone(), way.oversized);
            let news =
                |path: &status::DataPath| (odd(&path.outgoing), odd(&path.incoming), path.offloads.clone());
            let before: &Option<status::DataPath> = &shown.1;
            let is_news = before.as_ref().is_none_or(|before| news(before) != news(&now));
            let differs = before.as_ref() != Some(&now);
            let patience = if is_news { DROPS } else { PACKETS };
            if before.is_none() || differs && shown.0.elapsed() >= patience {
                board.update(|status| status.data_path = Some(now.clone()));
                shown = (Instant::now(), Some(now));
            } else {
                board.silently(|status| status.data_path = Some(now));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn replace(&self, path: Option<DataPath>) {
        let before = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let before = std::mem::replace(&mut state.path, path);
            if let Some(before) = &before {
                let ended = before.snapshot();
                state.past = Some(state.past.map_or(ended, |past| past.and(ended)));
            }
            before
        };
        // Waits for its threads.
        let _ = tokio::task::spawn_blocking(move || drop(before)).await;
    }

    /// Keeps the table of peers equal to the leases.
    async fn follow(
        &self,
        mut intent: watch::Receiver<Option<Intent>>,
        mut leases: watch::Receiver<Option<LeaseSet>>,
        mut remembered: Option<LeaseSet>,
    ) -> Infallible {
        let mut told: Option<(Intent, LeaseSet)> = None;
        loop {
            let wanted = intent.borrow_and_update().clone();
            let known = leases.borrow_and_update().clone();
            if known.is_some() {
                remembered = None;
            }
            let known = known.or_else(|| remembered.clone());
            if let (Some(wanted), Some(known)) = (wanted, known) {
                match &told {
                    Some((before, last)) if *before == wanted && last.distance(&known, BULK) < BULK => {
                        let (gone, come) = wanted.plans_between(last, &known);
                        self.peers.change(gone.dataplane.tunnel.into_keys(), come.dataplane.tunnel);
                    }
                    _ => self.tell_all(wanted.clone(), known.clone()).await,
                }
                told = Some((wanted, known));
            }
            tokio::select! {
                changed = intent.changed() => if changed.is_err() { return std::future::pending().await },
                changed = leases.changed() => if changed.is_err() { return std::future::pending().await },
            }
        }
    }

    async fn tell_all(&self, intent: Intent, leases: LeaseSet) {
        let peers = Arc::clone(&self.peers);
        let tell = move || peers.replace(intent.host.own, intent.plan(&leases).dataplane.tunnel);
        if let Err(panicked) = tokio::task::spawn_blocking(tell).await {
            tracing::error!(%panicked, "telling the data path its peers");
        }
    }
}

/// The counters as the status has them. What the kernel drops in front of us counts with the rest.
fn counted(snapshot: Snapshot, offloads: Option<Offloads>) -> status::DataPath {
    let traffic = |traffic: &udp::Traffic, queue: u64| status::Traffic {
        packets: traffic.packets,
        octets: traffic.octets,
        oversized: traffic.oversized,
        dropped: traffic
            .drops()
            .map(|(reason, count)| (reason.name().to_owned(), count))
            .chain([("queue_full_or_not_running".to_owned(), queue)])
            .collect(),
    };
    status::DataPath {
        outgoing: traffic(&snapshot.outgoing, snapshot.device_drops),
        incoming: traffic(&snapshot.incoming, snapshot.socket_overflows),
        offloads: offloads
            .into_iter()
            .flat_map(Offloads::each)
            .map(|(name, works, _)| (name.to_owned(), works))
            .collect(),
    }
}

/// Waits until the interface asks for other settings.
async fn other_settings(
    external: &mut watch::Receiver<ExternalInterface>,
    now: &Settings,
    (udp, config): (&Udp, &NetworkConfig),
) {
    loop {
        if external.changed().await.is_err() {
            return std::future::pending().await;
        }
        if settings(udp, config, &external.borrow_and_update()) != *now {
            return;
        }
    }
}

/// Says which addresses cannot be listened on, until more can: the data path carries the others' families
/// meanwhile. Waits for ever if none is refused.
async fn fewer_refused(
    mut refused: Vec<(SocketAddr, UdpError)>,
    retry: &mut Retry,
    kernel_changed: &mut watch::Receiver<u64>,
    board: &Board,
) {
    if refused.is_empty() {
        return std::future::pending().await;
    }
    let listen: Vec<SocketAddr> = refused.iter().map(|(address, _)| *address).collect();
    while refused.len() == listen.len() {
        let problems: Vec<_> = refused
            .iter()
            .map(|(address, error)| {
                let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
                (error.to_string(), format!("pods reach no other node over {family} until then"))
            })
            .collect();
        let problem = problems.iter().map(|(what, _)| &**what).collect::<Vec<_>>().join("; ");
        board.failing("udp", problems);
        tokio::select! {
            () = retry.pause(&problem) => {}
            _ = kernel_changed.changed() => {}
        }
        refused = udp::refused(&listen);
    }
}

/// Compatibility: the socket is bound to the interface's address, as in the original, whatever address
/// peers are told.
fn settings(udp: &Udp, config: &NetworkConfig, external: &ExternalInterface) -> Settings {
    let port = udp.port;
    let ipv4 = config.ipv4.map(|_| external.ipv4.unwrap_or(Ipv4Addr::UNSPECIFIED).into());
    let ipv6 = config.ipv6.map(|_| external.ipv6.unwrap_or(Ipv6Addr::UNSPECIFIED).into());
    Settings {
        link: udp.link(),
        mtu: config.backend.mtu(config, external),
        listen: ipv4.into_iter().chain(ipv6).map(|ip| SocketAddr::new(ip, port)).collect(),
        any_source: udp.any_source,
    }
}
