//! Charts as inline SVG, without scripts, fonts or other files. Colours are CSS classes, so that the page can
//! choose between light and dark.

use maud::{Markup, html};
use scale::Scale;

use super::{model::Report, text::Text};

mod fill;
mod idle;
mod scale;
mod time;

pub use fill::fill;
pub use idle::idle;
pub use time::over_time;

/// Size of the drawing in SVG units; the page scales it.
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 280.0;
/// Left margin: room for five digits or `100%` in the font size of a narrow (phone) page.
const LEFT: f64 = 92.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 38.0;

/// Causes with their own colour; the other causes share one.
const COLOURS: usize = 5;

/// The CSS class of the cause at this place of the ranking.
fn class(place: usize) -> String {
    match place {
        own if own < COLOURS => format!("c{own}"),
        _ => "cx".into(),
    }
}

/// A chart with its title, caption and legend.
pub struct Chart {
    pub title: &'static str,
    /// What the chart shows, in one sentence.
    pub caption: String,
    /// CSS class and name of each colour.
    pub legend: Vec<(String, String)>,
    pub drawing: Markup,
}

/// One bar: its bounds on the axis, and the count of each cause in the order of the report.
struct Bar {
    from: f64,
    to: f64,
    counts: Vec<u64>,
    tip: String,
}

impl Bar {
    fn total(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// A labelled line across the axis.
struct Mark {
    at: f64,
    text: String,
}

/// Draws the axes around the content `inside`.
fn drawing(describe: &str, x: &Scale, y: &Scale, inside: Markup) -> Markup {
    let bottom = HEIGHT - BOTTOM;
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(describe) {
            @for tick in &y.ticks {
                @let at = y.place(tick.at);
                line.grid x1=(n(LEFT)) x2=(n(WIDTH - RIGHT)) y1=(n(at)) y2=(n(at)) {}
                text x=(n(LEFT - 8.0)) y=(n(at + 6.0)) text-anchor="end" { (tick.text) }
            }
            (inside)
            line.axis x1=(n(LEFT)) x2=(n(WIDTH - RIGHT)) y1=(n(bottom)) y2=(n(bottom)) {}
            @for (place, tick) in x.ticks.iter().enumerate() {
                @let at = x.place(tick.at);
                line.axis x1=(n(at)) x2=(n(at)) y1=(n(bottom)) y2=(n(bottom + 5.0)) {}
                text.odd[place % 2 == 1] x=(n(at)) y=(n(bottom + 26.0)) text-anchor="middle" { (tick.text) }
            }
        }
    }
}

/// Draws stacked bars.
fn bars(bars: &[Bar], x: &Scale, y: &Scale) -> Markup {
    html! {
        @for bar in bars.iter().filter(|bar| bar.total() > 0) {
            @let (left, right) = (x.place(bar.from), x.place(bar.to));
            // Leaves a gap between neighbouring bars, but every bar stays visible.
            @let width = (right - left - 1.0).max(1.5);
            g {
                title { (bar.tip) }
                @for (place, below, count) in stacked(&bar.counts) {
                    @let (top, base) = (y.place((below + count) as f64), y.place(below as f64));
                    rect class=(class(place)) x=(n(left)) y=(n(top)) width=(n(width))
                        height=(n((base - top).max(0.5))) {}
                }
            }
        }
    }
}

/// For each cause with a count above 0: its place, the sum of the counts below it, and its count.
fn stacked(counts: &[u64]) -> Vec<(usize, u64, u64)> {
    let mut below = 0;
    let mut all = Vec::new();
    for (place, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        all.push((place, below, *count));
        below += count;
    }
    all
}

/// Draws vertical lines with their labels. Labels of neighbouring lines are staggered.
fn marks(marks: &[Mark], x: &Scale) -> Markup {
    html! {
        @for (row, mark) in marks.iter().enumerate() {
            @let at = x.place(mark.at);
            @let left_half = at < WIDTH * 0.6;
            @let (anchor, shift) = if left_half { ("start", 6.0) } else { ("end", -6.0) };
            line.limit x1=(n(at)) x2=(n(at)) y1=(n(TOP - 22.0)) y2=(n(HEIGHT - BOTTOM)) {}
            text.limit x=(n(at + shift)) y=(n(TOP - 12.0 + 17.0 * (row % 4) as f64))
                text-anchor=(anchor) { (mark.text) }
        }
    }
}

/// Formats a coordinate to a tenth of a unit.
fn n(value: f64) -> String {
    let rounded = (value * 10.0).round() / 10.0;
    if rounded.is_finite() { format!("{rounded}") } else { "0".into() }
}

/// The CSS class and the id of each cause in the chart.
fn legend(report: &Report, shown: impl Fn(usize) -> bool) -> Vec<(String, String)> {
    let mut legend: Vec<(String, String)> = report
        .causes
        .iter()
        .enumerate()
        .filter(|(place, _)| *place < COLOURS && shown(*place))
        .map(|(place, part)| (class(place), part.cause.to_string()))
        .collect();
    if (COLOURS..report.causes.len()).any(shown) {
        legend.push(("cx".into(), "other causes".into()));
    }
    legend
}

/// "3 ipvs_idle_expired, 1 linger_zero".
fn parts(counts: &[u64], report: &Report) -> String {
    let parts: Vec<String> = report
        .causes
        .iter()
        .zip(counts)
        .filter(|(_, count)| **count > 0)
        .map(|(part, count)| format!("{count} {}", Text::as_str(&part.cause)))
        .collect();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_digits_and_100_percent_fit_left_of_the_axis_on_a_phone() {
        /// Font size of `svg text` on the narrow page in `style.css`, and glyph widths of DejaVu Sans.
        const SIZE: f64 = 26.0;
        const DIGIT: f64 = 0.636;
        const PERCENT: f64 = 0.95;
        for width in [5.0 * DIGIT, 3.0 * DIGIT + PERCENT] {
            assert!(width * SIZE <= LEFT - 8.0, "{}", width * SIZE);
        }
    }
}
