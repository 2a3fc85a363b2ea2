//! `alloc`: subnets are leased and nothing else is done; how packets travel is up to others.

use crate::config::NetworkConfig;
use crate::host::ExternalInterface;
use crate::lease::Attributes;

/// What a node publishes: its IPv4 address.
///
/// Compatibility: no backend type, as the original writes none for `alloc`; and it never publishes
/// an IPv6 address here, which leaves IPv6 leases nameless, so ours are published.
pub(super) fn attributes(config: &NetworkConfig, external: &ExternalInterface) -> Attributes {
    Attributes {
        public_ipv4: external.public_ipv4.filter(|_| config.ipv4.is_some()),
        public_ipv6: external.public_ipv6.filter(|_| config.ipv6.is_some()),
        ..Attributes::default()
    }
}
