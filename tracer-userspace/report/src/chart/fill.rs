//! Chart: fill of the conntrack tables.

use std::fmt::Write as _;

use maud::html;

use super::{
    Chart, Report, drawing, n,
    scale::{Scale, Tick},
    time::{axis, range},
};
use crate::{
    format::capital,
    model::{Fill, Reading},
    text::Text,
};

/// Network namespaces that are drawn.
const LINES: usize = 3;

/// CSS classes of their colours, which the first causes do not use.
const COLOURS: [&str; LINES] = ["cx", "c4", "c3"];

/// A table that never reached this share of its maximum is not drawn.
const LEAST_SHARE: f64 = 0.05;

/// The chart; `None` when no table reached [`LEAST_SHARE`].
pub fn fill(report: &Report) -> Option<Chart> {
    let range = range(report)?;
    let shown: Vec<(Text, Vec<Reading>)> = report
        .conntrack_fill
        .iter()
        .filter(|fill| fill.peak().is_some_and(|peak| peak.share() >= LEAST_SHARE))
        .take(LINES)
        .map(|fill: &Fill| {
            let inside = |reading: &&Reading| (range.begin..=range.end).contains(&reading.at.0);
            (fill.place.clone(), fill.readings.iter().filter(inside).copied().collect())
        })
        .filter(|(_, readings): &(_, Vec<_>)| !readings.is_empty())
        .collect();
    if shown.is_empty() {
        return None;
    }
    let ticks = [0, 25, 50, 75, 100]
        .map(|percent| Tick { at: f64::from(percent) / 100.0, text: format!("{percent}%") });
    let (x, y) = (axis(range), Scale::upwards(1.0, ticks.into()));
    let at = |reading: &Reading| {
        // A table may hold more entries than its maximum after the maximum was lowered.
        (n(x.place((reading.at.0 - range.begin) as f64)), n(y.place(reading.share().min(1.0))))
    };
    let inside = html! {
        line.limit x1=(n(x.place(0.0))) x2=(n(x.place(f64::MAX))) y1=(n(y.place(1.0))) y2=(n(y.place(1.0))) {}
        @for (place, (_, readings)) in shown.iter().enumerate() {
            path class=(format!("line {}", COLOURS[place])) d=(path(readings.iter().map(at))) {}
            @for reading in readings {
                @let (left, top) = at(reading);
                circle class=(COLOURS[place]) cx=(left) cy=(top) r="2.5" {
                    title { (reading.at.format("%H:%M:%S")) ": " (reading.entries) " of " (reading.max) }
                }
            }
        }
    };
    let caption = report.fill_lines().into_iter().next().unwrap_or_default();
    let legend = shown
        .iter()
        .enumerate()
        .map(|(place, (name, _))| (COLOURS[place].into(), name.to_string()));
    Some(Chart {
        title: "Fill of the conntrack table",
        legend: legend.collect(),
        drawing: drawing(&caption, &x, &y, inside),
        caption: format!("{}.", capital(&caption)),
    })
}

fn path(points: impl Iterator<Item = (String, String)>) -> String {
    let mut path = String::new();
    for (index, (x, y)) in points.enumerate() {
        // Writing to a String cannot fail.
        let _ = write!(path, "{}{x} {y}", if index == 0 { "M" } else { "L" });
    }
    path
}
