//! Tables of results.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::time::Duration;

use anyhow::Result;

/// Durations of one kind.
#[derive(Debug, Clone, Default)]
pub struct Samples(Vec<Duration>);

impl Samples {
    /// Adds one.
    pub fn push(&mut self, sample: Duration) {
        self.0.push(sample);
    }

    /// The value that this many percent do not exceed (nearest rank).
    pub fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort();
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied().unwrap_or_default()
    }

    /// `p50 (worst)` in milliseconds.
    pub fn median_and_worst(&self) -> String {
        format!("{} ({})", milliseconds(self.percentile(50)), milliseconds(self.percentile(100)))
    }

    /// `p50 (p99)` in milliseconds.
    pub fn median_and_tail(&self) -> String {
        format!("{} ({})", milliseconds(self.percentile(50)), milliseconds(self.percentile(99)))
    }
}

/// A table with a row per figure and a column per program.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<String>,
    columns: Vec<String>,
    cells: BTreeMap<(usize, usize), String>,
}

impl Report {
    /// Enters a cell, and shows it on standard error as progress.
    pub fn set(&mut self, row: &str, column: &str, cell: impl Into<String>) {
        let cell = cell.into();
        let _ = writeln!(io::stderr(), "{column}: {row}: {cell}");
        let at = (index(&mut self.rows, row), index(&mut self.columns, column));
        self.cells.insert(at, cell);
    }

    /// Enters a duration.
    pub fn set_duration(&mut self, row: &str, column: &str, duration: Duration) {
        self.set(row, column, milliseconds(duration));
    }

    /// Prints the table on standard output.
    pub fn print(&self) -> Result<()> {
        let mut text =
            format!("\n| | {} |\n|---|{}\n", self.columns.join(" | "), "---|".repeat(self.columns.len()));
        for (row, name) in self.rows.iter().enumerate() {
            write!(text, "| {name} |")?;
            for column in 0..self.columns.len() {
                write!(text, " {} |", self.cells.get(&(row, column)).map_or("", String::as_str))?;
            }
            text.push('\n');
        }
        io::stdout().lock().write_all(text.as_bytes())?;
        Ok(())
    }
}

/// Prints what the figures below were measured on.
pub fn heading(what: &str) -> Result<()> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, model)| model))
        .unwrap_or("unknown processor");
    let cpus = std::thread::available_parallelism()?;
    writeln!(io::stdout().lock(), "### {what}\n\n{cpus} CPUs ({model}), Linux {}", kernel.trim())?;
    Ok(())
}

fn milliseconds(duration: Duration) -> String {
    let milliseconds = duration.as_secs_f64() * 1e3;
    if milliseconds < 100.0 { format!("{milliseconds:.1} ms") } else { format!("{milliseconds:.0} ms") }
}

fn index(names: &mut Vec<String>, name: &str) -> usize {
    names.iter().position(|known| known == name).unwrap_or_else(|| {
        names.push(name.to_owned());
        names.len() - 1
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let mut samples = Samples::default();
        for milliseconds in [5, 1, 4, 2, 3] {
            samples.push(Duration::from_millis(milliseconds));
        }
        assert_eq!(samples.percentile(50), Duration::from_millis(3));
        assert_eq!(samples.percentile(100), Duration::from_millis(5));
        assert_eq!(samples.median_and_worst(), "3.0 ms (5.0 ms)");
    }
}
