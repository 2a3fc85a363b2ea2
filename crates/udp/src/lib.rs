//! The data path of the `udp` backend.
#![allow(dead_code, reason = "under way")]
mod checksum;
pub mod counters;
mod icmp;
mod incoming;
mod outgoing;
mod packet;
pub mod peers;
mod virtio;
