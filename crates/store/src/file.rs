//! Leases in a directory, for the nodes of one machine.
//!
//! | file | what |
//! |---|---|
//! | `config` | the network configuration, as etcd has it |
//! | `subnets/<key>` | a lease: the same key and the same JSON as in etcd |
//! | `terms/<key>` | when that lease was created and when it runs out |
//! | `revision` | a number that grows with every write; creations are numbered by it |
//! | `lock` | held (flock) by whoever writes |
//!
//! Every file is written beside its place, synced and renamed, so a crash leaves the old or the new
//! one; a torn one (another program's) costs only itself. `terms` is written before its lease: a
//! lease that has one runs out when the clock says so, one that has none was put there by somebody's
//! hand and is a reservation. The follower of any node takes away what has run out.

mod files;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::StoreError;
use crate::error::WRITE_ONE;
use crate::registry::{Expiry, Record, Registry, Revision, WatchEnd, Written};
use files::Lock;
pub(crate) use watch::DirectoryWatch;

/// No lease is longer: what is beyond is not read.
const LONGEST_VALUE: u64 = 64 * 1024;

/// The store in a directory.
#[derive(Debug, Clone)]
pub(crate) struct Directory {
    places: Arc<Places>,
}

/// Where things are.
#[derive(Debug)]
struct Places {
    root: PathBuf,
    config: PathBuf,
    subnets: PathBuf,
    terms: PathBuf,
    revision: PathBuf,
    lock: PathBuf,
}

/// The content of `terms/<key>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Terms {
    created: u64,
    modified: u64,
    /// Milliseconds since 1970; none for a reservation.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<u64>,
}

/// A reservation is older than any lease that was ever written here.
const BY_HAND: Terms = Terms { created: 0, modified: 1, expires: None };

impl Directory {
    /// The store in `root`, which is made if it is not there.
    pub(crate) fn open(root: &Path) -> Result<Directory, StoreError> {
        let places = Places {
            root: root.to_owned(),
            config: root.join("config"),
            subnets: root.join("subnets"),
            terms: root.join("terms"),
            revision: root.join("revision"),
            lock: root.join("lock"),
        };
        for dir in [&places.subnets, &places.terms] {
            std::fs::create_dir_all(dir).map_err(files::failed("make the directory", dir))?;
        }
        Ok(Directory { places: Arc::new(places) })
    }

    /// Runs file work where it does not hold up the event loop: a sync may take long.
    async fn off_the_loop<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Places) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let places = self.places.clone();
        match tokio::task::spawn_blocking(move || work(&places)).await {
            Ok(outcome) => outcome,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }
}

impl Registry for Directory {
    type Watch = DirectoryWatch;

    fn describe(&self) -> String {
        format!("the directory {}", self.places.root.display())
    }

    fn identity(&self) -> String {
        self.describe()
    }

    async fn config(&self) -> Result<String, StoreError> {
        self.off_the_loop(|places| {
            std::fs::read_to_string(&places.config).map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => StoreError::NoNetworkConfig {
                    place: places.config.display().to_string(),
                    remedy: WRITE_ONE,
                },
                _ => files::failed("read the network configuration", &places.config)(error),
            })
        })
        .await
    }

    async fn set_config(&self, json: &str) -> Result<(), StoreError> {
        let json = json.to_owned();
        self.off_the_loop(move |places| {
            let _lock = Lock::take(&places.lock)?;
            files::write(&places.config, json.as_bytes())
        })
        .await
    }

    async fn list(&self, visit: &mut (dyn FnMut(Record) + Send)) -> Result<Revision, StoreError> {
        let records = self.off_the_loop(Places::records).await?;
        records.into_iter().map(|(record, _)| record).for_each(visit);
        // The watch reads the files anew, so nothing that it says is older than this list.
        Ok(Revision { origin: 0, number: 0 })
    }

    async fn get(&self, key: &str) -> Result<Option<Record>, StoreError> {
        let key = key.to_owned();
        self.off_the_loop(move |places| Ok(places.record(&key)?.map(|(record, _)| record))).await
    }

    async fn create(&self, key: &str, value: &str, ttl: Option<Duration>) -> Result<Written, StoreError> {
        let (key, value) = (key.to_owned(), value.to_owned());
        self.off_the_loop(move |places| {
            let _lock = Lock::take(&places.lock)?;
            match places.record(&key)? {
                Some(_) => Ok(Written::Conflict),
                None => places.write(&key, &value, None, ttl).map(Written::Done),
            }
        })
        .await
    }

    async fn replace(
        &self,
        held: &Record,
        value: &str,
        ttl: Option<Duration>,
    ) -> Result<Written, StoreError> {
        let (held, value) = (held.clone(), value.to_owned());
        self.off_the_loop(move |places| {
            let _lock = Lock::take(&places.lock)?;
            match places.record(&held.key)? {
                Some((now, _)) if is_same(&now, &held) => {
                    places.write(&held.key, &value, Some(held.created), ttl).map(Written::Done)
                }
                _ => Ok(Written::Conflict),
            }
        })
        .await
    }

    async fn delete(&self, held: &Record) -> Result<Written, StoreError> {
        let held = held.clone();
        self.off_the_loop(move |places| {
            let _lock = Lock::take(&places.lock)?;
            match places.record(&held.key)? {
                Some((now, _)) if is_same(&now, &held) => {
                    places.remove(&held.key)?;
                    Ok(Written::Done(held))
                }
                _ => Ok(Written::Conflict),
            }
        })
        .await
    }

    async fn watch(&self, after: Option<Revision>) -> Result<DirectoryWatch, WatchEnd> {
        if after.is_some() {
            return Err(WatchEnd::StartOver("the directory is watched anew".into()));
        }
        Ok(DirectoryWatch::open(self.clone()).await?)
    }
}

/// Somebody's editor changes the value and leaves the terms alone.
fn is_same(now: &Record, held: &Record) -> bool {
    now.modified == held.modified && now.value == held.value
}

impl Places {
    /// All records that have not run out, each with the time when it will.
    fn records(&self) -> Result<Vec<(Record, Option<SystemTime>)>, StoreError> {
        let unreadable = || files::failed("list", &self.subnets);
        let mut records = Vec::new();
        for entry in std::fs::read_dir(&self.subnets).map_err(unreadable())? {
            let name = entry.map_err(unreadable())?.file_name();
            let key = name.to_string_lossy();
            if !files::is_temporary(&key) {
                records.extend(self.record(&key)?);
            }
        }
        Ok(records)
    }

    /// One record, with the time when it runs out; none if there is none or it has run out.
    fn record(&self, key: &str) -> Result<Option<(Record, Option<SystemTime>)>, StoreError> {
        let path = self.subnets.join(key);
        let value = match files::read_up_to(&path, LONGEST_VALUE) {
            Ok(value) => value,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            // Reading fails again where the value is decoded, as an empty one: only this is lost.
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a lease cannot be read");
                Vec::new()
            }
        };
        let terms = self.terms_of(key);
        let expires = terms.expires.map(|millis| SystemTime::UNIX_EPOCH + Duration::from_millis(millis));
        let left = match expires {
            None => None,
            Some(expires) => match expires.duration_since(SystemTime::now()) {
                Ok(left) if !left.is_zero() => Some(left),
                _ => return Ok(None),
            },
        };
        let record = Record {
            key: key.to_owned(),
            value,
            created: terms.created,
            modified: terms.modified,
            expires: left.map_or(Expiry::Never, |left| Expiry::At(Instant::now() + left)),
        };
        Ok(Some((record, expires)))
    }

    fn terms_of(&self, key: &str) -> Terms {
        let text = files::read_up_to(&self.terms.join(key), LONGEST_VALUE).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or(BY_HAND)
    }

    /// Writes a record. The lock is held.
    fn write(
        &self,
        key: &str,
        value: &str,
        created: Option<u64>,
        ttl: Option<Duration>,
    ) -> Result<Record, StoreError> {
        let modified = self.next_revision()?;
        let until = |ttl| SystemTime::now() + ttl;
        let millis = |time: SystemTime| {
            time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
        };
        let asked = Instant::now();
        let terms =
            Terms { created: created.unwrap_or(modified), modified, expires: ttl.map(until).map(millis) };
        let text = serde_json::to_vec(&terms).expect("three numbers have a JSON form");
        files::write(&self.terms.join(key), &text)?;
        files::write(&self.subnets.join(key), value.as_bytes())?;
        Ok(Record {
            key: key.to_owned(),
            value: value.as_bytes().to_vec(),
            created: terms.created,
            modified,
            expires: ttl.map_or(Expiry::Never, |ttl| Expiry::At(asked + ttl)),
        })
    }

    /// Removes a record, its terms last: the other way round a crash would make it a reservation.
    fn remove(&self, key: &str) -> Result<(), StoreError> {
        files::remove(&self.subnets.join(key))?;
        files::remove(&self.terms.join(key))
    }

    /// Takes away what is left of a record that has run out, or whose lease was removed by hand.
    fn sweep(&self, key: &str) -> Result<(), StoreError> {
        let _lock = Lock::take(&self.lock)?;
        match self.record(key)? {
            Some(_) => Ok(()),
            None => self.remove(key),
        }
    }

    /// The number of the next write. Where the file is lost, counting goes on after the largest
    /// number that was ever given out. The lock is held.
    fn next_revision(&self) -> Result<u64, StoreError> {
        let text = std::fs::read_to_string(&self.revision).unwrap_or_default();
        let last = match text.trim().parse::<u64>() {
            Ok(last) => last,
            Err(_) => self.largest_known_revision()?,
        };
        let next = last + 1;
        files::write(&self.revision, format!("{next}\n").as_bytes())?;
        Ok(next)
    }

    fn largest_known_revision(&self) -> Result<u64, StoreError> {
        let unreadable = || files::failed("list", &self.terms);
        let mut largest = BY_HAND.modified;
        for entry in std::fs::read_dir(&self.terms).map_err(unreadable())? {
            let name = entry.map_err(unreadable())?.file_name();
            largest = largest.max(self.terms_of(&name.to_string_lossy()).modified);
        }
        Ok(largest)
    }
}

#[cfg(test)]
mod tests;
