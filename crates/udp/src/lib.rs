//! The data path of the `udp` backend: what carries packets of pods between a TUN device and UDP
//! sockets.
//!
//! On the wire a datagram's payload is one IP packet and nothing else, as in the original, whose C
//! proxy makes three system calls for each. Here the kernel is asked as seldom as it lets itself: a
//! read of the device gives up to 64 KiB of a TCP stream as one packet (`IFF_VNET_HDR`, TSO), which is
//! cut into datagrams ([`outgoing`]) that go out in one call (`UDP_SEGMENT`); what arrives comes many
//! datagrams at once (`UDP_GRO`), is checked, and put together again ([`incoming`]). A peer cannot tell
//! the difference. Payload is never copied in user space.
//!
//! [`DataPath`] has the threads, [`Peers`] says which node has which pod subnet, [`counters`] what
//! became of each packet. What decides ([`outgoing`], [`incoming`], [`peers`]) touches no file; what
//! calls the kernel is in [`socket`], [`sender`] and [`receiver`].

mod checksum;
mod counters;
mod data_path;
mod error;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
mod icmp;
mod incoming;
mod outgoing;
mod packet;
mod peers;
mod receiver;
#[cfg(test)]
mod rig;
mod sender;
mod socket;
mod virtio;

pub use counters::{Reason, Snapshot, Traffic};
pub use data_path::{DataPath, Offloads, Settings, refused};
pub use error::UdpError;
pub use peers::Peers;
