//! Port mappings as rules of nftables.
//!
//! Compatibility: table, chains, rules and comments are those of the reference plugin, so that either
//! program finds what the other one made. Two things differ that it does not look at: conditions of the
//! configuration are in the rules of the container they are for, not in those of all, and a mark in
//! every rule tells the network, which GC has to know.

use std::net::IpAddr;

use cni::{Attachment, Error, Request};
use fabric::firewall::{
    Chain, ChainKind, Family, Hook, HookPoint, Is, Match, Policy, Rule, SourcePorts, Table, TableName,
    Verdict, priority,
};
use ipnet::IpNet;
use kernel::nftables::Nftables;
use kernel::nftables::owned::{Mark, Owner};
use kernel::{KernelError, command};
use rustix::io::Errno;
use sha2::{Digest as _, Sha512};

use super::family_of;
use super::settings::{Mapping, Settings};

const HOST_PORTS: &str = "hostports";
/// Compatibility: where older versions of the reference plugin had rules for one address of the host.
const HOST_IP_PORTS: &str = "hostip_hostports";
const ALL_HOST_PORTS: &str = "hostports_all";
const PREROUTING: &str = "prerouting";
const OUTPUT: &str = "output";
const MASQUERADING: &str = "masquerading";
/// The chains that have rules of containers.
const CONTAINERS: [&str; 3] = [HOST_PORTS, HOST_IP_PORTS, MASQUERADING];

/// The longest comment that nft takes.
const COMMENT_LENGTH: usize = 127;

/// Forwards ports to one address of the container, and none that were forwarded to it before.
pub(super) fn install(
    nft: &mut Nftables,
    request: &Request,
    settings: &Settings,
    address: IpNet,
) -> Result<(), Error> {
    let failed = |error: KernelError| {
        Error::internal(format!("unable to set up nftables rules for port mappings: {error}"))
    };
    let (comment, owner) = (comment_of(&request.environment.container_id), owner_of(request));
    let family = family_of(address.addr());
    let (mut rules, conditions) = match native(settings.conditions(address.addr())) {
        Some(conditions) => (forwarding(settings, &conditions, address.addr()), None),
        None => (Vec::new(), Some(settings.conditions(address.addr()).join(" "))),
    };
    rules.extend(masquerading(settings, address.addr()));
    for (_, rule) in &mut rules {
        rule.comment = Some(comment.clone());
    }
    let is_own = |mark: &Mark| is_of(mark, &comment, owner);
    nft.replace_owned(&frame(family, settings.snat), owner, &rules, is_own).map_err(failed)?;
    if let Some(conditions) = conditions {
        // Only nft itself understands all that it may be told.
        let rules: String = forwarding(settings, &[], address.addr())
            .into_iter()
            .map(|(chain, rule)| {
                let rule = rule.comment(comment.clone());
                format!("add rule {} {chain} {conditions} {rule}\n", table(family))
            })
            .collect();
        command::run("nft", &["-f", "-"], &rules).map_err(failed)?;
    }
    Ok(())
}

/// Takes all rules of an attachment away.
pub(super) fn remove(nft: &mut Nftables, request: &Request) -> Result<(), Error> {
    let (comment, owner) = (comment_of(&request.environment.container_id), owner_of(request));
    remove_those(nft, |mark| is_of(mark, &comment, owner))
}

/// Takes the rules of all attachments of this network away that are not listed.
pub(super) fn keep_only(nft: &mut Nftables, request: &Request, valid: &[Attachment]) -> Result<(), Error> {
    let owner = owner_of(request);
    let kept: Vec<String> = valid.iter().map(|attachment| comment_of(&attachment.container_id)).collect();
    // Of a rule without the mark nobody can say which network it belongs to.
    remove_those(nft, |mark| {
        mark.owner == Some(owner) && !mark.comment.as_ref().is_some_and(|comment| kept.contains(comment))
    })
}

/// Whether everything is there that leads packets to this address of the container.
pub(super) fn check(
    nft: &mut Nftables,
    request: &Request,
    settings: &Settings,
    address: IpNet,
) -> Result<(), Error> {
    let failed = |error: KernelError| Error::internal(error.to_string());
    let table = table(family_of(address.addr()));
    let (comment, owner) = (comment_of(&request.environment.container_id), owner_of(request));
    let own = nft.owned_rules(&table, &CONTAINERS, |mark| is_of(mark, &comment, owner)).map_err(failed)?;
    let missing = |chain: &str| {
        Err(Error::internal(format!("missing hostport rules in {chain:?} chain"))
            .details(format!("of table {table}")))
    };
    for (chain, wanted) in forwarding(settings, &[], address.addr()) {
        // Conditions may stand in front, here or where the chain is entered.
        let leads_there = |rule: &Rule| {
            rule.verdict == wanted.verdict && wanted.matches.iter().all(|must| rule.matches.contains(must))
        };
        if !own.iter().any(leads_there) {
            return missing(chain);
        }
    }
    let masquerades = own.iter().filter(|rule| matches!(rule.verdict, Verdict::Masquerade(_))).count();
    if masquerades < masquerading(settings, address.addr()).len() {
        return missing(MASQUERADING);
    }
    for (from, to) in [(PREROUTING, ALL_HOST_PORTS), (OUTPUT, ALL_HOST_PORTS), (ALL_HOST_PORTS, HOST_PORTS)] {
        if !nft.jumps(&table, from).map_err(failed)?.iter().any(|(target, _)| target == to) {
            return missing(from);
        }
    }
    Ok(())
}

fn remove_those(nft: &mut Nftables, is_stale: impl Fn(&Mark) -> bool) -> Result<(), Error> {
    let tables = [table(Family::Ipv4), table(Family::Ipv6)];
    match nft.remove_owned(&tables, &CONTAINERS, is_stale) {
        // A kernel without nftables has no rules.
        Err(error) if matches!(error.errno(), Some(Errno::INVAL | Errno::OPNOTSUPP)) => Ok(()),
        Err(error) => Err(Error::internal(format!("error deleting nftables rules: {error}"))),
        Ok(()) => Ok(()),
    }
}

/// Whether a rule belongs to this container in this network. The reference plugin, and nft, do not tell
/// the network.
fn is_of(mark: &Mark, comment: &str, owner: Owner) -> bool {
    mark.comment.as_deref() == Some(comment) && mark.owner.is_none_or(|of| of == owner)
}

fn table(family: Family) -> TableName {
    TableName { family, name: "cni_hostport".to_owned() }
}

/// The table without the rules of containers.
fn frame(family: Family, snat: bool) -> Table {
    let chain = |name: &str, rules| Chain { name: name.to_owned(), hook: None, comment: None, rules };
    let base = |name, point, priority, rules| {
        let hook = Hook { kind: ChainKind::Nat, point, priority, policy: Policy::Accept };
        Chain { hook: Some(hook), ..chain(name, rules) }
    };
    let jump = |matches, to: &str| Rule::new(matches, Verdict::Jump(to.to_owned()));
    let entry = || vec![jump(vec![Match::DestinationIsLocal], ALL_HOST_PORTS)];
    let mut chains = vec![
        chain(HOST_PORTS, Vec::new()),
        chain(HOST_IP_PORTS, Vec::new()),
        chain(ALL_HOST_PORTS, vec![jump(Vec::new(), HOST_IP_PORTS), jump(Vec::new(), HOST_PORTS)]),
        base(PREROUTING, HookPoint::Prerouting, priority::DSTNAT, entry()),
        base(OUTPUT, HookPoint::Output, priority::DSTNAT, entry()),
    ];
    if snat {
        chains.push(base(MASQUERADING, HookPoint::Postrouting, priority::SRCNAT, Vec::new()));
    }
    Table { name: table(family), comment: Some("CNI portmap plugin".to_owned()), chains }
}

/// The rules that lead packets to the container, with their chain.
fn forwarding(settings: &Settings, conditions: &[Match], address: IpAddr) -> Vec<(&'static str, Rule)> {
    let rule = |mapping: &Mapping| {
        let mut matches = conditions.to_vec();
        let destination = mapping.destination().map(|ip| Match::Destination(Is::Equal, ip.into()));
        matches.extend(destination);
        matches.push(Match::DestinationPort(mapping.protocol, mapping.host_port));
        Rule::new(matches, Verdict::DestinationNat(address, mapping.container_port))
    };
    let mappings = settings.mappings.iter().filter(|mapping| mapping.applies_to(address));
    mappings.map(|mapping| (HOST_PORTS, rule(mapping))).collect()
}

/// The rules that give packets the host's address whose answers would not come back else.
fn masquerading(settings: &Settings, address: IpAddr) -> Vec<(&'static str, Rule)> {
    if !settings.snat {
        return Vec::new();
    }
    let everywhere: IpNet = match address {
        IpAddr::V4(_) => "0.0.0.0/0".parse().expect("a network"),
        IpAddr::V6(_) => "::/0".parse().expect("a network"),
    };
    let sources: Vec<IpNet> = match address {
        _ if settings.masq_all => vec![everywhere],
        IpAddr::V4(_) => vec![address.into(), "127.0.0.1/32".parse().expect("an address")],
        IpAddr::V6(_) => vec![address.into()],
    };
    let rule = |source| {
        let matches = vec![Match::Source(Is::Equal, source), Match::Destination(Is::Equal, address.into())];
        (MASQUERADING, Rule::new(matches, Verdict::Masquerade(SourcePorts::Kept)))
    };
    sources.into_iter().map(rule).collect()
}

/// The conditions that can be written without nft: addresses and devices.
fn native(words: &[String]) -> Option<Vec<Match>> {
    // A word may have several in it.
    let words: Vec<&str> = words.iter().flat_map(|word| word.split_ascii_whitespace()).collect();
    let mut conditions = Vec::new();
    let mut rest = words.as_slice();
    while !rest.is_empty() {
        let (what, length) = match rest {
            ["ip" | "ip6", what, ..] => (*what, 2),
            [what @ ("iifname" | "oifname"), ..] => (*what, 1),
            _ => return None,
        };
        let family = rest[0];
        rest = &rest[length..];
        let (is, [value, after @ ..]) = (match rest {
            ["!=", after @ ..] => (Is::NotEqual, after),
            ["==", after @ ..] => (Is::Equal, after),
            _ => (Is::Equal, rest),
        }) else {
            return None;
        };
        let net = || {
            let net = value.parse().or_else(|_| value.parse::<IpAddr>().map(IpNet::from)).ok();
            net.filter(|net: &IpNet| net.addr().is_ipv4() == (family == "ip"))
        };
        let link = value.trim_matches('"').to_owned();
        let is_link = !link.contains('*') && link.parse::<fabric::LinkName>().is_ok();
        conditions.push(match (what, is) {
            ("saddr", is) => Match::Source(is, net()?),
            ("daddr", is) => Match::Destination(is, net()?),
            ("iifname", Is::Equal) if is_link => Match::InputLink(link),
            ("oifname", is) if is_link => Match::OutputLink(is, link),
            _ => return None,
        });
        rest = after;
    }
    Some(conditions)
}

/// The comment by which a container's rules are known: its name, as far as nft takes it.
fn comment_of(container_id: &str) -> String {
    if container_id.len() <= COMMENT_LENGTH {
        return container_id.to_owned();
    }
    let hash: String =
        Sha512::digest(container_id.as_bytes())[..16].iter().map(|b| format!("{b:02x}")).collect();
    // Container IDs are ASCII.
    format!("{}-{hash}", container_id.get(..COMMENT_LENGTH - 33).unwrap_or_default())
}

/// The mark of the network's rules.
fn owner_of(request: &Request) -> Owner {
    let hash = Sha512::digest(request.config.name().as_bytes());
    let mut mark = [0; 8];
    mark.copy_from_slice(&hash[..8]);
    Owner(mark)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_reads_as_the_reference_plugin_writes_it() {
        let expected = "table ip cni_hostport {\n\
            \tcomment \"CNI portmap plugin\"\n\
            \tchain hostports {\n\t}\n\n\
            \tchain hostip_hostports {\n\t}\n\n\
            \tchain hostports_all {\n\t\tjump hostip_hostports\n\t\tjump hostports\n\t}\n\n\
            \tchain prerouting {\n\
            \t\ttype nat hook prerouting priority dstnat; policy accept;\n\
            \t\tfib daddr type local jump hostports_all\n\t}\n\n\
            \tchain output {\n\
            \t\ttype nat hook output priority -100; policy accept;\n\
            \t\tfib daddr type local jump hostports_all\n\t}\n\n\
            \tchain masquerading {\n\
            \t\ttype nat hook postrouting priority srcnat; policy accept;\n\t}\n}\n";
        assert_eq!(frame(Family::Ipv4, true).to_string(), expected);
    }

    #[test]
    fn conditions_on_addresses_and_devices_need_no_program() {
        let native = |text: &str| {
            let words: Vec<String> = text.split(' ').map(str::to_owned).collect();
            let matches = native(&words)?;
            Some(matches.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        };
        let same = "ip saddr != 10.0.0.0/8 ip daddr 192.0.2.1 iifname \"eth0\"";
        assert_eq!(native(same).as_deref(), Some(same));
        assert_eq!(native("ip6 saddr fd00::/8").as_deref(), Some("ip6 saddr fd00::/8"));
        for foreign in
            ["ip saddr", "ip saddr fd00::1", "ip saddr { 10.0.0.1 }", "tcp dport 80", "iifname eth*"]
        {
            assert_eq!(native(foreign), None, "{foreign}");
        }
        assert_eq!(native("").as_deref(), Some(""));
    }

    #[test]
    fn a_long_name_of_a_container_becomes_a_comment_that_nft_takes() {
        let (a, b) = ("a".repeat(140), format!("{}b", "a".repeat(139)));
        assert_eq!(comment_of(&a).len(), 127);
        assert_ne!(comment_of(&a), comment_of(&b));
        assert_eq!(comment_of(&a[..127]), a[..127]);
    }
}
