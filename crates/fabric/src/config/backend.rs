//! `Backend` in `net-conf.json`: how packets travel between nodes.

use super::json::Object;
use super::{ConfigError, TOP_LEVEL, nearest, refuse, shortened, warn_of_unknown_keys};
use crate::backend::{Backend, udp::Udp, vxlan::Vxlan};

/// The backends of the original. Those that are not in this build are told apart from typing errors.
const BACKENDS: [&str; 9] =
    ["alloc", "extension", "host-gw", "ipip", "ipsec", "tencent-vpc", "udp", "vxlan", "wireguard"];
/// The keys inside `Backend` of a vxlan network. `Name` is for Windows nodes alone, which may share
/// the configuration: known, and without effect here.
pub(super) const VXLAN: [&str; 9] =
    ["Type", "VNI", "Port", "MTU", "GBP", "Learning", "DirectRouting", "MacPrefix", "Name"];
/// The keys inside `Backend` of a host-gw network; all but `Type` are for Windows nodes alone.
const HOST_GW: [&str; 3] = ["Type", "Name", "DNSServerList"];
/// The keys inside `Backend` of a udp network; `AnySource` is ours.
const UDP: [&str; 3] = ["Type", "Port", "AnySource"];
/// The keys inside `Backend` of a network that is only leased.
const ALLOC: [&str; 1] = ["Type"];

/// Reads `Backend`, and warns of what is odd about it.
pub(super) fn read(top: &Object, warnings: &mut Vec<String>) -> Result<Backend, ConfigError> {
    let field = top.field("Backend");
    let Some(value) = field.raw() else {
        // Compatibility: the original's documentation says vxlan here, its code says udp. Taking
        // vxlan would cut such a node off from the others.
        if warnings.iter().any(|warning| warning.ends_with("did you mean Backend?")) {
            return Err(refuse("Backend is absent"));
        }
        warnings.push(
            "Backend is absent, which means Backend.Type udp; name it, or vxlan, which is faster".to_owned(),
        );
        return Ok(Backend::Udp(Udp::default()));
    };
    let keys = Object::parse(value).map_err(|error| {
        refuse(format_args!(
            "error decoding Backend property of config: {error}; Backend is {}, want an object such as \
             {{\"Type\": \"vxlan\"}}",
            shortened(value)
        ))
    })?;
    let name = keys.field_in("Backend.", "Type").string()?.unwrap_or_default();
    let elsewhere = || TOP_LEVEL.iter().map(|name| (*name, "at the top level, beside Backend"));
    match name.to_lowercase().as_str() {
        "vxlan" => {
            warn_of_unknown_keys(&keys, "Backend.", &VXLAN, elsewhere(), warnings);
            Vxlan::from_keys(&keys).map(Backend::Vxlan)
        }
        "host-gw" => {
            warn_of_unknown_keys(&keys, "Backend.", &HOST_GW, elsewhere(), warnings);
            Ok(Backend::HostGw)
        }
        "udp" => {
            warn_of_unknown_keys(&keys, "Backend.", &UDP, elsewhere(), warnings);
            Udp::from_keys(&keys).map(Backend::Udp)
        }
        "alloc" => {
            warn_of_unknown_keys(&keys, "Backend.", &ALLOC, elsewhere(), warnings);
            Ok(Backend::Alloc)
        }
        known if BACKENDS.contains(&known) => {
            Err(not_in_this_build(format_args!("Backend.Type is {}", shortened(&name))))
        }
        "" => Err(refuse(
            "unknown backend type: Backend.Type is not set; want one of vxlan, host-gw, udp, alloc",
        )),
        unknown => Err(refuse(format_args!(
            "unknown backend type: {}; Backend.Type wants one of vxlan, host-gw, udp, alloc{}",
            shortened(&name),
            nearest(unknown, BACKENDS).map_or(String::new(), |near| format!(" (did you mean {near}?)")),
        ))),
    }
}

fn not_in_this_build(what: impl std::fmt::Display) -> ConfigError {
    refuse(format_args!("{what}: known, but not in this build yet; use vxlan, host-gw, udp or alloc"))
}
