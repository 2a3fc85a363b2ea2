//! Ours against the facts of the original in `golden/`: etcd, subnet.env, kernel, files, results.
//!
//! ```text
//!   node1  192.168.64.1      node2  192.168.64.2      as when the facts were captured
//!     └────────────────────────┴──── switch: etcd
//! ```
//!
//! Where ours differs on purpose, the difference is named here, and nowhere else.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use fabric::lease::{Attributes, Subnets};
use fabric::subnet_file::SubnetFile;
use flannel_rs_tests::{PATIENCE, leases};
use lab::{Families, Lab, Namespace, Node, Topology, story, wait_for};
use serde_json::Value;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

fn cases(kind: &str) -> Result<Vec<PathBuf>> {
    let mut cases: Vec<PathBuf> =
        fs::read_dir(golden().join(kind))?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    cases.sort();
    ensure!(cases.len() > 3, "there are hardly any facts in golden/{kind}");
    Ok(cases)
}

fn fact(case: &Path, name: &str) -> Result<String> {
    let path = case.join(name);
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

#[test]
fn leases_and_subnet_files_keep_their_bytes() -> Result<()> {
    for case in cases("flanneld")? {
        let text = fact(&case, "subnet.env")?;
        ensure!(SubnetFile::parse(&text)?.render() == text, "{}: {text}", case.display());

        let leases = fact(&case, "leases")?.replace("MAC", "5e:e8:1a:0c:42:0e");
        for pair in leases.lines().collect::<Vec<_>>().chunks(2) {
            let key = pair[0].rsplit('/').next().context("no key")?;
            ensure!(Subnets::from_key(key)?.key() == key, "{key}");
            let written = Attributes::from_json(pair[1].as_bytes())?.to_json();
            ensure!(written == pair[1], "ours {written}, the original's {}", pair[1]);
        }
    }
    Ok(())
}

#[test]
fn vxlan_ipv4_is_the_originals() {
    like_the_original("vxlan-ipv4", Topology::vxlan(2).flag("--ip-masq"));
}

#[test]
fn vxlan_dual_is_the_originals() {
    like_the_original("vxlan-dual", Topology::vxlan(2).families(Families::Dual).flag("--ip-masq"));
}

#[test]
fn vxlan_direct_routing_is_the_originals() {
    like_the_original("vxlan-direct", Topology::vxlan(2).families(Families::Dual));
}

#[test]
fn host_gw_ipv4_is_the_originals() {
    like_the_original("host-gw-ipv4", Topology::host_gw(2));
}

#[test]
fn host_gw_dual_is_the_originals() {
    like_the_original("host-gw-dual", Topology::host_gw(2).families(Families::Dual).flag("--ip-masq"));
}

#[test]
fn alloc_is_the_originals() {
    like_the_original("alloc-ipv4", Topology::alloc(2));
}

/// Runs the case with ours and compares what it leaves behind.
fn like_the_original(name: &str, topology: Topology) {
    let case = golden().join("flanneld").join(name);
    story(topology.etcd().flag("--healthz-port=8081"), |lab| {
        lab.set_network(&serde_json::from_str(&fact(&case, "net-conf.json")?)?)?;
        for (number, node) in (1..).zip(lab.nodes()) {
            ask_for_subnet(node, &case, number)?;
        }
        lab.start()?;
        etcd_is_alike(lab, &case)?;
        subnet_env_is_alike(lab.node(1), &case)?;
        // A peer is known a moment before it is in the kernel.
        wait_for("the kernel to be alike", PATIENCE, || kernel_is_alike(lab.node(1), &case))?;
        health_is_alike(lab.node(1), &case)
    });
}

/// The subnet of an earlier run is asked for again: so both get the same.
fn ask_for_subnet(node: &Node, case: &Path, number: u8) -> Result<()> {
    let text = fact(case, "subnet.env")?
        .replace("10.244.1.1", &format!("10.244.{number}.1"))
        .replace("fd10:244:0:1::1", &format!("fd10:244:0:{number}::1"));
    Ok(fs::write(node.files().subnet, text)?)
}

fn etcd_is_alike(lab: &Lab, case: &Path) -> Result<()> {
    let ours: String = leases(lab)?
        .into_iter()
        .map(|(key, value)| format!("{}{key}\n{}\n", flannel_rs_tests::LEASES, without_macs(&value)))
        .collect();
    same(&ours, &fact(case, "leases")?, "the leases")
}

/// Difference: the MTU fits both families.
fn subnet_env_is_alike(node: &Node, case: &Path) -> Result<()> {
    let mut original = fact(case, "subnet.env")?;
    if original.contains("IPV6") {
        original = original.replace("FLANNEL_MTU=1450", "FLANNEL_MTU=1430");
    }
    same(&fs::read_to_string(node.files().subnet)?, &original, "subnet.env")
}

/// Differences: routes have a protocol of their own and may refer to next-hop objects; two
/// rules of the firewall (see `fabric::masquerade`).
fn kernel_is_alike(node: &Node, case: &Path) -> Result<()> {
    let lines = |text: String, wanted: &dyn Fn(&str) -> bool| -> String {
        text.lines().filter(|line| wanted(line)).map(|line| format!("{}\n", line.trim_end())).collect()
    };
    if case.join("routes").exists() {
        let routes = node.run("ip -4 route show")? + &node.run("ip -6 route show")?;
        let routes = lines(routes, &|line| {
            (line.starts_with("10.244.") || line.starts_with("fd10:")) && !line.contains("proto kernel")
        });
        let plain: String = routes.lines().map(|route| format!("{}\n", without_our_marks(route))).collect();
        same(&plain, &fact(case, "routes")?, "the routes")?;
    }
    if let Ok(original) = fact(case, "neighbors") {
        let ours = lines(node.run("ip neigh show nud permanent")?, &|line| line.contains(" dev flannel"));
        same(&without_macs(&ours), &original, "the neighbors")?;
    }
    if let Ok(original) = fact(case, "fdb") {
        let mut ours = node.run("bridge fdb show dev flannel.1")?;
        if node.subnet_file()?.ipv6_subnet.is_some() {
            ours.push_str(&node.run("bridge fdb show dev flannel-v6.1")?);
        }
        same(
            &without_macs(&lines(ours, &|line| line.contains(" dst "))),
            &original,
            "the forwarding database",
        )?;
    }
    if let Ok(original) = fact(case, "links.json") {
        let original: Value = serde_json::from_str(&original)?;
        for link in original.as_array().context("links.json is no list")? {
            let name = link["ifname"].as_str().context("a link without a name")?;
            let ours: Value = serde_json::from_str(&node.run(&format!("ip -j -d link show {name}"))?)?;
            contains(&ours[0], link, name)?;
        }
    }
    if let Ok(original) = fact(case, "addresses") {
        for line in original.lines() {
            let mut words = line.split(' ');
            let (link, net) = (words.next().unwrap_or_default(), words.nth(1).unwrap_or_default());
            let ours = node.run(&format!("ip -o address show dev {link} scope global"))?;
            ensure!(ours.contains(&format!(" {net} ")), "{link} has not {net}: {ours}");
            ensure!(ours.lines().count() == 1, "{link} has more addresses: {ours}");
        }
    }
    if let Ok(original) = fact(case, "nft") {
        let right = original
            .replace("meta mark 0x00004000 return", "meta mark & 0x00004000 == 0x00004000 return")
            .replace(
                "saddr != 10.244.1.0/24 ip daddr 10.244.0.0/16 return",
                "saddr != 10.244.0.0/16 ip daddr 10.244.1.0/24 return",
            )
            .replace(
                "saddr != fd10:244:0:1::/64 ip6 daddr fd10:244::/48 return",
                "saddr != fd10:244::/48 ip6 daddr fd10:244:0:1::/64 return",
            );
        let ours =
            node.run("nft list table ip flannel-ipv4")? + &node.run("nft list table ip6 flannel-ipv6")?;
        same(&ours, &right, "the firewall")?;
    }
    Ok(())
}

fn health_is_alike(node: &Node, case: &Path) -> Result<()> {
    let Ok(original) = fact(case, "health") else { return Ok(()) };
    for line in original.lines() {
        let path = line.split(' ').next().unwrap_or_default();
        let url = format!("http://127.0.0.1:8081/{path}");
        let ours = node.namespace().run(&["curl", "-s", "-w", " %{http_code} %{content_type}", &url])?;
        same(&format!("{path} {ours}"), line, &url)?;
    }
    Ok(())
}

/// Every plugin result, state file and file on disk, for every version of CNI and both families.
#[test]
fn attachments_are_the_originals() {
    story(Topology::vxlan(1), |lab| {
        for case in cases("cni")? {
            attachment_is_alike(lab.node(1), &case).with_context(|| format!("{}", case.display()))?;
        }
        Ok(())
    });
}

fn attachment_is_alike(node: &Node, case: &Path) -> Result<()> {
    let directory = node.dir().join(case.file_name().context("a case has a name")?);
    fs::create_dir(&directory)?;
    let dual = case.to_string_lossy().contains("dual-");
    let ipv6 = if dual {
        "FLANNEL_IPV6_NETWORK=fd10:244::/48\nFLANNEL_IPV6_SUBNET=fd10:244:0:1::1/64\n"
    } else {
        ""
    };
    fs::write(
        directory.join("subnet.env"),
        format!(
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n{ipv6}FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
        ),
    )?;
    let sandbox = Namespace::create(&format!("{}-c1", node.namespace().name()))?;
    let at = |text: &str| text.replace("DIR", &directory.display().to_string());
    let config = at(&fact(case, "config.json")?);

    let added = run_flannel(node, "ADD", &sandbox, &config)?;
    // Values, not layout: every reader of JSON takes either.
    let result: Value = serde_json::from_str(&without_names(&added, &sandbox))?;
    let original: Value = serde_json::from_str(&fact(case, "result.json")?)?;
    ensure!(result == original, "ours {result:#}, the original's {original:#}");

    same(
        &fs::read_to_string(directory.join("state/c1"))?,
        &at(&fact(case, "state.json")?),
        "the state file",
    )?;
    for line in fact(case, "files")?.lines() {
        let mut words = line.splitn(3, ' ');
        let (mode, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let path = directory.join(path.trim_end_matches('/'));
        let ours = fs::metadata(&path).with_context(|| format!("{} is missing", path.display()))?;
        let ours = format!("{:o}", ours.permissions().mode() & 0o7777);
        ensure!(ours == mode, "{} has mode {ours}, the original's {mode}", path.display());
        if let Some(content) = words.next() {
            let original: String = serde_json::from_str(content)?;
            same(&fs::read_to_string(&path)?, &original, &path.display().to_string())?;
        }
    }

    run_flannel(node, "DEL", &sandbox, &config)?;
    sandbox.destroy()?;
    node.run("ip link del cni0").map(drop)
}

#[expect(clippy::disallowed_methods, reason = "a plugin is run as a container runtime does")]
fn run_flannel(node: &Node, verb: &str, sandbox: &Namespace, config: &str) -> Result<String> {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let output = node.namespace().within(|| {
        let mut child = Command::new(node.cni_path().join("flannel"))
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", "c1")
            .env("CNI_NETNS", sandbox.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", node.cni_path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child.stdin.take().context("stdin was asked to be a pipe")?.write_all(config.as_bytes())?;
        Ok::<_, anyhow::Error>(child.wait_with_output()?)
    })??;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{verb}: {printed}{}", String::from_utf8_lossy(&output.stderr));
    Ok(printed)
}

fn same(ours: &str, original: &str, what: &str) -> Result<()> {
    ensure!(ours == original, "{what}: ours\n{ours}\nand the original's\n{original}");
    Ok(())
}

/// A route without `proto …` and `nhid …`.
fn without_our_marks(route: &str) -> String {
    let mut words = route.split_whitespace();
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        match word {
            "proto" | "nhid" => drop(words.next()),
            word => kept.push(word),
        }
    }
    kept.join(" ")
}

/// Every member of `wanted` is in `ours` with the same value; ours may have more.
fn contains(ours: &Value, wanted: &Value, path: &str) -> Result<()> {
    match wanted {
        Value::Object(members) => {
            members.iter().try_for_each(|(key, value)| contains(&ours[key], value, &format!("{path}.{key}")))
        }
        value => {
            ensure!(ours == value, "{path} is {ours}, the original's {value}");
            Ok(())
        }
    }
}

/// Ethernet addresses differ from run to run.
fn without_macs(text: &str) -> String {
    let is_mac = |word: &str| {
        word.len() == 17 && word.split(':').count() == 6 && word.split(':').all(|octet| octet.len() == 2)
    };
    text.split_inclusive([' ', '"', '\n'])
        .map(|piece| {
            let word = piece.trim_end_matches([' ', '"', '\n']);
            if is_mac(word) { piece.replace(word, "MAC") } else { piece.to_owned() }
        })
        .collect()
}

/// So do the names of the cable's end on the node and of the sandbox.
fn without_names(text: &str, sandbox: &Namespace) -> String {
    let text = without_macs(text).replace(&sandbox.path().display().to_string(), "SANDBOX");
    text.split_inclusive('"')
        .map(|piece| if piece.starts_with("veth") { "VETH\"".to_owned() } else { piece.to_owned() })
        .collect()
}
