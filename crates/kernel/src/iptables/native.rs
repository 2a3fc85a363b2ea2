//! The tables of iptables-nft, which are tables of nftables.
//!
//! iptables-nft reads only what it would write itself; one instruction too many, and `iptables -L`
//! calls the whole table incompatible. What is written here, an address under its full mask, a
//! counter and a verdict, is read, checked, deleted and saved by iptables 1.8.9 (see the tests). That
//! version itself loads fewer bytes for a mask on a byte boundary; earlier ones did not, and might
//! not read it, so the long form is the one for all. A comment in the rule's user data is read as
//! `-m comment`, and needs no module for matches of iptables.

use std::collections::BTreeSet;

use fabric::dataplane::IpFamily;
use fabric::firewall::{Family, HookPoint, Is, Match, Policy, Rule, TableName, Verdict};
use ipnet::IpNet;

use super::{Direction, FORWARD_COMMENT, Forward};
use crate::error::KernelError;
use crate::nftables::dropping::lets_nothing_pass;
use crate::nftables::expression::{Expression, verdict};
use crate::nftables::rule::{decode, masked_address};
use crate::nftables::{Nftables, RawRule, Step};

const FORWARD: &str = "FORWARD";

/// A table of iptables-nft.
pub(crate) fn table(family: IpFamily, name: &str) -> TableName {
    let family = match family {
        IpFamily::V4 => Family::Ipv4,
        IpFamily::V6 => Family::Ipv6,
    };
    TableName { family, name: name.to_owned() }
}

/// The `FORWARD` chain of a family, if iptables-nft has made one.
pub(super) fn observe(nftables: &mut Nftables, family: IpFamily) -> Result<Option<Forward>, KernelError> {
    Ok(read(nftables, family)?.map(|chain| chain.summary()))
}

/// Adds and removes accepting rules in one transaction.
pub(super) fn apply(
    nftables: &mut Nftables,
    family: IpFamily,
    accept: &[IpNet],
    retract: &[IpNet],
) -> Result<(), KernelError> {
    nftables.retry(|nftables| {
        let Some(chain) = read(nftables, family)? else { return Ok(()) };
        let steps = chain.steps(accept, retract);
        nftables.run(&steps)
    })
}

/// The chain with its rules.
struct Chain {
    table: TableName,
    policy: Policy,
    rules: Vec<RawRule>,
    /// The place of the first rule that lets nothing pass.
    barrier: Option<usize>,
}

fn read(nftables: &mut Nftables, family: IpFamily) -> Result<Option<Chain>, KernelError> {
    let table = table(family, "filter");
    let chain = nftables.chain(&table, FORWARD)?;
    let Some(hook) = chain.and_then(|chain| chain.hook).filter(|hook| hook.point == HookPoint::Forward)
    else {
        return Ok(None);
    };
    let rules = nftables.raw_rules(&table, Some(FORWARD))?;
    let mut barrier = None;
    for (at, rule) in rules.iter().enumerate() {
        if lets_nothing_pass(nftables, &table, rule)? {
            barrier = Some(at);
            break;
        }
    }
    Ok(Some(Chain { table, policy: hook.policy, rules, barrier }))
}

/// What a rule of ours accepts; none if the rule is not ours.
fn accepts(table: &TableName, rule: &RawRule) -> Option<(IpNet, Direction)> {
    if rule.any_comment() != Some(FORWARD_COMMENT) {
        return None;
    }
    let instructions: Vec<Expression> = rule
        .expressions
        .iter()
        .filter(|expression| !matches!(expression, Expression::XtComment(_)))
        .cloned()
        .collect();
    let Rule { matches, verdict: Verdict::Accept, .. } = decode(table.family, &instructions) else {
        return None;
    };
    match matches[..] {
        [Match::Source(Is::Equal, net)] => Some((net, Direction::From)),
        [Match::Destination(Is::Equal, net)] => Some((net, Direction::To)),
        _ => None,
    }
}

impl Chain {
    fn summary(&self) -> Forward {
        let live = &self.rules[..self.barrier.unwrap_or(self.rules.len())];
        let ours = |rules: &[RawRule]| -> BTreeSet<_> {
            rules.iter().filter_map(|rule| accepts(&self.table, rule)).collect()
        };
        Forward {
            drops: self.policy == Policy::Drop || self.barrier.is_some(),
            effective: ours(live),
            has_ours: !ours(&self.rules).is_empty(),
        }
    }

    fn steps(&self, accept: &[IpNet], retract: &[IpNet]) -> Vec<Step> {
        let Forward { drops, effective, has_ours } = self.summary();
        let mut steps = Vec::new();
        // What is accepted already stays as it is. What stands behind a rule that drops all is moved.
        let missing: Vec<(IpNet, Direction)> = accept
            .iter()
            .flat_map(|net| [(*net, Direction::From), (*net, Direction::To)])
            .filter(|rule| !effective.contains(rule) && (drops || has_ours))
            .collect();
        for rule in &self.rules {
            let ours = accepts(&self.table, rule);
            if ours.is_some_and(|ours| retract.contains(&ours.0) || missing.contains(&ours)) {
                steps.push(Step::DeleteRule(self.table.clone(), FORWARD.to_owned(), rule.handle));
            }
        }
        let before = self.barrier.map(|at| self.rules[at].handle);
        steps.extend(missing.into_iter().map(|(net, direction)| {
            let mut expressions = masked_address(direction == Direction::From, Is::Equal, &net);
            expressions.extend([Expression::Counter, Expression::Verdict(verdict::ACCEPT, None)]);
            Step::AddRule {
                table: self.table.clone(),
                chain: FORWARD.to_owned(),
                before,
                expressions,
                comment: Some(FORWARD_COMMENT.to_owned()),
                owner: None,
            }
        }));
        steps
    }
}
