//! What is printed: text for people, JSON for programs.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use serde::Serialize;

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Text for people.
    Table,
    /// JSON for programs.
    Json,
}

/// Standard output.
#[derive(Debug)]
pub(crate) struct Output {
    format: Format,
    colors: bool,
}

/// How a word is meant, for terminals that have colors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Good,
    Bad,
    Strong,
    Quiet,
}

impl Output {
    pub(crate) fn new(format: Format) -> Output {
        let colors =
            io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Output { format, colors }
    }

    /// Whether programs read this.
    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Prints a line.
    pub(crate) fn line(&mut self, line: impl Display) -> Result<()> {
        Ok(writeln!(io::stdout().lock(), "{line}")?)
    }

    /// Prints a value as JSON.
    pub(crate) fn json(&mut self, value: &impl Serialize) -> Result<()> {
        self.line(serde_json::to_string_pretty(value)?)
    }

    /// Prints a table, its columns aligned.
    pub(crate) fn table(&mut self, heads: &[&str], rows: &[Vec<String>]) -> Result<()> {
        let mut out = io::stdout().lock();
        let head: Vec<String> = heads.iter().map(|head| (*head).to_owned()).collect();
        let widths: Vec<usize> = (0..heads.len())
            .map(|column| rows.iter().chain([&head]).map(|row| width(&row[column])).max().unwrap_or(0))
            .collect();
        for row in [&head].into_iter().chain(rows) {
            let mut line = String::new();
            for (cell, wanted) in row.iter().zip(&widths) {
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', wanted - width(cell) + 2));
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }

    /// A word in its tone, if the terminal has colors.
    pub(crate) fn toned(&self, tone: Tone, word: impl Display) -> String {
        if !self.colors {
            return word.to_string();
        }
        let code = match tone {
            Tone::Good => "32",
            Tone::Bad => "31",
            Tone::Strong => "1",
            Tone::Quiet => "2",
        };
        format!("\x1b[{code}m{word}\x1b[0m")
    }
}

/// Prints one line to standard error.
pub(crate) fn complain(line: &str) {
    // Where standard error is closed there is nobody to tell.
    let _ = writeln!(io::stderr().lock(), "flannelctl: {line}");
}

/// How many columns a cell takes on a terminal: escape sequences take none.
fn width(cell: &str) -> usize {
    let mut columns = 0;
    let mut escaped = false;
    for c in cell.chars() {
        match (escaped, c) {
            (false, '\x1b') => escaped = true,
            (false, _) => columns += 1,
            (true, 'm') => escaped = false,
            (true, _) => {}
        }
    }
    columns
}

/// `3 s`, `5 min`, `2 h`, `9 d`: as exact as anybody wants to know.
pub(crate) fn rough(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86400),
    }
}

/// How long ago a moment was, given in seconds since 1970.
pub(crate) fn since(seconds: u64) -> Duration {
    let then = UNIX_EPOCH + Duration::from_secs(seconds);
    SystemTime::now().duration_since(then).unwrap_or_default()
}

/// How long it is until a moment, given in seconds since 1970.
pub(crate) fn until(seconds: u64) -> Duration {
    let then = UNIX_EPOCH + Duration::from_secs(seconds);
    then.duration_since(SystemTime::now()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colors_take_no_columns() {
        let out = Output { format: Format::Table, colors: true };
        assert_eq!(width(&out.toned(Tone::Bad, "down")), 4);
        assert_eq!(width("µs"), 2);
    }

    #[test]
    fn durations_are_told_roughly() {
        let told = |seconds| rough(Duration::from_secs(seconds));
        assert_eq!(
            [told(0), told(119), told(120), told(7200), told(200_000)],
            ["0 s", "119 s", "2 min", "2 h", "2 d"]
        );
    }
}
