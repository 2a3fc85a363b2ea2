//! Stories: tests that show what every node looked like when they fail.

use std::env;
use std::panic::{self, AssertUnwindSafe};

use anyhow::{Result, bail};

use crate::laboratory::Lab;
use crate::topology::Topology;

/// Tells a story in a lab of its own, as a test. When it fails, by an error or a panic, the state and
/// the logs of every node are printed before the lab is taken down.
///
/// Without the right to make namespaces the story is skipped, and the test says so; in CI (`CI` is
/// set) that is a failure.
#[expect(
    clippy::print_stderr,
    reason = "only what the macros print is shown beside the test that printed it"
)]
pub fn story(topology: Topology, tell: impl FnOnce(&Lab) -> Result<()>) {
    if let Err(reason) = permitted() {
        assert!(env::var_os("CI").is_none(), "in CI nothing may be skipped: {reason:#}");
        eprintln!("skipped: {reason:#}");
        return;
    }
    let lab = Lab::up(None, topology).unwrap_or_else(|error| panic!("building the lab: {error:#}"));
    let told = panic::catch_unwind(AssertUnwindSafe(|| tell(&lab)));
    if !matches!(told, Ok(Ok(()))) {
        eprintln!("{}", lab.dump());
    }
    match told {
        Ok(Ok(())) => {}
        Ok(Err(error)) => panic!("{error:#}"),
        Err(panic) => panic::resume_unwind(panic),
    }
}

/// Whether this process may make network namespaces; if not, why and what to do.
pub fn permitted() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!(
            "a lab needs root: run `make test-lab`, or the command under `unshare --user --map-root-user --mount --net`"
        );
    }
    Ok(())
}
