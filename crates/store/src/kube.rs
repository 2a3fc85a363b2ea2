//! Leases from the Kubernetes API: each Node is one, by its podCIDRs and flannel's annotations.

mod node;
mod options;

pub use node::{KubeEvent, KubeNode, PublicAddresses};
pub use options::KubeOptions;
