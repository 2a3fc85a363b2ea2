//! The flags of the daemon, as the reference plugin has them.

use std::path::PathBuf;
use std::time::Duration;

use super::SOCKET;
use super::client::Timing;

/// How the daemon is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Flags {
    pub(super) socket: PathBuf,
    pub(super) pidfile: Option<PathBuf>,
    pub(super) host_prefix: String,
    pub(super) broadcast: bool,
    pub(super) timing: Timing,
}

pub(super) const USAGE: &str = "flannel-cni dhcp daemon keeps the leases of the dhcp plugin.
  -socketpath PATH     where the plugin finds it (/run/cni/dhcp.sock)
  -pidfile PATH        write the process id there; an absolute path
  -hostprefix PATH     where the host's file system is, in front of the paths of sockets and namespaces
  -broadcast           have servers broadcast their answers
  -timeout TIME        how long a server may take to confirm what it offered (10s)
  -resendmax TIME      the longest pause before a message is sent again (62s)
  -resendtimeout TIME  how long to try to get an address (208s)
";

impl Flags {
    /// Reads the words behind `daemon`.
    pub(super) fn parse(words: impl IntoIterator<Item = String>) -> Result<Flags, String> {
        let timing = Timing {
            answer: Duration::from_secs(10),
            longest_pause: Duration::from_secs(62),
            patience: Duration::from_secs(208),
        };
        let (host_prefix, broadcast) = (String::new(), false);
        let mut flags =
            Flags { socket: PathBuf::from(SOCKET), pidfile: None, host_prefix, broadcast, timing };
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let flag = word.strip_prefix("--").or_else(|| word.strip_prefix('-'));
            let flag = flag.ok_or_else(|| format!("{word:?} is no flag"))?;
            let (name, given) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            if name == "broadcast" {
                flags.broadcast = match given.as_deref() {
                    None | Some("true" | "1") => true,
                    Some("false" | "0") => false,
                    Some(other) => return Err(format!("-broadcast={other}: want true or false")),
                };
                continue;
            }
            let known = ["socketpath", "pidfile", "hostprefix", "timeout", "resendmax", "resendtimeout"]
                .contains(&name);
            if !known {
                return Err(format!("there is no flag -{name}"));
            }
            let value = given.or_else(|| words.next()).ok_or_else(|| format!("-{name} wants a value"))?;
            let time = || {
                duration(&value).ok_or_else(|| format!("-{name} {value}: want a time such as 10s or 1m30s"))
            };
            match name {
                "socketpath" if !value.is_empty() => flags.socket = PathBuf::from(value),
                "pidfile" => {
                    flags.pidfile = Some(PathBuf::from(value)).filter(|path| !path.as_os_str().is_empty())
                }
                "hostprefix" => flags.host_prefix = value,
                "timeout" => flags.timing.answer = time()?,
                "resendmax" => flags.timing.longest_pause = time()?,
                "resendtimeout" => flags.timing.patience = time()?,
                _ => {}
            }
        }
        match &flags.pidfile {
            Some(path) if !path.is_absolute() => {
                Err(format!("-pidfile {}: want an absolute path", path.display()))
            }
            _ => Ok(flags),
        }
    }
}

/// A time as Go programs take it: whole numbers with units, one after the other.
fn duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, behind) = rest.split_at(digits);
        let unit = behind.find(|c: char| c.is_ascii_digit()).unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(unit);
        let milliseconds = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        let number: u64 = number.parse().ok()?;
        total = total.checked_add(Duration::from_millis(number.checked_mul(milliseconds)?))?;
        rest = behind;
    }
    // A year is more than anybody waits, and can be added to any time.
    (!text.is_empty() && total < Duration::from_secs(365 * 86400)).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Flags, String> {
        Flags::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn flags_are_taken_as_go_programs_take_them() {
        let flags =
            parse("-socketpath /a --pidfile=/b -broadcast -timeout 1m30s -resendtimeout=500ms").unwrap();
        assert_eq!((flags.socket, flags.pidfile), (PathBuf::from("/a"), Some(PathBuf::from("/b"))));
        assert!(flags.broadcast);
        assert_eq!(flags.timing.answer, Duration::from_secs(90));
        assert_eq!(flags.timing.patience, Duration::from_millis(500));
        assert_eq!(parse("").unwrap().socket, PathBuf::from("/run/cni/dhcp.sock"));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (line, expected) in [
            ("-nope", "there is no flag -nope"),
            ("-timeout", "-timeout wants a value"),
            ("-timeout 10", "-timeout 10: want a time such as 10s or 1m30s"),
            ("-pidfile x", "-pidfile x: want an absolute path"),
            ("start", "\"start\" is no flag"),
        ] {
            assert_eq!(parse(line).unwrap_err(), expected);
        }
    }
}
