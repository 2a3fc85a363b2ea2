//! What a node starts from: the network configuration of the store or, while that is away, of the snapshot.

use std::path::Path;
use std::time::Duration;

use fabric::config::NetworkConfig;
use ipnet::IpNet;
use store::{PublicAddresses, Store, StoreError};

use crate::board::Board;
use crate::retry::Retry;
use crate::snapshot::Snapshot;

/// How long a store may keep us from starting when there is a snapshot to start from.
const PATIENCE: Duration = Duration::from_millis(1500);

/// What a node starts from.
#[derive(Debug)]
pub struct Start {
    /// The network configuration as written.
    pub text: String,
    /// The same, read.
    pub config: NetworkConfig,
    /// What the last run left, whether it is started from or not.
    pub snapshot: Option<Snapshot>,
    /// Where the configuration is from.
    pub from: Origin,
    /// The public addresses that Kubernetes tells this node to use.
    pub told: PublicAddresses,
}

/// Where a network configuration is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The store.
    Store,
    /// The snapshot of the last run.
    Snapshot,
}

impl Start {
    /// Waits for the network configuration: from the store, or from the snapshot at `path` while the
    /// store is away.
    pub async fn wait(store: &Store, path: &Path, board: &Board) -> Start {
        let snapshot = Snapshot::read(path, &store.identity()).unwrap_or_else(|error| {
            tracing::warn!("the leases of the last run are of no use: {error:#}");
            None
        });
        let began = tokio::time::Instant::now();
        let mut retry = Retry::new("read the network configuration");
        loop {
            let patience = PATIENCE.saturating_sub(began.elapsed());
            let tried = match &snapshot {
                Some(_) => tokio::time::timeout(patience, read(store)).await.ok(),
                None => Some(read(store).await),
            };
            let away = !matches!(tried, Some(Ok(_) | Err(StoreError::NoNetworkConfig { .. })));
            if away
                && began.elapsed() >= PATIENCE
                && let Some(start) = snapshot.as_ref().and_then(from_snapshot)
                && still_configured(store, &start.config).await
            {
                tracing::warn!(
                    store = store.describe(),
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
            board.failing("network", [(problem.clone(), String::new())]);
            let pause = retry.pause(&problem);
            if snapshot.is_some() && away {
                // Not beyond the moment from which the snapshot will do.
                let _ = tokio::time::timeout_at(began + PATIENCE, pause).await;
            } else {
                pause.await;
            }
        }
    }

    /// The snapshot, where it is what is started from.
    pub fn remembered(&self) -> Option<&Snapshot> {
        self.snapshot.as_ref().filter(|_| self.from == Origin::Snapshot)
    }

    /// The networks of the last run that are no more.
    pub fn former_networks(&self) -> Vec<IpNet> {
        let snapshot = self.snapshot.as_ref();
        let Some(Ok(former)) = snapshot.map(|snapshot| NetworkConfig::from_json(&snapshot.network)) else {
            return Vec::new();
        };
        former.networks().filter(|former| !self.config.networks().any(|now| now == *former)).collect()
    }

    /// After a start from the snapshot: waits until the store has a configuration that can be used
    /// and is another one.
    pub async fn superseded(&self, store: &Store) {
        if self.from == Origin::Store {
            return std::future::pending().await;
        }
        let mut retry = Retry::new("compare the network configuration with the store's");
        loop {
            let problem = match store.network_config().await {
                Ok(text) => match NetworkConfig::from_json(&text) {
                    Ok(config) if config == self.config => return std::future::pending().await,
                    Ok(_) => return,
                    Err(error) => error.to_string(),
                },
                Err(error) => error.to_string(),
            };
            retry.pause(&problem).await;
        }
    }
}

/// What the store says before there is a lease.
async fn read(store: &Store) -> Result<(String, PublicAddresses), StoreError> {
    let text = store.network_config().await?;
    let told = match store.kube_node() {
        Some(node) => node.public_addresses().await?,
        None => PublicAddresses::default(),
    };
    Ok((text, told))
}

fn from_snapshot(snapshot: &Snapshot) -> Option<Start> {
    let config = NetworkConfig::from_json(&snapshot.network).ok()?;
    let (text, told, snapshot) = (snapshot.network.clone(), snapshot.told, Some(snapshot.clone()));
    Some(Start { text, config, snapshot, from: Origin::Snapshot, told })
}

/// Whether the network of the last run is still the one to serve, as far as that can be known while the
/// store is away: with Kubernetes it is in a file.
async fn still_configured(store: &Store, config: &NetworkConfig) -> bool {
    if store.kube_node().is_none() {
        return true;
    }
    let text = store.network_config().await;
    text.is_ok_and(|text| NetworkConfig::from_json(&text).is_ok_and(|now| now == *config))
}
