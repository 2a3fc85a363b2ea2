//! The bridge of pods, told where it is of another subnet than this node's.
//!
//! A node whose podCIDR changed, or that was set up anew, keeps `cni0` with the gateway of before: the
//! bridge plugin refuses to attach new pods to it, and nobody sends packets to the old ones. The bridge is
//! the plugins' and may have pods on it, so it is named and not removed.

use std::convert::Infallible;
use std::time::Duration;

use fabric::lease::Subnets;
use ipnet::IpNet;
use kernel::netlink::{Protocol, Socket};
use kernel::{address, link};
use tokio::sync::watch;

use crate::board::Board;
use crate::own_lease::Own;

/// What the delegation of flannel's plugin calls it.
const BRIDGE: &str = "cni0";
/// How seldom is looked: a node that starts pods changes links all the time.
const SELDOM: Duration = Duration::from_secs(1);

/// Says in the status whether the bridge is of another subnet, until dropped.
pub async fn report(
    mut own: watch::Receiver<Option<Own>>,
    mut moved: watch::Receiver<u64>,
    board: &Board,
) -> Infallible {
    loop {
        moved.mark_unchanged();
        let subnets = own.borrow_and_update().as_ref().map(|own| own.lease.subnets);
        // On a thread of its own: the kernel lists no addresses while it takes a pod's device away.
        let look = tokio::task::spawn_blocking(addresses).await;
        match look.unwrap_or_else(|panicked| Err(panicked.into())) {
            Ok(addresses) => {
                let stray = subnets.and_then(|subnets| stray(subnets, &addresses));
                board.failing("bridge", stray.map(|stray| words(stray, subnets.unwrap_or_default())));
            }
            Err(error) => tracing::debug!("cannot look at {BRIDGE}: {error:#}"),
        }
        tokio::time::sleep(SELDOM).await;
        tokio::select! {
            // A sender that is gone has taken us with it.
            _ = own.changed() => {}
            _ = moved.changed() => {}
        }
    }
}

fn addresses() -> anyhow::Result<Vec<IpNet>> {
    let mut socket = Socket::open(Protocol::Route)?;
    let Some(index) = link::index(&socket, BRIDGE.parse()?)? else { return Ok(Vec::new()) };
    Ok(address::list(&mut socket, Some(index))?.into_iter().map(|address| address.net).collect())
}

/// An address of the bridge that is not of the node's subnets, in a family that these have.
fn stray(subnets: Subnets, addresses: &[IpNet]) -> Option<IpNet> {
    let leads_nowhere = |net: &IpNet| match net {
        IpNet::V4(net) => subnets.ipv4.is_some_and(|subnet| !subnet.contains(&net.addr())),
        IpNet::V6(net) => {
            !net.addr().is_unicast_link_local()
                && subnets.ipv6.is_some_and(|subnet| !subnet.contains(&net.addr()))
        }
    };
    // One that has both was given its new address by somebody who knows.
    let fits = |net: &IpNet| subnets.iter().any(|subnet| subnet.contains(&net.addr()));
    addresses.iter().copied().find(leads_nowhere).filter(|_| !addresses.iter().any(fits))
}

fn words(stray: IpNet, subnets: Subnets) -> (String, String) {
    let what =
        format!("{BRIDGE} has {stray}, but this node's subnet is {subnets}: new pods cannot be attached");
    let remedy = format!(
        "delete the pods of this node, then `ip link delete {BRIDGE}`; it is made anew with the next pod"
    );
    (what, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bridge_of_another_subnet_is_told() {
        let subnets = Subnets::from_key("10.244.3.0-24&fd00:0:0:3::-64").unwrap();
        let stray = |addresses: &[&str]| {
            let addresses: Vec<IpNet> = addresses.iter().map(|net| net.parse().unwrap()).collect();
            super::stray(subnets, &addresses).map(|net| net.to_string())
        };
        assert_eq!(stray(&[]), None);
        assert_eq!(stray(&["10.244.3.1/24", "fd00:0:0:3::1/64", "fe80::1/64"]), None);
        assert_eq!(stray(&["fe80::1/64", "10.244.1.1/24"]).as_deref(), Some("10.244.1.1/24"));
        assert_eq!(stray(&["fd00:0:0:1::1/64"]).as_deref(), Some("fd00:0:0:1::1/64"));
        assert_eq!(stray(&["10.244.3.1/24", "10.244.1.1/24"]), None, "somebody keeps both");
    }
}
