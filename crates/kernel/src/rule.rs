//! Routing rules that choose a table by the source of a packet.
//!
//! Source: `net/core/fib_rules.c`, `include/uapi/linux/fib_rules.h`.

use std::net::IpAddr;

use ipnet::IpNet;
use rustix::io::Errno;

use crate::address::family;
use crate::error::{Doing, KernelError};
use crate::netlink::{Answer, CREATE, EXCL, Encoder, Socket, attributes, read_ip, read_u8, read_u32};

const FRA_SRC: u16 = 2;
const FRA_PRIORITY: u16 = 6;
const FRA_TABLE: u16 = 15;
const TO_TABLE: u8 = 1; // FR_ACT_TO_TBL

/// A rule as the kernel describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// The source of the packets; none for all.
    pub source: Option<IpNet>,
    /// Whether it is for IPv4.
    pub ipv4: bool,
    /// The table.
    pub table: u32,
    /// Its place among the rules.
    pub priority: u32,
}

/// All rules that lead to a table, of both families.
pub fn list(socket: &mut Socket) -> Result<Vec<Rule>, KernelError> {
    let mut rules: Vec<Rule> = Vec::new();
    for wanted in [libc::AF_INET, libc::AF_INET6] {
        let found = socket.dump(
            libc::RTM_GETRULE,
            |body| body.put(&[wanted as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            |rules: &mut Vec<Rule>, answer| {
                // A kernel without one family answers with the other.
                if read_u8(answer.payload, 0) == Some(wanted as u8) {
                    rules.extend(decode(answer));
                }
                Ok(())
            },
        );
        match found {
            Ok(found) => rules.extend(found),
            // A kernel without IPv6 has no rules of it.
            Err(error)
                if matches!(error.errno(), Some(Errno::OPNOTSUPP | Errno::NOENT | Errno::AFNOSUPPORT)) => {}
            Err(error) => return Err(error).doing(|| "list routing rules".to_owned()),
        }
    }
    Ok(rules)
}

/// Sends the packets from an address to a table. That the rule is there already is no error.
pub fn add(socket: &mut Socket, source: IpAddr, table: u32) -> Result<(), KernelError> {
    let net = IpNet::from(source);
    match socket.request(libc::RTM_NEWRULE, CREATE | EXCL, |body| encode(body, net, table)) {
        Err(error) if error.errno() == Some(Errno::EXIST) => Ok(()),
        other => other.doing(|| format!("add a rule from {source} to table {table}")),
    }
}

/// Takes a rule with a source away. That it is not there is no error.
pub fn remove(socket: &mut Socket, rule: &Rule) -> Result<(), KernelError> {
    let Some(source) = rule.source else { return Ok(()) };
    let removed = socket.request(libc::RTM_DELRULE, 0, |body| {
        encode(body, source, rule.table);
        body.u32(FRA_PRIORITY, rule.priority);
    });
    match removed {
        Err(error) if error.errno() == Some(Errno::NOENT) => Ok(()),
        other => other.doing(|| format!("remove the rule from {source} to table {}", rule.table)),
    }
}

/// `struct fib_rule_hdr`
fn encode(body: &mut Encoder, source: IpNet, table: u32) {
    let short_table = u8::try_from(table).unwrap_or(libc::RT_TABLE_UNSPEC);
    body.put(&[family(source.addr()), 0, source.prefix_len(), 0, short_table, 0, 0, TO_TABLE, 0, 0, 0, 0]);
    body.ip(FRA_SRC, source.addr());
    body.u32(FRA_TABLE, table);
}

fn decode(answer: Answer<'_>) -> Option<Rule> {
    let payload = answer.payload;
    let &[family, _, source_len, _, short_table, _, _, action, ..] = payload else { return None };
    if answer.kind != libc::RTM_NEWRULE || action != TO_TABLE {
        return None;
    }
    let (mut source, mut table, mut priority) = (None, u32::from(short_table), 0);
    for (kind, value) in attributes(payload.get(12..)?) {
        match kind {
            FRA_SRC => source = read_ip(value).and_then(|ip| IpNet::new(ip, source_len).ok()),
            FRA_TABLE => table = read_u32(value, 0)?,
            FRA_PRIORITY => priority = read_u32(value, 0)?,
            _ => {}
        }
    }
    Some(Rule { source, ipv4: i32::from(family) == libc::AF_INET, table, priority })
}
