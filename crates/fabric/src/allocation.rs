//! Which pod subnets a node gets: pure decisions over the leases of a moment.

use crate::config::NetworkConfig;
use crate::lease::{LeaseSet, Subnets};

/// A source of random numbers below a bound, so that a choice can be replayed in a test.
pub type Below<'a> = &'a mut dyn FnMut(usize) -> usize;

/// Why no subnets could be chosen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllocationError {
    /// Every subnet is leased.
    #[error("out of subnets: {0}")]
    OutOfSubnets(String),
}

/// Whether leased subnets fit the configuration: family, range and length.
pub fn fits(_subnets: &Subnets, _config: &NetworkConfig) -> bool {
    todo!()
}

/// Chooses free subnets, at random among the first hundred of each family, as the original does.
pub fn choose(
    _config: &NetworkConfig,
    _leases: &LeaseSet,
    _below: Below<'_>,
) -> Result<Subnets, AllocationError> {
    todo!()
}
