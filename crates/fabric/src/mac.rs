//! [`Mac`]: an Ethernet address.

use std::fmt;
use std::str::FromStr;

/// An Ethernet (EUI-48) address, written `aa:bb:cc:dd:ee:ff`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

/// A text that is no Ethernet address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no MAC address: want six hexadecimal octets such as 0e:2a:01:02:03:04")]
pub struct MacError(pub String);

impl Mac {
    /// Six random octets made a unicast, locally administered address (IEEE 802 §8.2): the shape
    /// of every VTEP address of flannel.
    pub fn locally_administered(random: [u8; 6]) -> Mac {
        let mut octets = random;
        octets[0] = (octets[0] & 0xfe) | 0x02;
        Mac(octets)
    }

    /// Whether all octets are zero, which the kernel reports for devices without an address.
    pub fn is_zero(self) -> bool {
        self.0 == [0; 6]
    }
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Mac, MacError> {
        let bad = || MacError(text.to_owned());
        let mut octets = [0; 6];
        let mut parts = text.split([':', '-']);
        for octet in &mut octets {
            let part = parts.next().ok_or_else(bad)?;
            if part.len() != 2 || !part.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(bad());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(Mac(octets)) }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_and_bad_text_is_refused() {
        let mac: Mac = "0E:2a:01:02:03:ff".parse().unwrap();
        assert_eq!(mac.to_string(), "0e:2a:01:02:03:ff");
        for bad in ["", "0e:2a:01:02:03", "0e:2a:01:02:03:04:05", "0e:2a:01:02:03:g0", "+e:2a:01:02:03:04"] {
            assert!(bad.parse::<Mac>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn generated_addresses_are_unicast_and_local() {
        assert_eq!(Mac::locally_administered([0xff; 6]).0[0], 0xfe);
        assert_eq!(Mac::locally_administered([0x00; 6]).0[0], 0x02);
    }
}
