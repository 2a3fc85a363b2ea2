//! A registry in memory, as strict as etcd, whose time is tokio's and whose failures are the test's.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::StoreError;
use crate::registry::{Batch, Event, Expiry, Record, Registry, Revision, Watch, WatchEnd, Written};

#[derive(Debug, Clone)]
pub(crate) struct Memory {
    state: Arc<Mutex<State>>,
    /// Grows with every change, failure or compaction: whatever a watch has to look at.
    stirred: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    records: BTreeMap<String, Record>,
    history: Vec<(u64, Event)>,
    revision: u64,
    compacted: u64,
    away: bool,
    /// The next write is done, but its answer is lost.
    swallow_answer: bool,
    writes: usize,
    lists: usize,
}

impl Memory {
    pub(crate) fn new() -> Memory {
        Memory { state: Arc::default(), stirred: watch::Sender::new(0) }
    }

    /// Somebody else writes.
    pub(crate) fn put(&self, key: &str, value: &str, ttl: Option<Duration>) {
        self.with(|state| state.put(key, value, ttl));
    }

    /// Somebody else deletes, or an etcd lease is revoked.
    pub(crate) fn revoke(&self, key: &str) {
        self.with(|state| state.remove(key));
    }

    pub(crate) fn set_away(&self, away: bool) {
        self.with(|state| state.away = away);
    }

    pub(crate) fn swallow_next_answer(&self) {
        self.with(|state| state.swallow_answer = true);
    }

    /// Forgets the history, so that a watch that has to resume cannot.
    pub(crate) fn compact(&self) {
        self.with(|state| {
            state.compacted = state.revision;
            state.history.clear();
        });
    }

    pub(crate) fn record(&self, key: &str) -> Option<Record> {
        self.with(|state| state.records.get(key).cloned())
    }

    pub(crate) fn keys(&self) -> Vec<String> {
        self.with(|state| state.records.keys().cloned().collect())
    }

    pub(crate) fn writes(&self) -> usize {
        self.with(|state| state.writes)
    }

    pub(crate) fn lists(&self) -> usize {
        self.with(|state| state.lists)
    }

    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock().unwrap();
        state.expire();
        let outcome = look(&mut state);
        drop(state);
        self.stirred.send_modify(|times| *times += 1);
        outcome
    }

    async fn ask<T>(&self, look: impl FnOnce(&mut State) -> T) -> Result<T, StoreError> {
        // Other tasks run between two calls, as they do with a network in between.
        tokio::task::yield_now().await;
        let away = || StoreError::Options("the store is away".into());
        let mut state = self.state.lock().unwrap();
        state.expire();
        if state.away {
            return Err(away());
        }
        let before = state.revision;
        let outcome = look(&mut state);
        let wrote = state.revision != before;
        state.writes += usize::from(wrote);
        let swallowed = wrote && std::mem::take(&mut state.swallow_answer);
        drop(state);
        if wrote {
            self.stirred.send_modify(|times| *times += 1);
        }
        if swallowed { Err(away()) } else { Ok(outcome) }
    }
}

impl State {
    fn put(&mut self, key: &str, value: &str, ttl: Option<Duration>) -> Record {
        self.revision += 1;
        let created = self.records.get(key).map_or(self.revision, |record| record.created);
        let record = Record {
            key: key.to_owned(),
            value: value.as_bytes().to_vec(),
            created,
            modified: self.revision,
            expires: ttl.map_or(Expiry::Never, |ttl| Expiry::At(Instant::now() + ttl)),
        };
        self.records.insert(key.to_owned(), record.clone());
        self.history.push((self.revision, Event::Put(record.clone())));
        record
    }

    fn remove(&mut self, key: &str) {
        if self.records.remove(key).is_some() {
            self.revision += 1;
            self.history.push((self.revision, Event::Delete { key: key.to_owned(), at: self.revision }));
        }
    }

    fn expire(&mut self) {
        let now = Instant::now();
        let over = |record: &&Record| matches!(record.expires, Expiry::At(end) if end <= now);
        let gone: Vec<String> = self.records.values().filter(over).map(|record| record.key.clone()).collect();
        gone.iter().for_each(|key| self.remove(key));
    }

    fn next_end(&self) -> Option<Instant> {
        let end = |record: &Record| match record.expires {
            Expiry::At(end) => Some(end),
            Expiry::Never | Expiry::Unknown => None,
        };
        self.records.values().filter_map(end).min()
    }
}

impl Registry for Memory {
    type Watch = MemoryWatch;

    fn describe(&self) -> String {
        "memory".into()
    }

    fn identity(&self) -> String {
        self.describe()
    }

    async fn config(&self) -> Result<String, StoreError> {
        unreachable!("no test reads a configuration here")
    }

    async fn set_config(&self, _: &str) -> Result<(), StoreError> {
        unreachable!("no test writes a configuration here")
    }

    async fn list(&self, visit: &mut (dyn FnMut(Record) + Send)) -> Result<Revision, StoreError> {
        let (records, number) = self
            .ask(|state| {
                state.lists += 1;
                (state.records.values().cloned().collect::<Vec<_>>(), state.revision)
            })
            .await?;
        records.into_iter().for_each(visit);
        Ok(Revision { origin: 1, number })
    }

    async fn get(&self, key: &str) -> Result<Option<Record>, StoreError> {
        self.ask(|state| state.records.get(key).cloned()).await
    }

    async fn create(&self, key: &str, value: &str, ttl: Option<Duration>) -> Result<Written, StoreError> {
        self.ask(|state| match state.records.contains_key(key) {
            true => Written::Conflict,
            false => Written::Done(state.put(key, value, ttl)),
        })
        .await
    }

    async fn replace(
        &self,
        held: &Record,
        value: &str,
        ttl: Option<Duration>,
    ) -> Result<Written, StoreError> {
        self.ask(|state| match state.records.get(&held.key) {
            Some(now) if now.modified == held.modified => Written::Done(state.put(&held.key, value, ttl)),
            _ => Written::Conflict,
        })
        .await
    }

    async fn delete(&self, held: &Record) -> Result<Written, StoreError> {
        self.ask(|state| match state.records.get(&held.key) {
            Some(now) if now.modified == held.modified => {
                state.remove(&held.key);
                Written::Done(held.clone())
            }
            _ => Written::Conflict,
        })
        .await
    }

    async fn watch(&self, after: Option<Revision>) -> Result<MemoryWatch, WatchEnd> {
        let stirred = self.stirred.subscribe();
        let (revision, compacted) = self.ask(|state| (state.revision, state.compacted)).await?;
        let after = after.map_or(revision, |after| after.number);
        if after < compacted {
            return Err(WatchEnd::StartOver("compacted".into()));
        }
        Ok(MemoryWatch { memory: self.clone(), stirred, after })
    }
}

pub(crate) struct MemoryWatch {
    memory: Memory,
    stirred: watch::Receiver<u64>,
    after: u64,
}

impl Watch for MemoryWatch {
    async fn next(&mut self) -> Result<Batch, WatchEnd> {
        loop {
            self.stirred.borrow_and_update();
            let end = {
                let mut state = self.memory.state.lock().unwrap();
                state.expire();
                if state.away {
                    return Err(StoreError::Options("the store is away".into()).into());
                }
                let fresh = |(number, _): &&(u64, Event)| *number > self.after;
                let events: Vec<Event> =
                    state.history.iter().filter(fresh).map(|(_, event)| event.clone()).collect();
                if !events.is_empty() {
                    self.after = state.revision;
                    return Ok(Batch { events, revision: Revision { origin: 1, number: state.revision } });
                }
                state.next_end()
            };
            let a_day = Instant::now() + Duration::from_secs(86_400);
            tokio::select! {
                _ = self.stirred.changed() => {}
                () = tokio::time::sleep_until(end.unwrap_or(a_day)) => {}
            }
        }
    }
}
