//! What the benches share: the agents under test, a rig to run them in, a real etcd, a watch on the
//! kernel's routes, and tables of results.
//!
//! Each binary below `src/bin` measures one group of figures and prints one Markdown table. With
//! `FLANNEL_ORIGINAL=/path/to/flanneld` (and `CNI_ORIGINAL=/directory/of/plugins`) in the
//! environment the original runs through the very same steps and the table gets a column for it;
//! trust the ratio of the two columns more than either.

#![forbid(unsafe_code)]

mod agent;
pub mod chart;
mod claim;
mod etcd;
mod quiet;
mod report;
mod rig;
mod routes;
pub mod run;
pub mod stand_in;

pub use agent::{Agent, Running, agents, cni_directories, forget};
pub use claim::Claim;
pub use etcd::Etcd;
pub use quiet::{await_lock, await_quiet};
pub use report::{Report, Samples, begin};
pub use rig::{Node, Rig};
pub use routes::RouteWatch;
