//! Whether the node's network is available, as its condition `NetworkUnavailable` says. A pure
//! decision over the [`Status`] and the clock.
//!
//! | the node | the condition |
//! |---|---|
//! | has not become ready yet, and nothing is known to be wrong | stays as it is: the pods of the last run go on |
//! | is ready | `False`, after [`STEADY_UP`] if it was `True` |
//! | cannot carry traffic for [`STEADY_DOWN`] | `True`, with the reason and the message |
//!
//! What keeps a node from carrying traffic: its own devices or rules cannot be made, the data path of udp
//! is closed, the interface to the other nodes is lost, or it has no lease that others see.

use std::time::Duration;

use fabric::status::{LeaseState, Status};
use tokio::time::Instant;

/// How long something must have been wrong. A device that is deleted is there again sooner.
pub const STEADY_DOWN: Duration = Duration::from_secs(5);
/// How long nothing must have been wrong before that is said again.
pub const STEADY_UP: Duration = Duration::from_secs(2);

/// What the condition says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Whether pods on this node are cut off.
    pub unavailable: bool,
    /// Why, in one word for programs.
    pub reason: &'static str,
    /// Why, in words for people.
    pub message: String,
}

impl Condition {
    /// Compatibility: the original's words.
    fn up() -> Condition {
        let message = "Flannel is running on this node".to_owned();
        Condition { unavailable: false, reason: "FlannelIsUp", message }
    }
}

/// Why the node cannot carry traffic, if it cannot.
pub fn impairment(status: &Status) -> Option<Condition> {
    let failing = |topic: &str| status.failures.iter().find(|failure| failure.topic == topic);
    let down =
        |reason, message: &str| Some(Condition { unavailable: true, reason, message: message.to_owned() });
    if let Some(failure) = failing("interface") {
        return down("FlannelInterfaceLost", &failure.what);
    }
    if let Some(failure) = failing("node").or_else(|| failing("udp")) {
        return down("FlannelDataPlaneFailed", &failure.what);
    }
    let reason = match status.lease.as_ref().map(|lease| lease.state) {
        Some(LeaseState::Held | LeaseState::FromSnapshot) => return None,
        Some(LeaseState::Taken) => "FlannelLeaseConflict",
        Some(LeaseState::Lost) => "FlannelLeaseLost",
        None => "FlannelNoLease",
    };
    failing("lease").and_then(|failure| down(reason, &failure.what))
}

/// The condition over time.
#[derive(Debug, Default)]
pub struct Availability {
    /// What was decided last.
    decided: Option<Condition>,
    /// Since when the node has been the other way.
    turning: Option<(Instant, bool)>,
}

impl Availability {
    /// Looks at the node; a condition to set if that has changed, and when to look again although the
    /// status stays the same.
    pub fn look(&mut self, status: &Status, now: Instant) -> (Option<Condition>, Option<Instant>) {
        let next = match impairment(status) {
            Some(down) => down,
            None if status.ready => Condition::up(),
            None => {
                self.turning = None;
                return (None, None);
            }
        };
        let was_down = self.decided.as_ref().map(|condition| condition.unavailable);
        let steady = match (was_down, next.unavailable) {
            // The first word that all is well needs no waiting.
            (None, false) => Duration::ZERO,
            (Some(was), is) if was == is => Duration::ZERO,
            (_, true) => STEADY_DOWN,
            (Some(_), false) => STEADY_UP,
        };
        let since = match self.turning {
            Some((since, to)) if to == next.unavailable => since,
            _ => now,
        };
        let at = since + steady;
        if now < at {
            self.turning = Some((since, next.unavailable));
            return (None, Some(at));
        }
        self.turning = None;
        if self.decided.as_ref() == Some(&next) {
            return (None, None);
        }
        self.decided = Some(next.clone());
        (Some(next), None)
    }
}

#[cfg(test)]
mod tests {
    use fabric::status::{Failure, OwnLease};

    use super::*;

    fn node(ready: bool, failing: &[(&str, &str)], lease: Option<LeaseState>) -> Status {
        let failure = |(topic, what): &(&str, &str)| Failure {
            topic: (*topic).to_owned(),
            what: (*what).to_owned(),
            since: 0,
            remedy: String::new(),
        };
        Status {
            ready,
            failures: failing.iter().map(failure).collect(),
            lease: lease.map(|state| OwnLease { state, ..OwnLease::default() }),
            ..Status::default()
        }
    }

    fn well() -> Status {
        node(true, &[("firewall", "somebody drops packets")], Some(LeaseState::Held))
    }

    fn said(condition: Option<Condition>) -> Option<(bool, &'static str)> {
        condition.map(|condition| (condition.unavailable, condition.reason))
    }

    #[test]
    fn a_node_that_starts_says_nothing_until_it_is_ready_and_then_the_originals_words() {
        let now = Instant::now();
        let mut availability = Availability::default();
        assert_eq!(availability.look(&node(false, &[], None), now), (None, None));
        let (condition, again) = availability.look(&well(), now);
        let condition = condition.unwrap();
        assert_eq!((condition.unavailable, condition.reason), (false, "FlannelIsUp"));
        assert_eq!((condition.message.as_str(), again), ("Flannel is running on this node", None));
        assert_eq!(availability.look(&well(), now), (None, None), "once");
    }

    #[test]
    fn each_reason_why_a_node_cannot_carry_traffic_is_named() {
        let cases = [
            (node(true, &[("interface", "eth0 is lost")], Some(LeaseState::Held)), "FlannelInterfaceLost"),
            (node(false, &[("node", "`ip link add`: no")], Some(LeaseState::Held)), "FlannelDataPlaneFailed"),
            (node(true, &[("udp", "the port is taken")], Some(LeaseState::Held)), "FlannelDataPlaneFailed"),
            (node(true, &[("lease", "gone")], Some(LeaseState::Lost)), "FlannelLeaseLost"),
            (node(true, &[("lease", "taken")], Some(LeaseState::Taken)), "FlannelLeaseConflict"),
            (node(false, &[("lease", "no podCIDR")], None), "FlannelNoLease"),
        ];
        for (status, reason) in cases {
            assert_eq!(said(impairment(&status)), Some((true, reason)));
        }
        let harmless = [("kernel", "one peer"), ("subnet file", "full"), ("lease", "being asked again")];
        assert_eq!(impairment(&node(true, &harmless, Some(LeaseState::Held))), None);
    }

    #[test]
    fn what_passes_quickly_is_not_told_and_what_stays_is_until_it_is_over() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut availability = Availability::default();
        let lost = node(true, &[("interface", "eth0 is lost")], Some(LeaseState::Held));
        assert!(availability.look(&well(), at(0)).0.is_some());
        assert_eq!(availability.look(&lost, at(1)), (None, Some(at(1) + STEADY_DOWN)));
        assert_eq!(availability.look(&well(), at(3)), (None, None));
        assert_eq!(availability.look(&lost, at(5)), (None, Some(at(5) + STEADY_DOWN)), "from the beginning");
        assert_eq!(said(availability.look(&lost, at(10)).0), Some((true, "FlannelInterfaceLost")));
        let other = node(true, &[("lease", "gone")], Some(LeaseState::Lost));
        assert_eq!(said(availability.look(&other, at(11)).0), Some((true, "FlannelLeaseLost")), "at once");
        assert_eq!(availability.look(&well(), at(12)), (None, Some(at(12) + STEADY_UP)));
        assert_eq!(said(availability.look(&well(), at(14)).0), Some((false, "FlannelIsUp")));
    }

    #[test]
    fn a_start_that_is_stuck_is_told_too() {
        let start = Instant::now();
        let mut availability = Availability::default();
        let stuck = node(false, &[("lease", "the node has no podCIDR")], None);
        assert_eq!(availability.look(&stuck, start), (None, Some(start + STEADY_DOWN)));
        assert_eq!(said(availability.look(&stuck, start + STEADY_DOWN).0), Some((true, "FlannelNoLease")));
    }
}
