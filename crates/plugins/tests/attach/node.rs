//! A node for these stories: a network namespace that stands for the host, pods beside it, and the
//! plugins' program under the names of the plugins.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fabric::LinkName;
use fabric::firewall::{Family, TableName};
use kernel::netlink::{Protocol, Socket};
use kernel::netns::{self, Namespace};
use kernel::nftables::Nftables;
use kernel::{address, link};
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_flannel-cni");

/// Whether these stories can be told here; says why not.
pub(crate) fn possible() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "CI has to run these tests as root");
    eprintln!("skipped: network namespaces need root");
    false
}

/// The host and its pods.
pub(crate) struct Node {
    name: String,
    host: Namespace,
    pods: std::sync::Mutex<Vec<String>>,
    directory: tempfile::TempDir,
}

/// What a plugin answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) success: bool,
    pub(crate) json: Value,
}

/// One attachment to be made, looked at or taken away.
#[derive(Debug, Clone)]
pub(crate) struct Call<'a> {
    pub(crate) plugin: &'a str,
    pub(crate) id: &'a str,
    pub(crate) ifname: &'a str,
    pub(crate) netns: String,
    pub(crate) config: Value,
}

impl Node {
    /// A node, where these stories can be told.
    pub(crate) fn here() -> Option<Node> {
        possible().then(Node::new)
    }

    /// A node whose flanneld has leased 10.244.1.0/24 and an IPv6 subnet.
    pub(crate) fn new() -> Node {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("cni-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("bin")).unwrap();
        for plugin in plugins::delegate::PLUGINS {
            symlink(PROGRAM, directory.path().join("bin").join(plugin.name())).unwrap();
        }
        let host = netns::create_named(&name).unwrap();
        let node = Node { name, host, pods: Vec::new().into(), directory };
        node.lease();
        node
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes subnet.env as flanneld does.
    pub(crate) fn lease(&self) {
        let text = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n\
                    FLANNEL_IPV6_NETWORK=fd00:10:244::/48\nFLANNEL_IPV6_SUBNET=fd00:10:244:1::1/64\n\
                    FLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n";
        fs::write(self.path("subnet.env"), text).unwrap();
    }

    /// The configuration of flannel's own manifest, of another network if it has another name.
    pub(crate) fn config(&self, version: &str, network: &str) -> Value {
        json!({
            "cniVersion": version, "name": network, "type": "flannel",
            "subnetFile": self.path("subnet.env"), "dataDir": self.path("state"),
            "delegate": {"hairpinMode": true, "isDefaultGateway": true},
            "ipam": {"dataDir": self.path("networks")},
        })
    }

    /// Makes a pod's namespace and returns its path.
    pub(crate) fn pod(&self, id: &str) -> String {
        let name = format!("{}-{id}", self.name);
        netns::create_named(&name).unwrap();
        self.pods.lock().unwrap().push(name.clone());
        format!("/var/run/netns/{name}")
    }

    /// Ends a pod's namespace.
    pub(crate) fn end(&self, id: &str) {
        netns::remove_named(&format!("{}-{id}", self.name)).unwrap();
    }

    /// The attachment of a pod to the network.
    pub(crate) fn attachment<'a>(&self, id: &'a str, netns: &str) -> Call<'a> {
        Call {
            plugin: "flannel",
            id,
            ifname: "eth0",
            netns: netns.to_owned(),
            config: self.config("1.1.0", "cbr0"),
        }
    }

    pub(crate) fn call(&self, verb: &str, call: &Call<'_>) -> Answer {
        let output = self.start(verb, call).wait_with_output().unwrap();
        answer(&output)
    }

    /// Calls a plugin that has to succeed.
    pub(crate) fn succeed(&self, verb: &str, call: &Call<'_>) -> Value {
        let answer = self.call(verb, call);
        assert!(answer.success, "{verb} {}: {}", call.id, answer.json);
        answer.json
    }

    /// Calls a plugin that has to fail, and returns its error object.
    pub(crate) fn fail(&self, verb: &str, call: &Call<'_>) -> Value {
        let answer = self.call(verb, call);
        assert!(!answer.success, "{verb} {} should have failed", call.id);
        answer.json
    }

    /// Starts a plugin on the host.
    #[allow(clippy::disallowed_methods, reason = "a runtime starts plugins, and this stands for one")]
    pub(crate) fn start(&self, verb: &str, call: &Call<'_>) -> Child {
        let spawn = || {
            Command::new(self.path("bin").join(call.plugin))
                .env_clear()
                .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
                .env("CNI_COMMAND", verb)
                .env("CNI_CONTAINERID", call.id)
                .env("CNI_NETNS", &call.netns)
                .env("CNI_IFNAME", call.ifname)
                .env("CNI_PATH", self.path("bin"))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        };
        let mut child = self.host.enter(spawn).unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(call.config.to_string().as_bytes()).unwrap();
        child
    }

    /// Starts a program on the host, its messages on standard error to be read.
    #[allow(clippy::disallowed_methods, reason = "servers of the network that the plugins run in")]
    pub(crate) fn spawn(&self, program: &str, arguments: &[&str]) -> Child {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        self.host.enter(|| command.spawn().unwrap()).unwrap()
    }

    /// Does something in the host's namespace.
    pub(crate) fn on_host<T>(&self, work: impl FnOnce(&mut Socket) -> T) -> T {
        inside(&self.host, work)
    }

    /// The names of all devices of the host but `lo` and the bridge.
    pub(crate) fn host_links(&self) -> Vec<String> {
        let links = self.on_host(|socket| link::list(socket).unwrap());
        let names = links.iter().map(|link| link.name.to_string());
        names.filter(|name| name != "lo" && name != "cni0").collect()
    }

    /// The addresses that are taken, from the names of the lease files.
    pub(crate) fn leases(&self, network: &str) -> Vec<String> {
        let is_lease = |name: &String| name.parse::<std::net::IpAddr>().is_ok() || name.starts_with('.');
        files(&self.path("networks").join(network)).into_iter().filter(is_lease).collect()
    }

    /// The state files of the flannel plugin.
    pub(crate) fn states(&self) -> Vec<String> {
        files(&self.path("state"))
    }

    /// How many rules masquerade pods.
    pub(crate) fn masquerade_rules(&self) -> usize {
        let table = TableName { family: Family::Inet, name: "cni_plugins_masquerade".into() };
        self.host.enter(|| Nftables::open().unwrap().rules(&table, "masq_checks").unwrap().len()).unwrap()
    }

    /// How many rules lead ports of the host to pods.
    fn port_rules(&self) -> usize {
        let count = |family, chain| {
            let table = TableName { family, name: "cni_hostport".into() };
            self.host.enter(|| Nftables::open().unwrap().rules(&table, chain).unwrap().len()).unwrap()
        };
        let chains = ["hostports", "hostip_hostports", "masquerading"];
        chains.map(|chain| count(Family::Ipv4, chain) + count(Family::Ipv6, chain)).iter().sum()
    }

    /// How many rules check Ethernet addresses, and chains for them.
    fn spoof_objects(&self) -> usize {
        let name = TableName { family: Family::Bridge, name: "nat".into() };
        let tables = self.host.enter(|| Nftables::open().unwrap().list(std::slice::from_ref(&name)).unwrap());
        let tables = tables.unwrap();
        let chains = tables.get(&name).map(|table| &table.chains).into_iter().flatten();
        chains.map(|chain| chain.rules.len() + usize::from(chain.hook.is_none())).sum()
    }

    /// The table that checks Ethernet addresses, as text.
    pub(crate) fn spoof_table(&self) -> String {
        let name = TableName { family: Family::Bridge, name: "nat".into() };
        let tables =
            self.host.enter(|| Nftables::open().unwrap().list(std::slice::from_ref(&name)).unwrap()).unwrap();
        tables[&name].to_string()
    }

    /// Fails unless nothing is left of any attachment. A device may go a moment after it was let go of.
    pub(crate) fn assert_nothing_left(&self, network: &str, pods: &[&str]) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.host_links().is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(self.host_links(), Vec::<String>::new(), "devices on the host");
        assert_eq!(self.leases(network), Vec::<String>::new(), "leases");
        assert_eq!(self.states(), Vec::<String>::new(), "state files");
        assert_eq!(self.masquerade_rules(), 0, "masquerade rules");
        assert_eq!(self.port_rules(), 0, "rules of host ports");
        assert_eq!(self.spoof_objects(), 0, "rules of Ethernet addresses");
        for pod in pods {
            let namespace = netns::open(Path::new(&format!("/var/run/netns/{}-{pod}", self.name))).unwrap();
            let links = inside(&namespace, |socket| link::list(socket).unwrap());
            let names: Vec<String> = links.iter().map(|link| link.name.to_string()).collect();
            assert_eq!(names, ["lo"], "devices of pod {pod}");
        }
    }

    /// The bridge's addresses that are valid everywhere.
    pub(crate) fn bridge_addresses(&self) -> Vec<String> {
        self.on_host(|socket| {
            let bridge: LinkName = "cni0".parse().unwrap();
            let index = link::index(socket, bridge).unwrap().unwrap();
            let addresses = address::list(socket, Some(index)).unwrap();
            let global = addresses.iter().filter(|address| address.scope == address::SCOPE_GLOBAL);
            global.map(|address| address.net.to_string()).collect()
        })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for pod in self.pods.lock().unwrap().iter() {
            let _ = netns::remove_named(pod);
        }
        let _ = netns::remove_named(&self.name);
    }
}

/// The answer of a plugin that has ended.
pub(crate) fn answer(output: &Output) -> Answer {
    let text = String::from_utf8_lossy(&output.stdout);
    let json = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() };
    Answer { success: output.status.success(), json }
}

fn inside<T>(namespace: &Namespace, work: impl FnOnce(&mut Socket) -> T) -> T {
    namespace.enter(|| work(&mut Socket::open(Protocol::Route).unwrap())).unwrap()
}

fn files(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
