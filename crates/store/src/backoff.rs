//! Waiting between tries: doubling from 100 ms to 5 s, each wait drawn from its upper half.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

/// How long to wait before the next try.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Backoff {
        Backoff { next: SHORTEST }
    }

    /// The wait after one more failure.
    pub(crate) fn delay(&mut self) -> Duration {
        let full = self.next;
        self.next = (full * 2).min(LONGEST);
        full / 2 + up_to(full / 2)
    }

    /// Something succeeded: the next wait is a short one.
    pub(crate) fn reset(&mut self) {
        self.next = SHORTEST;
    }
}

/// A random time up to `most`, so that many nodes do not come back at the same instant.
pub(crate) fn up_to(most: Duration) -> Duration {
    Duration::from_micros(below(most.as_micros() as usize + 1) as u64)
}

/// A random number below `bound`, which is not zero.
///
/// The standard library seeds its hash maps from the system's randomness; a fresh seed is all the
/// randomness that choosing a subnet or a wait needs.
pub(crate) fn below(bound: usize) -> usize {
    (RandomState::new().hash_one(bound) % bound as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_cap_and_start_over() {
        let mut backoff = Backoff::new();
        for most in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
            let delay = backoff.delay();
            assert!(delay <= Duration::from_millis(most), "{delay:?} after {most}");
            assert!(delay >= Duration::from_millis(most / 2), "{delay:?} after {most}");
        }
        backoff.reset();
        assert!(backoff.delay() <= Duration::from_millis(100));
    }

    #[test]
    fn every_number_below_the_bound_comes_up() {
        let mut seen = [false; 8];
        (0..1000).for_each(|_| seen[below(8)] = true);
        assert_eq!(seen, [true; 8]);
    }
}
