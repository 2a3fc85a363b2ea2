//! `flannelctl bench`: how fast pods, or nodes, reach each other. One side serves, the other measures.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lab::load::{self, Load, Measured};

use crate::output::Output;

#[derive(Debug, clap::Args)]
pub(crate) struct Bench {
    /// The address of the other side, where `flannelctl bench serve` runs; or `serve` to be that side.
    #[arg(value_name = "ADDRESS|serve")]
    to: String,
    /// The port of the server, TCP; datagrams go to any other one.
    #[arg(long, default_value_t = load::PORT)]
    port: u16,
    /// How long each measurement takes, in seconds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// How many TCP streams run at once in the measurements of many.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=256))]
    streams: u64,
    /// Octets of payload in a datagram; what is larger than the MTU carries is sent in fragments.
    #[arg(long, default_value_t = 1300, value_parser = clap::value_parser!(u64).range(1..=65_507))]
    octets: u64,
    /// How many datagrams a second are sent in the measurement of a steady load.
    #[arg(long, default_value_t = 30_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    rate: u32,
}

pub(crate) fn run(bench: &Bench, out: &mut Output) -> Result<ExitCode> {
    if bench.to == "serve" {
        return serve(bench.port, out);
    }
    let Ok(ip) = bench.to.parse::<IpAddr>() else {
        bail!(
            "{:?} is no IP address; want that of the pod or node where `flannelctl bench serve` runs",
            bench.to
        )
    };
    let server = SocketAddr::new(ip, bench.port);
    let (streams, octets) = (bench.streams as usize, bench.octets as usize);
    let loads = [
        ("one stream there", Load::Send(1)),
        ("one stream back", Load::Receive(1)),
        ("many streams there", Load::Send(streams)),
        ("many streams back", Load::Receive(streams)),
        ("requests", Load::Requests),
        ("datagrams", Load::Datagrams(octets)),
        ("steady datagrams", Load::Paced(octets, bench.rate)),
    ];
    let mut json = serde_json::Map::new();
    let mut table = Vec::new();
    for (name, load) in loads {
        let measured = load::measure(server, load, Duration::from_secs(bench.seconds))?;
        json.insert(name.replace(' ', "_"), as_json(&measured));
        let processor = match load {
            Load::Requests => String::new(),
            _ => format!("{:.2} s", measured.processor_per_gigabit()),
        };
        table.push(vec![name.to_owned(), words(load, &measured), processor]);
    }
    if out.is_json() {
        out.json(&json)?;
    } else {
        out.table(&["WHAT", "RESULT", "PROCESSOR TIME HERE, PER GBIT"], &table)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn words(load: Load, measured: &Measured) -> String {
    let Measured { gigabits_per_second, requests_per_second, datagrams_per_second, lost, .. } = measured;
    let Measured { p50_microseconds, p99_microseconds, .. } = measured;
    match load {
        Load::Send(_) | Load::SendToOne(_) | Load::Receive(_) => format!("{gigabits_per_second:.2} Gbit/s"),
        Load::Requests => {
            format!("{requests_per_second:.0} /s, p50 {p50_microseconds:.0} µs, p99 {p99_microseconds:.0} µs")
        }
        Load::Datagrams(_) | Load::Paced(..) => {
            format!("{datagrams_per_second:.0} /s, {:.1} % lost", lost * 100.0)
        }
    }
}

fn serve(port: u16, out: &mut Output) -> Result<ExitCode> {
    let listener = TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))
        .or_else(|_| TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], port))))
        .with_context(|| {
            format!("listening on TCP port {port}: choose another with --port, on both sides")
        })?;
    out.line(format!(
        "serving on TCP port {port} and any UDP port until Ctrl-C; on the other side: flannelctl bench ADDRESS-OF-THIS-SIDE"
    ))?;
    load::serve(&listener, &AtomicBool::new(false)).context("serving")?;
    Ok(ExitCode::SUCCESS)
}

fn as_json(measured: &Measured) -> serde_json::Value {
    serde_json::json!({
        "seconds": measured.seconds,
        "gigabits_per_second": measured.gigabits_per_second,
        "requests_per_second": measured.requests_per_second,
        "p50_microseconds": measured.p50_microseconds,
        "p99_microseconds": measured.p99_microseconds,
        "datagrams_per_second": measured.datagrams_per_second,
        "lost": measured.lost,
        "processor_seconds": measured.processor_seconds,
    })
}
