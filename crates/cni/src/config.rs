//! [`Config`]: the network configuration on standard input.

use serde_json::Value;

use crate::environment::is_identifier;
use crate::error::{Error, code};
use crate::json::{self, DecodeError, Object};
use crate::result::AddResult;
use crate::version::Version;

/// A network configuration that is JSON and has a usable name.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    bytes: Vec<u8>,
    value: Value,
    name: String,
}

/// One attachment that a runtime still knows, of `cni.dev/valid-attachments`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Attachment {
    /// The container.
    pub container_id: String,
    /// The interface inside it.
    pub ifname: String,
}

impl Config {
    /// Reads the bytes of standard input.
    pub fn parse(bytes: Vec<u8>) -> Result<Config, Error> {
        let unreadable =
            |why: String| Error::new(code::DECODING, format!("error unmarshall network config: {why}"));
        let value = json::parse(&bytes).map_err(unreadable)?;
        let name = match &value {
            Value::Null => None,
            other => {
                Object::of(other, "").and_then(|o| o.string("name")).map_err(|e| unreadable(e.to_string()))?
            }
        };
        match name {
            None | Some("") => Err(Error::new(code::INVALID_CONFIG, "missing network name")),
            Some(name) if !is_identifier(name) => {
                Err(Error::new(code::INVALID_CONFIG, "invalid characters found in network name")
                    .details(name))
            }
            Some(name) => {
                let name = name.to_owned();
                Ok(Config { bytes, value, name })
            }
        }
    }

    /// The configuration as it came, for a plugin that is called with the same one.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The name of the network.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The members.
    pub fn object(&self) -> Object<'_> {
        Object::of(&self.value, "").expect("parse accepts objects only")
    }

    /// `cniVersion` as written; empty means 0.1.0.
    pub fn version_text(&self) -> Result<&str, Error> {
        self.object().string("cniVersion").map(Option::unwrap_or_default).map_err(|error| {
            Error::new(code::DECODING, format!("decoding version from network config: {error}"))
        })
    }

    /// The version of the specification that the configuration asks for.
    pub fn version(&self) -> Result<Version, Error> {
        let text = self.version_text()?;
        Version::parse(text).ok_or_else(|| {
            let spoken: Vec<String> = Version::ALL.iter().map(|v| format!("{:?}", v.as_str())).collect();
            Error::new(code::INCOMPATIBLE_VERSION, "incompatible CNI versions")
                .details(format!("config is {text:?}, plugin supports [{}]", spoken.join(" ")))
        })
    }

    /// The result of the plugins that ran before, if there is one.
    pub fn prev_result(&self) -> Result<Option<AddResult>, Error> {
        let version = self.version()?;
        match self.object().get("prevResult") {
            None => Ok(None),
            Some(value) => AddResult::from_value(value, version)
                .map(Some)
                .map_err(|error| Error::internal(format!("could not parse prevResult: {}", error.msg))),
        }
    }

    /// The attachments that a GC must leave alone.
    pub fn valid_attachments(&self) -> Result<Vec<Attachment>, DecodeError> {
        let entries = self.object().objects("cni.dev/valid-attachments")?.unwrap_or_default();
        let attachment = |entry: &Object<'_>| {
            Ok(Attachment {
                container_id: entry.string("containerID")?.unwrap_or_default().to_owned(),
                ifname: entry.string("ifname")?.unwrap_or_default().to_owned(),
            })
        };
        entries.iter().map(attachment).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refused(text: &str) -> (u32, String) {
        let error = Config::parse(text.as_bytes().to_vec()).unwrap_err();
        (error.code, error.msg)
    }

    #[test]
    fn a_configuration_needs_json_and_a_usable_name() {
        assert_eq!(refused("{").0, 6);
        assert_eq!(refused("[]").0, 6);
        assert_eq!(refused("{}"), (7, "missing network name".into()));
        assert_eq!(refused("null"), (7, "missing network name".into()));
        assert_eq!(refused(r#"{"name":"a/b"}"#), (7, "invalid characters found in network name".into()));
        assert_eq!(Config::parse(br#"{"Name":"cbr0"}"#.to_vec()).unwrap().name(), "cbr0");
    }

    #[test]
    fn the_version_must_be_one_of_the_specification_and_defaults_to_the_first() {
        let version = |text: &str| Config::parse(text.as_bytes().to_vec()).unwrap().version();
        assert_eq!(version(r#"{"name":"a"}"#), Ok(Version::V0_1_0));
        assert_eq!(version(r#"{"name":"a","cniVersion":"1.1.0"}"#), Ok(Version::V1_1_0));
        let error = version(r#"{"name":"a","cniVersion":"9.9.9"}"#).unwrap_err();
        assert_eq!(
            error.details,
            r#"config is "9.9.9", plugin supports ["0.1.0" "0.2.0" "0.3.0" "0.3.1" "0.4.0" "1.0.0" "1.1.0"]"#
        );
    }

    proptest! {
        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Config::parse(bytes);
        }
    }
}
