//! `/metrics`: what a node counts, in the text format of OpenMetrics, which Prometheus reads.
//!
//! Nothing is counted here. A scrape takes the [`Status`] of that moment, asks the store, the process
//! and the directory of host-local, and writes it down. `docs/metrics.md` lists every name.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fabric::status::{LeaseState, PeerPath, Status};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use store::{Store, StoreCounts};
use tokio::sync::watch;

use crate::addresses::{self, Addresses};
use crate::board;
use crate::process::Process;

/// The type of what is served.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Where a scrape looks.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The status of the daemon.
    pub status: watch::Receiver<Status>,
    /// The store.
    pub store: Store,
    /// Where host-local keeps its addresses.
    pub ipam_dir: PathBuf,
}

impl Sources {
    /// The page as of now. Reads files: not for the loop.
    pub fn page(&self) -> String {
        let status = self.status.borrow().clone();
        let subnets = status.lease.as_ref().map(|lease| lease.subnets.clone()).unwrap_or_default();
        let facts = Facts {
            store: self.store.counts(),
            addresses: addresses::count(Path::new(&self.ipam_dir), &subnets),
            process: Process::read(),
            now: board::now(),
            status,
        };
        render(facts)
    }
}

/// All that a page says.
#[derive(Debug, Clone)]
struct Facts {
    status: Status,
    store: StoreCounts,
    addresses: Vec<Addresses>,
    process: Option<Process>,
    now: u64,
}

fn render(facts: Facts) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Arc::new(facts)));
    let mut page = String::new();
    // A String takes all that is written to it.
    let _ = text::encode(&mut page, &registry);
    page
}

impl Collector for Facts {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        self.node(&mut page)?;
        self.store(&mut page)?;
        self.reconciler(&mut page)?;
        self.data_path(&mut page)?;
        self.ipam(&mut page)?;
        self.process(&mut page)
    }
}

impl Facts {
    fn node(&self, page: &mut Page<'_>) -> fmt::Result {
        let Status { version, ready, lease, peers, skipped, failures, .. } = &self.status;
        page.info("flannel_build", "The program.", &[("version", version)])?;
        page.one("flannel_ready", "Whether pods here reach pods of all known nodes.", i64::from(*ready))?;
        if let Some(lease) = lease {
            let states = [
                (LeaseState::Held, "held"),
                (LeaseState::Lost, "lost"),
                (LeaseState::Taken, "taken"),
                (LeaseState::FromSnapshot, "from-snapshot"),
            ];
            let states = states.map(|(state, name)| (name, i64::from(state == lease.state)));
            page.gauges("flannel_lease_state", "1 for the state of this node's lease.", "state", states)?;
            if let Some(expires) = lease.expires {
                let help = "When the store forgets this node's lease unless it is renewed.";
                page.one("flannel_lease_expiry_timestamp_seconds", help, expires as i64)?;
            }
        }
        let refused = peers.iter().filter(|peer| peer.refused.is_some()).count();
        let by = |path| peers.iter().filter(|peer| peer.refused.is_none() && peer.path == path).count();
        let paths = [
            ("tunnel", by(PeerPath::Tunnel)),
            ("direct", by(PeerPath::Direct)),
            ("none", by(PeerPath::None)),
            ("refused", refused),
        ];
        let paths = paths.map(|(path, count)| (path, count as i64));
        page.gauges("flannel_peers", "Other nodes, by how they are reached.", "path", paths)?;
        let help = "Records of the store that were left out.";
        page.one("flannel_skipped_records", help, skipped.len() as i64)?;
        page.one("flannel_failures", "Things that are wrong now.", failures.len() as i64)
    }

    fn store(&self, page: &mut Page<'_>) -> fmt::Result {
        let connected = i64::from(self.status.store.reachable);
        page.one("flannel_store_connected", "Whether the store answered the last request.", connected)?;
        if let Some(answered) = self.store.last_answer {
            let help = "How long ago the store said anything.";
            let age = self.now.saturating_sub(board::unix(answered));
            page.one("flannel_store_last_answer_age_seconds", help, age as i64)?;
        }
        let help = "Requests that the store did not answer, or refused.";
        page.counter("flannel_store_errors", help, self.store.errors)
    }

    fn reconciler(&self, page: &mut Page<'_>) -> fmt::Result {
        let it = &self.status.reconciler;
        let failed = |kind: &str| it.failed.get(kind).copied().unwrap_or_default();
        let desired = it.desired.iter().map(|(kind, count)| (kind.as_str(), *count as i64));
        let programmed =
            it.desired.iter().map(|(kind, count)| (kind.as_str(), count.saturating_sub(failed(kind)) as i64));
        let refused = it.desired.keys().map(|kind| (kind.as_str(), failed(kind) as i64));
        let help = "Objects wanted in the kernel.";
        page.gauges("flannel_reconciler_desired_objects", help, "kind", desired)?;
        let help = "Those of them that the kernel holds, as of the last pass.";
        page.gauges("flannel_reconciler_programmed_objects", help, "kind", programmed)?;
        let help = "Changes that the kernel refused in the last pass.";
        page.gauges("flannel_reconciler_failed_objects", help, "kind", refused)?;
        let counted = |counts: &std::collections::BTreeMap<String, u64>| {
            let counts = it.desired.keys().map(|kind| (kind.clone(), counts.get(kind).copied()));
            counts.map(|(kind, count)| (kind, count.unwrap_or_default())).collect::<Vec<_>>()
        };
        page.counters("flannel_reconciler_changes", "Changes made.", "kind", counted(&it.changed))?;
        let help = "Those that put right what somebody else had changed.";
        page.counters("flannel_reconciler_repairs", help, "kind", counted(&it.repaired))?;
        page.counter("flannel_reconciler_passes", "Comparisons of kernel and leases.", it.passes)?;
        let seconds = it.pass_microseconds as f64 / 1e6;
        page.counter("flannel_reconciler_pass_seconds", "How long they took altogether.", seconds)?;
        let help = "When the last of them ended.";
        page.one("flannel_reconciler_last_pass_timestamp_seconds", help, it.last_pass as i64)
    }

    fn data_path(&self, page: &mut Page<'_>) -> fmt::Result {
        let Some(it) = &self.status.data_path else { return Ok(()) };
        let ways = [("outgoing", &it.outgoing), ("incoming", &it.incoming)];
        let packets = ways.map(|(way, traffic)| (way.to_owned(), traffic.packets));
        page.counters("flannel_datapath_packets", "Packets carried.", "direction", packets)?;
        let octets = ways.map(|(way, traffic)| (way.to_owned(), traffic.octets));
        page.counters("flannel_datapath_bytes", "Their octets.", "direction", octets)?;
        let oversized = ways.map(|(way, traffic)| (way.to_owned(), traffic.oversized));
        let help = "Packets carried although they are larger than the MTU of pods.";
        page.counters("flannel_datapath_oversized_packets", help, "direction", oversized)?;
        let offloads = it.offloads.iter().map(|(name, works)| (name.as_str(), i64::from(*works)));
        let help = "Whether the kernel does it for the data path.";
        page.gauges("flannel_datapath_offload", help, "offload", offloads)?;
        let drops = ways.into_iter().flat_map(|(way, traffic)| {
            traffic
                .dropped
                .iter()
                .map(move |(reason, count)| ([("direction", way), ("reason", reason)], *count))
        });
        let counter = ConstCounter::new(0u64).metric_type();
        let mut family =
            page.0.encode_descriptor("flannel_datapath_drops", "Packets dropped.", None, counter)?;
        for (labels, count) in drops {
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn ipam(&self, page: &mut Page<'_>) -> fmt::Result {
        let used = self.addresses.iter().map(|found| (found.family, found.used as i64));
        page.gauges("flannel_ipam_addresses_used", "Addresses that pods have.", "family", used)?;
        let free = self.addresses.iter().map(|found| (found.family, found.free as i64));
        page.gauges("flannel_ipam_addresses_free", "Addresses left for pods.", "family", free)
    }

    fn process(&self, page: &mut Page<'_>) -> fmt::Result {
        let Some(process) = &self.process else { return Ok(()) };
        let help = "Processor time spent, in user and kernel mode.";
        page.counter("process_cpu_seconds", help, process.cpu_seconds)?;
        let help = "Memory that is in RAM.";
        page.one("process_resident_memory_bytes", help, process.resident_bytes as i64)?;
        page.one("process_threads", "Threads.", process.threads as i64)?;
        page.one("process_start_time_seconds", "When flanneld started.", self.status.started as i64)
    }
}

/// A page being written.
struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    fn info(&mut self, name: &str, help: &str, labels: &[(&str, &str)]) -> fmt::Result {
        let labels: Vec<_> =
            labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let info = Info::new(labels);
        info.encode(self.0.encode_descriptor(name, help, None, info.metric_type())?)
    }

    fn one(&mut self, name: &str, help: &str, value: i64) -> fmt::Result {
        let gauge = ConstGauge::new(value);
        gauge.encode(self.0.encode_descriptor(name, help, None, gauge.metric_type())?)
    }

    fn gauges<'l>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'l str, i64)>,
    ) -> fmt::Result {
        let kind = ConstGauge::new(0i64).metric_type();
        let mut values = values.into_iter().peekable();
        if values.peek().is_none() {
            return Ok(());
        }
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        for (of, value) in values {
            ConstGauge::new(value).encode(family.encode_family(&[(label, of)])?)?;
        }
        Ok(())
    }

    fn counter<N>(&mut self, name: &str, help: &str, value: N) -> fmt::Result
    where
        ConstCounter<N>: EncodeMetric,
    {
        let counter = ConstCounter::new(value);
        counter.encode(self.0.encode_descriptor(name, help, None, counter.metric_type())?)
    }

    fn counters(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (String, u64)>,
    ) -> fmt::Result {
        let kind = ConstCounter::new(0u64).metric_type();
        let mut values = values.into_iter().peekable();
        if values.peek().is_none() {
            return Ok(());
        }
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        for (of, value) in values {
            ConstCounter::new(value).encode(family.encode_family(&[(label, of.as_str())])?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::{Duration, SystemTime};

    use fabric::status::{self, OwnLease, Peer};

    use super::*;

    fn facts() -> Facts {
        let mut status = Status { version: "1.2.3".to_owned(), ready: true, started: 5, ..Status::default() };
        let lease = OwnLease { state: LeaseState::Lost, expires: Some(90_000), ..OwnLease::default() };
        status.lease = Some(lease);
        status.store.reachable = true;
        let peer = |path, refused: Option<&str>| Peer {
            ipv4: None,
            ipv6: None,
            public_ipv4: None,
            public_ipv6: None,
            path,
            refused: refused.map(str::to_owned),
        };
        status.peers = Arc::new(vec![
            peer(PeerPath::Tunnel, None),
            peer(PeerPath::Tunnel, None),
            peer(PeerPath::None, Some("no")),
        ]);
        let counts = |pairs: &[(&str, u64)]| pairs.iter().map(|(kind, n)| ((*kind).to_owned(), *n)).collect();
        status.reconciler = status::Reconciler {
            desired: counts(&[("fdb", 2), ("route", 3)]),
            failed: counts(&[("route", 1)]),
            changed: counts(&[("route", 7)]),
            repaired: BTreeMap::new(),
            passes: 4,
            pass_microseconds: 2_500_000,
            last_pass: 99,
        };
        let store =
            StoreCounts { last_answer: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(60)), errors: 3 };
        let addresses = vec![Addresses { family: "ipv4", used: 2, free: 251 }];
        let process = Some(Process { cpu_seconds: 1.5, resident_bytes: 4096, threads: 2 });
        Facts { status, store, addresses, process, now: 100 }
    }

    #[test]
    fn a_page_says_what_is_known() {
        let page = render(facts());
        let mut samples: Vec<&str> = page.lines().filter(|line| !line.starts_with('#')).collect();
        samples.sort_unstable();
        let mut expected = [
            "flannel_build_info{version=\"1.2.3\"} 1",
            "flannel_failures 0",
            "flannel_ipam_addresses_free{family=\"ipv4\"} 251",
            "flannel_ipam_addresses_used{family=\"ipv4\"} 2",
            "flannel_lease_expiry_timestamp_seconds 90000",
            "flannel_lease_state{state=\"from-snapshot\"} 0",
            "flannel_lease_state{state=\"held\"} 0",
            "flannel_lease_state{state=\"lost\"} 1",
            "flannel_lease_state{state=\"taken\"} 0",
            "flannel_peers{path=\"direct\"} 0",
            "flannel_peers{path=\"none\"} 0",
            "flannel_peers{path=\"refused\"} 1",
            "flannel_peers{path=\"tunnel\"} 2",
            "flannel_ready 1",
            "flannel_reconciler_changes_total{kind=\"fdb\"} 0",
            "flannel_reconciler_changes_total{kind=\"route\"} 7",
            "flannel_reconciler_desired_objects{kind=\"fdb\"} 2",
            "flannel_reconciler_desired_objects{kind=\"route\"} 3",
            "flannel_reconciler_failed_objects{kind=\"fdb\"} 0",
            "flannel_reconciler_failed_objects{kind=\"route\"} 1",
            "flannel_reconciler_last_pass_timestamp_seconds 99",
            "flannel_reconciler_pass_seconds_total 2.5",
            "flannel_reconciler_passes_total 4",
            "flannel_reconciler_programmed_objects{kind=\"fdb\"} 2",
            "flannel_reconciler_programmed_objects{kind=\"route\"} 2",
            "flannel_reconciler_repairs_total{kind=\"fdb\"} 0",
            "flannel_reconciler_repairs_total{kind=\"route\"} 0",
            "flannel_skipped_records 0",
            "flannel_store_connected 1",
            "flannel_store_errors_total 3",
            "flannel_store_last_answer_age_seconds 40",
            "process_cpu_seconds_total 1.5",
            "process_resident_memory_bytes 4096",
            "process_start_time_seconds 5",
            "process_threads 2",
        ];
        expected.sort_unstable();
        assert_eq!(samples, expected);
    }

    #[test]
    fn drops_are_told_by_direction_and_reason_and_what_the_kernel_does_by_name() {
        let mut facts = facts();
        let dropped = BTreeMap::from([("no_route".to_owned(), 3)]);
        let outgoing = status::Traffic { packets: 9, octets: 900, dropped, ..Default::default() };
        let offloads = BTreeMap::from([("USO".to_owned(), false)]);
        facts.status.data_path = Some(status::DataPath { outgoing, offloads, ..status::DataPath::default() });
        let page = render(facts);
        let drop = "\nflannel_datapath_drops_total{direction=\"outgoing\",reason=\"no_route\"} 3\n";
        assert!(page.contains(drop), "{page}");
        assert!(page.contains("\nflannel_datapath_packets_total{direction=\"incoming\"} 0\n"), "{page}");
        assert!(page.contains("\nflannel_datapath_offload{offload=\"USO\"} 0\n"), "{page}");
    }

    #[test]
    fn every_metric_is_documented() {
        let mut facts = facts();
        let offloads = BTreeMap::from([("USO".to_owned(), true)]);
        facts.status.data_path = Some(status::DataPath { offloads, ..status::DataPath::default() });
        let document = include_str!("../../../docs/metrics.md");
        let page = render(facts);
        for name in page.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let name = name.split(' ').next().unwrap();
            assert!(document.contains(&format!("`{name}")), "docs/metrics.md does not tell of {name}");
        }
    }
}
