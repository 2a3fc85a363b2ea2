//! Tables of results.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::time::Duration;

use anyhow::Result;

use crate::run::{Better, Figure, Run};

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
    story: String,
    figures: Vec<Figure>,
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

    /// A table of this story, whose durations also go into the file of the run.
    pub fn of(story: &str) -> Report {
        Report { story: story.to_owned(), ..Report::default() }
    }

    /// Enters a duration.
    pub fn set_duration(&mut self, row: &str, column: &str, duration: Duration) {
        self.set(row, column, milliseconds(duration));
        self.note((row, "ms"), column, vec![duration.as_secs_f64() * 1e3]);
    }

    /// Enters median and worst of samples.
    pub fn set_samples(&mut self, row: &str, column: &str, samples: &Samples) {
        self.set(&format!("{row}, p50 (worst)"), column, samples.median_and_worst());
        for (which, percent) in [("p50", 50), ("worst", 100)] {
            let value = samples.percentile(percent).as_secs_f64() * 1e3;
            self.note((&format!("{row}, {which}"), "ms"), column, vec![value]);
        }
    }

    /// Enters a quantity of which less is better.
    pub fn set_quantity(&mut self, row: &str, column: &str, quantity: f64, unit: &str) {
        self.set(row, column, format!("{} {unit}", crate::run::number(quantity)));
        self.note((row, unit), column, vec![quantity]);
    }

    fn note(&mut self, (row, unit): (&str, &str), column: &str, samples: Vec<f64>) {
        self.figures.push(Figure {
            story: self.story.clone(),
            name: row.to_owned(),
            variant: column.to_owned(),
            unit: unit.to_owned(),
            better: Better::Less,
            samples,
        });
    }

    /// Prints the table on standard output, and adds its figures to the file of the run.
    pub fn print(&self) -> Result<()> {
        if !self.story.is_empty() {
            Run::add_to_file(&self.figures)?;
        }
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
    writeln!(io::stdout().lock(), "### {what}\n\n{}", machine())?;
    Ok(())
}

/// The processors and the kernel of this machine.
pub(crate) fn machine() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let (kernel, cpuinfo) = (read("/proc/sys/kernel/osrelease"), read("/proc/cpuinfo"));
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, model)| model))
        .unwrap_or("unknown processor");
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{cpus} CPUs ({model}), Linux {}", kernel.trim())
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
