//! The timeline of the report.

use super::{
    format::{joined_of, plural},
    model::{CausePart, Extent, Report, TimelineEntry},
    summary::cause_title,
};

/// Causes whose example is shown with all of its evidence.
const CHAINS: usize = 3;

/// All entries, ordered by time.
pub fn timeline(report: &Report) -> Vec<TimelineEntry> {
    let mut entries: Vec<TimelineEntry> = report
        .causes
        .iter()
        .enumerate()
        .flat_map(|(place, part)| of_cause(part, place < CHAINS))
        .collect();
    if let Some(Extent { first, last }) = report.extent {
        let (start, end) = match report.input {
            "capture" => ("tracing started", "the capture ended"),
            _ => ("first event of the stream", "last event of the stream"),
        };
        let plain = |at, text: &str| TimelineEntry { at, text: text.into(), root: false };
        entries.insert(0, plain(first, start));
        entries.push(plain(last, end));
    }
    entries.sort_by_key(|entry| entry.at);
    entries
}

fn of_cause(part: &CausePart, in_full: bool) -> Vec<TimelineEntry> {
    let mut entries = Vec::new();
    let example = part.evidence.iter().filter(|_| in_full);
    entries.extend(example.map(|line| TimelineEntry {
        at: line.at,
        text: match line.root {
            true => format!("{} (root cause; {})", line.text, part.cause),
            false => line.text.to_string(),
        },
        root: line.root,
    }));
    let connections = plural(part.connections, "connection");
    let subject = match part.connections {
        1 => "a connection".to_owned(),
        _ => format!("the first of {connections}"),
    };
    let text = format!("{subject} broke ({}): {}", part.cause, cause_title(part));
    entries.push(TimelineEntry { at: part.first, text, root: false });
    let peak = part.peak;
    if peak.connections < part.connections {
        let clients = match part.clients.as_slice() {
            [] => String::new(),
            clients => format!(" ({})", joined_of(clients, part.connections, 3)),
        };
        // A minute starts before the first failure in it.
        let at = peak.minute.max(part.first);
        let text = format!(
            "busiest minute of {}: {} from {}{clients}",
            part.cause,
            plural(peak.connections, "connection"),
            peak.minute.format("%H:%M")
        );
        entries.push(TimelineEntry { at, text, root: false });
    }
    if part.connections > 1 {
        let text = format!("the last of {connections} broke ({})", part.cause);
        entries.push(TimelineEntry { at: part.last, text, root: false });
    }
    entries
}
