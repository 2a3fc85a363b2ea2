//! [`Version`]: the versions of the CNI specification.

use std::fmt;

/// A released version of the CNI specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// `0.1.0`
    V0_1_0,
    /// `0.2.0`
    V0_2_0,
    /// `0.3.0`
    V0_3_0,
    /// `0.3.1`
    V0_3_1,
    /// `0.4.0`
    V0_4_0,
    /// `1.0.0`
    V1_0_0,
    /// `1.1.0`
    V1_1_0,
}

impl Version {
    /// All versions, oldest first.
    pub const ALL: [Version; 7] = [
        Version::V0_1_0,
        Version::V0_2_0,
        Version::V0_3_0,
        Version::V0_3_1,
        Version::V0_4_0,
        Version::V1_0_0,
        Version::V1_1_0,
    ];

    /// The newest version, which this crate answers `VERSION` with.
    pub const CURRENT: Version = Version::V1_1_0;

    /// The version as configurations write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Version::V0_1_0 => "0.1.0",
            Version::V0_2_0 => "0.2.0",
            Version::V0_3_0 => "0.3.0",
            Version::V0_3_1 => "0.3.1",
            Version::V0_4_0 => "0.4.0",
            Version::V1_0_0 => "1.0.0",
            Version::V1_1_0 => "1.1.0",
        }
    }

    /// Reads a version; it must be exactly one of [`Self::ALL`], and the empty text means 0.1.0.
    pub fn parse(text: &str) -> Option<Version> {
        if text.is_empty() {
            return Some(Version::V0_1_0);
        }
        Version::ALL.into_iter().find(|version| version.as_str() == text)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_reads_back_and_near_misses_do_not() {
        for version in Version::ALL {
            assert_eq!(Version::parse(version.as_str()), Some(version));
        }
        for wrong in ["1.0", "1.1.0 ", "v1.0.0", "0.3.2", "1.2.0"] {
            assert_eq!(Version::parse(wrong), None, "{wrong}");
        }
    }
}
