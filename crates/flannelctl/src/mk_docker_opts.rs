//! `flannelctl mk-docker-opts`: dockerd's options from flanneld's subnet.env.
//!
//! Compatibility: flags, files, variables, the order of options, exit codes and the blank that every
//! combined option begins with are those of the original's `mk-docker-opts.sh`, units and scripts being
//! written for it.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;
use kernel::netlink::{Protocol, Socket};
use kernel::route::{self, FoundTarget};

use crate::{output, replace};

const USAGE: &str = "\
[-f FLANNEL-ENV-FILE] [-d DOCKER-ENV-FILE] [-i] [-c] [-m] [-k COMBINED-KEY]

Write dockerd's options, made of flanneld's file, as variables to a file.

  -f FILE  flanneld's file (/run/flannel/subnet.env)
  -d FILE  the file to write (/run/docker_opts.env)
  -i       write each option as a variable of its own, DOCKER_OPT_MTU=\"--mtu=1450\" for example
  -c       write all options in one variable; without -i and -c: both
  -k KEY   the name of that variable (DOCKER_OPTS)
  -m       leave --ip-masq out";

/// What the flags ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wishes {
    flannel_file: PathBuf,
    docker_file: PathBuf,
    individual: bool,
    combined: bool,
    key: String,
    masquerade: bool,
}

/// Shell variables: those of the environment, and over them those of flanneld's file.
type Variables = BTreeMap<String, String>;

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let Some(wishes) = Wishes::parse(arguments) else { bail!("usage: flannelctl mk-docker-opts {USAGE}") };
    let mut variables: Variables = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    match fs::read_to_string(&wishes.flannel_file) {
        Ok(text) => variables.extend(read(&text)),
        // Compatibility: dockerd starts without flannel's options then.
        Err(error) if error.kind() == ErrorKind::NotFound => output::complain(&format!(
            "there is no {}: flanneld writes it once it has a subnet",
            wishes.flannel_file.display()
        )),
        Err(error) => {
            return Err(error).with_context(|| format!("reading {}", wishes.flannel_file.display()));
        }
    }
    let text = render(&wishes, &mut variables)?;
    write(&wishes.docker_file, &text)?;
    match variables.get("FLANNEL_SUBNET").filter(|subnet| !subnet.is_empty()) {
        Some(subnet) => refuse_foreign_route(subnet),
        None => Ok(()),
    }
}

impl Wishes {
    /// Reads the flags as getopts(1) does; none if they are wrong. What follows the first word that is
    /// no flag is ignored.
    fn parse(arguments: &[String]) -> Option<Wishes> {
        let mut wishes = Wishes {
            flannel_file: "/run/flannel/subnet.env".into(),
            docker_file: "/run/docker_opts.env".into(),
            individual: false,
            combined: false,
            key: "DOCKER_OPTS".to_owned(),
            masquerade: true,
        };
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            let Some(flags) = word.strip_prefix('-').filter(|flags| !flags.is_empty() && *flags != "-")
            else {
                break;
            };
            let mut flags = flags.chars();
            while let Some(flag) = flags.next() {
                match flag {
                    'i' => wishes.individual = true,
                    'c' => wishes.combined = true,
                    'm' => wishes.masquerade = false,
                    'f' | 'd' | 'k' => {
                        let rest = flags.as_str().to_owned();
                        flags = "".chars();
                        let value = if rest.is_empty() { words.next()?.clone() } else { rest };
                        match flag {
                            'f' => wishes.flannel_file = value.into(),
                            'd' => wishes.docker_file = value.into(),
                            _ => wishes.key = value,
                        }
                    }
                    _ => return None,
                }
            }
        }
        if !wishes.individual && !wishes.combined {
            (wishes.individual, wishes.combined) = (true, true);
        }
        Some(wishes)
    }
}

/// The assignments of a file that a shell could source: one per line, the value bare or quoted.
fn read(text: &str) -> Variables {
    let assignment = |line: &str| {
        let line = line.trim();
        let line = line.strip_prefix("export ").unwrap_or(line);
        let (name, value) = line.split_once('=')?;
        let quoted = ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
        is_name(name).then(|| (name.to_owned(), quoted.unwrap_or(value).to_owned()))
    };
    text.lines().filter_map(assignment).collect()
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// The lines of the file for dockerd.
fn render(wishes: &Wishes, variables: &mut Variables) -> Result<String> {
    ensure!(
        is_name(&wishes.key),
        "-k {:?}: want the name of a variable, DOCKER_OPTS for example",
        wishes.key
    );
    let value = |name: &str| variables.get(name).filter(|value| !value.is_empty()).cloned();
    let mut options: Vec<(&str, String)> = Vec::new();
    options.extend(value("FLANNEL_SUBNET").map(|subnet| ("DOCKER_OPT_BIP", format!("--bip={subnet}"))));
    options.extend(value("FLANNEL_MTU").map(|mtu| ("DOCKER_OPT_MTU", format!("--mtu={mtu}"))));
    if let Some(masquerade) = value("FLANNEL_IPMASQ").filter(|_| wishes.masquerade) {
        // Where flanneld masquerades, dockerd need not.
        let docker = match masquerade.as_str() {
            "true" => "false",
            "false" => "true",
            _ => bail!("Invalid value of FLANNEL_IPMASQ: {masquerade}"),
        };
        options.push(("DOCKER_OPT_IPMASQ", format!("--ip-masq={docker}")));
    }
    variables.extend(options.into_iter().map(|(name, value)| (name.to_owned(), value)));

    let mut text = String::new();
    let mut all = match variables.get(&wishes.key).filter(|given| !given.is_empty()) {
        Some(given) => format!("{given} "),
        None => String::new(),
    };
    // Also those that were in the environment already.
    for (name, option) in variables.iter().filter(|(name, _)| name.contains("DOCKER_OPT_")) {
        if wishes.individual {
            text.push_str(&format!("{name}=\"{option}\"\n"));
        }
        all.push_str(&format!(" {option}"));
    }
    if wishes.combined {
        text.push_str(&format!("{}=\"{all}\"\n", wishes.key));
    }
    Ok(text)
}

/// Replaces a file, and writes into what is none: `/dev/stdout`, a pipe, a link.
fn write(path: &Path, text: &str) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(there) if !there.is_file() => {
            fs::write(path, text).with_context(|| format!("writing {}", path.display()))
        }
        _ => replace::file(path, 0o644, text.as_bytes()),
    }
}

/// A route to our own subnet by way of another machine would take every answer to a container away.
fn refuse_foreign_route(subnet: &str) -> Result<()> {
    let Ok(subnet) = subnet.parse::<IpNet>() else { return Ok(()) };
    let subnet = subnet.trunc();
    let routes = Socket::open(Protocol::Route)
        .map_err(anyhow::Error::from)
        .and_then(|mut socket| Ok(route::list(&mut socket)?))
        .context("looking for routes to the subnet")?;
    for route in routes.iter().filter(|route| route.destination == subnet) {
        let via: Option<IpAddr> = match route.target {
            FoundTarget::Via { gateway, .. } => Some(gateway),
            _ => None,
        };
        if let Some(via) = via {
            bail!("Your routing table already contains the subnet: {subnet} via {via}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str =
        "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n";

    fn wishes(flags: &[&str]) -> Option<Wishes> {
        Wishes::parse(&flags.iter().map(|flag| (*flag).to_owned()).collect::<Vec<_>>())
    }

    fn rendered(flags: &[&str], more: &str) -> Result<String> {
        render(&wishes(flags).unwrap(), &mut read(&format!("{SAMPLE}{more}")))
    }

    #[test]
    fn files_are_what_the_original_writes() {
        let individual = "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=true\"\nDOCKER_OPT_MTU=\"--mtu=1472\"\n";
        let combined = "DOCKER_OPTS=\" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n";
        assert_eq!(rendered(&[], "").unwrap(), format!("{individual}{combined}"));
        assert_eq!(rendered(&["-i"], "").unwrap(), individual);
        assert_eq!(rendered(&["-c"], "").unwrap(), combined);
        assert_eq!(rendered(&["-ic"], "").unwrap(), format!("{individual}{combined}"));
        assert_eq!(rendered(&["-cm"], "").unwrap(), "DOCKER_OPTS=\" --bip=10.1.74.1/24 --mtu=1472\"\n");
        assert_eq!(
            rendered(&["-c", "-kOPTS"], "OPTS=\"-H x\"").unwrap(),
            "OPTS=\"-H x  --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n"
        );
        assert_eq!(
            rendered(&["-cm"], "DOCKER_OPT_DNS=--dns=10.1.0.10").unwrap(),
            "DOCKER_OPTS=\" --bip=10.1.74.1/24 --dns=10.1.0.10 --mtu=1472\"\n"
        );
    }

    #[test]
    fn a_wrong_masquerade_is_refused_unless_it_is_left_out() {
        let error = rendered(&[], "FLANNEL_IPMASQ=maybe").unwrap_err();
        assert_eq!(error.to_string(), "Invalid value of FLANNEL_IPMASQ: maybe");
        assert!(rendered(&["-m"], "FLANNEL_IPMASQ=maybe").is_ok());
    }

    #[test]
    fn flags_are_read_as_getopts_reads_them() {
        let all = wishes(&["-imf", "a", "-db", "-k", "K", "rest", "-c"]).unwrap();
        assert_eq!((all.flannel_file, all.docker_file), ("a".into(), "b".into()));
        assert_eq!(
            (all.key.as_str(), all.individual, all.combined, all.masquerade),
            ("K", true, false, false)
        );
        for wrong in [&["-h"][..], &["-?"], &["-x"], &["-f"], &["--help"]] {
            assert_eq!(wishes(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn without_flanneld_there_are_no_options() {
        let text = render(&wishes(&["-c"]).unwrap(), &mut Variables::new()).unwrap();
        assert_eq!(text, "DOCKER_OPTS=\"\"\n");
    }
}
