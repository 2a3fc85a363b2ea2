//! When the next full comparison with the kernel is due. A pure state machine: it is told what
//! happens and when, and answers with a moment.
//!
//! Five things make a pass due, the earliest counts:
//!
//! * something **urgent**: another intent, or leases that have no quick answer;
//! * the **timer**, for what no notification told;
//! * **leases changed**: their quick answer has been applied already, so the pass waits until they
//!   have been quiet for [`QUIET`], at most [`PATIENCE`]; where passes take long, for twenty and sixty
//!   times as long as the last one took, so that checking costs little however fast leases change;
//! * **somebody changed the kernel**: after [`ECHO`], which gathers a burst into one pass. On a busy
//!   host each pass is followed by a rest of ten times its duration;
//! * **the kernel changed, perhaps by us**: likewise, but leases that change are waited for. The pass
//!   that our own changes cause finds nothing to do, changes nothing, and so ends the echo;
//! * **a failure**: after a pause that doubles from [`FIRST_RETRY`] up to the timer's interval.
//!
//! A pass takes a while, and what happens from its beginning on makes the next one due.

use std::time::Duration;

use tokio::time::Instant;

/// How long leases must have been quiet.
pub const QUIET: Duration = Duration::from_millis(500);
/// How long a pass waits for leases to become quiet.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// How long it waits at most, however long passes take.
const LONGEST_PATIENCE: Duration = Duration::from_secs(5);
/// How long a notification of the kernel waits for others.
pub const ECHO: Duration = Duration::from_millis(10);
/// The first pause after a failure.
pub const FIRST_RETRY: Duration = Duration::from_millis(100);
/// The longest rest after a pass, which bounds how long anything stays broken.
const LONGEST_REST: Duration = Duration::from_millis(900);

/// When the next pass is due.
#[derive(Debug, Clone)]
pub struct Schedule {
    interval: Duration,
    urgent: Option<Instant>,
    timer: Instant,
    /// First and latest change of the leases since the last pass.
    leases: Option<(Instant, Instant)>,
    kernel: Option<Instant>,
    echo: Option<Instant>,
    /// How long the last pass took.
    cost: Duration,
    retry: Option<Instant>,
    failures: u32,
    rested: Instant,
}

impl Schedule {
    /// A schedule whose first pass is due at once.
    pub fn new(now: Instant, interval: Duration) -> Schedule {
        let (timer, rested) = (now + interval, now);
        let urgent = Some(now);
        let (leases, kernel, echo, retry, cost) = (None, None, None, None, Duration::ZERO);
        Schedule { interval, urgent, timer, leases, kernel, echo, cost, retry, failures: 0, rested }
    }

    /// Something changed that cannot wait.
    pub fn at_once(&mut self, now: Instant) {
        self.urgent.get_or_insert(now);
    }

    /// Leases changed, and the quick answer has been applied.
    pub fn leases_changed(&mut self, now: Instant) {
        let first = self.leases.map_or(now, |(first, _)| first);
        self.leases = Some((first, now));
    }

    /// Somebody changed the kernel.
    pub fn kernel_changed(&mut self, now: Instant) {
        self.kernel.get_or_insert(now);
    }

    /// The kernel changed, perhaps by our own doing.
    pub fn kernel_echoed(&mut self, now: Instant) {
        self.echo.get_or_insert(now);
    }

    /// A pass begins: whatever made it due has been heard.
    pub fn began(&mut self) {
        self.urgent = None;
        self.leases = None;
        self.kernel = None;
        self.echo = None;
        self.retry = None;
    }

    /// The pass that began at `began` ended. `jitter` is a random number from 0 to 1, so that a
    /// thousand nodes started together do not stay together.
    pub fn passed(&mut self, began: Instant, now: Instant, failed: bool, jitter: f64) {
        let spread = |pause: Duration| pause.mul_f64(0.75 + jitter / 2.0);
        self.timer = now + spread(self.interval);
        self.cost = now - began;
        self.rested = now + (self.cost * 10).min(LONGEST_REST);
        if failed {
            let pause = FIRST_RETRY * 2u32.saturating_pow(self.failures.min(16));
            self.failures = self.failures.saturating_add(1);
            self.retry = Some(now + spread(pause.min(self.interval)));
        } else {
            self.failures = 0;
            self.retry = None;
        }
    }

    /// The moment of the next pass.
    pub fn due(&self) -> Instant {
        let quiet = QUIET.max(self.cost * 20).min(LONGEST_PATIENCE);
        let patience = PATIENCE.max(self.cost * 60).min(LONGEST_PATIENCE);
        let leases =
            self.leases.map(|(first, latest)| (latest + quiet).min(first + patience).max(self.rested));
        let soon = |at: Instant| (at + ECHO).max(self.rested);
        let kernel = self.kernel.map(soon);
        // While leases change, this is most likely the echo of the quick answers.
        let echo = self.echo.filter(|_| leases.is_none()).map(soon);
        [self.urgent, leases, kernel, echo, self.retry].into_iter().flatten().fold(self.timer, Instant::min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(10);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A schedule after a first pass that took no time.
    fn idle() -> (Instant, Schedule) {
        let start = Instant::now();
        let mut schedule = Schedule::new(start, INTERVAL);
        assert_eq!(schedule.due(), start);
        schedule.began();
        schedule.passed(start, start, false, 0.5);
        (start, schedule)
    }

    #[test]
    fn the_timer_comes_again_and_is_spread() {
        let (start, mut schedule) = idle();
        assert_eq!(schedule.due() - start, INTERVAL);
        schedule.passed(start, start, false, 0.0);
        assert_eq!(schedule.due() - start, INTERVAL.mul_f64(0.75));
        schedule.passed(start, start, false, 1.0);
        assert_eq!(schedule.due() - start, INTERVAL.mul_f64(1.25));
    }

    #[test]
    fn changing_leases_are_waited_for_but_not_for_ever() {
        let (start, mut schedule) = idle();
        schedule.leases_changed(start);
        assert_eq!(schedule.due() - start, QUIET);
        for step in 1..=30 {
            schedule.leases_changed(start + ms(50 * step));
        }
        assert_eq!(schedule.due() - start, PATIENCE);
    }

    #[test]
    fn a_burst_of_notifications_is_one_pass() {
        let (start, mut schedule) = idle();
        for step in 0..8 {
            schedule.kernel_changed(start + ms(step));
        }
        assert_eq!(schedule.due() - start, ECHO);
    }

    #[test]
    fn the_echo_of_a_quick_answer_does_not_cut_the_wait_short() {
        let (start, mut schedule) = idle();
        schedule.leases_changed(start);
        schedule.kernel_echoed(start + ms(1));
        assert_eq!(schedule.due() - start, QUIET);
        schedule.kernel_changed(start + ms(2));
        assert_eq!(schedule.due() - start, ms(2) + ECHO, "what somebody else did does not wait for leases");
        schedule.began();
        schedule.passed(start, start, false, 0.5);
        schedule.kernel_echoed(start + ms(1));
        assert_eq!(schedule.due() - start, ms(1) + ECHO);
    }

    #[test]
    fn where_passes_take_long_leases_are_checked_more_rarely() {
        let (start, mut schedule) = idle();
        schedule.passed(start, start + ms(50), false, 0.5);
        schedule.leases_changed(start + ms(60));
        assert_eq!(schedule.due() - start, ms(60 + 20 * 50));
        for step in 1..=60 {
            schedule.leases_changed(start + ms(60 + 50 * step));
        }
        assert_eq!(schedule.due() - start, ms(60 + 60 * 50));
        schedule.passed(start, start + ms(2000), false, 0.5);
        assert_eq!(schedule.due() - start, ms(60) + LONGEST_PATIENCE);
    }

    #[test]
    fn a_busy_kernel_gets_a_tenth_of_the_time_and_is_never_left_for_a_second() {
        let (start, mut schedule) = idle();
        schedule.passed(start, start + ms(20), false, 0.5);
        schedule.kernel_changed(start + ms(21));
        assert_eq!(schedule.due() - start, ms(20 + 200));
        schedule.began();
        schedule.passed(start, start + ms(500), false, 0.5);
        schedule.kernel_changed(start + ms(501));
        assert_eq!(schedule.due() - start, ms(500 + 900));
    }

    #[test]
    fn what_happens_during_a_pass_makes_the_next_one_due() {
        let (start, mut schedule) = idle();
        schedule.at_once(start);
        schedule.leases_changed(start);
        schedule.began();
        schedule.leases_changed(start + ms(1));
        schedule.passed(start, start + ms(2), false, 0.5);
        assert_eq!(schedule.due() - start, ms(1) + QUIET);
        schedule.began();
        schedule.at_once(start + ms(3));
        schedule.passed(start + ms(2), start + ms(4), false, 0.5);
        assert_eq!(schedule.due() - start, ms(3));
    }

    #[test]
    fn failures_are_tried_again_ever_more_slowly_up_to_the_interval() {
        let (start, mut schedule) = idle();
        let mut pauses = Vec::new();
        for _ in 0..9 {
            schedule.began();
            schedule.passed(start, start, true, 0.5);
            pauses.push((schedule.due() - start).as_millis());
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        schedule.began();
        schedule.passed(start, start, false, 0.5);
        schedule.passed(start, start, true, 0.5);
        assert_eq!(schedule.due() - start, FIRST_RETRY, "a success starts over");
    }
}
