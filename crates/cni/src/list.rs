//! [`NetworkList`]: a network as a runtime reads it, a chain of plugins.
//!
//! A `.conflist` names the network and lists its plugins; a `.conf` or `.json` is the old form with one
//! plugin. Further plugins come from `<directory>/<network>/*.conf` unless `loadOnlyInlinedPlugins`
//! says no. Sources: the CNI specification 1.1.0, section 1, and the reference library.

use std::path::{Path, PathBuf};
use std::{fs, io};

use serde_json::{Map, Value, json};

use crate::environment::is_identifier;
use crate::error::{Error, code};
use crate::json::{self, Object};
use crate::version::Version;

/// A network and the plugins that attach a container to it, first to last.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkList {
    /// Its name.
    pub name: String,
    /// `cniVersion` as every plugin gets it: what the file says, or the highest of `cniVersions` that
    /// this crate speaks.
    pub version_text: String,
    /// The runtime is not to ask for CHECK.
    pub disable_check: bool,
    /// The runtime is not to collect garbage.
    pub disable_gc: bool,
    /// The chain.
    pub plugins: Vec<Link>,
    /// The file as it is.
    pub bytes: Vec<u8>,
    only_inlined: bool,
}

/// One plugin of the chain.
#[derive(Debug, Clone, PartialEq)]
pub struct Link {
    /// Its `type`, the name of its program.
    pub kind: String,
    config: Map<String, Value>,
}

impl NetworkList {
    /// Reads a `.conflist`.
    pub fn parse(bytes: &[u8]) -> Result<NetworkList, Error> {
        let value = json::parse(bytes)
            .map_err(|why| Error::new(code::DECODING, format!("error parsing configuration list: {why}")))?;
        NetworkList::from_value(&value, bytes).map_err(|error| Error {
            code: code::INVALID_CONFIG,
            ..error.context("error parsing configuration list")
        })
    }

    /// Reads the old form, one plugin.
    pub fn parse_single(bytes: &[u8]) -> Result<NetworkList, Error> {
        let value = json::parse(bytes)
            .map_err(|why| Error::new(code::DECODING, format!("error parsing configuration: {why}")))?;
        let object = Object::of(&value, "")?;
        let list = json!({
            "cniVersion": object.string("cniVersion")?.unwrap_or_default(),
            "name": object.string("name")?.unwrap_or_default(),
            "plugins": [&value],
        });
        NetworkList::parse(json::compact(&list).as_bytes())
    }

    /// Reads a file of either form, and the plugins that lie in the directory of its network.
    pub fn read(path: &Path) -> Result<NetworkList, Error> {
        let bytes = fs::read(path)
            .map_err(|error| Error::new(code::IO, format!("error reading {}: {error}", path.display())))?;
        let is_list = json::parse(&bytes).is_ok_and(|value| value.get("plugins").is_some())
            || path.extension().is_some_and(|extension| extension == "conflist");
        let parsed = match is_list {
            true => NetworkList::parse(&bytes),
            false => NetworkList::parse_single(&bytes),
        };
        let in_file = |error: Error| Error { msg: format!("{}: {}", path.display(), error.msg), ..error };
        let mut list = parsed.map_err(in_file)?;
        if is_list && !list.only_inlined {
            let directory = path.parent().unwrap_or(Path::new(".")).join(&list.name);
            for file in files(&directory, &["conf"])? {
                list.plugins.push(Link::read(&file)?);
            }
        }
        match list.plugins.is_empty() {
            true => Err(in_file(Error::new(code::INVALID_CONFIG, "no plugin configs found"))),
            false => Ok(list),
        }
    }

    /// The network of that name among the files of a directory: the first `.conflist`, else the first
    /// `.conf` or `.json`, in the order of their names.
    ///
    /// A file that cannot be understood hides only itself; it is named where nothing else is found.
    pub fn find(directory: &Path, name: &str) -> Result<NetworkList, Error> {
        let mut broken = Vec::new();
        for extensions in [&["conflist"][..], &["conf", "json"]] {
            for file in files(directory, extensions)? {
                match NetworkList::read(&file) {
                    Ok(list) if list.name == name => return Ok(list),
                    Ok(_) => {}
                    Err(error) => broken.push(error.to_string()),
                }
            }
        }
        let text = format!("no net configuration with name {name:?} in {}", directory.display());
        Err(Error::new(code::INVALID_CONFIG, text).details(broken.join("; ")))
    }

    /// The version of the specification that the network asks for.
    pub fn version(&self) -> Result<Version, Error> {
        Version::parse(&self.version_text).ok_or_else(|| {
            let spoken: Vec<&str> = Version::ALL.iter().map(|version| version.as_str()).collect();
            let text = format!(
                "network {:?} asks for cniVersion {:?}; known are {}",
                self.name,
                self.version_text,
                spoken.join(", ")
            );
            Error::new(code::INCOMPATIBLE_VERSION, text)
        })
    }

    fn from_value(value: &Value, bytes: &[u8]) -> Result<NetworkList, Error> {
        let object = Object::of(value, "")?;
        let name = object.string("name")?.unwrap_or_default();
        if name.is_empty() {
            return Err(Error::internal("no name"));
        }
        if !is_identifier(name) {
            return Err(Error::internal(format!("invalid characters found in network name {name:?}")));
        }
        let plugins = object.objects("plugins")?;
        if plugins.as_ref().is_some_and(Vec::is_empty) {
            return Err(Error::internal("no plugins in list"));
        }
        let only_inlined = truth(&object, "loadOnlyInlinedPlugins")?;
        if plugins.is_none() && only_inlined {
            return Err(Error::internal("`loadOnlyInlinedPlugins` is true, and no 'plugins' key"));
        }
        Ok(NetworkList {
            name: name.to_owned(),
            version_text: highest_version(&object)?,
            disable_check: truth(&object, "disableCheck")?,
            disable_gc: truth(&object, "disableGC")?,
            plugins: plugins.unwrap_or_default().iter().map(Link::of).collect::<Result<_, _>>()?,
            bytes: bytes.to_vec(),
            only_inlined,
        })
    }
}

impl Link {
    fn of(object: &Object<'_>) -> Result<Link, Error> {
        match object.string("type")? {
            None | Some("") => Err(Error::internal("missing 'type' of a plugin")),
            Some(kind) => Ok(Link { kind: kind.to_owned(), config: object.members().clone() }),
        }
    }

    fn read(path: &Path) -> Result<Link, Error> {
        let failed = |code, why: String| Error::new(code, format!("plugin in {}: {why}", path.display()));
        let bytes = fs::read(path).map_err(|error| failed(code::IO, error.to_string()))?;
        let value = json::parse(&bytes).map_err(|why| failed(code::DECODING, why))?;
        Object::of(&value, "")
            .map_err(Error::from)
            .and_then(|object| Link::of(&object))
            .map_err(|error| failed(code::INVALID_CONFIG, error.msg))
    }

    /// The capabilities that it says it has.
    pub fn capabilities(&self) -> impl Iterator<Item = &str> {
        let stated = self.config.get("capabilities").and_then(Value::as_object);
        stated.into_iter().flatten().filter(|(_, has)| **has == Value::Bool(true)).map(|(name, _)| &**name)
    }

    /// What it gets on standard input: its configuration with these members in place of its own.
    pub(crate) fn stdin(&self, members: impl IntoIterator<Item = (&'static str, Value)>) -> Vec<u8> {
        let mut config = self.config.clone();
        config.extend(members.into_iter().map(|(name, value)| (name.to_owned(), value)));
        json::compact(&config).into_bytes()
    }
}

/// Compatibility: written as true or as "true".
fn truth(object: &Object<'_>, key: &str) -> Result<bool, Error> {
    match object.get(key) {
        None => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(_) => Err(object.error(key, "true or false").into()),
    }
}

/// `cniVersion`, or the highest that is offered and known where `cniVersions` offers several.
fn highest_version(object: &Object<'_>) -> Result<String, Error> {
    let stated = object.string("cniVersion")?.unwrap_or_default();
    let Some(offered) = object.strings("cniVersions")? else { return Ok(stated.to_owned()) };
    if let Some(wrong) = offered.iter().find(|text| !is_version(text)) {
        return Err(Error::internal(format!(
            "invalid cniVersions entry {wrong:?}: want for example \"1.0.0\""
        )));
    }
    let known = offered.iter().map(String::as_str).chain([stated]).filter(|text| !text.is_empty());
    let highest = known.filter_map(Version::parse).max();
    Ok(highest.map_or_else(|| stated.to_owned(), |version| version.to_string()))
}

fn is_version(text: &str) -> bool {
    let numbers: Vec<&str> = text.split('.').collect();
    numbers.len() <= 3 && numbers.iter().all(|number| number.parse::<u32>().is_ok())
}

/// The files of a directory with one of the extensions, by name; none where there is no directory.
fn files(directory: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(Error::new(code::IO, format!("error reading {}: {error}", directory.display())));
        }
    };
    let wanted = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        extension.is_some_and(|extension| extensions.contains(&extension)) && !path.is_dir()
    };
    let mut files: Vec<PathBuf> =
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(wanted).collect();
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refused(text: &str) -> String {
        NetworkList::parse(text.as_bytes()).unwrap_err().msg
    }

    #[test]
    fn what_is_wrong_with_a_list_is_named() {
        for (text, why) in [
            (r#"{"plugins":[]}"#, "no name"),
            (r#"{"name":"a","plugins":[]}"#, "no plugins in list"),
            (r#"{"name":"a","plugins":[{}]}"#, "missing 'type' of a plugin"),
            (r#"{"name":"a/b","plugins":[]}"#, r#"invalid characters found in network name "a/b""#),
            (r#"{"name":"a","plugins":{}}"#, r#""plugins" must be a list, found {}"#),
            (r#"{"name":"a","disableCheck":7}"#, r#""disableCheck" must be true or false, found 7"#),
            (
                r#"{"name":"a","loadOnlyInlinedPlugins":true}"#,
                "`loadOnlyInlinedPlugins` is true, and no 'plugins' key",
            ),
            (
                r#"{"name":"a","cniVersions":["one"]}"#,
                r#"invalid cniVersions entry "one": want for example "1.0.0""#,
            ),
        ] {
            assert_eq!(refused(text), format!("error parsing configuration list: {why}"));
        }
    }

    #[test]
    fn the_highest_version_that_is_offered_and_known_wins() {
        let version = |text: &str| NetworkList::parse(text.as_bytes()).unwrap().version_text;
        assert_eq!(version(r#"{"name":"a","cniVersion":"0.4.0","cniVersions":["1.0.0","0.3.1"]}"#), "1.0.0");
        assert_eq!(version(r#"{"name":"a","cniVersion":"1.1.0","cniVersions":["2.0.0","1.0.0"]}"#), "1.1.0");
        assert_eq!(version(r#"{"name":"a","cniVersion":"0.3.1"}"#), "0.3.1");
        assert_eq!(version(r#"{"name":"a"}"#), "");
        let unknown = NetworkList::parse(br#"{"name":"a","cniVersion":"7.0.0"}"#).unwrap();
        assert_eq!(unknown.version().unwrap_err().code, code::INCOMPATIBLE_VERSION);
    }

    #[test]
    fn a_network_is_found_by_name_and_gets_the_plugins_of_its_directory() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("00-broken.conflist", "{");
        write("10-list.conflist", r#"{"name":"list","plugins":[{"type":"bridge"}]}"#);
        write("list/b.conf", r#"{"type":"tuning"}"#);
        write("list/a.conf", r#"{"type":"portmap"}"#);
        write("list/c.txt", "not for us");
        write("20-alone.conf", r#"{"name":"alone","type":"ptp","cniVersion":"0.4.0"}"#);

        let kinds = |name: &str| {
            let list = NetworkList::find(directory.path(), name).unwrap();
            list.plugins.into_iter().map(|plugin| plugin.kind).collect::<Vec<_>>()
        };
        assert_eq!(kinds("list"), ["bridge", "portmap", "tuning"]);
        assert_eq!(kinds("alone"), ["ptp"]);
        let error = NetworkList::find(directory.path(), "none").unwrap_err();
        assert!(error.msg.starts_with(r#"no net configuration with name "none" in "#), "{error}");
        assert!(error.details.contains("00-broken.conflist"), "{error}");
    }

    proptest! {
        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = (NetworkList::parse(&bytes), NetworkList::parse_single(&bytes));
        }
    }
}
