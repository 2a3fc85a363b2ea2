//! The table of flags.

use super::{Flags, Password};
use store::Secret;

/// One flag.
pub struct Flag {
    /// Its name, without dashes.
    pub name: &'static str,
    /// What it takes and where that goes.
    pub kind: Kind,
    /// Its value when it is not given, as it would be typed.
    pub default: &'static str,
    /// What it does.
    pub doc: &'static str,
}

/// What a flag takes, and the field it sets.
#[derive(Clone, Copy)]
pub enum Kind {
    /// On or off.
    Switch(fn(&mut Flags) -> &mut bool),
    /// A whole number.
    Number(fn(&mut Flags) -> &mut i64),
    /// Any text.
    Text(fn(&mut Flags) -> &mut String),
    /// Any text; each occurrence adds one.
    List(fn(&mut Flags) -> &mut Vec<String>),
    /// A text that is never shown.
    Secret(fn(&mut Flags) -> &mut Password),
}

use Kind::{List, Number, Switch, Text};

const fn flag(name: &'static str, kind: Kind, default: &'static str, doc: &'static str) -> Flag {
    Flag { name, kind, default, doc }
}

/// Every flag, in the order of the usage text.
#[rustfmt::skip] // a table
pub const TABLE: &[Flag] = &[
    // Where leases come from.
    flag("store", Text(|f| &mut f.store), "etcd",
        "where leases come from: `etcd`, or `file:DIR` for a directory shared by the nodes of one machine"),
    flag("etcd-endpoints", Text(|f| &mut f.etcd_endpoints), "http://127.0.0.1:4001,http://127.0.0.1:2379",
        "a comma-delimited list of etcd endpoints"),
    flag("etcd-prefix", Text(|f| &mut f.etcd_prefix), "/coreos.com/network", "etcd prefix"),
    flag("etcd-keyfile", Text(|f| &mut f.etcd_keyfile), "", "the key of the client certificate for etcd, PEM"),
    flag("etcd-certfile", Text(|f| &mut f.etcd_certfile), "", "the client certificate for etcd, PEM"),
    flag("etcd-cafile", Text(|f| &mut f.etcd_cafile), "", "the certificate authorities that etcd's certificate is checked against, PEM"),
    flag("etcd-username", Text(|f| &mut f.etcd_username), "", "the etcd user"),
    flag("etcd-password", Kind::Secret(|f| &mut f.etcd_password), "", "the password of the etcd user; better given as FLANNELD_ETCD_PASSWORD, since arguments are visible to every user"),
    flag("subnet-lease-renew-margin", Number(|f| &mut f.subnet_lease_renew_margin), "60", "subnet lease renewal margin, in minutes, 1 to 1439"),
    // Which interface leads to the other nodes.
    flag("iface", List(|f| &mut f.iface), "", "interface to use (IP or name) for inter-host communication; can be given several times, the first that is found is used"),
    flag("iface-regex", List(|f| &mut f.iface_regex), "", "regex to match the first interface to use (IP or name); can be given several times, tried after each -iface failed"),
    flag("iface-can-reach", Text(|f| &mut f.iface_can_reach), "", "use the interface and source address that lead to this IP; tried after -iface and -iface-regex failed"),
    flag("public-ip", Text(|f| &mut f.public_ip), "", "IPv4 address that other nodes reach this one by, if it is not the interface's own"),
    flag("public-ipv6", Text(|f| &mut f.public_ipv6), "", "IPv6 address that other nodes reach this one by, if it is not the interface's own"),
    // What the node does.
    flag("subnet-file", Text(|f| &mut f.subnet_file), "/run/flannel/subnet.env", "file to write the pod subnet to; status.json, leases.json and flanneld.lock are kept beside it"),
    flag("ip-masq", Switch(|f| &mut f.ip_masq), "false", "masquerade traffic that leaves the overlay network"),
    flag("ip-masq-ipv4", Switch(|f| &mut f.ip_masq_ipv4), "true", "whether -ip-masq is about IPv4"),
    flag("ip-masq-ipv6", Switch(|f| &mut f.ip_masq_ipv6), "true", "whether -ip-masq is about IPv6"),
    flag("ip-masq-except", List(|f| &mut f.ip_masq_except), "", "destination, such as 192.168.0.0/16, that sees pod addresses unmasqueraded; can be given several times"),
    flag("ip-masq-fully-random-disable", Switch(|f| &mut f.ip_masq_fully_random_disable), "false", "do not let masquerading choose source ports fully at random"),
    flag("iptables-forward-rules", Switch(|f| &mut f.iptables_forward_rules), "true", "accept forwarded traffic from and to the overlay network"),
    flag("iptables-resync", Number(|f| &mut f.iptables_resync), "5", "taken for compatibility: rules are put back as soon as the kernel says they changed"),
    flag("ip-blackhole-route", Switch(|f| &mut f.ip_blackhole_route), "false", "keep a blackhole route for the pod subnet of this node"),
    flag("plain-routes", Switch(|f| &mut f.plain_routes), "false", "never use next-hop objects for routes, so that each route shows its gateway"),
    flag("reconcile-interval", Number(|f| &mut f.reconcile_interval), "10", "seconds after which the kernel is compared with the leases even if nothing seems to have changed"),
    // How it is watched.
    flag("healthz-ip", Text(|f| &mut f.healthz_ip), "0.0.0.0", "address to serve /healthz, /readyz and /metrics on"),
    flag("healthz-port", Number(|f| &mut f.healthz_port), "0", "port to serve /healthz, /readyz and /metrics on; 0 turns them off"),
    flag("ipam-dir", Text(|f| &mut f.ipam_dir), "/var/lib/cni/networks", "where the plugin host-local keeps its addresses, for /metrics to count them"),
    flag("log-format", Text(|f| &mut f.log_format), "auto", "`text` for people, `klog` as the original writes, or `json`; `auto` is text on a terminal and klog elsewhere"),
    flag("v", Number(|f| &mut f.verbosity), "0", "log verbosity: 1 shows each change made to the kernel, 5 everything"),
    flag("version", Switch(|f| &mut f.version), "false", "print version and exit"),
    // Kubernetes.
    flag("kube-subnet-mgr", Switch(|f| &mut f.kube_subnet_mgr), "false", "take leases from the Kubernetes API instead of etcd: a node's are its podCIDRs"),
    flag("kube-api-url", Text(|f| &mut f.kube.api_url), "", "Kubernetes API server URL; not needed in a pod"),
    flag("kubeconfig-file", Text(|f| &mut f.kube.kubeconfig_file), "", "kubeconfig file; not needed in a pod"),
    flag("kube-annotation-prefix", Text(|f| &mut f.kube.annotation_prefix), "flannel.alpha.coreos.com", "what flannel's annotations of nodes begin with; a slash is appended unless there is one"),
    flag("net-config-path", Text(|f| &mut f.kube.net_config_path), "/etc/kube-flannel/net-conf.json", "file with the network configuration, with Kubernetes only"),
    flag("set-node-network-unavailable", Switch(|f| &mut f.kube.set_node_network_unavailable), "true", "keep the node's condition NetworkUnavailable: False once pods reach pods of other nodes, True while they cannot"),
    flag("remove-startup-taint", List(|f| &mut f.kube.startup_taints), "", "key of a taint to take off the node once it is ready; can be given several times, needs the right to patch nodes"),
    flag("allocate-node-cidrs", Switch(|f| &mut f.kube.allocate), "false", "hand out podCIDRs to nodes, where no controller-manager does; one flanneld at a time does, whoever holds a lock in the API"),
    // Compatibility: the flags of the original's log library, taken and without effect.
    flag("vmodule", Text(|f| &mut f.klog.text), "", "taken for compatibility, without effect"),
    flag("log_backtrace_at", Text(|f| &mut f.klog.text), "", "taken for compatibility, without effect"),
    flag("logtostderr", Switch(|f| &mut f.klog.switch), "true", "taken for compatibility, without effect"),
    flag("alsologtostderr", Switch(|f| &mut f.klog.switch), "false", "taken for compatibility, without effect"),
    flag("stderrthreshold", Text(|f| &mut f.klog.text), "INFO", "taken for compatibility, without effect"),
];

impl Flag {
    /// The environment variable that stands in for the flag.
    pub fn variable(&self) -> String {
        let name = self.name.to_ascii_uppercase().replace(['.', '-'], "_");
        format!("FLANNELD_{name}")
    }

    /// Whether the flag is on or off, so that it takes no word after it.
    pub fn is_switch(&self) -> bool {
        matches!(self.kind, Switch(_))
    }

    /// Reads `value` into its field; the error says what was wanted, never what was given.
    pub fn set(&self, flags: &mut Flags, value: &str) -> Result<(), &'static str> {
        match self.kind {
            Switch(field) => *field(flags) = switch(value).ok_or("want true or false")?,
            Number(field) => *field(flags) = number(value).ok_or("want a whole number")?,
            Text(field) => *field(flags) = value.to_owned(),
            List(field) => field(flags).push(value.to_owned()),
            Kind::Secret(field) => *field(flags) = Password(Some(Secret(value.to_owned()))),
        }
        Ok(())
    }

    /// `value` as it may be shown.
    pub fn shown<'a>(&self, value: &'a str) -> &'a str {
        if matches!(self.kind, Kind::Secret(_)) { "[redacted]" } else { value }
    }
}

/// Go's `strconv.ParseBool`.
fn switch(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// Go's `strconv.ParseInt` with base 0: a sign, a base prefix, `_` between digits and behind the prefix.
fn number(text: &str) -> Option<i64> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = match lower.as_str() {
        d if d.starts_with("0x") => (16, &d[2..]),
        d if d.starts_with("0o") => (8, &d[2..]),
        d if d.starts_with("0b") => (2, &d[2..]),
        d if d.starts_with('0') && d.len() > 1 => (8, &d[1..]),
        d => (10, d),
    };
    let underscores_fit =
        !digits.ends_with('_') && !digits.contains("__") && (radix != 10 || !digits.starts_with('_'));
    let digits = digits.replace('_', "");
    if !underscores_fit || digits.is_empty() || digits.starts_with(['+', '-']) {
        return None;
    }
    let magnitude = i128::from_str_radix(&digits, radix).ok()?;
    i64::try_from(if negative { -magnitude } else { magnitude }).ok()
}
