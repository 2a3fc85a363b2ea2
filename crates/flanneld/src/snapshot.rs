//! The leases last known to be good, on disk: what a node starts from while its store is away.

use std::convert::Infallible;
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use fabric::backend::VtepMacs;
use fabric::lease::{Attributes, Lease, LeaseSet, Subnets};
use fabric::status::LeaseState;
use serde::{Deserialize, Serialize, Serializer};
use store::PublicAddresses;
use tokio::sync::watch;

use crate::own_lease::Own;
use crate::whole_file;

/// The form of the file; another one is not read.
const VERSION: u32 = 1;
/// How long the writer gathers changes. Not longer, however slow the disk: what came last is lost to a node
/// that stops meanwhile.
const GATHER: RangeInclusive<Duration> = Duration::from_millis(500)..=Duration::from_secs(5);
/// After how long a snapshot that could not be written is tried again.
const WRITE_AGAIN: Duration = Duration::from_secs(5);

/// Everything that a node needs to carry on where it left off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Which store this is of ([`store::Store::identity`]); that of another is of no use.
    pub store: String,
    /// The network configuration, as it is written in the store.
    pub network: String,
    /// This node's lease.
    pub own: Lease,
    /// The addresses of its tunnel endpoints.
    pub macs: VtepMacs,
    /// The public addresses that Kubernetes told it to use.
    pub told: PublicAddresses,
    /// All leases.
    pub leases: LeaseSet,
}

impl Snapshot {
    /// Reads the snapshot of `store`; none if there is none.
    pub fn read(path: &Path, store: &str) -> anyhow::Result<Option<Snapshot>> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        let snapshot = parse(&text).with_context(|| format!("reading {}", path.display()))?;
        Ok((snapshot.store == store).then_some(snapshot))
    }

    /// Keeps the file equal to the leases until dropped, from when they are known to be good. It is
    /// written on another thread: with ten thousand leases on a slow disk, the loop would stand still.
    pub async fn keep(
        self,
        path: &Path,
        mut leases: watch::Receiver<Option<LeaseSet>>,
        mut own: watch::Receiver<Option<Own>>,
    ) -> Infallible {
        // Below a fiftieth of the time is spent on writing.
        let mut file = whole_file::Kept::new("cannot keep the leases for the next start", 50, GATHER);
        loop {
            let held = own.borrow_and_update().clone().filter(|own| own.state == LeaseState::Held);
            let all = leases.borrow_and_update().clone();
            if let (Some(own), Some(all)) = (held, all) {
                let snapshot = Snapshot { own: own.lease, leases: all, ..self.clone() };
                let path = path.to_owned();
                file.write(move || snapshot.write(&path)).await;
            }
            tokio::select! {
                changed = leases.changed() => if changed.is_err() { return std::future::pending().await },
                changed = own.changed() => if changed.is_err() { return std::future::pending().await },
                () = file.try_again(WRITE_AGAIN) => {},
            }
        }
    }

    /// Replaces the file. To be called off the loop.
    fn write(&self, path: &Path) -> anyhow::Result<()> {
        // One that was given up on may still be at it, in the same temporary file.
        static WRITING: Mutex<()> = Mutex::new(());
        let _alone = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
        let file = FileOut {
            version: VERSION,
            store: &self.store,
            network: &self.network,
            own: Record::of(&self.own),
            vtep_mac: self.macs.ipv4.map(|mac| mac.to_string()),
            vtep_v6_mac: self.macs.ipv6.map(|mac| mac.to_string()),
            told_ipv4: self.told.ipv4,
            told_ipv6: self.told.ipv6,
            leases: Leases(&self.leases),
        };
        whole_file::write(path, |to| {
            serde_json::to_writer(&mut *to, &file)?;
            to.write_all(b"\n")
        })
    }
}

fn parse(text: &[u8]) -> anyhow::Result<Snapshot> {
    let file: FileIn = serde_json::from_slice(text)?;
    if file.version != VERSION {
        bail!("its version is {}, want {VERSION}", file.version);
    }
    let mac = |text: Option<String>| text.map(|text| text.parse()).transpose();
    Ok(Snapshot {
        store: file.store,
        network: file.network,
        own: file.own.lease()?,
        macs: VtepMacs { ipv4: mac(file.vtep_mac)?, ipv6: mac(file.vtep_v6_mac)? },
        told: PublicAddresses { ipv4: file.told_ipv4, ipv6: file.told_ipv6 },
        leases: file.leases.into_iter().map(Record::lease).collect::<Result<_, _>>()?,
    })
}

/// The file as it is written: the leases one after the other, never a second copy of all.
#[derive(Serialize)]
struct FileOut<'a> {
    version: u32,
    store: &'a str,
    network: &'a str,
    own: Record,
    vtep_mac: Option<String>,
    vtep_v6_mac: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    told_ipv4: Option<Ipv4Addr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    told_ipv6: Option<Ipv6Addr>,
    leases: Leases<'a>,
}

struct Leases<'a>(&'a LeaseSet);

impl Serialize for Leases<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.0.iter().map(|lease| Record::of(lease)))
    }
}

/// The file as it is read.
#[derive(Deserialize)]
struct FileIn {
    version: u32,
    store: String,
    network: String,
    own: Record,
    vtep_mac: Option<String>,
    vtep_v6_mac: Option<String>,
    told_ipv4: Option<Ipv4Addr>,
    told_ipv6: Option<Ipv6Addr>,
    leases: Vec<Record>,
}

/// A lease: its key and value as in the store.
#[derive(Serialize, Deserialize)]
struct Record {
    key: String,
    value: Attributes,
    created: u64,
}

impl Record {
    fn of(lease: &Lease) -> Record {
        Record { key: lease.subnets.key(), value: lease.attributes.clone(), created: lease.created }
    }

    fn lease(self) -> anyhow::Result<Lease> {
        Ok(Lease { subnets: Subnets::from_key(&self.key)?, attributes: self.value, created: self.created })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot() -> Snapshot {
        let lease = |key: &str, created| {
            Lease {
            subnets: Subnets::from_key(key).unwrap(),
            attributes: Attributes::from_json(
                br#"{"PublicIP":"192.0.2.1","PublicIPv6":"fd00::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:2a:01:02:03:04"}}"#,
            )
            .unwrap(),
            created,
        }
        };
        Snapshot {
            store: "etcd below /coreos.com/network".to_owned(),
            network: r#"{"Network":"10.5.0.0/16"}"#.to_owned(),
            own: lease("10.5.1.0-24&fd00:0:0:1::-64", 4),
            macs: VtepMacs { ipv4: Some("0e:2a:01:02:03:04".parse().unwrap()), ipv6: None },
            told: PublicAddresses { ipv4: Some([192, 0, 2, 9].into()), ipv6: None },
            leases: [lease("10.5.1.0-24&fd00:0:0:1::-64", 4), lease("10.5.2.0-24", 7)].into_iter().collect(),
        }
    }

    #[test]
    fn what_was_written_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leases.json");
        assert_eq!(Snapshot::read(&path, "any").unwrap(), None);
        let snapshot = snapshot();
        snapshot.write(&path).unwrap();
        assert_eq!(Snapshot::read(&path, &snapshot.store).unwrap(), Some(snapshot));
        assert_eq!(Snapshot::read(&path, "etcd below /other").unwrap(), None, "of another store");
    }

    #[test]
    fn no_beginning_of_a_file_is_taken_for_a_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leases.json");
        snapshot().write(&path).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for len in 0..whole.len() - 1 {
            std::fs::write(&path, &whole[..len]).unwrap();
            let error = Snapshot::read(&path, "any").unwrap_err();
            assert!(format!("{error:#}").contains("leases.json"), "{error:#}");
        }
    }
}
