//! The kernel's own word that something changed.

use std::convert::Infallible;
use tokio::sync::watch;

/// Counts notifications: of anything that the reconciler looks at, and of what an interface is chosen
/// by. Our own changes are among them.
#[derive(Debug)]
pub struct Notifications {
    /// Changes when anything may have changed.
    pub anything: watch::Sender<u64>,
    /// Changes when links, addresses or routes may have changed.
    pub addressing: watch::Sender<u64>,
}

impl Default for Notifications {
    fn default() -> Notifications {
        Notifications { anything: watch::Sender::new(0), addressing: watch::Sender::new(0) }
    }
}

impl Notifications {
    /// Counts until dropped. Where the kernel does not notify, only the reconciler's timer is left,
    /// and that is said.
    pub async fn count(&self) -> Infallible {
        if let Err(error) = self.listen().await {
            tracing::warn!(
                "the kernel's notifications are not to be had, looking at it by the clock: {error:#}"
            );
        }
        std::future::pending().await
    }

    async fn listen(&self) -> anyhow::Result<()> {
        anyhow::bail!("not in this build yet")
    }
}
