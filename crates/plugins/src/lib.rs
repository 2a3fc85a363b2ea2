//! The CNI plugins of flannel-rs.
//!
//! One program holds them all; it is the plugin that it was called as. A plugin that is called by
//! another one of them runs in the same process ([`delegate`]).

#![forbid(unsafe_code)]

mod addressing;
mod attachment;
pub mod bandwidth;
pub mod bridge;
mod container;
pub mod delegate;
pub mod dhcp;
pub mod dummy;
mod files;
pub mod firewall;
pub mod flannel;
mod forwarding;
pub mod host_device;
pub mod host_local;
mod interface;
mod ipam;
mod iptables;
pub mod ipvlan;
pub mod loopback;
pub mod macvlan;
mod masquerade;
mod master;
pub mod portmap;
pub mod ptp;
pub mod sbr;
pub mod static_addresses;
pub mod tap;
pub mod tuning;
mod veth;
pub mod vlan;
pub mod vrf;
