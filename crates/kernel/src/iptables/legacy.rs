//! The tables of iptables-legacy, by the host's own programs.
//!
//! Writing them means handing the kernel a whole new table while others do the same; only the
//! programs know the lock that keeps them apart. They are run only where the kernel lists such a
//! table in `/proc/net/ip_tables_names`: asking iptables-legacy itself would make it. A container
//! without them runs those of the host around it ([`Program::of_host`]).

use std::collections::{BTreeMap, BTreeSet};

use fabric::dataplane::IpFamily;
use ipnet::IpNet;

use super::{Direction, FORWARD_COMMENT, Forward};
use crate::command::Program;
use crate::error::KernelError;

const FORWARD: &str = "FORWARD";

/// A table as `iptables-legacy-save` prints it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Legacy {
    family: IpFamily,
    name: String,
    /// Chains, the built-in ones with their policy.
    policies: BTreeMap<String, Option<String>>,
    rules: Vec<Rule>,
}

/// A rule as `iptables-legacy-save` prints it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    /// The chain it is in.
    pub(crate) chain: String,
    /// What follows the chain, as printed.
    pub(crate) text: String,
    words: Vec<String>,
}

/// How a family's programs are called.
fn prefix(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "iptables",
        IpFamily::V6 => "ip6tables",
    }
}

/// Whether the kernel has a table of iptables-legacy.
fn exists(family: IpFamily, table: &str) -> bool {
    // Of the calling thread's network namespace; the file is there only with the module.
    let path = match family {
        IpFamily::V4 => "/proc/thread-self/net/ip_tables_names",
        IpFamily::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    std::fs::read_to_string(path).is_ok_and(|names| names.lines().any(|name| name == table))
}

/// The program of iptables-legacy for `what` (`save` or `restore`): by its own name, or by the plain
/// one where that is not iptables-nft, as on distributions that have only the one or the other.
fn program(family: IpFamily, what: &str) -> Result<Program, KernelError> {
    let prefix = prefix(family);
    let own = format!("{prefix}-legacy-{what}");
    if let Some(own) = Program::of_host(&own) {
        return Ok(own);
    }
    let none = |why: String| KernelError::Other {
        doing: format!("see whether {prefix}-legacy drops forwarded packets"),
        why: format!("the kernel has tables of {prefix}-legacy, but {why}"),
    };
    let plain = format!("{prefix}-{what}");
    let (Some(version), Some(plain)) = (Program::of_host(prefix), Program::of_host(&plain)) else {
        return Err(none(format!(
            "there is no program {own} or {plain}: install it; in a container, mount the host's / at /host \
             and allow the capabilities NET_RAW and SYS_CHROOT"
        )));
    };
    if version.run(&["--version"], "")?.contains("nf_tables") {
        return Err(none(format!(
            "there is no program {own}: install it, or reboot to be rid of the tables"
        )));
    }
    Ok(plain)
}

impl Legacy {
    /// The table, if the kernel has it. Without a program to read it there is nothing to be done
    /// about it; that is said once.
    pub(crate) fn of(family: IpFamily, name: &str) -> Result<Option<Legacy>, KernelError> {
        static COMPLAINT: std::sync::Once = std::sync::Once::new();
        if !exists(family, name) {
            return Ok(None);
        }
        let save = match program(family, "save") {
            Ok(save) => save,
            Err(error) => {
                COMPLAINT.call_once(|| tracing::warn!(%error, "forwarded packets may be dropped"));
                return Ok(None);
            }
        };
        let saved = save.run(&["-t", name], "")?;
        Ok(Some(Legacy::parse(family, name, &saved)))
    }

    fn parse(family: IpFamily, name: &str, saved: &str) -> Legacy {
        let mut legacy =
            Legacy { family, name: name.to_owned(), policies: BTreeMap::new(), rules: Vec::new() };
        for line in saved.lines() {
            if let Some(chain) = line.strip_prefix(':') {
                let mut words = chain.split(' ');
                let name = words.next().unwrap_or_default().to_owned();
                let policy = words.next().filter(|policy| *policy != "-").map(str::to_owned);
                legacy.policies.insert(name, policy);
            } else if let Some((chain, text)) = line.strip_prefix("-A ").and_then(|rule| rule.split_once(' '))
            {
                legacy.rules.push(Rule {
                    chain: chain.to_owned(),
                    text: text.to_owned(),
                    words: words(text),
                });
            }
        }
        legacy
    }

    /// Whether there is a chain of this name.
    pub(crate) fn has_chain(&self, name: &str) -> bool {
        self.policies.contains_key(name)
    }

    /// The names of its chains.
    pub(super) fn chains(&self) -> impl Iterator<Item = &str> {
        self.policies.keys().map(String::as_str)
    }

    /// All rules, each chain's in order.
    pub(crate) fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Does what these lines of `iptables-restore` say, all or nothing.
    pub(crate) fn restore(&self, lines: &[String]) -> Result<(), KernelError> {
        if lines.is_empty() {
            return Ok(());
        }
        let input = format!("*{}\n{}\nCOMMIT\n", self.name, lines.join("\n"));
        program(self.family, "restore")?.run(&["--noflush", "--wait=5"], &input).map(drop)
    }

    fn of_chain(&self, chain: &str) -> impl Iterator<Item = &Rule> {
        self.rules.iter().filter(move |rule| rule.chain == chain)
    }

    /// The place of the first `FORWARD` rule that lets nothing pass; see [`super`].
    fn barrier(&self) -> Option<usize> {
        self.of_chain(FORWARD).position(|rule| {
            rule.is_unconditional()
                && match rule.target() {
                    Some("DROP" | "REJECT") => true,
                    Some(chain) if self.has_chain(chain) => {
                        self.of_chain(chain).all(Rule::is_unconditional)
                            && self
                                .of_chain(chain)
                                .any(|rule| matches!(rule.target(), Some("DROP" | "REJECT")))
                    }
                    _ => false,
                }
        })
    }

    /// The lines that add and remove accepting rules.
    fn lines(&self, accept: &[IpNet], retract: &[IpNet]) -> Vec<String> {
        let Forward { drops, effective, has_ours } = observe(self);
        let missing: Vec<(IpNet, Direction)> = accept
            .iter()
            .flat_map(|net| [(*net, Direction::From), (*net, Direction::To)])
            .filter(|rule| !effective.contains(rule) && (drops || has_ours))
            .collect();
        let barrier = self.barrier();
        let mut lines = Vec::new();
        let mut removed_before = 0;
        for (at, rule) in self.of_chain(FORWARD).enumerate() {
            let ours = rule.accepts();
            if ours.is_some_and(|ours| retract.contains(&ours.0) || missing.contains(&ours)) {
                removed_before += usize::from(barrier.is_some_and(|barrier| at < barrier));
                lines.push(format!("-D {FORWARD} {}", rule.text));
            }
        }
        lines.extend(missing.into_iter().enumerate().map(|(added, (net, direction))| {
            let place = match barrier {
                Some(barrier) => format!("-I {FORWARD} {}", barrier - removed_before + added + 1),
                None => format!("-A {FORWARD}"),
            };
            let side = if direction == Direction::From { "-s" } else { "-d" };
            format!("{place} {side} {net} -m comment --comment \"{FORWARD_COMMENT}\" -j ACCEPT")
        }));
        lines
    }
}

/// What the `FORWARD` chain of a filter table accepts.
pub(super) fn observe(legacy: &Legacy) -> Forward {
    let barrier = legacy.barrier();
    let ours = |live: usize| -> BTreeSet<_> {
        legacy.of_chain(FORWARD).take(live).filter_map(Rule::accepts).collect()
    };
    let policy = legacy.policies.get(FORWARD).cloned().flatten();
    Forward {
        drops: policy.as_deref() == Some("DROP") || barrier.is_some(),
        effective: ours(barrier.unwrap_or(usize::MAX)),
        has_ours: !ours(usize::MAX).is_empty(),
    }
}

/// Adds and removes accepting rules, where there is such a table.
pub(super) fn apply(family: IpFamily, accept: &[IpNet], retract: &[IpNet]) -> Result<(), KernelError> {
    let Some(legacy) = Legacy::of(family, "filter")? else { return Ok(()) };
    legacy.restore(&legacy.lines(accept, retract))
}

impl Rule {
    /// The chain or target that it jumps or goes to.
    pub(crate) fn target(&self) -> Option<&str> {
        let at = self.words.iter().position(|word| word == "-j" || word == "-g")?;
        self.words.get(at + 1).map(String::as_str)
    }

    /// Its comment.
    pub(crate) fn comment(&self) -> Option<&str> {
        let at = self.words.iter().position(|word| word == "--comment")?;
        self.words.get(at + 1).map(String::as_str)
    }

    /// Its conditions: what is in front of the target, without the comment.
    fn conditions(&self) -> Vec<&str> {
        let mut conditions = Vec::new();
        let mut words = self.words.iter().map(String::as_str).peekable();
        while let Some(word) = words.next() {
            match word {
                "-j" | "-g" => break,
                "-m" if words.peek() == Some(&"comment") => drop(words.next()),
                "--comment" => drop(words.next()),
                _ => conditions.push(word),
            }
        }
        conditions
    }

    fn is_unconditional(&self) -> bool {
        self.conditions().is_empty()
    }

    /// What it accepts, if it is one of ours.
    fn accepts(&self) -> Option<(IpNet, Direction)> {
        if self.comment() != Some(FORWARD_COMMENT) || self.target() != Some("ACCEPT") {
            return None;
        }
        match self.conditions()[..] {
            ["-s", net] => Some((net.parse().ok()?, Direction::From)),
            ["-d", net] => Some((net.parse().ok()?, Direction::To)),
            _ => None,
        }
    }
}

/// The words of a line as iptables quotes them: in double quotes if need be, with backslashes before
/// quotes and backslashes within (`xtables_save_string`).
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' if quoted => word.get_or_insert_default().extend(characters.next()),
            ' ' if !quoted => words.extend(word.take()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORACLE: &str = r#"# Generated by iptables-save v1.8.9 on Sat Nov 21 09:53:29 2026
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:SIDE - [0:0]
-A FORWARD -s 10.9.0.0/16 -m comment --comment "flanneld \"forward" -j ACCEPT
-A FORWARD -s 10.0.0.0/8 -m comment --comment "flanneld forward" -j ACCEPT
-A FORWARD -m comment --comment rest -j REJECT --reject-with icmp-host-prohibited
-A FORWARD -d 10.0.0.0/8 -m comment --comment "flanneld forward" -j ACCEPT
COMMIT
"#;

    fn net() -> IpNet {
        "10.0.0.0/8".parse().unwrap()
    }

    #[test]
    fn words_are_split_as_iptables_quotes_them() {
        let line = r#"-m comment --comment "a \"b\" \\ c" -j X --log-prefix """#;
        assert_eq!(
            words(line),
            ["-m", "comment", "--comment", r#"a "b" \ c"#, "-j", "X", "--log-prefix", ""]
        );
    }

    #[test]
    fn rules_behind_one_that_rejects_all_do_not_count_and_are_moved_before_it() {
        let legacy = Legacy::parse(IpFamily::V4, "filter", ORACLE);
        let forward = observe(&legacy);
        assert!(forward.drops && forward.accepted().is_empty());
        assert_eq!(
            legacy.lines(&[net()], &[]),
            [
                r#"-D FORWARD -d 10.0.0.0/8 -m comment --comment "flanneld forward" -j ACCEPT"#,
                r#"-I FORWARD 3 -d 10.0.0.0/8 -m comment --comment "flanneld forward" -j ACCEPT"#,
            ]
        );
    }

    #[test]
    fn only_rules_with_our_comment_are_retracted() {
        let legacy = Legacy::parse(IpFamily::V4, "filter", ORACLE);
        assert_eq!(legacy.lines(&[], &["10.9.0.0/16".parse().unwrap()]), [""; 0]);
        assert_eq!(legacy.lines(&[], &[net()]).len(), 2);
    }

    #[test]
    fn a_jump_bars_the_way_only_if_its_chain_does_nothing_but_drop() {
        let chain = |rules: &str| {
            let text = format!(":FORWARD ACCEPT [0:0]\n:SIDE - [0:0]\n-A FORWARD -j SIDE\n{rules}");
            observe(&Legacy::parse(IpFamily::V4, "filter", &text)).drops
        };
        assert!(chain("-A SIDE -j LOG --log-prefix x\n-A SIDE -j DROP\n"));
        assert!(!chain("-A SIDE -i eth0 -j ACCEPT\n-A SIDE -j DROP\n"));
        assert!(!chain(""));
    }
}
