//! How many pod addresses of this node are in use, as host-local has written it down: a directory for
//! each network, in it a file for each address, named by it.
//!
//! Nothing is locked: a count that is one off for a moment harms nobody, and a pod must not wait for it.

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;

/// Addresses of one of the node's pod subnets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// `ipv4` or `ipv6`.
    pub family: &'static str,
    /// Those that pods have.
    pub used: u64,
    /// Those that the next pods can get.
    pub free: u64,
}

/// Counts those of `subnets`, in whatever network of `dir`; empty where there is no such directory,
/// since then somebody else may hand out addresses.
pub fn count(dir: &Path, subnets: &[IpNet]) -> Vec<Addresses> {
    let Ok(networks) = std::fs::read_dir(dir) else { return Vec::new() };
    let leased: Vec<IpAddr> = networks
        .flatten()
        .filter_map(|network| std::fs::read_dir(network.path()).ok())
        .flat_map(Iterator::flatten)
        .filter_map(|file| address(file.file_name().to_str()?))
        .collect();
    subnets
        .iter()
        .map(|subnet| {
            let used = leased.iter().filter(|ip| subnet.contains(*ip)).count() as u64;
            let family = if subnet.addr().is_ipv4() { "ipv4" } else { "ipv6" };
            Addresses { family, used, free: capacity(subnet).saturating_sub(used) }
        })
        .collect()
}

/// The other files, `lock` and `last_reserved_ip.0`, are named by no address.
fn address(name: &str) -> Option<IpAddr> {
    name.parse().ok()
}

/// How many addresses pods can have: all but the network's own and the gateway's, and in IPv4 the
/// broadcast address.
fn capacity(subnet: &IpNet) -> u64 {
    let (bits, not_for_pods) = match subnet {
        IpNet::V4(net) => (32 - net.prefix_len(), 3),
        IpNet::V6(net) => (128 - net.prefix_len(), 2),
    };
    2u64.checked_pow(u32::from(bits)).unwrap_or(i64::MAX as u64).saturating_sub(not_for_pods)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_named_by_an_address_of_the_subnet_count() {
        let dir = tempfile::tempdir().unwrap();
        let subnets = ["10.5.1.0/24".parse().unwrap(), "fd00:0:0:1::/64".parse().unwrap()];
        assert_eq!(count(&dir.path().join("none"), &subnets), []);
        for network in ["cbr0", "other"] {
            std::fs::create_dir(dir.path().join(network)).unwrap();
        }
        for file in
            ["cbr0/10.5.1.2", "cbr0/lock", "cbr0/last_reserved_ip.0", "cbr0/fd00:0:0:1::2", "other/10.5.1.9"]
        {
            std::fs::write(dir.path().join(file), "").unwrap();
        }
        std::fs::write(dir.path().join("other/10.9.0.1"), "").unwrap();
        assert_eq!(
            count(dir.path(), &subnets),
            [
                Addresses { family: "ipv4", used: 2, free: 251 },
                Addresses { family: "ipv6", used: 1, free: i64::MAX as u64 - 3 }
            ]
        );
    }
}
