//! What of the [`Status`] is worth an event of the node. A pure decision, with a limit to how often.
//!
//! Failures that last are told once, with their remedy; repairs are gathered. The API server keeps an
//! hour of events and a thousand nodes may have the same trouble at once, so a node tells [`BURST`]
//! things at a time and then one every [`REFILL`]; what could not be told is counted in the next event.
//! The same words come again after [`FORGET`] at the earliest.

use std::collections::BTreeMap;
use std::time::Duration;

use fabric::status::{Failure, LeaseState, Repair, Status};
use tokio::time::Instant;

/// How many events may come at once.
pub const BURST: u32 = 5;
/// After how long one more may come.
pub const REFILL: Duration = Duration::from_secs(60);
/// After how long the same may be said again.
pub const FORGET: Duration = Duration::from_secs(3600);
/// How long a failure must last to be told.
pub const LASTING: Duration = Duration::from_secs(3);

/// Whether an event needs somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// It was put right.
    Normal,
    /// Somebody should look.
    Warning,
}

/// An event of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Whether it needs somebody.
    pub weight: Weight,
    /// One word for programs.
    pub reason: &'static str,
    /// Words for people.
    pub message: String,
}

/// What has been told, and what may be.
#[derive(Debug)]
pub struct Chronicle {
    told: BTreeMap<String, Instant>,
    /// Since when each failure is there, by our own clock: the status has the wall's.
    lasting: BTreeMap<String, Instant>,
    /// The repair looked at last.
    repaired: Option<Repair>,
    tokens: u32,
    refilled: Instant,
    left_out: usize,
}

impl Chronicle {
    /// Nothing has been told yet.
    pub fn new(now: Instant) -> Chronicle {
        Chronicle {
            told: BTreeMap::new(),
            lasting: BTreeMap::new(),
            repaired: None,
            tokens: BURST,
            refilled: now,
            left_out: 0,
        }
    }

    /// Looks at the node; what to tell, and when to look again although the status stays the same.
    pub fn look(&mut self, status: &Status, now: Instant) -> (Vec<Event>, Option<Instant>) {
        let mut events: Vec<Event> = self.new_repairs(&status.repairs).into_iter().collect();
        let lease = status.lease.as_ref().map(|lease| lease.state);
        let of: BTreeMap<_, _> =
            causes(&status.failures).map(|failure| (failure.what.clone(), failure)).collect();
        self.lasting.retain(|what, _| of.contains_key(what));
        let mut again: Option<Instant> = None;
        for (what, failure) in of {
            let due = *self.lasting.entry(what).or_insert(now) + LASTING;
            if now >= due {
                events.push(of_failure(failure, lease));
            } else {
                again = Some(again.map_or(due, |again| again.min(due)));
            }
        }
        (events.into_iter().filter_map(|event| self.admit(event, now)).collect(), again)
    }

    /// Lets an event pass that did not come out of the status.
    pub fn admit(&mut self, mut event: Event, now: Instant) -> Option<Event> {
        self.told.retain(|_, at| now - *at < FORGET);
        let key = format!("{}: {}", event.reason, event.message);
        if self.told.contains_key(&key) {
            return None;
        }
        while self.tokens < BURST && now - self.refilled >= REFILL {
            self.tokens += 1;
            self.refilled += REFILL;
        }
        if self.tokens == BURST {
            self.refilled = now;
        }
        let Some(tokens) = self.tokens.checked_sub(1) else {
            // Not marked as told: what lasts is told when there is room again.
            self.left_out += usize::from(event.reason == REPAIRED);
            return None;
        };
        self.tokens = tokens;
        self.told.insert(key, now);
        if self.left_out > 0 {
            event.message += &format!(" ({} earlier repairs were not told)", self.left_out);
            self.left_out = 0;
        }
        Some(event)
    }

    /// One event for all repairs since the last look.
    fn new_repairs(&mut self, repairs: &[Repair]) -> Option<Event> {
        // Not by their dates: the clock may have been set back since.
        let told = repairs.iter().rposition(|repair| Some(repair) == self.repaired.as_ref());
        let new = &repairs[told.map_or(0, |at| at + 1)..];
        self.repaired = repairs.last().cloned();
        // A setting is the least of what a device loses.
        let first = new.iter().find(|repair| !repair.change.starts_with("sysctl")).or(new.first())?;
        let more = new.iter().map(|repair| 1 + repair.more).sum::<usize>() - 1;
        let more = if more == 0 { String::new() } else { format!(", and {more} more") };
        let message =
            format!("{}; put right: {}{more}", first.why, first.change.lines().next().unwrap_or_default());
        Some(Event { weight: Weight::Normal, reason: REPAIRED, message })
    }
}

const REPAIRED: &str = "FlannelRepaired";

/// The failures without those that follow from others: a device that cannot be made has no address, no
/// setting and no peers either.
fn causes(failures: &[Failure]) -> impl Iterator<Item = &Failure> {
    let of_node = failures.iter().position(|failure| failure.topic == "node");
    failures.iter().enumerate().filter_map(move |(at, failure)| match failure.topic.as_str() {
        "node" => (of_node == Some(at)).then_some(failure),
        "kernel" => of_node.is_none().then_some(failure),
        _ => Some(failure),
    })
}

fn of_failure(failure: &Failure, lease: Option<LeaseState>) -> Event {
    let reason = match (failure.topic.as_str(), lease) {
        ("interface", _) => "FlannelInterfaceLost",
        ("lease", Some(LeaseState::Taken)) => "FlannelLeaseConflict",
        ("lease", Some(_)) => "FlannelLeaseLost",
        ("lease", None) => "FlannelNoLease",
        ("network", _) => "FlannelNotConfigured",
        ("start", _) => "FlannelCannotStart",
        ("node" | "udp", _) => "FlannelDataPlaneFailed",
        ("kernel", _) => "FlannelKernelRefuses",
        ("bridge", _) => "FlannelOldBridge",
        ("firewall", _) => "FlannelForwardingDropped",
        _ => "FlannelFailure",
    };
    let remedy = if failure.remedy.is_empty() { String::new() } else { format!("; {}", failure.remedy) };
    Event { weight: Weight::Warning, reason, message: format!("{}{remedy}", failure.what) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failing(topic: &str, what: &str) -> Status {
        let failure = Failure {
            topic: topic.to_owned(),
            what: what.to_owned(),
            remedy: "mend it".to_owned(),
            since: 0,
        };
        Status { failures: vec![failure], ..Status::default() }
    }

    fn repaired(at: &[u64]) -> Status {
        let repair = |at: &u64| Repair {
            at: *at,
            change: format!("ip link set flannel.{at} up"),
            more: 2,
            why: "the device was down".to_owned(),
        };
        Status { repairs: at.iter().map(repair).collect(), ..Status::default() }
    }

    #[test]
    fn a_failure_that_lasts_is_told_once_with_its_remedy() {
        let start = Instant::now();
        let mut chronicle = Chronicle::new(start);
        let status = failing("interface", "eth0 is lost");
        assert_eq!(chronicle.look(&status, start), (vec![], Some(start + LASTING)));
        let (events, again) = chronicle.look(&status, start + LASTING);
        assert_eq!(events.len(), 1);
        assert_eq!((events[0].reason, events[0].weight), ("FlannelInterfaceLost", Weight::Warning));
        assert_eq!((events[0].message.as_str(), again), ("eth0 is lost; mend it", None));
        assert_eq!(chronicle.look(&status, start + LASTING * 2), (vec![], None));
        let (events, _) = chronicle.look(&status, start + LASTING + FORGET);
        assert_eq!(events.len(), 1, "an hour later the server has forgotten it");
    }

    #[test]
    fn what_follows_from_a_device_that_cannot_be_made_is_not_told() {
        let start = Instant::now();
        let mut chronicle = Chronicle::new(start);
        let mut status = failing("node", "cannot create the device");
        for (topic, what) in
            [("node", "no such device"), ("kernel", "no such setting"), ("firewall", "dropped")]
        {
            status.failures.extend(failing(topic, what).failures);
        }
        chronicle.look(&status, start);
        let (events, _) = chronicle.look(&status, start + LASTING);
        let told: Vec<_> = events.iter().map(|event| event.message.as_str()).collect();
        assert_eq!(told, ["cannot create the device; mend it", "dropped; mend it"]);
    }

    #[test]
    fn what_passes_is_not_told() {
        let start = Instant::now();
        let mut chronicle = Chronicle::new(start);
        chronicle.look(&failing("interface", "eth0 is lost"), start);
        assert_eq!(chronicle.look(&Status::default(), start + LASTING), (vec![], None));
        assert_eq!(chronicle.look(&failing("interface", "eth0 is lost"), start + LASTING).0, []);
    }

    #[test]
    fn repairs_are_gathered_and_none_is_told_twice() {
        let start = Instant::now();
        let mut chronicle = Chronicle::new(start);
        let said = |events: Vec<Event>| events.into_iter().map(|event| event.message).collect::<Vec<_>>();
        let (events, _) = chronicle.look(&repaired(&[7, 7]), start);
        assert_eq!(said(events), ["the device was down; put right: ip link set flannel.7 up, and 5 more"]);
        assert_eq!(chronicle.look(&repaired(&[7, 7]), start).0, []);
        let later = start + FORGET;
        assert_eq!(
            said(chronicle.look(&repaired(&[7, 7, 8, 9]), later).0),
            ["the device was down; put right: ip link set flannel.8 up, and 5 more"]
        );
        assert_eq!(chronicle.look(&repaired(&[7, 7, 8, 9]), later).0, []);
        assert_eq!(
            said(chronicle.look(&repaired(&[8, 9, 3]), later).0),
            ["the device was down; put right: ip link set flannel.3 up, and 2 more"],
            "the clock was set back, and old repairs are forgotten"
        );
    }

    #[test]
    fn a_storm_is_cut_short_and_what_lasts_is_told_when_there_is_room() {
        let start = Instant::now();
        let mut chronicle = Chronicle::new(start);
        let told =
            (1..=20).filter(|second| !chronicle.look(&repaired(&[*second]), start).0.is_empty()).count();
        assert_eq!(told, BURST as usize);
        let lost = failing("interface", "eth0 is lost");
        chronicle.look(&lost, start);
        assert_eq!(chronicle.look(&lost, start + LASTING).0, []);
        let (events, _) = chronicle.look(&lost, start + REFILL);
        assert_eq!(events[0].message, "eth0 is lost; mend it (15 earlier repairs were not told)");
        assert_eq!(chronicle.look(&repaired(&[21]), start + REFILL).0, [], "one was all there was");
    }
}
