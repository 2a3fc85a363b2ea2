//! nftables over netlink, no program executed: whole tables replaced in one transaction and read
//! back, and the finer operations that CNI plugins need on tables they share with others.
//!
//! What is written is what nft (1.0) writes for the same text, so `nft list table` prints our tables
//! as the `Display` of [`Table`] does, and what is read back compares equal to what was written;
//! whatever this program would not write is read as [`Match::Foreign`] and compares unequal.
//! Counters' values are no part of it.
//!
//! Sources: `linux/netfilter/nf_tables.h`, `net/netfilter/nf_tables_api.c`; comments are what
//! libnftnl puts into the user data attributes (`include/libnftnl/udata.h`).

pub(crate) mod dropping;
pub(crate) mod expression;
pub mod owned;
pub(crate) mod rule;
mod wire;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};

use fabric::firewall::{
    Chain, ChainKind, Family, Hook, HookPoint, Match, Policy, Rule, SourcePorts, Table, TableName, Verdict,
};
use rustix::io::Errno;

use crate::error::{Doing, KernelError};
use crate::netlink::{Batch, NetlinkError, Protocol, Socket};
pub use dropping::{DroppingChain, DropsBy};
use expression::Expression;
pub(crate) use wire::Step;

/// How often a change of shared rules is begun anew when somebody else changes them meanwhile.
const ATTEMPTS: usize = 20;

/// A socket to the kernel's nftables, in the network namespace in which it was opened.
#[derive(Debug)]
pub struct Nftables {
    socket: Socket,
    /// The chains that tables had when they were last seen, in order: asking for each by name spares
    /// a list of all chains of the host.
    known: BTreeMap<TableName, Vec<String>>,
}

/// A rule in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedRule {
    /// The kernel's number for it, unique in its table.
    pub handle: u64,
    /// What it says.
    pub rule: Rule,
}

/// A rule as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RawRule {
    pub(crate) chain: String,
    pub(crate) handle: u64,
    pub(crate) expressions: Vec<Expression>,
    pub(crate) comment: Option<String>,
}

impl Nftables {
    /// Opens a socket in the current network namespace.
    pub fn open() -> Result<Nftables, KernelError> {
        let socket = Socket::open(Protocol::Netfilter)
            .doing(|| "open a netfilter socket (does the kernel have nf_tables?)".to_owned())?;
        Ok(Nftables { socket, known: BTreeMap::new() })
    }

    /// Those of these tables that are there.
    pub fn list(&mut self, names: &[TableName]) -> Result<BTreeMap<TableName, Table>, KernelError> {
        let mut tables = BTreeMap::new();
        for name in names {
            if let Some(table) = self.table(name)? {
                tables.insert(name.clone(), table);
            }
        }
        Ok(tables)
    }

    /// Makes these tables what they should be and deletes those, all in one transaction: no packet
    /// sees a table that is missing or half full. It does not matter what was there before.
    pub fn transact(&mut self, set: &[Table], delete: &[TableName]) -> Result<(), KernelError> {
        let mut steps = Vec::new();
        for name in delete {
            // Adding first makes the deletion of a table that is not there no error.
            steps.extend([Step::AddTable(name.clone(), None), Step::DeleteTable(name.clone())]);
        }
        for table in set {
            let Table { name, comment, chains } = table;
            steps.extend([
                Step::AddTable(name.clone(), None),
                Step::DeleteTable(name.clone()),
                Step::AddTable(name.clone(), comment.clone()),
            ]);
            // All chains come before the first rule, which may jump to any of them.
            steps.extend(chains.iter().map(|chain| Step::add_chain(name, chain)));
            for chain in chains {
                steps.extend(chain.rules.iter().map(|rule| Step::add_rule(name, &chain.name, rule)));
            }
        }
        self.run(&steps)?;
        self.known.extend(set.iter().map(|table| (table.name.clone(), names(&table.chains))));
        Ok(())
    }

    /// The rules of a chain in order; none if there is no such chain or table.
    pub fn rules(&mut self, table: &TableName, chain: &str) -> Result<Vec<PlacedRule>, KernelError> {
        let rules = self.raw_rules(table, Some(chain))?;
        Ok(rules
            .into_iter()
            .map(|raw| PlacedRule { handle: raw.handle, rule: raw.rule(table.family) })
            .collect())
    }

    /// In a table shared with others: puts `rules` at the end of a chain, in place of those whose
    /// comment is `stale`, in one transaction.
    ///
    /// `base` is the table's frame, made where it is missing. Those of its chains that have rules
    /// there are emptied and filled with these; the others, and their rules, are left as they are.
    pub fn replace_rules(
        &mut self,
        base: &Table,
        chain: &str,
        stale: impl Fn(&str) -> bool,
        rules: &[Rule],
    ) -> Result<(), KernelError> {
        let name = &base.name;
        let mut frame = vec![Step::AddTable(name.clone(), base.comment.clone())];
        frame.extend(base.chains.iter().map(|chain| Step::add_chain(name, chain)));
        for filled in base.chains.iter().filter(|chain| !chain.rules.is_empty()) {
            frame.push(Step::FlushChain(name.clone(), filled.name.clone()));
            frame.extend(filled.rules.iter().map(|rule| Step::add_rule(name, &filled.name, rule)));
        }
        self.retry(|nftables| {
            let mut steps = frame.clone();
            steps.extend(nftables.deletions(name, &[chain], &stale)?);
            steps.extend(rules.iter().map(|rule| Step::add_rule(name, chain, rule)));
            nftables.run(&steps)
        })
    }

    /// In a table shared with others: deletes the rules of these chains whose comment is `stale`.
    /// A table or chain that is not there has none.
    pub fn remove_rules(
        &mut self,
        table: &TableName,
        chains: &[&str],
        stale: impl Fn(&str) -> bool,
    ) -> Result<(), KernelError> {
        self.retry(|nftables| {
            let steps = nftables.deletions(table, chains, &stale)?;
            nftables.run(&steps)
        })
    }

    /// Deletes those of these chains that are there, with their rules, and the rules of the chain `from`
    /// whose comment is `stale`, in one transaction. Rules of other chains that jump to them must be gone.
    pub fn remove_chains(
        &mut self,
        table: &TableName,
        chains: &[&str],
        from: &str,
        stale: impl Fn(&str) -> bool,
    ) -> Result<(), KernelError> {
        self.retry(|nftables| {
            let mut steps = nftables.deletions(table, &[from], &stale)?;
            let mut there = Vec::new();
            for name in chains {
                there.extend(nftables.chain(table, name)?.map(|_| *name));
            }
            // They may jump to each other: all are emptied before the first is deleted.
            let flush = there.iter().map(|chain| Step::FlushChain(table.clone(), (*chain).to_owned()));
            let delete = there.iter().map(|chain| Step::DeleteChain(table.clone(), (*chain).to_owned()));
            steps.extend(flush.chain(delete));
            nftables.run(&steps)
        })
    }

    /// How masquerading can pick source ports: fully at random, unless this kernel cannot.
    ///
    /// The kernel is asked to make such a rule and to delete it again in one transaction, which
    /// leaves nothing behind.
    pub fn source_ports(&mut self) -> Result<SourcePorts, KernelError> {
        let name = TableName { family: Family::Ipv4, name: "flannel-probe".to_owned() };
        let chain = Chain {
            name: "masquerade".to_owned(),
            hook: Some(Hook {
                kind: ChainKind::Nat,
                point: HookPoint::Postrouting,
                priority: fabric::firewall::priority::SRCNAT,
                policy: Policy::Accept,
            }),
            comment: None,
            rules: Vec::new(),
        };
        let random = Rule::new(Vec::new(), Verdict::Masquerade(SourcePorts::FullyRandom));
        let outcome = self.run(&[
            Step::AddTable(name.clone(), None),
            Step::add_chain(&name, &chain),
            Step::add_rule(&name, &chain.name, &random),
            Step::DeleteTable(name),
        ]);
        match outcome {
            Ok(()) => Ok(SourcePorts::FullyRandom),
            Err(error) if error.errno() == Some(Errno::INVAL) => Ok(SourcePorts::Kept),
            Err(error) => Err(error),
        }
    }

    /// Does all of these or nothing.
    pub(crate) fn run(&mut self, steps: &[Step]) -> Result<(), KernelError> {
        let mut batch = Batch::default();
        for step in steps {
            step.write(&mut batch);
        }
        self.socket.transaction(wire::SUBSYSTEM, &batch).map_err(|failures| {
            // A step that fails makes later ones fail: the first is the cause.
            let first = failures.into_iter().min_by_key(|(place, _)| place.unwrap_or(usize::MAX));
            let (place, cause) =
                first.unwrap_or((None, NetlinkError::Malformed("a failure without its reason")));
            let doing = match place.and_then(|place| steps.get(place)) {
                Some(step) => step.to_string(),
                None => format!("change nftables in a transaction of {} steps", steps.len()),
            };
            KernelError::Netlink { doing, cause }
        })
    }

    /// The rules of a table, or of one chain of it, in the kernel's order.
    pub(crate) fn raw_rules(
        &mut self,
        table: &TableName,
        chain: Option<&str>,
    ) -> Result<Vec<RawRule>, KernelError> {
        wire::rules(&mut self.socket, table, chain).doing(|| format!("list the rules of table {table}"))
    }

    /// A chain of a table, without its rules.
    pub(crate) fn chain(&mut self, table: &TableName, name: &str) -> Result<Option<Chain>, KernelError> {
        wire::chain(&mut self.socket, table, name).doing(|| format!("look up chain {name} of table {table}"))
    }

    fn table(&mut self, name: &TableName) -> Result<Option<Table>, KernelError> {
        let found = wire::table(&mut self.socket, name).doing(|| format!("look up table {name}"))?;
        let Some((mut table, objects)) = found else { return Ok(None) };
        table.chains.extend(match self.known_chains(name, objects)? {
            Some(chains) => chains,
            None => {
                let chains = wire::chains(&mut self.socket, name)
                    .doing(|| format!("list the chains of table {name}"))?;
                self.known.insert(name.clone(), names(&chains));
                chains
            }
        });
        for raw in self.raw_rules(name, None)? {
            // The chain may have come since the chains were listed; then the next look finds it.
            if let Some(chain) = table.chains.iter_mut().find(|chain| chain.name == raw.chain) {
                chain.rules.push(raw.rule(name.family));
            }
        }
        Ok(Some(table))
    }

    /// The chains of a table that has this many objects, if they are those that it had before.
    fn known_chains(&mut self, table: &TableName, objects: usize) -> Result<Option<Vec<Chain>>, KernelError> {
        let Some(known) = self.known.get(table).filter(|known| known.len() == objects).cloned() else {
            return Ok(None);
        };
        let mut chains = Vec::new();
        for name in known {
            let Some(chain) = self.chain(table, &name)? else { return Ok(None) };
            chains.push(chain);
        }
        Ok(Some(chains))
    }

    /// The steps that delete the rules whose comment is `stale`.
    fn deletions(
        &mut self,
        table: &TableName,
        chains: &[&str],
        stale: &impl Fn(&str) -> bool,
    ) -> Result<Vec<Step>, KernelError> {
        let mut steps = Vec::new();
        for chain in chains {
            let rules = self.raw_rules(table, Some(chain))?;
            steps.extend(
                rules
                    .into_iter()
                    .filter(|raw| raw.comment.as_deref().is_some_and(stale))
                    .map(|raw| Step::DeleteRule(table.clone(), raw.chain, raw.handle)),
            );
        }
        Ok(steps)
    }

    /// Tries again while somebody else deletes the rules that were just listed.
    pub(crate) fn retry<T>(
        &mut self,
        mut attempt: impl FnMut(&mut Nftables) -> Result<T, KernelError>,
    ) -> Result<T, KernelError> {
        let mut outcome = attempt(self);
        for _ in 1..ATTEMPTS {
            match &outcome {
                Err(error) if error.errno() == Some(Errno::NOENT) => outcome = attempt(self),
                _ => break,
            }
        }
        outcome
    }
}

impl AsFd for Nftables {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl RawRule {
    /// Its comment, whether nft keeps it (in the rule's user data) or iptables-nft (in a match).
    pub(crate) fn any_comment(&self) -> Option<&str> {
        let in_match = self.expressions.iter().find_map(|expression| match expression {
            Expression::XtComment(comment) => Some(comment.as_str()),
            _ => None,
        });
        in_match.or(self.comment.as_deref())
    }

    /// Whether it, on whatever condition, jumps or goes to this chain.
    pub(crate) fn leads_to(&self, chain: &str) -> bool {
        let leads =
            |expression: &Expression| matches!(expression, Expression::Verdict(_, Some(to)) if to == chain);
        self.expressions.iter().any(leads)
    }

    /// What the rule says, in a table of `family`.
    fn rule(&self, family: Family) -> Rule {
        Rule { comment: self.comment.clone(), ..rule::decode(family, &self.expressions) }
    }
}

fn names(chains: &[Chain]) -> Vec<String> {
    chains.iter().map(|chain| chain.name.clone()).collect()
}

/// A condition by which something compares unequal to all that is wanted.
fn foreign(what: impl Into<String>) -> Rule {
    Rule::new(vec![Match::Foreign(what.into())], Verdict::Continue)
}
