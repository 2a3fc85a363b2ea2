//! How fast pods reach pods, and nodes nodes: streams, requests, datagrams, on each backend, with a NIC
//! that cuts and gathers segments for the stack and with one that does not.
//!
//! ```text
//!   node1  pod ⇄ eth0 ── switch ── eth0 ⇄ pod  node2        a lab for each backend
//! ```
//!
//! Beside our udp backend stands a proxy of the original's kind, one packet per system call, written for this
//! bench ([`StandIn`]); with `FLANNEL_ORIGINAL=/path/to/flanneld` the original's own as well, if it was built
//! with it (which needs cgo).
//!
//! All labs stand at once and are measured in turns, each round in the other direction. `BENCH_ROUNDS`
//! and `BENCH_SECONDS` set how many rounds there are and how long each measurement takes.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{env, thread};

use anyhow::{Context, Result};
use fabric::LinkName;
use flannel_rs_benches::run::{Better, Figure, Run};
use flannel_rs_benches::stand_in::{self, StandIn};
use flannel_rs_benches::{await_quiet, begin};
use kernel::netlink::{Protocol, Socket};
use kernel::{KernelError, link, offload};
use lab::load::{self, Load, Measured};
use lab::{Lab, Namespace, Pod, Topology, wait_for};

/// Payload of a datagram.
const OCTETS: usize = 1300;
/// Datagrams a second that every way should carry: 0.3 Gbit/s.
const STEADY: u32 = 30_000;
/// How long a way may take until it carries packets.
const PATIENCE: Duration = Duration::from_secs(20);

/// Two places between which traffic goes.
struct Way {
    name: &'static str,
    ends: [End; 2],
}

/// A place that serves.
struct End {
    namespace: Namespace,
    address: SocketAddr,
    stop: Arc<AtomicBool>,
}

/// What of it is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Everything,
    Streams,
}

fn main() -> Result<()> {
    begin("Traffic: two nodes in network namespaces, IPv4")?;
    let labs = [("vxlan", Topology::vxlan(2)), ("host-gw", Topology::host_gw(2)), ("udp", Topology::udp(2))];
    let mut labs = labs
        .into_iter()
        .map(|(name, topology)| Ok((name, up(topology).with_context(|| format!("a lab with {name}"))?)))
        .collect::<Result<Vec<_>>>()?;
    let lab = up(Topology::alloc(2)).context("a lab for the stand-in")?;
    let _stand_in = StandIn::start(&lab).context("starting the stand-in")?;
    labs.push(("udp, stand-in", lab));
    if let Ok(program) = env::var("FLANNEL_ORIGINAL") {
        labs.push(("udp, the original", up_with_original(&program).context("a lab with the original")?));
    }
    let mut ways = vec![Way::between_nodes("bare", &labs[0].1)?];
    for (name, lab) in &labs {
        ways.push(Way::between_pods(name, lab).with_context(|| format!("pods with {name}"))?);
    }
    let mut run = Run::default();
    await_quiet()?;
    measure("Traffic, NIC with segmentation offload", &ways, Part::Everything, &mut run)?;
    on_cables(&labs, offload::disable)?;
    measure("Traffic, NIC without TCP segmentation", &ways, Part::Everything, &mut run)?;
    on_cables(&labs, offload::disable_udp_segmentation)?;
    measure("Traffic, NIC without TCP and UDP segmentation", &ways, Part::Streams, &mut run)?;
    for story in run.stories() {
        writeln!(io::stdout().lock(), "\n#### {story}\n\n{}", run.table(story))?;
    }
    Run::add_to_file(&run.figures)
}

fn up(topology: Topology) -> Result<Lab> {
    let lab = Lab::up(None, topology)?;
    lab.start()?;
    Ok(lab)
}

/// A lab whose nodes run the original's udp backend.
fn up_with_original(program: &str) -> Result<Lab> {
    let lab = Lab::up(None, Topology::udp(2).etcd())?;
    for node in lab.nodes() {
        let mut command =
            vec![program.to_owned(), format!("--subnet-file={}", node.files().subnet.display())];
        command.extend(node.flags().iter().cloned());
        node.start_command(&command)?;
        // It forwards only where somebody else has switched that on.
        node.run("sysctl -qw net.ipv4.ip_forward=1")?;
        wait_for("the original's subnet file", PATIENCE, || node.subnet_file().map(drop))?;
    }
    let [one, other] = [lab.node(1).attach("first")?, lab.node(2).attach("first")?];
    wait_for("the original to carry packets", PATIENCE, || one.ping(other.ipv4()?).map(drop))?;
    one.detach()?;
    other.detach()?;
    Ok(lab)
}

/// Does something to both ends of all cables between nodes.
fn on_cables(labs: &[(&str, Lab)], deed: fn(LinkName) -> Result<(), KernelError>) -> Result<()> {
    for (_, lab) in labs {
        for node in lab.nodes() {
            node.namespace().within(|| Ok::<_, anyhow::Error>(deed("eth0".parse()?)?))??;
        }
        lab.switch().within(|| {
            for link in link::list(&mut Socket::open(Protocol::Route)?)? {
                if link.kind.name() == "veth" {
                    deed(link.name)?;
                }
            }
            Ok::<_, anyhow::Error>(())
        })??;
    }
    Ok(())
}

fn measure(story: &str, ways: &[Way], part: Part, run: &mut Run) -> Result<()> {
    let rounds = setting("BENCH_ROUNDS", 4)?;
    let time = Duration::from_secs(setting("BENCH_SECONDS", 1)?);
    let mut figures: BTreeMap<(usize, usize), Figure> = BTreeMap::new();
    for round in 0..rounds {
        for (column, way) in ways.iter().enumerate() {
            let (from, to) = if round % 2 == 0 { (0, 1) } else { (1, 0) };
            let samples =
                way.sample(from, to, time, part).with_context(|| format!("{story}: {}", way.name))?;
            for (row, (name, unit, better, sample)) in samples.into_iter().enumerate() {
                let which = (round + 1, way.name);
                writeln!(
                    io::stderr(),
                    "{story}, round {}: {}: {name}: {sample:.2} {unit}",
                    which.0,
                    which.1
                )?;
                let figure = figures.entry((row, column)).or_insert_with(|| Figure {
                    story: story.to_owned(),
                    name: name.to_owned(),
                    variant: way.name.to_owned(),
                    unit: unit.to_owned(),
                    better,
                    samples: Vec::new(),
                    note: None,
                });
                figure.samples.push(sample);
            }
        }
    }
    run.figures.extend(figures.into_values());
    Ok(())
}

fn setting(name: &str, default: u64) -> Result<u64> {
    match env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text:?} is no number")),
        Err(_) => Ok(default),
    }
}

/// A row, its unit, its better direction, a sample.
type Sample = (&'static str, &'static str, Better, f64);

impl Way {
    fn between_nodes(name: &'static str, lab: &Lab) -> Result<Way> {
        let end =
            |number: usize| End::serve(lab.node(number).namespace().clone(), lab.node(number).address());
        Ok(Way { name, ends: [end(1)?, end(2)?] })
    }

    fn between_pods(name: &'static str, lab: &Lab) -> Result<Way> {
        let pods = [lab.node(1).attach("bench")?, lab.node(2).attach("bench")?];
        if lab.topology().backend["Type"] == "alloc" {
            // Nobody told them of the stand-in's device.
            pods.iter().try_for_each(|pod| {
                pod.run(&format!("ip link set eth0 mtu {}", stand_in::mtu(lab))).map(drop)
            })?;
        }
        wait_for("the pods to reach each other", PATIENCE, || pods[0].ping(pods[1].ipv4()?).map(drop))?;
        let end = |pod: &Pod<'_>| End::serve(pod.namespace().clone(), pod.ipv4()?);
        Ok(Way { name, ends: [end(&pods[0])?, end(&pods[1])?] })
    }

    fn sample(&self, from: usize, to: usize, time: Duration, part: Part) -> Result<Vec<Sample>> {
        use Better::{Less, More};
        let (from, to) = (&self.ends[from], &self.ends[to]);
        let put =
            |load| -> Result<Measured> { from.namespace.within(|| load::measure(to.address, load, time))? };
        let one = put(Load::Send(1))?;
        let eight = put(Load::Send(8))?;
        let to_one = put(Load::SendToOne(8))?;
        let mut samples = vec![
            ("one TCP stream", "Gbit/s", More, one.gigabits_per_second),
            ("one TCP stream: processor time per Gbit, both nodes", "s", Less, one.processor_per_gigabit()),
            ("eight TCP streams", "Gbit/s", More, eight.gigabits_per_second),
            (
                "eight TCP streams: processor time per Gbit, both nodes",
                "s",
                Less,
                eight.processor_per_gigabit(),
            ),
            ("eight TCP streams, read by one thread", "Gbit/s", More, to_one.gigabits_per_second),
            (
                "eight TCP streams, read by one thread: processor time per Gbit, both nodes",
                "s",
                Less,
                to_one.processor_per_gigabit(),
            ),
        ];
        if part == Part::Everything {
            let requests = put(Load::Requests)?;
            let flood = put(Load::Datagrams(OCTETS))?;
            let steady = put(Load::Paced(OCTETS, STEADY))?;
            samples.extend([
                ("TCP requests", "/s", More, requests.requests_per_second),
                ("TCP requests: p50", "µs", Less, requests.p50_microseconds),
                ("TCP requests: p99", "µs", Less, requests.p99_microseconds),
                ("UDP flood, 1300 octets: arrives", "/s", More, flood.datagrams_per_second),
                ("UDP flood, 1300 octets: lost", "%", Less, flood.lost * 100.0),
                ("UDP at 30,000 /s, 1300 octets: arrives", "/s", More, steady.datagrams_per_second),
                ("UDP at 30,000 /s, 1300 octets: lost", "%", Less, steady.lost * 100.0),
            ]);
        }
        Ok(samples)
    }
}

impl End {
    fn serve(namespace: Namespace, address: IpAddr) -> Result<End> {
        let listener = namespace.within(|| TcpListener::bind((address, load::PORT)))??;
        let stop = Arc::new(AtomicBool::new(false));
        let (inside, stopped) = (namespace.clone(), Arc::clone(&stop));
        // Its threads are in the namespace as well, and so are their sockets.
        thread::spawn(move || inside.within(|| load::serve(&listener, &stopped)));
        Ok(End { namespace, address: SocketAddr::new(address, load::PORT), stop })
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.namespace.within(|| TcpStream::connect(self.address).map(drop));
    }
}
