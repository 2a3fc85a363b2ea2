//! The interface to the other nodes at run time: chosen at start, followed when its address moves.

use std::convert::Infallible;
use std::time::Duration;

use fabric::config::NetworkConfig;
use fabric::host::ExternalInterface;
use fabric::status;
use tokio::sync::watch;

use crate::board::{Board, Step};
use crate::interface::{self, Choice, Families, Surroundings, Wanted};
use crate::surroundings;

/// How long addresses must have been quiet before they are looked at: an address that is moved is
/// gone for a moment.
const QUIET: Duration = Duration::from_millis(100);

/// Chooses the interface for a network.
pub async fn choose(wanted: &Wanted, config: &NetworkConfig) -> anyhow::Result<Choice> {
    let around = look(wanted, config).await?;
    let choice = interface::choose(wanted, families(config), &around)?;
    config.backend.check(config, &choice.external).map_err(anyhow::Error::msg)?;
    Ok(choice)
}

/// Publishes the interface whenever it has changed, until dropped. `moved` changes when links,
/// addresses or routes may have.
pub async fn follow(
    wanted: &Wanted,
    config: &NetworkConfig,
    mut choice: Choice,
    mut moved: watch::Receiver<u64>,
    (external, board): (watch::Sender<ExternalInterface>, &Board),
) -> Infallible {
    show(board, &choice);
    loop {
        if moved.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(QUIET).await;
        moved.mark_unchanged();
        let now = match look(wanted, config).await {
            Ok(now) => now,
            Err(error) => {
                tracing::warn!("cannot look at the interfaces: {error:#}");
                continue;
            }
        };
        let next = interface::choose_again(&choice, wanted, families(config), &now)
            .map_err(anyhow::Error::from)
            .and_then(|next| {
                config.backend.check(config, &next.external).map_err(anyhow::Error::msg)?;
                Ok(next)
            });
        match next {
            Ok(same) if same == choice => board.failing("interface", []),
            Ok(next) => {
                tracing::warn!(
                    from = %words(&choice.external),
                    to = %words(&next.external),
                    reason = next.reason,
                    "the way to the other nodes has changed"
                );
                choice = next;
                show(board, &choice);
                board.failing("interface", []);
                external.send_replace(choice.external.clone());
            }
            Err(error) => {
                let what = format!("{} is lost: {error:#}", words(&choice.external));
                tracing::warn!("{what}");
                board.failing(
                    "interface",
                    [(what, "give the node an address; it is taken up at once".to_owned())],
                );
            }
        }
    }
}

/// On a thread of its own: the kernel lists no devices while it takes one away, and pods come and go.
async fn look(wanted: &Wanted, config: &NetworkConfig) -> anyhow::Result<Surroundings> {
    let (can_reach, networks) = (wanted.can_reach, config.networks().collect());
    tokio::task::spawn_blocking(move || surroundings::read(can_reach, networks)).await?
}

fn families(config: &NetworkConfig) -> Families {
    Families { ipv4: config.ipv4.is_some(), ipv6: config.ipv6.is_some() }
}

/// `eth0 192.0.2.1 2001:db8::1, MTU 1500`
pub fn words(external: &ExternalInterface) -> String {
    let mut words = external.link.to_string();
    external.ipv4.iter().for_each(|ip| words += &format!(" {ip}"));
    external.ipv6.iter().for_each(|ip| words += &format!(" {ip}"));
    format!("{words}, MTU {}", external.mtu)
}

fn show(board: &Board, choice: &Choice) {
    let Choice { external, reason } = choice;
    let both = |ipv4: Option<std::net::Ipv4Addr>, ipv6: Option<std::net::Ipv6Addr>| {
        ipv4.map(Into::into).into_iter().chain(ipv6.map(Into::into)).collect()
    };
    board.update(|status| {
        status.external = Some(status::External {
            link: external.link.to_string(),
            mtu: external.mtu,
            addresses: both(external.ipv4, external.ipv6),
            public: both(external.public_ipv4, external.public_ipv6),
            reason: reason.clone(),
        });
    });
    board.done(Step::Interface);
}
