//! The only crate that touches Linux.
//!
//! Two kinds of users: the daemon, which looks at everything at once and makes many changes
//! ([`Kernel`], with [`Linux`] as the real one), and the plugins, which make one device at a time
//! ([`link`], [`bridge`], [`address`], [`route`], [`netns`]). Both speak through one small
//! synchronous [`netlink::Socket`].
//!
//! A socket belongs to the network namespace of the thread that opened it and stays there. What is
//! read and written below `/proc/sys` ([`sysctl`]) is of the calling thread's namespace.
//!
//! Everything here may block for as long as the kernel holds its RTNL lock, some 20 ms where a
//! device is deleted: call it from a thread that may wait. Nothing panics on any answer of the
//! kernel. An error says what was attempted and carries the kernel's own words.

pub mod address;
mod apply;
pub mod arp;
pub mod bridge;
pub mod bus;
pub mod command;
pub mod conntrack;
mod error;
#[cfg(feature = "fake")]
pub mod fake;
pub mod fdb;
pub mod iptables;
pub mod link;
pub mod link_settings;
mod linux;
pub mod loan;
pub mod memory;
pub mod monitor;
pub mod neighbor;
pub mod netlink;
pub mod netns;
pub mod nexthop;
pub mod nftables;
mod observe;
pub mod offload;
pub mod packet;
pub mod pod;
pub mod process;
pub mod qdisc;
pub mod route;
pub mod routing_table;
pub mod rule;
pub mod sandbox;
pub mod sysctl;
pub mod takeover;
pub mod tap;
pub mod tun;
pub mod virtual_link;

pub use error::KernelError;
#[cfg(feature = "fake")]
pub use fake::Fake;
pub use linux::{Failure, Kernel, Linux, Scope};
