//! Tables of results.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::time::Duration;

use anyhow::Result;

use crate::run::{Better, Figure, Run};

/// Durations of one kind, in the order in which they were measured.
#[derive(Debug, Clone, Default)]
pub struct Samples(Vec<Duration>);

/// Into how many parts of equal length samples are divided, of each of which the file of a run has a figure:
/// how far those lie apart is how much the machine changed in the meantime.
const PARTS: usize = 6;

impl Samples {
    /// Adds one.
    pub fn push(&mut self, sample: Duration) {
        self.0.push(sample);
    }

    /// The value that this many percent do not exceed (nearest rank).
    pub fn percentile(&self, percent: usize) -> Duration {
        percentile(&self.0, percent)
    }

    /// `p50 (this one)` in milliseconds.
    fn median_and(&self, percent: usize) -> String {
        format!("{} ({})", milliseconds(self.percentile(50)), milliseconds(self.percentile(percent)))
    }

    /// A percentile of each part, in milliseconds.
    fn of_parts(&self, percent: usize) -> Vec<f64> {
        let parts = self.0.chunks(self.0.len().div_ceil(PARTS).max(1));
        parts.map(|part| in_milliseconds(percentile(part, percent))).collect()
    }
}

fn percentile(samples: &[Duration], percent: usize) -> Duration {
    let mut sorted = samples.to_vec();
    sorted.sort();
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

/// A table with a row per figure and a column per program.
#[derive(Debug)]
pub struct Report {
    story: String,
    figures: Vec<Figure>,
    rows: Vec<String>,
    columns: Vec<String>,
    cells: BTreeMap<(usize, usize), String>,
}

impl Report {
    /// A table of this story, whose figures also go into the file of the run.
    pub fn of(story: &str) -> Report {
        let story = story.to_owned();
        Report { story, figures: Vec::new(), rows: Vec::new(), columns: Vec::new(), cells: BTreeMap::new() }
    }

    /// Enters a cell that is no figure, and shows it on standard error as progress.
    pub fn set(&mut self, row: &str, column: &str, cell: impl Into<String>) {
        let cell = cell.into();
        let _ = writeln!(io::stderr(), "{column}: {row}: {cell}");
        let at = (index(&mut self.rows, row), index(&mut self.columns, column));
        self.cells.insert(at, cell);
    }

    /// Enters durations, each of a whole measurement.
    pub fn set_durations(&mut self, row: &str, column: &str, durations: &[Duration]) {
        let samples: Vec<f64> = durations.iter().copied().map(in_milliseconds).collect();
        self.set_quantities((row, "ms"), column, &samples);
    }

    /// Enters median and worst of samples.
    pub fn set_samples(&mut self, row: &str, column: &str, samples: &Samples) {
        self.set(&format!("{row}, p50 (worst)"), column, samples.median_and(100));
        self.note_parts(row, column, samples);
    }

    /// Enters median and 99th percentile of samples.
    pub fn set_tail(&mut self, row: &str, column: &str, samples: &Samples) {
        self.set(&format!("{row}, p50 (p99)"), column, samples.median_and(99));
        self.note_parts(row, column, samples);
    }

    fn note_parts(&mut self, row: &str, column: &str, samples: &Samples) {
        self.note((&format!("{row}, p50"), "ms"), column, samples.of_parts(50));
        if samples.0.len() > PARTS {
            // Not how many: the next run, or the other program, may have had another number of them.
            self.note((&format!("{row}, worst"), "ms"), column, samples.of_parts(100));
        }
    }

    /// Enters a quantity of which less is better, measured once.
    pub fn set_quantity(&mut self, row: &str, column: &str, quantity: f64, unit: &str) {
        self.set_quantities((row, unit), column, &[quantity]);
    }

    /// Enters a quantity of which less is better, measured a few times.
    pub fn set_quantities(&mut self, (row, unit): (&str, &str), column: &str, samples: &[f64]) {
        let figure = self.note((row, unit), column, samples.to_vec()).shown();
        self.set(row, column, figure);
    }

    /// Enters how many of all were lost, counted a few times.
    pub fn set_counts(&mut self, (row, unit): (&str, &str), column: &str, counts: &[u32], of: u32) {
        self.note((row, unit), column, counts.iter().copied().map(f64::from).collect());
        self.set(row, column, format!("{} of {of}", counts.iter().sum::<u32>()));
    }

    /// Enters that something did not come to pass in the time that was given to it.
    pub fn set_never(&mut self, row: &str, column: &str, patience: Duration) {
        let figure = self.note((row, "ms"), column, vec![in_milliseconds(patience)]);
        figure.note = Some(format!("not within {patience:?}"));
        let figure = figure.shown();
        self.set(row, column, figure);
    }

    fn note(&mut self, (row, unit): (&str, &str), column: &str, samples: Vec<f64>) -> &mut Figure {
        self.figures.push(Figure {
            story: self.story.clone(),
            name: row.to_owned(),
            variant: column.to_owned(),
            unit: unit.to_owned(),
            better: Better::Less,
            samples,
            note: None,
        });
        self.figures.last_mut().expect("one was just put there")
    }

    /// Prints the table on standard output, and adds its figures to the file of the run.
    pub fn print(&self) -> Result<()> {
        Run::add_to_file(&self.figures)?;
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

/// Begins a bench: takes away what a killed one left behind, waits until the kernel has done its work for the
/// one before, and prints what the figures below are measured on.
pub fn begin(what: &str) -> Result<()> {
    crate::claim::sweep()?;
    crate::quiet::await_quiet()?;
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
    let milliseconds = in_milliseconds(duration);
    match milliseconds {
        few if few < 1.0 => format!("{few:.2} ms"),
        some if some < 100.0 => format!("{some:.1} ms"),
        many => format!("{many:.0} ms"),
    }
}

fn in_milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
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
    fn the_figures_of_samples_are_of_equal_parts() {
        let mut report = Report::of("story");
        let mut samples = Samples::default();
        (1..=12).for_each(|milliseconds| samples.push(Duration::from_millis(milliseconds)));
        report.set_samples("ADD", "ours", &samples);
        let [middle, worst] = &report.figures[..] else { panic!("{:?}", report.figures) };
        assert_eq!(
            (middle.name.as_str(), &middle.samples[..]),
            ("ADD, p50", &[1.0, 3.0, 5.0, 7.0, 9.0, 11.0][..])
        );
        assert_eq!(
            (worst.name.as_str(), &worst.samples[..]),
            ("ADD, worst", &[2.0, 4.0, 6.0, 8.0, 10.0, 12.0][..])
        );
        report.set_samples("nothing", "ours", &Samples::default());
        report.set_never("route deleted", "original", Duration::from_secs(5));
        let never = report.figures.last().unwrap();
        assert_eq!((never.shown().as_str(), never.median()), ("not within 5s", 5000.0));
    }

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let mut samples = Samples::default();
        for milliseconds in [5, 1, 4, 2, 3] {
            samples.push(Duration::from_millis(milliseconds));
        }
        assert_eq!(samples.percentile(50), Duration::from_millis(3));
        assert_eq!(samples.percentile(100), Duration::from_millis(5));
        assert_eq!(samples.median_and(100), "3.0 ms (5.0 ms)");
    }
}
