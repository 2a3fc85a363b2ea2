//! A network namespace for a test, and programs run in it.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may fail, and says why it is skipped")]

use std::process::Command;

/// Where the real programs are; the tester's own `PATH` may lack the system's directories.
const PATH: &str = "/usr/sbin:/sbin:/usr/bin:/bin";

/// Moves the test's thread into a network namespace of its own. Where that cannot be done the test
/// is skipped and says so, except in CI, where a skip is a failure.
pub(crate) fn enter(needs: &[&str]) -> bool {
    let missing = needs.iter().find(|program| !installed(program));
    let why = if let Some(program) = missing {
        Some(format!("{program} is not installed"))
    } else {
        // SAFETY: a thread that gets a network namespace of its own loses nothing that Rust or the
        // test harness relies on; sockets opened before stay where they are.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        (result != 0)
            .then(|| format!("no network namespace: {}; run as root", std::io::Error::last_os_error()))
    };
    let Some(why) = why else { return true };
    assert!(std::env::var_os("CI").is_none(), "cannot run: {why}");
    eprintln!("skipped: {why}");
    false
}

fn installed(program: &str) -> bool {
    std::env::split_paths(PATH).any(|directory| directory.join(program).exists())
}

/// Runs a command line in the test's namespace; returns what it printed, and fails if it does.
pub(crate) fn run(command: &str) -> String {
    let (success, output) = try_run(command);
    assert!(success, "{command}:\n{output}");
    output
}

/// Runs a command line in the test's namespace; returns whether it went well and what it printed.
pub(crate) fn try_run(command: &str) -> (bool, String) {
    #[allow(clippy::disallowed_methods, reason = "a test runs the real programs beside ours")]
    let output =
        Command::new("timeout").args(["120", "sh", "-c", command]).env("PATH", PATH).output().unwrap();
    let mut text = String::from_utf8(output.stdout).unwrap();
    if !output.status.success() {
        text.push_str(&String::from_utf8_lossy(&output.stderr));
    }
    (output.status.success(), text)
}
