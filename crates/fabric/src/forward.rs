//! Forwarding: packets from and to pods are let through.

use ipnet::IpNet;

use crate::firewall::{Chain, ChainKind, Hook, HookPoint, Is, Match, Policy, Rule, Verdict, priority};

/// The chain `forward` for one family of the flannel network.
///
/// Compatibility: the original's text. It accepts within its own table only; where an iptables
/// `FORWARD` chain drops, see `Dataplane::accepted_forwards`. The policy must never be `drop`: the
/// chain sees all packets that the host forwards, not flannel's alone.
pub(crate) fn chain(network: IpNet) -> Chain {
    Chain {
        name: "forward".to_owned(),
        hook: Some(Hook {
            kind: ChainKind::Filter,
            point: HookPoint::Forward,
            priority: priority::FILTER,
            policy: Policy::Accept,
        }),
        comment: Some("chain to accept flannel traffic".to_owned()),
        rules: vec![
            Rule::new(vec![Match::Source(Is::Equal, network)], Verdict::Accept),
            Rule::new(vec![Match::Destination(Is::Equal, network)], Verdict::Accept),
        ],
    }
}
