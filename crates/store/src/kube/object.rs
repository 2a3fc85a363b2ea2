//! What of a Node matters to a lease, borrowed from the text that the server sent.
//!
//! A Node is some 15 KB of JSON, of which a lease needs 500 bytes, near the front. Reading stops once
//! it has seen those: images and conditions, most of a Node, are not even looked at.

use std::borrow::Cow;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// An entry of a watch.
#[derive(Debug, Default)]
pub(super) struct Entry<'a> {
    pub(super) kind: Cow<'a, str>,
    pub(super) object: Object<'a>,
}

/// A Node, or where the server has something else to say, a Status.
#[derive(Debug, Default)]
pub(super) struct Object<'a> {
    pub(super) metadata: Metadata<'a>,
    pub(super) spec: Spec<'a>,
    /// Of a Status.
    pub(super) code: Option<u16>,
    pub(super) message: Option<Cow<'a, str>>,
    /// Reading has stopped, since all that matters was seen.
    is_complete: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Metadata<'a> {
    #[serde(borrow)]
    pub(super) name: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) uid: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) resource_version: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) creation_timestamp: Option<Cow<'a, str>>,
    #[serde(borrow)]
    annotations: Option<Annotations<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Spec<'a> {
    #[serde(borrow, rename = "podCIDR")]
    pub(super) pod_cidr: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "podCIDRs")]
    pub(super) pod_cidrs: Option<Vec<Cow<'a, str>>>,
}

/// All annotations, their values as they are written: most are of no interest, and are not decoded.
#[derive(Debug, Default)]
struct Annotations<'a>(Vec<(Cow<'a, str>, Written<'a>)>);

/// The value of an annotation.
#[derive(Debug, Clone, Copy)]
enum Written<'a> {
    Json(&'a RawValue),
    Text(&'a str),
}

impl Written<'_> {
    /// None if it is no text: the server stores texts only.
    fn text(self) -> Option<String> {
        match self {
            Written::Json(value) => serde_json::from_str(value.get()).ok(),
            Written::Text(text) => Some(text.to_owned()),
        }
    }
}

impl<'a> Metadata<'a> {
    /// Adds an annotation.
    pub(super) fn annotate(&mut self, name: Cow<'a, str>, value: &'a str) {
        self.annotations.get_or_insert_default().0.push((name, Written::Text(value)));
    }
}

/// Reads one entry of a watch.
pub(super) fn entry(line: &[u8]) -> Result<Entry<'_>, String> {
    let mut entry = Entry::default();
    let outcome = EntrySeed(&mut entry).deserialize(&mut serde_json::Deserializer::from_slice(line));
    match outcome {
        Err(error) if !entry.object.is_complete => Err(error.to_string()),
        _ => Ok(entry),
    }
}

/// Reads one item of a list, or the answer to a GET.
pub(super) fn object(text: &[u8]) -> Result<Object<'_>, String> {
    let mut object = Object::default();
    let seed = ObjectSeed { object: &mut object, may_stop: true };
    match seed.deserialize(&mut serde_json::Deserializer::from_slice(text)) {
        Err(error) if !object.is_complete => Err(error.to_string()),
        _ => Ok(object),
    }
}

impl<'a> Object<'a> {
    /// Flannel's annotations by the rest of their names, after the prefix, each value as written.
    fn annotations_raw<'b>(&'b self, prefix: &'b str) -> impl Iterator<Item = (&'b str, Written<'a>)> {
        let all = self.metadata.annotations.iter().flat_map(|annotations| &annotations.0);
        all.filter_map(move |(name, value)| Some((name.strip_prefix(prefix)?, *value)))
    }

    /// One of flannel's annotations.
    pub(super) fn annotation(&self, prefix: &str, name: &str) -> Option<String> {
        let (_, value) = self.annotations_raw(prefix).find(|(found, _)| *found == name)?;
        value.text()
    }

    /// An annotation by its whole name.
    pub(super) fn any_annotation(&self, name: &str) -> Option<String> {
        self.annotation(name, "")
    }

    /// Flannel's annotations by the rest of their names.
    pub(super) fn annotations<'b>(
        &'b self,
        prefix: &'b str,
    ) -> impl Iterator<Item = (String, String)> + use<'a, 'b> {
        self.annotations_raw(prefix).filter_map(|(name, value)| Some((name.to_owned(), value.text()?)))
    }

    /// The pod subnets as written.
    pub(super) fn pod_cidrs(&self) -> impl Iterator<Item = &str> {
        // Compatibility: podCIDR counts only where podCIDRs is empty.
        let several = self.spec.pod_cidrs.iter().flatten().map(|text| &**text);
        let single = match &self.spec.pod_cidrs {
            Some(several) if !several.is_empty() => None,
            _ => self.spec.pod_cidr.as_deref(),
        };
        several.chain(single).filter(|text| !text.is_empty())
    }

    /// A number that differs between two Nodes if anything differs that a lease depends on.
    pub(super) fn digest(&self, prefix: &str) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.metadata.uid.hash(&mut hasher);
        for (name, value) in self.annotations_raw(prefix) {
            name.hash(&mut hasher);
            match value {
                Written::Json(value) => value.get().hash(&mut hasher),
                Written::Text(text) => text.hash(&mut hasher),
            }
        }
        for subnet in self.pod_cidrs() {
            subnet.hash(&mut hasher);
        }
        hasher.finish()
    }

    /// When the Node was created, in seconds since 1970; a later one is younger.
    pub(super) fn created(&self) -> u64 {
        self.metadata.creation_timestamp.as_deref().and_then(super::time::parse).unwrap_or(u64::MAX >> 1)
    }
}

struct EntrySeed<'s, 'a>(&'s mut Entry<'a>);

impl<'a> DeserializeSeed<'a> for EntrySeed<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'a> Visitor<'a> for EntrySeed<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an entry of a watch")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(Text(key)) = map.next_key()? {
            match &*key {
                "type" => self.0.kind = map.next_value::<Text>()?.0,
                "object" => {
                    let may_stop = !self.0.kind.is_empty();
                    map.next_value_seed(ObjectSeed { object: &mut self.0.object, may_stop })?;
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

struct ObjectSeed<'s, 'a> {
    object: &'s mut Object<'a>,
    /// Nothing that comes after the object matters.
    may_stop: bool,
}

impl<'a> DeserializeSeed<'a> for ObjectSeed<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'a> Visitor<'a> for ObjectSeed<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a Node")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        let (mut has_metadata, mut has_spec) = (false, false);
        while let Some(Text(key)) = map.next_key()? {
            match &*key {
                "metadata" => (self.object.metadata, has_metadata) = (map.next_value()?, true),
                "spec" => (self.object.spec, has_spec) = (map.next_value()?, true),
                "code" => self.object.code = map.next_value()?,
                "message" => self.object.message = map.next_value::<Option<Text>>()?.map(|text| text.0),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
            if has_metadata && has_spec && self.may_stop {
                self.object.is_complete = true;
                return Err(A::Error::custom("enough was read"));
            }
        }
        Ok(())
    }
}

/// A text, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Annotations<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Annotations<'a>, D::Error> {
        struct Pairs;

        impl<'de> Visitor<'de> for Pairs {
            type Value = Annotations<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("annotations")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Annotations<'de>, A::Error> {
                let mut pairs = Vec::new();
                while let Some((Text(name), value)) = map.next_entry()? {
                    pairs.push((name, Written::Json(value)));
                }
                Ok(Annotations(pairs))
            }
        }
        from.deserialize_map(Pairs)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PREFIX: &str = "flannel.alpha.coreos.com/";
    const NODE: &str = r#"{"kind":"Node","apiVersion":"v1","metadata":{"name":"n\u0031","uid":"u1",
        "resourceVersion":"42","creationTimestamp":"2026-11-21T12:00:00Z","annotations":{"other":"x",
        "flannel.alpha.coreos.com/backend-data":"{\"VNI\":1}","flannel.alpha.coreos.com/kube-subnet-manager":"true"},
        "managedFields":[{"fieldsV1":{"f:status":{}}}]},"spec":{"podCIDR":"10.0.1.0/24",
        "podCIDRs":["10.0.1.0/24","fd00:0:0:1::/64"]},"status":{"images":[1,2,3]}}"#;

    #[test]
    fn what_matters_is_read_and_the_rest_is_not_even_looked_at() {
        let broken = NODE.replace(r#"{"images":[1,2,3]}"#, "nonsense");
        assert_ne!(broken, NODE);
        for text in [NODE, &broken] {
            let object = object(text.as_bytes()).unwrap();
            assert_eq!(object.metadata.name, "n1");
            assert_eq!(object.created(), 1_795_262_400);
            assert_eq!(object.pod_cidrs().collect::<Vec<_>>(), ["10.0.1.0/24", "fd00:0:0:1::/64"]);
            assert_eq!(object.annotation(PREFIX, "backend-data").as_deref(), Some(r#"{"VNI":1}"#));
            assert_eq!(object.annotation(PREFIX, "other"), None);
            assert_eq!(object.any_annotation("other").as_deref(), Some("x"));
            assert_eq!(object.annotations(PREFIX).count(), 2);
        }
    }

    #[test]
    fn an_entry_is_read_whatever_its_order() {
        for text in [
            format!(r#"{{"type":"ADDED","object":{NODE}}}"#),
            format!(r#"{{"object":{NODE},"type":"ADDED"}}"#),
        ] {
            let entry = entry(text.as_bytes()).unwrap();
            assert_eq!((&*entry.kind, &*entry.object.metadata.uid), ("ADDED", "u1"));
        }
        let gone =
            r#"{"type":"ERROR","object":{"kind":"Status","metadata":{},"message":"too old","code":410}}"#;
        let entry = entry(gone.as_bytes()).unwrap();
        assert_eq!((entry.object.code, entry.object.message.as_deref()), (Some(410), Some("too old")));
    }

    #[test]
    fn a_node_may_have_next_to_nothing() {
        for text in [
            "{}",
            r#"{"metadata":{"name":"a","annotations":null},"spec":{}}"#,
            r#"{"metadata":{},"spec":{"podCIDRs":null}}"#,
        ] {
            let object = object(text.as_bytes()).unwrap();
            assert_eq!(object.pod_cidrs().count() + object.annotations(PREFIX).count(), 0, "{text}");
        }
        let single = object(br#"{"spec":{"podCIDR":"10.0.1.0/24","podCIDRs":[]},"metadata":{}}"#).unwrap();
        assert_eq!(single.pod_cidrs().collect::<Vec<_>>(), ["10.0.1.0/24"]);
    }

    #[test]
    fn the_digest_changes_with_what_a_lease_depends_on_and_with_nothing_else() {
        let digest = |text: &str| object(text.as_bytes()).unwrap().digest(PREFIX);
        for (from, to) in [
            (r#"VNI\":1"#, r#"VNI\":2"#),
            ("u1", "u2"),
            (r#""10.0.1.0/24","fd"#, r#""10.0.2.0/24","fd"#),
            (r#"manager":"true"#, r#"manager":"no"#),
        ] {
            assert!(NODE.contains(from), "{from}");
            assert_ne!(digest(NODE), digest(&NODE.replace(from, to)), "{from}");
        }
        for (from, to) in [("42", "43"), (r#""other":"x""#, r#""other":"y""#), ("[1,2,3]", "[]")] {
            assert!(NODE.contains(from), "{from}");
            assert_eq!(digest(NODE), digest(&NODE.replace(from, to)), "{from}");
        }
    }

    proptest! {
        #[test]
        fn a_torn_node_is_an_error_or_read_but_never_a_panic(
            cut in 0usize..600, junk in "[{}\\[\\]\",:a0]{0,6}"
        ) {
            let mut text: String = NODE.chars().take(cut).collect();
            text.push_str(&junk);
            if let Ok(object) = object(text.as_bytes()) {
                object.digest(PREFIX);
                object.created();
            }
            let _ = entry(text.as_bytes());
        }
    }
}
