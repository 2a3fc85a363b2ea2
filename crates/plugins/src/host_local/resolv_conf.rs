//! Reading a `resolv.conf`.

use std::fs;
use std::path::Path;

use cni::{Dns, Error};

/// The name resolution that a file describes; see resolv.conf(5).
pub(super) fn read(path: &Path) -> Result<Dns, Error> {
    let bytes = fs::read(path).map_err(|error| {
        Error::internal(crate::files::go_error("open", path, &error))
            .details("the file is named by ipam.resolvConf")
    })?;
    Ok(parse(&String::from_utf8_lossy(&bytes)))
}

fn parse(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines().map(str::trim) {
        if line.starts_with(['#', ';']) {
            continue;
        }
        let mut words = line.split_whitespace();
        let (keyword, mut values) = (words.next(), words.map(str::to_owned).peekable());
        if values.peek().is_none() {
            continue;
        }
        match keyword {
            Some("nameserver") => dns.nameservers.extend(values.next()),
            Some("domain") => dns.domain = values.next().unwrap_or_default(),
            Some("search") => dns.search.extend(values),
            Some("options") => dns.options.extend(values),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keywords_are_read_and_everything_else_is_skipped() {
        let text = "; a\n#b\nnameserver 192.0.2.1\nnameserver\n nameserver 192.0.2.2 x\nsortlist 1\n\
                    domain a.example\ndomain b.example\nsearch one two\nsearch three\noptions ndots:5 rotate\n";
        let expected = Dns {
            nameservers: vec!["192.0.2.1".into(), "192.0.2.2".into()],
            domain: "b.example".into(),
            search: vec!["one".into(), "two".into(), "three".into()],
            options: vec!["ndots:5".into(), "rotate".into()],
        };
        assert_eq!(parse(text), expected);
    }
}
