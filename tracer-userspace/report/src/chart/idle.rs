//! Chart: how long the connections had been idle when they broke, with the limits that they reached.

use super::{
    Bar, Chart, Mark, Report, bars, drawing, legend, marks, parts,
    scale::{Scale, Tick, time_step_ms},
};
use crate::format::{plural, seconds};

/// Above this ratio of the longest to the shortest value the axis is logarithmic, because equal steps would
/// put almost everything into one bar.
const WIDE: f64 = 60.0;

const BARS: i64 = 36;

/// Idle limits that are drawn.
const LIMITS: usize = 4;

/// Shortest idle time on the axis, in seconds.
const SHORTEST_S: f64 = 0.001;

/// Longest idle time on the axis, in seconds (ten years).
const LONGEST_S: f64 = 315_360_000.0;

/// The chart; `None` when fewer than two idle times are known, or when no limit was reached, so that the idle
/// time explains nothing.
pub fn idle(report: &Report) -> Option<Chart> {
    let known: u64 = report.causes.iter().map(|part| part.idle_s.len() as u64).sum();
    let mut limits: Vec<Mark> = Vec::new();
    for limit in report.causes.iter().flat_map(|part| &part.limits) {
        let at = limit.limit_s.clamp(SHORTEST_S, LONGEST_S);
        let text = format!("{} {}", limit.name, seconds(limit.limit_s));
        if limits.len() < LIMITS && !limits.iter().any(|mark| mark.text == text) {
            limits.push(Mark { at, text });
        }
    }
    if known < 2 || limits.is_empty() {
        return None;
    }
    limits.sort_by(|a, b| a.at.total_cmp(&b.at));
    let idle_times = report.causes.iter().flat_map(|part| &part.idle_s).copied();
    let values = || idle_times.clone().chain(limits.iter().map(|mark| mark.at));
    let least = values().fold(LONGEST_S, f64::min).max(SHORTEST_S);
    let most = values().fold(SHORTEST_S, f64::max).min(LONGEST_S);
    let (mut all, x) = match most / least > WIDE {
        true => logarithmic(least, most, limits[0].at),
        false => equal(most, limits[0].at),
    };
    for bar in &mut all {
        bar.counts = vec![0; report.causes.len()];
    }
    for (place, part) in report.causes.iter().enumerate() {
        for idle_s in &part.idle_s {
            let idle_s = idle_s.clamp(least, most);
            let index = all.partition_point(|bar| bar.to <= idle_s).min(all.len() - 1);
            all[index].counts[place] += 1;
        }
    }
    for bar in &mut all {
        bar.tip =
            format!("{} to {}: {}", seconds(bar.from), seconds(bar.to), parts(&bar.counts, report));
    }
    let y = Scale::up(all.iter().map(Bar::total).max().unwrap_or_default());
    let caption = caption(report, known);
    let inside = maud::html! { (bars(&all, &x, &y)) (marks(&limits, &x)) };
    Some(Chart {
        title: "Idle time before the failure",
        legend: legend(report, |place| !report.causes[place].idle_s.is_empty()),
        drawing: drawing(&caption, &x, &y, inside),
        caption,
    })
}

/// How many connections of the first cause with a limit had been idle for that limit.
fn caption(report: &Report, known: u64) -> String {
    let with_limit =
        report.causes.iter().find(|part| !part.limits.is_empty() && part.idle.is_some());
    let (Some(part), Some(idle)) = (with_limit, with_limit.and_then(|part| part.idle)) else {
        return format!("Idle time known for {}.", plural(known, "connection"));
    };
    let least = part.limits.iter().map(|limit| limit.limit_s).fold(f64::MAX, f64::min);
    // Idle times are this coarse, because the time stamps of segments are.
    let longer = part.idle_s.iter().filter(|idle_s| **idle_s + 1.0 >= least).count() as u64;
    let all = if longer == idle.known { "all".into() } else { format!("{longer} of") };
    format!(
        "{all} {} with cause {} had been idle for the limit of {} or longer.",
        plural(idle.known, "connection"),
        part.cause,
        seconds(least)
    )
}

/// Bars of equal width from 0. One of them begins at the limit.
fn equal(most: f64, limit: f64) -> (Vec<Bar>, Scale) {
    let ms = |s: f64| {
        #[expect(clippy::cast_possible_truncation, reason = "ten years at most")]
        let ms = (s * 1000.0).round() as i64;
        ms
    };
    let s = |ms: i64| ms as f64 / 1000.0;
    let step = time_step_ms(ms(most), BARS);
    let mut edges = vec![0];
    let mut edge = ms(limit).rem_euclid(step);
    while edge <= ms(most) + step {
        if edge > 0 {
            edges.push(edge);
        }
        edge += step;
    }
    let all = edges.windows(2).map(|edge| bar(s(edge[0]), s(edge[1]))).collect();
    let end = edges.last().copied().unwrap_or(step);
    let tick = time_step_ms(end, 8);
    let ticks = (0..=end / tick)
        .map(|index| match index {
            0 => Tick { at: 0.0, text: "0".into() },
            index => Tick { at: s(index * tick), text: seconds(s(index * tick)) },
        })
        .collect();
    (all, Scale::across(0.0, s(end), false, ticks))
}

/// Five bars per power of ten. One of them begins at the limit.
fn logarithmic(least: f64, most: f64, limit: f64) -> (Vec<Bar>, Scale) {
    let bars_to = |value: f64| ((value / limit).log10() * 5.0).floor();
    let edge = |bars: f64| limit * 10_f64.powf(bars / 5.0);
    let (mut place, end) = (bars_to(least), bars_to(most) + 1.0);
    let (low, high) = (edge(place), edge(end));
    let mut all = Vec::new();
    while place < end {
        all.push(bar(edge(place), edge(place + 1.0)));
        place += 1.0;
    }
    const TICKS: [(f64, &str); 14] = [
        (0.001, "1 ms"),
        (0.01, "10 ms"),
        (0.1, "100 ms"),
        (1.0, "1 s"),
        (10.0, "10 s"),
        (60.0, "1 min"),
        (600.0, "10 min"),
        (3_600.0, "1 h"),
        (36_000.0, "10 h"),
        (172_800.0, "2 d"),
        (1_728_000.0, "20 d"),
        (8_640_000.0, "100 d"),
        (86_400_000.0, "1000 d"),
        (864_000_000.0, "10000 d"),
    ];
    let ticks = TICKS
        .iter()
        .filter(|(at, _)| (low * 0.99..=high * 1.01).contains(at))
        .map(|(at, text)| Tick { at: *at, text: (*text).into() })
        .collect();
    (all, Scale::across(low, high, true, ticks))
}

fn bar(from: f64, to: f64) -> Bar {
    Bar { from, to, counts: Vec::new(), tip: String::new() }
}
