//! Where leases come from, behind one type: etcd or the Kubernetes API for a cluster, a directory for one
//! machine.
//!
//! A [`Store`] is a cheap handle. Short calls ([`Store::network_config`], [`Store::acquire`]) try
//! once, bounded in time, and say what failed; the two things that wait are written as loops that
//! never give up: [`Store::leases`] publishes the whole set of leases whenever any changes, and
//! [`Store::keep`] holds on to our own lease for as long as it is polled.
//!
//! The keys and values are the original's, byte for byte (see [`fabric::lease`]); a directory holds
//! the same keys and the same JSON as etcd does. In Kubernetes a lease is a Node, by its podCIDRs and
//! the original's annotations.

#![forbid(unsafe_code)]

mod anchored;
mod backoff;
mod connect;
mod error;
mod etcd;
mod file;
mod follow;
mod health;
mod kube;
mod registration;
mod registry;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use fabric::config::NetworkConfig;
use fabric::lease::{Attributes, Lease, LeaseSet, Subnets};
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use error::{AcquireError, StoreError};
pub use etcd::{EtcdOptions, Secret};
use health::Health;
pub use health::{StoreCounts, StoreHealth};
use kube::Kube;
pub use kube::{KubeEvent, KubeNode, KubeOptions, PublicAddresses};
use registration::Surroundings;
use registry::{Backing, Kind, Registry};

/// A store of leases. Clones share their connection, their follower and their health.
///
/// Lives inside a tokio runtime (a current-thread one will do); nothing is contacted before the
/// first call.
#[derive(Debug, Clone)]
pub struct Store {
    shared: Arc<Shared>,
    terms: Terms,
}

/// What clones share.
#[derive(Debug)]
struct Shared {
    source: Source,
    follower: OnceLock<Follower>,
}

/// Where the leases are.
#[derive(Debug, Clone)]
enum Source {
    /// Records that nodes write and that run out.
    Records(Arc<Backing>),
    /// Nodes of Kubernetes.
    Nodes(Arc<Kube>),
}

/// The task that follows the leases; it ends with the last handle of its store.
#[derive(Debug)]
struct Follower {
    leases: watch::Receiver<Option<LeaseSet>>,
    task: JoinHandle<()>,
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
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

impl Terms {
    /// The margin, cut where it would leave no time between renewals.
    fn margin(&self) -> Duration {
        self.renew_margin.min(self.ttl.saturating_sub(Duration::from_secs(1).min(self.ttl / 2)))
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
    /// When the store forgets it unless it is renewed; none for a reservation, or when unknown.
    pub expires: Option<SystemTime>,
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

/// The leases of a moment, for people.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// All leases, and the records that could not be read.
    pub leases: LeaseSet,
    /// Those among them that never run out, because somebody wrote them without a term.
    pub reservations: BTreeSet<Subnets>,
}

impl Store {
    /// The store in an etcd cluster. Reads the TLS files; contacts nobody yet.
    pub fn etcd(options: EtcdOptions) -> Result<Store, StoreError> {
        Ok(Store::new(Kind::Etcd(etcd::Etcd::new(options)?)))
    }

    /// The store in a directory: `<dir>/config` and `<dir>/subnets/<key>`. Made if it is not there.
    pub fn file(dir: impl AsRef<Path>) -> Result<Store, StoreError> {
        Ok(Store::new(Kind::File(file::Directory::open(dir.as_ref())?)))
    }

    /// The store in the Kubernetes API: each Node is a lease, by its podCIDRs and flannel's annotations.
    /// Checks what can be checked without asking anybody.
    ///
    /// The network configuration is a file; it cannot be set, and leases cannot be removed: they end with
    /// their Nodes. A node that has no podCIDR yet gets [`AcquireError::NoPodCidr`]; try again until it has.
    /// [`Store::keep`] writes our annotations anew when somebody has changed them or the Node was created
    /// again; where the Node has other podCIDRs then, so has [`Kept::lease`].
    pub fn kube(options: KubeOptions) -> Result<Store, StoreError> {
        Ok(Store::of(Source::Nodes(Arc::new(Kube::new(options)?))))
    }

    /// What only Kubernetes offers; none for the other stores.
    pub fn kube_node(&self) -> Option<KubeNode> {
        match &self.shared.source {
            Source::Records(_) => None,
            Source::Nodes(kube) => Some(kube::node_of(kube)),
        }
    }

    fn new(kind: Kind) -> Store {
        Store::of(Source::Records(Arc::new(Backing { kind, health: Health::new() })))
    }

    fn of(source: Source) -> Store {
        let shared = Arc::new(Shared { source, follower: OnceLock::new() });
        Store { shared, terms: Terms::default() }
    }

    /// Hands out podCIDRs of a network to Nodes that have none, for as long as it is polled: for clusters in
    /// which no controller-manager does. Only for Kubernetes; waits forever with the other stores.
    ///
    /// Any number of nodes may do it at once: a lock, and conditions on every write, see to it that no two
    /// Nodes get the same. Needs rights that flannel has not by itself; without them it is said once which.
    pub async fn allocate_node_cidrs(&self, config: &NetworkConfig) -> Infallible {
        // Who misses podCIDRs is seen by the follower.
        let _leases = self.leases();
        match &self.shared.source {
            Source::Records(_) => std::future::pending().await,
            Source::Nodes(kube) => kube::allocate(kube, config).await,
        }
    }

    /// The same store with other terms for the leases that we acquire and keep.
    pub fn with_terms(self, terms: Terms) -> Store {
        Store { terms, ..self }
    }

    /// What this is, for logs: `etcd at http://127.0.0.1:2379, below /coreos.com/network`, `the
    /// directory /var/lib/flannel`.
    pub fn describe(&self) -> String {
        match &self.shared.source {
            Source::Records(backing) => backing.describe(),
            Source::Nodes(kube) => kube.describe(),
        }
    }

    /// Which leases these are, whichever member of a cluster is asked: the prefix or the directory.
    pub fn identity(&self) -> String {
        match &self.shared.source {
            Source::Records(backing) => backing.identity(),
            Source::Nodes(kube) => kube.identity(),
        }
    }

    /// The network configuration, as it is written. One try.
    pub async fn network_config(&self) -> Result<String, StoreError> {
        match &self.shared.source {
            Source::Records(backing) => backing.config().await,
            Source::Nodes(kube) => kube.network_config().await,
        }
    }

    /// Writes the network configuration. One try; the text is not checked.
    pub async fn set_network_config(&self, json: &str) -> Result<(), StoreError> {
        match &self.shared.source {
            Source::Records(backing) => backing.set_config(json).await,
            Source::Nodes(kube) => Err(kube.refuse_config()),
        }
    }

    /// Leases subnets to this node: those it had, or free ones. One acquisition, in which other
    /// nodes that are faster are made way for; an error of the store ends it.
    ///
    /// Where the follower has listed the leases already, that list is used.
    pub async fn acquire(&self, claim: &Claim) -> Result<Lease, AcquireError> {
        match &self.shared.source {
            Source::Records(backing) => {
                let known = self.shared.follower.get().and_then(|follower| follower.leases.borrow().clone());
                registration::acquire(&**backing, self.terms, claim, known).await
            }
            Source::Nodes(kube) => kube::acquire(kube, claim).await,
        }
    }

    /// All leases, ours included, from now on: `None` until the first list is complete.
    ///
    /// The follower is started by the first call and ends with the last clone of the store. A store
    /// that is away changes nothing here.
    pub fn leases(&self) -> watch::Receiver<Option<LeaseSet>> {
        let follower = self.shared.follower.get_or_init(|| {
            let source = self.shared.source.clone();
            let (sender, leases) = watch::channel(None);
            let task = tokio::spawn(async move {
                match source {
                    Source::Records(backing) => {
                        match follow::follow(&*backing, &sender, &backing.health).await {}
                    }
                    Source::Nodes(kube) => match kube.follow(&sender).await {},
                }
            });
            Follower { leases, task }
        });
        follower.leases.clone()
    }

    /// Keeps our lease until dropped: renews it, writes changed attributes, and puts it back with
    /// the same subnets after it was revoked or ran out. Says in `own` how it stands.
    ///
    /// A lease that was not acquired just now (from a snapshot, say) is looked at first.
    pub async fn keep(
        &self,
        lease: Lease,
        config: &NetworkConfig,
        attributes: watch::Receiver<Attributes>,
        own: watch::Sender<Kept>,
    ) -> Infallible {
        let around = Surroundings { config: config.clone(), attributes, leases: self.leases() };
        match &self.shared.source {
            Source::Records(backing) => registration::keep(&**backing, self.terms, lease, around, own).await,
            Source::Nodes(kube) => kube::keep(kube, lease, around, own).await,
        }
    }

    /// Whether the store answers; follows every call made through any clone of the store.
    pub fn health(&self) -> watch::Receiver<StoreHealth> {
        match &self.shared.source {
            Source::Records(backing) => backing.health.subscribe(),
            Source::Nodes(kube) => kube.health.subscribe(),
        }
    }

    /// What the store has said so far, for counters.
    pub fn counts(&self) -> StoreCounts {
        match &self.shared.source {
            Source::Records(backing) => backing.health.counts(),
            Source::Nodes(kube) => kube.health.counts(),
        }
    }

    /// To be told when this host has moved to other addresses: what was asked over connections from
    /// the old ones is asked again at once, instead of when nobody has answered for a while.
    pub fn host_has_moved(&self) {
        match &self.shared.source {
            Source::Records(backing) => {
                if let Kind::Etcd(etcd) = &backing.kind {
                    etcd.reconnect();
                }
            }
            Source::Nodes(kube) => kube.reconnect(),
        }
    }

    /// The leases of this moment. One try.
    pub async fn list(&self) -> Result<Listing, StoreError> {
        match &self.shared.source {
            Source::Records(backing) => Ok(registry::gather(&**backing).await?.0),
            Source::Nodes(kube) => kube.list().await,
        }
    }

    /// Takes a lease away, whoever holds it; says whether there was one. One try.
    pub async fn remove(&self, subnets: &Subnets) -> Result<bool, StoreError> {
        match &self.shared.source {
            Source::Records(backing) => registry::remove(&**backing, subnets).await,
            Source::Nodes(_) => Err(StoreError::Options(format!(
                "the lease {subnets} belongs to its Node: it ends with that (`kubectl delete node …`)"
            ))),
        }
    }
}
