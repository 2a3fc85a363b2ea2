//! The API in protobuf, as far as a lease needs it: cheaper than JSON for us, and much cheaper for the
//! server, which keeps its objects in it. Pure.
//!
//! A watch is a sequence of frames, each a length of four bytes and a `WatchEvent`; an object is the
//! letters `k8s`, a zero and an `Unknown` that wraps it. Numbers of fields are those of `generated.proto`
//! in k8s.io/api and k8s.io/apimachinery, and never change.

use std::borrow::Cow;
use std::time::{Duration, UNIX_EPOCH};

use super::framing::{ListMetadata, TooLarge};
use super::object::{Entry, Object};
use super::time;

/// No object is larger than what etcd takes, a few megabytes.
const LARGEST: usize = 16 << 20;
/// What is kept of a buffer that one large Node has blown up.
const USUAL: usize = 64 << 10;
const MAGIC: &[u8] = b"k8s\0";

/// A field: its number, and its content.
type Field<'a> = (u64, Content<'a>);

#[derive(Debug, Clone, Copy)]
enum Content<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// Of a fixed length, which nothing here has.
    Fixed,
}

/// A number as protobuf writes it, and what comes after; none if it has not ended.
fn varint(bytes: &[u8]) -> Result<Option<(u64, &[u8])>, String> {
    let mut number = 0u64;
    for (index, byte) in bytes.iter().enumerate().take(10) {
        number |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Ok(Some((number, &bytes[index + 1..])));
        }
    }
    if bytes.len() < 10 { Ok(None) } else { Err("a number that does not end".to_owned()) }
}

/// The first field of a message, and what comes after; none if it has not ended.
fn field(bytes: &[u8]) -> Result<Option<(Field<'_>, &[u8])>, String> {
    let Some((tag, rest)) = varint(bytes)? else { return Ok(None) };
    let fixed = |length: usize| rest.get(length..).map(|rest| ((tag >> 3, Content::Fixed), rest));
    Ok(match tag & 7 {
        0 => varint(rest)?.map(|(number, rest)| ((tag >> 3, Content::Number(number)), rest)),
        1 => fixed(8),
        2 => {
            let Some((length, rest)) = varint(rest)? else { return Ok(None) };
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            rest.split_at_checked(length).map(|(content, rest)| ((tag >> 3, Content::Bytes(content)), rest))
        }
        5 => fixed(4),
        other => return Err(format!("a field of the kind {other}")),
    })
}

/// The fields of a whole message.
fn fields(mut bytes: &[u8]) -> impl Iterator<Item = Result<Field<'_>, String>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let next = match field(bytes) {
            Ok(Some((field, rest))) => {
                bytes = rest;
                return Some(Ok(field));
            }
            Ok(None) => "a message that is cut off".to_owned(),
            Err(why) => why,
        };
        bytes = &[];
        Some(Err(next))
    })
}

fn text(bytes: &[u8]) -> Result<Cow<'_, str>, String> {
    std::str::from_utf8(bytes).map(Cow::Borrowed).map_err(|_| "a text that is not UTF-8".to_owned())
}

/// Cuts a watch into frames.
#[derive(Debug, Default)]
pub(super) struct Frames {
    begun: Vec<u8>,
}

impl Frames {
    /// Hands every frame that this chunk ends to `each`.
    pub(super) fn feed<E: From<TooLarge>>(
        &mut self,
        chunk: &[u8],
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.begun.is_empty() {
            let used = cut(chunk, &mut each)?;
            self.begun.extend_from_slice(&chunk[used..]);
        } else {
            self.begun.extend_from_slice(chunk);
            let used = cut(&self.begun, &mut each)?;
            self.begun.drain(..used);
            self.begun.shrink_to(USUAL);
        }
        if self.begun.len() > LARGEST { Err(TooLarge.into()) } else { Ok(()) }
    }
}

/// Hands on all whole frames; how many bytes those were.
fn cut<E>(bytes: &[u8], each: &mut impl FnMut(&[u8]) -> Result<(), E>) -> Result<usize, E> {
    let mut rest = bytes;
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = u32::from_be_bytes(*length) as usize;
        let Some((frame, after)) = after.split_at_checked(length) else { break };
        each(frame)?;
        rest = after;
    }
    Ok(bytes.len() - rest.len())
}

/// Cuts a list into its items.
#[derive(Debug, Default)]
pub(super) struct Items {
    begun: Vec<u8>,
    /// How far into the wrapping we are.
    place: Place,
    metadata: ListMetadata,
    /// How many bytes of the list are still to come.
    left: usize,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Place {
    #[default]
    Start,
    Wrapping,
    List,
    End,
}

impl Items {
    /// Hands every item that this chunk ends to `each`.
    pub(super) fn feed<E: From<TooLarge> + From<String>>(
        &mut self,
        chunk: &[u8],
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.begun.extend_from_slice(chunk);
        let begun = std::mem::take(&mut self.begun);
        let mut rest = begun.as_slice();
        while self.place != Place::End {
            let Some(after) = self.step(rest, &mut each)? else { break };
            rest = after;
        }
        if rest.len() > LARGEST {
            return Err(TooLarge.into());
        }
        self.begun = rest.to_vec();
        Ok(())
    }

    /// Takes one thing from the front; none if it has not come whole.
    fn step<'a, E: From<String>>(
        &mut self,
        bytes: &'a [u8],
        each: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<Option<&'a [u8]>, E> {
        match self.place {
            Place::End => Ok(None),
            Place::Start => match bytes.strip_prefix(MAGIC) {
                Some(rest) => {
                    self.place = Place::Wrapping;
                    Ok(Some(rest))
                }
                None if bytes.len() < MAGIC.len() => Ok(None),
                None => Err("no object of Kubernetes".to_owned().into()),
            },
            Place::Wrapping => {
                // The list is the second field. It is long: only its beginning is waited for.
                let Some((tag, after)) = varint(bytes)? else { return Ok(None) };
                if tag == (2 << 3 | 2) {
                    let Some((length, rest)) = varint(after)? else { return Ok(None) };
                    self.left = usize::try_from(length).unwrap_or(usize::MAX);
                    self.place = if self.left == 0 { Place::End } else { Place::List };
                    return Ok(Some(rest));
                }
                Ok(field(bytes)?.map(|(_, rest)| rest))
            }
            Place::List => {
                let Some(((number, content), rest)) = field(bytes)? else { return Ok(None) };
                match (number, content) {
                    (1, Content::Bytes(metadata)) => self.metadata = list_metadata(metadata)?,
                    (2, Content::Bytes(item)) => each(item)?,
                    _ => {}
                }
                self.left = self.left.saturating_sub(bytes.len() - rest.len());
                if self.left == 0 {
                    self.place = Place::End;
                }
                Ok(Some(rest))
            }
        }
    }

    /// What the list has said of itself; fails if it has not ended.
    pub(super) fn end(self) -> Result<ListMetadata, String> {
        match self.place {
            Place::End => Ok(self.metadata),
            _ => Err("no list of nodes: it is cut off".to_owned()),
        }
    }
}

fn list_metadata(bytes: &[u8]) -> Result<ListMetadata, String> {
    let mut metadata = ListMetadata::default();
    for field in fields(bytes) {
        match field? {
            (2, Content::Bytes(version)) => metadata.resource_version = text(version)?.into_owned(),
            (3, Content::Bytes(next)) => metadata.r#continue = text(next)?.into_owned(),
            _ => {}
        }
    }
    Ok(metadata)
}

/// Reads one frame of a watch.
pub(super) fn entry(frame: &[u8]) -> Result<Entry<'_>, String> {
    let mut entry = Entry::default();
    for field in fields(frame) {
        match field? {
            (1, Content::Bytes(kind)) => entry.kind = text(kind)?,
            (2, Content::Bytes(wrapped)) => {
                for field in fields(wrapped) {
                    if let (1, Content::Bytes(raw)) = field? {
                        entry.object = wrapped_object(raw)?;
                    }
                }
            }
            _ => {}
        }
    }
    Ok(entry)
}

/// Reads an object in its wrapping.
fn wrapped_object(raw: &[u8]) -> Result<Object<'_>, String> {
    let unknown = raw.strip_prefix(MAGIC).ok_or("no object of Kubernetes")?;
    let mut is_status = false;
    for field in fields(unknown) {
        match field? {
            (1, Content::Bytes(kind)) => {
                for field in fields(kind) {
                    is_status |= matches!(field?, (2, Content::Bytes(b"Status")));
                }
            }
            (2, Content::Bytes(content)) if is_status => return status(content),
            (2, Content::Bytes(content)) => return object(content),
            _ => {}
        }
    }
    Err("an empty object".to_owned())
}

fn status(bytes: &[u8]) -> Result<Object<'_>, String> {
    let mut object = Object::default();
    for field in fields(bytes) {
        match field? {
            (3, Content::Bytes(message)) => object.message = Some(text(message)?),
            (6, Content::Number(code)) => object.code = u16::try_from(code).ok(),
            _ => {}
        }
    }
    Ok(object)
}

/// What a server that refuses says, if that is what this is.
pub(super) fn refusal(body: &[u8]) -> Option<String> {
    wrapped_object(body).ok()?.message.map(Cow::into_owned)
}

/// Reads a Node. Its status, most of it, is passed over.
pub(super) fn object(bytes: &[u8]) -> Result<Object<'_>, String> {
    let mut object = Object::default();
    for field in fields(bytes) {
        match field? {
            (1, Content::Bytes(metadata)) => read_metadata(metadata, &mut object)?,
            (2, Content::Bytes(spec)) => {
                for field in fields(spec) {
                    match field? {
                        (1, Content::Bytes(cidr)) => object.spec.pod_cidr = Some(text(cidr)?),
                        (7, Content::Bytes(cidr)) => {
                            object.spec.pod_cidrs.get_or_insert_default().push(text(cidr)?);
                        }
                        _ => {}
                    }
                }
                break;
            }
            _ => {}
        }
    }
    Ok(object)
}

fn read_metadata<'a>(bytes: &'a [u8], object: &mut Object<'a>) -> Result<(), String> {
    let metadata = &mut object.metadata;
    for field in fields(bytes) {
        match field? {
            (1, Content::Bytes(name)) => metadata.name = text(name)?,
            (5, Content::Bytes(uid)) => metadata.uid = text(uid)?,
            (6, Content::Bytes(version)) => metadata.resource_version = text(version)?,
            (8, Content::Bytes(created)) => {
                for field in fields(created) {
                    if let (1, Content::Number(seconds)) = field? {
                        // What no clock shows is no date.
                        let created =
                            UNIX_EPOCH.checked_add(Duration::from_secs(seconds & u64::from(u32::MAX)));
                        metadata.creation_timestamp = created.map(|created| time::format(created).into());
                    }
                }
            }
            (12, Content::Bytes(pair)) => {
                let (mut name, mut value) = (Cow::Borrowed(""), "");
                for field in fields(pair) {
                    match field? {
                        (1, Content::Bytes(bytes)) => name = text(bytes)?,
                        (2, Content::Bytes(bytes)) => {
                            value = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
                        }
                        _ => {}
                    }
                }
                metadata.annotate(name, value);
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PREFIX: &str = "flannel.alpha.coreos.com/";

    fn number(mut value: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while value >= 0x80 {
            bytes.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        bytes.push(value as u8);
        bytes
    }

    fn part(field: usize, content: &[u8]) -> Vec<u8> {
        [number(field << 3 | 2), number(content.len()), content.to_vec()].concat()
    }

    fn node() -> Vec<u8> {
        let created = [number(8), number(1_795_262_400), number(16), number(0)].concat();
        let pair = [part(1, format!("{PREFIX}public-ip").as_bytes()), part(2, b"192.0.2.1")].concat();
        let other = [part(1, b"other"), part(2, b"x")].concat();
        let metadata = [
            part(1, b"n1"),
            part(5, b"u1"),
            part(6, b"42"),
            [number(7 << 3), number(300)].concat(),
            part(8, &created),
            part(12, &other),
            part(12, &pair),
            part(17, b"managed fields"),
        ];
        let spec = [part(1, b"10.0.1.0/24"), part(7, b"10.0.1.0/24"), part(7, b"fd00::/64")].concat();
        [part(1, &metadata.concat()), part(2, &spec), part(3, &[0xff; 200])].concat()
    }

    fn wrapped(kind: &str, content: &[u8]) -> Vec<u8> {
        let meta = [part(1, b"v1"), part(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), part(1, &meta), part(2, content), part(3, b"")].concat()
    }

    fn frame(kind: &str, object: &[u8]) -> Vec<u8> {
        let event = [part(1, kind.as_bytes()), part(2, &part(1, object))].concat();
        [(event.len() as u32).to_be_bytes().to_vec(), event].concat()
    }

    #[test]
    fn a_node_is_read_and_its_status_is_not_even_looked_at() {
        let node = node();
        let object = object(&node).unwrap();
        assert_eq!((&*object.metadata.name, &*object.metadata.uid), ("n1", "u1"));
        assert_eq!((&*object.metadata.resource_version, object.created()), ("42", 1_795_262_400));
        assert_eq!(object.pod_cidrs().collect::<Vec<_>>(), ["10.0.1.0/24", "fd00::/64"]);
        assert_eq!(object.annotation(PREFIX, "public-ip").as_deref(), Some("192.0.2.1"));
        assert_eq!(object.any_annotation("other").as_deref(), Some("x"));
    }

    #[test]
    fn a_status_is_told_apart_from_a_node() {
        let content = [part(3, b"too old"), number(6 << 3), number(410)].concat();
        let frame = frame("ERROR", &wrapped("Status", &content));
        let entry = entry(&frame[4..]).unwrap();
        assert_eq!((&*entry.kind, entry.object.code), ("ERROR", Some(410)));
        assert_eq!(entry.object.message.as_deref(), Some("too old"));
        assert_eq!(refusal(&wrapped("Status", &content)).as_deref(), Some("too old"));
        assert_eq!(refusal(b"<html>"), None);
    }

    proptest! {
        #[test]
        fn wherever_a_watch_is_cut_its_frames_are_whole(cuts in proptest::collection::vec(0usize..300, 0..8)) {
            let watch = [frame("ADDED", &wrapped("Node", &node())), frame("DELETED", &wrapped("Node", &node()))].concat();
            let (mut frames, mut kinds, mut rest) = (Frames::default(), Vec::new(), watch.as_slice());
            let mut keep = |frame: &[u8]| -> Result<(), String> {
                kinds.push(entry(frame)?.kind.into_owned());
                Ok(())
            };
            for at in cuts {
                let (chunk, next) = rest.split_at(at.min(rest.len()));
                frames.feed(chunk, &mut keep).unwrap();
                rest = next;
            }
            frames.feed(rest, &mut keep).unwrap();
            prop_assert_eq!(kinds, ["ADDED", "DELETED"]);
        }

        #[test]
        fn wherever_a_list_is_cut_its_items_are_whole(cuts in proptest::collection::vec(0usize..300, 0..8)) {
            let metadata = [part(2, b"7"), part(3, b"more")].concat();
            let content = [part(1, &metadata), part(2, &node()), part(2, &node())].concat();
            let list = wrapped("NodeList", &content);
            let (mut items, mut count, mut rest) = (Items::default(), 0, list.as_slice());
            let mut keep = |item: &[u8]| -> Result<(), String> {
                count += usize::from(object(item)?.metadata.name == "n1");
                Ok(())
            };
            for at in cuts {
                let (chunk, next) = rest.split_at(at.min(rest.len()));
                items.feed(chunk, &mut keep).unwrap();
                rest = next;
            }
            items.feed(rest, &mut keep).unwrap();
            prop_assert_eq!(count, 2);
            let end = items.end().unwrap();
            prop_assert_eq!((end.resource_version.as_str(), end.r#continue.as_str()), ("7", "more"));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..80), at in 0usize..300) {
            let _ = (object(&bytes).map(drop), entry(&bytes).map(drop), refusal(&bytes));
            let mut torn = node();
            torn.truncate(at);
            torn.extend_from_slice(&bytes);
            let _ = object(&torn).map(|object| object.digest(PREFIX));
            let mut items = Items::default();
            let _ = items.feed(&[MAGIC, &bytes].concat(), |_| Ok::<(), String>(()));
            let _ = Frames::default().feed(&bytes, |_| Ok::<(), String>(()));
        }
    }

    #[test]
    fn a_list_that_is_cut_off_is_an_error_and_an_empty_one_is_none() {
        let mut items = Items::default();
        let list = wrapped("NodeList", &[part(1, &part(2, b"7")), part(2, &node())].concat());
        items.feed(&list[..100], |_| Ok::<(), String>(())).unwrap();
        assert!(items.end().is_err());
        let mut items = Items::default();
        items.feed(&wrapped("NodeList", &part(1, &part(2, b"7"))), |_| Ok::<(), String>(())).unwrap();
        assert_eq!(items.end().unwrap().resource_version, "7");
    }
}
