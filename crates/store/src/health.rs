//! Whether the store answers, for status and readiness.

use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use tokio::sync::watch;

use crate::StoreError;

/// Whether the store answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreHealth {
    /// Nothing has been asked yet, or no answer has come yet.
    Unknown,
    /// The last thing asked was answered.
    Reachable {
        /// Since when.
        since: SystemTime,
    },
    /// The last thing asked was not answered, or refused.
    Unreachable {
        /// Since when.
        since: SystemTime,
        /// The last error, with what was attempted and where.
        error: String,
    },
}

/// What the store has said so far, for counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreCounts {
    /// When it last answered.
    pub last_answer: Option<SystemTime>,
    /// How often it did not answer, or refused.
    pub errors: u64,
}

/// Takes note of the outcome of every call. The time of a state is that of its beginning.
#[derive(Debug)]
pub(crate) struct Health(watch::Sender<StoreHealth>, Mutex<StoreCounts>);

impl Health {
    pub(crate) fn new() -> Health {
        Health(watch::Sender::new(StoreHealth::Unknown), Mutex::default())
    }

    pub(crate) fn counts(&self) -> StoreCounts {
        *self.1.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, count: impl FnOnce(&mut StoreCounts)) {
        count(&mut self.1.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<StoreHealth> {
        self.0.subscribe()
    }

    pub(crate) fn note<T>(&self, outcome: Result<T, StoreError>) -> Result<T, StoreError> {
        match &outcome {
            // A store that can say that there is no configuration is in good health.
            Ok(_) | Err(StoreError::NoNetworkConfig { .. }) => self.answered(),
            Err(error) => self.failed(error),
        }
        outcome
    }

    pub(crate) fn answered(&self) {
        self.count(|counts| counts.last_answer = Some(SystemTime::now()));
        self.0.send_if_modified(|health| {
            let changed = !matches!(health, StoreHealth::Reachable { .. });
            if changed {
                *health = StoreHealth::Reachable { since: SystemTime::now() };
            }
            changed
        });
    }

    pub(crate) fn failed(&self, error: &StoreError) {
        self.count(|counts| counts.errors += 1);
        self.0.send_if_modified(|health| {
            let error = error.to_string();
            let since = match health {
                StoreHealth::Unreachable { error: last, .. } if *last == error => return false,
                StoreHealth::Unreachable { since, .. } => *since,
                _ => SystemTime::now(),
            };
            *health = StoreHealth::Unreachable { since, error };
            true
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_keeps_its_beginning_while_its_error_changes() {
        let health = Health::new();
        let error = |text: &str| StoreError::Options(text.into());
        health.failed(&error("first"));
        let StoreHealth::Unreachable { since: first, .. } = health.subscribe().borrow().clone() else {
            panic!("an error makes it unreachable");
        };
        health.failed(&error("second"));
        let now = health.subscribe().borrow().clone();
        assert_eq!(now, StoreHealth::Unreachable { since: first, error: "second".into() });
        assert_eq!(health.counts(), StoreCounts { last_answer: None, errors: 2 });
        health.answered();
        assert!(health.counts().last_answer.is_some());
    }

    #[test]
    fn a_missing_configuration_is_an_answer() {
        let health = Health::new();
        let _ = health.note::<()>(Err(StoreError::NoNetworkConfig { place: "x".into(), remedy: "y" }));
        assert!(matches!(*health.subscribe().borrow(), StoreHealth::Reachable { .. }));
    }
}
