use kernel::iptables::apply_forward;
use kernel::nftables::Nftables;
use kernel::takeover::{find, remove};

use crate::namespace::{enter, run};

const PROGRAMS: [&str; 5] = ["nft", "iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"];

/// The rules of the original flannel, as it hands them to `iptables-restore`.
fn originals(pod_subnet: &str, network: &str, multicast: &str) -> String {
    let masq = r#"-m comment --comment "flanneld masq""#;
    let forward = r#"-m comment --comment "flanneld forward""#;
    format!(
        "*nat
-A POSTROUTING {masq} -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 {masq} -j RETURN
-A FLANNEL-POSTRTG -s {pod_subnet} -d {network} {masq} -j RETURN
-A FLANNEL-POSTRTG -s {network} -d {pod_subnet} {masq} -j RETURN
-A FLANNEL-POSTRTG ! -s {network} -d {pod_subnet} {masq} -j RETURN
-A FLANNEL-POSTRTG -s {network} ! -d {multicast} {masq} -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s {network} -d {network} {masq} -j MASQUERADE --random-fully
COMMIT
*filter
-A FORWARD {forward} -j FLANNEL-FWD
-A FLANNEL-FWD -s {network} {forward} -j ACCEPT
-A FLANNEL-FWD -d {network} {forward} -j ACCEPT
COMMIT
"
    )
}

/// Rules of others, in the same tables and chains.
const FOREIGN: &str = r#"*nat
:KUBE-POSTROUTING - [0:0]
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
COMMIT
*filter
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -i docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-USER -p tcp -m multiport --dports 22,80 -j RETURN
COMMIT
"#;

/// The rules of a program without what changes by itself: counters and dates.
fn saved(program: &str) -> String {
    let saved = run(&format!("{program}-save"));
    saved.lines().filter(|line| !line.starts_with('#')).fold(String::new(), |all, line| all + line + "\n")
}

fn restore(program: &str, rules: &str) {
    run(&format!("{program}-restore --noflush <<'EOF'\n{rules}EOF"));
}

fn everything_of_the_originals_goes_and_nothing_else(variant: &str) {
    if !enter(&PROGRAMS) {
        return;
    }
    let mut nftables = Nftables::open().unwrap();
    assert_eq!(find(&mut nftables).unwrap(), []);
    let families = [
        ("iptables", originals("10.244.3.0/24", "10.244.0.0/16", "224.0.0.0/4")),
        ("ip6tables", originals("fd00:244:3::/64", "fd00:244::/48", "ff00::/8")),
    ];
    let mut before = Vec::new();
    for (family, rules) in &families {
        let program = format!("{family}-{variant}");
        restore(&program, FOREIGN);
        run(&format!("{program} -P FORWARD DROP"));
        before.push(saved(&program));
        for (table, chain) in [("nat", "FLANNEL-POSTRTG"), ("filter", "FLANNEL-FWD")] {
            run(&format!("{program} -t {table} -N {chain}"));
        }
        restore(&program, rules);
        // As after a restart of it that went wrong: each jump twice.
        run(&format!(
            "{program} -t nat -A POSTROUTING -m comment --comment 'flanneld masq' -j FLANNEL-POSTRTG"
        ));
        run(&format!("{program} -I FORWARD 1 -m comment --comment 'flanneld forward' -j FLANNEL-FWD"));
    }
    // As very old versions wrote it.
    let first = format!("iptables-{variant}");
    run(&format!(
        "{first} -t nat -A POSTROUTING -s 10.244.0.0/16 ! -d 224.0.0.0/4 -m comment --comment 'flanneld masq' \
         -j MASQUERADE"
    ));

    let texts: Vec<String> = find(&mut nftables).unwrap().iter().map(ToString::to_string).collect();
    let suffix = if variant == "legacy" { "-legacy" } else { "" };
    assert_eq!(
        texts,
        [
            format!(
                "iptables{suffix} table nat: chain FLANNEL-POSTRTG with 6 rules, 3 rules in other chains"
            ),
            format!("iptables{suffix} table filter: chain FLANNEL-FWD with 2 rules, 2 rules in other chains"),
            format!(
                "ip6tables{suffix} table nat: chain FLANNEL-POSTRTG with 6 rules, 2 rules in other chains"
            ),
            format!(
                "ip6tables{suffix} table filter: chain FLANNEL-FWD with 2 rules, 2 rules in other chains"
            ),
        ]
    );
    assert_eq!(remove(&mut nftables).unwrap().len(), 4);
    assert_eq!(find(&mut nftables).unwrap(), []);
    assert_eq!(remove(&mut nftables).unwrap(), []);
    for ((family, _), before) in families.iter().zip(before) {
        let program = format!("{family}-{variant}");
        assert_eq!(saved(&program), before);
        run(&format!("{program} -S && {program} -t nat -S && {program} -L -n -v"));
    }
}

#[test]
fn everything_of_the_originals_goes_from_iptables_nft_and_nothing_else() {
    everything_of_the_originals_goes_and_nothing_else("nft");
}

#[test]
fn everything_of_the_originals_goes_from_iptables_legacy_and_nothing_else() {
    everything_of_the_originals_goes_and_nothing_else("legacy");
}

#[test]
fn our_own_accepting_rules_stay() {
    if !enter(&PROGRAMS) {
        return;
    }
    let mut nftables = Nftables::open().unwrap();
    for variant in ["nft", "legacy"] {
        let program = format!("iptables-{variant}");
        run(&format!(
            "{program} -P FORWARD DROP; {program} -N FLANNEL-FWD; {program} -t nat -N FLANNEL-POSTRTG"
        ));
        restore(&program, &originals("10.244.3.0/24", "10.244.0.0/16", "224.0.0.0/4"));
    }
    apply_forward(&mut nftables, &["10.244.0.0/16".parse().unwrap()], &[]).unwrap();
    assert_eq!(remove(&mut nftables).unwrap().len(), 4);
    for variant in ["nft", "legacy"] {
        assert_eq!(
            run(&format!("iptables-{variant} -S FORWARD")),
            "-P FORWARD DROP\n\
             -A FORWARD -s 10.244.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT\n\
             -A FORWARD -d 10.244.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT\n"
        );
    }
}

#[test]
fn an_empty_chain_without_a_jump_goes_too() {
    if !enter(&PROGRAMS) {
        return;
    }
    let mut nftables = Nftables::open().unwrap();
    run("iptables-nft -t nat -N FLANNEL-POSTRTG; ip6tables-legacy -N FLANNEL-FWD");
    let texts: Vec<String> = remove(&mut nftables).unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "iptables table nat: chain FLANNEL-POSTRTG with 0 rules, 0 rules in other chains",
            "ip6tables-legacy table filter: chain FLANNEL-FWD with 0 rules, 0 rules in other chains",
        ]
    );
    assert!(!run("iptables-nft-save; ip6tables-legacy-save").contains("FLANNEL"));
}
