//! Firewalls, held against the real programs: nft, iptables, iptables-legacy.
//!
//! Each test has a network namespace of its own, which goes away with the test's thread.

#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod iptables;
mod namespace;
mod nftables;
mod reconcile;
mod takeover;
