//! A watch on the leases in etcd.
//!
//! A connection that has gone dead is noticed by HTTP/2's sign of life (see [`super::cluster`]); a
//! member without a leader ends the watch itself; and etcd's progress notes move the resume point
//! forward on a quiet cluster, so that compaction does not overtake it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use tonic::Streaming;

use super::cluster::Cluster;
use super::failure;
use super::messages::{WATCH, WatchCreateRequest, WatchEvent, WatchRequest, WatchResponse};
use super::{Keys, moment, record};
use crate::StoreError;
use crate::registry::{Batch, Event, Revision, Watch, WatchEnd};

/// How long etcd may take to say that the watch stands.
const OPEN_DEADLINE: Duration = Duration::from_secs(5);
const ATTEMPTED: &str = "watch the leases";

/// A watch that stands.
pub(crate) struct EtcdWatch {
    cluster: Arc<Cluster>,
    keys: Keys,
    answers: Streaming<WatchResponse>,
    endpoint: String,
}

impl EtcdWatch {
    pub(super) async fn open(
        cluster: Arc<Cluster>,
        keys: Keys,
        after: Option<Revision>,
    ) -> Result<EtcdWatch, WatchEnd> {
        let create = WatchCreateRequest {
            key: keys.subnets(),
            range_end: keys.subnets_end(),
            start_revision: after.map_or(0, |after| after.number as i64 + 1),
            progress_notify: true,
        };
        // What we say must stay open: etcd takes its end for the end of the watch.
        let requests = || {
            let create = WatchRequest { create_request: Some(create.clone()) };
            stream::iter([create]).chain(stream::pending())
        };
        let (answers, endpoint) = cluster.stream(ATTEMPTED, WATCH, requests).await?;
        let mut watch = EtcdWatch { cluster, keys, answers, endpoint };
        let first = tokio::time::timeout(OPEN_DEADLINE, watch.answer())
            .await
            .map_err(|_| failure::too_late(ATTEMPTED, &watch.endpoint, OPEN_DEADLINE))??;
        let now = moment(first.header.as_ref());
        match after {
            Some(after) if after.origin != now.origin => {
                Err(WatchEnd::StartOver("this is another etcd cluster than before".into()))
            }
            Some(after) if after.number > now.number => Err(WatchEnd::StartOver(format!(
                "etcd is at revision {} and was at {}: it was restored from a backup",
                now.number, after.number
            ))),
            _ => Ok(watch),
        }
    }

    /// The next answer that is no end.
    async fn answer(&mut self) -> Result<WatchResponse, WatchEnd> {
        let answer = match self.answers.message().await {
            Ok(Some(answer)) => answer,
            Ok(None) => return Err(self.lost("etcd has ended the watch").into()),
            Err(status) => return Err(failure::explain(ATTEMPTED, &self.endpoint, &status).into()),
        };
        if answer.compact_revision > 0 {
            return Err(WatchEnd::StartOver(format!(
                "etcd has compacted its history up to revision {}",
                answer.compact_revision
            )));
        }
        if answer.canceled {
            // A login that has run out ends a watch with one of several texts: log in anew.
            self.cluster.forget_login();
            return Err(self.lost(&answer.cancel_reason).into());
        }
        Ok(answer)
    }

    fn lost(&self, cause: &str) -> StoreError {
        failure::explain(ATTEMPTED, &self.endpoint, &tonic::Status::unavailable(cause))
    }
}

impl Watch for EtcdWatch {
    async fn next(&mut self) -> Result<Batch, WatchEnd> {
        let answer = self.answer().await?;
        let revision = moment(answer.header.as_ref());
        let keys = &self.keys;
        let events = answer.events.into_iter().filter_map(|event| change(event, keys)).collect();
        Ok(Batch { events, revision })
    }
}

fn change(event: WatchEvent, keys: &Keys) -> Option<Event> {
    const DELETE: i32 = 1;
    let kv = event.kv?;
    if event.kind == DELETE {
        let key = keys.name(&kv.key)?;
        Some(Event::Delete { key, at: kv.mod_revision as u64 })
    } else {
        record(kv, keys).map(Event::Put)
    }
}
