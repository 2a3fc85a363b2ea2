//! This node's lease: acquired, kept, and what is written once there is one.

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use fabric::config::NetworkConfig;
use fabric::host::ExternalInterface;
use fabric::lease::{Attributes, Lease, Subnets};
use fabric::status::{self, LeaseState, UnixSeconds};
use fabric::subnet_file::{self, SubnetFile};
use store::{AcquireError, Claim, Kept, KeptState, Store};
use tokio::sync::watch;

use crate::board::{self, Board, Step};
use crate::retry::Retry;
use crate::whole_file;

/// After how long the subnet file is looked at though nothing changed: somebody may have removed it.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// This node's lease and how it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Own {
    /// The lease.
    pub lease: Lease,
    /// Whether it is ours.
    pub state: LeaseState,
    /// What is to be said about that.
    pub detail: String,
    /// When the store forgets it unless it is renewed, if that is known.
    pub expires: Option<UnixSeconds>,
}

impl From<Kept> for Own {
    fn from(kept: Kept) -> Own {
        let (state, detail) = match kept.state {
            KeptState::Held => (LeaseState::Held, String::new()),
            KeptState::Lost { reason } => (LeaseState::Lost, reason),
            KeptState::TakenByAnother { by } => {
                let by: Vec<_> = by.public_addresses().map(|ip| ip.to_string()).collect();
                (LeaseState::Taken, format!("the node at {} has it", by.join(" ")))
            }
        };
        Own { lease: kept.lease, state, detail, expires: kept.expires.map(board::unix) }
    }
}

impl Own {
    /// The lease of the last run, until the store says more.
    pub fn remembered(lease: &Lease) -> Own {
        let detail = "from the last run; the store has not been reached yet".to_owned();
        Own { lease: lease.clone(), state: LeaseState::FromSnapshot, detail, expires: None }
    }

    /// As the status shows it.
    pub fn shown(&self) -> status::OwnLease {
        status::OwnLease {
            subnets: self.lease.subnets.iter().collect(),
            state: self.state,
            detail: self.detail.clone(),
            expires: self.expires,
        }
    }
}

/// The subnets of the last run, by its subnet file.
pub fn previous(subnet_file: &Path) -> Subnets {
    let Ok(text) = std::fs::read_to_string(subnet_file) else { return Subnets::default() };
    let (subnets, complaints) = subnet_file::previous(&text);
    for complaint in complaints {
        tracing::warn!("{}: {complaint}", subnet_file.display());
    }
    subnets
}

/// Acquires the lease and keeps it until dropped, saying in `own` how it stands. Ends only if no
/// lease can be had and there is none to go on with.
pub async fn hold(
    store: &Store,
    (config, previous): (&NetworkConfig, Subnets),
    attributes: watch::Receiver<Attributes>,
    own: &watch::Sender<Option<Own>>,
    board: &Board,
) -> anyhow::Result<Infallible> {
    let mut retry = Retry::new("get a lease");
    let lease = loop {
        let claim = Claim { config: config.clone(), attributes: attributes.borrow().clone(), previous };
        match store.acquire(&claim).await {
            Ok(lease) => break lease,
            // There is a lease from the last run to go on with, so that its pods keep their network.
            Err(error @ AcquireError::NoneFree(_)) if own.borrow().is_none() => return Err(error.into()),
            Err(error) => {
                let (what, remedy) = match &error {
                    AcquireError::NoneFree(_) => {
                        (error.to_string(), "remove leases that nobody holds any more (`flannelctl leases`)")
                    }
                    AcquireError::NoPodCidr { node, why, remedy } => {
                        // A new node gets one within a second or two, and its pods wait for us.
                        retry.at_least_every(Duration::from_secs(1));
                        (format!("node {node:?}: {why}"), *remedy)
                    }
                    _ => (error.to_string(), ""),
                };
                board.failing("lease", [(what, remedy.to_owned())]);
                retry.pause(&error).await;
            }
        }
    };
    tracing::info!(subnets = %lease.subnets, "this node has a lease");
    board.failing("lease", []);
    let held = Kept { lease: lease.clone(), state: KeptState::Held, expires: None };
    own.send_replace(Some(held.clone().into()));
    let (said, mut kept) = watch::channel(held);
    let forward = async {
        while kept.changed().await.is_ok() {
            let now = Own::from(kept.borrow_and_update().clone());
            match now.state {
                LeaseState::Held => tracing::debug!(subnets = %now.lease.subnets, "the lease is held"),
                _ => {
                    tracing::warn!(subnets = %now.lease.subnets, state = ?now.state, "the lease: {}", now.detail)
                }
            }
            let wrong = (now.state != LeaseState::Held).then(|| {
                let what = format!("the lease of {} is not held: {}", now.lease.subnets, now.detail);
                (what, remedy(now.state).to_owned())
            });
            board.failing("lease", wrong);
            own.send_replace(Some(now));
        }
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        never = store.keep(lease, config, attributes, said) => match never {},
        never = forward => match never {},
    }
}

/// Keeps the subnet file equal to the lease until dropped, from when the node can carry traffic.
pub async fn keep_subnet_file(
    path: &Path,
    (config, ip_masq): (&NetworkConfig, bool),
    mut external: watch::Receiver<ExternalInterface>,
    mut own: watch::Receiver<Option<Own>>,
    board: &Board,
) -> Infallible {
    board.wait_for(Step::Node).await;
    let mut retry = Retry::new("write the subnet file");
    loop {
        let subnets = own.borrow_and_update().as_ref().map(|own| own.lease.subnets);
        let mtu = config.backend.mtu(config, &external.borrow_and_update());
        if let Some(subnets) = subnets {
            let text = content(config, subnets, mtu, ip_masq).render();
            let path = path.to_owned();
            // Disks take their time.
            let written = tokio::task::spawn_blocking(move || write(&path, &text)).await;
            match written.unwrap_or_else(|panicked| Err(panicked.into())) {
                Ok(()) => {
                    board.failing("subnet file", []);
                    board.done(Step::SubnetFile);
                    retry = Retry::new("write the subnet file");
                }
                Err(error) => {
                    let remedy = "make room or permit it there; it is tried again by itself";
                    board.failing("subnet file", [(format!("{error:#}"), remedy.to_owned())]);
                    retry.pause(&error).await;
                    continue;
                }
            }
        }
        tokio::select! {
            changed = own.changed() => if changed.is_err() { return std::future::pending().await },
            changed = external.changed() => if changed.is_err() { return std::future::pending().await },
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
    }
}

fn remedy(state: LeaseState) -> &'static str {
    match state {
        LeaseState::Taken => {
            "if two nodes have one address, give each its own (--iface, --public-ip) and restart the wrong one; \
             the lease is taken back once the other node's is gone"
        }
        _ => "it is taken back as soon as that is possible",
    }
}

fn content(config: &NetworkConfig, subnets: Subnets, mtu: u32, ip_masq: bool) -> SubnetFile {
    SubnetFile {
        networks: config.ipv4.iter().map(|net| net.network).collect(),
        subnet: config.ipv4.and(subnets.ipv4),
        ipv6_networks: config.ipv6.iter().map(|net| net.network).collect(),
        ipv6_subnet: config.ipv6.and(subnets.ipv6),
        mtu: Some(mtu),
        ip_masq: Some(ip_masq),
    }
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    if std::fs::read_to_string(path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    whole_file::write(path, |to| to.write_all(text.as_bytes()))?;
    tracing::info!("wrote the subnet file {}", path.display());
    Ok(())
}
