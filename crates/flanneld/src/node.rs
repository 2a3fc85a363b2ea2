//! The node's life: from the network configuration to a kernel that follows the leases.

use std::convert::Infallible;

use anyhow::Context;
use fabric::backend::VtepMacs;
use fabric::config::NetworkConfig;
use fabric::host::{ExternalInterface, Host};
use fabric::lease::{Attributes, LeaseSet};
use fabric::plan::Intent;
use fabric::status;
use kernel::{Linux, nexthop};
use store::Store;
use tokio::sync::watch;

use crate::board::{Board, Step};
use crate::external;
use crate::firewall;
use crate::interface::Choice;
use crate::kubernetes;
use crate::notifications::Notifications;
use crate::notify::Systemd;
use crate::old_bridge;
use crate::own_lease::{self, Own};
use crate::reconcile::{Inputs, Manner, Reconciler};
use crate::settings::Settings;
use crate::snapshot::Snapshot;
use crate::start::Start;
use crate::store_health;
use crate::take_over;
use crate::tunnel::{self, Tunnel};
use crate::vtep_mac;

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
            never = store_health::report(self.store, self.board) => match never {},
            never = self.announce() => match never {},
            never = self.tell_kubernetes() => match never {},
            ended = async {
                loop {
                    let mut start = Start::wait(self.store, &self.settings.files.leases, self.board).await;
                    // Taken out of the start, lest ten thousand leases of old stay in memory.
                    let leases = start.snapshot.as_mut().map(|snapshot| std::mem::take(&mut snapshot.leases));
                    let remembered = leases.filter(|_| start.remembered().is_some());
                    self.serve(&start, remembered).await?;
                    tracing::warn!("the store has another network configuration than the last run: starting over");
                }
            } => ended,
        }
    }

    /// Serves one network. Ends where the store turns out to have another configuration than the
    /// snapshot that we started from.
    async fn serve(&self, start: &Start, remembered_leases: Option<LeaseSet>) -> anyhow::Result<()> {
        let Node { settings, store, board, .. } = self;
        let Start { text, config, snapshot, told, .. } = start;
        let wanted = settings.interface.with_public(told.ipv4, told.ipv6);
        config.warnings.iter().for_each(|warning| tracing::warn!("network configuration: {warning}"));
        board.failing("network", []);
        board.done(Step::Network);

        let choice =
            external::choose(&wanted, config).await.context("choosing the interface to the other nodes")?;
        tracing::info!(
            reason = choice.reason,
            "the way to the other nodes is {}",
            external::words(&choice.external)
        );
        let mut kernel = Linux::open()?;
        let previous = own_lease::previous(&settings.files.subnet);
        let macs =
            vtep_mac::find(&mut kernel, store, start, (&choice.external, &settings.options), previous).await;
        self.show_network(config, &choice);

        let remembered = start.remembered();
        self.board.update(|status| {
            status.store.from_snapshot = remembered.is_some() && self.store.leases().borrow().is_none()
        });
        let previous = snapshot.as_ref().map(|snapshot| snapshot.own.subnets).unwrap_or(previous);
        let channels = Channels {
            external: watch::Sender::new(choice.external.clone()),
            attributes: watch::Sender::new(config.backend.attributes(config, &choice.external, macs)),
            own: watch::Sender::new(remembered.map(|snapshot| Own::remembered(&snapshot.own))),
            intent: watch::Sender::new(None),
            notifications: Notifications::but_for(kernel.port()),
        };
        let links = config.backend.links(config);
        let leases = store.leases();
        let tunnel = tunnel::Inputs {
            external: channels.external.subscribe(),
            intent: channels.intent.subscribe(),
            leases: leases.clone(),
            remembered: remembered_leases.clone(),
            kernel_changed: channels.notifications.devices.subscribe(),
        };
        let mut reconciler = self.reconciler(kernel, start, remembered_leases, &channels)?;
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
        let ended = tokio::select! {
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
            never = snapshot_of.keep(&settings.files.leases, leases, channels.own.subscribe()) => match never {},
            never = store.allocate_node_cidrs(config), if settings.kubernetes.allocate => match never {},
            never = take_over::remove_leftovers(board) => match never {},
            // The bridge is that of the flannel whose subnet file the plugins read.
            never = old_bridge::report(
                channels.own.subscribe(), channels.notifications.addressing.subscribe(), board
            ), if self.is_alone() => match never {},
            never = self.report_firewall(config, channels.notifications.firewall.subscribe()) => match never {},
            () = start.superseded(store) => Ok(()),
        };
        // Lest anything of this network is made when the next has looked already.
        reconciler.rest().await;
        ended
    }

    fn reconciler(
        &self,
        mut kernel: Linux,
        start: &Start,
        remembered: Option<LeaseSet>,
        channels: &Channels,
    ) -> anyhow::Result<Reconciler<Linux>> {
        // Another flannel on the host may need the same object with something else in it.
        let next_hop_objects =
            self.is_alone() && !self.settings.plain_routes && nexthop::supported(kernel.socket())?;
        let inputs = Inputs {
            intent: channels.intent.subscribe(),
            leases: self.store.leases(),
            remembered,
            former_networks: start.former_networks(),
            kernel_changed: channels.notifications.news.subscribe(),
        };
        let manner = Manner { interval: self.settings.interval, next_hop_objects };
        Ok(Reconciler::new((kernel, Linux::open()?), inputs, manner, Board::clone(self.board)))
    }

    /// Whether no other flannel is meant to be on this host.
    fn is_alone(&self) -> bool {
        self.settings.options.instance.is_default()
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

    /// Says which chains of others keep pods from each other, unless forwarding is none of our business.
    async fn report_firewall(&self, config: &NetworkConfig, changed: watch::Receiver<u64>) -> Infallible {
        if !self.settings.options.forward_rules {
            return std::future::pending().await;
        }
        let look = async || firewall::look(config.networks().collect()).await;
        firewall::report(look, changed, self.board).await
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

/// Replaces a value; says whether that changed it.
fn replace<T: PartialEq>(now: &mut T, next: T) -> bool {
    let changed = *now != next;
    *now = next;
    changed
}
