//! Masquerading by rules of iptables.
//!
//! A container has a chain in the table `nat`, entered from `POSTROUTING` for each of its addresses.

use std::fs;

use cni::{Attachment, Request};
use fabric::firewall::{Family, TableName};
use ipnet::IpNet;
use kernel::nftables::Nftables;
use kernel::{KernelError, command};

use super::hex;
use crate::iptables::{FAMILIES, entries, remove_entered};

const NAT: &str = "nat";
const POSTROUTING: &str = "POSTROUTING";
/// What the names of the containers' chains begin with.
const PREFIX: &str = "CNI-";

/// Rules of iptables that an attachment has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IptablesTrace {
    program: &'static str,
    chain: String,
}

/// Finds rules of iptables, without running it where it cannot have any.
pub(crate) fn iptables_traces(request: &Request) -> Vec<IptablesTrace> {
    let chain = iptables_chain(request);
    let mut traces = Vec::new();
    let families = [
        (
            Family::Ipv4,
            "/proc/thread-self/net/ip_tables_names",
            ["iptables-nft", "iptables-legacy", "iptables"],
        ),
        (
            Family::Ipv6,
            "/proc/thread-self/net/ip6_tables_names",
            ["ip6tables-nft", "ip6tables-legacy", "ip6tables"],
        ),
    ];
    for (family, legacy_tables, [nft, legacy, either]) in families {
        let name = TableName { family, name: NAT.to_owned() };
        let has_nft =
            Nftables::open().and_then(|mut socket| socket.rules(&name, &chain)).is_ok_and(|r| !r.is_empty());
        let has_legacy =
            fs::read_to_string(legacy_tables).is_ok_and(|names| names.lines().any(|name| name == NAT));
        for (may_have, program) in [(has_nft, nft), (has_legacy, legacy)] {
            let program = if command::find(program).is_some() { program } else { either };
            if may_have && command::run(program, &["--wait", "-t", NAT, "-S", &chain], "").is_ok() {
                traces.push(IptablesTrace { program, chain: chain.clone() });
            }
        }
    }
    traces
}

impl IptablesTrace {
    /// Takes away the rules for these addresses, or all if none are given: a container has one chain for
    /// all its interfaces, and those of the others stay.
    pub(super) fn remove(&self, addresses: &[IpNet]) -> Result<(), KernelError> {
        let listed = command::run(self.program, &["--wait", "-t", NAT, "-S", POSTROUTING], "")?;
        let target = format!(" -j {}", self.chain);
        let jumps = || listed.lines().filter(|line| line.ends_with(&target));
        let is_own = |line: &&str| {
            let of = |net: &IpNet| [IpNet::from(net.addr()), net.trunc()].map(|net| format!(" -s {net} "));
            addresses.is_empty() || addresses.iter().flat_map(of).any(|source| line.contains(&source))
        };
        let own: Vec<&str> = jumps().filter(is_own).collect();
        let mut script = "*nat\n".to_owned();
        for line in &own {
            script += &format!("{}\n", line.replacen("-A ", "-D ", 1));
        }
        if own.len() == jumps().count() {
            script += &format!("-F {chain}\n-X {chain}\n", chain = self.chain);
        }
        script += "COMMIT\n";
        let restore = match self.program.rsplit_once('-') {
            Some((name, variant)) => format!("{name}-{variant}-restore"),
            None => format!("{}-restore", self.program),
        };
        command::run(&restore, &["--noflush", "--wait"], &script).map(drop)
    }
}

/// Masquerades what the addresses send out of their network, by running iptables.
pub(super) fn install(request: &Request, addresses: &[IpNet]) -> Result<(), KernelError> {
    let chain = iptables_chain(request);
    let comment =
        format!("name: {:?} id: {:?}", request.config.name(), request.environment.container_id.as_str());
    for net in addresses {
        let (program, multicast) = match net {
            IpNet::V4(_) => ("iptables", "224.0.0.0/4"),
            IpNet::V6(_) => ("ip6tables", "ff00::/8"),
        };
        let run = |words: &[&str]| {
            let words: Vec<&str> = ["--wait", "-t", NAT].iter().chain(words).copied().collect();
            command::run(program, &words, "")
        };
        if run(&["-S", &chain, "1"]).is_err() {
            run(&["-N", &chain])?;
        }
        let (network, source) = (net.to_string(), net.addr().to_string());
        let rules: [(&str, &[&str]); 3] = [
            (&chain, &["-d", &network, "-j", "ACCEPT"]),
            (&chain, &["!", "-d", multicast, "-j", "MASQUERADE"]),
            (POSTROUTING, &["-s", &source, "-j", &chain]),
        ];
        for (chain, rule) in rules {
            let tail = ["-m", "comment", "--comment", &comment];
            let words = |verb| [&[verb, chain], rule, &tail].concat();
            if run(&words("-C")).is_err() {
                run(&words("-A"))?;
            }
        }
    }
    Ok(())
}

/// Takes away the chains of all containers of this network that are not listed.
pub(super) fn keep_only(
    mut nft: Option<&mut Nftables>,
    network: &str,
    valid: &[Attachment],
) -> Result<(), KernelError> {
    let kept: Vec<String> = valid.iter().map(|a| chain_name(network, &a.container_id)).collect();
    let of_network = format!("name: {network:?} id: ");
    let mut outcome = Ok(());
    for family in FAMILIES {
        let mut found = entries(nft.as_deref_mut(), family, NAT, POSTROUTING);
        // A container has an entry for each of its addresses.
        found.sort();
        found.dedup_by(|a, b| a.0 == b.0);
        for (chain, comment) in found {
            if chain.starts_with(PREFIX) && comment.contains(&of_network) && !kept.contains(&chain) {
                let nft = nft.as_deref_mut();
                outcome = outcome.and(remove_entered(nft, family, NAT, POSTROUTING, &chain));
            }
        }
    }
    outcome
}

fn iptables_chain(request: &Request) -> String {
    chain_name(request.config.name(), &request.environment.container_id)
}

/// 28 letters, of which iptables takes no more.
fn chain_name(network: &str, container_id: &str) -> String {
    format!("{PREFIX}{}", hex(&format!("{network}{container_id}"), 24))
}
