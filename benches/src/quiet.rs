//! Waiting until the kernel has done what an earlier measurement left it to do.

use std::io::{self, Write as _};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use kernel::link;
use kernel::netlink::{Protocol, Socket};

/// No device has this number.
const NOBODY: u32 = 0x7fff_fff0;
/// Who waits longer for an answer has waited for somebody else's work.
const AT_ONCE: Duration = Duration::from_millis(15);
/// For how long nobody may have had to wait.
const QUIET: Duration = Duration::from_millis(400);
const PATIENCE: Duration = Duration::from_secs(5);

/// Waits until the kernel answers at once whoever changes something about devices and routes.
///
/// A deleted namespace is cleared away in the background, under the lock (RTNL) that every change takes: for
/// hundreds of milliseconds where it had 10,000 routes. The next measurement would wait for that.
pub fn await_quiet() -> Result<()> {
    let mut socket = Socket::open(Protocol::Route)?;
    let began = Instant::now();
    let mut quiet_since = began;
    while quiet_since.elapsed() < QUIET {
        if began.elapsed() > PATIENCE {
            let _ = writeln!(io::stderr(), "the machine is busy with other work: figures will be off");
            return Ok(());
        }
        let asked = Instant::now();
        wait_for_lock(&mut socket);
        if asked.elapsed() > AT_ONCE {
            quiet_since = Instant::now();
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Waits until whoever holds the lock now has let it go.
pub fn await_lock() -> Result<()> {
    wait_for_lock(&mut Socket::open(Protocol::Route)?);
    Ok(())
}

fn wait_for_lock(socket: &mut Socket) {
    // It fails, but not before it has had the lock.
    let _ = link::set_up(socket, NOBODY);
}
