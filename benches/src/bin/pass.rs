//! What a pass over all leases costs: from a list of leases in memory to the last route, then a look
//! that finds nothing to do; with packets to pods of all nodes going out meanwhile, each of which the
//! kernel looks up a route for.
//!
//! In this process, so that nothing but plan, comparison and kernel is measured. A node in a namespace,
//! vxlan, IPv4; the peers do not exist. Then the same for the udp backend, whose routes are in this process:
//! from a list of leases to the table that its threads look at, and what that takes of memory.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fabric::backend::VtepMacs;
use fabric::config::NetworkConfig;
use fabric::dataplane::{self, Prune};
use fabric::firewall::SourcePorts;
use fabric::host::{ExternalInterface, Host, RouteStyle};
use fabric::instance::Instance;
use fabric::lease::{Attributes, Lease, LeaseSet, Subnets};
use fabric::plan::{Intent, Masquerade, Options};
use flannel_rs_benches::{Claim, Report, await_quiet, begin};
use kernel::{Kernel, Linux, Scope};
use lab::Namespace;
use udp::Peers;

const ROUNDS: usize = 5;
const VXLAN: &str = r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}"#;
const UDP: &str = r#"{"Network":"10.0.0.0/8","Backend":{"Type":"udp"}}"#;

fn main() -> Result<()> {
    begin("A pass: one node, vxlan, IPv4, leases in memory")?;
    let mut report = Report::of("A pass over all leases");
    // Before this process has any memory of other things to give to it.
    let memory = memory_of_table(10_000)?;
    for peers in [100, 1_000, 10_000] {
        measure(peers, &mut report).with_context(|| format!("measuring {peers} leases"))?;
        table(peers, &mut report)?;
    }
    let [plan, table] = memory;
    report.set_quantity("— memory of that table, per lease", "10000 leases", table, "octets");
    report.set_quantity(
        "— and of the plan it was made of, until it is put away",
        "10000 leases",
        plan,
        "octets",
    );
    report.print()
}

/// What one round took.
#[derive(Default)]
struct Took {
    observe: Duration,
    plan: Duration,
    compare: Duration,
    apply: Duration,
}

fn measure(peers: u16, report: &mut Report) -> Result<()> {
    let leases: LeaseSet = (0..peers).map(lease).collect::<Result<_>>()?;
    // None goes before all are measured: the kernel clears a namespace away in the background, and whoever
    // changes anything in another one waits for it.
    let claim = Claim::new()?;
    await_quiet()?;
    let mut nodes = Vec::new();
    let measured = (0..ROUNDS).map(|round| {
        nodes.push(claim.namespace(&format!("node{round}"))?);
        measure_round(&nodes[round], peers, &leases)
    });
    let (mut first, mut idle, mut sent) = (Vec::new(), Vec::new(), Vec::new());
    for round in measured.collect::<Result<Vec<_>>>()? {
        let ((to_all, to_none), packets) = round;
        first.push(to_all);
        idle.push(to_none);
        sent.push(packets);
    }
    let column = format!("{peers} leases");
    let mut row = |name: &str, took: &dyn Fn(&Took) -> Duration, of: &[Took]| {
        report.set_durations(name, &column, &of.iter().map(took).collect::<Vec<_>>());
    };
    row("list in memory to last route", &|it| it.observe + it.plan + it.compare + it.apply, &first);
    row("— look at the kernel", &|it| it.observe, &first);
    row("— plan", &|it| it.plan, &first);
    row("— compare", &|it| it.compare, &first);
    row("— make the changes", &|it| it.apply, &first);
    row("a pass that finds nothing to do", &|it| it.observe + it.plan + it.compare, &idle);
    row("— look at the kernel, which holds all", &|it| it.observe, &idle);
    row("— plan again", &|it| it.plan, &idle);
    row("— compare with all", &|it| it.compare, &idle);
    sent.sort_unstable();
    report.set("packets routed meanwhile", &column, sent[sent.len() / 2].to_string());
    Ok(())
}

/// The udp backend: from a list of leases to the table.
fn table(peers: u16, report: &mut Report) -> Result<()> {
    let leases: LeaseSet = (0..peers).map(udp_lease).collect::<Result<_>>()?;
    let intent = intent(UDP)?;
    let rounds = (0..ROUNDS).map(|_| {
        let began = Instant::now();
        let table = Peers::default();
        table.replace(intent.host.own, intent.plan(&leases).dataplane.tunnel);
        let took = began.elapsed();
        ensure!(table.len() == leases.len(), "{} of {} leases are in the table", table.len(), leases.len());
        Ok(took)
    });
    let took = rounds.collect::<Result<Vec<_>>>()?;
    report.set_durations(
        "udp backend: list in memory to table without locks",
        &format!("{peers} leases"),
        &took,
    );
    Ok(())
}

/// Octets per lease that a plan takes, and that the table made of it takes.
fn memory_of_table(peers: u16) -> Result<[f64; 2]> {
    let leases: LeaseSet = (0..peers).map(udp_lease).collect::<Result<_>>()?;
    let intent = intent(UDP)?;
    let before = resident()?;
    let plan = intent.plan(&leases);
    let planned = resident()?;
    let table = Peers::default();
    table.replace(intent.host.own, plan.dataplane.tunnel.iter().map(|(subnet, node)| (*subnet, *node)));
    let full = resident()?;
    ensure!(table.len() == leases.len(), "{} of {} leases are in the table", table.len(), leases.len());
    drop(plan);
    Ok([planned - before, full - planned].map(|octets| octets.max(0.0) / f64::from(peers)))
}

/// Octets of memory that this process has.
fn resident() -> Result<f64> {
    // What was freed does not count.
    kernel::memory::give_back();
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? * 1024.0)
}

/// One pass to all leases and one to nothing, and how many packets were routed meanwhile.
fn measure_round(node: &Namespace, peers: u16, leases: &LeaseSet) -> Result<((Took, Took), u64)> {
    underlay(node)?;
    node.within(|| {
        with_packets(peers, || {
            let mut kernel = Linux::open()?;
            // The node itself stands before its peers are known.
            pass(&mut kernel, &LeaseSet::default())?;
            let to_all = pass(&mut kernel, leases)?;
            Ok((to_all, pass(&mut kernel, leases)?))
        })
    })?
}

fn underlay(node: &Namespace) -> Result<()> {
    for command in [
        "ip link add eth0 type veth peer name wire",
        "ip link set wire up",
        "ip link set eth0 up",
        "ip address add 192.0.2.1/24 dev eth0",
        "ip route add default via 192.0.2.254",
        "ip neighbor add 192.0.2.254 lladdr 02:00:00:00:00:01 dev eth0 nud permanent",
    ] {
        node.run(&command.split(' ').collect::<Vec<_>>())?;
    }
    Ok(())
}

/// Does it while packets go out to pods of all peers; says how many.
fn with_packets<T>(peers: u16, deed: impl FnOnce() -> Result<T>) -> Result<(T, u64)> {
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        scope.spawn(|| {
            let socket = socket;
            for number in (0..peers).cycle() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                // Nobody is there to answer, and before there is a route there is a default one.
                let _ = socket.send_to(b"x", (address(number, 9), 9));
                sent.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_micros(50));
            }
        });
        let done = deed();
        stop.store(true, Ordering::Relaxed);
        done.map(|done| (done, sent.load(Ordering::Relaxed)))
    })
}

fn pass(kernel: &mut Linux, leases: &LeaseSet) -> Result<Took> {
    let mut intent = intent(VXLAN)?;
    let ownership = intent.ownership();
    let node = intent.plan(&LeaseSet::default()).dataplane;
    let scope = Scope {
        links: ownership.links().collect(),
        sysctls: node.sysctls.into_keys().collect(),
        tables: ownership.tables().to_vec(),
    };
    let mut took = Took::default();
    let began = Instant::now();
    let observed = kernel.observe(&scope)?;
    took.observe = began.elapsed();
    intent.host.look_at(&observed, &ownership);
    intent.host.route_style = if leases.len() < 500 { RouteStyle::Plain } else { RouteStyle::NextHopObjects };
    let began = Instant::now();
    let plan = intent.plan(leases);
    took.plan = began.elapsed();
    let began = Instant::now();
    let changes = dataplane::changes(&plan.dataplane, &observed, &ownership, Prune::Yes);
    took.compare = began.elapsed();
    let began = Instant::now();
    let failures = kernel.apply(&changes);
    took.apply = began.elapsed();
    ensure!(failures.is_empty(), "the kernel refused {}", failures[0].error);
    Ok(took)
}

fn intent(net_conf: &str) -> Result<Intent> {
    let ip = Some(Ipv4Addr::new(192, 0, 2, 1));
    let external = ExternalInterface {
        link: "eth0".parse()?,
        mtu: 1500,
        ipv4: ip,
        ipv6: None,
        public_ipv4: ip,
        public_ipv6: None,
    };
    let masquerade =
        Masquerade { ipv4: true, ipv6: false, except: Vec::new(), source_ports: SourcePorts::FullyRandom };
    Ok(Intent {
        config: NetworkConfig::from_json(net_conf)?,
        options: Options {
            masquerade,
            forward_rules: true,
            blackhole_route: false,
            instance: Instance::default(),
        },
        host: Host::new(external, Subnets::from_key("10.200.0.0-24")?),
        macs: VtepMacs { ipv4: Some("0e:00:00:00:00:01".parse()?), ipv6: None },
    })
}

/// The address with this last octet in the pod subnet of a peer, from 0.
fn address(number: u16, last: u8) -> Ipv4Addr {
    let [high, low] = (number + 256).to_be_bytes();
    Ipv4Addr::new(10, high, low, last)
}

fn lease(number: u16) -> Result<Lease> {
    let [high, low] = number.to_be_bytes();
    let backend = format!(
        r#""BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"0e:00:00:01:{high:02x}:{low:02x}"}}"#
    );
    lease_with(number, &backend)
}

/// Nodes with the udp backend name none.
fn udp_lease(number: u16) -> Result<Lease> {
    lease_with(number, r#""BackendType":"","BackendData":null"#)
}

fn lease_with(number: u16, backend: &str) -> Result<Lease> {
    let [high, low] = number.to_be_bytes();
    let value = format!(r#"{{"PublicIP":"172.16.{high}.{low}","PublicIPv6":null,{backend}}}"#);
    Ok(Lease {
        subnets: Subnets::from_key(&format!("{}-24", address(number, 0)))?,
        attributes: Attributes::from_json(value.as_bytes())?,
        created: u64::from(number),
    })
}
