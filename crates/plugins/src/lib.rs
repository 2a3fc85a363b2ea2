//! The CNI plugins of flannel-rs.
//!
//! One program holds them all; it is the plugin that it was called as. A plugin that is called by
//! another one of them runs in the same process ([`delegate`]).

#![forbid(unsafe_code)]

mod addressing;
pub mod bridge;
mod container;
pub mod delegate;
mod files;
pub mod flannel;
pub mod host_local;
mod interface;
mod ipam;
pub mod loopback;
mod masquerade;
mod veth;
