//! What changes and their failures mean: words for what was found wrong in the kernel, whom it concerns
//! that the kernel refuses something, and what to do about that.

use std::collections::BTreeMap;

use fabric::dataplane::Change;
use fabric::status::{Repair, UnixSeconds};
use kernel::{Failure, KernelError};
use rustix::io::Errno;

/// What was put right, one entry for each kind of change.
pub fn repairs(changes: &[&Change], at: UnixSeconds) -> Vec<Repair> {
    let mut kinds: BTreeMap<usize, Repair> = BTreeMap::new();
    let remade: Vec<_> = changes
        .iter()
        .filter_map(|change| if let Change::DeleteLink(name) = *change { Some(*name) } else { None })
        .collect();
    for &change in changes {
        let (kind, why) = match change {
            Change::SetSysctl(..) => (0, "it had another value"),
            Change::DeleteLink(_) => (1, "the device had other parameters"),
            Change::CreateLink(link) if remade.contains(&link.name) => (2, "the device had other parameters"),
            Change::CreateLink(_) => (2, "the device was missing"),
            Change::SetMtu(..) => (3, "the device had another MTU"),
            Change::SetMac(..) => (4, "the device had another Ethernet address"),
            Change::SetUp(_) => (5, "the device was down"),
            Change::AddAddress(..) => (6, "the address was missing"),
            Change::RemoveAddress(..) => {
                (7, "the device had an address of the pod network that is not its own")
            }
            Change::SetNeighbor(..) => (8, "the neighbor entry was missing or changed"),
            Change::RemoveNeighbor(..) => (9, "no lease wants the neighbor entry"),
            Change::SetFdb(..) => (10, "the forwarding entry was missing or changed"),
            Change::RemoveFdb(..) => (11, "no lease wants the forwarding entry"),
            Change::AddNextHop(..) => (12, "the next-hop object was missing or changed"),
            Change::RemoveNextHop(_) => (13, "no lease wants the next-hop object"),
            Change::SetRoute(_) => (14, "the route was missing or changed"),
            Change::RemoveRoute(_) => (15, "no lease wants the route"),
            Change::SetTable(_) => (16, "the firewall table was missing or changed"),
            Change::DeleteTable(_) => (17, "the firewall table is not wanted"),
            Change::AcceptForward(_) => (18, "forwarded packets of the network were dropped"),
            Change::RetractForward(_) => (19, "the network is not ours to accept"),
        };
        match kinds.entry(kind) {
            std::collections::btree_map::Entry::Occupied(mut first) => first.get_mut().more += 1,
            std::collections::btree_map::Entry::Vacant(none) => {
                let change = first_line(change);
                none.insert(Repair { at, change, more: 0, why: why.to_owned() });
            }
        }
    }
    kinds.into_values().collect()
}

/// The text of a change without the body of a table.
pub(crate) fn first_line(change: &Change) -> String {
    if let Change::SetTable(table) = change {
        return format!("nft replace table {}", table.name);
    }
    change.to_string()
}

/// Whether a change is about the node itself, without which it carries no traffic at all.
pub(crate) fn concerns_node(change: &Change) -> bool {
    matches!(
        change,
        Change::CreateLink(_)
            | Change::DeleteLink(_)
            | Change::SetMtu(..)
            | Change::SetMac(..)
            | Change::SetUp(_)
            | Change::AddAddress(..)
            | Change::SetTable(_)
    )
}

/// Whom it harms that the kernel refused changes, from the least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Harm {
    None,
    /// Some peers.
    Peers,
    /// The node as a whole.
    Node,
}

pub(crate) fn harm(failures: &[Failure]) -> Harm {
    let of = |failure: &Failure| if concerns_node(&failure.change) { Harm::Node } else { Harm::Peers };
    failures.iter().map(of).max().unwrap_or(Harm::None)
}

/// Whether a setting could not be written because a container's /proc/sys is read-only.
pub(crate) fn is_read_only(failure: &Failure) -> bool {
    matches!(failure.change, Change::SetSysctl(..)) && failure.error.errno() == Some(Errno::ROFS)
}

/// What an operator can do about a refusal; empty where we do not know better than the error.
pub fn remedy(change: Option<&Change>, error: &KernelError) -> &'static str {
    match (change, error.errno()) {
        (Some(Change::SetSysctl(..)), Some(Errno::ROFS | Errno::ACCESS | Errno::PERM)) => {
            "set the value on the host, or run flanneld with a writable /proc/sys"
        }
        (_, Some(Errno::PERM | Errno::ACCESS)) => "run flanneld as root, or with the capability NET_ADMIN",
        (Some(Change::CreateLink(_)), Some(Errno::OPNOTSUPP)) => {
            "the kernel has no vxlan: load the module (`modprobe vxlan`), or use the backend host-gw"
        }
        (Some(Change::CreateLink(_)), Some(Errno::EXIST)) => {
            "another device has the same VNI and port: delete it (`ip -d link show type vxlan` lists them), or give the \
             network another Backend.VNI or Backend.Port"
        }
        (Some(Change::CreateLink(_)), Some(Errno::ADDRINUSE)) => {
            "another program has the UDP port (`ss -lunp`): stop it, or give the network another Backend.Port"
        }
        (
            Some(Change::SetTable(_) | Change::DeleteTable(_)),
            Some(Errno::OPNOTSUPP | Errno::PROTONOSUPPORT),
        ) => "the kernel has no nftables: load the module (`modprobe nf_tables`)",
        (Some(Change::SetTable(_)), Some(Errno::NOENT)) => {
            "the kernel lacks a part of nftables: load `nft_chain_nat`, `nft_masq` and `nft_ct`"
        }
        (Some(Change::SetRoute(_)), Some(Errno::NETUNREACH)) => {
            "the gateway is not on any link of this node: host-gw needs all nodes on one layer-2 network"
        }
        (Some(Change::AcceptForward(_)), _) => {
            "the FORWARD chain of iptables drops by default: install iptables, or accept the pod network there yourself"
        }
        (_, Some(Errno::NOBUFS | Errno::NOMEM)) => "the kernel is short of memory",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deleted_device_is_one_line_for_each_kind_of_loss() {
        let link = "flannel.1".parse().unwrap();
        let neighbor = |ip: &str| Change::SetNeighbor(link, ip.parse().unwrap(), fabric::Mac([2; 6]));
        let changes = [Change::SetUp(link), neighbor("10.5.1.0"), neighbor("10.5.2.0")];
        let repairs = repairs(&changes.iter().collect::<Vec<_>>(), 7);
        let said: Vec<_> = repairs.iter().map(|repair| (repair.change.as_str(), repair.more)).collect();
        assert_eq!(
            said,
            [
                ("ip link set flannel.1 up", 0),
                ("ip neighbor replace 10.5.1.0 lladdr 02:02:02:02:02:02 dev flannel.1 nud permanent", 1)
            ]
        );
        assert_eq!(repairs[0].why, "the device was down");
    }
}
