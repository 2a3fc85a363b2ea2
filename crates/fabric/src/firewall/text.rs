//! Firewall tables as text, as `nft list table` prints them and `nft -f` takes them.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    Chain, ChainKind, Counted, Family, Hook, HookPoint, Is, Match, Policy, Rule, SourcePorts, Table,
    TableName, Verdict, priority,
};

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Ipv4 => "ip",
            Family::Ipv6 => "ip6",
            Family::Inet => "inet",
            Family::Bridge => "bridge",
        })
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}

/// The text of `nft list table`, so that the two can be held side by side.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table {} {{", self.name)?;
        if let Some(comment) = &self.comment {
            writeln!(f, "\tcomment \"{comment}\"")?;
        }
        for (at, chain) in self.chains.iter().enumerate() {
            if at > 0 {
                writeln!(f)?;
            }
            chain.list(f, self.name.family)?;
        }
        writeln!(f, "}}")
    }
}

impl Chain {
    /// The chain as `nft list` prints it within a table of `family`.
    fn list(&self, f: &mut fmt::Formatter<'_>, family: Family) -> fmt::Result {
        writeln!(f, "\tchain {} {{", self.name)?;
        if let Some(comment) = &self.comment {
            writeln!(f, "\t\tcomment \"{comment}\"")?;
        }
        if let Some(hook) = &self.hook {
            f.write_str("\t\t")?;
            hook.list(f, family)?;
            writeln!(f)?;
        }
        for rule in &self.rules {
            writeln!(f, "\t\t{rule}")?;
        }
        writeln!(f, "\t}}")
    }
}

/// The text in a table of any family but `bridge`, which has other names for some priorities.
impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.list(f, Family::Inet)
    }
}

impl Hook {
    fn list(&self, f: &mut fmt::Formatter<'_>, family: Family) -> fmt::Result {
        let kind = match self.kind {
            ChainKind::Filter => "filter",
            ChainKind::Nat => "nat",
        };
        let point = match self.point {
            HookPoint::Prerouting => "prerouting",
            HookPoint::Input => "input",
            HookPoint::Forward => "forward",
            HookPoint::Output => "output",
            HookPoint::Postrouting => "postrouting",
        };
        let policy = match self.policy {
            Policy::Accept => "accept",
            Policy::Drop => "drop",
        };
        write!(f, "type {kind} hook {point} priority ")?;
        match priority_name(family, self.point, self.priority) {
            Some((name, 0)) => f.write_str(name)?,
            Some((name, offset)) if offset > 0 => write!(f, "{name} + {offset}")?,
            Some((name, offset)) => write!(f, "{name} - {}", -offset)?,
            None => write!(f, "{}", self.priority)?,
        }
        write!(f, "; policy {policy};")
    }
}

/// The name that nft has for a priority, or for one at most ten away, and the distance from it
/// (nftables, `src/rule.c`, `std_prio_lookup`).
fn priority_name(family: Family, point: HookPoint, priority: i32) -> Option<(&'static str, i32)> {
    const INET: [(&str, i32); 6] = [
        ("raw", -300),
        ("mangle", -150),
        ("dstnat", priority::DSTNAT),
        ("filter", priority::FILTER),
        ("security", 50),
        ("srcnat", priority::SRCNAT),
    ];
    const BRIDGE: [(&str, i32); 4] = [("dstnat", -300), ("filter", -200), ("out", 100), ("srcnat", 300)];
    let names = if family == Family::Bridge { &BRIDGE[..] } else { &INET[..] };
    let here = |name: &str| match name {
        "dstnat" => point == HookPoint::Prerouting,
        "srcnat" => point == HookPoint::Postrouting,
        "out" => point == HookPoint::Output,
        _ => true,
    };
    names
        .iter()
        .map(|(name, value)| (*name, priority - value))
        .find(|(name, offset)| offset.abs() <= 10 && here(name))
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        let mut word = |f: &mut fmt::Formatter<'_>, text: &dyn fmt::Display| {
            let result = write!(f, "{separator}{text}");
            separator = " ";
            result
        };
        for condition in &self.matches {
            word(f, condition)?;
        }
        if self.counted == Counted::Yes {
            // As listed before the first packet; nft takes the values as the counter's beginning.
            word(f, &"counter packets 0 bytes 0")?;
        }
        if self.verdict != Verdict::Continue {
            word(f, &self.verdict)?;
        }
        if let Some(comment) = &self.comment {
            word(f, &format_args!("comment \"{comment}\""))?;
        }
        Ok(())
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = |net: &IpNet| if net.addr().is_ipv4() { "ip" } else { "ip6" };
        match self {
            Match::Mark { mask: None, value } => write!(f, "meta mark 0x{value:08x}"),
            Match::Mark { mask: Some(mask), value } => {
                write!(f, "meta mark & 0x{mask:08x} == 0x{value:08x}")
            }
            Match::Source(is, net) => write!(f, "{} saddr {is}{}", family(net), Prefix(net)),
            Match::Destination(is, net) => write!(f, "{} daddr {is}{}", family(net), Prefix(net)),
            Match::EtherSource(mac) => write!(f, "ether saddr {mac}"),
            Match::InputLink(name) => write!(f, "iifname \"{name}\""),
            Match::OutputLink(is, name) => write!(f, "oifname {is}\"{name}\""),
            Match::Protocol(number) => match protocol_name(*number) {
                Some(name) => write!(f, "meta l4proto {name}"),
                None => write!(f, "meta l4proto {number}"),
            },
            Match::DestinationPort(number, port) => {
                write!(f, "{} dport {port}", protocol_name(*number).unwrap_or("th"))
            }
            Match::DestinationIsLocal => f.write_str("fib daddr type local"),
            Match::ConnectionState(bits) => {
                let names = [(1, "invalid"), (2, "established"), (4, "related"), (8, "new")];
                let set: Vec<&str> =
                    names.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| *name).collect();
                write!(f, "ct state {}", set.join(","))
            }
            Match::Foreign(text) => write!(f, "# {text}"),
        }
    }
}

impl fmt::Display for Is {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Is::Equal => "",
            Is::NotEqual => "!= ",
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Accept => f.write_str("accept"),
            Verdict::Drop => f.write_str("drop"),
            Verdict::Return => f.write_str("return"),
            Verdict::Jump(chain) => write!(f, "jump {chain}"),
            Verdict::Goto(chain) => write!(f, "goto {chain}"),
            Verdict::Masquerade(SourcePorts::Kept) => f.write_str("masquerade"),
            Verdict::Masquerade(SourcePorts::FullyRandom) => f.write_str("masquerade fully-random"),
            Verdict::DestinationNat(IpAddr::V4(ip), port) => write!(f, "dnat to {ip}:{port}"),
            Verdict::DestinationNat(IpAddr::V6(ip), port) => write!(f, "dnat to [{ip}]:{port}"),
            Verdict::SetMarkBits(bits) => write!(f, "meta mark set meta mark | 0x{bits:08x}"),
            Verdict::Continue => Ok(()),
        }
    }
}

/// A prefix as nft prints it: an address alone when the prefix has full length.
struct Prefix<'a>(&'a IpNet);

impl fmt::Display for Prefix<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.prefix_len() == self.0.max_prefix_len() { self.0.addr().fmt(f) } else { self.0.fmt(f) }
    }
}

/// The name of an IANA protocol number where nft knows one that has ports.
fn protocol_name(number: u8) -> Option<&'static str> {
    match number {
        6 => Some("tcp"),
        17 => Some("udp"),
        132 => Some("sctp"),
        _ => None,
    }
}
