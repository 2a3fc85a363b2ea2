//! What is handed out beside the source: container images, and lists of what programs are made of.
//!
//! An [`Image`] is written as one tar file that containerd (`ctr images import`), podman and docker
//! (`load`) all read: an OCI layout, and for a single platform what `docker save` writes as well.
//! Nothing of it needs a container runtime, and the same programs give the same bytes: every time in
//! it is one that was given. Only static programs are taken, for there is nothing else in an image.
//!
//! Nothing here is in a program that runs on a node. `make image` and the tests use it.

#![forbid(unsafe_code)]

mod archive;
mod elf;
mod files;
mod flannel;
mod sbom;

pub use archive::{Image, Packing, Platform};
pub use elf::{Architecture, static_architecture};
pub use files::Files;
pub use flannel::{NAME, PROGRAMS, platform};
pub use sbom::Bill;
