//! flanneld: leases this node a pod subnet, tells the others how to reach it, and keeps the kernel
//! equal to the leases.
//!
//! | module | what it is |
//! |---|---|
//! | [`flags`], [`settings`] | what was typed, and what that means |
//! | [`daemon`], [`instance`] | the process around the node, one on each machine |
//! | [`node`], [`start`] | from the network configuration to a running node |
//! | [`interface`], [`surroundings`], [`external`] | the way to the other nodes: decided, read, followed |
//! | [`own_lease`], [`vtep_mac`], [`snapshot`] | what this node keeps |
//! | [`reconcile`], `pass`, [`schedule`], [`repair`], [`notifications`] | the kernel follows the leases |
//! | [`tunnel`] | the data path of the `udp` backend |
//! | [`take_over`], [`old_bridge`], [`firewall`] | what others left or have on the host |
//! | [`kubernetes`], [`availability`] | what Kubernetes is told beside the lease |
//! | [`board`], [`store_health`], [`health`], [`metrics`], [`notify`], [`logging`] | how others see it |
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
pub mod start;
pub mod store_health;
pub mod surroundings;
pub mod take_over;
pub mod tunnel;
pub mod vtep_mac;
pub mod whole_file;
