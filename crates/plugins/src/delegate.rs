//! Calling another plugin.
//!
//! Which program a name stands for is decided by `CNI_PATH`, as everywhere. If that program is the one
//! that is running, the plugin is called in this process: on the same files and locks, only without
//! the time that starting a program takes.

use std::fs;
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

/// Whether a file is the running program, under whatever name or link.
fn is_this_program(path: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    identity(path).is_some_and(|file| Some(file) == identity(Path::new("/proc/self/exe")))
}
