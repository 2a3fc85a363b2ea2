//! From words and variables to [`Flags`].

use std::collections::BTreeSet;

use super::table::{Flag, Kind};
use super::{Flags, TABLE};

/// What was typed, and what is worth a word about it.
#[derive(Debug)]
pub struct Parsed {
    /// The flags.
    pub flags: Flags,
    /// The flags that were given, `name=value`, secrets redacted.
    pub given: Vec<String>,
    /// Variables that could not be read, for the log.
    pub passed_over: Vec<String>,
    /// Words after the flags, which mean nothing.
    pub ignored: Vec<String>,
}

/// Why the flags cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// Help was asked for.
    #[error("help was asked for")]
    Help,
    /// A flag is unknown, lacks its value, or has a wrong one.
    #[error("{0}")]
    Bad(String),
}

/// Reads the command line, without the program's name, then the environment.
pub fn parse(
    arguments: impl IntoIterator<Item = String>,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Parsed, Unusable> {
    let mut parsed =
        Parsed { flags: defaults(), given: Vec::new(), passed_over: Vec::new(), ignored: Vec::new() };
    let mut words = arguments.into_iter();
    let mut typed = BTreeSet::new();
    while let Some(word) = words.next() {
        if word == "--" {
            break;
        }
        let Some(text) = word.strip_prefix('-').filter(|text| !text.is_empty()) else {
            parsed.ignored.push(word);
            break;
        };
        let text = text.strip_prefix('-').unwrap_or(text);
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        if name.is_empty() || name.starts_with('-') {
            return Err(Unusable::Bad(format!("bad flag syntax: {word}")));
        }
        let flag = find(name)?;
        let value = match value {
            Some(value) => value,
            None if flag.is_switch() => "true".to_owned(),
            None => words.next().ok_or_else(|| Unusable::Bad(format!("flag needs an argument: -{name}")))?,
        };
        flag.set(&mut parsed.flags, &value).map_err(|want| {
            Unusable::Bad(format!("invalid value {:?} for flag -{name}: {want}", flag.shown(&value)))
        })?;
        parsed.given.push(format!("{name}={}", flag.shown(&value)));
        typed.insert(flag.name);
    }
    parsed.ignored.extend(words);

    // Compatibility: `FLANNELD_VERSION` has no effect, since a daemon that prints its version and
    // leaves because of a stray variable helps nobody.
    for flag in TABLE.iter().filter(|flag| !typed.contains(flag.name) && flag.name != "version") {
        let Some(value) = variable(&flag.variable()).filter(|value| !value.is_empty()) else { continue };
        match flag.set(&mut parsed.flags, &value) {
            Ok(()) => parsed.given.push(format!("{}={} (environment)", flag.name, flag.shown(&value))),
            Err(want) => parsed.passed_over.push(format!("{}={value:?}: {want}", flag.variable())),
        }
    }
    Ok(parsed)
}

/// The usage text: every flag with its default, as Go prints them and in its order.
pub fn usage(program: &str) -> String {
    let mut text = format!("Usage: {program} [OPTION]...\n");
    let mut table: Vec<_> = TABLE.iter().collect();
    table.sort_by_key(|flag| flag.name);
    for flag in table {
        let takes = match flag.kind {
            // Compatibility: these have types of the log library's own.
            _ if matches!(flag.name, "v" | "vmodule" | "log_backtrace_at") => " value",
            Kind::Switch(_) => "",
            Kind::Number(_) => " int",
            Kind::List(_) => " value",
            Kind::Text(_) | Kind::Secret(_) => " string",
        };
        let default = match (flag.kind, flag.default) {
            (_, "" | "false" | "0") => String::new(),
            (Kind::Text(_), default) => format!(" (default {default:?})"),
            (_, default) => format!(" (default {default})"),
        };
        text += &format!("  -{}{takes}\n    \t{}{default}\n", flag.name, flag.doc.replace('`', "\""));
    }
    text + "Each can be given in the environment instead: FLANNELD_ETCD_ENDPOINTS for -etcd-endpoints.\n"
}

fn defaults() -> Flags {
    let mut flags = Flags::default();
    for flag in TABLE.iter().filter(|flag| !flag.default.is_empty()) {
        flag.set(&mut flags, flag.default).expect("a test reads every default in the table");
    }
    flags
}

fn find(name: &str) -> Result<&'static Flag, Unusable> {
    if let Some(flag) = TABLE.iter().find(|flag| flag.name == name) {
        return Ok(flag);
    }
    if name == "h" || name == "help" {
        return Err(Unusable::Help);
    }
    let nearest = TABLE.iter().map(|flag| (strsim::damerau_levenshtein(flag.name, name), flag.name)).min();
    let hint = match nearest {
        Some((distance, nearest)) if distance <= 1 + name.len() / 4 => format!(" (did you mean -{nearest}?)"),
        _ => String::new(),
    };
    Err(Unusable::Bad(format!("flag provided but not defined: -{name}{hint}")))
}
