//! Charts: the figures of a story as SVG, a group of bars for each thing measured.
//!
//! Each group has a scale of its own, since units differ; the number is beside the bar, and a thin line
//! shows between which values the samples lie. Colours are the chart's own, background included, so that it
//! looks the same on a dark page and on a light one.

use std::fmt::Write as _;

use crate::run::{Better, Figure, unique};

const WIDTH: f64 = 774.0;
const LABELS: f64 = 124.0;
const NUMBERS: f64 = 230.0;
const BAR: f64 = 16.0;
const GAP: f64 = 6.0;
const LEGEND: &str = "Bars: medians, each group with a scale of its own. Thin lines, and numbers in parentheses: least and most.";
const COLORS: [&str; 6] = ["#4c78a8", "#f58518", "#54a24b", "#b279a2", "#9d755d", "#e45756"];

/// The chart of a story; empty where there is nothing to show.
pub fn chart(story: &str, figures: &[&Figure]) -> String {
    let names = unique(figures.iter().map(|figure| figure.name.as_str()));
    let variants = unique(figures.iter().map(|figure| figure.variant.as_str()));
    let mut body = String::new();
    let mut y = 34.0;
    for name in names {
        let group: Vec<&&Figure> = figures.iter().filter(|figure| figure.name == name).collect();
        let most = group.iter().map(|it| it.range().1.max(it.median())).fold(f64::MIN_POSITIVE, f64::max);
        let scale = (WIDTH - LABELS - NUMBERS) / most;
        let better = match group.first().map(|figure| figure.better) {
            Some(Better::Less) => "less is better",
            _ => "more is better",
        };
        text(&mut body, (8.0, y + 12.0), "group", &format!("{name} ({better})"));
        y += 22.0;
        for figure in group {
            let color = variants.iter().position(|it| *it == figure.variant).unwrap_or(0) % COLORS.len();
            bar(&mut body, y, scale, figure, COLORS[color]);
            y += BAR + GAP;
        }
        y += 10.0;
    }
    text(&mut body, (8.0, y + 6.0), "note", LEGEND);
    y += 18.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{y:.0}\" viewBox=\"0 0 {WIDTH} {y:.0}\">\n\
         <style>text {{ font: 12px sans-serif; fill: #222 }} .title {{ font-size: 15px; font-weight: bold }} \
         .group {{ font-weight: bold }} .note {{ font-size: 11px; fill: #555 }}</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    text(&mut svg, (8.0, 20.0), "title", story);
    svg + &body + "</svg>\n"
}

fn bar(svg: &mut String, y: f64, scale: f64, figure: &Figure, color: &str) {
    let median = figure.median();
    if !median.is_finite() {
        return;
    }
    let (least, most) = figure.range();
    let width = (median * scale).max(0.5);
    text(svg, (8.0, y + 12.0), "", &figure.variant);
    // A String takes all that is written to it.
    let _ = writeln!(
        svg,
        "<rect x=\"{LABELS}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{color}\"/>\n\
         <line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{2:.1}\" y2=\"{2:.1}\" stroke=\"#222\"/>",
        LABELS + least * scale,
        LABELS + most * scale,
        y + BAR / 2.0
    );
    text(svg, (LABELS + width.max(most * scale) + 6.0, y + 12.0), "", &figure.shown());
}

fn text(svg: &mut String, (x, y): (f64, f64), class: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\">{words}</text>");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(name: &str, variant: &str, samples: &[f64]) -> Figure {
        Figure {
            story: "s".to_owned(),
            name: name.to_owned(),
            variant: variant.to_owned(),
            unit: "Gbit/s".to_owned(),
            better: Better::More,
            samples: samples.to_vec(),
            note: None,
        }
    }

    #[test]
    fn bars_are_as_long_as_their_medians_and_words_are_escaped() {
        let figures = [figure("a < b", "bare", &[20.0]), figure("a < b", "vxlan", &[9.0, 10.0, 11.0])];
        let svg = chart("NIC & co", &figures.iter().collect::<Vec<_>>());
        assert!(svg.contains("NIC &amp; co") && svg.contains("a &lt; b"), "{svg}");
        let widths: Vec<f64> = svg
            .lines()
            .filter_map(|line| {
                line.strip_prefix("<rect x=")?.split("width=\"").nth(1)?.split('"').next()?.parse().ok()
            })
            .collect();
        assert_eq!(widths, [420.0, 210.0]);
        assert!(svg.contains("10.0 Gbit/s (9.00–11.0)"), "{svg}");
        assert!(svg.ends_with("</svg>\n"));
    }

    #[test]
    fn nothing_measured_draws_no_bar() {
        let nothing = figure("a", "bare", &[]);
        assert_eq!(chart("s", &[&nothing]).matches("<rect x=").count(), 0);
    }
}
