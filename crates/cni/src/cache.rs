//! [`Cache`]: what a runtime remembers of every attachment, in the files of the reference library.
//!
//! `<directory>/results/<network>-<container>-<interface>` holds one JSON object of kind `cniCacheV1`:
//! the network list as base64, the container, and the result of ADD. Runtimes that are built on the
//! reference library and this one read each other's files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::json;

/// Where runtimes keep it.
pub const DIRECTORY: &str = "/var/lib/cni";

const KIND: &str = "cniCacheV1";

/// The remembered attachments of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    directory: PathBuf,
}

/// One remembered attachment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    kind: String,
    /// The container.
    #[serde(rename = "containerId")]
    pub container_id: String,
    /// The network list that it was attached with, as base64.
    #[serde(default)]
    config: Option<String>,
    /// The interface inside the container.
    #[serde(rename = "ifName")]
    pub ifname: String,
    /// The network.
    #[serde(rename = "networkName")]
    pub network: String,
    /// The path of the container's network namespace.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub netns: String,
    /// `CNI_ARGS`, in order.
    #[serde(
        rename = "cniArgs",
        default,
        deserialize_with = "or_empty",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub args: Vec<(String, String)>,
    /// What the runtime gave for each capability.
    #[serde(
        rename = "capabilityArgs",
        default,
        deserialize_with = "or_empty",
        skip_serializing_if = "Map::is_empty"
    )]
    pub capability_args: Map<String, Value>,
    /// The result of ADD.
    #[serde(default, deserialize_with = "or_empty", skip_serializing_if = "Map::is_empty")]
    pub result: Map<String, Value>,
}

/// The reference library writes `null` for what is empty in some versions.
fn or_empty<'de, T: Default + Deserialize<'de>, D: serde::Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(from).map(Option::unwrap_or_default)
}

impl Entry {
    /// A container's interface in a network, attached with a configuration.
    pub fn new(network: &str, container_id: &str, ifname: &str, config: &[u8]) -> Entry {
        Entry {
            kind: KIND.to_owned(),
            container_id: container_id.to_owned(),
            config: Some(BASE64.encode(config)),
            ifname: ifname.to_owned(),
            network: network.to_owned(),
            netns: String::new(),
            args: Vec::new(),
            capability_args: Map::new(),
            result: Map::new(),
        }
    }

    /// The network list that it was attached with.
    pub fn config(&self) -> Option<Vec<u8>> {
        BASE64.decode(self.config.as_ref()?).ok()
    }

    fn parse(bytes: &[u8]) -> Option<Entry> {
        serde_json::from_slice(bytes).ok().filter(|entry: &Entry| entry.kind == KIND)
    }
}

impl Default for Cache {
    fn default() -> Cache {
        Cache::at(DIRECTORY)
    }
}

impl Cache {
    /// The cache in a directory, usually [`DIRECTORY`].
    pub fn at(directory: impl Into<PathBuf>) -> Cache {
        Cache { directory: directory.into() }
    }

    /// Remembers an attachment, in place of what was remembered of it before.
    pub fn store(&self, entry: &Entry) -> io::Result<()> {
        let path = self.path(&entry.network, &entry.container_id, &entry.ifname);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(self.results())?;
        // Not among the results, where a runtime would take it for one after a crash.
        let temporary = self.directory.join(format!(".result-{}", std::process::id()));
        let _ = fs::remove_file(&temporary);
        let written = write_new(&temporary, json::compact(entry).as_bytes())
            .and_then(|()| fs::rename(&temporary, &path));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    /// What is remembered of an attachment. A file that cannot be understood is as good as none.
    pub fn load(&self, network: &str, container_id: &str, ifname: &str) -> io::Result<Option<Entry>> {
        let path = self.path(network, container_id, ifname);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if let Some(entry) = Entry::parse(&bytes) {
            return Ok(Some(entry));
        }
        // Compatibility: before 0.7.0 the reference library kept the bare result.
        let result = json::parse(&bytes).ok().filter(|value| value.get("cniVersion").is_some());
        let Some(Value::Object(result)) = result else { return Ok(None) };
        Ok(Some(Entry { result, ..Entry::new(network, container_id, ifname, b"") }))
    }

    /// Forgets an attachment; succeeds where nothing was remembered.
    pub fn remove(&self, network: &str, container_id: &str, ifname: &str) -> io::Result<()> {
        match fs::remove_file(self.path(network, container_id, ifname)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Every attachment of a network, by the name of its file.
    pub fn attachments(&self, network: &str) -> io::Result<Vec<Entry>> {
        let entries = match fs::read_dir(self.results()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        let understood = paths.iter().filter_map(|path| Entry::parse(&fs::read(path).ok()?));
        Ok(understood.filter(|entry| entry.network == network && !entry.ifname.is_empty()).collect())
    }

    /// The file of an attachment.
    pub fn path(&self, network: &str, container_id: &str, ifname: &str) -> PathBuf {
        self.results().join(format!("{network}-{container_id}-{ifname}"))
    }

    fn results(&self) -> PathBuf {
        self.directory.join("results")
    }
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file: File = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entry() -> Entry {
        Entry {
            netns: "/run/netns/a".to_owned(),
            args: vec![("IgnoreUnknown".to_owned(), "1".to_owned())],
            result: json!({"cniVersion": "1.0.0"}).as_object().unwrap().clone(),
            ..Entry::new("cbr0", "abc", "eth0", b"{}")
        }
    }

    #[test]
    fn an_entry_is_written_as_the_reference_library_writes_it() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(directory.path());
        cache.store(&entry()).unwrap();
        let text = fs::read_to_string(directory.path().join("results/cbr0-abc-eth0")).unwrap();
        assert_eq!(
            text,
            concat!(
                r#"{"kind":"cniCacheV1","containerId":"abc","config":"e30=","ifName":"eth0","#,
                r#""networkName":"cbr0","netns":"/run/netns/a","cniArgs":[["IgnoreUnknown","1"]],"#,
                r#""result":{"cniVersion":"1.0.0"}}"#
            )
        );
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "a temporary file is left");
    }

    #[test]
    fn what_is_stored_is_loaded_listed_and_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(directory.path());
        assert_eq!(cache.attachments("cbr0").unwrap(), []);
        cache.store(&entry()).unwrap();
        assert_eq!(cache.load("cbr0", "abc", "eth0").unwrap(), Some(entry()));
        assert_eq!(cache.attachments("cbr0").unwrap(), [entry()]);
        assert_eq!(cache.attachments("other").unwrap(), []);
        assert_eq!(entry().config().unwrap(), b"{}");
        cache.remove("cbr0", "abc", "eth0").unwrap();
        cache.remove("cbr0", "abc", "eth0").unwrap();
        assert_eq!(cache.load("cbr0", "abc", "eth0").unwrap(), None);
    }

    #[test]
    fn an_old_result_is_read_and_half_a_file_is_as_good_as_none() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(directory.path());
        cache.store(&entry()).unwrap();
        fs::write(cache.path("cbr0", "abc", "eth0"), r#"{"cniVersion":"0.4.0","ips":[]}"#).unwrap();
        let old = cache.load("cbr0", "abc", "eth0").unwrap().unwrap();
        assert_eq!(old.result["cniVersion"], "0.4.0");
        fs::write(cache.path("cbr0", "abc", "eth0"), r#"{"kind":"cniCacheV1","con"#).unwrap();
        assert_eq!(cache.load("cbr0", "abc", "eth0").unwrap(), None);
        assert_eq!(cache.attachments("cbr0").unwrap(), []);
    }
}
