//! [`Instance`]: one of several flannels on a host, told apart by the names of their subnet files.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// One flannel on a host. The only one, with the subnet file `subnet.env`, has no name.
///
/// Each keeps its files ([`crate::status::Files`]) and its firewall tables apart from the others' by
/// its name, and touches only routes of its own network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Instance(String);

/// The longest part of a name that goes into the name of a table.
const LONGEST: usize = 64;

impl Instance {
    /// The flannel whose subnet file this is: `vxlan` for `/run/vxlan.env`.
    pub fn of(subnet_file: &Path) -> Instance {
        match subnet_file.file_stem().and_then(|stem| stem.to_str()) {
            None | Some("subnet") => Instance::default(),
            Some(stem) => Instance(stem.to_owned()),
        }
    }

    /// Whether it is the one without a name.
    pub fn is_default(&self) -> bool {
        self.0.is_empty()
    }

    /// What the names of its files begin with.
    pub(crate) fn file_prefix(&self) -> String {
        if self.is_default() { String::new() } else { format!("{self}.") }
    }

    /// What the names of its firewall tables end with; `nft` reads letters, digits, `-` and `_`.
    pub(crate) fn table_suffix(&self) -> String {
        let readable = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
        let name: String = self.0.chars().take(LONGEST).map(readable).collect();
        if name.is_empty() { name } else { format!("-{name}") }
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_subnet_file_names_an_instance_and_its_tables() {
        let suffix = |path: &str| Instance::of(Path::new(path)).table_suffix();
        assert_eq!(suffix("/run/flannel/subnet.env"), "");
        assert_eq!(suffix("/vxlan.env"), "-vxlan");
        assert_eq!(suffix("/run/my net.v2.env"), "-my-net-v2");
        assert_eq!(suffix("/"), "");
    }
}
