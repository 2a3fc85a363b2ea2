//! The few operations that every store offers: records by key, compare-and-swap, and a watch.
//!
//! Everything above ([`crate::registration`], [`crate::follow`]) is written once over [`Registry`].

use std::time::Duration;

use fabric::lease::{Attributes, Lease, LeaseSet, Subnets};
use tokio::time::Instant;

use crate::etcd::{Etcd, EtcdWatch};
use crate::file::{Directory, DirectoryWatch};
use crate::health::Health;
use crate::{Listing, StoreError};

/// One record below `subnets/`, as the store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// The last part of the key.
    pub(crate) key: String,
    pub(crate) value: Vec<u8>,
    /// When it was created, see [`Lease::created`].
    pub(crate) created: u64,
    /// When it was last written; what compare-and-swap compares.
    pub(crate) modified: u64,
    pub(crate) expires: Expiry,
}

/// When a record goes away by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expiry {
    /// It does not: a reservation, written by somebody without a term.
    Never,
    At(Instant),
    /// It does, but nobody asked when.
    Unknown,
}

/// A moment of the store. Moments of different origins (etcd clusters) cannot be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Revision {
    pub(crate) origin: u64,
    pub(crate) number: u64,
}

/// What became of a write that wants the store to be in a certain state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Written {
    /// It is done; the record as it is now (for a deletion: as it was).
    Done(Record),
    /// The store was in another state, and has not been changed.
    Conflict,
}

/// Changes, in order, up to a moment.
#[derive(Debug, Clone)]
pub(crate) struct Batch {
    pub(crate) events: Vec<Event>,
    pub(crate) revision: Revision,
}

/// One change below `subnets/`, with the number of the revision that made it.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    Put(Record),
    Delete { key: String, at: u64 },
}

/// Why a watch has ended.
#[derive(Debug, Clone)]
pub(crate) enum WatchEnd {
    /// It can go on from where it was, once the store is back.
    Lost(StoreError),
    /// Changes were missed for good: list again. The reason, for the log.
    StartOver(String),
}

impl From<StoreError> for WatchEnd {
    fn from(error: StoreError) -> WatchEnd {
        WatchEnd::Lost(error)
    }
}

/// What a store must be able to do. Each call is one try, bounded in time.
pub(crate) trait Registry {
    type Watch: Watch;

    /// Where it is, for people.
    fn describe(&self) -> String;
    fn identity(&self) -> String;

    async fn config(&self) -> Result<String, StoreError>;
    async fn set_config(&self, json: &str) -> Result<(), StoreError>;

    /// Hands every record to `visit` and returns the moment of the list. Not collected here, since
    /// ten thousand records are read page by page.
    async fn list(&self, visit: &mut (dyn FnMut(Record) + Send)) -> Result<Revision, StoreError>;
    /// One record; says when it expires.
    async fn get(&self, key: &str) -> Result<Option<Record>, StoreError>;

    /// Writes a record unless there is one.
    async fn create(&self, key: &str, value: &str, ttl: Option<Duration>) -> Result<Written, StoreError>;
    /// Writes over `held` unless it was written in the meantime.
    async fn replace(&self, held: &Record, value: &str, ttl: Option<Duration>)
    -> Result<Written, StoreError>;
    /// Deletes `held` unless it was written in the meantime.
    async fn delete(&self, held: &Record) -> Result<Written, StoreError>;

    /// All changes after a moment, or from now on: a list made after this call misses nothing.
    async fn watch(&self, after: Option<Revision>) -> Result<Self::Watch, WatchEnd>;
}

/// A watch that is open.
pub(crate) trait Watch {
    /// The next changes. Cancel-safe.
    async fn next(&mut self) -> Result<Batch, WatchEnd>;
}

impl Record {
    /// The lease that the record holds, or why there is none in it.
    pub(crate) fn lease(&self) -> Result<Lease, String> {
        let subnets = subnets_of(&self.key)?;
        let attributes = Attributes::from_json(&self.value).map_err(|error| error.to_string())?;
        Ok(Lease { subnets, attributes, created: self.created })
    }

    /// Puts the record into a set, as a lease or among those that could not be read; says whether
    /// that changed the set. A renewal does not.
    pub(crate) fn enter(&self, set: &mut LeaseSet) -> bool {
        match self.lease() {
            Ok(lease) => {
                let readable_again = set.skipped.remove(&self.key).is_some();
                let changed = set.get(&lease.subnets).is_none_or(|known| **known != lease);
                if changed {
                    set.insert(lease);
                }
                changed || readable_again
            }
            Err(reason) => {
                if set.skipped.get(&self.key) == Some(&reason) {
                    return false;
                }
                forget(&self.key, set);
                set.skipped.insert(self.key.clone(), reason);
                true
            }
        }
    }

    /// Whether somebody wrote it to stay.
    pub(crate) fn is_reservation(&self) -> bool {
        self.expires == Expiry::Never
    }
}

/// The subnets that a key names. Only one key may stand for them: were there two, what becomes of the one
/// would be done to the lease of the other.
fn subnets_of(key: &str) -> Result<Subnets, String> {
    let subnets = Subnets::from_key(key).map_err(|error| error.to_string())?;
    match subnets.key() {
        usual if usual == key => Ok(subnets),
        usual => Err(format!("{key:?} is another way to write {usual:?}: put its value there")),
    }
}

/// Takes a key out of a set, whatever was known of it; says whether that changed the set.
pub(crate) fn forget(key: &str, set: &mut LeaseSet) -> bool {
    let was_skipped = set.skipped.remove(key).is_some();
    let was_leased = subnets_of(key).is_ok_and(|subnets| set.remove(&subnets).is_some());
    was_skipped || was_leased
}

/// Everything in a registry at one moment.
pub(crate) async fn gather<R: Registry>(registry: &R) -> Result<(Listing, Revision), StoreError> {
    let mut listing = Listing::default();
    let revision = registry
        .list(&mut |record| {
            record.enter(&mut listing.leases);
            if record.is_reservation()
                && let Ok(subnets) = subnets_of(&record.key)
            {
                listing.reservations.insert(subnets);
            }
        })
        .await?;
    Ok((listing, revision))
}

/// Takes away the record of these subnets, whoever has written it; says whether there was one.
pub(crate) async fn remove<R: Registry>(registry: &R, subnets: &Subnets) -> Result<bool, StoreError> {
    while let Some(record) = registry.get(&subnets.key()).await? {
        if let Written::Done(_) = registry.delete(&record).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// One of the stores, and how it fares.
#[derive(Debug)]
pub(crate) struct Backing {
    pub(crate) kind: Kind,
    pub(crate) health: Health,
}

/// The stores there are.
#[derive(Debug)]
pub(crate) enum Kind {
    Etcd(Etcd),
    File(Directory),
}

/// A watch of one of the stores.
pub(crate) enum AnyWatch {
    Etcd(EtcdWatch),
    File(DirectoryWatch),
}

/// Calls the store that it is, and takes note of the outcome.
macro_rules! ask {
    ($backing:expr, $call:ident ( $($argument:expr),* )) => {{
        let outcome = match &$backing.kind {
            Kind::Etcd(etcd) => etcd.$call($($argument),*).await,
            Kind::File(directory) => directory.$call($($argument),*).await,
        };
        $backing.health.note(outcome)
    }};
}

impl Registry for Backing {
    type Watch = AnyWatch;

    fn describe(&self) -> String {
        match &self.kind {
            Kind::Etcd(etcd) => etcd.describe(),
            Kind::File(directory) => directory.describe(),
        }
    }

    fn identity(&self) -> String {
        match &self.kind {
            Kind::Etcd(etcd) => etcd.identity(),
            Kind::File(directory) => directory.identity(),
        }
    }

    async fn config(&self) -> Result<String, StoreError> {
        ask!(self, config())
    }

    async fn set_config(&self, json: &str) -> Result<(), StoreError> {
        ask!(self, set_config(json))
    }

    async fn list(&self, visit: &mut (dyn FnMut(Record) + Send)) -> Result<Revision, StoreError> {
        ask!(self, list(visit))
    }

    async fn get(&self, key: &str) -> Result<Option<Record>, StoreError> {
        ask!(self, get(key))
    }

    async fn create(&self, key: &str, value: &str, ttl: Option<Duration>) -> Result<Written, StoreError> {
        ask!(self, create(key, value, ttl))
    }

    async fn replace(
        &self,
        held: &Record,
        value: &str,
        ttl: Option<Duration>,
    ) -> Result<Written, StoreError> {
        ask!(self, replace(held, value, ttl))
    }

    async fn delete(&self, held: &Record) -> Result<Written, StoreError> {
        ask!(self, delete(held))
    }

    async fn watch(&self, after: Option<Revision>) -> Result<AnyWatch, WatchEnd> {
        match &self.kind {
            Kind::Etcd(etcd) => etcd.watch(after).await.map(AnyWatch::Etcd),
            Kind::File(directory) => directory.watch(after).await.map(AnyWatch::File),
        }
    }
}

impl Watch for AnyWatch {
    async fn next(&mut self) -> Result<Batch, WatchEnd> {
        match self {
            AnyWatch::Etcd(watch) => watch.next().await,
            AnyWatch::File(watch) => watch.next().await,
        }
    }
}
