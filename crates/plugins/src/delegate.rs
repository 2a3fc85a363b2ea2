//! Calling another plugin.
//!
//! Which program a name stands for is decided by `CNI_PATH`, as everywhere. If that program is the one
//! that is running, the plugin is called in this process: on the same files and locks, only without
//! the time that starting a program takes.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use cni::delegate::CallError;
use cni::{AddResult, Config, Environment, Plugin, Verb, delegate, plugin};

/// All plugins of this program.
pub const PLUGINS: &[&dyn Plugin] = &[
    &crate::flannel::Flannel,
    &crate::bandwidth::Bandwidth,
    &crate::bridge::Bridge,
    &crate::dhcp::Dhcp,
    &crate::dummy::Dummy,
    &crate::firewall::Firewall,
    &crate::host_device::HostDevice,
    &crate::host_local::HostLocal,
    &crate::ipvlan::Ipvlan,
    &crate::loopback::Loopback,
    &crate::macvlan::Macvlan,
    &crate::portmap::Portmap,
    &crate::ptp::Ptp,
    &crate::sbr::Sbr,
    &crate::static_addresses::Static,
    &crate::tap::Tap,
    &crate::tuning::Tuning,
    &crate::vlan::Vlan,
    &crate::vrf::Vrf,
];

/// The plugin of this program with that name.
pub fn by_name(name: &str) -> Option<&'static dyn Plugin> {
    PLUGINS.iter().copied().find(|plugin| plugin.name() == name)
}

/// Calls the plugin `name`; only ADD has a result.
pub(crate) fn call(
    name: &str,
    verb: Verb,
    environment: &Environment,
    config: Config,
) -> Result<Option<AddResult>, CallError> {
    let environment = environment.with_verb(verb);
    let program = delegate::find(name, &environment.path).map_err(CallError::Failed)?;
    if let Some(plugin) = by_name(name).filter(|_| is_this_program(&program)) {
        return plugin::dispatch(plugin, environment, config).map_err(CallError::Reported);
    }
    let output = delegate::execute(&program, &environment, config.bytes())?;
    if verb != Verb::Add {
        return Ok(None);
    }
    config
        .version()
        .and_then(|version| AddResult::parse(&output, version))
        .map(Some)
        .map_err(CallError::Failed)
}

/// Whether a file is the running program, under whatever name: by a link, or as the copy that `flannel`
/// is installed as, which begins with the same headers and build number and is as long.
fn is_this_program(path: &Path) -> bool {
    let own = Path::new("/proc/self/exe");
    let (Ok(file), Ok(ours)) = (fs::metadata(path), fs::metadata(own)) else { return false };
    let is_same = (file.dev(), file.ino()) == (ours.dev(), ours.ino());
    is_same || (file.len() == ours.len() && head(path).is_some_and(|head| Some(head) == self::head(own)))
}

/// The first page of a program.
fn head(path: &Path) -> Option<[u8; 4096]> {
    let mut head = [0; 4096];
    File::open(path).ok()?.read_exact(&mut head).ok()?;
    Some(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_of_this_program_is_this_program_and_another_build_is_not() {
        let program = fs::read("/proc/self/exe").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("bridge");
        let is_ours = |content: &[u8]| {
            fs::write(&file, content).unwrap();
            is_this_program(&file)
        };
        assert!(is_ours(&program));
        let mut other = program.clone();
        // Where the build number is, more or less.
        other[0x2c0] ^= 1;
        assert!(!is_ours(&other));
        assert!(!is_ours(&program[..program.len() - 1]) && !is_ours(b"#!/bin/sh\n"));
        assert!(!is_this_program(&dir.path().join("nothing")));
        std::os::unix::fs::symlink("/proc/self/exe", dir.path().join("host-local")).unwrap();
        assert!(is_this_program(&dir.path().join("host-local")));
    }
}
