//! The one thing that cannot be done in a table of our own: an `accept` there does not undo a `drop`
//! in another, so where the host's iptables drops forwarded packets by default (Docker sets the
//! policy of `FORWARD` to `DROP`, distributions end the chain with `REJECT`), pods reach each other
//! only if `FORWARD` itself accepts them.
//!
//! Two accepting rules per network, from it and to it, are put there, and nothing else:
//!
//! * at the end of the chain, so that whatever the administrator or Docker refuses by a rule of its
//!   own is still refused;
//! * but in front of a rule that drops or rejects everything, and of a jump to a chain of which that
//!   is the whole effect (ufw's `ufw-reject-forward`). Such a rule says what a policy says: what
//!   happens to the rest. Behind it, the rules would be dead, as the original's are.
//!
//! They carry the comment of the original's forward rules, by which they are known as flannel's,
//! also after `iptables-save` and `iptables-restore`. The original's own rules, in `FLANNEL-FWD`, do
//! the same, but are not counted: they go away on take-over ([`crate::takeover`]), and a rule of
//! ours must be there before.
//!
//! iptables-nft keeps its rules in nftables: they are read and written over netlink. iptables-legacy
//! has tables of its own, and only where the kernel says that such a table exists is the host's
//! iptables-legacy run.

mod legacy;
mod native;

use std::collections::{BTreeMap, BTreeSet};

use fabric::dataplane::IpFamily;
use ipnet::IpNet;

use crate::error::KernelError;
use crate::nftables::Nftables;
pub(crate) use legacy::Legacy;
pub(crate) use native::table;

/// The comment on accepting rules, the original's.
pub const FORWARD_COMMENT: &str = "flanneld forward";

/// Both IP versions.
pub(crate) const FAMILIES: [IpFamily; 2] = [IpFamily::V4, IpFamily::V6];

/// From a network, or to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Direction {
    From,
    To,
}

/// One `FORWARD` chain, as far as it matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Forward {
    /// Whether the chain drops what none of its rules accepts.
    drops: bool,
    /// Accepting rules of ours that come before everything is dropped.
    effective: BTreeSet<(IpNet, Direction)>,
    /// Whether there is any rule of ours, effective or not.
    has_ours: bool,
}

impl Forward {
    /// The networks of which packets are accepted both ways.
    fn accepted(&self) -> BTreeSet<IpNet> {
        let from = self.effective.iter().filter(|(_, direction)| *direction == Direction::From);
        from.map(|(net, _)| *net).filter(|net| self.effective.contains(&(*net, Direction::To))).collect()
    }
}

/// For each IP version of which a `FORWARD` chain of iptables drops by default: the networks that all
/// such chains accept by rules of ours. Where none drops, but rules of ours are left from a time when
/// one did, those.
pub fn observe_forward(nftables: &mut Nftables) -> Result<BTreeMap<IpFamily, BTreeSet<IpNet>>, KernelError> {
    let mut accepted = BTreeMap::new();
    for family in FAMILIES {
        let mut chains = Vec::new();
        chains.extend(native::observe(nftables, family)?);
        if let Some(legacy) = Legacy::of(family, "filter")? {
            chains.push(legacy::observe(&legacy));
        }
        if let Some(networks) = accepted_by_all(&chains) {
            accepted.insert(family, networks);
        }
    }
    Ok(accepted)
}

/// Puts accepting rules for some networks into every `FORWARD` chain that drops by default, and takes
/// those for others out of every one. Asking twice changes nothing more.
pub fn apply_forward(
    nftables: &mut Nftables,
    accept: &[IpNet],
    retract: &[IpNet],
) -> Result<(), KernelError> {
    for family in FAMILIES {
        let of_family = |nets: &[IpNet]| -> Vec<IpNet> {
            nets.iter().filter(|net| IpFamily::of(net) == family).map(IpNet::trunc).collect()
        };
        let (accept, retract) = (of_family(accept), of_family(retract));
        if accept.is_empty() && retract.is_empty() {
            continue;
        }
        native::apply(nftables, family, &accept, &retract)?;
        legacy::apply(family, &accept, &retract)?;
    }
    Ok(())
}

/// The names of all chains of nftables, those of iptables included, and of iptables-legacy as far as
/// its programs can be run.
pub fn chains(nftables: &mut Nftables) -> Result<BTreeSet<String>, KernelError> {
    let mut names: BTreeSet<String> = nftables.chains()?.into_iter().map(|(_, name)| name).collect();
    for (family, table) in FAMILIES.iter().flat_map(|family| [(*family, "filter"), (*family, "nat")]) {
        let legacy = Legacy::of(family, table)?;
        names.extend(legacy.iter().flat_map(Legacy::chains).map(str::to_owned));
    }
    Ok(names)
}

/// What several chains accept together; none if nothing is asked of any of them.
fn accepted_by_all(chains: &[Forward]) -> Option<BTreeSet<IpNet>> {
    let dropping = chains.iter().filter(|chain| chain.drops).map(Forward::accepted);
    let by_all = dropping.reduce(|all, these| all.intersection(&these).copied().collect());
    by_all.or_else(|| {
        let leftovers = chains.iter().filter(|chain| chain.has_ours).map(Forward::accepted);
        leftovers.reduce(|all, these| all.union(&these).copied().collect())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(drops: bool, effective: &[(&str, Direction)]) -> Forward {
        let effective: BTreeSet<_> =
            effective.iter().map(|(net, direction)| (net.parse().unwrap(), *direction)).collect();
        Forward { drops, has_ours: !effective.is_empty(), effective }
    }

    fn nets(nets: &[&str]) -> BTreeSet<IpNet> {
        nets.iter().map(|net| net.parse().unwrap()).collect()
    }

    const BOTH: [(&str, Direction); 2] = [("10.0.0.0/8", Direction::From), ("10.0.0.0/8", Direction::To)];

    #[test]
    fn a_network_is_accepted_only_if_every_dropping_chain_accepts_it_both_ways() {
        assert_eq!(accepted_by_all(&[chain(true, &BOTH)]), Some(nets(&["10.0.0.0/8"])));
        assert_eq!(accepted_by_all(&[chain(true, &BOTH[..1])]), Some(nets(&[])));
        assert_eq!(accepted_by_all(&[chain(true, &BOTH), chain(true, &[])]), Some(nets(&[])));
        assert_eq!(accepted_by_all(&[chain(true, &BOTH), chain(false, &[])]), Some(nets(&["10.0.0.0/8"])));
    }

    #[test]
    fn nothing_is_asked_of_chains_that_let_packets_through() {
        assert_eq!(accepted_by_all(&[]), None);
        assert_eq!(accepted_by_all(&[chain(false, &[])]), None);
    }

    #[test]
    fn rules_of_ours_are_seen_after_the_policy_has_changed_to_accept() {
        assert_eq!(accepted_by_all(&[chain(false, &BOTH)]), Some(nets(&["10.0.0.0/8"])));
    }
}
