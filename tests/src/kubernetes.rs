//! Real Kubernetes: its API server for stories about leases, and a whole cluster.
//!
//! The programs are built from source by `.ci/kubernetes`, once, and kept outside of the tree; a story
//! asks [`is_available`] before anything else.

mod api_server;
mod certificates;
mod cluster;
mod connection;
mod flannel_image;
mod manifests;
mod pods;
mod programs;
mod sample;

pub use api_server::ApiServer;
pub use cluster::{
    Agent, Cluster, PATIENCE, Proxy, Shape, TEST_POD, cluster_story, condition, test_pod_program,
};
pub use connection::Connection;
pub use manifests::Manifests;
pub use pods::{PORT, PodSpec, TestPod, ask};
pub use programs::{Programs, is_available};
pub use sample::SampleNode;
