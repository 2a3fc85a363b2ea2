//! The kernel settings that `tuning` may change: those of the network, and if the node's administrator
//! wrote a list, those on the list.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use cni::Error;
use cni::json::{DecodeError, Object};
use regex_lite::Regex;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::files::go_error;

/// One regular expression per line; a setting has to match one of them.
const ALLOW_LIST: &str = "/etc/cni/tuning/allowlist.conf";

/// `sysctl` of the configuration: names and values.
pub(super) fn read(object: &Object<'_>) -> Result<Vec<(String, String)>, DecodeError> {
    let Some(sysctls) = object.object("sysctl")? else { return Ok(Vec::new()) };
    let pair = |name: &String| {
        let value = sysctls.string(name)?.unwrap_or_default();
        Ok((name.clone(), value.to_owned()))
    };
    sysctls.members().keys().map(pair).collect()
}

/// Where a setting is below `/proc/sys`. `IFNAME` in its name stands for the interface.
pub(super) fn path(name: &str, ifname: &str) -> Result<String, Error> {
    let path = name.replace('.', "/").replacen("IFNAME", ifname, 1);
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    // The interface's own name may have dots, but is not "..".
    if parts.first() == Some(&"net") && parts.len() > 1 && !parts.contains(&"..") {
        return Ok(parts.join("/"));
    }
    Err(Error::internal(format!("invalid net sysctl key: {path:?}"))
        .details("only settings of the network can be changed: names that begin with \"net.\""))
}

/// Fails if the administrator's list leaves out one of these.
pub(super) fn check_allowed<'a>(names: impl Iterator<Item = &'a String>) -> Result<(), Error> {
    let path = Path::new(ALLOW_LIST);
    match fs::read(path) {
        Ok(list) => check_list(&String::from_utf8_lossy(&list), names),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::internal(go_error("open", path, &error))),
    }
}

fn check_list<'a>(list: &str, names: impl Iterator<Item = &'a String>) -> Result<(), Error> {
    let lines: Vec<&str> = list.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let compiled: Vec<Regex> = lines
        .iter()
        .map(|line| {
            Regex::new(line).map_err(|error| {
                Error::internal(format!("{ALLOW_LIST}: {line:?} is no regular expression: {error}"))
            })
        })
        .collect::<Result<_, _>>()?;
    for name in names {
        if !compiled.iter().any(|expression| expression.is_match(name)) {
            return Err(Error::internal(format!(
                "Sysctl {name} is not allowed. Only the following sysctls are allowed: [{}]",
                lines.join(" ")
            ))
            .details(format!("the node's administrator lists them in {ALLOW_LIST}")));
        }
    }
    Ok(())
}

/// Fails if the configuration says something about one setting twice: which one would count is nothing to
/// guess about.
pub(super) fn refuse_duplicates(config: &[u8]) -> Result<(), Error> {
    #[derive(Deserialize)]
    struct Config {
        #[serde(default)]
        sysctl: Names,
    }
    #[derive(Default)]
    struct Names {
        has_duplicates: bool,
    }
    impl<'de> Deserialize<'de> for Names {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Names, D::Error> {
            deserializer.deserialize_map(Names::default())
        }
    }
    impl<'de> Visitor<'de> for Names {
        type Value = Names;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Names, A::Error> {
            let mut names = BTreeSet::new();
            while let Some((name, _)) = map.next_entry::<String, IgnoredAny>()? {
                self.has_duplicates |= !names.insert(name);
            }
            Ok(self)
        }
    }
    // What cannot be read like this is refused by others, with better words.
    match serde_json::from_slice::<Config>(config) {
        Ok(config) if config.sysctl.has_duplicates => {
            Err(Error::internal("duplicated sysctl keys are not allowed"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_one_of_the_network_and_may_name_the_interface() {
        assert_eq!(path("net.ipv4.conf.IFNAME.arp_filter", "eth0").unwrap(), "net/ipv4/conf/eth0/arp_filter");
        assert_eq!(path("net/core/somaxconn", "eth0").unwrap(), "net/core/somaxconn");
        assert_eq!(path("net.ipv4.conf.IFNAME.a", "eth0.5").unwrap(), "net/ipv4/conf/eth0.5/a");
        for name in ["kernel.hostname", "net", "", "../etc/passwd", "/etc/passwd"] {
            let error = path(name, "eth0").unwrap_err().msg;
            assert!(error.starts_with("invalid net sysctl key: "), "{error}");
        }
    }

    #[test]
    fn a_list_allows_what_one_of_its_expressions_is_found_in() {
        let list = "^net.core.*$\n\n  ^net\\.ipv4\\.conf\\.[a-zA-Z]+\\.arp_filter$  \n";
        let check = |name: &str| check_list(list, [name.to_owned()].iter()).map_err(|error| error.msg);
        assert_eq!(check("net.core.somaxconn"), Ok(()));
        assert_eq!(check("net.ipv4.conf.IFNAME.arp_filter"), Ok(()));
        assert_eq!(
            check("net.ipv4.ip_forward").unwrap_err(),
            "Sysctl net.ipv4.ip_forward is not allowed. Only the following sysctls are allowed: \
             [^net.core.*$ ^net\\.ipv4\\.conf\\.[a-zA-Z]+\\.arp_filter$]"
        );
        assert!(check_list("(", ["net.a".to_owned()].iter()).is_err());
    }

    #[test]
    fn a_setting_that_is_said_twice_is_refused() {
        let error =
            refuse_duplicates(br#"{"sysctl": {"net.a": "1", "net.b": "1", "net.a": "2"}}"#).unwrap_err();
        assert_eq!(error.msg, "duplicated sysctl keys are not allowed");
        for fine in [r#"{"sysctl": {"net.a": "1"}}"#, r#"{"sysctl": null}"#, "{}", "["] {
            assert_eq!(refuse_duplicates(fine.as_bytes()), Ok(()));
        }
    }
}
