//! `flanneld`, the agent on every node.
#![forbid(unsafe_code)]

use std::io::{Write, stderr};
use std::process::ExitCode;

use anyhow::Context;
use flanneld::flags::{self, Flags, Parsed, Unusable};
use flanneld::settings::Settings;
use flanneld::{daemon, logging};

/// The status of a start with flags that cannot be used.
const BAD_FLAGS: u8 = 2;

fn main() -> ExitCode {
    kernel::memory::share();
    let mut words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    let program = words.next().unwrap_or_else(|| "flanneld".to_owned());
    let parsed = match flags::parse(words, |name| std::env::var(name).ok()) {
        Ok(parsed) => parsed,
        Err(Unusable::Help) => {
            say(&flags::usage(&program));
            return ExitCode::SUCCESS;
        }
        Err(Unusable::Bad(why)) => {
            say(&format!("{why}\nRun `{program} -h` for all flags.\n"));
            return ExitCode::from(BAD_FLAGS);
        }
    };
    if parsed.flags.version {
        say(concat!(env!("CARGO_PKG_VERSION"), "\n"));
        return ExitCode::SUCCESS;
    }
    if let Err(error) = start_logging(&parsed) {
        say(&format!("{error:#}\n"));
        return ExitCode::from(BAD_FLAGS);
    }
    match run(&parsed.flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: &Flags) -> anyhow::Result<()> {
    let settings = Settings::from_flags(flags, |name| std::env::var(name).ok())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the event loop")?;
    let ended = runtime.block_on(daemon::run(settings));
    // A thread that runs a program or resolves a name is not waited for.
    runtime.shutdown_background();
    ended
}

/// Starts logging, and says what was odd about the flags.
fn start_logging(parsed: &Parsed) -> anyhow::Result<()> {
    logging::start(parsed.flags.log_format.parse()?, parsed.flags.verbosity);
    tracing::info!(
        "flags: {}",
        if parsed.given.is_empty() { "none".to_owned() } else { parsed.given.join(" ") }
    );
    for variable in &parsed.passed_over {
        tracing::error!("the environment variable {variable}; going on without it");
    }
    if !parsed.ignored.is_empty() {
        tracing::warn!(
            "these words and all after them mean nothing: {}; a flag that is on or off takes its value after '=', as in \
             -ip-masq=false",
            parsed.ignored.join(" ")
        );
    }
    Ok(())
}

/// Writes to standard error, which may be closed.
fn say(text: &str) {
    let _ = stderr().lock().write_all(text.as_bytes());
}
