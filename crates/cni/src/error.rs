//! [`Error`]: the error object of a CNI plugin.

use std::fmt;

use serde::Serialize;

use crate::json;

/// An error as a plugin prints it on standard output, exit status 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Error {
    /// A number of [`code`], or 100 and above for a plugin's own.
    pub code: u32,
    /// What went wrong.
    pub msg: String,
    /// More about it; left out when empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub details: String,
}

/// The codes of the specification, section "Error".
pub mod code {
    /// The configuration asks for a version that the plugin does not speak.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// A field of the configuration is not supported.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// The container is unknown or gone.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// An environment variable is missing or wrong.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// Reading or writing failed.
    pub const IO: u32 = 5;
    /// The configuration is not JSON.
    pub const DECODING: u32 = 6;
    /// The configuration is wrong.
    pub const INVALID_CONFIG: u32 = 7;
    /// The network namespace is wrong (reference library).
    pub const INVALID_NETNS: u32 = 8;
    /// The cause will pass; the runtime should try again.
    pub const TRY_AGAIN_LATER: u32 = 11;
    /// STATUS: the plugin cannot serve ADD.
    pub const PLUGIN_NOT_AVAILABLE: u32 = 50;
    /// STATUS: the plugin cannot serve ADD, and existing containers may be cut off.
    pub const LIMITED_CONNECTIVITY: u32 = 51;
    /// Whatever a plugin has no number for.
    pub const INTERNAL: u32 = 999;
}

impl Error {
    /// An error with a code of the specification.
    pub fn new(code: u32, msg: impl Into<String>) -> Error {
        Error { code, msg: msg.into(), details: String::new() }
    }

    /// An error without a number of its own.
    pub fn internal(msg: impl Into<String>) -> Error {
        Error::new(code::INTERNAL, msg)
    }

    /// The same error with details.
    pub fn details(mut self, details: impl Into<String>) -> Error {
        self.details = details.into();
        self
    }

    /// The same error, saying first what was attempted, where it has no number of its own; an error
    /// with a number was worded by whoever gave it one and passes as it is.
    pub fn context(mut self, attempted: impl fmt::Display) -> Error {
        if self.code == code::INTERNAL {
            self.msg = format!("{attempted}: {}", self.msg);
        }
        self
    }

    /// What is printed on standard output.
    pub fn to_json(&self) -> String {
        json::pretty(self)
    }

    /// Reads an error object that another plugin printed.
    pub fn parse(output: &[u8]) -> Result<Error, String> {
        let value = json::parse(output)?;
        let object = json::Object::of(&value, "error").map_err(|e| e.to_string())?;
        let number = object.integer("code").map_err(|e| e.to_string())?.unwrap_or(0);
        let text = |key| object.string(key).map(Option::unwrap_or_default).map_err(|e| e.to_string());
        Ok(Error {
            code: u32::try_from(number).map_err(|_| format!("error code {number} is out of range"))?,
            msg: text("msg")?.to_owned(),
            details: text("details")?.to_owned(),
        })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.msg)?;
        if !self.details.is_empty() {
            write!(f, "; {}", self.details)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl From<json::DecodeError> for Error {
    fn from(error: json::DecodeError) -> Error {
        Error::internal(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_prints_as_the_reference_library_prints_it() {
        let error = Error::new(code::INVALID_CONFIG, "a <b> & \"c\"");
        assert_eq!(
            error.to_json(),
            "{\n    \"code\": 7,\n    \"msg\": \"a \\u003cb\\u003e \\u0026 \\\"c\\\"\"\n}"
        );
        let error = error.details("more");
        assert!(error.to_json().ends_with(",\n    \"details\": \"more\"\n}"));
        assert_eq!(Error::parse(error.to_json().as_bytes()), Ok(error));
    }

    #[test]
    fn context_is_put_before_plain_errors_only() {
        let plain = Error::internal("no route").context("failed to delegate add");
        assert_eq!(plain.msg, "failed to delegate add: no route");
        let numbered = Error::new(code::TRY_AGAIN_LATER, "later").context("failed to delegate add");
        assert_eq!(numbered.msg, "later");
    }
}
