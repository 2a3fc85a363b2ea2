//! Where leases come from, behind one type: etcd for a cluster, a directory for one machine.
//!
//! A [`Store`] is a cheap handle. Short calls ([`Store::network_config`], [`Store::acquire`]) try
//! once, bounded in time, and say what failed; the two things that wait are written as loops that
//! never give up: [`Store::leases`] publishes the whole set of leases whenever any changes, and
//! [`Store::keep`] holds on to our own lease for as long as it is polled.
//!
//! The keys and values are the original's, byte for byte (see [`fabric::lease`]); a directory holds
//! the same keys and the same JSON as etcd does.

#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use fabric::config::NetworkConfig;
use fabric::lease::{Attributes, Lease, LeaseSet, Subnets};
use tokio::sync::watch;

/// A store of leases. Clones share their connection, their follower and their health.
///
/// Made inside a tokio runtime (a current-thread one will do); nothing is contacted before the
/// first call.
#[derive(Debug, Clone)]
pub struct Store {}

/// How an etcd cluster is reached.
#[derive(Debug, Clone)]
pub struct EtcdOptions {
    /// `http://host:port` or `https://host:port`; one that is down is passed over.
    pub endpoints: Vec<String>,
    /// What all keys begin with, `/coreos.com/network`.
    pub prefix: String,
    /// The certificate authorities to trust, PEM; the system's where there is none.
    pub ca_file: Option<PathBuf>,
    /// Our certificate, PEM; only together with `key_file`.
    pub cert_file: Option<PathBuf>,
    /// The private key of our certificate, PEM.
    pub key_file: Option<PathBuf>,
    /// The name to log in with; only together with `password`.
    pub username: Option<String>,
    /// The password to log in with. Never shown.
    pub password: Option<Secret>,
}

impl Default for EtcdOptions {
    fn default() -> EtcdOptions {
        EtcdOptions {
            endpoints: vec!["http://127.0.0.1:4001".into(), "http://127.0.0.1:2379".into()],
            prefix: "/coreos.com/network".into(),
            ca_file: None,
            cert_file: None,
            key_file: None,
            username: None,
            password: None,
        }
    }
}

/// A text that is never shown.
#[derive(Clone)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

/// How long a lease lives, and how long before its end it is renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// From a renewal to the end of the lease. Whole seconds, at least one.
    pub ttl: Duration,
    /// How long before its end a lease is renewed.
    pub renew_margin: Duration,
}

impl Default for Terms {
    /// The original's: a day, renewed an hour before its end.
    fn default() -> Terms {
        Terms { ttl: Duration::from_secs(24 * 3600), renew_margin: Duration::from_secs(3600) }
    }
}

/// What a node asks for.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The network to lease a subnet out of.
    pub config: NetworkConfig,
    /// What to tell the other nodes. The public addresses also find a lease of ours from before.
    pub attributes: Attributes,
    /// The subnets of the last run, from `subnet.env` or the snapshot; the default if there was none.
    pub previous: Subnets,
}

/// How our own lease stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The lease, with the attributes that are in the store (or should be).
    pub lease: Lease,
    /// Whether it is in the store.
    pub state: KeptState,
}

/// Whether our own lease is in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeptState {
    /// It is, and it is ours.
    Held,
    /// It was revoked or ran out; it is put back as soon as the store lets us.
    Lost {
        /// What happened, and what was tried.
        reason: String,
    },
    /// Another node has written itself into our subnet. We keep quiet until it is gone.
    TakenByAnother {
        /// What that node says of itself.
        by: Attributes,
    },
}

/// Whether the store answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreHealth {
    /// Nothing has been asked yet, or no answer has come yet.
    Unknown,
    /// The last thing asked was answered.
    Reachable {
        /// Since when.
        since: SystemTime,
    },
    /// The last thing asked was not answered.
    Unreachable {
        /// Since when.
        since: SystemTime,
        /// The last error, with what was attempted and where.
        error: String,
    },
}

/// The leases of a moment, for people.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// All leases, and the records that could not be read.
    pub leases: LeaseSet,
    /// Those among them that never run out, because somebody wrote them without a term.
    pub reservations: std::collections::BTreeSet<Subnets>,
}

/// A call to the store that failed: what was attempted, where, why, and what to do about it.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// There is no network configuration yet.
    #[error("no network configuration at {place}: write one, for instance with `flannelctl network set`")]
    NoNetworkConfig {
        /// The key or the file that was looked for.
        place: String,
    },
}

/// Why no lease could be had.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum AcquireError {
    /// The store did not answer or refused; worth another try.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Every subnet is leased. Trying again helps only once a lease has run out or was removed.
    #[error(transparent)]
    NoneFree(#[from] fabric::allocation::AllocationError),
}

impl Store {
    /// The store in an etcd cluster. Reads the TLS files; contacts nobody yet.
    pub fn etcd(_options: EtcdOptions) -> Result<Store, StoreError> {
        todo!()
    }

    /// The store in a directory: `<dir>/config` and `<dir>/subnets/<key>`. Made if it is not there.
    pub fn file(_dir: impl AsRef<Path>) -> Result<Store, StoreError> {
        todo!()
    }

    /// The same store with other terms for the leases that we acquire and keep.
    pub fn with_terms(self, _terms: Terms) -> Store {
        todo!()
    }

    /// What this is, for logs: `etcd at http://127.0.0.1:2379`, `the directory /var/lib/flannel`.
    pub fn describe(&self) -> String {
        todo!()
    }

    /// The network configuration, as it is written. One try.
    pub async fn network_config(&self) -> Result<String, StoreError> {
        todo!()
    }

    /// Writes the network configuration. One try; the text is not checked.
    pub async fn set_network_config(&self, _json: &str) -> Result<(), StoreError> {
        todo!()
    }

    /// Leases subnets to this node: those it had, or free ones. One acquisition, in which other
    /// nodes that are faster are made way for; an error of the store ends it.
    pub async fn acquire(&self, _claim: &Claim) -> Result<Lease, AcquireError> {
        todo!()
    }

    /// All leases, ours included, from now on: `None` until the first list is complete.
    ///
    /// The follower is started by the first call and ends with the last clone of the store. A store
    /// that is away changes nothing here.
    pub fn leases(&self) -> watch::Receiver<Option<LeaseSet>> {
        todo!()
    }

    /// Keeps our lease until dropped: renews it, writes changed attributes, and puts it back with
    /// the same subnets after it was revoked or ran out. Says in `own` how it stands.
    pub async fn keep(
        &self,
        _lease: Lease,
        _attributes: watch::Receiver<Attributes>,
        _own: watch::Sender<Kept>,
    ) -> Infallible {
        todo!()
    }

    /// Whether the store answers; follows every call made through any clone of the store.
    pub fn health(&self) -> watch::Receiver<StoreHealth> {
        todo!()
    }

    /// The leases of this moment. One try.
    pub async fn list(&self) -> Result<Listing, StoreError> {
        todo!()
    }

    /// Takes a lease away, whoever holds it; says whether there was one. One try.
    pub async fn remove(&self, _subnets: &Subnets) -> Result<bool, StoreError> {
        todo!()
    }
}
