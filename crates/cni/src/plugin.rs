//! The skeleton of a plugin: reading the call, checking versions, printing the answer.

use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt as _;
use std::process::ExitCode;
use std::{env, fs};

use crate::config::Config;
use crate::environment::{Environment, Verb};
use crate::error::{Error, code};
use crate::json;
use crate::result::AddResult;
use crate::version::Version;

/// One call of a plugin.
#[derive(Debug, Clone)]
pub struct Request {
    /// Who is to be attached, and where to.
    pub environment: Environment,
    /// How.
    pub config: Config,
    /// The version that the configuration asks for.
    pub version: Version,
}

/// A CNI plugin. What it does not implement succeeds, as the specification wants.
pub trait Plugin {
    /// The name of its program.
    fn name(&self) -> &'static str;

    /// The versions it speaks, oldest first.
    fn versions(&self) -> &'static [Version] {
        &Version::ALL
    }

    /// Attaches a container; the result comes in the version to be printed, usually the request's.
    fn add(&self, request: &Request) -> Result<AddResult, Error>;

    /// Detaches a container; succeeds when there is nothing left to do.
    fn del(&self, request: &Request) -> Result<(), Error>;

    /// Says whether an attachment is still as it was made.
    fn check(&self, _request: &Request) -> Result<(), Error> {
        Ok(())
    }

    /// Says whether ADD would work.
    fn status(&self, _request: &Request) -> Result<(), Error> {
        Ok(())
    }

    /// Removes what belongs to no valid attachment.
    fn gc(&self, _request: &Request) -> Result<(), Error> {
        Ok(())
    }
}

/// Runs a plugin as a program: environment and standard input in, answer on standard output.
pub fn run(plugin: &dyn Plugin) -> ExitCode {
    let environment = Environment::read(|name| {
        env::var_os(name).map(|value| value.to_string_lossy().into_owned()).unwrap_or_default()
    });
    if environment.command.is_empty() {
        return about(plugin);
    }
    match answer(plugin, environment, &mut io::stdin().lock()) {
        Ok(text) => print(&text, ExitCode::SUCCESS),
        Err(error) => print(&error.to_json(), ExitCode::FAILURE),
    }
}

/// What a plugin prints on standard output for one call.
pub fn answer(plugin: &dyn Plugin, environment: Environment, stdin: &mut dyn Read) -> Result<String, Error> {
    environment.validate()?;
    if environment.command == Verb::Version.as_str() {
        return Ok(version_answer(plugin));
    }
    let mut bytes = Vec::new();
    stdin
        .read_to_end(&mut bytes)
        .map_err(|error| Error::new(code::IO, format!("error reading from stdin: {error}")))?;
    let config = Config::parse(bytes)?;
    Ok(dispatch(plugin, environment, config)?.map(|result| result.to_json()).unwrap_or_default())
}

/// Hands one call to the plugin's code; only ADD has a result.
///
/// This is also how a plugin calls another one that lives in the same program.
pub fn dispatch(
    plugin: &dyn Plugin,
    environment: Environment,
    config: Config,
) -> Result<Option<AddResult>, Error> {
    let verb = environment.verb()?;
    let version = compatible_version(plugin, &config, verb)?;
    let request = Request { environment, config, version };
    match verb {
        Verb::Add => {
            // Earlier than the reference library, which first does the work and then complains.
            own_namespace(&request.environment)?;
            return plugin.add(&request).map(Some);
        }
        Verb::Del => {
            plugin.del(&request)?;
            own_namespace(&request.environment)?;
        }
        Verb::Check => plugin.check(&request)?,
        Verb::Gc => plugin.gc(&request)?,
        Verb::Status => plugin.status(&request)?,
        Verb::Version => {}
    }
    Ok(None)
}

/// The version of a configuration, if the plugin speaks it and the verb existed by then.
fn compatible_version(plugin: &dyn Plugin, config: &Config, verb: Verb) -> Result<Version, Error> {
    let text = config.version_text()?;
    let spoken = plugin.versions();
    let version = Version::parse(text).filter(|version| spoken.contains(version));
    let since = match verb {
        Verb::Check => Version::V0_4_0,
        Verb::Gc | Verb::Status => Version::V1_1_0,
        Verb::Add | Verb::Del | Verb::Version => Version::V0_1_0,
    };
    match version {
        Some(version) if version < since => Err(Error::new(
            code::INCOMPATIBLE_VERSION,
            format!("config version does not allow {}", verb.as_str()),
        )),
        Some(version) => Ok(version),
        None => {
            let spoken: Vec<String> =
                spoken.iter().map(|version| format!("{:?}", version.as_str())).collect();
            Err(Error::new(code::INCOMPATIBLE_VERSION, "incompatible CNI versions")
                .details(format!("config is {text:?}, plugin supports [{}]", spoken.join(" "))))
        }
    }
}

/// Refuses a container that lives in the plugin's own namespace: a runtime that does not mean it would
/// have the host's links changed. A path that cannot be looked at is somebody else's complaint.
fn own_namespace(environment: &Environment) -> Result<(), Error> {
    if environment.netns.is_empty() || environment.netns_override {
        return Ok(());
    }
    let identity = |path: &str| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let same =
        identity(&environment.netns).zip(identity("/proc/thread-self/ns/net")).is_some_and(|(a, b)| a == b);
    if same {
        let msg = "plugin's netns and netns from CNI_NETNS should not be the same";
        return Err(Error::new(code::INVALID_NETNS, msg));
    }
    Ok(())
}

fn version_answer(plugin: &dyn Plugin) -> String {
    let spoken: Vec<&str> = plugin.versions().iter().map(|version| version.as_str()).collect();
    format!("{{\"cniVersion\":\"{}\",\"supportedVersions\":{}}}\n", Version::CURRENT, json::compact(&spoken))
}

/// What somebody sees who starts a plugin by hand.
fn about(plugin: &dyn Plugin) -> ExitCode {
    let spoken: Vec<&str> = plugin.versions().iter().map(|version| version.as_str()).collect();
    let text = format!(
        "CNI Plugin {} version {} ({}/{}), flannel-rs\nCNI protocol versions supported: {}\n",
        plugin.name(),
        env!("CARGO_PKG_VERSION"),
        env::consts::OS,
        env::consts::ARCH,
        spoken.join(", ")
    );
    let _ = io::stderr().lock().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

fn print(text: &str, code: ExitCode) -> ExitCode {
    let mut stdout = io::stdout().lock();
    // A runtime that went away cannot be told; it will see that no answer came.
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Probe;

    impl Plugin for Probe {
        fn name(&self) -> &'static str {
            "probe"
        }
        fn add(&self, request: &Request) -> Result<AddResult, Error> {
            Ok(AddResult::empty(request.version))
        }
        fn del(&self, _request: &Request) -> Result<(), Error> {
            Ok(())
        }
    }

    fn call(command: &str, stdin: &str) -> Result<String, Error> {
        let environment = Environment {
            command: command.into(),
            container_id: "a".into(),
            netns: "/nowhere".into(),
            ifname: "eth0".into(),
            path: "/opt/cni/bin".into(),
            ..Environment::default()
        };
        answer(&Probe, environment, &mut stdin.as_bytes())
    }

    #[test]
    fn version_is_answered_without_reading_a_configuration() {
        assert_eq!(
            call("VERSION", "garbage").unwrap(),
            "{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[\"0.1.0\",\"0.2.0\",\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}\n"
        );
    }

    #[test]
    fn verbs_are_refused_where_their_version_did_not_have_them() {
        for (verb, version, msg) in [
            ("CHECK", "0.3.1", "config version does not allow CHECK"),
            ("GC", "1.0.0", "config version does not allow GC"),
            ("STATUS", "1.0.0", "config version does not allow STATUS"),
            ("ADD", "3.0.0", "incompatible CNI versions"),
        ] {
            let error = call(verb, &format!(r#"{{"name":"n","cniVersion":"{version}"}}"#)).unwrap_err();
            assert_eq!((error.code, error.msg.as_str()), (1, msg));
        }
        for (verb, version) in [("CHECK", "0.4.0"), ("GC", "1.1.0"), ("STATUS", "1.1.0"), ("DEL", "")] {
            let answer = call(verb, &format!(r#"{{"name":"n","cniVersion":"{version}"}}"#));
            assert_eq!(answer.as_deref(), Ok(""));
        }
    }

    #[test]
    fn a_container_in_the_plugins_own_namespace_is_refused() {
        let environment = Environment {
            command: "ADD".into(),
            container_id: "a".into(),
            netns: "/proc/self/ns/net".into(),
            ifname: "eth0".into(),
            path: "/opt/cni/bin".into(),
            ..Environment::default()
        };
        let stdin = br#"{"name":"n","cniVersion":"1.0.0"}"#;
        let error = answer(&Probe, environment.clone(), &mut &stdin[..]).unwrap_err();
        assert_eq!(error.code, 8);
        let allowed = Environment { netns_override: true, ..environment };
        assert!(answer(&Probe, allowed, &mut &stdin[..]).is_ok());
    }
}
