//! Waiting for something to become true, with a deadline and a memory.

use std::env;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How long anything may take that is done in a moment, on a machine that is busy with other tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Asks `look` again and again until it succeeds, and returns what it found; after `patience`, fails
/// with what was awaited and what was seen last. Where the machine is emulated it may take longer.
pub fn wait_for<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Result<T>) -> Result<T> {
    const BETWEEN_LOOKS: Duration = Duration::from_millis(10);
    let patience = stretched(patience);
    let end = Instant::now() + patience;
    loop {
        match look() {
            Ok(found) => return Ok(found),
            Err(seen) if Instant::now() >= end => {
                return Err(seen)
                    .with_context(|| format!("waited {patience:?} in vain for {what}; last seen"));
            }
            Err(_) => thread::sleep(BETWEEN_LOOKS),
        }
    }
}

/// As long as something may take on this machine that may take so long on another: in the machine of
/// `.ci/vm`, which is emulated, five times as long.
pub(crate) fn stretched(patience: Duration) -> Duration {
    patience * if env::var_os("FLANNEL_VM").is_some() { 5 } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_last_is_told() {
        let mut looks = 0;
        let error = wait_for("rain", Duration::from_millis(30), || -> Result<()> {
            looks += 1;
            anyhow::bail!("look {looks}: sunshine")
        });
        let text = format!("{:#}", error.unwrap_err());
        assert!(text.contains("for rain; last seen: look "), "{text}");
        assert!(looks > 1 && text.ends_with(&format!("look {looks}: sunshine")), "{text}");
    }
}
