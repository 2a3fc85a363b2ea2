//! Port mappings as rules of iptables.
//!
//! Compatibility: chains, rules and comments are those of the reference plugin, so that either program
//! finds what the other one made. The reference plugin runs iptables once per rule, and does not take
//! away what an earlier ADD left in the container's chain.

use std::collections::BTreeMap;

use cni::{Attachment, Error, Request};
use fabric::firewall::Family;
use ipnet::IpNet;
use kernel::KernelError;
use kernel::nftables::Nftables;
use sha2::{Digest as _, Sha512};

use super::family_of;
use super::settings::{Mapping, Settings};
use crate::iptables::{FAMILIES, Iptables, entries, line, remove_entered};

const NAT: &str = "nat";
const DNAT: &str = "CNI-HOSTPORT-DNAT";
const SET_MARK: &str = "CNI-HOSTPORT-SETMARK";
const MASQUERADE: &str = "CNI-HOSTPORT-MASQ";
/// Compatibility: what versions of the reference plugin before 0.7 had.
const OLD_SNAT: &str = "CNI-HOSTPORT-SNAT";
/// What the multiport match takes.
const PORTS_PER_RULE: usize = 15;
/// What the comment match takes.
const COMMENT_LENGTH: usize = 255;

type Words = Vec<String>;

/// Whether port mappings of this host are rules of iptables already: those of the reference plugin. Then
/// it could not take away what was made by nftables.
pub(super) fn is_in_use(nft: &mut Nftables) -> bool {
    let native = FAMILIES
        .iter()
        .any(|family| nft.has_chain(&Iptables::nft_table(*family, NAT), DNAT).unwrap_or(false));
    let legacy = |family| Iptables::legacy_with(family, NAT).is_some_and(|l| l.list(NAT, DNAT).is_some());
    native || FAMILIES.into_iter().any(legacy)
}

/// Forwards ports to one address of the container.
pub(super) fn install(
    mut nft: Option<&mut Nftables>,
    request: &Request,
    settings: &Settings,
    address: IpNet,
) -> Result<(), Error> {
    let failed = |error: KernelError| Error::internal(format!("unable to setup DNAT: {error}"));
    let family = family_of(address.addr());
    let iptables = Iptables::of_host(family)
        .map_err(|error| Error::internal(format!("failed to open iptables: {error}")))?;
    // What an ADD that was not followed by a DEL left would count before what is added here.
    remove_from(nft.as_deref_mut(), family, &chain_of(request)).map_err(failed)?;

    let mut jumps = |chain| iptables.jumps(nft.as_deref_mut(), NAT, chain).map_err(failed);
    if jumps(DNAT)?.is_none() {
        // Not by the lines below, which empty the chains that they name: it is shared.
        iptables.ensure_chain(NAT, DNAT).map_err(failed)?;
    }
    let rules = Rules::of(request, settings, address);
    let mut lines = String::new();
    for chain in &rules.chains {
        lines += &format!(":{chain} - [0:0]\n");
    }
    for (chain, rule) in &rules.entries {
        let is_there = jumps(chain)?.is_some_and(|to| rule.last().is_some_and(|own| to.contains(own)));
        if !is_there {
            // Compatibility: masquerading is entered first, in front of what bridge and ptp have there.
            let verb = if chain == "POSTROUTING" { "-I" } else { "-A" };
            lines += &line(&placed(verb, chain, rule))?;
        }
    }
    for (chain, rule) in &rules.own {
        lines += &line(&placed("-A", chain, rule))?;
    }
    iptables.restore(NAT, &lines).map_err(failed)
}

/// Whether the container has a chain.
pub(super) fn has_chain(
    nft: Option<&mut Nftables>,
    request: &Request,
    family: Family,
) -> Result<bool, Error> {
    let chain = chain_of(request);
    let native = match nft {
        Some(nft) => nft
            .has_chain(&Iptables::nft_table(family, NAT), &chain)
            .map_err(|error| Error::internal(error.to_string()))?,
        None => false,
    };
    let legacy = || Iptables::legacy_with(family, NAT).is_some_and(|l| l.list(NAT, &chain).is_some());
    Ok(native || legacy())
}

/// Whether all rules are there that lead packets to this address of the container.
pub(super) fn check(request: &Request, settings: &Settings, address: IpNet) -> Result<(), Error> {
    let failed = |error: KernelError| Error::internal(error.to_string());
    let family = family_of(address.addr());
    let iptables = match Iptables::legacy_with(family, NAT) {
        Some(legacy) if legacy.list(NAT, &chain_of(request)).is_some() => legacy,
        _ => Iptables::of_host(family).map_err(failed)?,
    };
    let rules = Rules::of(request, settings, address);
    for (chain, rule) in rules.entries.iter().chain(&rules.own) {
        let words = placed("-C", chain, rule);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        iptables.run(NAT, &words).map_err(|error| {
            Error::internal(format!("rule {rule:?} in chain {chain} not found in table nat"))
                .details(error.to_string())
        })?;
    }
    Ok(())
}

/// Takes all rules of an attachment away.
pub(super) fn remove(mut nft: Option<&mut Nftables>, request: &Request) -> Result<(), Error> {
    let mut outcome = Ok(());
    for family in FAMILIES {
        let removed = remove_from(nft.as_deref_mut(), family, &chain_of(request));
        outcome = outcome.and(removed);
    }
    outcome.map_err(|error| Error::internal(format!("could not teardown dnat: {error}")))
}

/// Takes the rules of all attachments of this network away that are not listed.
pub(super) fn keep_only(
    mut nft: Option<&mut Nftables>,
    request: &Request,
    valid: &[Attachment],
) -> Result<(), Error> {
    let network = request.config.name();
    let kept: Vec<String> =
        valid.iter().map(|attachment| chain_name(network, &attachment.container_id)).collect();
    let of_network = format!("dnat name: \"{network}\" id: ");
    let mut outcome = Ok(());
    for family in FAMILIES {
        for (chain, comment) in entries(nft.as_deref_mut(), family, NAT, DNAT) {
            if chain.starts_with("CNI-DN-") && comment.contains(&of_network) && !kept.contains(&chain) {
                outcome = outcome.and(remove_from(nft.as_deref_mut(), family, &chain));
            }
        }
    }
    outcome.map_err(|error: KernelError| {
        Error::internal(format!("could not tear down stale port mappings: {error}"))
    })
}

/// Deletes a container's chain and what leads there, wherever it is.
fn remove_from(mut nft: Option<&mut Nftables>, family: Family, chain: &str) -> Result<(), KernelError> {
    let old = chain.replacen("CNI-DN-", "CNI-SN-", 1);
    let removed = remove_entered(nft.as_deref_mut(), family, NAT, DNAT, chain);
    removed.and(remove_entered(nft, family, NAT, OLD_SNAT, &old))
}

/// Rules with their chains.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rules {
    /// The chains that are emptied and filled.
    chains: Vec<String>,
    /// How the shared chains are entered.
    entries: Vec<(String, Words)>,
    /// All others.
    own: Vec<(String, Words)>,
}

impl Rules {
    fn of(request: &Request, settings: &Settings, address: IpNet) -> Rules {
        let chain = chain_of(request);
        let mark = format!("{0:#x}/{0:#x}", settings.mark);
        let mut rules = Rules { chains: vec![chain.clone()], entries: Vec::new(), own: Vec::new() };
        if settings.snat && settings.set_mark_chain.is_none() {
            rules.chains.extend([SET_MARK.to_owned(), MASQUERADE.to_owned()]);
            rules.own.push((
                SET_MARK.to_owned(),
                words(&[
                    "-m",
                    "comment",
                    "--comment",
                    "CNI portfwd masquerade mark",
                    "-j",
                    "MARK",
                    "--set-xmark",
                    &mark,
                ]),
            ));
            rules
                .own
                .push((MASQUERADE.to_owned(), words(&["-m", "mark", "--mark", &mark, "-j", "MASQUERADE"])));
            rules.entries.push((
                "POSTROUTING".to_owned(),
                words(&["-m", "comment", "--comment", "CNI portfwd requiring masquerade", "-j", MASQUERADE]),
            ));
        }
        for entry in ["PREROUTING", "OUTPUT"] {
            rules
                .entries
                .push((entry.to_owned(), words(&["-m", "addrtype", "--dst-type", "LOCAL", "-j", DNAT])));
        }
        rules.own.extend(entrances(request, settings, address, &chain));
        let set_mark = settings.set_mark_chain.as_deref().unwrap_or(SET_MARK);
        for mapping in settings.mappings.iter().filter(|mapping| mapping.applies_to(address.addr())) {
            let forwarded = forwarding(settings, mapping, address, set_mark);
            rules.own.extend(forwarded.into_iter().map(|rule| (chain.clone(), rule)));
        }
        rules
    }
}

/// The rules by which packets get into the container's chain.
fn entrances(request: &Request, settings: &Settings, address: IpNet, chain: &str) -> Vec<(String, Words)> {
    let mut by_protocol: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for mapping in &settings.mappings {
        by_protocol.entry(mapping.protocol_name).or_default().push(mapping.host_port.to_string());
    }
    let comment = comment(request);
    let mut rules = Vec::new();
    for (protocol, ports) in by_protocol {
        for ports in ports.chunks(PORTS_PER_RULE) {
            let ports = ports.join(",");
            let mut rule = words(&[
                "-m",
                "comment",
                "--comment",
                &comment,
                "-m",
                "multiport",
                "-p",
                protocol,
                "--destination-ports",
                &ports,
            ]);
            rule.extend_from_slice(settings.conditions(address.addr()));
            rule.extend(words(&["-j", chain]));
            rules.push((DNAT.to_owned(), rule));
        }
    }
    rules
}

/// The rules of one mapping in the container's chain.
fn forwarding(settings: &Settings, mapping: &Mapping, address: IpNet, set_mark: &str) -> Vec<Words> {
    let port = mapping.host_port.to_string();
    let mut base = words(&["-p", mapping.protocol_name, "--dport", &port]);
    if let Some(destination) = mapping.destination() {
        base.extend(["-d".to_owned(), destination.to_string()]);
    }
    let is_v4 = address.addr().is_ipv4();
    let sources = match (settings.snat, settings.masq_all) {
        (false, _) => Vec::new(),
        (true, true) => vec![if is_v4 { "0.0.0.0/0" } else { "::/0" }.to_owned()],
        (true, false) if is_v4 => vec![address.to_string(), "127.0.0.1".to_owned()],
        (true, false) => vec![address.to_string()],
    };
    let with = |tail: &[&str]| [base.clone(), words(tail)].concat();
    let mut rules: Vec<Words> = sources.iter().map(|source| with(&["-s", source, "-j", set_mark])).collect();
    let to = std::net::SocketAddr::new(address.addr(), mapping.container_port).to_string();
    rules.push(with(&["-j", "DNAT", "--to-destination", &to]));
    rules
}

fn comment(request: &Request) -> String {
    let full =
        format!("dnat name: \"{}\" id: \"{}\"", request.config.name(), request.environment.container_id);
    if full.len() <= COMMENT_LENGTH {
        return full;
    }
    // Both names are ASCII.
    format!("{}...", full.get(..COMMENT_LENGTH - 2).unwrap_or_default())
}

fn chain_of(request: &Request) -> String {
    chain_name(request.config.name(), &request.environment.container_id)
}

/// 28 letters, of which iptables takes no more.
fn chain_name(network: &str, container_id: &str) -> String {
    let hash = Sha512::digest(format!("{network}{container_id}").as_bytes());
    let hex: String = hash.iter().take(11).map(|octet| format!("{octet:02x}")).collect();
    format!("CNI-DN-{}", &hex[..21])
}

fn placed(verb: &str, chain: &str, rule: &[String]) -> Words {
    [&[verb.to_owned(), chain.to_owned()], rule].concat()
}

fn words(words: &[&str]) -> Words {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use cni::{Config, Environment, Version};
    use serde_json::{Value, json};

    use super::*;

    fn rules(config: Value, address: &str) -> String {
        let environment = Environment {
            container_id: "icee6giejonei6sohng6ahngee7laquohquee9shiGo7fohferakah3Feiyoolu2pei7ciPhoh7shaoX6vai3vuf0ahfaeng8yohb9ceu0daez5hashee8ooYai5wa3y".into(),
            ..Environment::default()
        };
        let config = Config::parse(config.to_string().into_bytes()).unwrap();
        let request = Request { environment, config, version: Version::V1_0_0 };
        let settings = Settings::parse(&request).unwrap();
        let rules = Rules::of(&request, &settings, address.parse().unwrap());
        let all = rules.entries.iter().chain(&rules.own);
        all.map(|(chain, rule)| line(&placed("-A", chain, rule)).unwrap()).collect()
    }

    #[test]
    fn chains_have_the_names_that_the_reference_plugin_gives_them() {
        let id = "icee6giejonei6sohng6ahngee7laquohquee9shiGo7fohferakah3Feiyoolu2pei7ciPhoh7shaoX6vai3vuf0ahfaeng8yohb9ceu0daez5hashee8ooYai5wa3y";
        assert_eq!(chain_name("test", id), "CNI-DN-67e92b96e692a494b6b85");
    }

    #[test]
    fn rules_are_those_of_the_reference_plugin() {
        let config = json!({
            "name": "test", "conditionsV4": ["-s", "a"],
            "runtimeConfig": {"portMappings": [
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
                {"hostPort": 8081, "containerPort": 81, "protocol": "udp", "hostIP": "192.0.2.5"},
                {"hostPort": 8082, "containerPort": 82, "protocol": "tcp", "hostIP": "::"},
            ]},
        });
        let chain = "CNI-DN-67e92b96e692a494b6b85";
        let comment = "\"dnat name: \\\"test\\\" id: \\\"icee6giejonei6sohng6ahngee7laquohquee9shiGo7fohferakah3Feiyoolu2pei7ciPhoh7shaoX6vai3vuf0ahfaeng8yohb9ceu0daez5hashee8ooYai5wa3y\\\"\"";
        let expected = format!(
            "-A POSTROUTING -m comment --comment \"CNI portfwd requiring masquerade\" -j CNI-HOSTPORT-MASQ\n\
             -A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n\
             -A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n\
             -A CNI-HOSTPORT-SETMARK -m comment --comment \"CNI portfwd masquerade mark\" -j MARK --set-xmark 0x2000/0x2000\n\
             -A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE\n\
             -A CNI-HOSTPORT-DNAT -m comment --comment {comment} -m multiport -p tcp --destination-ports 8080,8082 -s a -j {chain}\n\
             -A CNI-HOSTPORT-DNAT -m comment --comment {comment} -m multiport -p udp --destination-ports 8081 -s a -j {chain}\n\
             -A {chain} -p tcp --dport 8080 -s 10.0.0.2/24 -j CNI-HOSTPORT-SETMARK\n\
             -A {chain} -p tcp --dport 8080 -s 127.0.0.1 -j CNI-HOSTPORT-SETMARK\n\
             -A {chain} -p tcp --dport 8080 -j DNAT --to-destination 10.0.0.2:80\n\
             -A {chain} -p udp --dport 8081 -d 192.0.2.5 -s 10.0.0.2/24 -j CNI-HOSTPORT-SETMARK\n\
             -A {chain} -p udp --dport 8081 -d 192.0.2.5 -s 127.0.0.1 -j CNI-HOSTPORT-SETMARK\n\
             -A {chain} -p udp --dport 8081 -d 192.0.2.5 -j DNAT --to-destination 10.0.0.2:81\n"
        );
        assert_eq!(rules(config, "10.0.0.2/24"), expected);
    }

    #[test]
    fn many_ports_are_split_and_without_snat_nothing_is_marked() {
        let mappings: Vec<Value> =
            (1..=16).map(|port| json!({"hostPort": port, "containerPort": 1, "protocol": "udp"})).collect();
        let config = json!({"name": "n", "snat": false, "runtimeConfig": {"portMappings": mappings}});
        let text = rules(config, "fd00::2/64");
        assert!(text.contains("--destination-ports 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15 -j"), "{text}");
        assert!(text.contains("--destination-ports 16 -j"), "{text}");
        assert!(text.contains("-p udp --dport 16 -j DNAT --to-destination [fd00::2]:1\n"), "{text}");
        assert!(!text.contains("MARK") && !text.contains("MASQ"), "{text}");
    }
}
