//! Reads what the kernel answers. Nothing here trusts a length.

use std::net::IpAddr;

use rustix::io::Errno;

use super::{MESSAGE_DONE, MESSAGE_ERROR, NetlinkError, Refusal};

pub(super) const HEADER_LEN: usize = 16; // struct nlmsghdr
pub(super) const ACK_HAS_ATTRIBUTES: u16 = 0x200; // NLM_F_ACK_TLVS
const ATTRIBUTE_TYPE: u16 = 0x3fff; // NLA_TYPE_MASK
pub(super) const ERROR_TEXT: u16 = 1; // NLMSGERR_ATTR_MSG

/// A message in a received datagram.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// Of the socket that asked for it; in a notification, whose doing it tells of, if the kernel says so.
    pub(crate) port: u32,
    pub(crate) payload: &'a [u8],
}

impl Message<'_> {
    /// The refusal in an error or done message; none if all went well.
    pub(super) fn refusal(&self) -> Result<Option<Refusal>, NetlinkError> {
        let Some(code) = read_i32(self.payload, 0) else {
            // An empty "done" is how some old dumps end.
            return if self.kind == MESSAGE_DONE {
                Ok(None)
            } else {
                Err(NetlinkError::Malformed("an error message without its number"))
            };
        };
        if code >= 0 {
            return Ok(None);
        }
        // struct nlmsgerr: the number, then the header of the refused message (NETLINK_CAP_ACK cuts
        // the rest off), then attributes. A "done" has the number alone before its attributes.
        let before_attributes = if self.kind == MESSAGE_ERROR { 4 + HEADER_LEN } else { 4 };
        let text = (self.flags & ACK_HAS_ATTRIBUTES != 0)
            .then(|| attributes(self.payload.get(before_attributes..).unwrap_or_default()))
            .and_then(|mut found| found.find(|(kind, _)| *kind == ERROR_TEXT))
            .map(|(_, text)| read_text(text));
        Ok(Some(Refusal { errno: Errno::from_raw_os_error(code.saturating_neg().clamp(1, 4095)), text }))
    }
}

/// The messages of a datagram, up to the first that claims more bytes than there are.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = read_u32(bytes, 0)? as usize;
        if length < HEADER_LEN {
            return None;
        }
        let message = Message {
            kind: read_u16(bytes, 4)?,
            flags: read_u16(bytes, 6)?,
            sequence: read_u32(bytes, 8)?,
            port: read_u32(bytes, 12)?,
            payload: bytes.get(HEADER_LEN..length)?,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes in `bytes` as (type without flags, value), up to the first that claims more bytes
/// than there are.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(read_u16(bytes, 0)?);
        let kind = read_u16(bytes, 2)? & ATTRIBUTE_TYPE;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The byte at `at`.
pub fn read_u8(bytes: &[u8], at: usize) -> Option<u8> {
    bytes.get(at).copied()
}

/// Two bytes at `at` in the machine's order.
pub fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

/// Four bytes at `at` in the machine's order.
pub fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// Four bytes at `at` in the machine's order, signed.
pub fn read_i32(bytes: &[u8], at: usize) -> Option<i32> {
    read_u32(bytes, at).map(|value| value as i32)
}

/// Four bytes at `at` in network order.
pub fn read_be32(bytes: &[u8], at: usize) -> Option<u32> {
    read_u32(bytes, at).map(u32::from_be)
}

/// A text up to its first zero byte or its end.
pub fn read_text(bytes: &[u8]) -> String {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

/// An IP address in network order, by its length.
pub fn read_ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}
