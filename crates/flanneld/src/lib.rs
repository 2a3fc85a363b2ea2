//! flanneld: leases this node a pod subnet, tells the others how to reach it, and keeps the kernel
//! equal to the leases.
//!
//! | module | what it is |
//! |---|---|
//! | [`flags`], [`settings`] | what was typed, and what that means |
//! | [`interface`], [`surroundings`], [`external`] | the way to the other nodes: decided, read, followed |
//! | [`node`] | from the network configuration to a running node |
//! | [`own_lease`], [`vtep_mac`], [`snapshot`] | what this node keeps |
//! | [`reconcile`], [`schedule`], [`repair`], [`notifications`] | the kernel follows the leases |
//! | [`kubernetes`], [`availability`] | what Kubernetes is told beside the lease |
//! | [`board`], [`health`], [`notify`], [`logging`] | how others see it |
#![forbid(unsafe_code)]

pub mod addresses;
pub mod availability;
pub mod board;
pub mod daemon;
pub mod external;
pub mod firewall;
pub mod flags;
pub mod health;
pub mod instance;
pub mod interface;
pub mod kubernetes;
pub mod logging;
pub mod metrics;
pub mod node;
pub mod notifications;
pub mod notify;
pub mod old_bridge;
pub mod own_lease;
mod pass;
pub mod process;
pub mod reconcile;
pub mod repair;
pub mod retry;
pub mod schedule;
pub mod settings;
pub mod snapshot;
pub mod surroundings;
pub mod tunnel;
pub mod vtep_mac;
pub mod whole_file;
