//! JSON as the reference library reads and writes it.
//!
//! Writing: `<`, `>`, `&`, U+2028 and U+2029 are escaped, indentation is four spaces, no newline at
//! the end. Reading: keys of known members match in any case, `null` is as good as absent, unknown
//! members are ignored, bytes that are not UTF-8 become U+FFFD.

use std::fmt;
use std::io;

use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter};
use serde_json::{Map, Value};

/// Writes a value on one line.
pub fn compact<T: Serialize + ?Sized>(value: &T) -> String {
    write(value, CompactFormatter)
}

/// Writes a value with four spaces of indentation.
pub fn pretty<T: Serialize + ?Sized>(value: &T) -> String {
    write(value, PrettyFormatter::with_indent(b"    "))
}

/// Reads a value; the error says where the text stops being JSON.
pub fn parse(text: &[u8]) -> Result<Value, String> {
    serde_json::from_str(&String::from_utf8_lossy(text)).map_err(|error| error.to_string())
}

fn write<T: Serialize + ?Sized, F: Formatter>(value: &T, layout: F) -> String {
    let mut bytes = Vec::with_capacity(512);
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, Escaping(layout));
    value.serialize(&mut serializer).expect("values of this crate have text keys and memory does not fail");
    String::from_utf8(bytes).expect("the serializer writes UTF-8")
}

/// A layout with the escapes that make JSON safe inside HTML.
struct Escaping<F>(F);

impl<F: Formatter> Formatter for Escaping<F> {
    fn write_string_fragment<W: io::Write + ?Sized>(&mut self, writer: &mut W, text: &str) -> io::Result<()> {
        let escaped = ['<', '>', '&', '\u{2028}', '\u{2029}'];
        let mut rest = text;
        while let Some(at) = rest.find(escaped) {
            let (plain, tail) = rest.split_at(at);
            let special = tail.chars().next().expect("find returned the start of a character");
            writer.write_all(plain.as_bytes())?;
            write!(writer, "\\u{:04x}", u32::from(special))?;
            rest = &tail[special.len_utf8()..];
        }
        writer.write_all(rest.as_bytes())
    }

    fn begin_array<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_array(writer)
    }
    fn end_array<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_array(writer)
    }
    fn begin_array_value<W: io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_array_value(writer, first)
    }
    fn end_array_value<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_array_value(writer)
    }
    fn begin_object<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object(writer)
    }
    fn end_object<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object(writer)
    }
    fn begin_object_key<W: io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_object_key(writer, first)
    }
    fn begin_object_value<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object_value(writer)
    }
    fn end_object_value<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object_value(writer)
    }
}

/// A member of a configuration that is not what it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodeError {
    /// Where, for example `ipam.ranges[0][0].subnet`.
    pub path: String,
    /// What must be there.
    pub rule: String,
    /// What is there, as JSON.
    pub found: String,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\" must be {}, found {}", self.path, self.rule, self.found)
    }
}

impl std::error::Error for DecodeError {}

/// A JSON object that knows where it stands in the configuration.
#[derive(Debug, Clone)]
pub struct Object<'a> {
    path: String,
    members: &'a Map<String, Value>,
}

impl<'a> Object<'a> {
    /// Takes a value that must be an object; `path` names it in errors, empty for the outermost.
    pub fn of(value: &'a Value, path: &str) -> Result<Object<'a>, DecodeError> {
        match value {
            Value::Object(members) => Ok(Object { path: path.to_owned(), members }),
            other => Err(wrong(if path.is_empty() { "configuration" } else { path }, "an object", other)),
        }
    }

    /// The member of that name in any case; `null` counts as absent.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        let exact = self.members.get(key);
        let any_case =
            || self.members.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, v)| v);
        exact.or_else(any_case).filter(|value| !value.is_null())
    }

    /// The members as they are.
    pub fn members(&self) -> &'a Map<String, Value> {
        self.members
    }

    /// A text member.
    pub fn string(&self, key: &str) -> Result<Option<&'a str>, DecodeError> {
        self.member(key, "a string", Value::as_str)
    }

    /// A member that is true or false.
    pub fn boolean(&self, key: &str) -> Result<Option<bool>, DecodeError> {
        self.member(key, "true or false", Value::as_bool)
    }

    /// A member that is a whole number.
    pub fn integer(&self, key: &str) -> Result<Option<i64>, DecodeError> {
        self.member(key, "a whole number", Value::as_i64)
    }

    /// A member that is an object.
    pub fn object(&self, key: &str) -> Result<Option<Object<'a>>, DecodeError> {
        self.get(key).map(|value| Object::of(value, &self.path_of(key))).transpose()
    }

    /// A member that is a list, each entry with its path.
    pub fn list(&self, key: &str) -> Result<Option<Vec<(String, &'a Value)>>, DecodeError> {
        let Some(list) = self.member(key, "a list", Value::as_array)? else { return Ok(None) };
        let path = self.path_of(key);
        Ok(Some(list.iter().enumerate().map(|(at, value)| (format!("{path}[{at}]"), value)).collect()))
    }

    /// A member that is a list of objects.
    pub fn objects(&self, key: &str) -> Result<Option<Vec<Object<'a>>>, DecodeError> {
        let Some(list) = self.list(key)? else { return Ok(None) };
        list.iter().map(|(path, value)| Object::of(value, path)).collect::<Result<_, _>>().map(Some)
    }

    /// A member that is a list of texts.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<String>>, DecodeError> {
        let Some(list) = self.list(key)? else { return Ok(None) };
        let text = |(path, value): (String, &Value)| match value.as_str() {
            Some(text) => Ok(text.to_owned()),
            None => Err(wrong(&path, "a string", value)),
        };
        list.into_iter().map(text).collect::<Result<_, _>>().map(Some)
    }

    /// A text member in a form of its own, an address for example; the empty text counts as absent.
    pub fn parsed<T: std::str::FromStr>(&self, key: &str, rule: &str) -> Result<Option<T>, DecodeError> {
        match self.string(key)? {
            None | Some("") => Ok(None),
            Some(text) => text
                .parse()
                .map(Some)
                .map_err(|_| wrong(&self.path_of(key), rule, &Value::String(text.to_owned()))),
        }
    }

    /// An error about a member of this object.
    pub fn error(&self, key: &str, rule: &str) -> DecodeError {
        wrong(&self.path_of(key), rule, self.get(key).unwrap_or(&Value::Null))
    }

    fn member<T>(
        &self,
        key: &str,
        rule: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, DecodeError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => read(value).map(Some).ok_or_else(|| wrong(&self.path_of(key), rule, value)),
        }
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

/// An error that shows what was found, shortened so that a whole configuration is not repeated.
fn wrong(path: &str, rule: &str, found: &Value) -> DecodeError {
    let mut text = compact(found);
    if let Some((at, _)) = text.char_indices().nth(60) {
        text.truncate(at);
        text.push('…');
    }
    DecodeError { path: path.to_owned(), rule: rule.to_owned(), found: text }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn members_of_objects_come_out_sorted_by_name() {
        assert_eq!(compact(&json!({"b": 1, "a": {"d": [], "c": {}}})), r#"{"a":{"c":{},"d":[]},"b":1}"#);
    }

    #[test]
    fn what_html_would_read_is_escaped() {
        assert_eq!(compact("<a>&\u{2028}é"), r#""\u003ca\u003e\u0026\u2028é""#);
    }

    #[test]
    fn keys_match_in_any_case_and_the_exact_one_wins() {
        let value = json!({"MTU": 1, "isgateway": true, "mtu": 2, "vlan": null});
        let object = Object::of(&value, "").unwrap();
        assert_eq!(object.integer("mtu"), Ok(Some(2)));
        assert_eq!(object.boolean("isGateway"), Ok(Some(true)));
        assert_eq!(object.integer("vlan"), Ok(None));
    }

    #[test]
    fn a_wrong_member_is_named_with_its_path_and_value() {
        let value = json!({"ipam": {"ranges": [{"subnet": 5}]}});
        let ipam = Object::of(&value, "").unwrap().object("ipam").unwrap().unwrap();
        let range = &ipam.objects("ranges").unwrap().unwrap()[0];
        let error = range.string("subnet").unwrap_err();
        assert_eq!(error.to_string(), r#""ipam.ranges[0].subnet" must be a string, found 5"#);
    }

    proptest! {
        #[test]
        fn any_text_survives_escaping(text in ".*") {
            prop_assert_eq!(parse(pretty(&text).as_bytes()), Ok(Value::String(text)));
        }

        #[test]
        fn garbage_is_an_error_and_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
