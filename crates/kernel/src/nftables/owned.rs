//! Rules in a table that several programs share, each rule with a mark that says whose it is.
//!
//! The comment of such a rule is not ours to choose: other programs find their rules by it. The mark is
//! an entry of its own in the rule's user data, which nft leaves alone and does not print; a rule that
//! another program made, or a restored dump, has none.

use fabric::firewall::{Rule, Table, TableName};

use super::expression::{Expression, verdict};
use super::{Nftables, PlacedRule, Step, wire};
use crate::error::{Doing, KernelError};

/// Whose a rule is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner(pub [u8; 8]);

/// A rule of a shared table, by what tells whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The chain it is in.
    pub chain: String,
    /// Its comment.
    pub comment: Option<String>,
    /// Whose it is, if it was made by this program.
    pub owner: Option<Owner>,
    pub(super) handle: u64,
}

impl Mark {
    fn deletion(&self, table: &TableName) -> Step {
        Step::DeleteRule(table.clone(), self.chain.clone(), self.handle)
    }
}

impl Nftables {
    /// What those rules of these chains say whose mark is `wanted`. A chain that is not there has none.
    pub fn owned_rules(
        &mut self,
        table: &TableName,
        chains: &[&str],
        wanted: impl Fn(&Mark) -> bool,
    ) -> Result<Vec<Rule>, KernelError> {
        let mut marks = self.marks(table)?;
        marks.retain(wanted);
        let mut rules = Vec::new();
        for chain in chains {
            let present = self.rules(table, chain)?;
            let is_wanted = |rule: &PlacedRule| marks.iter().any(|mark| mark.handle == rule.handle);
            rules.extend(present.into_iter().filter(is_wanted).map(|placed| placed.rule));
        }
        Ok(rules)
    }

    /// Puts rules at the end of their chains, in place of those that are stale, in one transaction.
    ///
    /// `base` is the table's frame, as for [`Nftables::replace_rules`]; a chain of it that stands already
    /// is not written again: to the kernel that is a change, after which it waits until no packet can be
    /// in what was there before (an RCU grace period).
    pub fn replace_owned(
        &mut self,
        base: &Table,
        owner: Owner,
        rules: &[(&str, Rule)],
        is_stale: impl Fn(&Mark) -> bool,
    ) -> Result<(), KernelError> {
        let name = &base.name;
        let is_open = |name: &str| base.chains.iter().any(|c| c.rules.is_empty() && c.name == name);
        self.retry(|nftables| {
            let present = nftables.marks(name)?;
            let mut steps = vec![Step::AddTable(name.clone(), base.comment.clone())];
            for chain in &base.chains {
                let has_rules = present.iter().any(|mark| mark.chain == chain.name);
                if !has_rules && !nftables.has_chain(name, &chain.name)? {
                    steps.push(Step::add_chain(name, chain));
                }
            }
            for filled in base.chains.iter().filter(|chain| !chain.rules.is_empty()) {
                let present = nftables.rules(name, &filled.name)?;
                if !present.iter().map(|placed| &placed.rule).eq(&filled.rules) {
                    steps.push(Step::FlushChain(name.clone(), filled.name.clone()));
                    steps.extend(filled.rules.iter().map(|rule| Step::add_rule(name, &filled.name, rule)));
                }
            }
            let stale = present.iter().filter(|mark| is_open(&mark.chain) && is_stale(mark));
            steps.extend(stale.map(|mark| mark.deletion(name)));
            steps.extend(rules.iter().map(|(chain, rule)| Step::add_owned_rule(name, chain, rule, owner)));
            nftables.run(&steps)
        })
    }

    /// Deletes the stale rules of these chains in these tables, in one transaction. What is not there
    /// has none.
    pub fn remove_owned(
        &mut self,
        tables: &[TableName],
        chains: &[&str],
        is_stale: impl Fn(&Mark) -> bool,
    ) -> Result<(), KernelError> {
        self.retry(|nftables| {
            let mut steps = Vec::new();
            for table in tables {
                let marks = nftables.marks(table)?;
                let is_stale = |mark: &&Mark| chains.contains(&mark.chain.as_str()) && is_stale(mark);
                steps.extend(marks.iter().filter(is_stale).map(|mark| mark.deletion(table)));
            }
            nftables.run(&steps)
        })
    }

    fn marks(&mut self, table: &TableName) -> Result<Vec<Mark>, KernelError> {
        wire::marks(&mut self.socket, table).doing(|| format!("list the rules of table {table}"))
    }

    /// Whether a table has a chain of this name.
    pub fn has_chain(&mut self, table: &TableName, chain: &str) -> Result<bool, KernelError> {
        Ok(self.chain(table, chain)?.is_some())
    }

    /// The chains that the rules of a chain jump to, each with the rule's comment, wherever nft or
    /// iptables-nft keeps it.
    pub fn jumps(
        &mut self,
        table: &TableName,
        from: &str,
    ) -> Result<Vec<(String, Option<String>)>, KernelError> {
        let rules = self.raw_rules(table, Some(from))?;
        Ok(rules
            .iter()
            .filter_map(|rule| Some((target(rule)?.to_owned(), rule.any_comment().map(str::to_owned))))
            .collect())
    }

    /// Deletes a chain, its rules, and the rules of the chain `from` that jump to it, in one transaction.
    /// It is no error if there is no such chain.
    pub fn remove_jumped_to(
        &mut self,
        table: &TableName,
        from: &str,
        chain: &str,
    ) -> Result<(), KernelError> {
        self.retry(|nftables| {
            if !nftables.has_chain(table, chain)? {
                return Ok(());
            }
            let mut steps: Vec<Step> = nftables
                .raw_rules(table, Some(from))?
                .into_iter()
                .filter(|rule| target(rule) == Some(chain))
                .map(|rule| Step::DeleteRule(table.clone(), rule.chain, rule.handle))
                .collect();
            steps.push(Step::FlushChain(table.clone(), chain.to_owned()));
            steps.push(Step::DeleteChain(table.clone(), chain.to_owned()));
            nftables.run(&steps)
        })
    }
}

/// The chain that a rule jumps to, on whatever condition.
fn target(rule: &super::RawRule) -> Option<&str> {
    rule.expressions.iter().find_map(|expression| match expression {
        Expression::Verdict(verdict::JUMP, Some(chain)) => Some(chain.as_str()),
        _ => None,
    })
}
