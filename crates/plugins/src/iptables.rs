//! The host's iptables, for plugins whose rules other programs look for there.
//!
//! What is about rules of iptables-nft is asked and deleted over netlink, since they are rules of
//! nftables; only to write them, and for iptables-legacy, a program is run. iptables-legacy is asked only
//! where the kernel says that it has such a table: asking would make it.

use std::fs;

use cni::Error;
use fabric::firewall::{Family, TableName};
use kernel::nftables::Nftables;
use kernel::{KernelError, command};

/// Both families.
pub(crate) const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];

/// iptables of one family, in one of its two kinds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Iptables {
    family: Family,
    kind: Kind,
    program: String,
}

/// Where the rules are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// In tables of nftables.
    Nft,
    /// In tables of its own.
    Legacy,
}

impl Iptables {
    /// What is called `iptables` on this host.
    pub(crate) fn of_host(family: Family) -> Result<Iptables, KernelError> {
        let program = name(family).to_owned();
        let file = command::find(&program).and_then(|file| fs::canonicalize(file).ok());
        let file = file.and_then(|file| Some(file.file_name()?.to_string_lossy().into_owned()));
        let kind = match file {
            Some(file) if file.contains("nft") => Kind::Nft,
            Some(file) if file.contains("legacy") => Kind::Legacy,
            // A script that chooses, or a distribution that has only the one.
            _ if command::run(&program, &["--version"], "")?.contains("nf_tables") => Kind::Nft,
            _ => Kind::Legacy,
        };
        Ok(Iptables { family, kind, program })
    }

    /// iptables-legacy, where the kernel has that table of it.
    pub(crate) fn legacy_with(family: Family, table: &str) -> Option<Iptables> {
        let names = match family {
            Family::Ipv6 => "/proc/thread-self/net/ip6_tables_names",
            _ => "/proc/thread-self/net/ip_tables_names",
        };
        if !fs::read_to_string(names).is_ok_and(|names| names.lines().any(|name| name == table)) {
            return None;
        }
        let own = format!("{}-legacy", name(family));
        let program = if command::find(&own).is_some() { own } else { name(family).to_owned() };
        Some(Iptables { family, kind: Kind::Legacy, program })
    }

    /// Whether its tables are its own.
    pub(crate) fn is_legacy(&self) -> bool {
        self.kind == Kind::Legacy
    }

    /// The name by which nftables knows a table of iptables-nft.
    pub(crate) fn nft_table(family: Family, table: &str) -> TableName {
        TableName { family, name: table.to_owned() }
    }

    /// Runs it on a table.
    pub(crate) fn run(&self, table: &str, words: &[&str]) -> Result<String, KernelError> {
        let words: Vec<&str> = ["--wait", "-t", table].iter().chain(words).copied().collect();
        command::run(&self.program, &words, "")
    }

    /// Changes a table by lines as `iptables-save` prints them, all or none.
    pub(crate) fn restore(&self, table: &str, lines: &str) -> Result<(), KernelError> {
        let restore = format!("{}-restore", self.program);
        command::run(&restore, &["--noflush", "--wait"], &format!("*{table}\n{lines}COMMIT\n")).map(drop)
    }

    /// The rules of a chain as `-S` prints them; none if there is no such chain.
    pub(crate) fn list(&self, table: &str, chain: &str) -> Option<Vec<String>> {
        let listed = self.run(table, &["-S", chain]).ok()?;
        Some(listed.lines().filter(|line| line.starts_with("-A ")).map(str::to_owned).collect())
    }

    /// The chains that the rules of a chain jump to; none if there is no such chain.
    pub(crate) fn jumps(
        &self,
        nft: Option<&mut Nftables>,
        table: &str,
        chain: &str,
    ) -> Result<Option<Vec<String>>, KernelError> {
        match (self.kind, nft) {
            (Kind::Nft, Some(nft)) => {
                let table = Iptables::nft_table(self.family, table);
                if !nft.has_chain(&table, chain)? {
                    return Ok(None);
                }
                Ok(Some(nft.jumps(&table, chain)?.into_iter().map(|(target, _)| target).collect()))
            }
            _ => Ok(self
                .list(table, chain)
                .map(|rules| rules.iter().filter_map(|rule| target(rule)).map(str::to_owned).collect())),
        }
    }

    /// Makes a chain where it is missing, whoever else does so at the same time.
    pub(crate) fn ensure_chain(&self, table: &str, chain: &str) -> Result<(), KernelError> {
        let made = self.run(table, &["-N", chain]);
        if made.is_err() && self.list(table, chain).is_some() { Ok(()) } else { made.map(drop) }
    }
}

/// The chains that the rules of a chain lead to, with the rules' comments, of either kind of iptables.
pub(crate) fn entries(
    nft: Option<&mut Nftables>,
    family: Family,
    table: &str,
    from: &str,
) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    if let Some(nft) = nft {
        let jumps = nft.jumps(&Iptables::nft_table(family, table), from).unwrap_or_default();
        found.extend(jumps.into_iter().map(|(chain, comment)| (chain, comment.unwrap_or_default())));
    }
    let legacy = Iptables::legacy_with(family, table).and_then(|legacy| legacy.list(table, from));
    for rule in legacy.unwrap_or_default() {
        // Not taken apart: who looks for a comment finds it in the whole rule.
        found.extend(target(&rule).map(|chain| (chain.to_owned(), rule.replace("\\\"", "\""))));
    }
    found
}

/// Deletes a chain and the rules of `from` that lead to it, in either kind of iptables. It is no error if
/// there is none.
pub(crate) fn remove_entered(
    nft: Option<&mut Nftables>,
    family: Family,
    table: &str,
    from: &str,
    chain: &str,
) -> Result<(), KernelError> {
    let native = match nft {
        Some(nft) => nft.remove_jumped_to(&Iptables::nft_table(family, table), from, chain),
        None => Ok(()),
    };
    let Some(legacy) = Iptables::legacy_with(family, table) else { return native };
    if legacy.list(table, chain).is_none() {
        return native;
    }
    let mut lines = String::new();
    for rule in legacy.list(table, from).unwrap_or_default() {
        if target(&rule) == Some(chain) {
            lines += &format!("{}\n", rule.replacen("-A ", "-D ", 1));
        }
    }
    lines += &format!("-F {chain}\n-X {chain}\n");
    native.and(legacy.restore(table, &lines))
}

/// Where a rule, as iptables prints it, jumps to.
pub(crate) fn target(rule: &str) -> Option<&str> {
    rule.rsplit_once(" -j ").and_then(|(_, to)| to.split(' ').next())
}

/// A rule's words on one line of `iptables-restore`.
pub(crate) fn line(words: &[String]) -> Result<String, Error> {
    let mut line = String::new();
    for word in words {
        if word.contains(['\n', '\r', '\0']) {
            return Err(Error::internal(format!("a rule of iptables cannot have {word:?} in it"))
                .details("line breaks cannot be told to iptables-restore"));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "!-_./:,=[]%+@".contains(c);
        if !word.is_empty() && word.chars().all(is_plain) {
            line.push_str(word);
        } else {
            line.push('"');
            line.push_str(&word.replace('\\', "\\\\").replace('"', "\\\""));
            line.push('"');
        }
    }
    line.push('\n');
    Ok(line)
}

fn name(family: Family) -> &'static str {
    if family == Family::Ipv6 { "ip6tables" } else { "iptables" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_with_spaces_and_quotes_are_quoted() {
        let words = |words: &[&str]| line(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        let rule = ["-A", "X", "--comment", r#"dnat name: "a" id: "b""#, "!", "-d", "10.0.0.0/8"];
        assert_eq!(
            words(&rule).unwrap(),
            "-A X --comment \"dnat name: \\\"a\\\" id: \\\"b\\\"\" ! -d 10.0.0.0/8\n"
        );
        assert_eq!(words(&["a\\b", ""]).unwrap(), "\"a\\\\b\" \"\"\n");
        assert!(words(&["a\nCOMMIT"]).is_err());
    }

    #[test]
    fn the_target_of_a_rule_is_what_follows_its_jump() {
        assert_eq!(target("-A A -p tcp -j DNAT --to-destination 10.0.0.2:80"), Some("DNAT"));
        assert_eq!(target("-A A -m comment --comment \"x -j Y\" -j Z"), Some("Z"));
        assert_eq!(target("-A A -p tcp"), None);
    }
}
