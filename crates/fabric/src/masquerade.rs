//! Masquerade: what leaves the pod network does so under the node's address.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::firewall::{
    Chain, ChainKind, Hook, HookPoint, Is, Match, Policy, Rule, SourcePorts, Verdict, priority,
};

/// The mark that kube-proxy puts on packets that it masquerades itself.
const KUBE_PROXY_MARK: u32 = 0x4000;

/// The chain `postrtg` for one family: `network` is flannel's, `own` this node's part of it, and
/// packets from pods to a network of `except` keep their address.
///
/// Compatibility: the text is that of the original's nftables rules, which its end-to-end tests hold
/// against a golden text, but for two lines that are wrong there and right in its iptables rules:
///
/// * The mark is compared under its mask (`-m mark --mark 0x4000/0x4000`). The golden text has
///   `meta mark 0x00004000`, which fails to see the mark on a packet that carries another bit as
///   well, and so has it translated twice.
/// * Packets from outside keep their address only on the way to this node's pods (`! -s N -d S`).
///   The golden text has `saddr != S daddr N return`, which takes in every peer's pods too: what the
///   host or the outside world sends there is never masqueraded, and the last rule never matches.
pub(crate) fn chain(
    network: IpNet,
    own: Option<IpNet>,
    except: &[IpNet],
    source_ports: SourcePorts,
) -> Chain {
    use Is::{Equal, NotEqual};
    use Match::{Destination, Source};
    let multicast = match network {
        IpNet::V4(_) => IpNet::V4(Ipv4Net::new_assert([224, 0, 0, 0].into(), 4)),
        IpNet::V6(_) => IpNet::V6(Ipv6Net::new_assert([0xff00, 0, 0, 0, 0, 0, 0, 0].into(), 8)),
    };
    let mut rules = vec![Rule::new(
        vec![Match::Mark { mask: Some(KUBE_PROXY_MARK), value: KUBE_PROXY_MARK }],
        Verdict::Return,
    )];
    if let Some(own) = own {
        rules.extend([
            Rule::new(vec![Source(Equal, own), Destination(Equal, network)], Verdict::Return),
            Rule::new(vec![Source(Equal, network), Destination(Equal, own)], Verdict::Return),
            Rule::new(vec![Source(NotEqual, network), Destination(Equal, own)], Verdict::Return),
        ]);
    }
    let family = |net: &&IpNet| net.addr().is_ipv4() == network.addr().is_ipv4();
    rules.extend(except.iter().filter(family).map(|net| match net.prefix_len() {
        // Everywhere: nothing is left to compare.
        0 => Rule::new(vec![Source(Equal, network)], Verdict::Return),
        _ => Rule::new(vec![Source(Equal, network), Destination(Equal, net.trunc())], Verdict::Return),
    }));
    let masquerade = Verdict::Masquerade(source_ports);
    rules.extend([
        Rule::new(vec![Source(Equal, network), Destination(NotEqual, multicast)], masquerade.clone()),
        Rule::new(vec![Source(NotEqual, network), Destination(Equal, network)], masquerade),
    ]);
    Chain {
        name: "postrtg".to_owned(),
        hook: Some(Hook {
            kind: ChainKind::Nat,
            point: HookPoint::Postrouting,
            priority: priority::SRCNAT,
            policy: Policy::Accept,
        }),
        comment: Some("chain to manage traffic masquerading by flannel".to_owned()),
        rules,
    }
}
