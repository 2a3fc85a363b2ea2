//! What the original flannel left in iptables, taken away once ours stands.

use std::convert::Infallible;

use kernel::nftables::Nftables;
use kernel::takeover;

use crate::board::{Board, Step};

/// Removes the original's rules once, when the node stands, so that there is no gap between.
pub async fn remove_leftovers(board: &Board) -> Infallible {
    board.wait_for(Step::Node).await;
    match tokio::task::spawn_blocking(|| takeover::remove(&mut Nftables::open()?)).await {
        Ok(Ok(leftovers)) => {
            for leftover in leftovers {
                tracing::info!("removed what the original flannel left in iptables: {leftover}");
            }
            board.failing("take-over", []);
        }
        Ok(Err(error)) => {
            tracing::warn!(%error, "cannot remove what the original flannel left in iptables");
            let remedy =
                "remove its chains FLANNEL-POSTRTG and FLANNEL-FWD by hand (`iptables-save` shows them)";
            board.failing("take-over", [(error.to_string(), remedy.to_owned())]);
        }
        Err(panicked) => {
            tracing::error!(%panicked, "looking for what the original flannel left in iptables")
        }
    }
    std::future::pending().await
}
