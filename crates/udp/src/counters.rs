//! What the data path counts: packets and octets each way, and every packet that it drops, with the
//! reason.
//!
//! Each thread of the data path has [`Counters`] of its own and is the only one that writes them, so
//! that counting costs a store and no lock. [`Snapshot`] is the sum, taken by whoever shows it.

use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Why a packet was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// It has no IP header that can be read.
    Malformed,
    /// It is shorter than its IP header says.
    Truncated,
    /// The checksum of its IP header is wrong.
    HeaderChecksum,
    /// Its TCP or UDP checksum is wrong.
    Checksum,
    /// Its TTL or hop limit is used up.
    TtlExpired,
    /// It is of an address family that the network does not have.
    FamilyOff,
    /// It goes to a group of hosts, and the tunnel carries packets to single ones.
    Multicast,
    /// No node has a pod subnet with its destination; the sender was told by ICMP.
    NoRoute,
    /// It is larger than the path to its node; the sender was told by ICMP.
    TooBig,
    /// Its source address does not belong to the node that sent it.
    Spoofed,
    /// Its destination is not in a pod subnet of this node: passing it on could only loop it.
    NotOurs,
    /// The kernel refused to take it: no route to the node, a firewall, a device that is down.
    Refused,
}

impl Reason {
    /// All of them, in a fixed order.
    pub const ALL: [Reason; 12] = [
        Reason::Malformed,
        Reason::Truncated,
        Reason::HeaderChecksum,
        Reason::Checksum,
        Reason::TtlExpired,
        Reason::FamilyOff,
        Reason::Multicast,
        Reason::NoRoute,
        Reason::TooBig,
        Reason::Spoofed,
        Reason::NotOurs,
        Reason::Refused,
    ];

    /// A name for programs, such as `no_route`.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Malformed => "malformed",
            Reason::Truncated => "truncated",
            Reason::HeaderChecksum => "header_checksum",
            Reason::Checksum => "checksum",
            Reason::TtlExpired => "ttl_expired",
            Reason::FamilyOff => "family_off",
            Reason::Multicast => "multicast",
            Reason::NoRoute => "no_route",
            Reason::TooBig => "too_big",
            Reason::Spoofed => "spoofed",
            Reason::NotOurs => "not_ours",
            Reason::Refused => "refused",
        }
    }
}

/// The counters of one direction in one thread, which alone writes them.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    packets: AtomicU64,
    octets: AtomicU64,
    oversized: AtomicU64,
    dropped: [AtomicU64; Reason::ALL.len()],
}

impl Counters {
    /// Packets were passed on.
    pub(crate) fn passed(&self, packets: usize, octets: usize) {
        add(&self.packets, packets as u64);
        add(&self.octets, octets as u64);
    }

    /// A packet was passed on although it is larger than the device's MTU.
    pub(crate) fn oversized(&self) {
        add(&self.oversized, 1);
    }

    /// Packets were dropped.
    pub(crate) fn dropped(&self, reason: Reason, packets: usize) {
        add(&self.dropped[reason as usize], packets as u64);
    }

    /// What they are now.
    pub(crate) fn traffic(&self) -> Traffic {
        Traffic {
            packets: self.packets.load(Relaxed),
            octets: self.octets.load(Relaxed),
            oversized: self.oversized.load(Relaxed),
            dropped: std::array::from_fn(|at| self.dropped[at].load(Relaxed)),
        }
    }
}

/// Cheaper than an atomic addition, and as good where only one thread writes.
fn add(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(more), Relaxed);
}

/// What went one way, since the data path was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets of pods passed on.
    pub packets: u64,
    /// Their octets, IP headers included.
    pub octets: u64,
    /// Packets that were passed on although they are larger than the device's MTU.
    pub oversized: u64,
    dropped: [u64; Reason::ALL.len()],
}

impl Traffic {
    #[cfg(test)]
    pub(crate) fn dropped(&self, reason: Reason) -> u64 {
        self.dropped[reason as usize]
    }

    /// How many packets were dropped, by reason, zeros included.
    pub fn drops(&self) -> impl Iterator<Item = (Reason, u64)> + use<> {
        Reason::ALL.into_iter().zip(self.dropped)
    }
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, more: Traffic) {
        self.packets += more.packets;
        self.octets += more.octets;
        self.oversized += more.oversized;
        for (sum, more) in self.dropped.iter_mut().zip(more.dropped) {
            *sum += more;
        }
    }
}

/// All that the data path counted since it was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// From pods of this node to other nodes.
    pub outgoing: Traffic,
    /// From other nodes to pods of this node.
    pub incoming: Traffic,
    /// Datagrams that the kernel dropped since nobody took them from the sockets in time.
    pub socket_overflows: u64,
    /// Packets that the kernel dropped at the device: nobody took them in time, or nobody was there,
    /// as during a restart. Since the device was made, not since the data path was started.
    pub device_drops: u64,
}

impl Snapshot {
    /// With what was counted after: of a data path that was opened anew.
    pub fn and(mut self, later: Snapshot) -> Snapshot {
        self.outgoing += later.outgoing;
        self.incoming += later.incoming;
        self.socket_overflows += later.socket_overflows;
        self.device_drops = later.device_drops.max(self.device_drops);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_place_and_name() {
        let counters = Counters::default();
        for (at, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, at);
            counters.dropped(reason, at + 1);
        }
        let mut sum = counters.traffic();
        sum += counters.traffic();
        for (at, (reason, count)) in sum.drops().enumerate() {
            assert_eq!(count, 2 * (at as u64 + 1));
            assert_eq!(sum.dropped(reason), count);
        }
        let names: std::collections::BTreeSet<_> = Reason::ALL.map(Reason::name).into_iter().collect();
        assert_eq!(names.len(), Reason::ALL.len());
    }
}
