//! When what happened.

use super::{
    model::{CausePart, Extent, Moment, Report},
    say::{plural, who_of},
    story::because,
};

/// Causes whose example is told piece by piece.
const CHAINS: usize = 3;

/// In order of time.
pub fn timeline(report: &Report) -> Vec<Moment> {
    let mut moments: Vec<Moment> = report
        .causes
        .iter()
        .enumerate()
        .flat_map(|(place, part)| of_cause(part, place < CHAINS))
        .collect();
    if let Some(Extent { first, last }) = report.extent {
        let (begins, ends) = match report.input {
            "capture" => ("tracing began", "the capture ends"),
            _ => ("the stream begins", "the stream ends"),
        };
        let plain = |at, text: &str| Moment { at, text: text.into(), root: false };
        moments.insert(0, plain(first, begins));
        moments.push(plain(last, ends));
    }
    moments.sort_by_key(|moment| moment.at);
    moments
}

fn of_cause(part: &CausePart, in_full: bool) -> Vec<Moment> {
    let mut moments = Vec::new();
    let example = part.evidence.iter().filter(|_| in_full);
    moments.extend(example.map(|seen| Moment {
        at: seen.at,
        text: match seen.root {
            true => format!("{} (root cause; {})", seen.text, part.cause),
            false => seen.text.to_string(),
        },
        root: seen.root,
    }));
    let first = match part.connections {
        1 => format!("the only connection breaks by {}: {}", part.cause, because(part)),
        _ => format!("the first connection breaks by {}: {}", part.cause, because(part)),
    };
    moments.push(Moment { at: part.first, text: first, root: false });
    let peak = part.peak;
    if peak.connections < part.connections {
        let by = match part.clients.as_slice() {
            [] => String::new(),
            clients => format!(" ({})", who_of(clients, part.connections, 3)),
        };
        // A minute begins before the first of its resets.
        let at = peak.minute.max(part.first);
        let text = format!(
            "the busiest minute of {}: {} from {}{by}",
            part.cause,
            plural(peak.connections, "connection"),
            peak.minute.format("%H:%M")
        );
        moments.push(Moment { at, text, root: false });
    }
    if part.connections > 1 {
        let text = format!(
            "the last of {} breaks by {}",
            plural(part.connections, "connection"),
            part.cause
        );
        moments.push(Moment { at: part.last, text, root: false });
    }
    moments
}
