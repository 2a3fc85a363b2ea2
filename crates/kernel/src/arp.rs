//! Asking a network whether somebody has an IPv4 address, before it is used (RFC 5227, section 2.1).
//!
//! The RFC allows for hosts that take seconds to answer; whoever starts a container does not. Three
//! questions and a quarter of a second find every host that is awake.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use fabric::Mac;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::error::KernelError;
use crate::packet;

/// `ETH_P_ARP`
const ARP: u16 = libc::ETH_P_ARP as u16;
/// How often everybody is asked.
const PROBES: u32 = 3;
/// How long to listen after each time.
const INTERVAL: Duration = Duration::from_millis(80);
/// Ethernet and IPv4, and how long their addresses are.
const HEADER: [u8; 6] = [0, 1, 8, 0, 6, 4];
/// The operation by which is asked.
const REQUEST: [u8; 2] = [0, 1];

/// Who has, or is about to take, one of these addresses on the network of a device that is up. `own` is
/// that device's Ethernet address.
pub fn claimed(index: u32, own: Mac, addresses: &[Ipv4Addr]) -> Result<Option<(Ipv4Addr, Mac)>, KernelError> {
    let failed =
        |errno| KernelError::system(format!("ask by ARP who has an address on device number {index}"), errno);
    let socket = packet::open(ARP, index, |_| Ok(())).map_err(failed)?;
    for _ in 0..PROBES {
        for address in addresses {
            packet::broadcast(&socket, ARP, index, &probe(own, *address)).map_err(failed)?;
        }
        let end = Instant::now() + INTERVAL;
        while let Some(packet) = next(&socket, end).map_err(failed)? {
            let claim = claim(&packet, own).filter(|(address, _)| addresses.contains(address));
            if claim.is_some() {
                return Ok(claim);
            }
        }
    }
    Ok(None)
}

/// A question without the sender's address, so that nobody remembers one.
fn probe(own: Mac, address: Ipv4Addr) -> Vec<u8> {
    [&HEADER[..], &REQUEST, &own.0, &[0; 4], &[0; 6], &address.octets()].concat()
}

/// The address that a packet of somebody else's says he has, or that he probes for as we do.
fn claim(packet: &[u8], own: Mac) -> Option<(Ipv4Addr, Mac)> {
    let (header, rest) = packet.split_first_chunk::<6>()?;
    let (operation, rest) = rest.split_first_chunk::<2>()?;
    let (mac, rest) = rest.split_first_chunk::<6>()?;
    let (sender, rest) = rest.split_first_chunk::<4>()?;
    let target = rest.get(6..)?.first_chunk::<4>()?;
    let (sender, mac) = (Ipv4Addr::from(*sender), Mac(*mac));
    if *header != HEADER || mac == own {
        return None;
    }
    let address = if sender.is_unspecified() && *operation == REQUEST { (*target).into() } else { sender };
    Some((address, mac))
}

/// The next packet that comes before the end.
fn next(socket: &OwnedFd, end: Instant) -> Result<Option<Vec<u8>>, Errno> {
    let mut packet = vec![0; 64];
    loop {
        match rustix::net::recv(socket, &mut packet[..], rustix::net::RecvFlags::empty()) {
            Ok((length, _)) => {
                packet.truncate(length);
                return Ok(Some(packet));
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        let rest = end.saturating_duration_since(Instant::now());
        if rest.is_zero() {
            return Ok(None);
        }
        let rest = Timespec::try_from(rest).unwrap_or_default();
        match poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&rest)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 2]);

    #[test]
    fn an_answer_an_announcement_and_a_rivals_probe_claim_an_address() {
        let address: Ipv4Addr = "192.0.2.7".parse().unwrap();
        let rival = probe(OTHER, address);
        assert_eq!(rival.len(), 28);
        assert_eq!(claim(&rival, OWN), Some((address, OTHER)));
        // Of an answer the sender counts, whomever it is for.
        let answer = [&HEADER[..], &[0, 2], &OTHER.0, &address.octets(), &OWN.0, &[0; 4]].concat();
        assert_eq!(claim(&answer, OWN), Some((address, OTHER)));
        let announcement = [&HEADER[..], &REQUEST, &OTHER.0, &address.octets(), &[0; 6], &address.octets()];
        assert_eq!(claim(&announcement.concat(), OWN), Some((address, OTHER)));
    }

    #[test]
    fn what_is_our_own_or_no_arp_claims_nothing() {
        let address: Ipv4Addr = "192.0.2.7".parse().unwrap();
        let own = probe(OWN, address);
        assert_eq!(claim(&own, OWN), None);
        for length in 0..28 {
            assert_eq!(claim(&probe(OTHER, address)[..length], OWN), None, "{length}");
        }
        let mut other_hardware = probe(OTHER, address);
        other_hardware[1] = 6;
        assert_eq!(claim(&other_hardware, OWN), None);
    }
}
