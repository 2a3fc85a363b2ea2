//! [`Runtime`]: the other side of the protocol, that of a container runtime.
//!
//! It calls the plugins of a [`NetworkList`] one after the other, gives each the result of the one
//! before, and remembers the last result in a [`Cache`]. Source: the CNI specification 1.1.0, sections
//! 3 and 4, and the reference library.

use serde_json::{Map, Value, json};

use crate::cache::{Cache, Entry};
use crate::config::Attachment;
use crate::delegate;
use crate::environment::{Environment, Verb};
use crate::error::{Error, code};
use crate::json;
use crate::list::{Link, NetworkList};
use crate::result::AddResult;
use crate::version::Version;

/// Where plugins are looked for unless `CNI_PATH` says otherwise.
pub const PLUGIN_PATH: &str = "/opt/cni/bin";

/// Calls plugins and remembers what they answered.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// `CNI_PATH`
    pub path: String,
    /// What is remembered.
    pub cache: Cache,
}

/// A container that is to be attached, or was.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sandbox {
    /// The name by which plugins know it.
    pub container_id: String,
    /// The path of its network namespace.
    pub netns: String,
    /// The interface to make inside it.
    pub ifname: String,
    /// `CNI_ARGS`, in order.
    pub args: Vec<(String, String)>,
    /// What the runtime wants of each capability, `portMappings` for example.
    pub capability_args: Map<String, Value>,
}

/// Which attachments a GC takes away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keep {
    /// All.
    Nothing,
    /// All but these.
    Only(Vec<Attachment>),
}

impl Runtime {
    /// Attaches a container: every plugin in order, each with the result of the one before.
    ///
    /// When one fails, what the others made is taken away again, unless the container was attached
    /// already: then it stays as it was.
    pub fn add(&self, list: &NetworkList, sandbox: &Sandbox) -> Result<AddResult, Error> {
        let version = list.version()?;
        let known = self.remembered(list, sandbox)?;
        self.add_chain(list, sandbox, version).inspect_err(|_| {
            if known.is_none() {
                // The first error is the one to be told.
                let _ = self.del(list, sandbox);
            }
        })
    }

    fn add_chain(&self, list: &NetworkList, sandbox: &Sandbox, version: Version) -> Result<AddResult, Error> {
        let mut result: Option<AddResult> = None;
        for plugin in &list.plugins {
            let stdin = stdin(list, plugin, result.as_ref().map(shown), sandbox);
            let output = self.call(plugin, Verb::Add, sandbox, &stdin).map_err(failed(plugin, "add"))?;
            result = Some(AddResult::parse(&output, version).map_err(failed(plugin, "add"))?);
        }
        let result = result.ok_or_else(|| Error::new(code::INVALID_CONFIG, "no plugins in list"))?;
        let shown = shown(&result);
        let mut entry = Entry::new(&list.name, &sandbox.container_id, &sandbox.ifname, &list.bytes);
        entry.netns.clone_from(&sandbox.netns);
        entry.args.clone_from(&sandbox.args);
        entry.capability_args.clone_from(&sandbox.capability_args);
        entry.result = shown.as_object().cloned().unwrap_or_default();
        self.cache.store(&entry).map_err(|error| {
            let path = self.cache.path(&list.name, &sandbox.container_id, &sandbox.ifname);
            Error::new(code::IO, format!("failed to write the result to {}: {error}", path.display()))
        })?;
        Ok(result)
    }

    /// Asks every plugin whether the attachment is as it was made.
    pub fn check(&self, list: &NetworkList, sandbox: &Sandbox) -> Result<(), Error> {
        let version = list.version()?;
        if version < Version::V0_4_0 {
            let text =
                format!("configuration version {:?} does not support the CHECK command", list.version_text);
            return Err(Error::new(code::INCOMPATIBLE_VERSION, text));
        }
        if list.disable_check {
            return Ok(());
        }
        let result = self.previous(list, sandbox, version)?.ok_or_else(|| {
            let path = self.cache.path(&list.name, &sandbox.container_id, &sandbox.ifname);
            Error::new(
                code::UNKNOWN_CONTAINER,
                format!(
                    "{} is not attached to {:?}: there is no {}",
                    sandbox.ifname,
                    list.name,
                    path.display()
                ),
            )
        })?;
        for plugin in &list.plugins {
            let stdin = stdin(list, plugin, Some(shown(&result)), sandbox);
            self.call(plugin, Verb::Check, sandbox, &stdin).map_err(failed(plugin, "check"))?;
        }
        Ok(())
    }

    /// Detaches a container: every plugin in reverse order; stops at the first that fails, so that
    /// another try finds the rest.
    pub fn del(&self, list: &NetworkList, sandbox: &Sandbox) -> Result<(), Error> {
        let version = list.version()?;
        let result = match version >= Version::V0_4_0 {
            // What cannot be read must not keep anybody from detaching.
            true => self.previous(list, sandbox, version).unwrap_or_default(),
            false => None,
        };
        for plugin in list.plugins.iter().rev() {
            let stdin = stdin(list, plugin, result.as_ref().map(shown), sandbox);
            self.call(plugin, Verb::Del, sandbox, &stdin).map_err(failed(plugin, "delete"))?;
        }
        // The reference library does not mind either: what is remembered of a container that is gone
        // is in nobody's way.
        let _ = self.cache.remove(&list.name, &sandbox.container_id, &sandbox.ifname);
        Ok(())
    }

    /// Takes away what belongs to no kept attachment: detaches what is remembered and not kept, then
    /// lets plugins that know GC (1.1.0) look for the rest. Goes on after errors and returns them all.
    pub fn gc(&self, list: &NetworkList, keep: &Keep) -> Result<(), Error> {
        let version = list.version()?;
        if list.disable_gc {
            return Ok(());
        }
        let mut errors = Vec::new();
        let remembered = self.cache.attachments(&list.name).unwrap_or_default();
        for entry in remembered.into_iter().filter(|entry| !keep.holds(entry)) {
            let sandbox = Sandbox::of(entry);
            if let Err(error) = self.del(list, &sandbox) {
                let (container, ifname) = (&sandbox.container_id, &sandbox.ifname);
                errors.push(format!("failed to delete stale attachment {container} {ifname}: {error}"));
            }
        }
        if version >= Version::V1_1_0 {
            for plugin in &list.plugins {
                let stdin = plugin.stdin(identity(list).into_iter().chain(keep.members()));
                if let Err(error) = self.call(plugin, Verb::Gc, &Sandbox::default(), &stdin) {
                    errors.push(format!("failed to GC plugin {}: {error}", plugin.kind));
                }
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(Error::internal(errors.join("; "))) }
    }

    /// Asks every plugin whether ADD would work; versions before 1.1.0 cannot be asked.
    pub fn status(&self, list: &NetworkList) -> Result<(), Error> {
        if list.version()? < Version::V1_1_0 {
            return Ok(());
        }
        for plugin in &list.plugins {
            let stdin = plugin.stdin(identity(list));
            // Passed as it is, so that its code says what to do.
            self.call(plugin, Verb::Status, &Sandbox::default(), &stdin)?;
        }
        Ok(())
    }

    /// The versions that a plugin speaks.
    pub fn versions(&self, plugin: &str) -> Result<Vec<String>, Error> {
        let program = delegate::find(plugin, &self.path)?;
        let environment = Environment {
            command: Verb::Version.as_str().to_owned(),
            path: self.path.clone(),
            ..Environment::default()
        };
        let stdin = json!({ "cniVersion": Version::CURRENT.as_str() });
        let output = delegate::execute(&program, &environment, json::compact(&stdin).as_bytes())?;
        let value = json::parse(&output).map_err(Error::internal)?;
        let object = json::Object::of(&value, "answer")?;
        // Compatibility: a plugin of 0.1.0 answers with its version alone.
        match object.strings("supportedVersions")? {
            Some(versions) => Ok(versions),
            None => Ok(vec![object.string("cniVersion")?.unwrap_or("0.1.0").to_owned()]),
        }
    }

    /// What is remembered of an attachment.
    fn remembered(&self, list: &NetworkList, sandbox: &Sandbox) -> Result<Option<Entry>, Error> {
        self.cache.load(&list.name, &sandbox.container_id, &sandbox.ifname).map_err(|error| {
            let path = self.cache.path(&list.name, &sandbox.container_id, &sandbox.ifname);
            Error::new(code::IO, format!("failed to read {}: {error}", path.display()))
        })
    }

    /// The remembered result, as the network's version has it.
    fn previous(
        &self,
        list: &NetworkList,
        sandbox: &Sandbox,
        version: Version,
    ) -> Result<Option<AddResult>, Error> {
        let Some(entry) = self.remembered(list, sandbox)? else { return Ok(None) };
        AddResult::from_value(&Value::Object(entry.result), version)
            .and_then(|result| result.convert(version))
            .map(Some)
            .map_err(|error| error.context("failed to read the cached result"))
    }

    fn call(&self, plugin: &Link, verb: Verb, sandbox: &Sandbox, stdin: &[u8]) -> Result<Vec<u8>, Error> {
        let args: Vec<String> = sandbox.args.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let environment = Environment {
            command: verb.as_str().to_owned(),
            container_id: sandbox.container_id.clone(),
            netns: sandbox.netns.clone(),
            ifname: sandbox.ifname.clone(),
            args: args.join(";"),
            path: self.path.clone(),
            netns_override: false,
        };
        let program = delegate::find(&plugin.kind, &self.path)?;
        environment.validate()?;
        Ok(delegate::execute(&program, &environment, stdin)?)
    }
}

impl Sandbox {
    /// The container of a remembered attachment.
    fn of(entry: Entry) -> Sandbox {
        Sandbox {
            container_id: entry.container_id,
            netns: entry.netns,
            ifname: entry.ifname,
            args: entry.args,
            capability_args: entry.capability_args,
        }
    }
}

impl Keep {
    fn holds(&self, entry: &Entry) -> bool {
        let is = |kept: &Attachment| kept.container_id == entry.container_id && kept.ifname == entry.ifname;
        matches!(self, Keep::Only(kept) if kept.iter().any(is))
    }

    /// What plugins are told; the second name is an early mistake of the specification's that some read.
    fn members(&self) -> Vec<(&'static str, Value)> {
        let Keep::Only(kept) = self else { return Vec::new() };
        let shown: Vec<Value> =
            kept.iter().map(|a| json!({ "containerID": a.container_id, "ifname": a.ifname })).collect();
        ["cni.dev/valid-attachments", "cni.dev/attachments"].map(|name| (name, json!(shown))).into()
    }
}

/// What a plugin of the chain reads about one container.
fn stdin(list: &NetworkList, plugin: &Link, previous: Option<Value>, sandbox: &Sandbox) -> Vec<u8> {
    let wanted = plugin.capabilities().filter_map(|capability| {
        sandbox.capability_args.get(capability).map(|value| (capability.to_owned(), value.clone()))
    });
    let wanted: Map<String, Value> = wanted.collect();
    let runtime_config = (!wanted.is_empty()).then_some(("runtimeConfig", Value::Object(wanted)));
    let previous = previous.map(|previous| ("prevResult", previous));
    plugin.stdin(identity(list).into_iter().chain(previous).chain(runtime_config))
}

/// Every plugin is told the name and the version of its network.
fn identity(list: &NetworkList) -> [(&'static str, Value); 2] {
    [("name", json!(list.name)), ("cniVersion", json!(list.version_text))]
}

fn shown(result: &AddResult) -> Value {
    json::parse(result.to_json().as_bytes()).expect("results are printed as JSON")
}

/// Names the plugin that failed and keeps its code.
fn failed(plugin: &Link, verb: &str) -> impl Fn(Error) -> Error {
    move |error| Error {
        msg: format!("plugin type={:?} failed ({verb}): {}", plugin.kind, error.msg),
        ..error
    }
}

#[cfg(test)]
mod tests;
