//! Log lines: text for people on a terminal, the original's klog lines elsewhere, JSON on request.
//!
//! Everything goes to standard error. `-v` raises what is shown of flannel-rs itself; the libraries
//! below it are heard from `-v=5` on.

use std::fmt;
use std::io::{IsTerminal, stderr};
use std::str::FromStr;
use std::time::SystemTime;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people: time, level, message, fields.
    Text,
    /// As the original writes them.
    Klog,
    /// One JSON object per line.
    Json,
}

/// A log format that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("-log-format={0:?} is none of auto, text, klog, json")]
pub struct UnknownFormat(String);

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Format, UnknownFormat> {
        match text {
            "auto" if stderr().is_terminal() => Ok(Format::Text),
            "auto" | "klog" => Ok(Format::Klog),
            "text" => Ok(Format::Text),
            "json" => Ok(Format::Json),
            other => Err(UnknownFormat(other.to_owned())),
        }
    }
}

/// Starts logging. Once per process; a second call changes nothing.
pub fn start(format: Format, verbosity: i64) {
    let (ours, libraries) = match verbosity {
        ..=0 => (LevelFilter::INFO, LevelFilter::WARN),
        1..=4 => (LevelFilter::DEBUG, LevelFilter::WARN),
        _ => (LevelFilter::TRACE, LevelFilter::DEBUG),
    };
    let targets = ["flanneld", "fabric", "kernel", "store", "udp"].map(|name| (name, ours));
    let registry =
        tracing_subscriber::registry().with(Targets::new().with_default(libraries).with_targets(targets));
    let lines = tracing_subscriber::fmt::layer().with_writer(stderr);
    let started = match format {
        Format::Text => registry.with(lines.with_target(false).with_ansi(stderr().is_terminal())).try_init(),
        Format::Klog => registry.with(lines.with_ansi(false).event_format(Klog)).try_init(),
        Format::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    };
    // Only a process that already logs, such as a test, fails here, and then it logs.
    drop(started);
}

/// `Lmmdd hh:mm:ss.uuuuuu <pid padded to 7> file.rs:line] message field=value`, times in UTC.
struct Klog;

impl<S, N> FormatEvent<S, N> for Klog
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let metadata = event.metadata();
        let level = match *metadata.level() {
            Level::ERROR => 'E',
            Level::WARN => 'W',
            Level::INFO | Level::DEBUG | Level::TRACE => 'I',
        };
        let file = metadata.file().and_then(|path| path.rsplit('/').next()).unwrap_or("flanneld");
        let line = metadata.line().unwrap_or(0);
        write!(to, "{level}{} {:7} {file}:{line}] ", Stamp(SystemTime::now()), std::process::id())?;
        let mut text = Text { message: String::new(), fields: String::new() };
        event.record(&mut text);
        writeln!(to, "{}{}", text.message, text.fields)
    }
}

/// The message and the fields of an event, apart.
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        } else {
            self.fields += &format!(" {}={value:?}", field.name());
        }
    }
}

/// `mmdd hh:mm:ss.uuuuuu` in UTC.
struct Stamp(SystemTime);

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = self.0.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let seconds = since.as_secs();
        let (month, day) = month_and_day(seconds / 86_400);
        let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        write!(f, "{month:02}{day:02} {hour:02}:{minute:02}:{second:02}.{:06}", since.subsec_micros())
    }
}

/// Month and day of a day counted from 1970-01-01 (the Gregorian calendar in eras of 400 years that
/// begin in March, so that the leap day comes last).
fn month_and_day(days: u64) -> (u64, u64) {
    let day_of_era = (days + 719_468) % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_based = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_based + 2) / 5 + 1;
    (if march_based < 10 { march_based + 3 } else { march_based - 9 }, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_the_originals_in_utc() {
        let at = |seconds| Stamp(SystemTime::UNIX_EPOCH + Duration::new(seconds, 42_000)).to_string();
        // As `date -u -d @… '+%m%d %H:%M:%S'` says.
        assert_eq!(at(0), "0101 00:00:00.000042");
        assert_eq!(at(951_782_400), "0229 00:00:00.000042");
        assert_eq!(at(1_709_251_199), "0229 23:59:59.000042");
        assert_eq!(at(1_795_253_744), "1121 09:35:44.000042");
        assert_eq!(at(4_107_542_400), "0301 00:00:00.000042");
    }

    #[test]
    fn only_known_formats() {
        assert_eq!("json".parse(), Ok(Format::Json));
        assert_eq!(
            "xml".parse::<Format>().unwrap_err().to_string(),
            "-log-format=\"xml\" is none of auto, text, klog, json"
        );
    }
}
