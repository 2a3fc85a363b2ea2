//! The data plane on the real kernel: what is applied is what is observed, whatever was there.
//!
//! Each test has a network namespace of its own, which goes away with the test's thread.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a test says why by failing"
)]

mod fake;
mod links;
mod monitor;
#[path = "../firewall/namespace.rs"]
mod namespace;
mod offload;
mod reconcile;
mod scale;
mod tun;
mod underlay;
