//! The messages of nftables: what is asked for, and what comes back.

use std::fmt;

use fabric::firewall::{Chain, ChainKind, Family, Hook, HookPoint, Policy, Rule, Table, TableName};
use rustix::io::Errno;

use super::expression::{self, Expression, find};
use super::owned::{Mark, Owner};
use super::{RawRule, foreign, rule};
use crate::netlink::{
    ACK, APPEND, Answer, Batch, CREATE, Encoder, NetlinkError, Socket, read_be32, read_text,
};

/// `NFNL_SUBSYS_NFTABLES`
pub(super) const SUBSYSTEM: u16 = 10;

// `NFT_MSG_*`
const NEW_TABLE: u16 = message(0);
const GET_TABLE: u16 = message(1);
const DELETE_TABLE: u16 = message(2);
const NEW_CHAIN: u16 = message(3);
const GET_CHAIN: u16 = message(4);
const DELETE_CHAIN: u16 = message(5);
const NEW_RULE: u16 = message(6);
const GET_RULE: u16 = message(7);
const DELETE_RULE: u16 = message(8);

// `NFTA_TABLE_*`
const TABLE_NAME: u16 = 1;
const TABLE_FLAGS: u16 = 2;
const TABLE_USE: u16 = 3;
const TABLE_USERDATA: u16 = 6;
// `NFTA_CHAIN_*`
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const CHAIN_USERDATA: u16 = 12;
// `NFTA_HOOK_*`
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
// `NFTA_RULE_*`
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_POSITION: u16 = 6;
const RULE_USERDATA: u16 = 7;

/// `NFTNL_UDATA_{TABLE,CHAIN,RULE}_COMMENT`: the same for all three.
const USERDATA_COMMENT: u8 = 0;
/// Nobody else's: nft knows 0 and 1 of rules, and passes over the others.
const USERDATA_OWNER: u8 = b'f';
/// `struct nfgenmsg`
const HEADER_LEN: usize = 4;

const fn message(number: u16) -> u16 {
    SUBSYSTEM << 8 | number
}

/// One step of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Makes a table, with its comment, if it is not there.
    AddTable(TableName, Option<String>),
    /// Deletes a table and all in it.
    DeleteTable(TableName),
    /// Makes a chain if it is not there; its rules are not looked at.
    AddChain(TableName, Chain),
    /// Deletes a chain that has no rules.
    DeleteChain(TableName, String),
    /// Deletes all rules of a chain.
    FlushChain(TableName, String),
    /// Adds a rule.
    AddRule {
        table: TableName,
        chain: String,
        /// The rule in front of which it comes; else it is the last.
        before: Option<u64>,
        expressions: Vec<Expression>,
        comment: Option<String>,
        /// Whose it is, in a table that is shared.
        owner: Option<Owner>,
    },
    /// Deletes a rule of a chain by its handle.
    DeleteRule(TableName, String, u64),
}

impl Step {
    pub(super) fn add_chain(table: &TableName, chain: &Chain) -> Step {
        let chain = Chain { rules: Vec::new(), ..chain.clone() };
        Step::AddChain(table.clone(), chain)
    }

    pub(super) fn add_rule(table: &TableName, chain: &str, rule: &Rule) -> Step {
        Step::AddRule {
            table: table.clone(),
            chain: chain.to_owned(),
            before: None,
            expressions: rule::encode(table.family, rule),
            comment: rule.comment.clone(),
            owner: None,
        }
    }

    pub(super) fn add_owned_rule(table: &TableName, chain: &str, rule: &Rule, by: Owner) -> Step {
        match Step::add_rule(table, chain, rule) {
            Step::AddRule { table, chain, before, expressions, comment, .. } => {
                Step::AddRule { table, chain, before, expressions, comment, owner: Some(by) }
            }
            other => other,
        }
    }

    pub(super) fn write(&self, batch: &mut Batch) {
        match self {
            Step::AddTable(table, comment) => batch.push(NEW_TABLE, CREATE, |body| {
                header(body, table.family);
                body.text(TABLE_NAME, &table.name);
                body.be32(TABLE_FLAGS, 0);
                write_comment(body, TABLE_USERDATA, comment.as_deref());
            }),
            Step::DeleteTable(table) => batch.push(DELETE_TABLE, 0, |body| {
                header(body, table.family);
                body.text(TABLE_NAME, &table.name);
            }),
            Step::AddChain(table, chain) => batch.push(NEW_CHAIN, CREATE, |body| {
                header(body, table.family);
                body.text(CHAIN_TABLE, &table.name);
                body.text(CHAIN_NAME, &chain.name);
                if let Some(hook) = &chain.hook {
                    write_hook(body, hook);
                }
                write_comment(body, CHAIN_USERDATA, chain.comment.as_deref());
            }),
            Step::DeleteChain(table, chain) => batch.push(DELETE_CHAIN, 0, |body| {
                header(body, table.family);
                body.text(CHAIN_TABLE, &table.name);
                body.text(CHAIN_NAME, chain);
            }),
            Step::FlushChain(table, chain) => batch.push(DELETE_RULE, 0, |body| {
                header(body, table.family);
                body.text(RULE_TABLE, &table.name);
                body.text(RULE_CHAIN, chain);
            }),
            Step::AddRule { table, chain, before, expressions, comment, owner } => {
                // Without APPEND, the position is that of the rule in front of which the new one goes.
                let flags = if before.is_some() { CREATE } else { CREATE | APPEND };
                batch.push(NEW_RULE, flags, |body| {
                    header(body, table.family);
                    body.text(RULE_TABLE, &table.name);
                    body.text(RULE_CHAIN, chain);
                    expression::write_all(body, RULE_EXPRESSIONS, expressions);
                    if let Some(handle) = before {
                        body.be64(RULE_POSITION, *handle);
                    }
                    write_userdata(body, RULE_USERDATA, comment.as_deref(), *owner);
                });
            }
            Step::DeleteRule(table, chain, handle) => batch.push(DELETE_RULE, 0, |body| {
                header(body, table.family);
                body.text(RULE_TABLE, &table.name);
                body.text(RULE_CHAIN, chain);
                body.be64(RULE_HANDLE, *handle);
            }),
        }
    }
}

/// The step as an nft command, or near it: it follows the words "cannot".
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::AddTable(table, _) => write!(f, "nft add table {table}"),
            Step::DeleteTable(table) => write!(f, "nft delete table {table}"),
            Step::AddChain(table, chain) => {
                write!(f, "nft add chain {table} {}", chain.name)?;
                match &chain.hook {
                    Some(hook) => write!(f, " {{ {hook} }}"),
                    None => Ok(()),
                }
            }
            Step::DeleteChain(table, chain) => write!(f, "nft delete chain {table} {chain}"),
            Step::FlushChain(table, chain) => write!(f, "nft flush chain {table} {chain}"),
            Step::AddRule { table, chain, expressions, .. } => {
                write!(f, "nft add rule {table} {chain} {}", rule::decode(table.family, expressions))
            }
            Step::DeleteRule(table, chain, handle) => {
                write!(f, "nft delete rule {table} {chain} handle {handle}")
            }
        }
    }
}

/// A table without its chains, and how many chains and other objects it has. One that an
/// administrator has put to sleep gets a chain that makes it unequal to any that is wanted.
pub(super) fn table(socket: &mut Socket, name: &TableName) -> Result<Option<(Table, usize)>, NetlinkError> {
    let asked = socket.ask(
        GET_TABLE,
        ACK,
        |body| {
            header(body, name.family);
            body.text(TABLE_NAME, &name.name);
        },
        |found: &mut Option<(Table, usize)>, answer| {
            let Some(body) = body(&answer, NEW_TABLE) else { return Ok(()) };
            let number = |kind| find(body, kind).and_then(|bytes| read_be32(bytes, 0)).unwrap_or(0);
            let flags = number(TABLE_FLAGS);
            let mut chains = Vec::new();
            if flags != 0 {
                let rules = vec![foreign(format!("the table has the flags {flags:#x}"))];
                chains.push(Chain { name: String::new(), hook: None, comment: None, rules });
            }
            let comment = read_comment(body, TABLE_USERDATA);
            *found = Some((Table { name: name.clone(), comment, chains }, number(TABLE_USE) as usize));
            Ok(())
        },
    );
    absent_is_default(asked)
}

/// One chain of a table.
pub(super) fn chain(
    socket: &mut Socket,
    table: &TableName,
    name: &str,
) -> Result<Option<Chain>, NetlinkError> {
    let asked = socket.ask(
        GET_CHAIN,
        ACK,
        |body| {
            header(body, table.family);
            body.text(CHAIN_TABLE, &table.name);
            body.text(CHAIN_NAME, name);
        },
        |found: &mut Option<Chain>, answer| {
            if let Some(body) = body(&answer, NEW_CHAIN) {
                *found = Some(read_chain(body));
            }
            Ok(())
        },
    );
    absent_is_default(asked)
}

/// The chains of a table in order. The kernel lists those of all tables of the family, which takes
/// long where kube-proxy has thousands.
pub(super) fn chains(socket: &mut Socket, table: &TableName) -> Result<Vec<Chain>, NetlinkError> {
    let listed = socket.dump(
        GET_CHAIN,
        |body| header(body, table.family),
        |chains: &mut Vec<Chain>, answer| {
            if let Some(body) = body(&answer, NEW_CHAIN)
                && find(body, CHAIN_TABLE).map(read_text).as_ref() == Some(&table.name)
            {
                chains.push(read_chain(body));
            }
            Ok(())
        },
    );
    absent_is_default(listed)
}

/// The chains of all tables.
pub(super) fn all_chains(socket: &mut Socket) -> Result<Vec<(TableName, Chain)>, NetlinkError> {
    socket.dump(
        GET_CHAIN,
        // Of any family: `NFPROTO_UNSPEC`.
        |body| body.put(&[0; HEADER_LEN]),
        |chains: &mut Vec<(TableName, Chain)>, answer| {
            let family = answer.payload.first().and_then(|number| family_of(*number));
            if let (Some(body), Some(family)) = (body(&answer, NEW_CHAIN), family) {
                let name = find(body, CHAIN_TABLE).map(read_text).unwrap_or_default();
                chains.push((TableName { family, name }, read_chain(body)));
            }
            Ok(())
        },
    )
}

/// A chain without rules. One whose hook no value has a word for gets a foreign rule.
fn read_chain(body: &[u8]) -> Chain {
    let (hook, rules) = match find(body, CHAIN_HOOK) {
        None => (None, Vec::new()),
        Some(hook) => match read_hook(body, hook) {
            Some(hook) => (Some(hook), Vec::new()),
            None => (None, vec![foreign("a hook of another kind")]),
        },
    };
    let name = find(body, CHAIN_NAME).map(read_text).unwrap_or_default();
    Chain { name, hook, comment: read_comment(body, CHAIN_USERDATA), rules }
}

/// The rules of a table, or of one chain of it, in order.
pub(super) fn rules(
    socket: &mut Socket,
    table: &TableName,
    chain: Option<&str>,
) -> Result<Vec<RawRule>, NetlinkError> {
    let listed = socket.dump(
        GET_RULE,
        |body| {
            header(body, table.family);
            body.text(RULE_TABLE, &table.name);
            if let Some(chain) = chain {
                body.text(RULE_CHAIN, chain);
            }
        },
        |rules: &mut Vec<RawRule>, answer| {
            let Some(body) = body(&answer, NEW_RULE) else { return Ok(()) };
            // Old kernels list more than was asked for.
            if find(body, RULE_TABLE).map(read_text).as_ref() != Some(&table.name) {
                return Ok(());
            }
            let mark = read_mark(body)?;
            if chain.is_none_or(|chain| chain == mark.chain) {
                let expressions = expression::read_all(find(body, RULE_EXPRESSIONS).unwrap_or_default());
                rules.push(RawRule {
                    chain: mark.chain,
                    handle: mark.handle,
                    expressions,
                    comment: mark.comment,
                });
            }
            Ok(())
        },
    );
    absent_is_default(listed)
}

/// Whose the rules of a table are, without what they say: of a table with many rules, reading those is
/// most of the work.
pub(super) fn marks(socket: &mut Socket, table: &TableName) -> Result<Vec<Mark>, NetlinkError> {
    let listed = socket.dump(
        GET_RULE,
        |body| {
            header(body, table.family);
            body.text(RULE_TABLE, &table.name);
        },
        |marks: &mut Vec<Mark>, answer| {
            let Some(body) = body(&answer, NEW_RULE) else { return Ok(()) };
            // Old kernels list more than was asked for.
            if find(body, RULE_TABLE).map(read_text).as_ref() == Some(&table.name) {
                marks.push(read_mark(body)?);
            }
            Ok(())
        },
    );
    absent_is_default(listed)
}

fn read_mark(body: &[u8]) -> Result<Mark, NetlinkError> {
    let handle = find(body, RULE_HANDLE).and_then(|bytes| bytes.try_into().ok());
    Ok(Mark {
        chain: find(body, RULE_CHAIN).map(read_text).unwrap_or_default(),
        handle: handle.map(u64::from_be_bytes).ok_or(NetlinkError::Malformed("a rule without handle"))?,
        comment: read_comment(body, RULE_USERDATA),
        owner: read_userdata(body, RULE_USERDATA, USERDATA_OWNER)
            .and_then(|mark| mark.try_into().ok())
            .map(Owner),
    })
}

/// What is asked of a table or chain that is not there is answered with nothing.
fn absent_is_default<T: Default>(asked: Result<T, NetlinkError>) -> Result<T, NetlinkError> {
    match asked {
        Err(error) if error.errno() == Some(Errno::NOENT) => Ok(T::default()),
        other => other,
    }
}

/// The families and their numbers (`NFPROTO_*`).
const FAMILIES: [(Family, u8); 4] =
    [(Family::Inet, 1), (Family::Ipv4, 2), (Family::Bridge, 7), (Family::Ipv6, 10)];

/// `struct nfgenmsg`: family, version, and a number that is only used by batches.
fn header(body: &mut Encoder, family: Family) {
    let number = FAMILIES.iter().find(|(known, _)| *known == family).map_or(0, |(_, number)| *number);
    body.put(&[number, 0, 0, 0]);
}

fn family_of(number: u8) -> Option<Family> {
    FAMILIES.iter().find(|(_, known)| *known == number).map(|(family, _)| *family)
}

/// The attributes of an answer of this kind.
fn body<'a>(answer: &Answer<'a>, kind: u16) -> Option<&'a [u8]> {
    if answer.kind == kind { answer.payload.get(HEADER_LEN..) } else { None }
}

fn write_hook(body: &mut Encoder, hook: &Hook) {
    let number = match hook.point {
        HookPoint::Prerouting => 0,
        HookPoint::Input => 1,
        HookPoint::Forward => 2,
        HookPoint::Output => 3,
        HookPoint::Postrouting => 4,
    };
    body.nest(CHAIN_HOOK, |nested| {
        nested.be32(HOOK_NUMBER, number);
        nested.be32(HOOK_PRIORITY, hook.priority.cast_unsigned());
    });
    body.be32(
        CHAIN_POLICY,
        match hook.policy {
            Policy::Drop => 0,
            Policy::Accept => 1,
        },
    );
    body.text(
        CHAIN_TYPE,
        match hook.kind {
            ChainKind::Filter => "filter",
            ChainKind::Nat => "nat",
        },
    );
}

fn read_hook(chain: &[u8], hook: &[u8]) -> Option<Hook> {
    let point = match read_be32(find(hook, HOOK_NUMBER)?, 0)? {
        0 => HookPoint::Prerouting,
        1 => HookPoint::Input,
        2 => HookPoint::Forward,
        3 => HookPoint::Output,
        4 => HookPoint::Postrouting,
        _ => return None,
    };
    let kind = match read_text(find(chain, CHAIN_TYPE)?).as_str() {
        "filter" => ChainKind::Filter,
        "nat" => ChainKind::Nat,
        _ => return None,
    };
    let policy = match read_be32(find(chain, CHAIN_POLICY)?, 0)? {
        0 => Policy::Drop,
        1 => Policy::Accept,
        _ => return None,
    };
    let priority = read_be32(find(hook, HOOK_PRIORITY)?, 0)?.cast_signed();
    Some(Hook { kind, point, priority, policy })
}

fn write_comment(body: &mut Encoder, kind: u16, comment: Option<&str>) {
    write_userdata(body, kind, comment, None);
}

/// Entries of type, length and value. The value of a comment is the text with its terminating zero.
fn write_userdata(body: &mut Encoder, kind: u16, comment: Option<&str>, owner: Option<Owner>) {
    let mut data = Vec::new();
    if let Some(comment) = comment {
        let mut text = comment.as_bytes().to_vec();
        // nft allows 128 bytes with the zero; whoever makes comments keeps to that.
        text.truncate(usize::from(u8::MAX) - 1);
        text.push(0);
        data.extend([USERDATA_COMMENT, u8::try_from(text.len()).unwrap_or(u8::MAX)]);
        data.append(&mut text);
    }
    if let Some(Owner(mark)) = owner {
        data.extend([USERDATA_OWNER, mark.len() as u8]);
        data.extend(mark);
    }
    if !data.is_empty() {
        body.attribute(kind, &data);
    }
}

fn read_comment(body: &[u8], kind: u16) -> Option<String> {
    read_userdata(body, kind, USERDATA_COMMENT).map(read_text)
}

/// The value of the first entry of this type.
fn read_userdata(body: &[u8], kind: u16, wanted: u8) -> Option<&[u8]> {
    let mut data = find(body, kind)?;
    while let [kind, length, rest @ ..] = data {
        let value = rest.get(..usize::from(*length))?;
        if *kind == wanted {
            return Some(value);
        }
        data = &rest[value.len()..];
    }
    None
}
