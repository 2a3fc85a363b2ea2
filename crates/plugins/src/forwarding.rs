//! Having the host pass packets on.

use std::net::IpAddr;

use kernel::{KernelError, sysctl};

/// Has the host forward packets of the families that these addresses are of.
pub(crate) fn enable(addresses: impl Iterator<Item = IpAddr> + Clone) -> Result<(), KernelError> {
    for (ipv4, path) in [(true, "net/ipv4/ip_forward"), (false, "net/ipv6/conf/all/forwarding")] {
        let is_used = addresses.clone().any(|ip| ip.is_ipv4() == ipv4);
        // Writing what is there already has the kernel tell everybody nevertheless.
        if is_used && sysctl::read(path)?.as_deref() != Some("1") {
            sysctl::write(path, "1")?;
        }
    }
    Ok(())
}
