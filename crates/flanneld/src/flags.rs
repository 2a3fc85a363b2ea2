//! [`Flags`]: what was typed. One table, [`TABLE`], holds name, default and meaning of each flag.
//!
//! The names, defaults and rules are the original's (Go's `flag` package): `-x` and `--x` are the
//! same; a value follows after `=` or as the next word; a flag that is on or off takes its value
//! only after `=`; the first word that is no flag ends the flags. What is not on the command line is
//! looked up in the environment, `FLANNELD_ETCD_ENDPOINTS` for `-etcd-endpoints`; an empty variable
//! counts as none, and one that cannot be read is logged and passed over.
//!
//! A few variables have no flag: `NODE_NAME`, or `POD_NAME` and `POD_NAMESPACE`, say which node of
//! Kubernetes this is; see [`store::KubeOptions`].
//!
//! What differs: a bad flag ends with status 2, where the original ends with 0, which a supervisor
//! takes for success.

mod parse;
mod table;

pub use parse::{Parsed, Unusable, parse, usage};
pub use table::TABLE;

use store::Secret;

/// Everything that can be typed, not yet checked for sense.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// `-etcd-endpoints`
    pub etcd_endpoints: String,
    /// `-etcd-prefix`
    pub etcd_prefix: String,
    /// `-etcd-keyfile`
    pub etcd_keyfile: String,
    /// `-etcd-certfile`
    pub etcd_certfile: String,
    /// `-etcd-cafile`
    pub etcd_cafile: String,
    /// `-etcd-username`
    pub etcd_username: String,
    /// `-etcd-password`
    pub etcd_password: Password,
    /// `-store`
    pub store: String,
    /// `-iface`
    pub iface: Vec<String>,
    /// `-iface-regex`
    pub iface_regex: Vec<String>,
    /// `-iface-can-reach`
    pub iface_can_reach: String,
    /// `-subnet-file`
    pub subnet_file: String,
    /// `-public-ip`
    pub public_ip: String,
    /// `-public-ipv6`
    pub public_ipv6: String,
    /// `-subnet-lease-renew-margin`
    pub subnet_lease_renew_margin: i64,
    /// `-ip-masq`
    pub ip_masq: bool,
    /// `-ip-masq-ipv4`
    pub ip_masq_ipv4: bool,
    /// `-ip-masq-ipv6`
    pub ip_masq_ipv6: bool,
    /// `-ip-masq-except`
    pub ip_masq_except: Vec<String>,
    /// `-ip-masq-fully-random-disable`
    pub ip_masq_fully_random_disable: bool,
    /// `-iptables-forward-rules`
    pub iptables_forward_rules: bool,
    /// `-iptables-resync`
    pub iptables_resync: i64,
    /// `-ip-blackhole-route`
    pub ip_blackhole_route: bool,
    /// `-plain-routes`
    pub plain_routes: bool,
    /// `-reconcile-interval`
    pub reconcile_interval: i64,
    /// `-healthz-ip`
    pub healthz_ip: String,
    /// `-healthz-port`
    pub healthz_port: i64,
    /// `-ipam-dir`
    pub ipam_dir: String,
    /// `-kube-subnet-mgr`
    pub kube_subnet_mgr: bool,
    /// `-kube-api-url`, `-kubeconfig-file` and the others that only matter with Kubernetes.
    pub kube: Kube,
    /// `-log-format`
    pub log_format: String,
    /// `-v`
    pub verbosity: i64,
    /// `-vmodule`, `-log_backtrace_at` and the other flags of the original's log library, which are
    /// taken and have no effect.
    pub klog: Klog,
    /// `-version`
    pub version: bool,
}

/// The flags about Kubernetes.
#[derive(Debug, Clone, Default)]
pub struct Kube {
    /// `-kube-api-url`
    pub api_url: String,
    /// `-kubeconfig-file`
    pub kubeconfig_file: String,
    /// `-kube-annotation-prefix`
    pub annotation_prefix: String,
    /// `-net-config-path`
    pub net_config_path: String,
    /// `-set-node-network-unavailable`
    pub set_node_network_unavailable: bool,
    /// `-remove-startup-taint`
    pub startup_taints: Vec<String>,
    /// `-allocate-node-cidrs`
    pub allocate: bool,
}

/// The flags of the original's log library.
#[derive(Debug, Clone, Default)]
pub struct Klog {
    /// Those with a value.
    pub text: String,
    /// Those that are on or off.
    pub switch: bool,
}

/// A password, never shown.
#[derive(Debug, Clone, Default)]
pub struct Password(pub Option<Secret>);

#[cfg(test)]
mod tests;
