//! [`Environment`]: what a runtime asks for, in environment variables.

use crate::error::{Error, code};

/// What a plugin is asked to do, `CNI_COMMAND`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Attach a container.
    Add,
    /// Say whether an attachment is as it was made.
    Check,
    /// Detach a container.
    Del,
    /// Remove what belongs to no attachment.
    Gc,
    /// Say whether ADD would work.
    Status,
    /// Say which versions are spoken.
    Version,
}

/// The variables of one call.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Environment {
    /// `CNI_COMMAND` as given; [`Self::verb`] knows which ones exist.
    pub command: String,
    /// `CNI_CONTAINERID`
    pub container_id: String,
    /// `CNI_NETNS`, the path of the container's network namespace.
    pub netns: String,
    /// `CNI_IFNAME`, the interface to make inside it.
    pub ifname: String,
    /// `CNI_ARGS`
    pub args: String,
    /// `CNI_PATH`, where plugins are looked for, separated by `:`.
    pub path: String,
    /// `CNI_NETNS_OVERRIDE`: the container may live in the plugin's own namespace.
    pub netns_override: bool,
}

/// A variable, the verbs that cannot do without it, and what its value must be like.
type Variable<'a> = (&'static str, &'a str, bool, fn(&str) -> Result<(), Error>);

impl Verb {
    /// The value of `CNI_COMMAND`.
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Add => "ADD",
            Verb::Check => "CHECK",
            Verb::Del => "DEL",
            Verb::Gc => "GC",
            Verb::Status => "STATUS",
            Verb::Version => "VERSION",
        }
    }

    fn parse(text: &str) -> Option<Verb> {
        [Verb::Add, Verb::Check, Verb::Del, Verb::Gc, Verb::Status, Verb::Version]
            .into_iter()
            .find(|verb| verb.as_str() == text)
    }
}

impl Environment {
    /// Reads the variables with `get`, which returns the empty text for one that is not set.
    pub fn read(get: impl Fn(&str) -> String) -> Environment {
        let over = get("CNI_NETNS_OVERRIDE");
        Environment {
            command: get("CNI_COMMAND"),
            container_id: get("CNI_CONTAINERID"),
            netns: get("CNI_NETNS"),
            ifname: get("CNI_IFNAME"),
            args: get("CNI_ARGS"),
            path: get("CNI_PATH"),
            netns_override: over == "1" || over.eq_ignore_ascii_case("true"),
        }
    }

    /// What is asked for; an error for a verb that does not exist.
    pub fn verb(&self) -> Result<Verb, Error> {
        Verb::parse(&self.command).ok_or_else(|| {
            Error::new(code::INVALID_ENVIRONMENT, format!("unknown CNI_COMMAND: {}", self.command))
        })
    }

    /// Checks that what the verb needs is there and well formed.
    ///
    /// An unknown verb needs nothing: it is refused later, by [`Self::verb`].
    pub fn validate(&self) -> Result<(), Error> {
        let verb = Verb::parse(&self.command);
        let attaching = matches!(verb, Some(Verb::Add | Verb::Check));
        let one = attaching || verb == Some(Verb::Del);
        let any: fn(&str) -> Result<(), Error> = |_| Ok(());
        let variables: [Variable<'_>; 5] = [
            ("CNI_COMMAND", &self.command, true, any),
            ("CNI_CONTAINERID", &self.container_id, one, valid_container_id),
            ("CNI_NETNS", &self.netns, attaching, any),
            ("CNI_IFNAME", &self.ifname, one, valid_interface_name),
            ("CNI_PATH", &self.path, verb.is_some_and(|verb| verb != Verb::Version), any),
        ];
        let mut missing = Vec::new();
        for (name, value, required, check) in variables {
            match (required, value) {
                (true, "") => missing.push(name),
                (true, value) => check(value)?,
                (false, _) => {}
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let text = format!("required env variables [{}] missing", missing.join(","));
        Err(Error::new(code::INVALID_ENVIRONMENT, text))
    }

    /// The variables for a plugin that this one calls with another verb.
    pub fn with_verb(&self, verb: Verb) -> Environment {
        Environment { command: verb.as_str().to_owned(), ..self.clone() }
    }

    /// Name and value of every variable.
    pub fn variables(&self) -> [(&'static str, &str); 7] {
        [
            ("CNI_COMMAND", &self.command),
            ("CNI_CONTAINERID", &self.container_id),
            ("CNI_NETNS", &self.netns),
            ("CNI_IFNAME", &self.ifname),
            ("CNI_ARGS", &self.args),
            ("CNI_PATH", &self.path),
            ("CNI_NETNS_OVERRIDE", if self.netns_override { "1" } else { "" }),
        ]
    }
}

/// Letters, digits, `_`, `.` and `-`, starting with a letter or a digit: container IDs and network names.
pub(crate) fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

fn valid_container_id(id: &str) -> Result<(), Error> {
    if is_identifier(id) {
        return Ok(());
    }
    Err(Error::new(code::INVALID_ENVIRONMENT, "invalid characters in containerID").details(id))
}

/// The rules of the kernel (`dev_valid_name`), in the words of the reference library.
fn valid_interface_name(name: &str) -> Result<(), Error> {
    let refuse = |msg: &str| Err(Error::new(code::INVALID_ENVIRONMENT, msg));
    if name.len() > 15 {
        return refuse("interface name is too long")
            .map_err(|e| e.details("interface name should be less than 16 characters"));
    }
    if name == "." || name == ".." {
        return refuse("interface name is . or ..");
    }
    if name.chars().any(|c| c == '/' || c == ':' || c.is_whitespace()) {
        return refuse("interface name contains / or : or whitespace characters");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add() -> Environment {
        Environment {
            command: "ADD".into(),
            container_id: "a1".into(),
            netns: "/run/netns/a".into(),
            ifname: "eth0".into(),
            path: "/opt/cni/bin".into(),
            ..Environment::default()
        }
    }

    #[test]
    fn missing_variables_are_all_named_at_once() {
        let error = Environment { command: "ADD".into(), ..Environment::default() }.validate().unwrap_err();
        assert_eq!(error.code, 4);
        assert_eq!(
            error.msg,
            "required env variables [CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH] missing"
        );
        let error = Environment::default().validate().unwrap_err();
        assert_eq!(error.msg, "required env variables [CNI_COMMAND] missing");
        assert_eq!(Environment { netns: String::new(), command: "DEL".into(), ..add() }.validate(), Ok(()));
        let version = Environment { command: "VERSION".into(), ..Environment::default() };
        assert_eq!(version.validate(), Ok(()), "versions are told to everybody");
    }

    #[test]
    fn malformed_values_are_refused_only_where_they_are_needed() {
        for (wrong, msg) in [
            (Environment { container_id: "../x".into(), ..add() }, "invalid characters in containerID"),
            (Environment { ifname: "a".repeat(16), ..add() }, "interface name is too long"),
            (Environment { ifname: "..".into(), ..add() }, "interface name is . or .."),
            (
                Environment { ifname: "a b".into(), ..add() },
                "interface name contains / or : or whitespace characters",
            ),
        ] {
            assert_eq!(wrong.validate().unwrap_err().msg, msg);
            assert_eq!(Environment { command: "GC".into(), ..wrong }.validate(), Ok(()));
        }
    }

    #[test]
    fn an_unknown_verb_is_refused_by_name() {
        let odd = Environment { command: "NOPE".into(), ..Environment::default() };
        assert_eq!(odd.validate(), Ok(()));
        assert_eq!(odd.verb().unwrap_err().msg, "unknown CNI_COMMAND: NOPE");
    }
}
