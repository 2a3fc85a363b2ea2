//! What can go wrong with a store: what was attempted, where, why, and what to do about it.

use std::fmt;
use std::path::PathBuf;

use fabric::allocation::AllocationError;

/// What to do without a network configuration where flannelctl can write one.
pub(crate) const WRITE_ONE: &str = "write one, for instance with `flannelctl network set`";

/// A call to the store that failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// There is no network configuration yet.
    #[error("no network configuration at {place}: {remedy}")]
    NoNetworkConfig {
        /// The key or the file that was looked for.
        place: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// What was typed cannot be used: the option, the value, the rule.
    #[error("{0}")]
    Options(String),
    /// No endpoint answered in time.
    #[error("cannot {attempted}: {endpoint} does not answer: {cause}{}", Remedy(*remedy))]
    Unreachable {
        /// What was attempted, as a verb: `list the leases`.
        attempted: String,
        /// The endpoint that was tried last.
        endpoint: String,
        /// What the network, TLS or HTTP said.
        cause: String,
        /// What to do about it, where the cause tells.
        remedy: Option<&'static str>,
    },
    /// etcd answered with an error.
    #[error("cannot {attempted}: {endpoint} refuses: {cause}{}", Remedy(*remedy))]
    Refused {
        /// What was attempted, as a verb: `list the leases`.
        attempted: String,
        /// The endpoint that answered.
        endpoint: String,
        /// etcd's words.
        cause: String,
        /// What to do about it, where the cause tells.
        remedy: Option<&'static str>,
    },
    /// A file of the directory store could not be read or written.
    #[error("cannot {attempted} {}: {cause}", path.display())]
    File {
        /// What was attempted, as a verb: `write`.
        attempted: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        cause: String,
    },
}

/// Why no lease could be had.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum AcquireError {
    /// The store did not answer or refused; worth another try.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Every subnet is leased. Trying again helps only once a lease has run out or was removed.
    #[error(transparent)]
    NoneFree(#[from] AllocationError),
    /// The Kubernetes node has no podCIDR yet, or none that this network can use; worth another try, since
    /// somebody may give it one.
    #[error("node {node:?}: {why}; {remedy}")]
    NoPodCidr {
        /// The node's name.
        node: String,
        /// What is wrong.
        why: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// Other nodes were faster, again and again; worth another try.
    #[error("other nodes took the chosen subnet {attempts} times in a row; trying again will help")]
    Contended {
        /// How many subnets were chosen.
        attempts: usize,
    },
}

struct Remedy(Option<&'static str>);

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(remedy) => write!(f, "; {remedy}"),
            None => Ok(()),
        }
    }
}
