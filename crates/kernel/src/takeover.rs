//! What the original flannel leaves in iptables: found, and taken away without a gap.
//!
//! In iptables mode the original keeps two chains per IP version, `FLANNEL-POSTRTG` in `nat` and
//! `FLANNEL-FWD` in `filter`, each entered by a jump; older versions wrote the masquerading rules
//! into `POSTROUTING` itself, with the same comment. All of it is removed once our own tables do the
//! work: this is called after they are in place. The rules of others in the same tables stay. (The
//! original's nftables mode uses the very tables that are ours; they are simply replaced.)
//!
//! A rule left behind would not only be untidy: the masquerading ones keep on masquerading whatever
//! the configuration says now.

use std::fmt;

use fabric::dataplane::IpFamily;

use crate::error::KernelError;
use crate::iptables::{FAMILIES, Legacy, table};
use crate::nftables::{Nftables, Step};

/// The comment of the original's masquerading rules.
const MASQUERADE_COMMENT: &str = "flanneld masq";

/// Where the original puts its rules.
struct Place {
    table: &'static str,
    /// The built-in chain that jumps to the original's.
    parent: &'static str,
    chain: &'static str,
    /// The comment of rules that older versions wrote into the parent. There is none for `FORWARD`:
    /// there it is the comment of our own rules, which say the same.
    direct_comment: Option<&'static str>,
}

const PLACES: [Place; 2] = [
    Place {
        table: "nat",
        parent: "POSTROUTING",
        chain: "FLANNEL-POSTRTG",
        direct_comment: Some(MASQUERADE_COMMENT),
    },
    Place { table: "filter", parent: "FORWARD", chain: "FLANNEL-FWD", direct_comment: None },
];

/// Which iptables keeps a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Variant {
    /// iptables-nft, in tables of nftables.
    Nft,
    /// iptables-legacy, in tables of its own.
    Legacy,
}

/// Rules of the original in one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// Which iptables has them.
    pub variant: Variant,
    /// For which IP version.
    pub family: IpFamily,
    /// The table.
    pub table: &'static str,
    /// The original's chain.
    pub chain: &'static str,
    /// How many rules the chain has; none if there is no such chain.
    pub rules: Option<usize>,
    /// How many rules elsewhere in the table are the original's, most of them jumps to its chain.
    pub entries: usize,
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let program = match (self.variant, self.family) {
            (Variant::Nft, IpFamily::V4) => "iptables",
            (Variant::Nft, IpFamily::V6) => "ip6tables",
            (Variant::Legacy, IpFamily::V4) => "iptables-legacy",
            (Variant::Legacy, IpFamily::V6) => "ip6tables-legacy",
        };
        let plural = |count: usize| if count == 1 { "" } else { "s" };
        write!(f, "{program} table {}: ", self.table)?;
        if let Some(rules) = self.rules {
            write!(f, "chain {} with {rules} rule{}, ", self.chain, plural(rules))?;
        }
        write!(f, "{} rule{} in other chains", self.entries, plural(self.entries))
    }
}

/// What of the original's is there.
pub fn find(nftables: &mut Nftables) -> Result<Vec<Leftover>, KernelError> {
    let mut found = Vec::new();
    for family in FAMILIES {
        for place in &PLACES {
            found.extend(in_nft(nftables, family, place)?.map(|(leftover, _)| leftover));
            found.extend(in_legacy(family, place)?.map(|(leftover, ..)| leftover));
        }
    }
    Ok(found)
}

/// Takes all of the original's away, each table in one transaction; returns what it was.
pub fn remove(nftables: &mut Nftables) -> Result<Vec<Leftover>, KernelError> {
    let mut removed = Vec::new();
    for family in FAMILIES {
        for place in &PLACES {
            let from_nft = nftables.retry(|nftables| {
                let Some((leftover, steps)) = in_nft(nftables, family, place)? else { return Ok(None) };
                nftables.run(&steps)?;
                Ok(Some(leftover))
            })?;
            removed.extend(from_nft);
            if let Some((leftover, legacy, lines)) = in_legacy(family, place)? {
                legacy.restore(&lines)?;
                removed.push(leftover);
            }
        }
    }
    Ok(removed)
}

/// What is in a table of iptables-nft, and the steps that remove it.
fn in_nft(
    nftables: &mut Nftables,
    family: IpFamily,
    place: &Place,
) -> Result<Option<(Leftover, Vec<Step>)>, KernelError> {
    let name = table(family, place.table);
    let has_chain = nftables.chain(&name, place.chain)?.is_some();
    // A jump needs its chain: without, only the parent can have rules of the original's.
    let rules = nftables.raw_rules(&name, if has_chain { None } else { Some(place.parent) })?;
    let (inside, outside): (Vec<_>, Vec<_>) = rules.iter().partition(|rule| rule.chain == place.chain);
    let entries: Vec<_> = outside
        .into_iter()
        .filter(|rule| {
            rule.leads_to(place.chain)
                || (rule.chain == place.parent
                    && place.direct_comment.is_some()
                    && rule.any_comment() == place.direct_comment)
        })
        .collect();
    if !has_chain && entries.is_empty() {
        return Ok(None);
    }
    let mut steps: Vec<Step> =
        entries.iter().map(|rule| Step::DeleteRule(name.clone(), rule.chain.clone(), rule.handle)).collect();
    if has_chain {
        steps.push(Step::FlushChain(name.clone(), place.chain.to_owned()));
        steps.push(Step::DeleteChain(name, place.chain.to_owned()));
    }
    let leftover = Leftover {
        variant: Variant::Nft,
        family,
        table: place.table,
        chain: place.chain,
        rules: has_chain.then_some(inside.len()),
        entries: entries.len(),
    };
    Ok(Some((leftover, steps)))
}

/// What is in a table of iptables-legacy, and the lines of iptables-restore that remove it.
fn in_legacy(
    family: IpFamily,
    place: &Place,
) -> Result<Option<(Leftover, Legacy, Vec<String>)>, KernelError> {
    let Some(legacy) = Legacy::of(family, place.table)? else { return Ok(None) };
    let has_chain = legacy.has_chain(place.chain);
    let (inside, outside): (Vec<_>, Vec<_>) =
        legacy.rules().iter().partition(|rule| rule.chain == place.chain);
    let entries: Vec<_> = outside
        .into_iter()
        .filter(|rule| {
            rule.target() == Some(place.chain)
                || (rule.chain == place.parent
                    && place.direct_comment.is_some()
                    && rule.comment() == place.direct_comment)
        })
        .collect();
    if !has_chain && entries.is_empty() {
        return Ok(None);
    }
    let mut lines: Vec<String> =
        entries.iter().map(|rule| format!("-D {} {}", rule.chain, rule.text)).collect();
    if has_chain {
        lines.extend([format!("-F {}", place.chain), format!("-X {}", place.chain)]);
    }
    let leftover = Leftover {
        variant: Variant::Legacy,
        family,
        table: place.table,
        chain: place.chain,
        rules: has_chain.then_some(inside.len()),
        entries: entries.len(),
    };
    Ok(Some((leftover, legacy, lines)))
}
