//! One JSON object as Go's `encoding/json` reads it into a struct.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{ConfigError, refuse, shortened};

/// An object: its keys and values in the order of the text, equal keys included.
pub(crate) struct Object {
    entries: Vec<(String, Box<RawValue>)>,
}

/// One field of a struct, as far as the object has it.
pub(crate) struct Field<'a> {
    path: &'static str,
    name: &'static str,
    value: Option<&'a str>,
}

/// Whether Go takes `key` for the field `name`: equal up to the case of letters.
///
/// Go folds by Unicode, in which two letters outside ASCII fold into it (long s, Kelvin sign).
pub(crate) fn same_key(name: &str, key: &str) -> bool {
    let fold = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    };
    name.chars().map(fold).eq(key.chars().map(fold))
}

impl Object {
    /// Reads one object and nothing after it; `null` is an object without keys.
    pub(crate) fn parse(text: &str) -> Result<Object, serde_json::Error> {
        serde_json::from_str(text)
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(key, _)| key.as_str())
    }

    pub(crate) fn field(&self, name: &'static str) -> Field<'_> {
        self.field_in("", name)
    }

    /// The last value of a key; `path` precedes its name in errors.
    pub(crate) fn field_in(&self, path: &'static str, name: &'static str) -> Field<'_> {
        let value =
            self.entries.iter().rev().find(|(key, _)| same_key(name, key)).map(|(_, value)| value.get());
        Field { path, name, value }
    }
}

impl<'a> Field<'a> {
    /// The value as JSON text.
    pub(crate) fn raw(&self) -> Option<&'a str> {
        self.value
    }

    pub(crate) fn is_null(&self) -> bool {
        self.value == Some("null")
    }

    /// What Go gives a type that reads itself: a string's content, else the JSON text, `null` included.
    pub(crate) fn text_of_any_kind(&self) -> Option<Cow<'a, str>> {
        self.value.map(|value| match serde_json::from_str(value) {
            Ok(text) => Cow::Owned(text),
            Err(_) => Cow::Borrowed(value),
        })
    }

    pub(crate) fn string(&self) -> Result<Option<String>, ConfigError> {
        self.read("string", "a text in quotes")
    }

    pub(crate) fn boolean(&self) -> Result<Option<bool>, ConfigError> {
        self.read("bool", "true or false, without quotes")
    }

    pub(crate) fn unsigned(&self) -> Result<Option<u64>, ConfigError> {
        self.read("uint", "a whole number from 0, without quotes")
    }

    pub(crate) fn integer(&self) -> Result<Option<i64>, ConfigError> {
        self.read("int", "a whole number, without quotes")
    }

    fn read<T: for<'de> Deserialize<'de>>(
        &self,
        go_type: &str,
        want: &str,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.value.filter(|_| !self.is_null()) else { return Ok(None) };
        serde_json::from_str(value).map(Some).map_err(|_| {
            let kind = match value.as_bytes().first() {
                Some(b'"') => "string",
                Some(b'{') => "object",
                Some(b'[') => "array",
                Some(b't' | b'f') => "bool",
                _ => "number",
            };
            self.refuse(format_args!("json: cannot unmarshal {kind} into a field of type {go_type}"), want)
        })
    }

    /// An error that names key, value and rule.
    pub(crate) fn refuse(&self, what: impl fmt::Display, want: impl fmt::Display) -> ConfigError {
        let value = self.value.map_or(Cow::Borrowed("not set"), |value| Cow::Owned(shortened(value)));
        refuse(format_args!("{what}: {}{} is {value}, want {want}", self.path, self.name))
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Object, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_unit<E>(self) -> Result<Object, E> {
                Ok(Object { entries: Vec::new() })
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Object { entries })
            }
        }
        from.deserialize_any(Entries)
    }
}
