//! Base chains that drop forwarded packets by default.
//!
//! Whatever our own table accepts, such a chain of somebody else's (firewalld's, an administrator's)
//! still drops. Those of iptables are dealt with in [`crate::iptables`]; of the others there is only
//! to be told, since nobody but their owners knows how they are kept.

use std::fmt;

use fabric::firewall::{Family, HookPoint, Is, Match, Policy, TableName};
use ipnet::IpNet;

use super::expression::{Expression, verdict};
use super::{Nftables, RawRule, wire};
use crate::error::{Doing, KernelError};

/// A base chain that drops forwarded packets which none of its rules accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DroppingChain {
    /// Its table.
    pub table: TableName,
    /// Its name.
    pub chain: String,
    /// By what it drops.
    pub by: DropsBy,
}

/// By what a chain drops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropsBy {
    /// Its policy.
    Policy,
    /// A rule without conditions.
    Rule,
}

impl fmt::Display for DroppingChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = match self.by {
            DropsBy::Policy => "by policy",
            DropsBy::Rule => "by a rule without conditions",
        };
        write!(f, "chain {} of nftables table {} drops forwarded packets {by}", self.chain, self.table)
    }
}

impl Nftables {
    /// The chains of others, those of iptables aside, that drop forwarded packets by default.
    ///
    /// All chains of the host are listed for that, which takes some 30 ms where kube-proxy has
    /// 20,000: this is for a report, not for every look.
    pub fn dropping_chains(&mut self) -> Result<Vec<DroppingChain>, KernelError> {
        let chains = wire::all_chains(&mut self.socket).doing(|| "list all chains of nftables".to_owned())?;
        let mut dropping = Vec::new();
        for (table, chain) in chains {
            let Some(hook) = chain.hook.filter(|hook| hook.point == HookPoint::Forward) else { continue };
            let of_iptables = matches!(table.family, Family::Ipv4 | Family::Ipv6)
                && table.name == "filter"
                && chain.name == "FORWARD";
            // A bridge table sees frames within a bridge; those between nodes are not among them.
            if of_iptables || table.family == Family::Bridge {
                continue;
            }
            let by = if hook.policy == Policy::Drop {
                DropsBy::Policy
            } else if self.has_barrier(&table, &chain.name)? {
                DropsBy::Rule
            } else {
                continue;
            };
            dropping.push(DroppingChain { table, chain: chain.name, by });
        }
        Ok(dropping)
    }

    /// All chains of all tables, by name.
    pub fn chains(&mut self) -> Result<Vec<(TableName, String)>, KernelError> {
        let chains = wire::all_chains(&mut self.socket).doing(|| "list all chains of nftables".to_owned())?;
        Ok(chains.into_iter().map(|(table, chain)| (table, chain.name)).collect())
    }

    /// Whether any rule of a table is about packets from or to this network, or a wider one.
    pub fn mentions(&mut self, table: &TableName, network: &IpNet) -> Result<bool, KernelError> {
        let is_about = |condition: &Match| match condition {
            Match::Source(Is::Equal, net) | Match::Destination(Is::Equal, net) => net.contains(network),
            _ => false,
        };
        let rules = self.raw_rules(table, None)?;
        Ok(rules.iter().any(|rule| rule.rule(table.family).matches.iter().any(is_about)))
    }

    fn has_barrier(&mut self, table: &TableName, chain: &str) -> Result<bool, KernelError> {
        for rule in self.raw_rules(table, Some(chain))? {
            if lets_nothing_pass(self, table, &rule)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Whether a rule drops all packets, itself or by a chain of which that is the whole effect. A chain
/// that looks at packets first has reasons, and is not put second.
pub(crate) fn lets_nothing_pass(
    nftables: &mut Nftables,
    table: &TableName,
    rule: &RawRule,
) -> Result<bool, KernelError> {
    if !is_unconditional(rule) {
        return Ok(false);
    }
    let jump = rule.expressions.iter().find_map(|expression| match expression {
        Expression::Verdict(_, Some(chain)) => Some(chain.clone()),
        _ => None,
    });
    match jump {
        None => Ok(drops(rule)),
        Some(chain) => {
            let rules = nftables.raw_rules(table, Some(&chain))?;
            Ok(rules.iter().all(is_unconditional) && rules.iter().any(drops))
        }
    }
}

fn is_unconditional(rule: &RawRule) -> bool {
    rule.expressions.iter().all(|expression| match expression {
        Expression::Counter
        | Expression::XtComment(_)
        | Expression::XtTarget(_)
        | Expression::Verdict(..) => true,
        Expression::Other(name) => name == "reject" || name == "log",
        _ => false,
    })
}

fn drops(rule: &RawRule) -> bool {
    rule.expressions.iter().any(|expression| match expression {
        Expression::Verdict(verdict::DROP, None) => true,
        Expression::XtTarget(name) => name == "REJECT" || name == "DROP",
        Expression::Other(name) => name == "reject",
        _ => false,
    })
}
