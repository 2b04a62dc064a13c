//! Chart: broken connections over time, by cause.

use super::{
    Bar, Chart, Report, bars, drawing, legend, parts,
    scale::{Scale, Tick, time_step_ms},
};
use crate::{
    format::{plural, span},
    model::Time,
};

const MS: i64 = 1_000_000;

/// The largest number of bars, and of ticks.
const BARS: i64 = 60;
const TICKS: i64 = 8;

/// The range of the time axis, in nanoseconds since the epoch.
#[derive(Clone, Copy)]
pub struct Range {
    pub begin: i64,
    pub end: i64,
    /// The width of a bar, in nanoseconds.
    step: i64,
}

/// From the first to the last broken connection with a margin of a tenth on each side, in whole bars. `None`
/// when all connections broke at the same time.
pub fn range(report: &Report) -> Option<Range> {
    let first = report.causes.iter().map(|part| part.first.0).min()?;
    let last = report.causes.iter().map(|part| part.last.0).max()?;
    let (oldest, newest) =
        report.extent.map_or((first, last), |extent| (extent.first.0, extent.last.0));
    let margin = last.checked_sub(first).filter(|long| *long > 0)? / 10;
    let from = first.saturating_sub(margin).max(oldest).min(first);
    let to = last.saturating_add(margin).min(newest).max(last);
    let step = time_step_ms((to - from) / MS, BARS).saturating_mul(MS);
    let begin = from - from.rem_euclid(step);
    let bars = (to - begin) / step + 1;
    Some(Range { begin, end: begin.saturating_add(step.saturating_mul(bars)), step })
}

/// The time axis of a range.
pub fn axis(range: Range) -> Scale {
    let Range { begin, end, .. } = range;
    let step = time_step_ms((end - begin) / MS, TICKS).saturating_mul(MS);
    let pattern = match step {
        step if step < 1_000 * MS => "%H:%M:%S.%3f",
        step if step < 60_000 * MS => "%H:%M:%S",
        step if step < 86_400_000 * MS => "%H:%M",
        _ => "%F",
    };
    let mut ticks = Vec::new();
    let mut at = begin.div_euclid(step).saturating_add(1).saturating_mul(step);
    while at <= end && ticks.len() <= usize::try_from(TICKS).unwrap_or_default() {
        ticks.push(Tick { at: (at - begin) as f64, text: Time(at).format(pattern) });
        at = at.saturating_add(step);
    }
    Scale::across(0.0, (end - begin) as f64, false, ticks)
}

/// The chart; `None` when all connections broke at the same time.
pub fn over_time(report: &Report) -> Option<Chart> {
    let range = range(report)?;
    let Range { begin, end, step } = range;
    let mut all: Vec<Bar> = (0..(end - begin) / step)
        .map(|index| Bar {
            from: (index * step) as f64,
            to: ((index + 1) * step) as f64,
            counts: vec![0; report.causes.len()],
            tip: Time(begin + index * step).format("%H:%M:%S"),
        })
        .collect();
    for (place, part) in report.causes.iter().enumerate() {
        for time in &part.times {
            let index = usize::try_from((time - begin) / step).ok();
            if let Some(bar) = index.and_then(|index| all.get_mut(index)) {
                bar.counts[place] += 1;
            }
        }
    }
    for bar in &mut all {
        bar.tip = format!("{}: {}", bar.tip, parts(&bar.counts, report));
    }
    let most = all.iter().map(Bar::total).max().unwrap_or_default();
    let (x, y) = (axis(range), Scale::up(most));
    let each = span(step);
    let caption = format!(
        "{} in bars of {each}; at most {most} per bar.",
        plural(report.connections, "broken connection")
    );
    Some(Chart {
        title: "Broken connections over time",
        legend: legend(report, |_| true),
        drawing: drawing(&caption, &x, &y, bars(&all, &x, &y)),
        caption,
    })
}
