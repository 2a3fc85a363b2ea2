//! [`Batch`] and [`Encoder`]: messages and attributes as the kernel wants them.

use std::net::IpAddr;

use super::{NetlinkError, REQUEST};

const NESTED: u16 = 0x8000; // NLA_F_NESTED

/// Messages to be sent together, one after the other in one buffer.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    encoder: Encoder,
    starts: Vec<usize>,
}

impl Batch {
    /// Adds a message; `body` writes the family's header and the attributes. `NLM_F_REQUEST` is
    /// set by itself; sequence numbers are given when the batch is sent.
    pub fn push(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Encoder)) {
        let start = self.encoder.bytes.len();
        self.starts.push(start);
        self.encoder.put(&[0; 4]);
        self.encoder.put(&kind.to_ne_bytes());
        self.encoder.put(&(flags | REQUEST).to_ne_bytes());
        self.encoder.put(&[0; 8]);
        body(&mut self.encoder);
        let length = (self.encoder.bytes.len() - start) as u32;
        self.encoder.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        self.encoder.align();
    }

    /// Adds copies of all messages of another batch.
    pub fn append(&mut self, other: &Batch) {
        let offset = self.encoder.bytes.len();
        self.starts.extend(other.starts.iter().map(|start| start + offset));
        self.encoder.bytes.extend_from_slice(&other.encoder.bytes);
        self.encoder.too_long |= other.encoder.too_long;
    }

    /// How many messages there are.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether there is no message.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Takes all messages out, keeping the memory.
    pub fn clear(&mut self) {
        self.starts.clear();
        self.encoder.bytes.clear();
        self.encoder.too_long = false;
    }

    /// The messages as they go to the kernel.
    pub fn bytes(&self) -> &[u8] {
        &self.encoder.bytes
    }

    pub(super) fn check(&self) -> Result<(), NetlinkError> {
        if self.encoder.too_long {
            return Err(NetlinkError::TooLong("an attribute has more than 65,535 bytes"));
        }
        Ok(())
    }

    pub(super) fn range(&self, first: usize, end: usize) -> &[u8] {
        let to = self.starts.get(end).copied().unwrap_or(self.encoder.bytes.len());
        &self.encoder.bytes[self.starts[first]..to]
    }

    /// Where a chunk that begins with message `first` ends: at least one message further.
    pub(super) fn chunk_end(&self, first: usize, messages: usize, bytes: usize) -> usize {
        let most = (first + messages).min(self.len());
        (first + 1..=most).rev().find(|end| self.range(first, *end).len() <= bytes).unwrap_or(first + 1)
    }

    pub(super) fn set_sequence(&mut self, at: usize, sequence: u32) {
        let field = self.starts[at] + 8;
        self.encoder.bytes[field..field + 4].copy_from_slice(&sequence.to_ne_bytes());
    }

    pub(super) fn add_flags(&mut self, at: usize, flags: u16) {
        let field = self.starts[at] + 6;
        let old = u16::from_ne_bytes([self.encoder.bytes[field], self.encoder.bytes[field + 1]]);
        self.encoder.bytes[field..field + 2].copy_from_slice(&(old | flags).to_ne_bytes());
    }
}

/// Writes headers and attributes, each aligned to four bytes.
#[derive(Debug, Clone, Default)]
pub struct Encoder {
    bytes: Vec<u8>,
    too_long: bool,
}

impl Encoder {
    /// Bytes as they are: a family's header.
    pub fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// An attribute of these bytes.
    pub fn attribute(&mut self, kind: u16, value: &[u8]) {
        let start = self.open(kind);
        self.put(value);
        self.close(start);
    }

    /// An attribute without value.
    pub fn flag(&mut self, kind: u16) {
        self.attribute(kind, &[]);
    }

    /// An attribute of one byte.
    pub fn u8(&mut self, kind: u16, value: u8) {
        self.attribute(kind, &[value]);
    }

    /// An attribute of two bytes in the machine's order.
    pub fn u16(&mut self, kind: u16, value: u16) {
        self.attribute(kind, &value.to_ne_bytes());
    }

    /// An attribute of four bytes in the machine's order.
    pub fn u32(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_ne_bytes());
    }

    /// An attribute of two bytes in network order.
    pub fn be16(&mut self, kind: u16, value: u16) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// An attribute of four bytes in network order, as nftables wants its numbers.
    pub fn be32(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// An attribute of eight bytes in network order.
    pub fn be64(&mut self, kind: u16, value: u64) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// An attribute of a text with its terminating zero.
    pub fn text(&mut self, kind: u16, value: &str) {
        let start = self.open(kind);
        self.put(value.as_bytes());
        self.put(&[0]);
        self.close(start);
    }

    /// An attribute of an IP address in network order.
    pub fn ip(&mut self, kind: u16, ip: IpAddr) {
        match ip {
            IpAddr::V4(ip) => self.attribute(kind, &ip.octets()),
            IpAddr::V6(ip) => self.attribute(kind, &ip.octets()),
        }
    }

    /// An attribute that holds attributes, with the flag that says so.
    pub fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Encoder)) {
        self.nest_plain(kind | NESTED, body);
    }

    /// An attribute that holds attributes, without the flag: for the older parts of rtnetlink that
    /// were made before it and compare the whole type.
    pub fn nest_plain(&mut self, kind: u16, body: impl FnOnce(&mut Encoder)) {
        let start = self.open(kind);
        body(self);
        self.close(start);
    }

    /// The bytes written so far.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.put(&[0; 2]);
        self.put(&kind.to_ne_bytes());
        start
    }

    fn close(&mut self, start: usize) {
        let length = self.bytes.len() - start;
        // The length field has 16 bits: remembered here, refused when the batch is sent.
        self.too_long |= length > usize::from(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&(length as u16).to_ne_bytes());
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}
