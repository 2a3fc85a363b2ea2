//! Trying again: with pauses that grow and differ from node to node, and without repeating oneself
//! in the log.

use std::fmt::Display;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use tokio::time::Instant;

const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(5);
/// After this time an error that has been logged is logged again.
const AGAIN: Duration = Duration::from_secs(60);

/// The pauses between attempts at one thing.
#[derive(Debug)]
pub struct Retry {
    doing: &'static str,
    pause: Duration,
    longest: Duration,
    said: Option<(String, Instant)>,
}

impl Retry {
    /// For attempts at `doing`, as in "cannot …".
    pub fn new(doing: &'static str) -> Retry {
        Retry { doing, pause: FIRST, longest: LONGEST, said: None }
    }

    /// Says what went wrong, unless it has just been said, and waits until it is worth another try.
    pub async fn pause(&mut self, error: &(impl Display + ?Sized)) {
        let text = format!("{error:#}");
        let news = self.said.as_ref().is_none_or(|(said, at)| *said != text || at.elapsed() >= AGAIN);
        if news {
            tracing::warn!("cannot {}, trying again: {text}", self.doing);
            self.said = Some((text, Instant::now()));
        }
        tokio::time::sleep(self.pause.mul_f64(0.75 + jitter() / 2.0)).await;
        self.pause = (self.pause * 2).min(self.longest);
    }

    /// From now on pauses for no longer than this.
    pub fn at_least_every(&mut self, longest: Duration) {
        self.longest = longest;
        self.pause = self.pause.min(longest);
    }
}

/// A random number from 0 to 1.
pub(crate) fn jitter() -> f64 {
    let random = RandomState::new().hash_one(0u8);
    random as f64 / u64::MAX as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_to_a_limit() {
        let mut retry = Retry::new("test");
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let before = Instant::now();
            retry.pause("no").await;
            pauses.push(before.elapsed());
        }
        assert!(pauses[0] >= FIRST.mul_f64(0.74) && pauses[0] <= FIRST.mul_f64(1.26), "{pauses:?}");
        assert!(pauses[7] >= LONGEST.mul_f64(0.74) && pauses[7] <= LONGEST.mul_f64(1.26), "{pauses:?}");
    }
}
