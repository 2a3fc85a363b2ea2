//! [`Run`]: the figures of one run of all benches, as JSON; and what may be said about two of them.
//!
//! A figure is a set of samples, taken in turns with those that it is compared with. What counts is the
//! median; how far the samples lie apart is the noise, and only what goes beyond it is a difference.

use std::collections::BTreeSet;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// Names the file that benches add their figures to.
pub const FILE: &str = "BENCH_JSON";
/// Medians that differ by less are alike, however quiet the machine was: each run had its own moment.
const ALIKE: f64 = 0.10;
/// How far a single sample may be off, when nothing is known about its noise.
const UNKNOWN_NOISE: f64 = 0.50;

/// The figures of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The machine: processors and kernel.
    pub machine: String,
    /// The figures, in the order in which they were measured.
    pub figures: Vec<Figure>,
}

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What it belongs to: the title of its table and its chart.
    pub story: String,
    /// What was measured: its row.
    pub name: String,
    /// On what: its column.
    pub variant: String,
    /// The unit of the samples.
    pub unit: String,
    /// Which direction is the better one.
    pub better: Better,
    /// The samples.
    pub samples: Vec<f64>,
    /// What is to be read instead of them, where they are but a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Which direction is the better one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Better {
    /// Rates.
    More,
    /// Durations, losses, memory.
    Less,
}

/// What became of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It differs by no more than the noise.
    Alike,
    /// It is better, beyond the noise.
    Improved,
    /// It is worse, beyond the noise.
    Regressed,
}

impl Run {
    /// The run in a file; an empty one of this machine where there is no such file.
    pub fn open(path: &Path) -> Result<Run> {
        match fs::read_to_string(path) {
            Ok(text) => Run::parse(&text).with_context(|| format!("reading {}", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Ok(Run { machine: crate::report::machine(), figures: Vec::new() })
            }
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    fn parse(text: &str) -> Result<Run> {
        serde_json::from_str(text).context("it is not what `make bench` writes")
    }

    /// Adds figures to the file that the environment names, if it does, replacing those of before.
    pub fn add_to_file(figures: &[Figure]) -> Result<()> {
        let Some(path) = env::var_os(FILE).map(PathBuf::from) else { return Ok(()) };
        let mut run = Run::open(&path)?;
        for figure in figures {
            run.figures.retain(|old| !old.is_of(figure));
            run.figures.push(figure.clone());
        }
        fs::write(&path, serde_json::to_string_pretty(&run)?)
            .with_context(|| format!("writing {}", path.display()))
    }

    /// The stories, in the order in which they were measured.
    pub fn stories(&self) -> Vec<&str> {
        unique(self.figures.iter().map(|figure| figure.story.as_str()))
    }

    /// The figures of a story.
    pub fn story(&self, story: &str) -> Vec<&Figure> {
        self.figures.iter().filter(|figure| figure.story == story).collect()
    }

    /// A story as a Markdown table: a row for what was measured, a column for what on.
    pub fn table(&self, story: &str) -> String {
        let figures = self.story(story);
        let variants = unique(figures.iter().map(|figure| figure.variant.as_str()));
        let mut text = format!("| | {} |\n|---|{}\n", variants.join(" | "), "---|".repeat(variants.len()));
        for name in unique(figures.iter().map(|figure| figure.name.as_str())) {
            let of_name = |variant| figures.iter().find(|it| it.name == name && it.variant == variant);
            let cells =
                variants.iter().map(|variant| of_name(*variant).map_or(String::new(), |it| it.shown()));
            // A String takes all that is written to it.
            let _ = writeln!(text, "| {name} | {} |", cells.collect::<Vec<_>>().join(" | "));
        }
        text
    }

    /// What became of the figures that both runs have, and those that only one has.
    pub fn compare(&self, after: &Run) -> Vec<(Figure, Figure, Verdict)> {
        let pairs = self.figures.iter().filter_map(|before| {
            let now = after.figures.iter().find(|now| now.is_of(before))?;
            Some((before.clone(), now.clone(), verdict(before, now)))
        });
        pairs.collect()
    }
}

impl Figure {
    /// Whether it is the same thing, measured another time.
    fn is_of(&self, other: &Figure) -> bool {
        (&self.story, &self.name, &self.variant) == (&other.story, &other.name, &other.variant)
    }

    /// The middle sample, or the mean of the two in the middle.
    pub fn median(&self) -> f64 {
        let sorted = self.sorted();
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => f64::NAN,
            even if even % 2 == 0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
            _ => sorted[middle],
        }
    }

    /// Between which values the samples lie.
    pub fn range(&self) -> (f64, f64) {
        match self.sorted()[..] {
            [] => (f64::NAN, f64::NAN),
            [least, .., most] => (least, most),
            [one] => (one, one),
        }
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    /// `9.31 Gbit/s (9.02–9.44)`
    pub fn shown(&self) -> String {
        if let Some(note) = &self.note {
            return note.clone();
        }
        let (least, most) = self.range();
        let range = match self.samples.len() {
            0 | 1 => String::new(),
            _ => format!(" ({}–{})", number(least), number(most)),
        };
        format!("{} {}{range}", number(self.median()), self.unit)
    }
}

/// A difference is one where all samples of one run are better than all of the other, and the medians lie
/// farther apart than those samples that lie farthest apart in one run: of three samples each, all are better
/// one time in twenty by chance alone.
fn verdict(before: &Figure, after: &Figure) -> Verdict {
    let (was, is) = (before.median(), after.median());
    let ((was_least, was_most), (is_least, is_most)) = (before.range(), after.range());
    let (larger, smaller) = (is_least > was_most, is_most < was_least);
    let unknown = before.samples.len() < 2 || after.samples.len() < 2;
    let least_noise = if unknown { UNKNOWN_NOISE } else { ALIKE } * was.abs();
    let noise = (was_most - was_least).max(is_most - is_least).max(least_noise);
    if !(larger || smaller) || (is - was).abs() <= noise {
        return Verdict::Alike;
    }
    if larger == (before.better == Better::More) { Verdict::Improved } else { Verdict::Regressed }
}

/// Three digits that count, at least.
pub fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        0.0 => "0".to_owned(),
        _ => format!("{value:.3}"),
    }
}

/// Each of them once, in the order of their first appearance.
pub fn unique<'a>(all: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = BTreeSet::new();
    all.filter(|one| seen.insert(*one)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(better: Better, samples: &[f64]) -> Figure {
        Figure {
            story: "throughput".to_owned(),
            name: "one stream".to_owned(),
            variant: "vxlan".to_owned(),
            unit: "Gbit/s".to_owned(),
            better,
            samples: samples.to_vec(),
            note: None,
        }
    }

    #[test]
    fn medians_and_ranges() {
        let odd = figure(Better::More, &[3.0, 1.0, 2.0]);
        assert_eq!((odd.median(), odd.range()), (2.0, (1.0, 3.0)));
        assert_eq!(figure(Better::More, &[4.0, 1.0, 2.0, 3.0]).median(), 2.5);
        let one = figure(Better::More, &[10.0]);
        assert_eq!((one.median(), one.range()), (10.0, (10.0, 10.0)));
        assert!(figure(Better::More, &[]).median().is_nan());
    }

    #[test]
    fn only_what_goes_beyond_the_noise_is_a_difference() {
        let verdict =
            |better, before: &[f64], after: &[f64]| verdict(&figure(better, before), &figure(better, after));
        let (more, less) = (Better::More, Better::Less);
        assert_eq!(verdict(more, &[9.0, 10.0, 11.0], &[8.0, 8.5, 9.1]), Verdict::Alike, "ranges overlap");
        assert_eq!(
            verdict(more, &[9.0, 10.0, 11.0], &[7.5, 8.0, 8.9]),
            Verdict::Alike,
            "no more than the noise"
        );
        assert_eq!(verdict(more, &[9.0, 10.0, 11.0], &[7.0, 7.5, 8.5]), Verdict::Regressed);
        assert_eq!(verdict(less, &[9.0, 10.0, 11.0], &[7.0, 7.5, 8.5]), Verdict::Improved);
        assert_eq!(verdict(less, &[9.0, 10.0, 11.0], &[12.0, 12.5, 13.0]), Verdict::Regressed);
        assert_eq!(verdict(more, &[10.0, 10.1], &[9.8, 9.9]), Verdict::Alike, "quiet, and hardly a change");
        assert_eq!(verdict(less, &[10.0], &[14.0]), Verdict::Alike, "single samples say little");
        assert_eq!(verdict(less, &[10.0], &[16.0]), Verdict::Regressed);
        assert_eq!(verdict(more, &[], &[1.0]), Verdict::Alike, "nothing was measured");
    }

    #[test]
    fn a_run_survives_its_json_and_is_compared_figure_by_figure() {
        let before = Run { machine: "m".to_owned(), figures: vec![figure(Better::More, &[10.0, 11.0])] };
        let text = serde_json::to_string(&before).unwrap();
        assert_eq!(Run::parse(&text).unwrap(), before);
        assert!(Run::parse("{").is_err());
        let mut after = before.clone();
        after.figures[0].samples = vec![5.0, 6.0];
        after.figures.push(Figure { name: "new".to_owned(), ..before.figures[0].clone() });
        let compared = before.compare(&after);
        assert_eq!(compared.len(), 1, "what only one run has cannot be compared");
        assert_eq!(compared[0].2, Verdict::Regressed);
    }

    #[test]
    fn a_table_has_a_row_for_each_name_and_a_column_for_each_variant() {
        let mut run = Run { machine: String::new(), figures: vec![figure(Better::More, &[9.0, 9.5, 10.0])] };
        let bare = Figure { variant: "bare".to_owned(), samples: vec![123.4], ..run.figures[0].clone() };
        let loss = Figure { name: "loss".to_owned(), unit: "%".to_owned(), ..bare.clone() };
        run.figures.extend([bare, loss]);
        assert_eq!(
            run.table("throughput"),
            "| | vxlan | bare |\n|---|---|---|\n| one stream | 9.50 Gbit/s (9.00–10.0) | 123 Gbit/s |\n| loss |  | 123 % |\n"
        );
    }
}
