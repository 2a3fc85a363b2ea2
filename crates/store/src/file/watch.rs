//! A watch on the leases of a directory: inotify, a timer for what runs out, and where inotify is not
//! to be had (its instances are limited per user) a look once a second.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime};

use rustix::fs::inotify;
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tracing::{debug, warn};

use super::{Directory, files};
use crate::StoreError;
use crate::registry::{Batch, Event, Record, Revision, Watch, WatchEnd};

/// How often to look where the kernel does not tell.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A clock that is set is noticed within this time.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// A watch that stands.
pub(crate) struct DirectoryWatch {
    directory: Directory,
    notices: Option<AsyncFd<OwnedFd>>,
    /// When each lease runs out, as far as known.
    expiries: BTreeMap<String, SystemTime>,
    /// Keys to look at; kept here so that a wait that is given up loses none.
    touched: BTreeSet<String>,
}

/// What a wait has ended with.
enum Woken {
    /// These keys were touched, or should have run out.
    Touched(BTreeSet<String>),
    /// Everything has to be looked at.
    Everything(&'static str),
}

impl DirectoryWatch {
    pub(super) async fn open(directory: Directory) -> Result<DirectoryWatch, StoreError> {
        let notices = match notices(&directory) {
            Ok(notices) => Some(notices),
            Err(Errno::NOENT) => {
                let subnets = &directory.places.subnets;
                return Err(files::failed("watch", subnets)(Errno::NOENT.into()));
            }
            Err(error) => {
                warn!(%error, "the kernel cannot watch the directory of leases, looking once a second");
                None
            }
        };
        let records = directory.off_the_loop(super::Places::records).await?;
        let expiries =
            records.into_iter().filter_map(|(record, expires)| Some((record.key, expires?))).collect();
        Ok(DirectoryWatch { directory, notices, expiries, touched: BTreeSet::new() })
    }

    async fn wait(&self) -> Result<Woken, WatchEnd> {
        let Some(notices) = &self.notices else {
            tokio::time::sleep(LOOK_EVERY).await;
            return Ok(Woken::Everything("a second has passed"));
        };
        let due = self.expiries.values().min().map_or(LONGEST_WAIT, |first| {
            first.duration_since(SystemTime::now()).unwrap_or_default().min(LONGEST_WAIT)
        });
        tokio::select! {
            ready = notices.readable() => {
                let mut ready = ready.map_err(|error| self.lost(error))?;
                let woken = read(notices.get_ref()).map_err(|error| self.lost(error.into()))?;
                ready.clear_ready();
                Ok(woken)
            }
            // A millisecond more, since the times are whole milliseconds.
            () = tokio::time::sleep(due + Duration::from_millis(1)) => {
                let now = SystemTime::now();
                let due = self.expiries.iter().filter(|(_, at)| **at <= now).map(|(key, _)| key.clone());
                Ok(Woken::Touched(due.collect()))
            }
        }
    }

    fn lost(&self, error: std::io::Error) -> WatchEnd {
        files::failed("watch", &self.directory.places.subnets)(error).into()
    }

    /// Reads the touched records anew.
    async fn look(&mut self) -> Result<Vec<Event>, StoreError> {
        let keys = self.touched.clone();
        let found = self
            .directory
            .off_the_loop(move |places| {
                let look = |key: String| {
                    let record = places.record(&key)?;
                    if record.is_none()
                        && let Err(error) = places.sweep(&key)
                    {
                        // Who may only read still sees that it has run out.
                        debug!(%error, "a lease that has run out is left where it is");
                    }
                    Ok((key, record))
                };
                keys.into_iter().map(look).collect::<Result<Vec<_>, StoreError>>()
            })
            .await?;
        self.touched.clear();
        Ok(found.into_iter().map(|(key, record)| self.event(key, record)).collect())
    }

    fn event(&mut self, key: String, record: Option<(Record, Option<SystemTime>)>) -> Event {
        match record {
            Some((record, expires)) => {
                match expires {
                    Some(expires) => self.expiries.insert(key, expires),
                    None => self.expiries.remove(&key),
                };
                Event::Put(record)
            }
            None => {
                self.expiries.remove(&key);
                Event::Delete { key, at: u64::MAX }
            }
        }
    }
}

impl Watch for DirectoryWatch {
    async fn next(&mut self) -> Result<Batch, WatchEnd> {
        if self.touched.is_empty() {
            match self.wait().await? {
                Woken::Everything(reason) => return Err(WatchEnd::StartOver(reason.into())),
                Woken::Touched(keys) => self.touched = keys,
            }
        }
        let events = self.look().await?;
        Ok(Batch { events, revision: Revision { origin: 0, number: 0 } })
    }
}

fn notices(directory: &Directory) -> Result<AsyncFd<OwnedFd>, Errno> {
    use inotify::{CreateFlags, WatchFlags};
    let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let changes = WatchFlags::CLOSE_WRITE
        | WatchFlags::MOVED_TO
        | WatchFlags::MOVED_FROM
        | WatchFlags::DELETE
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF
        | WatchFlags::ONLYDIR;
    inotify::add_watch(&fd, &directory.places.subnets, changes)?;
    #[allow(
        deprecated,
        reason = "its successor is unsafe to call; an OwnedFd stays open as long as it lives"
    )]
    let registered = AsyncFd::new(fd);
    registered.map_err(|_| Errno::MFILE)
}

/// Reads all notices that wait.
fn read(fd: &OwnedFd) -> Result<Woken, Errno> {
    use inotify::ReadFlags;
    let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
    let mut notices = inotify::Reader::new(fd, &mut buffer);
    let mut touched = BTreeSet::new();
    let mut everything = None;
    loop {
        match notices.next() {
            Ok(notice) => {
                let flags = notice.events();
                if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                    everything = Some("more changed than the kernel can tell");
                }
                let moved = ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::IGNORED;
                if flags.intersects(moved | ReadFlags::UNMOUNT) {
                    everything = Some("the directory was moved or removed");
                }
                if let Some(name) = notice.file_name() {
                    let name = name.to_string_lossy();
                    if !files::is_temporary(&name) {
                        touched.insert(name.into_owned());
                    }
                }
            }
            Err(Errno::AGAIN) => break,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(everything.map_or(Woken::Touched(touched), Woken::Everything))
}
