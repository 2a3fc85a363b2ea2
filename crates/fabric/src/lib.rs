//! The pure core of flannel-rs: values and decisions, no deeds.
//!
//! Nothing here touches the kernel, the network, a clock or a file. What a node should look like is
//! computed from the network configuration, the leases and facts about the host ([`plan`]); what has
//! to be done is the difference to what was observed ([`dataplane`]); what may be removed is decided
//! in one place ([`ownership`]).

#![forbid(unsafe_code)]

pub mod allocation;
pub mod backend;
pub mod config;
pub mod dataplane;
pub mod firewall;
pub mod forward;
pub mod host;
pub mod instance;
pub mod lease;
pub mod link_name;
pub mod mac;
pub mod masquerade;
pub mod ownership;
pub mod plan;
pub mod status;
pub mod subnet_file;

#[cfg(test)]
mod fixture;

pub use lease::{Attributes, Lease, LeaseSet, Subnets};
pub use link_name::LinkName;
pub use mac::Mac;
