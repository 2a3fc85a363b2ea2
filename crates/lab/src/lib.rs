//! Laboratories: several nodes on one machine, each a network namespace with a real `flanneld`.
//!
//! ```text
//!   node1            node2            node3        namespaces flab-<lab>-node1, …
//!   192.168.64.1     192.168.64.2     192.168.64.3     (fd64::1, …)
//!     │ eth0           │ eth0           │ eth0
//!   ──┴────────────────┴────────────────┴──  bridge seg0 in flab-<lab>-switch, 192.168.64.254
//! ```
//!
//! Everything a lab makes carries the prefix `flab-` and the lab's name: namespaces below
//! `/run/netns` (so `ip netns exec flab-… bash` gets one inside a stuck lab) and one directory below
//! `/run/flab`, which holds what would be machine-wide on a real node: subnet.env, status, CNI
//! state, logs. Dropping a [`Lab`] ends every process in its namespaces and removes both; a lab
//! whose owner was killed is swept away by the next one. Many labs live side by side.
//!
//! A story is written with [`story()`], which shows every node's links, routes, neighbors, firewall and
//! logs when it fails:
//!
//! ```no_run
//! # use lab::{Topology, story};
//! story(Topology::vxlan(3), |lab| {
//!     lab.start()?;
//!     let (a, b) = (lab.node(1).attach("a")?, lab.node(2).attach("b")?);
//!     a.ping(b.ipv4()?)?;
//!     Ok(())
//! });
//! ```

#![forbid(unsafe_code)]

mod binaries;
mod breakage;
mod dump;
mod laboratory;
pub mod load;
mod namespace;
mod node;
mod ping;
mod pod;
mod process;
mod rootless;
mod state;
mod story;
mod topology;
mod wait;
mod wiring;

pub use binaries::Binaries;
pub use breakage::Break;

pub use laboratory::{Lab, Reply};
pub use namespace::Namespace;
pub use node::Node;
pub use ping::{Ping, Pinging, Report};
pub use pod::Pod;
pub use process::Process;
pub use rootless::{Entered, KEEPER_ARGS, Lifetime, enter_user_namespace, keep_user_namespace};
pub use state::sweep;
pub use story::{permitted, story};
pub use topology::{Backend, Families, StoreKind, Topology};
pub use wait::wait_for;
