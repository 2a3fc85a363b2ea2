//! Ports of the host that lead to pods, and pods that the host's firewall lets through.
//!
//! ```text
//!   namespace "far"             namespace "host"                      namespace per pod
//!   eth0 192.168.7.2 ════════════ out 192.168.7.1
//!                                 cni0 10.244.1.1 ── veth… ══════════ eth0 10.244.1.N, fd00:10:244:1::N
//! ```

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kernel::netns::{self, Namespace};
use kernel::{address, command, link};
use serde_json::{Value, json};

use crate::node::{Call, Node, possible};

/// What who answers is given, on however busy a machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a container that does not answer is given.
const IMPATIENCE: Duration = Duration::from_millis(300);

/// A pod that flannel has attached, and the plugin that comes after it.
fn chained<'a>(node: &Node, plugin: &'a str, id: &'a str, keys: Value) -> Call<'a> {
    let attachment = node.attachment(id, &node.pod(id));
    let result = node.succeed("ADD", &attachment);
    let mut config = json!({"cniVersion": "1.1.0", "name": "cbr0", "type": plugin, "prevResult": result});
    if plugin == "firewall" {
        config["dataDir"] = json!(node.path("firewall"));
    }
    config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    Call { plugin, config, ..attachment }
}

fn mappings(list: &[(u16, u16, &str, &str)]) -> Value {
    let mapping = |(host, container, protocol, ip): &(u16, u16, &str, &str)| json!({"hostPort": host, "containerPort": container, "protocol": protocol, "hostIP": ip});
    json!({"portMappings": list.iter().map(mapping).collect::<Vec<_>>()})
}

fn in_pod<T>(call: &Call<'_>, work: impl FnOnce() -> T) -> T {
    netns::open(Path::new(&call.netns)).unwrap().enter(work).unwrap()
}

/// What nft prints of the port mappings.
fn nft(node: &Node) -> String {
    node.on_host(|_| {
        ["ip", "ip6"]
            .map(|family| command::run("nft", &["list", "table", family, "cni_hostport"], ""))
            .into_iter()
            .flatten()
            .collect()
    })
}

/// What iptables prints of a table.
fn iptables(node: &Node, table: &str) -> String {
    node.on_host(|_| {
        ["iptables-save", "ip6tables-save"]
            .map(|save| command::run(save, &["-t", table], "").unwrap())
            .concat()
    })
}

/// A service of a pod that tells whoever asks which pod it is, and by which address it is seen.
fn serve_tcp(call: &Call<'_>) -> u16 {
    let listener = in_pod(call, || TcpListener::bind("[::]:0").unwrap());
    let (port, id) = (listener.local_addr().unwrap().port(), call.id.to_owned());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let from = stream.peer_addr().unwrap().ip().to_canonical();
            let _ = stream.write_all(format!("{id} sees {from}").as_bytes());
        }
    });
    port
}

/// The same by UDP, behind the question.
fn serve_udp(call: &Call<'_>) -> u16 {
    let socket = in_pod(call, || UdpSocket::bind("[::]:0").unwrap());
    let (port, id) = (socket.local_addr().unwrap().port(), call.id.to_owned());
    thread::spawn(move || {
        let mut question = [0; 64];
        while let Ok((length, from)) = socket.recv_from(&mut question) {
            let question = String::from_utf8_lossy(&question[..length]);
            let text = format!("{question}{id} sees {}", from.ip().to_canonical());
            let _ = socket.send_to(text.as_bytes(), from);
        }
    });
    port
}

/// What the service behind a TCP port says.
fn ask(to: &str) -> String {
    ask_within(PATIENCE, to)
}

fn ask_within(patience: Duration, to: &str) -> String {
    let to: SocketAddr = to.parse().unwrap();
    let mut text = String::new();
    let asked = TcpStream::connect_timeout(&to, patience).and_then(|mut stream| {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.read_to_string(&mut text)
    });
    asked.map_or_else(|error| error.kind().to_string(), |_| text)
}

/// What the service behind a UDP port says to a socket that may have been in use before.
fn ask_udp(socket: &UdpSocket, to: &str) -> String {
    ask_udp_within(PATIENCE, socket, to)
}

fn ask_udp_within(patience: Duration, socket: &UdpSocket, to: &str) -> String {
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    let question = format!("{}? ", ASKED.fetch_add(1, Ordering::Relaxed));
    socket.set_read_timeout(Some(patience)).unwrap();
    if socket.send_to(question.as_bytes(), to).is_err() {
        return "nothing".to_owned();
    }
    let mut text = [0; 64];
    while let Ok(length) = socket.recv(&mut text) {
        // An earlier question may have been late, so that it is answered after all.
        if let Some(answer) = String::from_utf8_lossy(&text[..length]).strip_prefix(&question) {
            return answer.to_owned();
        }
    }
    "nothing".to_owned()
}

/// Somebody beyond the host.
struct Far {
    name: String,
    namespace: Namespace,
}

impl Far {
    fn beyond(node: &Node) -> Far {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("cni-far-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let namespace = netns::create_named(&name).unwrap();
        let ip = |words: &str| {
            let words: Vec<&str> = words.split(' ').collect();
            command::run("ip", &words, "").unwrap()
        };
        node.on_host(|_| {
            ip("link set lo up");
            ip(&format!("link add out type veth peer name eth0 netns {name}"));
            ip("addr add 192.168.7.1/24 dev out");
            ip("addr add fd07::1/64 dev out nodad");
            ip("link set out up");
        });
        let far = Far { name, namespace };
        far.run(|| {
            ip("addr add 192.168.7.2/24 dev eth0");
            ip("addr add fd07::2/64 dev eth0 nodad");
            ip("link set eth0 up");
            ip("route add default via 192.168.7.1");
            ip("route add default via fd07::1");
        });
        far
    }

    fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        self.namespace.enter(work).unwrap()
    }
}

/// Waits until the host may look for neighbors by IPv6: it asks from the link-local address of a device,
/// once it has checked that nobody else has it, and says until then that hosts are unreachable.
fn wait_for_neighbors(node: &Node, devices: [&str; 2]) {
    let may_ask = |device: &str| {
        node.on_host(|socket| {
            let index = link::index(socket, device.parse().unwrap()).unwrap();
            let addresses = address::list(socket, Some(index.unwrap())).unwrap();
            let local = |it: &address::Address| it.net.addr().is_ipv6() && it.scope == address::SCOPE_LINK;
            addresses.iter().any(|it| local(it) && !it.is_tentative())
        })
    };
    let deadline = Instant::now() + PATIENCE;
    while !devices.iter().all(|device| may_ask(device)) {
        assert!(Instant::now() < deadline, "no link-local address on one of {devices:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        let _ = netns::remove_named(&self.name);
    }
}

#[test]
fn a_host_port_leads_to_its_pod_from_everywhere_whatever_the_rules_are_made_by() {
    if !possible() {
        return;
    }
    for backend in ["nftables", "iptables"] {
        let node = Node::new();
        let far = Far::beyond(&node);
        let mut call = chained(&node, "portmap", "a", json!({"backend": backend}));
        let (tcp, udp) = (serve_tcp(&call), serve_udp(&call));
        call.config["runtimeConfig"] = mappings(&[
            (8080, tcp, "tcp", ""),
            (8081, udp, "udp", ""),
            (8082, tcp, "tcp", "192.168.7.1"),
            (8083, tcp, "TCP", "0.0.0.0"),
        ]);
        let result = node.succeed("ADD", &call);
        assert_eq!(result, call.config["prevResult"]);
        node.succeed("CHECK", &call);

        wait_for_neighbors(&node, ["cni0", "out"]);
        let socket = |at: &str| UdpSocket::bind(at).unwrap();
        far.run(|| {
            assert_eq!(ask("192.168.7.1:8080"), "a sees 192.168.7.2");
            assert_eq!(ask("[fd07::1]:8080"), "a sees fd07::2");
            assert_eq!(ask("192.168.7.1:8082"), "a sees 192.168.7.2");
            assert_eq!(ask("192.168.7.1:8083"), "a sees 192.168.7.2");
            assert_eq!(ask("[fd07::1]:8083"), "connection refused", "a port of IPv4 only");
            assert_eq!(ask_udp(&socket("0.0.0.0:0"), "192.168.7.1:8081"), "a sees 192.168.7.2");
            assert_eq!(ask_udp(&socket("[::]:0"), "[fd07::1]:8081"), "a sees fd07::2");
        });
        node.on_host(|_| {
            assert_eq!(ask("127.0.0.1:8080"), "a sees 10.244.1.1");
            assert_eq!(ask("192.168.7.1:8080"), "a sees 192.168.7.1");
            assert_eq!(ask("127.0.0.1:8082"), "connection refused", "a port of one address only");
            assert_eq!(ask_udp(&socket("0.0.0.0:0"), "127.0.0.1:8081"), "a sees 10.244.1.1");
        });
        in_pod(&call, || {
            assert_eq!(ask("192.168.7.1:8080"), "a sees 10.244.1.1", "its own port");
            assert_eq!(ask_udp(&socket("0.0.0.0:0"), "192.168.7.1:8081"), "a sees 10.244.1.1");
        });

        // The runtime need not say again what it wanted.
        call.config.as_object_mut().unwrap().remove("runtimeConfig");
        call.config.as_object_mut().unwrap().remove("backend");
        node.succeed("DEL", &call);
        node.succeed("DEL", &call);
        assert_eq!(far.run(|| ask("192.168.7.1:8080")), "connection refused");
        assert!(!nft(&node).contains("dport") && !nft(&node).contains("saddr"), "{}", nft(&node));
        assert!(!iptables(&node, "nat").contains("CNI-DN-"), "{}", iptables(&node, "nat"));
    }
}

#[test]
fn a_port_follows_the_pod_that_has_it_now_also_for_those_who_talk_already() {
    let Some(node) = Node::here() else { return };
    let far = Far::beyond(&node);
    let mut first = chained(&node, "portmap", "first", json!({}));
    let mut second = chained(&node, "portmap", "second", json!({}));
    first.config["runtimeConfig"] = mappings(&[(8081, serve_udp(&first), "udp", "")]);
    second.config["runtimeConfig"] = mappings(&[(8081, serve_udp(&second), "udp", "")]);
    let talking = far.run(|| UdpSocket::bind("192.168.7.2:0").unwrap());
    // To nobody at first, which the kernel remembers too.
    assert_eq!(ask_udp_within(IMPATIENCE, &talking, "192.168.7.1:8081"), "nothing");
    node.succeed("ADD", &first);
    assert_eq!(ask_udp(&talking, "192.168.7.1:8081"), "first sees 192.168.7.2");
    node.succeed("DEL", &first);
    node.succeed("ADD", &second);
    assert_eq!(ask_udp(&talking, "192.168.7.1:8081"), "second sees 192.168.7.2");
}

#[test]
fn mappings_are_there_once_are_missed_and_go_whatever_happens_in_between() {
    let Some(node) = Node::here() else { return };
    let long = "a".repeat(140);
    let mut call = chained(&node, "portmap", &long, json!({}));
    call.config["runtimeConfig"] = mappings(&[(8080, 80, "tcp", ""), (8081, 80, "sctp", "192.0.2.1")]);
    node.succeed("ADD", &call);
    let once = nft(&node);
    assert_eq!(once.matches("dport").count(), 3, "{once}");
    node.succeed("ADD", &call);
    assert_eq!(nft(&node), once);

    for flushed in ["hostports", "prerouting", "masquerading"] {
        node.succeed("CHECK", &call);
        node.on_host(|_| {
            command::run("nft", &["flush", "chain", "ip", "cni_hostport", flushed], "").unwrap()
        });
        let error = node.fail("CHECK", &call);
        assert_eq!(error["msg"], format!("missing hostport rules in {flushed:?} chain"));
        node.succeed("ADD", &call);
    }

    // Rules of the other backend take the place of these.
    call.config["backend"] = json!("iptables");
    node.succeed("ADD", &call);
    node.succeed("CHECK", &call);
    let by_iptables = iptables(&node, "nat");
    node.succeed("ADD", &call);
    assert_eq!(without_comments(&iptables(&node, "nat")), without_comments(&by_iptables));
    node.on_host(|_| command::run("iptables", &["-t", "nat", "-F", "CNI-HOSTPORT-DNAT"], "").unwrap());
    node.fail("CHECK", &call);

    // Where rules of iptables stand, more of them are made: the reference plugin could not take away others.
    call.config.as_object_mut().unwrap().remove("backend");
    node.succeed("ADD", &call);
    assert_eq!(without_comments(&iptables(&node, "nat")), without_comments(&by_iptables));
    assert!(!nft(&node).contains("saddr"), "{}", nft(&node));
    node.succeed("DEL", &call);
    assert!(!iptables(&node, "nat").contains("CNI-DN-"), "{}", iptables(&node, "nat"));
}

/// What iptables-save prints, without the times.
fn without_comments(saved: &str) -> String {
    saved.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect()
}

#[test]
fn conditions_hold_for_the_pods_that_have_them() {
    let Some(node) = Node::here() else { return };
    let far = Far::beyond(&node);
    for (port, condition) in
        [(8080, "ip saddr != 192.168.7.2"), (8081, "ip saddr . ip daddr { 192.168.7.2 . 192.168.7.1 }")]
    {
        let id = format!("p{port}");
        let words: Vec<&str> = condition.split(' ').collect();
        let mut call = chained(&node, "portmap", &id, json!({"conditionsV4": words}));
        call.config["runtimeConfig"] = mappings(&[(port, serve_tcp(&call), "tcp", "")]);
        node.succeed("ADD", &call);
        node.succeed("CHECK", &call);
    }
    let mut free = chained(&node, "portmap", "free", json!({}));
    free.config["runtimeConfig"] = mappings(&[(8082, serve_tcp(&free), "tcp", "")]);
    node.succeed("ADD", &free);
    far.run(|| {
        assert_eq!(ask("192.168.7.1:8080"), "connection refused");
        assert_eq!(ask("192.168.7.1:8081"), "p8081 sees 192.168.7.2");
        assert_eq!(ask("192.168.7.1:8082"), "free sees 192.168.7.2");
    });
    // One that nft does not understand leaves nothing behind.
    free.config["conditionsV4"] = json!(["ip", "no such thing"]);
    let error = node.fail("ADD", &free);
    assert!(error["msg"].as_str().unwrap().starts_with("unable to set up nftables rules"), "{error}");
    assert!(!nft(&node).contains("\"free\""), "{}", nft(&node));
}

#[test]
fn mappings_of_containers_that_are_no_longer_known_are_collected() {
    if !possible() {
        return;
    }
    for backend in ["nftables", "iptables"] {
        let node = Node::new();
        for id in ["kept", "gone"] {
            let runtime = mappings(&[(if id == "kept" { 8080 } else { 8081 }, 80, "tcp", "")]);
            let call = chained(&node, "portmap", id, json!({"backend": backend, "runtimeConfig": runtime}));
            node.succeed("ADD", &call);
            let mut other = call.clone();
            other.config["name"] = json!("another");
            other.config["runtimeConfig"] = mappings(&[(9090, 80, "tcp", "")]);
            node.succeed("ADD", &other);
        }
        let mut collect = node.attachment("x", "");
        collect.plugin = "portmap";
        collect.config = json!({
            "cniVersion": "1.1.0", "name": "cbr0", "type": "portmap",
            "cni.dev/valid-attachments": [{"containerID": "kept", "ifname": "eth0"}],
        });
        node.succeed("GC", &collect);
        let rules = if backend == "nftables" { nft(&node) } else { iptables(&node, "nat") };
        assert!(rules.contains("dport 8080 "), "{rules}");
        assert!(!rules.contains("dport 8081 "), "{rules}");
        let dnat = rules
            .lines()
            .filter(|line| line.contains("dport 9090 ") && line.to_lowercase().contains("dnat"))
            .count();
        assert_eq!(dnat, 4, "those of another network, IPv4 and IPv6: {rules}");
    }
}

#[test]
fn masquerading_by_iptables_ends_with_the_containers_that_are_no_longer_known() {
    let Some(node) = Node::here() else { return };
    for (id, network) in [("kept", "cbr0"), ("gone", "cbr0"), ("elsewhere", "cbr1")] {
        let mut call = Call { config: node.config("1.1.0", network), ..node.attachment(id, &node.pod(id)) };
        let delegate = json!({"bridge": network, "ipMasq": true, "ipMasqBackend": "iptables"});
        call.config["delegate"] = delegate;
        node.succeed("ADD", &call);
    }
    let mut collect = node.attachment("x", "");
    collect.config["delegate"] = json!({"ipMasq": true});
    collect.config["cni.dev/valid-attachments"] = json!([{"containerID": "kept", "ifname": "eth0"}]);
    node.succeed("GC", &collect);
    let rules = iptables(&node, "nat");
    let entered = |id: &str| {
        let is_entry =
            |line: &&str| line.contains(&format!(r#"id: \"{id}\""#)) && line.contains("POSTROUTING");
        rules.lines().filter(is_entry).count()
    };
    assert_eq!([entered("kept"), entered("gone"), entered("elsewhere")], [2, 0, 2], "{rules}");
    let chains = rules.lines().filter(|line| line.starts_with(":CNI-")).count();
    assert_eq!(chains, 4, "those of the others, IPv4 and IPv6: {rules}");
}

#[test]
fn a_mapping_that_cannot_be_is_refused_with_its_reason() {
    let Some(node) = Node::here() else { return };
    let mut call = chained(&node, "portmap", "a", json!({}));
    for (runtime, expected) in [
        (mappings(&[(0, 80, "tcp", "")]), "failed to parse config: Invalid host port number: 0"),
        (
            mappings(&[(80, 80, "icmp", "")]),
            "failed to parse config: Invalid protocol of host port 80: \"icmp\"",
        ),
    ] {
        call.config["runtimeConfig"] = runtime;
        assert_eq!(node.fail("ADD", &call)["msg"], expected);
        node.succeed("DEL", &call);
    }
    call.config.as_object_mut().unwrap().remove("prevResult");
    call.config["runtimeConfig"] = json!({});
    assert_eq!(node.fail("ADD", &call)["msg"], "must be called as chained plugin");
}

#[test]
fn a_pod_is_let_through_a_firewall_that_drops_what_it_does_not_know() {
    let Some(node) = Node::here() else { return };
    let far = Far::beyond(&node);
    let listener = far.run(|| TcpListener::bind("192.168.7.2:0").unwrap());
    let to = listener.local_addr().unwrap();
    let connects = |patience: Duration| TcpStream::connect_timeout(&to, patience).is_ok();
    let call = chained(&node, "firewall", "a", json!({}));
    for program in ["iptables", "ip6tables"] {
        node.on_host(|_| command::run(program, &["-P", "FORWARD", "DROP"], "").unwrap());
    }
    assert!(!in_pod(&call, || connects(IMPATIENCE)));
    assert_eq!(node.succeed("ADD", &call), call.config["prevResult"]);
    let rules = without_comments(&iptables(&node, "filter"));
    assert!(in_pod(&call, || connects(PATIENCE)));
    node.succeed("CHECK", &call);
    node.succeed("ADD", &call);
    let packets = |rules: &str| {
        rules.lines().filter(|line| line.starts_with('-')).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(packets(&iptables(&node, "filter")), packets(&rules), "each rule once");
    for expected in [
        "-A FORWARD -m comment --comment \"CNI firewall plugin rules\" -j CNI-FORWARD",
        "-A CNI-FORWARD -m comment --comment \"CNI firewall plugin admin overrides\" -j CNI-ADMIN",
        "-A CNI-FORWARD -d 10.244.1.2/32 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A CNI-FORWARD -s fd00:10:244:1::2/128 -j ACCEPT",
    ] {
        assert!(rules.contains(expected), "{rules}");
    }

    node.on_host(|_| command::run("ip6tables", &["-F", "CNI-FORWARD"], "").unwrap());
    assert!(node.fail("CHECK", &call)["msg"].as_str().unwrap().starts_with("expected CNI-FORWARD rule ["));
    node.succeed("DEL", &call);
    node.succeed("DEL", &call);
    assert!(!in_pod(&call, || connects(IMPATIENCE)));
    assert!(!iptables(&node, "filter").contains("10.244.1.2"));
}

#[test]
fn pods_that_are_no_longer_known_are_let_through_no_more() {
    let Some(node) = Node::here() else { return };
    let [kept, mut gone] = ["kept", "gone"].map(|id| chained(&node, "firewall", id, json!({})));
    node.succeed("ADD", &kept);
    node.succeed("ADD", &gone);
    gone.config["cni.dev/valid-attachments"] = json!([{"containerID": "kept", "ifname": "eth0"}]);
    node.succeed("GC", &gone);
    let rules = iptables(&node, "filter");
    assert!(rules.contains("10.244.1.2/32") && !rules.contains("10.244.1.3/32"), "{rules}");
    assert!(rules.contains("fd00:10:244:1::2/128") && !rules.contains("fd00:10:244:1::3/128"), "{rules}");

    // A runtime that has lost the result can still detach.
    let mut bare = kept.clone();
    bare.config.as_object_mut().unwrap().remove("prevResult");
    node.succeed("DEL", &bare);
    let rules = iptables(&node, "filter");
    assert!(!rules.contains("-A CNI-FORWARD -s"), "{rules}");
    assert_eq!(std::fs::read_dir(node.path("firewall")).unwrap().count(), 0);
}

#[test]
fn pods_of_an_isolated_bridge_are_reached_by_nobody_who_was_not_asked() {
    let Some(node) = Node::here() else { return };
    let far = Far::beyond(&node);
    let mut call = chained(&node, "firewall", "a", json!({"ingressPolicy": "closed"}));
    assert_eq!(node.fail("ADD", &call)["msg"], "unknown ingress policy: \"closed\"");
    let port = serve_tcp(&call);
    assert_eq!(far.run(|| ask(&format!("10.244.1.2:{port}"))), "a sees 192.168.7.2");

    call.config["ingressPolicy"] = json!("same-bridge");
    node.succeed("ADD", &call);
    node.succeed("CHECK", &call);
    let rules = iptables(&node, "filter");
    let forward: Vec<&str> = rules.lines().filter(|line| line.starts_with("-A FORWARD")).collect();
    assert!(
        forward[0].ends_with("-j CNI-ISOLATION-STAGE-1") && forward[1].ends_with("-j CNI-FORWARD"),
        "{rules}"
    );
    // From a second bridge, which is isolated too.
    let mut other = call.clone();
    other.config["prevResult"]["interfaces"][0]["name"] = json!("out");
    node.succeed("ADD", &other);
    assert_eq!(far.run(|| ask_within(IMPATIENCE, &format!("10.244.1.2:{port}"))), "timed out");
    call.config["ingressPolicy"] = json!("isolated");
    node.succeed("ADD", &call);
    assert!(iptables(&node, "filter").contains("-A CNI-ISOLATION-STAGE-1 -i cni0 -o cni0"));
    node.succeed("DEL", &call);
}
