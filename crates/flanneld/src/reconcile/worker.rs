//! A handle of the kernel that is used on other threads only: the kernel may hold its lock (RTNL) for 20 ms
//! and more while it takes somebody's device away, and whoever speaks to it waits.

use tokio::task::{JoinError, JoinHandle};

/// Does one thing after the other with a handle of type `K`, and what comes of each is a `T`.
///
/// Dropped while at work, it leaves that to be finished, unless the process ends.
#[derive(Debug)]
pub(super) struct Worker<K, T> {
    /// None while at work.
    handle: Option<K>,
    work: Option<JoinHandle<(K, T)>>,
}

impl<K: Send + 'static, T: Send + 'static> Worker<K, T> {
    pub(super) fn new(handle: K) -> Worker<K, T> {
        Worker { handle: Some(handle), work: None }
    }

    /// Whether it can begin with something.
    pub(super) fn is_free(&self) -> bool {
        self.handle.is_some()
    }

    /// Begins with something, on a thread that may wait. It must be free.
    pub(super) fn begin(&mut self, work: impl FnOnce(&mut K) -> T + Send + 'static) {
        let handle = self.handle.take();
        debug_assert!(handle.is_some(), "one thing after the other");
        self.work = handle.map(|mut handle| {
            tokio::task::spawn_blocking(move || {
                let outcome = work(&mut handle);
                (handle, outcome)
            })
        });
    }

    /// Waits until it is done; without an end where nothing was begun. Dropping this loses nothing.
    pub(super) async fn done(&mut self) -> Result<T, JoinError> {
        let Some(work) = &mut self.work else { return std::future::pending().await };
        let done = work.await;
        self.work = None;
        let (handle, outcome) = done?;
        self.handle = Some(handle);
        Ok(outcome)
    }

    /// Waits until nothing is being done.
    pub(super) async fn rest(self) {
        if let Some(work) = self.work {
            // Who it was done for knows nothing to do about it.
            let _ = work.await;
        }
    }
}
