//! Firewall tables as values: what nftables calls table, chain, rule.
//!
//! Only what flannel and its plugins need is here. A value displays as the text that
//! `nft list table` prints for it and that `nft -f` takes; `kernel::nftables` writes the same value
//! over netlink and reads it back, so that a table can be compared with what is wanted.

mod text;

use std::net::IpAddr;

use ipnet::IpNet;

use crate::mac::Mac;

/// The address family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// `ip`
    Ipv4,
    /// `ip6`
    Ipv6,
    /// `inet`, both
    Inet,
    /// `bridge`
    Bridge,
}

/// The name by which the kernel knows a table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName {
    /// The family.
    pub family: Family,
    /// The name within the family.
    pub name: String,
}

/// A whole table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Family and name.
    pub name: TableName,
    /// The table's comment.
    pub comment: Option<String>,
    /// Its chains, in the order they are made.
    pub chains: Vec<Chain>,
}

/// A chain of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// The name within the table.
    pub name: String,
    /// Where the kernel enters it; none for a chain that is only jumped to.
    pub hook: Option<Hook>,
    /// The chain's comment.
    pub comment: Option<String>,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

/// Where and when the kernel enters a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hook {
    /// The chain's type.
    pub kind: ChainKind,
    /// The hook.
    pub point: HookPoint,
    /// Order among the chains of one hook, smallest first (`NF_IP_PRI_*`).
    pub priority: i32,
    /// What happens at the end of the chain.
    pub policy: Policy,
}

/// The type of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainKind {
    /// `filter`
    Filter,
    /// `nat`
    Nat,
}

/// A netfilter hook (`NF_INET_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookPoint {
    /// `prerouting`
    Prerouting,
    /// `input`
    Input,
    /// `forward`
    Forward,
    /// `output`
    Output,
    /// `postrouting`
    Postrouting,
}

/// What happens to a packet at the end of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// It goes on.
    Accept,
    /// It is dropped.
    Drop,
}

/// One rule: all of `matches` hold, then `verdict`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What must hold.
    pub matches: Vec<Match>,
    /// Whether packets and bytes are counted.
    pub counted: Counted,
    /// What happens.
    pub verdict: Verdict,
    /// The rule's comment, at most 128 bytes.
    pub comment: Option<String>,
}

/// Whether a rule has a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Counted {
    /// No counter.
    #[default]
    No,
    /// With a counter, of which the values are not part of the state.
    Yes,
}

/// A direction of comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Is {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
}

/// A condition on a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// `meta mark [and mask] == value`
    Mark {
        /// The bits looked at; all of them if none.
        mask: Option<u32>,
        /// Their value.
        value: u32,
    },
    /// `ip|ip6 saddr`
    Source(Is, IpNet),
    /// `ip|ip6 daddr`
    Destination(Is, IpNet),
    /// `ether saddr`
    EtherSource(Mac),
    /// `iifname`
    InputLink(String),
    /// `oifname`
    OutputLink(Is, String),
    /// `meta l4proto` (IANA protocol number)
    Protocol(u8),
    /// `tcp|udp|sctp dport`, after the protocol named here (IANA protocol number)
    DestinationPort(u8, u16),
    /// `fib daddr type local`
    DestinationIsLocal,
    /// `ct state`, bits of `NF_CT_STATE_BIT` as nft encodes them (invalid 1, established 2, related 4,
    /// new 8)
    ConnectionState(u32),
    /// Something this program does not write; equal to nothing that it wants.
    Foreign(String),
}

/// What happens to a packet that a rule matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// `accept`
    Accept,
    /// `drop`
    Drop,
    /// `return`
    Return,
    /// `jump CHAIN`
    Jump(String),
    /// `goto CHAIN`
    Goto(String),
    /// `masquerade`
    Masquerade(SourcePorts),
    /// `dnat to ADDRESS:PORT`
    DestinationNat(IpAddr, u16),
    /// `meta mark set mark or BITS`
    SetMarkBits(u32),
    /// The rule only counts, or says something this program does not write.
    Continue,
}

/// How masquerade picks source ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourcePorts {
    /// The kernel's default: keep the port where possible.
    Kept,
    /// `fully-random`
    FullyRandom,
}

/// The kernel's names for often used priorities (`NF_IP_PRI_*`).
pub mod priority {
    /// `dstnat`
    pub const DSTNAT: i32 = -100;
    /// `filter`
    pub const FILTER: i32 = 0;
    /// `srcnat`
    pub const SRCNAT: i32 = 100;
}

impl Table {
    /// The commands that make this table from nothing or in the place of another, for `nft -f`; its
    /// listing is the table's own text.
    pub fn script(&self) -> String {
        // Adding first makes the deletion of a table that is not there no error.
        format!("add table {name}\ndelete table {name}\n{self}", name = self.name)
    }

    /// Whether a table that the kernel lists is this one.
    ///
    /// Linux before 5.10 does not keep the comments of tables and chains. A table that lost them there
    /// is still the same: replacing it would not bring them back, and would never end.
    pub fn is_listed_as(&self, listed: &Table) -> bool {
        let kept_none = listed.comment.is_none() && listed.chains.iter().all(|chain| chain.comment.is_none());
        self == listed || (kept_none && self.without_comments() == *listed)
    }

    /// The same without the comments of the table and its chains; those of rules are always kept.
    fn without_comments(&self) -> Table {
        let chains = self.chains.iter().map(|chain| Chain { comment: None, ..chain.clone() });
        Table { name: self.name.clone(), comment: None, chains: chains.collect() }
    }
}

impl Rule {
    /// A rule without counter and comment.
    pub fn new(matches: Vec<Match>, verdict: Verdict) -> Rule {
        Rule { matches, counted: Counted::No, verdict, comment: None }
    }

    /// The same rule with a comment.
    pub fn comment(mut self, comment: impl Into<String>) -> Rule {
        self.comment = Some(comment.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(table: Option<&str>, chain: Option<&str>, rule: Option<&str>) -> Table {
        let own = |comment: Option<&str>| comment.map(str::to_owned);
        let rule = Rule { comment: own(rule), ..Rule::new(vec![], Verdict::Accept) };
        Table {
            name: TableName { family: Family::Ipv4, name: "t".to_owned() },
            comment: own(table),
            chains: vec![Chain { name: "c".to_owned(), hook: None, comment: own(chain), rules: vec![rule] }],
        }
    }

    #[test]
    fn a_table_is_still_the_same_on_a_kernel_that_keeps_no_comments() {
        let wanted = table(Some("a"), Some("b"), Some("c"));
        assert!(wanted.is_listed_as(&wanted));
        assert!(wanted.is_listed_as(&table(None, None, Some("c"))));
        assert!(!wanted.is_listed_as(&table(None, None, None)));
        assert!(!wanted.is_listed_as(&table(Some("a"), None, Some("c"))), "this kernel keeps comments");
        assert!(!wanted.is_listed_as(&table(Some("a"), Some("other"), Some("c"))));
    }

    #[test]
    fn priorities_print_as_nft_names_them() {
        let text = |family, point, priority| {
            let hook = Hook { kind: ChainKind::Filter, point, priority, policy: Policy::Accept };
            let chain = Chain { name: "c".to_owned(), hook: Some(hook), comment: None, rules: Vec::new() };
            let name = TableName { family, name: "t".to_owned() };
            let text = Table { name, comment: None, chains: vec![chain] }.to_string();
            let (_, rest) = text.split_once("priority ").expect("a base chain has a priority");
            rest.split(';').next().expect("a split has a first part").to_owned()
        };
        use HookPoint::{Forward, Output, Postrouting, Prerouting};
        for (family, point, priority, expected) in [
            (Family::Ipv4, Forward, 0, "filter"),
            (Family::Ipv4, Forward, 10, "filter + 10"),
            (Family::Ipv4, Forward, -10, "filter - 10"),
            (Family::Ipv4, Forward, 11, "11"),
            (Family::Inet, Prerouting, -100, "dstnat"),
            (Family::Inet, Output, -100, "-100"),
            (Family::Inet, Postrouting, 95, "srcnat - 5"),
            (Family::Inet, Forward, -150, "mangle"),
            (Family::Bridge, Prerouting, -300, "dstnat"),
            (Family::Bridge, Forward, 0, "0"),
            (Family::Bridge, Forward, -200, "filter"),
        ] {
            assert_eq!(text(family, point, priority), expected, "{family} {point:?} {priority}");
        }
    }
}
