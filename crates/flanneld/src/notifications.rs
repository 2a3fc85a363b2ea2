//! The kernel's own word that something changed.

use std::convert::Infallible;
use std::os::fd::AsFd;

use fabric::LinkName;
use fabric::host::ExternalInterface;
use kernel::monitor::Monitor;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

/// Counts notifications: of anything that the reconciler looks at, and of what an interface is chosen
/// by.
#[derive(Debug)]
pub struct Notifications {
    /// Changes when anything may have changed that the reconciler does not know of.
    pub news: watch::Sender<Heard>,
    /// Changes when links, addresses or routes may have changed, but not by the reconciler.
    pub addressing: watch::Sender<u64>,
    /// Changes when devices may have changed, by whomever: the reconciler makes some.
    pub devices: watch::Sender<u64>,
    /// Changes when the firewall, anybody's, may have changed.
    pub firewall: watch::Sender<u64>,
    /// The number of the reconciler's socket.
    ours: u32,
}

/// How often the kernel said that something changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Heard {
    /// By somebody else than the reconciler.
    pub of_others: u64,
    /// By whomever; the reconciler may be hearing itself.
    pub of_anybody: u64,
}

impl Notifications {
    /// Nothing counted yet. What is done by the socket of this number is left out.
    pub fn but_for(ours: u32) -> Notifications {
        let new = || watch::Sender::new(0);
        let news = watch::Sender::new(Heard::default());
        Notifications { news, addressing: new(), devices: new(), firewall: new(), ours }
    }

    /// Counts until dropped, with an eye on our own devices and the external interface. Where the
    /// kernel does not notify, only the reconciler's timer is left, and that is said.
    pub async fn count(&self, ours: &[LinkName], external: watch::Receiver<ExternalInterface>) -> Infallible {
        if let Err(error) = self.listen(ours, external).await {
            tracing::warn!("the kernel's notifications cannot be had, looking at it by the clock: {error:#}");
        }
        std::future::pending().await
    }

    async fn listen(
        &self,
        ours: &[LinkName],
        external: watch::Receiver<ExternalInterface>,
    ) -> anyhow::Result<()> {
        let mut monitor = Monitor::open()?;
        monitor.leave_out(self.ours);
        let descriptor = monitor.as_fd().try_clone_to_owned()?;
        #[allow(
            deprecated,
            reason = "unsound for types that change their descriptor; this one owns it for good"
        )]
        let readable = AsyncFd::new(descriptor)?;
        loop {
            let mut ready = readable.readable().await?;
            // Before draining: what arrives meanwhile makes it ready again.
            ready.clear_ready();
            monitor.watch(ours.iter().copied().chain([external.borrow().link]));
            let drained = monitor.drain();
            if drained.is_anything() {
                self.news.send_modify(|heard| {
                    heard.of_others += u64::from(drained.is_certain());
                    heard.of_anybody += u64::from(!drained.is_certain());
                });
            }
            if drained.is_addressing() {
                self.addressing.send_modify(|count| *count += 1);
            }
            if drained.is_addressing() || drained.left_out {
                self.devices.send_modify(|count| *count += 1);
            }
            if drained.firewall || drained.overrun {
                self.firewall.send_modify(|count| *count += 1);
            }
        }
    }
}
