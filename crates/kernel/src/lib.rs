//! The only crate that touches Linux.

mod error;
pub mod netlink;

pub use error::KernelError;
