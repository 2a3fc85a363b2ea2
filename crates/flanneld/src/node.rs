//! The node's life: from the network configuration to a kernel that follows the leases.

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use fabric::backend::VtepMacs;
use fabric::config::NetworkConfig;
use fabric::host::{ExternalInterface, Host};
use fabric::lease::{Attributes, LeaseSet};
use fabric::plan::Intent;
use fabric::status::{self, LeaseState};
use ipnet::IpNet;
use kernel::nftables::Nftables;
use kernel::{Linux, nexthop, takeover};
use store::{PublicAddresses, Store, StoreError, StoreHealth};
use tokio::sync::watch;

use crate::board::{self, Board, Step};
use crate::external;
use crate::firewall;
use crate::interface::Choice;
use crate::kubernetes;
use crate::notifications::Notifications;
use crate::notify::Systemd;
use crate::old_bridge;
use crate::own_lease::{self, Own};
use crate::reconcile::{Inputs, Manner, Reconciler};
use crate::retry::Retry;
use crate::settings::Settings;
use crate::snapshot::Snapshot;
use crate::tunnel::{self, Tunnel};
use crate::vtep_mac;

/// How long a store may keep us from starting when there is a snapshot to start from.
const PATIENCE: Duration = Duration::from_millis(1500);
/// After how long a snapshot that could not be written is tried again.
const WRITE_AGAIN: Duration = Duration::from_secs(5);
/// How long the last run's lease is looked for in the store, for its Ethernet address.
const LOOKING_BACK: Duration = Duration::from_secs(2);

/// A node of the network.
#[derive(Debug)]
pub struct Node<'a> {
    /// What the operator wants.
    pub settings: &'a Settings,
    /// Where leases come from.
    pub store: &'a Store,
    /// Where it is said how we are.
    pub board: &'a Board,
    /// Whom to tell when ready.
    pub systemd: &'a Systemd,
    /// The data path, for networks that have one.
    pub tunnel: &'a Tunnel,
}

/// What a node starts from.
struct Start {
    /// The network configuration as written, and read.
    text: String,
    config: NetworkConfig,
    snapshot: Option<Snapshot>,
    from: Origin,
    /// The public addresses that Kubernetes tells this node to use.
    told: PublicAddresses,
}

#[derive(PartialEq, Eq)]
enum Origin {
    Store,
    Snapshot,
}

/// The channels between the parts of a node.
struct Channels {
    external: watch::Sender<ExternalInterface>,
    attributes: watch::Sender<Attributes>,
    own: watch::Sender<Option<Own>>,
    intent: watch::Sender<Option<Intent>>,
    notifications: Notifications,
}

impl Node<'_> {
    /// Lives until dropped; ends only where nothing is left to try.
    pub async fn live(&self) -> anyhow::Result<Infallible> {
        tokio::select! {
            never = self.show_store() => match never {},
            never = self.announce() => match never {},
            never = self.tell_kubernetes() => match never {},
            ended = async {
                loop {
                    let mut start = self.start().await;
                    // Taken out of the start, lest ten thousand leases of old stay in memory.
                    let leases = start.snapshot.as_mut().map(|snapshot| std::mem::take(&mut snapshot.leases));
                    let remembered = leases.filter(|_| start.from == Origin::Snapshot);
                    self.serve(&start, remembered).await?;
                    tracing::warn!("the store has another network configuration than the last run: starting over");
                }
            } => ended,
        }
    }

    /// Waits for the network configuration: from the store, or from the snapshot while it is away.
    async fn start(&self) -> Start {
        let path = &self.settings.files.leases;
        let snapshot = Snapshot::read(path, &self.store.identity()).unwrap_or_else(|error| {
            tracing::warn!("the leases of the last run are of no use: {error:#}");
            None
        });
        let began = tokio::time::Instant::now();
        let mut retry = Retry::new("read the network configuration");
        loop {
            let patience = PATIENCE.saturating_sub(began.elapsed());
            let tried = match &snapshot {
                Some(_) => tokio::time::timeout(patience, self.read()).await.ok(),
                None => Some(self.read().await),
            };
            let away = !matches!(tried, Some(Ok(_) | Err(StoreError::NoNetworkConfig { .. })));
            if away
                && began.elapsed() >= PATIENCE
                && let Some(start) = snapshot.as_ref().and_then(from_snapshot)
                && self.still_configured(&start.config).await
            {
                tracing::warn!(
                    store = self.store.describe(),
                    "the store is away: starting from the leases of the last run"
                );
                return start;
            }
            let problem = match tried {
                Some(Ok((text, told))) => match NetworkConfig::from_json(&text) {
                    Ok(config) => return Start { text, config, snapshot, from: Origin::Store, told },
                    Err(error) => error.to_string(),
                },
                Some(Err(error)) => error.to_string(),
                None => continue,
            };
            self.board.failing("network", [(problem.clone(), String::new())]);
            let pause = retry.pause(&problem);
            if snapshot.is_some() && away {
                // Not beyond the moment from which the snapshot will do.
                let _ = tokio::time::timeout_at(began + PATIENCE, pause).await;
            } else {
                pause.await;
            }
        }
    }

    /// What the store says before there is a lease.
    async fn read(&self) -> Result<(String, PublicAddresses), StoreError> {
        let text = self.store.network_config().await?;
        let told = match self.store.kube_node() {
            Some(node) => node.public_addresses().await?,
            None => PublicAddresses::default(),
        };
        Ok((text, told))
    }

    /// Whether the network of the last run is still the one to serve, as far as that can be known while the
    /// store is away: with Kubernetes it is in a file.
    async fn still_configured(&self, config: &NetworkConfig) -> bool {
        if self.store.kube_node().is_none() {
            return true;
        }
        let text = self.store.network_config().await;
        text.is_ok_and(|text| NetworkConfig::from_json(&text).is_ok_and(|now| now == *config))
    }

    /// Serves one network. Ends where the store turns out to have another configuration than the
    /// snapshot that we started from.
    async fn serve(&self, start: &Start, remembered_leases: Option<LeaseSet>) -> anyhow::Result<()> {
        let Node { settings, store, board, .. } = self;
        let Start { text, config, snapshot, from, told } = start;
        let wanted = settings.interface.with_public(told.ipv4, told.ipv6);
        config.warnings.iter().for_each(|warning| tracing::warn!("network configuration: {warning}"));
        board.failing("network", []);
        board.done(Step::Network);

        let choice =
            external::choose(&wanted, config).context("choosing the interface to the other nodes")?;
        tracing::info!(
            reason = choice.reason,
            "the way to the other nodes is {}",
            external::words(&choice.external)
        );
        let mut kernel = Linux::open()?;
        let previous = own_lease::previous(&settings.files.subnet);
        let macs = self.macs(&mut kernel, start, &choice.external, previous).await;
        self.show_network(config, &choice);

        let remembered = snapshot.as_ref().filter(|_| *from == Origin::Snapshot);
        let own = remembered.map(|snapshot| Own {
            lease: snapshot.own.clone(),
            state: LeaseState::FromSnapshot,
            detail: "from the last run; the store has not been reached yet".to_owned(),
            expires: None,
        });
        self.board.update(|status| {
            status.store.from_snapshot = remembered.is_some() && self.store.leases().borrow().is_none()
        });
        let previous = snapshot.as_ref().map(|snapshot| snapshot.own.subnets).unwrap_or(previous);
        let channels = Channels {
            external: watch::Sender::new(choice.external.clone()),
            attributes: watch::Sender::new(config.backend.attributes(config, &choice.external, macs)),
            own: watch::Sender::new(own),
            intent: watch::Sender::new(None),
            notifications: Notifications::but_for(kernel.port()),
        };
        let links = config.backend.links(config);
        let leases = store.leases();
        // Another flannel on the host may need the same object with something else in it.
        let alone = settings.options.instance.is_default();
        let next_hop_objects = alone && !settings.plain_routes && nexthop::supported(kernel.socket())?;
        let tunnel = tunnel::Inputs {
            external: channels.external.subscribe(),
            intent: channels.intent.subscribe(),
            leases: leases.clone(),
            remembered: remembered_leases.clone(),
            kernel_changed: channels.notifications.addressing.subscribe(),
        };
        let reconciler = Reconciler::new(
            (kernel, Linux::open()?),
            Inputs {
                intent: channels.intent.subscribe(),
                leases: leases.clone(),
                remembered: remembered_leases,
                former_networks: former_networks(snapshot.as_ref(), config),
                kernel_changed: channels.notifications.news.subscribe(),
            },
            Manner { interval: settings.interval, next_hop_objects },
            Board::clone(board),
        );
        let follow = external::follow(
            &wanted,
            config,
            choice,
            channels.notifications.addressing.subscribe(),
            (channels.external.clone(), board),
        );
        let snapshot_of = Snapshot {
            store: store.identity(),
            network: text.clone(),
            own: fabric::Lease { subnets: previous, attributes: Attributes::default(), created: 0 },
            macs,
            told: *told,
            leases: LeaseSet::default(),
        };
        tokio::select! {
            never = channels.notifications.count(&links, channels.external.subscribe()) => match never {},
            never = follow => match never {},
            never = self.tunnel.serve(config, tunnel, board) => match never {},
            never = self.compose(config, macs, &channels) => match never {},
            () = reconciler.run() => anyhow::bail!("the reconciler has ended, which it never does by itself"),
            ended = own_lease::hold(
                store, (config, previous), channels.attributes.subscribe(), &channels.own, board
            ) => ended.map(|never| match never {}).context("leasing a pod subnet"),
            never = own_lease::keep_subnet_file(
                &settings.files.subnet, (config, settings.ip_masq), channels.external.subscribe(),
                channels.own.subscribe(), board
            ) => match never {},
            never = keep_snapshot(&settings.files.leases, snapshot_of, leases, channels.own.subscribe()) => match never {},
            never = store.allocate_node_cidrs(config), if settings.kubernetes.allocate => match never {},
            never = self.take_over() => match never {},
            // The bridge is of the flannel whose subnet file the plugins read.
            never = old_bridge::report(
                channels.own.subscribe(), channels.notifications.addressing.subscribe(), board
            ), if alone => match never {},
            never = self.report_firewall(config, channels.notifications.firewall.subscribe()) => match never {},
            () = self.other_network(start) => Ok(()),
        }
    }

    /// The Ethernet addresses of the tunnel endpoints; the store is asked only where it must be.
    async fn macs(
        &self,
        kernel: &mut Linux,
        start: &Start,
        external: &ExternalInterface,
        previous: fabric::Subnets,
    ) -> VtepMacs {
        let Start { config, snapshot, from, .. } = start;
        let of_devices = vtep_mac::of_devices(kernel, config, (external, &self.settings.options));
        let mut known = vec![of_devices.unwrap_or_else(|error| {
            tracing::warn!("cannot look for devices of the last run: {error:#}");
            Default::default()
        })];
        if *from == Origin::Store && !vtep_mac::complete(config, known[0]) {
            let published = async {
                Ok::<_, StoreError>(match self.store.kube_node() {
                    Some(node) => {
                        let own = node.published().await?;
                        own.map_or(VtepMacs::default(), |own| vtep_mac::of_attributes(&own.attributes))
                    }
                    None => vtep_mac::of_lease(&self.store.list().await?.leases, external, previous),
                })
            };
            match tokio::time::timeout(LOOKING_BACK, published).await {
                Ok(Ok(macs)) => known.push(macs),
                Ok(Err(error)) => tracing::warn!(%error, "cannot look for the lease of the last run"),
                Err(_) => tracing::warn!("no time to look for the lease of the last run"),
            }
        }
        known.extend(snapshot.as_ref().map(|snapshot| snapshot.macs));
        vtep_mac::first_known(config, &known)
    }

    /// Puts interface and lease together: what peers are told, and what the kernel should hold.
    async fn compose(&self, config: &NetworkConfig, macs: VtepMacs, channels: &Channels) -> Infallible {
        let (mut external, mut own) = (channels.external.subscribe(), channels.own.subscribe());
        loop {
            let interface = external.borrow_and_update().clone();
            let attributes = config.backend.attributes(config, &interface, macs);
            channels.attributes.send_if_modified(|now| replace(now, attributes));
            self.board.update(|status| {
                if let Some(network) = &mut status.network {
                    network.mtu = config.backend.mtu(config, &interface);
                }
            });
            if let Some(own) = own.borrow_and_update().clone() {
                let host = Host::new(interface, own.lease.subnets);
                let options = self.settings.options.clone();
                let intent = Intent { config: config.clone(), options, host, macs };
                channels.intent.send_if_modified(|now| replace(now, Some(intent)));
                self.board.update(|status| status.lease = Some(own.shown()));
                self.board.done(Step::Lease);
            }
            tokio::select! {
                // The senders live in `channels`.
                _ = external.changed() => self.store.host_has_moved(),
                _ = own.changed() => {},
            }
        }
    }

    /// Removes the original's iptables rules once ours stand, so that there is no gap between.
    async fn take_over(&self) -> Infallible {
        self.board.wait_for(Step::Node).await;
        let removed = tokio::task::spawn_blocking(|| takeover::remove(&mut Nftables::open()?)).await;
        match removed {
            Ok(Ok(leftovers)) => {
                for leftover in leftovers {
                    tracing::info!("removed what the original flannel left in iptables: {leftover}");
                }
                self.board.failing("take-over", []);
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot remove what the original flannel left in iptables");
                let remedy =
                    "remove its chains FLANNEL-POSTRTG and FLANNEL-FWD by hand (`iptables-save` shows them)";
                self.board.failing("take-over", [(error.to_string(), remedy.to_owned())]);
            }
            Err(panicked) => {
                tracing::error!(%panicked, "looking for what the original flannel left in iptables")
            }
        }
        std::future::pending().await
    }

    /// Says which chains of others keep pods from each other, unless forwarding is none of our business.
    async fn report_firewall(&self, config: &NetworkConfig, changed: watch::Receiver<u64>) -> Infallible {
        if !self.settings.options.forward_rules {
            return std::future::pending().await;
        }
        let look = async || firewall::look(config.networks().collect()).await;
        firewall::report(look, changed, self.board).await
    }

    /// After a start from the snapshot: waits until the store has a configuration that can be used
    /// and is another one.
    async fn other_network(&self, start: &Start) {
        if start.from == Origin::Store {
            return std::future::pending().await;
        }
        let mut retry = Retry::new("compare the network configuration with the store's");
        loop {
            let problem = match self.store.network_config().await {
                Ok(text) => match NetworkConfig::from_json(&text) {
                    Ok(config) if config == start.config => return std::future::pending().await,
                    Ok(_) => return,
                    Err(error) => error.to_string(),
                },
                Err(error) => error.to_string(),
            };
            retry.pause(&problem).await;
        }
    }

    async fn tell_kubernetes(&self) -> Infallible {
        match self.store.kube_node() {
            Some(node) => kubernetes::tell(&node, &self.settings.kubernetes, self.board).await,
            None => std::future::pending().await,
        }
    }

    /// Says when the node is ready, once.
    async fn announce(&self) -> Infallible {
        self.systemd.status("starting; `flannelctl status` says what is awaited");
        self.board.ready().await;
        tracing::info!("flannel is ready");
        self.systemd.ready("ready");
        std::future::pending().await
    }

    /// Says how the store is.
    async fn show_store(&self) -> Infallible {
        let mut health = self.store.health();
        let mut leases = self.store.leases();
        loop {
            let complete = leases.borrow_and_update().is_some();
            let now = health.borrow_and_update().clone();
            self.board.update(|status| {
                let store = &mut status.store;
                match now {
                    StoreHealth::Unknown => {}
                    StoreHealth::Reachable { since } => {
                        (store.reachable, store.since, store.error) = (true, board::unix(since), None);
                    }
                    StoreHealth::Unreachable { since, error } => {
                        (store.reachable, store.since, store.error) =
                            (false, board::unix(since), Some(error));
                    }
                }
                store.from_snapshot &= !complete;
            });
            tokio::select! {
                changed = health.changed() => if changed.is_err() { return std::future::pending().await },
                // Only the first complete list matters here.
                changed = leases.changed(), if !complete => if changed.is_err() { return std::future::pending().await },
            }
        }
    }

    fn show_network(&self, config: &NetworkConfig, choice: &Choice) {
        self.board.update(|status| {
            status.network = Some(status::Network {
                networks: config.networks().collect(),
                backend: config.backend.name().to_owned(),
                mtu: config.backend.mtu(config, &choice.external),
                links: config.backend.links(config).iter().map(|link| link.to_string()).collect(),
                masquerade: self.settings.ip_masq,
            });
            status.asked = Some(status::Asked::from(&self.settings.options));
        });
    }
}

/// The networks of the last run that are no more.
fn former_networks(snapshot: Option<&Snapshot>, config: &NetworkConfig) -> Vec<IpNet> {
    let Some(Ok(former)) = snapshot.map(|snapshot| NetworkConfig::from_json(&snapshot.network)) else {
        return Vec::new();
    };
    former.networks().filter(|former| !config.networks().any(|now| now == *former)).collect()
}

fn from_snapshot(snapshot: &Snapshot) -> Option<Start> {
    let config = NetworkConfig::from_json(&snapshot.network).ok()?;
    let (text, told, snapshot) = (snapshot.network.clone(), snapshot.told, Some(snapshot.clone()));
    Some(Start { text, config, snapshot, from: Origin::Snapshot, told })
}

/// Keeps the snapshot equal to the leases until dropped, from when they are known to be good. It is
/// written on another thread: with ten thousand leases on a slow disk, the loop would stand still.
async fn keep_snapshot(
    path: &Path,
    snapshot: Snapshot,
    mut leases: watch::Receiver<Option<LeaseSet>>,
    mut own: watch::Receiver<Option<Own>>,
) -> Infallible {
    let mut failed = false;
    loop {
        let held = own.borrow_and_update().clone().filter(|own| own.state == LeaseState::Held);
        let all = leases.borrow_and_update().clone();
        let began = tokio::time::Instant::now();
        if let (Some(own), Some(all)) = (held, all) {
            let (snapshot, path) =
                (Snapshot { own: own.lease, leases: all, ..snapshot.clone() }, path.to_owned());
            let written = tokio::task::spawn_blocking(move || snapshot.write(&path)).await;
            match written.unwrap_or_else(|panicked| Err(panicked.into())) {
                Ok(()) => failed = false,
                Err(error) if !failed => {
                    failed = true;
                    tracing::warn!("cannot keep the leases for the next start: {error:#}");
                }
                Err(_) => {}
            }
            // Gathers what changes together, and keeps the writing below a fiftieth of the time.
            tokio::time::sleep(Duration::from_millis(500).max(began.elapsed() * 50)).await;
        }
        tokio::select! {
            changed = leases.changed() => if changed.is_err() { return std::future::pending().await },
            changed = own.changed() => if changed.is_err() { return std::future::pending().await },
            () = tokio::time::sleep(WRITE_AGAIN), if failed => {},
        }
    }
}

/// Replaces a value; says whether that changed it.
fn replace<T: PartialEq>(now: &mut T, next: T) -> bool {
    let changed = *now != next;
    *now = next;
    changed
}
