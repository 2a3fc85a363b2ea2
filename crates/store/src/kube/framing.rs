//! Cuts what the server sends into Nodes, however the network has cut it: a watch is a line for each,
//! a list one object with an array. Only one Node is held at a time. Pure.

use serde::Deserialize;

/// No object is larger than what etcd takes, a few megabytes.
const LARGEST: usize = 16 << 20;
/// What is kept of a buffer that one large Node has blown up.
const USUAL: usize = 64 << 10;

/// What was being read is larger than any object can be.
#[derive(Debug)]
pub(super) struct TooLarge;

/// Cuts a watch into lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// The beginning of a line that has not ended yet.
    begun: Vec<u8>,
}

impl Lines {
    /// Hands every line that this chunk ends to `each`.
    pub(super) fn feed<E: From<TooLarge>>(
        &mut self,
        mut chunk: &[u8],
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while let Some(end) = memchr::memchr(b'\n', chunk) {
            let (line, rest) = (&chunk[..end], &chunk[end + 1..]);
            if self.begun.is_empty() {
                each(line)?;
            } else {
                self.begun.extend_from_slice(line);
                let outcome = each(&self.begun);
                empty(&mut self.begun);
                outcome?;
            }
            chunk = rest;
        }
        self.begun.extend_from_slice(chunk);
        if self.begun.len() > LARGEST { Err(TooLarge.into()) } else { Ok(()) }
    }
}

/// Cuts a list into its items.
#[derive(Debug, Default)]
pub(super) struct Items {
    /// All that is not in an item: the list without them.
    around: Vec<u8>,
    item: Vec<u8>,
    /// How many objects and arrays are open, the list itself included.
    depth: usize,
    /// Of those two deep, whether it is an array: the items.
    in_items: bool,
    in_text: bool,
    escaped: bool,
}

/// What a list says of itself.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ListMetadata {
    pub(super) resource_version: String,
    /// Asks for the rest of the list; empty at its end.
    pub(super) r#continue: String,
}

impl Items {
    /// Hands every item that this chunk ends to `each`.
    pub(super) fn feed<E: From<TooLarge>>(
        &mut self,
        chunk: &[u8],
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        for &byte in chunk {
            let was_inside = self.in_items && self.depth > 2;
            self.step(byte);
            let is_inside = self.in_items && self.depth > 2;
            if was_inside || is_inside {
                self.item.push(byte);
                if !is_inside {
                    let outcome = each(&self.item);
                    empty(&mut self.item);
                    outcome?;
                }
            } else if !(self.in_items && self.depth == 2 && byte == b',') {
                self.around.push(byte);
            }
        }
        if self.item.len().max(self.around.len()) > LARGEST { Err(TooLarge.into()) } else { Ok(()) }
    }

    fn step(&mut self, byte: u8) {
        if self.in_text {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_text = false,
                _ => {}
            }
            return;
        }
        match byte {
            b'"' => self.in_text = true,
            b'{' | b'[' => {
                self.depth += 1;
                if self.depth == 2 {
                    self.in_items = byte == b'[';
                }
            }
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                if self.depth < 2 {
                    self.in_items = false;
                }
            }
            _ => {}
        }
    }

    /// What the list has said of itself; fails if it has not ended.
    pub(super) fn end(self) -> Result<ListMetadata, String> {
        #[derive(Deserialize)]
        struct List {
            metadata: ListMetadata,
        }
        match serde_json::from_slice::<List>(&self.around) {
            Ok(list) => Ok(list.metadata),
            Err(error) => Err(format!("no list of nodes: {error}")),
        }
    }
}

fn empty(buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.shrink_to(USUAL);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl From<TooLarge> for String {
        fn from(_: TooLarge) -> String {
            "too large".to_owned()
        }
    }

    fn text(bytes: &[u8]) -> String {
        String::from_utf8_lossy(bytes).into_owned()
    }

    fn keep_in(found: &mut Vec<String>) -> impl FnMut(&[u8]) -> Result<(), String> {
        |piece| {
            found.push(text(piece));
            Ok(())
        }
    }

    fn cut_list(list: &str, at: &[usize]) -> (Vec<String>, Result<ListMetadata, String>) {
        let (mut items, mut found, mut rest) = (Items::default(), Vec::new(), list.as_bytes());
        for cut in at {
            let (chunk, next) = rest.split_at((*cut).min(rest.len()));
            items.feed(chunk, keep_in(&mut found)).unwrap();
            rest = next;
        }
        items.feed(rest, keep_in(&mut found)).unwrap();
        (found, items.end())
    }

    proptest! {
        #[test]
        fn wherever_a_watch_is_cut_its_lines_are_whole(cuts in proptest::collection::vec(0usize..9, 0..12)) {
            let watch = "{\"a\":1}\n{\"b\":\"\\n\"}\n\n{\"c\":3}\n{\"d\"";
            let (mut lines, mut found, mut rest) = (Lines::default(), Vec::new(), watch.as_bytes());
            for cut in cuts {
                let (chunk, next) = rest.split_at(cut.min(rest.len()));
                lines.feed(chunk, keep_in(&mut found)).unwrap();
                rest = next;
            }
            lines.feed(rest, keep_in(&mut found)).unwrap();
            prop_assert_eq!(found, ["{\"a\":1}", "{\"b\":\"\\n\"}", "", "{\"c\":3}"]);
        }

        #[test]
        fn wherever_a_list_is_cut_its_items_are_whole(cuts in proptest::collection::vec(0usize..40, 0..12)) {
            let list = r#"{"kind":"NodeList","metadata":{"resourceVersion":"7","continue":"c"},"items":[{"a":"]}\\\""} , {"b":[{},[1]]},{}]}"#;
            let (found, end) = cut_list(list, &cuts);
            prop_assert_eq!(found, [r#"{"a":"]}\\\""}"#, r#"{"b":[{},[1]]}"#, "{}"]);
            let end = end.unwrap();
            prop_assert_eq!((end.resource_version.as_str(), end.r#continue.as_str()), ("7", "c"));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::sample::select(&b"{}[]\",\\a:0"[..]), 0..60)) {
            let mut items = Items::default();
            let _ = items.feed::<String>(&bytes, |_| Ok(()));
            let _ = items.end();
        }
    }

    #[test]
    fn a_list_that_is_torn_or_no_list_is_an_error() {
        assert!(cut_list(r#"{"metadata":{},"items":[{"a":1},"#, &[]).1.is_err());
        assert!(cut_list("<html>", &[]).1.is_err());
        assert!(cut_list(r#"{"metadata":{},"items":null}"#, &[]).1.is_ok(), "Go's empty list");
    }

    #[test]
    fn a_line_without_an_end_is_given_up() {
        let mut lines = Lines::default();
        let chunk = vec![b'a'; 1 << 20];
        let fed = (0..20).try_for_each(|_| lines.feed::<String>(&chunk, |_| Ok(())));
        assert_eq!(fed.unwrap_err(), "too large");
    }
}
