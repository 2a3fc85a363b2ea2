//! [`Settings`]: the flags, checked. Nothing below this sees a flag.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use fabric::firewall::SourcePorts;
use fabric::instance::Instance;
use fabric::plan::{Masquerade, Options};
use fabric::status::Files;
use ipnet::IpNet;
use regex::Regex;
use store::{EtcdOptions, KubeOptions, Store, Terms};

use crate::flags::Flags;
use crate::interface::Wanted;
use crate::kubernetes;

/// What the operator wants, checked.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where leases come from.
    pub store: StoreChoice,
    /// How long leases live.
    pub terms: Terms,
    /// What Kubernetes is told beside the lease, if that is where leases come from.
    pub kubernetes: kubernetes::Wanted,
    /// Which interface leads to the other nodes.
    pub interface: Wanted,
    /// The files beside the subnet file.
    pub files: Files,
    /// What goes into the firewall and the routes.
    pub options: Options,
    /// What `FLANNEL_IPMASQ` says.
    pub ip_masq: bool,
    /// Where health is served, if it is.
    pub health: Option<(IpAddr, u16)>,
    /// Where host-local keeps its addresses.
    pub ipam_dir: PathBuf,
    /// Whether next-hop objects are not to be used.
    pub plain_routes: bool,
    /// After how long the kernel is looked at though nothing seems to have happened.
    pub interval: Duration,
}

/// A store that has not been opened yet.
#[derive(Debug, Clone)]
pub enum StoreChoice {
    /// etcd.
    Etcd(Box<EtcdOptions>),
    /// A directory.
    File(PathBuf),
    /// The Kubernetes API.
    Kube(Box<KubeOptions>),
}

impl StoreChoice {
    /// Opens it; nothing is contacted yet.
    pub fn open(&self, terms: Terms) -> anyhow::Result<Store> {
        let store = match self {
            StoreChoice::Etcd(options) => Store::etcd(EtcdOptions::clone(options))?,
            StoreChoice::File(dir) => Store::file(dir)?,
            StoreChoice::Kube(options) => Store::kube(KubeOptions::clone(options))?,
        };
        Ok(store.with_terms(terms))
    }
}

impl Settings {
    /// Checks what was typed. `variable` looks up the environment, for what has no flag.
    pub fn from_flags(flags: &Flags, variable: impl Fn(&str) -> Option<String>) -> anyhow::Result<Settings> {
        // Compatibility: the original's words.
        ensure!(
            (1..1440).contains(&flags.subnet_lease_renew_margin),
            "Invalid subnet-lease-renew-margin option, out of acceptable range: {} is not in 1 to 1439 (minutes)",
            flags.subnet_lease_renew_margin
        );
        ensure!(
            (1..=3600).contains(&flags.reconcile_interval),
            "-reconcile-interval={} is not in 1 to 3600 (seconds)",
            flags.reconcile_interval
        );
        Ok(Settings {
            store: if flags.kube_subnet_mgr { kube(flags, variable) } else { store(flags)? },
            terms: Terms {
                renew_margin: Duration::from_secs(60 * flags.subnet_lease_renew_margin.unsigned_abs()),
                ..Terms::default()
            },
            kubernetes: kubernetes::Wanted {
                condition: flags.kube.set_node_network_unavailable,
                startup_taints: flags.kube.startup_taints.clone(),
                allocate: flags.kube.allocate,
            },
            interface: interface(flags)?,
            files: Files::beside(Path::new(&flags.subnet_file)),
            options: options(flags)?,
            ip_masq: flags.ip_masq,
            health: health(flags)?,
            ipam_dir: PathBuf::from(&flags.ipam_dir),
            plain_routes: flags.plain_routes,
            interval: Duration::from_secs(flags.reconcile_interval.unsigned_abs()),
        })
    }
}

/// Compatibility: with `-kube-subnet-mgr`, whatever is said about other stores means nothing.
fn kube(flags: &Flags, variable: impl Fn(&str) -> Option<String>) -> StoreChoice {
    let kube = &flags.kube;
    StoreChoice::Kube(Box::new(KubeOptions {
        api_url: kube.api_url.clone(),
        kubeconfig_file: (!kube.kubeconfig_file.is_empty()).then(|| PathBuf::from(&kube.kubeconfig_file)),
        annotation_prefix: kube.annotation_prefix.clone(),
        net_config_path: PathBuf::from(&kube.net_config_path),
        ..KubeOptions::from_environment(variable)
    }))
}

fn store(flags: &Flags) -> anyhow::Result<StoreChoice> {
    if let Some(dir) = flags.store.strip_prefix("file:") {
        ensure!(!dir.is_empty(), "-store=file: names no directory; want -store=file:/var/lib/flannel");
        return Ok(StoreChoice::File(dir.into()));
    }
    ensure!(
        flags.store == "etcd",
        "-store={:?} is no store of this build; want etcd, or file:DIR for a directory on one machine; for the \
         Kubernetes API give -kube-subnet-mgr instead",
        flags.store
    );
    let path = |text: &str| (!text.is_empty()).then(|| PathBuf::from(text));
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let endpoints: Vec<_> =
        flags.etcd_endpoints.split(',').map(str::trim).filter(|e| !e.is_empty()).collect();
    ensure!(!endpoints.is_empty(), "-etcd-endpoints names no endpoint; want http://HOST:2379");
    let password = flags.etcd_password.0.clone().filter(|password| !password.0.is_empty());
    let username = text(&flags.etcd_username);
    if username.is_some() != password.is_some() {
        tracing::warn!("-etcd-username and -etcd-password count only together; logging in to etcd as nobody");
    }
    let both = username.is_some() && password.is_some();
    Ok(StoreChoice::Etcd(Box::new(EtcdOptions {
        endpoints: endpoints.into_iter().map(str::to_owned).collect(),
        prefix: flags.etcd_prefix.clone(),
        ca_file: path(&flags.etcd_cafile),
        cert_file: path(&flags.etcd_certfile),
        key_file: path(&flags.etcd_keyfile),
        username: username.filter(|_| both),
        password: password.filter(|_| both),
    })))
}

fn interface(flags: &Flags) -> anyhow::Result<Wanted> {
    let patterns = flags.iface_regex.iter().map(|pattern| {
        Regex::new(pattern)
            .with_context(|| format!("could not compile the IP address regex -iface-regex='{pattern}'"))
    });
    Ok(Wanted {
        names: flags.iface.clone(),
        patterns: patterns.collect::<Result<_, _>>()?,
        can_reach: parsed::<IpAddr>("-iface-can-reach", &flags.iface_can_reach, "an IP address")?,
        public_ipv4: parsed::<Ipv4Addr>("-public-ip", &flags.public_ip, "an IPv4 address")?,
        public_ipv6: parsed::<Ipv6Addr>("-public-ipv6", &flags.public_ipv6, "an IPv6 address")?,
    })
}

fn options(flags: &Flags) -> anyhow::Result<Options> {
    let except = flags.ip_masq_except.iter().map(|net| {
        let host = || net.parse::<IpAddr>().map(IpNet::from);
        net.parse::<IpNet>().map(|net| net.trunc()).or_else(|_| host()).with_context(|| {
            format!("-ip-masq-except={net:?} is no network; want one such as 192.168.0.0/16, and the flag again for each")
        })
    });
    Ok(Options {
        masquerade: Masquerade {
            ipv4: flags.ip_masq && flags.ip_masq_ipv4,
            ipv6: flags.ip_masq && flags.ip_masq_ipv6,
            except: except.collect::<Result<_, _>>()?,
            source_ports: if flags.ip_masq_fully_random_disable {
                SourcePorts::Kept
            } else {
                SourcePorts::FullyRandom
            },
        },
        forward_rules: flags.iptables_forward_rules,
        blackhole_route: flags.ip_blackhole_route,
        instance: Instance::of(Path::new(&flags.subnet_file)),
    })
}

fn health(flags: &Flags) -> anyhow::Result<Option<(IpAddr, u16)>> {
    if flags.healthz_port <= 0 {
        return Ok(None);
    }
    let port = u16::try_from(flags.healthz_port).with_context(|| {
        format!("-healthz-port={} is no port; want 1 to 65535, or 0 for none", flags.healthz_port)
    })?;
    Ok(Some((health_ip(&flags.healthz_ip)?, port)))
}

/// Compatibility: Go takes a name too, of which IPv4 comes first, and nothing at all for every address.
fn health_ip(text: &str) -> anyhow::Result<IpAddr> {
    if text.is_empty() {
        return Ok(Ipv4Addr::UNSPECIFIED.into());
    }
    let addresses = (text, 0).to_socket_addrs().with_context(|| {
        format!("-healthz-ip={text:?} is no IP address; want one of this host, or 0.0.0.0 for all")
    })?;
    let addresses = addresses.map(|address| address.ip());
    addresses.min_by_key(IpAddr::is_ipv6).with_context(|| format!("-healthz-ip={text:?} has no address"))
}

fn parsed<T: std::str::FromStr>(flag: &str, text: &str, want: &str) -> anyhow::Result<Option<T>> {
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse() {
        Ok(value) => Ok(Some(value)),
        Err(_) => bail!("{flag}={text:?} is not {want}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::parse;

    fn settings(line: &str) -> anyhow::Result<Settings> {
        let parsed = parse(line.split_whitespace().map(str::to_owned), |_| None).unwrap();
        Settings::from_flags(&parsed.flags, |name| (name == "NODE_NAME").then(|| "n1".to_owned()))
    }

    #[test]
    fn defaults_can_be_used() {
        let settings = settings("").unwrap();
        assert!(matches!(&settings.store, StoreChoice::Etcd(options) if options.endpoints.len() == 2));
        assert_eq!(settings.files.status, Path::new("/run/flannel/status.json"));
        assert_eq!(settings.health, None);
        assert_eq!(settings.terms.renew_margin, Duration::from_secs(3600));
        assert!(!settings.options.masquerade.ipv4 && settings.options.forward_rules);
    }

    #[test]
    fn masquerading_is_told_by_family_and_destination() {
        let options =
            settings("--ip-masq -ip-masq-ipv6=false -ip-masq-except 192.168.3.4/16 -ip-masq-except=fd00::7")
                .unwrap()
                .options;
        assert!(options.masquerade.ipv4 && !options.masquerade.ipv6);
        let except: Vec<_> = options.masquerade.except.iter().map(|net| net.to_string()).collect();
        assert_eq!(except, ["192.168.0.0/16", "fd00::7/128"]);
    }

    #[test]
    fn refusals_name_flag_value_and_what_would_do() {
        let cases = [
            (
                "-subnet-lease-renew-margin=0",
                "Invalid subnet-lease-renew-margin option, out of acceptable range",
            ),
            ("-subnet-lease-renew-margin=1440", "1 to 1439"),
            ("-store=consul", "-store=\"consul\" is no store of this build; want etcd"),
            ("-store=file:", "names no directory"),
            ("-etcd-endpoints=,", "-etcd-endpoints names no endpoint"),
            ("-public-ip=fd00::1", "-public-ip=\"fd00::1\" is not an IPv4 address"),
            ("-public-ipv6=192.0.2.1", "-public-ipv6=\"192.0.2.1\" is not an IPv6 address"),
            ("-iface-can-reach=eth0", "-iface-can-reach=\"eth0\" is not an IP address"),
            ("-iface-regex=(", "could not compile the IP address regex"),
            ("-ip-masq-except=all", "-ip-masq-except=\"all\" is no network"),
            ("-healthz-port=65536", "-healthz-port=65536 is no port"),
            ("-healthz-port=1 -healthz-ip=me.invalid", "-healthz-ip=\"me.invalid\" is no IP address"),
            ("-reconcile-interval=0", "-reconcile-interval=0 is not in 1 to 3600"),
        ];
        for (line, want) in cases {
            let error = format!("{:#}", settings(line).unwrap_err());
            assert!(error.contains(want), "{line}: {error}");
        }
    }

    #[test]
    fn health_is_served_on_addresses_names_and_everything() {
        for (text, ip) in
            [("", "0.0.0.0"), ("::", "::"), ("192.0.2.1", "192.0.2.1"), ("localhost", "127.0.0.1")]
        {
            let settings = settings(&format!("-healthz-port=1 -healthz-ip={text}")).unwrap();
            assert_eq!(settings.health, Some((ip.parse().unwrap(), 1)), "{text}");
        }
    }

    #[test]
    fn with_kubernetes_other_stores_mean_nothing_and_the_node_is_named_by_the_environment() {
        let settings =
            settings("-kube-subnet-mgr -store=consul -kubeconfig-file=/k -remove-startup-taint a/b -remove-startup-taint c")
                .unwrap();
        let StoreChoice::Kube(options) = &settings.store else { panic!("{:?}", settings.store) };
        assert_eq!((options.node_name.as_str(), options.api_url.as_str()), ("n1", ""));
        assert_eq!(options.kubeconfig_file.as_deref(), Some(Path::new("/k")));
        assert_eq!(options.net_config_path, Path::new("/etc/kube-flannel/net-conf.json"));
        assert_eq!(settings.kubernetes.startup_taints, ["a/b", "c"]);
        assert!(settings.kubernetes.condition);
    }

    #[test]
    fn nothing_that_is_logged_holds_the_password() {
        let settings = settings("-etcd-username=root -etcd-password=hunter2").unwrap();
        assert!(!format!("{settings:?}").contains("hunter2"));
    }
}
