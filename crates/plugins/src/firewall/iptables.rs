//! The rules of iptables that let a container's packets through, and those that protect a bridge.
//!
//! Compatibility: chains, rules, their order and comments are those of the reference plugin. They are
//! written here as `iptables -S` prints them, and compared as text.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use cni::{AddResult, Error};
use fabric::firewall::Family;
use kernel::KernelError;

use super::settings::IngressPolicy;
use crate::iptables::{FAMILIES, Iptables, line};

const FILTER: &str = "filter";
const FORWARD: &str = "FORWARD";
const CONTAINERS: &str = "CNI-FORWARD";
const STAGE_1: &str = "CNI-ISOLATION-STAGE-1";
const STAGE_2: &str = "CNI-ISOLATION-STAGE-2";

/// A rule that must be there once.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    chain: String,
    place: Place,
    rule: String,
}

/// Where a rule is added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    First,
    Last,
}

impl Wanted {
    fn first(chain: &str, rule: String) -> Wanted {
        Wanted { chain: chain.to_owned(), place: Place::First, rule }
    }

    fn last(chain: &str, rule: String) -> Wanted {
        Wanted { chain: chain.to_owned(), place: Place::Last, rule }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "-A {} {}", self.chain, self.rule)
    }
}

/// Lets packets to and from the container through.
pub(super) fn accept(admin_chain: &str, result: &AddResult) -> Result<(), Error> {
    for (family, addresses) in families(result) {
        ensure(family, &[CONTAINERS, admin_chain], &accepting(admin_chain, &addresses)?)?;
    }
    Ok(())
}

/// Takes the rules for the container's addresses away, each as often as it is there.
pub(super) fn retract(result: &AddResult) -> Result<(), Error> {
    for (family, addresses) in families(result) {
        let own: Vec<String> =
            addresses.iter().flat_map(|address| of_address(address)).map(|rule| rule.to_string()).collect();
        let host = Iptables::of_host(family).ok();
        let legacy =
            Iptables::legacy_with(family, FILTER).filter(|_| !host.as_ref().is_some_and(Iptables::is_legacy));
        for iptables in host.into_iter().chain(legacy) {
            let listed = iptables.list(FILTER, CONTAINERS).unwrap_or_default();
            let found = listed.iter().filter(|rule| own.contains(rule));
            let lines: String = found.map(|rule| format!("{}\n", rule.replacen("-A ", "-D ", 1))).collect();
            if !lines.is_empty() {
                iptables.restore(FILTER, &lines).map_err(internal)?;
            }
        }
    }
    Ok(())
}

/// Whether packets to and from the container are let through.
pub(super) fn check(admin_chain: &str, result: &AddResult) -> Result<(), Error> {
    for (family, addresses) in families(result) {
        expect(family, &accepting(admin_chain, &addresses)?)?;
    }
    Ok(())
}

/// Keeps packets of other bridges from this one.
pub(super) fn isolate(bridge: &str, policy: IngressPolicy, result: &AddResult) -> Result<(), Error> {
    for (family, _) in families(result) {
        ensure(family, &[STAGE_1, STAGE_2], &isolating(bridge, policy)?)?;
    }
    Ok(())
}

/// Whether packets of other bridges are kept from this one.
pub(super) fn check_isolation(bridge: &str, policy: IngressPolicy, result: &AddResult) -> Result<(), Error> {
    for (family, _) in families(result) {
        expect(family, &isolating(bridge, policy)?)?;
    }
    Ok(())
}

/// The families that the container has addresses of, each with them.
fn families(result: &AddResult) -> Vec<(Family, Vec<String>)> {
    let addresses = |family: Family| -> Vec<String> {
        let nets = result.ips.iter().map(|ip| ip.address);
        nets.filter(|net| net.addr().is_ipv4() == (family == Family::Ipv4))
            .map(|net| format!("{}/{}", net.addr(), net.max_prefix_len()))
            .collect()
    };
    let both = FAMILIES.into_iter().map(|family| (family, addresses(family)));
    both.filter(|(_, addresses)| !addresses.is_empty()).collect()
}

fn accepting(admin_chain: &str, addresses: &[String]) -> Result<Vec<Wanted>, Error> {
    let jump = |comment: &str, to: &str| -> Result<String, Error> {
        Ok(format!("-m comment --comment \"{comment}\" -j {}", line(&[to.to_owned()])?.trim_end()))
    };
    let mut wanted = vec![
        Wanted::first(FORWARD, jump("CNI firewall plugin rules", CONTAINERS)?),
        Wanted::first(CONTAINERS, jump("CNI firewall plugin admin overrides", admin_chain)?),
    ];
    wanted.extend(addresses.iter().flat_map(|address| of_address(address)));
    Ok(wanted)
}

fn of_address(address: &str) -> [Wanted; 2] {
    let answers = format!("-d {address} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT");
    [Wanted::last(CONTAINERS, answers), Wanted::last(CONTAINERS, format!("-s {address} -j ACCEPT"))]
}

fn isolating(bridge: &str, policy: IngressPolicy) -> Result<Vec<Wanted>, Error> {
    let bridge = line(&[bridge.to_owned()])?;
    let bridge = bridge.trim_end();
    let said = |policy: &str| {
        format!("-m comment --comment \"CNI firewall plugin rules (ingressPolicy: {policy})\"")
    };
    let (of_all, of_policy) = (said("same-bridge|isolated"), said(policy.as_str()));
    // In front of what accepts the container's packets.
    let mut wanted = vec![
        Wanted::first(FORWARD, format!("{of_all} -j {STAGE_1}")),
        Wanted::first(STAGE_1, format!("-i {bridge} ! -o {bridge} {of_policy} -j {STAGE_2}")),
    ];
    if policy == IngressPolicy::Isolated {
        wanted.push(Wanted::first(STAGE_1, format!("-i {bridge} -o {bridge} {of_policy} -j DROP")));
    }
    wanted.extend([
        Wanted::last(STAGE_1, format!("{of_all} -j RETURN")),
        Wanted::first(STAGE_2, format!("-o {bridge} {of_all} -j DROP")),
        Wanted::last(STAGE_2, format!("{of_all} -j RETURN")),
    ]);
    Ok(wanted)
}

/// Adds the rules that are missing, all or none.
fn ensure(family: Family, chains: &[&str], wanted: &[Wanted]) -> Result<(), Error> {
    let iptables = open(family)?;
    let there = Listed::of(&iptables, chains.iter().copied().chain(wanted.iter().map(|w| w.chain.as_str())));
    for chain in chains.iter().filter(|chain| there.0.get(**chain).is_some_and(Option::is_none)) {
        iptables.ensure_chain(FILTER, chain).map_err(internal)?;
    }
    let mut lines = String::new();
    for missing in wanted.iter().filter(|wanted| !there.has(wanted)) {
        lines += &match missing.place {
            Place::First => format!("-I {} 1 {}\n", missing.chain, missing.rule),
            Place::Last => format!("{missing}\n"),
        };
    }
    if lines.is_empty() { Ok(()) } else { iptables.restore(FILTER, &lines).map_err(internal) }
}

fn expect(family: Family, wanted: &[Wanted]) -> Result<(), Error> {
    let there = Listed::of(&open(family)?, wanted.iter().map(|wanted| wanted.chain.as_str()));
    match wanted.iter().find(|wanted| !there.has(wanted)) {
        None => Ok(()),
        Some(missing) => {
            Err(Error::internal(format!("expected {} rule [{}] not found", missing.chain, missing.rule)))
        }
    }
}

/// Chains by name with their rules as printed; none where there is no such chain.
struct Listed<'a>(BTreeMap<&'a str, Option<Vec<String>>>);

impl<'a> Listed<'a> {
    fn of(iptables: &Iptables, chains: impl Iterator<Item = &'a str>) -> Listed<'a> {
        let chains: BTreeSet<&str> = chains.collect();
        Listed(chains.into_iter().map(|chain| (chain, iptables.list(FILTER, chain))).collect())
    }

    fn has(&self, wanted: &Wanted) -> bool {
        let rules = self.0.get(wanted.chain.as_str()).and_then(Option::as_ref);
        rules.is_some_and(|rules| rules.contains(&wanted.to_string()))
    }
}

fn open(family: Family) -> Result<Iptables, Error> {
    Iptables::of_host(family)
        .map_err(|error| Error::internal(format!("could not initialize iptables protocol {family}: {error}")))
}

fn internal(error: KernelError) -> Error {
    Error::internal(error.to_string())
}
