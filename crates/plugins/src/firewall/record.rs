//! Which addresses were let through for whom, a file per attachment.
//!
//! The rules do not tell: those of the reference plugin have nothing but the address, and either program
//! must find the other's. GC needs to know. The files are below `/run`, since the rules end with a reboot
//! too; without its file an attachment's rules are taken away by DEL only.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use cni::{AddResult, Attachment, Error, IpConfig, Request, Version};

use crate::files::{self, go_error};

/// Between network, container ID and interface; none of the first two can contain it.
const SEPARATOR: char = '@';

/// The records of a host.
#[derive(Debug, Clone)]
pub(super) struct Records<'a> {
    directory: &'a Path,
    network: &'a str,
}

impl<'a> Records<'a> {
    /// Those in a directory, and the network of a request.
    pub(super) fn new(directory: &'a Path, request: &'a Request) -> Records<'a> {
        Records { directory, network: request.config.name() }
    }

    /// Notes what is going to be let through.
    pub(super) fn save(&self, request: &Request, result: &AddResult) -> Result<(), Error> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(self.directory);
        made.map_err(|error| Error::internal(go_error("mkdir", self.directory, &error)))?;
        let path = self.path(&request.environment.container_id, &request.environment.ifname);
        let lines: String = result.ips.iter().map(|ip| format!("{}\n", ip.address.addr())).collect();
        files::replace(&path, &lines).map_err(|error| Error::internal(go_error("open", &path, &error)))
    }

    /// What was let through for an attachment; nothing if that is not known.
    pub(super) fn of(&self, request: &Request) -> AddResult {
        let path = self.path(&request.environment.container_id, &request.environment.ifname);
        result_of(&read(&path))
    }

    /// Forgets an attachment.
    pub(super) fn remove(&self, request: &Request) -> Result<(), Error> {
        remove(&self.path(&request.environment.container_id, &request.environment.ifname))
    }

    /// The records of this network's attachments that are not listed, each with the addresses that no other
    /// attachment of the host has by now.
    pub(super) fn stale(&self, valid: &[Attachment]) -> Result<Vec<(PathBuf, AddResult)>, Error> {
        let kept: Vec<PathBuf> = valid.iter().map(|a| self.path(&a.container_id, &a.ifname)).collect();
        let of_network = format!("{}{SEPARATOR}", self.network);
        let (stale, others): (Vec<PathBuf>, Vec<PathBuf>) = self.all()?.into_iter().partition(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(&of_network) && !kept.contains(path)
        });
        let taken: BTreeSet<IpAddr> = others.iter().flat_map(|path| read(path)).collect();
        let with_addresses = |path: PathBuf| {
            let free: BTreeSet<IpAddr> = read(&path).difference(&taken).copied().collect();
            (path, result_of(&free))
        };
        Ok(stale.into_iter().map(with_addresses).collect())
    }

    fn all(&self) -> Result<Vec<PathBuf>, Error> {
        match fs::read_dir(self.directory) {
            Ok(entries) => Ok(entries.flatten().map(|entry| entry.path()).collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(Error::internal(go_error("open", self.directory, &error))),
        }
    }

    fn path(&self, container_id: &str, ifname: &str) -> PathBuf {
        self.directory.join(format!("{}{SEPARATOR}{container_id}{SEPARATOR}{ifname}", self.network))
    }
}

/// Removes a record, if it is there.
pub(super) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::internal(go_error("remove", path, &error)))
        }
        _ => Ok(()),
    }
}

/// A record that cannot be read has no addresses: nothing is taken away on a guess.
fn read(path: &Path) -> BTreeSet<IpAddr> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

fn result_of(addresses: &BTreeSet<IpAddr>) -> AddResult {
    let ip = |address: &IpAddr| IpConfig { interface: None, address: (*address).into(), gateway: None };
    AddResult { ips: addresses.iter().map(ip).collect(), ..AddResult::empty(Version::CURRENT) }
}

#[cfg(test)]
mod tests {
    use cni::{Config, Environment};

    use super::*;

    #[test]
    fn an_address_that_another_container_has_got_meanwhile_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let request = |network: &str, id: &str| Request {
            environment: Environment {
                container_id: id.to_owned(),
                ifname: "eth0".to_owned(),
                ..Environment::default()
            },
            config: Config::parse(format!(r#"{{"name": "{network}"}}"#).into_bytes()).unwrap(),
            version: Version::CURRENT,
        };
        let save = |network, id, addresses: &[&str]| {
            let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
            let request = request(network, id);
            Records::new(directory.path(), &request).save(&request, &result_of(&addresses)).unwrap();
        };
        save("net", "gone", &["10.0.0.2", "fd00::2"]);
        save("net", "kept", &["10.0.0.3"]);
        save("other", "new", &["10.0.0.2"]);
        let collect = request("net", "");
        let valid = [Attachment { container_id: "kept".to_owned(), ifname: "eth0".to_owned() }];
        let stale = Records::new(directory.path(), &collect).stale(&valid).unwrap();
        let [(path, free)] = stale.as_slice() else { panic!("{stale:?}") };
        assert_eq!(path.file_name().unwrap(), "net@gone@eth0");
        let free: Vec<String> = free.ips.iter().map(|ip| ip.address.to_string()).collect();
        assert_eq!(free, ["fd00::2/128"]);
    }
}
