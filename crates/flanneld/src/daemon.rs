//! The daemon around the node: one per machine, signals, health, status.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use fabric::firewall::SourcePorts;
use kernel::KernelError;
use kernel::nftables::Nftables;
use signal_hook::consts::{
    SIGALRM, SIGINT, SIGIO, SIGPROF, SIGTERM, SIGUSR1, SIGUSR2, SIGVTALRM, SIGXCPU, SIGXFSZ,
};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::board::Board;
use crate::health;
use crate::instance::Instance;
use crate::kubernetes;
use crate::metrics::Sources;
use crate::node::Node;
use crate::notify::Systemd;
use crate::settings::Settings;
use crate::tunnel::Tunnel;

/// Runs flanneld until a signal asks it to end, which leaves everything in the kernel as it is, or
/// until it cannot go on.
pub async fn run(mut settings: Settings) -> anyhow::Result<()> {
    let mut signals = Signals::new().context("listening for signals")?;
    let _instance = Instance::lock(&settings.files.lock).await?;
    let store = settings.store.open(settings.terms).context("opening the store")?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "flanneld with leases from {}", store.describe());
    let masquerade = &mut settings.options.masquerade;
    if masquerade.ipv4 || masquerade.ipv6 {
        let possible = || Nftables::open().and_then(|mut nftables| nftables.source_ports());
        masquerade.source_ports = source_ports(masquerade.source_ports, possible);
    }
    let board = Board::new(&store.describe());
    let health = match settings.health {
        Some((ip, port)) => Some(health::bind(ip, port).await?),
        None => None,
    };
    let serve_health = async {
        match health {
            Some(listener) => {
                let (store, ipam_dir) = (store.clone(), settings.ipam_dir.clone());
                health::serve(listener, Sources { status: board.subscribe(), store, ipam_dir }).await
            }
            None => std::future::pending::<Infallible>().await,
        }
    };
    let systemd = Systemd::from_environment();
    let tunnel = Tunnel::default();
    let node = Node { settings: &settings, store: &store, board: &board, systemd: &systemd, tunnel: &tunnel };
    let ended = tokio::select! {
        name = signals.first() => {
            tracing::info!("{name}: ending; devices, routes and rules stay as they are");
            systemd.stopping();
            Ok(())
        }
        ended = node.live() => ended.map(|never| match never {}),
        never = serve_health => match never {},
        never = board.write_to(&settings.files.status) => match never {},
    };
    if let Err(error) = &ended {
        board.failing(
            "start",
            [(format!("{error:#}"), "flanneld has ended; start it again once that is mended".to_owned())],
        );
    }
    board.last_word(&settings.files.status);
    if let (Err(error), Some(node)) = (&ended, store.kube_node()) {
        kubernetes::last_word(&node, error).await;
    }
    ended
}

/// How masquerading picks source ports: as wanted, where the kernel can.
fn source_ports(
    wanted: SourcePorts,
    possible: impl FnOnce() -> Result<SourcePorts, KernelError>,
) -> SourcePorts {
    if wanted == SourcePorts::Kept {
        return wanted;
    }
    match possible() {
        Ok(SourcePorts::Kept) => {
            tracing::warn!(
                "this kernel cannot pick source ports fully at random: masquerading keeps them where it can"
            );
            SourcePorts::Kept
        }
        // Where the firewall cannot be asked, writing the rules will say why.
        Ok(SourcePorts::FullyRandom) | Err(_) => wanted,
    }
}

/// SIGTERM and SIGINT. The first asks to end, a second one kills, whatever we are in the middle of.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Signals> {
        let asked = Arc::new(AtomicBool::new(false));
        for number in [SIGTERM, SIGINT] {
            // In this order: the first signal finds the flag unset, and sets it.
            signal_hook::flag::register_conditional_default(number, Arc::clone(&asked))?;
            signal_hook::flag::register(number, Arc::clone(&asked))?;
        }
        pass_over_the_others()?;
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn first(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Signals that would end us, and by which nobody means to.
const OTHERS: [i32; 8] = [SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM, SIGPROF, SIGIO, SIGXCPU, SIGXFSZ];

/// Compatibility: Go's runtime passes over them, so that whoever rotates logs or limits files by habit
/// has never hurt the original. Handled, not ignored: programs that we run would inherit that.
fn pass_over_the_others() -> std::io::Result<()> {
    OTHERS.into_iter().try_for_each(|number| signal_hook::flag::register(number, Arc::default()).map(drop))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It fails by ending the tests.
    #[test]
    fn signals_that_say_nothing_end_nobody() {
        pass_over_the_others().unwrap();
        for number in OTHERS {
            signal_hook::low_level::raise(number).unwrap();
        }
    }

    #[test]
    fn source_ports_are_random_only_where_wanted_and_possible() {
        use SourcePorts::{FullyRandom, Kept};
        let refused = || Err(KernelError::NoLink("nowhere".to_owned()));
        assert_eq!(source_ports(FullyRandom, || Ok(FullyRandom)), FullyRandom);
        assert_eq!(source_ports(FullyRandom, || Ok(Kept)), Kept);
        assert_eq!(source_ports(FullyRandom, refused), FullyRandom);
        assert_eq!(source_ports(Kept, || panic!("nobody asks")), Kept);
    }
}
