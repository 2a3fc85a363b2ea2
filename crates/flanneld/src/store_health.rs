//! How the store is, told in the status.

use std::convert::Infallible;

use store::{Store, StoreHealth};

use crate::board::{self, Board};

/// Says in the status whether the store answers, and whether leases are still those of the snapshot,
/// until dropped.
pub async fn report(store: &Store, board: &Board) -> Infallible {
    let mut health = store.health();
    let mut leases = store.leases();
    loop {
        let complete = leases.borrow_and_update().is_some();
        let now = health.borrow_and_update().clone();
        board.update(|status| {
            let store = &mut status.store;
            match now {
                StoreHealth::Unknown => {}
                StoreHealth::Reachable { since } => {
                    (store.reachable, store.since, store.error) = (true, board::unix(since), None);
                }
                StoreHealth::Unreachable { since, error } => {
                    (store.reachable, store.since, store.error) = (false, board::unix(since), Some(error));
                }
            }
            store.from_snapshot &= !complete;
        });
        tokio::select! {
            changed = health.changed() => if changed.is_err() { return std::future::pending().await },
            // Only the first complete list matters here.
            changed = leases.changed(), if !complete => if changed.is_err() { return std::future::pending().await },
        }
    }
}
