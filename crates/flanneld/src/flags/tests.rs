use super::*;

fn typed(line: &str) -> Result<Parsed, Unusable> {
    parse(line.split_whitespace().map(str::to_owned), |_| None)
}

fn with(line: &str, variables: &[(&str, &str)]) -> Parsed {
    let variable = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
    parse(line.split_whitespace().map(str::to_owned), variable).unwrap()
}

#[test]
fn defaults_are_the_originals_and_every_default_can_be_read() {
    let flags = typed("").unwrap().flags;
    assert_eq!(flags.etcd_endpoints, "http://127.0.0.1:4001,http://127.0.0.1:2379");
    assert_eq!(flags.etcd_prefix, "/coreos.com/network");
    assert_eq!(flags.subnet_file, "/run/flannel/subnet.env");
    assert_eq!(flags.subnet_lease_renew_margin, 60);
    assert_eq!((flags.healthz_ip.as_str(), flags.healthz_port), ("0.0.0.0", 0));
    assert!(flags.iptables_forward_rules && !flags.ip_masq && !flags.ip_blackhole_route);
    assert!(flags.iface.is_empty() && flags.etcd_password.0.is_none());
    assert_eq!(flags.kube.annotation_prefix, "flannel.alpha.coreos.com");
}

#[test]
fn one_dash_or_two_and_a_value_after_equals_or_as_next_word() {
    for line in ["-etcd-prefix /x", "--etcd-prefix /x", "-etcd-prefix=/x", "--etcd-prefix=/x"] {
        assert_eq!(typed(line).unwrap().flags.etcd_prefix, "/x", "{line}");
    }
    assert_eq!(typed("-etcd-prefix=").unwrap().flags.etcd_prefix, "");
    assert_eq!(typed("-etcd-prefix -x").unwrap().flags.etcd_prefix, "-x", "the next word is the value");
    assert_eq!(typed("-etcd-prefix=a=b").unwrap().flags.etcd_prefix, "a=b");
}

#[test]
fn a_switch_takes_its_value_only_after_equals() {
    let parsed = typed("--ip-masq false --healthz-port=1").unwrap();
    assert!(parsed.flags.ip_masq);
    assert_eq!(
        parsed.ignored,
        ["false", "--healthz-port=1"],
        "the first word that is no flag ends the flags"
    );
    for (text, want) in
        [("1", true), ("t", true), ("True", true), ("0", false), ("F", false), ("FALSE", false)]
    {
        assert_eq!(typed(&format!("-ip-masq={text}")).unwrap().flags.ip_masq, want, "{text}");
    }
    assert!(typed("-ip-masq=yes").is_err());
    assert!(typed("-ip-masq=").is_err());
}

#[test]
fn numbers_have_gos_prefixes() {
    let number = |text: &str| typed(&format!("-v={text}")).map(|parsed| parsed.flags.verbosity).ok();
    let cases = [
        ("31", Some(31)),
        ("0x1F", Some(31)),
        ("0o37", Some(31)),
        ("037", Some(31)),
        ("0b11111", Some(31)),
        ("0x_1F", Some(31)),
        ("-31", Some(-31)),
        ("+31", Some(31)),
        ("0", Some(0)),
        ("3_1", Some(31)),
        ("0_37", Some(31)),
        ("_31", None),
        ("31_", None),
        ("3__1", None),
        ("0_", None),
        ("0x1F_", None),
        ("1.5", None),
        ("", None),
        ("08", None),
        ("0x", None),
        ("--1", None),
        ("9223372036854775808", None),
    ];
    for (text, want) in cases {
        assert_eq!(number(text), want, "{text:?}");
    }
}

#[test]
fn repeatable_flags_keep_their_order() {
    assert_eq!(
        typed("-iface eth1 --iface=10.0.0.1 -iface eth0").unwrap().flags.iface,
        ["eth1", "10.0.0.1", "eth0"]
    );
}

#[test]
fn double_dash_ends_the_flags() {
    let parsed = typed("-v 3 -- -v 4").unwrap();
    assert_eq!((parsed.flags.verbosity, parsed.ignored.len()), (3, 2));
}

#[test]
fn what_cannot_be_used_is_said_with_the_nearest_name() {
    let error = |line: &str| typed(line).unwrap_err().to_string();
    assert_eq!(
        error("--etcd-endpoint=x"),
        "flag provided but not defined: -etcd-endpoint (did you mean -etcd-endpoints?)"
    );
    assert_eq!(error("--frobnicate-everything"), "flag provided but not defined: -frobnicate-everything");
    assert_eq!(error("-etcd-prefix"), "flag needs an argument: -etcd-prefix");
    assert_eq!(error("---v"), "bad flag syntax: ---v");
    assert_eq!(
        error("-healthz-port=many"),
        "invalid value \"many\" for flag -healthz-port: want a whole number"
    );
    assert_eq!(typed("-h").unwrap_err(), Unusable::Help);
    assert_eq!(typed("--help").unwrap_err(), Unusable::Help);
}

#[test]
fn the_environment_stands_in_for_what_was_not_typed() {
    let variables = [
        ("FLANNELD_ETCD_PREFIX", "/env"),
        ("FLANNELD_IP_MASQ", "true"),
        ("FLANNELD_IFACE", "a,b"),
        ("FLANNELD_V", ""),
    ];
    let flags = with("-etcd-prefix /typed", &variables).flags;
    assert_eq!(flags.etcd_prefix, "/typed", "the command line wins");
    assert!(flags.ip_masq);
    assert_eq!(flags.iface, ["a,b"], "a variable is one element");
    assert_eq!(flags.verbosity, 0, "an empty variable counts as none");
    assert!(!with("", &[("FLANNELD_VERSION", "true")]).flags.version);
}

#[test]
fn a_variable_that_cannot_be_read_is_passed_over_and_said() {
    let parsed = with("", &[("FLANNELD_HEALTHZ_PORT", "x")]);
    assert_eq!(parsed.flags.healthz_port, 0);
    assert_eq!(parsed.passed_over, ["FLANNELD_HEALTHZ_PORT=\"x\": want a whole number"]);
}

#[test]
fn the_password_is_never_shown() {
    let parsed = with("", &[("FLANNELD_ETCD_PASSWORD", "hunter2")]);
    assert_eq!(parsed.flags.etcd_password.0.as_ref().unwrap().0, "hunter2");
    assert!(!format!("{parsed:?}").contains("hunter2"));
    let parsed = typed("-etcd-password=hunter2").unwrap();
    assert!(!format!("{parsed:?}").contains("hunter2"));
}

#[test]
fn names_are_unique_and_the_usage_lists_every_flag() {
    let names: std::collections::BTreeSet<_> = TABLE.iter().map(|flag| flag.name).collect();
    assert_eq!(names.len(), TABLE.len());
    let usage = usage("/opt/bin/flanneld");
    assert!(usage.starts_with("Usage: /opt/bin/flanneld [OPTION]...\n"));
    for name in names {
        assert!(usage.contains(&format!("\n  -{name}")), "{name}");
    }
}

/// What the original's usage says of its flags: type and default.
const ORIGINAL: &str = r#"
-etcd-cafile string
-etcd-certfile string
-etcd-endpoints string (default "http://127.0.0.1:4001,http://127.0.0.1:2379")
-etcd-keyfile string
-etcd-password string
-etcd-prefix string (default "/coreos.com/network")
-etcd-username string
-healthz-ip string (default "0.0.0.0")
-healthz-port int
-iface value
-iface-can-reach string
-iface-regex value
-ip-blackhole-route
-ip-masq
-ip-masq-fully-random-disable
-iptables-forward-rules (default true)
-iptables-resync int (default 5)
-kube-annotation-prefix string (default "flannel.alpha.coreos.com")
-kube-api-url string
-kube-subnet-mgr
-kubeconfig-file string
-log_backtrace_at value
-net-config-path string (default "/etc/kube-flannel/net-conf.json")
-public-ip string
-public-ipv6 string
-set-node-network-unavailable (default true)
-subnet-file string (default "/run/flannel/subnet.env")
-subnet-lease-renew-margin int (default 60)
-v value
-version
-vmodule value
"#;

#[test]
fn the_usage_gives_the_originals_flags_with_its_types_and_defaults_in_its_order() {
    let usage = usage("flanneld");
    let mut shown: Vec<String> = Vec::new();
    for line in usage.lines().skip(1) {
        match (line.strip_prefix("  -"), shown.last_mut()) {
            (Some(flag), _) => shown.push(format!("-{flag}")),
            (None, Some(flag)) => {
                *flag += line.find(" (default ").filter(|_| line.ends_with(')')).map_or("", |at| &line[at..]);
            }
            (None, None) => {}
        }
    }
    let mut rest = shown.iter();
    for flag in ORIGINAL.trim().lines() {
        assert!(rest.any(|shown| shown == flag), "{flag} is missing, different or out of order:\n{usage}");
    }
}
