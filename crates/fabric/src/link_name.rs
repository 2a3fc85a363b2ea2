//! [`LinkName`]: the name of a network device.

use std::fmt;
use std::str::FromStr;

/// The name of a network device: 1 to 15 bytes, no `/`, `:` or white space (`dev_valid_name` in
/// the kernel's `net/core/dev.c`). Held inline, since every route and neighbor carries one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkName {
    bytes: [u8; 15],
    len: u8,
}

/// A text that cannot name a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} cannot name a network device: want 1 to 15 bytes without '/', ':' or white space")]
pub struct LinkNameError(pub String);

impl LinkName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or_default()
    }
}

impl FromStr for LinkName {
    type Err = LinkNameError;

    fn from_str(text: &str) -> Result<LinkName, LinkNameError> {
        // The kernel would read no further than a NUL, and take another name.
        let forbidden = |c: char| matches!(c, '/' | ':' | '\0') || c.is_whitespace();
        if text.is_empty() || text.len() > 15 || text == "." || text == ".." || text.contains(forbidden) {
            return Err(LinkNameError(text.to_owned()));
        }
        let mut bytes = [0; 15];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Ok(LinkName { bytes, len: text.len() as u8 })
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_the_kernel_takes() {
        assert_eq!("flannel.1".parse::<LinkName>().unwrap().as_str(), "flannel.1");
        for bad in ["", "sixteen-letters!", "a/b", "a:b", "a b", "a\0b", ".", ".."] {
            assert!(bad.parse::<LinkName>().is_err(), "{bad:?} was taken");
        }
    }
}
