//! Leases in etcd, by its v3 API.
//!
//! Keys are `<prefix>/config` and `<prefix>/subnets/<key of the lease>`. A lease hangs on an etcd
//! lease of its own, so that it goes away with its node; a key without one is a reservation and
//! stays. Writes are transactions that compare the revision of the key with the one that was read.
//!
//! The protocol is spoken by a client of our own that knows what leases need and no more. Its
//! transactions have the two shapes that kine understands as well.

mod cluster;
mod failure;
mod messages;
mod options;
mod watch;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;

use crate::StoreError;
use crate::error::WRITE_ONE;
use crate::registry::{Expiry, Record, Registry, Revision, WatchEnd, Written};
use cluster::Cluster;
use messages::{
    Compare, DeleteRangeRequest, KeyValue, LEASE_GRANT, LEASE_REVOKE, LEASE_TIME_TO_LIVE, LeaseGrantRequest,
    LeaseGrantResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse, Operation, PUT, PutRequest, PutResponse, RANGE, RangeRequest, RangeResponse,
    RequestOp, ResponseHeader, TXN, TxnRequest, TxnResponse,
};
pub use options::{EtcdOptions, Secret};
pub(crate) use watch::EtcdWatch;

/// How many records are asked for at once: some 250 KB.
const PAGE: i64 = 1000;

/// The store in an etcd cluster.
#[derive(Debug)]
pub(crate) struct Etcd {
    cluster: Arc<Cluster>,
    keys: Keys,
    /// The etcd leases that were granted to us, by the key that hangs on each: once the key hangs on
    /// another one, it can be revoked without taking anything of anybody along.
    granted: Mutex<HashMap<String, i64>>,
}

/// Where things are.
#[derive(Debug, Clone)]
struct Keys {
    prefix: String,
}

impl Etcd {
    pub(crate) fn new(options: EtcdOptions) -> Result<Etcd, StoreError> {
        let keys = Keys { prefix: clean(&options.prefix) };
        let cluster = Arc::new(Cluster::new(options)?);
        Ok(Etcd { cluster, keys, granted: Mutex::default() })
    }

    /// Ends all connections, since this host has moved to other addresses.
    pub(crate) fn reconnect(&self) {
        self.cluster.reconnect();
    }

    async fn range(&self, attempted: &str, request: RangeRequest) -> Result<RangeResponse, StoreError> {
        self.cluster.call(attempted, RANGE, request).await
    }

    /// A transaction that does one thing if a key is as it was at `revision` (0: not there).
    async fn if_unchanged(
        &self,
        attempted: &str,
        key: Vec<u8>,
        revision: u64,
        operation: Operation,
    ) -> Result<TxnResponse, StoreError> {
        const EQUAL: i32 = 0;
        const MOD: i32 = 2;
        let compare =
            Compare { result: EQUAL, target: MOD, key: key.clone(), mod_revision: Some(revision as i64) };
        let read = Operation::Range(RangeRequest { key, ..RangeRequest::default() });
        let failure = match revision {
            0 => vec![],
            _ => vec![RequestOp { request: Some(read) }],
        };
        let success = vec![RequestOp { request: Some(operation) }];
        self.cluster.call(attempted, TXN, TxnRequest { compare: vec![compare], success, failure }).await
    }

    /// Writes a record under a fresh etcd lease, if its key is as it was.
    async fn write(
        &self,
        (key, created, modified): (&str, Option<u64>, u64),
        value: &str,
        ttl: Option<Duration>,
    ) -> Result<Written, StoreError> {
        let attempted = format!("write the lease {key}");
        let asked = Instant::now();
        let (lease, expires) = match ttl {
            None => (0, Expiry::Never),
            Some(ttl) => {
                let request = LeaseGrantRequest { ttl: ttl.as_secs().max(1) as i64 };
                let granted: LeaseGrantResponse = self.cluster.call(&attempted, LEASE_GRANT, request).await?;
                let ttl = Duration::from_secs(granted.ttl.max(1) as u64);
                (granted.id, Expiry::At(asked + ttl))
            }
        };
        let path = self.keys.subnet(key);
        let put = PutRequest { key: path.clone(), value: value.as_bytes().to_vec(), lease };
        let outcome = self.if_unchanged(&attempted, path, modified, Operation::Put(put)).await;
        let Ok(TxnResponse { header, succeeded: true }) = outcome else {
            // The transaction may have arrived although no answer came: then the key hangs on this
            // lease, and to revoke it would take the key away.
            if outcome.is_ok() {
                self.revoke(lease).await;
            }
            return outcome.map(|_| Written::Conflict);
        };
        let superseded =
            self.granted.lock().expect("no holder of this lock panics").insert(key.to_owned(), lease);
        self.revoke(superseded.unwrap_or(0)).await;
        let modified = moment(header.as_ref()).number;
        Ok(Written::Done(Record {
            key: key.to_owned(),
            value: value.as_bytes().to_vec(),
            created: created.unwrap_or(modified),
            modified,
            expires,
        }))
    }

    /// Gives an etcd lease back that nothing hangs on. Were it not for this, it would run out.
    async fn revoke(&self, id: i64) {
        if id == 0 {
            return;
        }
        let outcome: Result<LeaseRevokeResponse, StoreError> =
            self.cluster.call("revoke an etcd lease", LEASE_REVOKE, LeaseRevokeRequest { id }).await;
        if let Err(error) = outcome {
            debug!(%error, "an etcd lease that is not needed is left to run out");
        }
    }

    async fn expiry(&self, lease: i64) -> Expiry {
        if lease == 0 {
            return Expiry::Never;
        }
        let asked = Instant::now();
        let request = LeaseTimeToLiveRequest { id: lease };
        let answer: Result<LeaseTimeToLiveResponse, StoreError> =
            self.cluster.call("ask how long the lease lasts", LEASE_TIME_TO_LIVE, request).await;
        match answer {
            Ok(answer) => Expiry::At(asked + Duration::from_secs(answer.ttl.max(0) as u64)),
            // kine does not know the question.
            Err(_) => Expiry::Unknown,
        }
    }
}

impl Registry for Etcd {
    type Watch = EtcdWatch;

    fn describe(&self) -> String {
        format!("etcd at {}, below {}", self.cluster.describe(), self.keys.prefix)
    }

    fn identity(&self) -> String {
        format!("etcd below {}", self.keys.prefix)
    }

    async fn config(&self) -> Result<String, StoreError> {
        let request = RangeRequest { key: self.keys.config(), ..RangeRequest::default() };
        let answer = self.range("read the network configuration", request).await?;
        let place = || format!("{} in etcd", String::from_utf8_lossy(&self.keys.config()));
        let Some(kv) = answer.kvs.into_iter().next() else {
            return Err(StoreError::NoNetworkConfig { place: place(), remedy: WRITE_ONE });
        };
        String::from_utf8(kv.value)
            .map_err(|_| StoreError::Options(format!("the network configuration at {} is no UTF-8", place())))
    }

    async fn set_config(&self, json: &str) -> Result<(), StoreError> {
        let put = PutRequest { key: self.keys.config(), value: json.as_bytes().to_vec(), lease: 0 };
        let _: PutResponse = self.cluster.call("write the network configuration", PUT, put).await?;
        Ok(())
    }

    async fn list(&self, visit: &mut (dyn FnMut(Record) + Send)) -> Result<Revision, StoreError> {
        let mut key = self.keys.subnets();
        let mut first: Option<Revision> = None;
        loop {
            let request = RangeRequest {
                key: key.clone(),
                range_end: self.keys.subnets_end(),
                limit: PAGE,
                // All pages show the moment of the first.
                revision: first.map_or(0, |first| first.number as i64),
            };
            let page = self.range("list the leases", request).await?;
            let moment = *first.get_or_insert(moment(page.header.as_ref()));
            if let Some(last) = page.kvs.last() {
                key = [last.key.as_slice(), &[0]].concat();
            }
            let more = page.more && !page.kvs.is_empty();
            page.kvs.into_iter().filter_map(|kv| record(kv, &self.keys)).for_each(&mut *visit);
            if !more {
                return Ok(moment);
            }
        }
    }

    async fn get(&self, key: &str) -> Result<Option<Record>, StoreError> {
        let request = RangeRequest { key: self.keys.subnet(key), ..RangeRequest::default() };
        let answer = self.range(&format!("read the lease {key}"), request).await?;
        let Some(kv) = answer.kvs.into_iter().next() else { return Ok(None) };
        let expires = self.expiry(kv.lease).await;
        Ok(record(kv, &self.keys).map(|record| Record { expires, ..record }))
    }

    async fn create(&self, key: &str, value: &str, ttl: Option<Duration>) -> Result<Written, StoreError> {
        self.write((key, None, 0), value, ttl).await
    }

    async fn replace(
        &self,
        held: &Record,
        value: &str,
        ttl: Option<Duration>,
    ) -> Result<Written, StoreError> {
        self.write((&held.key, Some(held.created), held.modified), value, ttl).await
    }

    async fn delete(&self, held: &Record) -> Result<Written, StoreError> {
        let attempted = format!("delete the lease {}", held.key);
        let key = self.keys.subnet(&held.key);
        let delete = Operation::DeleteRange(DeleteRangeRequest { key: key.clone() });
        let answer = self.if_unchanged(&attempted, key, held.modified, delete).await?;
        Ok(if answer.succeeded { Written::Done(held.clone()) } else { Written::Conflict })
    }

    async fn watch(&self, after: Option<Revision>) -> Result<EtcdWatch, WatchEnd> {
        EtcdWatch::open(self.cluster.clone(), self.keys.clone(), after).await
    }
}

impl Keys {
    fn config(&self) -> Vec<u8> {
        self.below("config")
    }

    /// What all leases begin with. Unlike the original we ask for the slash too, so that a
    /// neighbor like `<prefix>/subnets-old/…` is not ours.
    fn subnets(&self) -> Vec<u8> {
        self.below("subnets/")
    }

    /// The first key after all that begin so: `0` follows `/` in ASCII.
    fn subnets_end(&self) -> Vec<u8> {
        self.below("subnets0")
    }

    fn subnet(&self, key: &str) -> Vec<u8> {
        self.below(&format!("subnets/{key}"))
    }

    fn below(&self, name: &str) -> Vec<u8> {
        let slash = if matches!(self.prefix.as_str(), "" | "/") { "" } else { "/" };
        format!("{}{slash}{name}", self.prefix).into_bytes()
    }

    /// The last part of a key; none if the key is not below `subnets/`.
    fn name(&self, key: &[u8]) -> Option<String> {
        let name = key.strip_prefix(self.subnets().as_slice())?;
        Some(String::from_utf8_lossy(name).into_owned())
    }
}

/// A prefix as Go's `path.Join` leaves it: no empty parts, no slash at the end, none added in front.
fn clean(prefix: &str) -> String {
    let rooted = prefix.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in prefix.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                Some(&last) if last != ".." => drop(parts.pop()),
                _ if rooted => {}
                _ => parts.push(part),
            },
            _ => parts.push(part),
        }
    }
    let joined = parts.join("/");
    if rooted { format!("/{joined}") } else { joined }
}

fn record(kv: KeyValue, keys: &Keys) -> Option<Record> {
    Some(Record {
        key: keys.name(&kv.key)?,
        value: kv.value,
        created: kv.create_revision as u64,
        modified: kv.mod_revision as u64,
        expires: if kv.lease == 0 { Expiry::Never } else { Expiry::Unknown },
    })
}

fn moment(header: Option<&ResponseHeader>) -> Revision {
    header.map_or(Revision { origin: 0, number: 0 }, |header| Revision {
        origin: header.cluster_id,
        number: header.revision as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_cleaned_as_the_original_does() {
        for (typed, cleaned) in [
            ("/coreos.com/network", "/coreos.com/network"),
            ("/coreos.com//network/", "/coreos.com/network"),
            ("coreos.com/./network", "coreos.com/network"),
            ("/a/../b", "/b"),
        ] {
            assert_eq!(clean(typed), cleaned);
        }
        for (typed, config) in [("", "config"), ("/", "/config"), ("a", "a/config"), ("/a/", "/a/config")] {
            assert_eq!(Keys { prefix: clean(typed) }.config(), config.as_bytes(), "{typed}");
        }
    }

    #[test]
    fn another_endpoint_is_the_same_store_and_another_prefix_is_not() {
        let identity = |endpoint: &str, prefix: &str| {
            let options = EtcdOptions {
                endpoints: vec![endpoint.into()],
                prefix: prefix.into(),
                ..EtcdOptions::default()
            };
            Etcd::new(options).unwrap().identity()
        };
        assert_eq!(identity("http://192.0.2.1:2379", "/a"), identity("https://192.0.2.2:2379", "/a/"));
        assert_ne!(identity("http://192.0.2.1:2379", "/a"), identity("http://192.0.2.1:2379", "/b"));
    }

    #[test]
    fn keys_are_the_original_s_and_a_neighbor_is_not_ours() {
        let keys = Keys { prefix: clean("/coreos.com/network") };
        assert_eq!(keys.config(), b"/coreos.com/network/config");
        assert_eq!(keys.subnet("10.5.1.0-24"), b"/coreos.com/network/subnets/10.5.1.0-24");
        assert_eq!(keys.name(b"/coreos.com/network/subnets/10.5.1.0-24").as_deref(), Some("10.5.1.0-24"));
        assert_eq!(keys.name(b"/coreos.com/network/subnets-old/10.5.1.0-24"), None);
        assert!(keys.subnets_end() > keys.subnet("zzz"));
        assert!(keys.subnets_end() < b"/coreos.com/network/subnetsX".to_vec());
    }
}
