//! What the configuration says to `firewall`.

use std::path::PathBuf;

use cni::json::DecodeError;
use cni::{Error, Request};

/// Where notes are kept unless the configuration says otherwise.
const DATA_DIR: &str = "/run/cni/firewall";

/// How packets are let through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    /// By what.
    pub(super) backend: Backend,
    /// The chain of iptables in which an administrator can overrule this plugin.
    pub(super) admin_chain: String,
    /// The zone of firewalld that addresses belong to.
    pub(super) zone: String,
    /// From where packets may come.
    pub(super) ingress_policy: IngressPolicy,
    /// Where it is noted whose addresses are let through.
    pub(super) data_dir: PathBuf,
}

/// By what packets are let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Backend {
    /// firewalld where it is running.
    Automatic,
    /// Rules of iptables.
    Iptables,
    /// firewalld.
    Firewalld,
}

/// From where packets may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IngressPolicy {
    /// From everywhere.
    Open,
    /// Not from other bridges.
    SameBridge,
    /// Nor from other containers of the bridge.
    Isolated,
}

impl IngressPolicy {
    const ALL: [IngressPolicy; 3] = [IngressPolicy::Open, IngressPolicy::SameBridge, IngressPolicy::Isolated];

    /// As the configuration calls it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            IngressPolicy::Open => "open",
            IngressPolicy::SameBridge => "same-bridge",
            IngressPolicy::Isolated => "isolated",
        }
    }
}

impl Settings {
    /// Reads and checks the configuration.
    pub(super) fn parse(request: &Request) -> Result<Settings, Error> {
        let unreadable = |error: DecodeError| Error::internal(format!("failed to load netconf: {error}"));
        let config = request.config.object();
        let text = |key: &str, default: &str| -> Result<String, Error> {
            let text = config.string(key).map_err(unreadable)?.filter(|text| !text.is_empty());
            Ok(text.unwrap_or(default).to_owned())
        };
        let backend = match text("backend", "")?.as_str() {
            "iptables" => Backend::Iptables,
            "firewalld" => Backend::Firewalld,
            // Compatibility: so is any other word.
            _ => Backend::Automatic,
        };
        let policy = text("ingressPolicy", "open")?;
        let known = IngressPolicy::ALL.into_iter().find(|known| known.as_str() == policy);
        let ingress_policy = known.ok_or_else(|| {
            Error::internal(format!("unknown ingress policy: {policy:?}"))
                .details("ingressPolicy can be \"open\", \"same-bridge\" or \"isolated\"")
        })?;
        Ok(Settings {
            backend,
            admin_chain: text("iptablesAdminChainName", "CNI-ADMIN")?,
            zone: text("firewalldZone", "trusted")?,
            ingress_policy,
            data_dir: text("dataDir", DATA_DIR)?.into(),
        })
    }
}
