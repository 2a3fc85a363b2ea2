//! Leases: which node owns which pod subnet, and how to reach it.
//!
//! The forms are the original's, byte for byte: a lease is one key, `<v4>-<len>[&<v6>-<len>]`,
//! and one JSON value (flannel `pkg/subnet/etcd`, `pkg/lease`). A [`LeaseSet`] is the state that
//! travels: always the whole set, cheap to copy and to compare, never a stream of events.

mod attributes;
mod set;
mod subnets;

pub use attributes::{Attributes, AttributesError};
pub use set::LeaseSet;
pub use subnets::{Subnets, SubnetsKeyError};

/// One node's pod subnets and how to reach them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The pod subnets.
    pub subnets: Subnets,
    /// What the node says of itself.
    pub attributes: Attributes,
    /// A number that grows with the age of the record (etcd's create revision): of two leases that
    /// claim the same addresses the older one is right, on every node.
    pub created: u64,
}

#[cfg(test)]
mod tests;
