//! The only crate that touches Linux.

pub mod address;
pub mod bridge;
mod error;
pub mod link;
pub mod netlink;
pub mod netns;
pub mod nftables;
pub mod route;
pub mod sysctl;

pub use error::KernelError;
