//! The report's headline, and its summary in one paragraph.

use super::{
    format::{capital, is_id, joined, joined_of, names, percent, plural, seconds, span},
    model::{CausePart, Extent, Report},
};

/// What the cause means; its id where this build has no title for it.
pub fn cause_title(part: &CausePart) -> String {
    if is_unknown(part) {
        return "no cause was found".into();
    }
    match part.title {
        "" if is_id(&part.cause) => {
            format!("{} (a cause that this build does not know)", part.cause)
        }
        "" => "a cause that this build does not know".into(),
        title => title.into(),
    }
}

fn is_unknown(part: &CausePart) -> bool {
    part.family.as_str() == "unknown"
}

/// From the first to the last broken connection.
fn extent(report: &Report) -> Option<Extent> {
    let first = report.causes.iter().map(|part| part.first).min()?;
    Some(Extent { first, last: report.causes.iter().map(|part| part.last).max()? })
}

/// " because of A or B", where `--cause` selected only these. Other causes may have broken connections.
fn by_selected(report: &Report) -> String {
    match report.only.as_slice() {
        [] => String::new(),
        only => format!(" because of {}", only.join(" or ")),
    }
}

/// One sentence without a full stop.
pub fn headline(report: &Report) -> String {
    let Some(first) = report.causes.first() else {
        return format!("No connection broke{}", by_selected(report));
    };
    let total = report.connections;
    let took = extent(report).map(Extent::long);
    let within = match took.filter(|took| total > 1 && *took >= 1_000_000_000) {
        Some(took) => format!(" in {}", span(took)),
        None => String::new(),
    };
    let subject = plural(total, "connection");
    let count = match report.causes.len() {
        1 => String::new(),
        _ => format!("; {}", first.connections),
    };
    if is_unknown(first) {
        return format!("{subject} broke{within}{count} without a known cause");
    }
    let title = cause_title(first);
    // Some titles are of the form "… because …": the reason alone reads better here.
    let reason = title.split_once(" because ").map_or(title.as_str(), |(_, reason)| reason);
    format!("{subject} broke{within}{count} because {reason}")
}

/// The clients and services of a cause: "orders-api to 10.96.12.8:3306 (mysqld)".
fn affected(part: &CausePart) -> String {
    let services: Vec<String> = part.services.iter().map(|it| it.address.to_string()).collect();
    let to = names(services.iter().map(String::as_str), 2);
    let servers = match part.servers.as_slice() {
        [] => String::new(),
        servers => format!(" ({})", joined(servers, 2)),
    };
    let from = match part.clients.as_slice() {
        [] => String::new(),
        clients => format!("{} ", joined_of(clients, part.connections, 3)),
    };
    format!("{from}to {to}{servers}")
}

/// "idle for 21 s to 70 s, limit 20 s (IPVS ESTABLISHED)".
fn idle_and_limits(part: &CausePart) -> Option<String> {
    let limits: Vec<String> = part
        .limits
        .iter()
        .take(3)
        .map(|limit| format!("{} ({})", seconds(limit.limit_s), limit.name))
        .collect();
    if limits.is_empty() {
        return None;
    }
    let limit = format!("limit {}", names(limits.iter().map(String::as_str), 3));
    let Some(idle) = part.idle else {
        return Some(limit);
    };
    let (shortest, longest) = (seconds(idle.shortest_s), seconds(idle.longest_s));
    Some(match shortest == longest {
        true => format!("idle for {longest}, {limit}"),
        false => format!("idle for {shortest} to {longest}, {limit}"),
    })
}

/// A cause in a few sentences.
fn cause_sentences(part: &CausePart, total: u64) -> String {
    let title = cause_title(part);
    let confidence = joined(&part.confidences, 3);
    let share = match part.connections {
        all if all == total => None,
        some => Some(format!("{some} ({})", percent(some, total))),
    };
    let cause = match (share, is_unknown(part)) {
        (None, true) => format!("{}.", capital(&title)),
        (Some(share), true) => format!("{} for {share}.", capital(&title)),
        (None, false) => format!("Cause: {} ({confidence}). {}.", part.cause, capital(&title)),
        (Some(share), false) => {
            format!("Cause of {share}: {} ({confidence}). {}.", part.cause, capital(&title))
        }
    };
    let idle = idle_and_limits(part).map(|idle| format!(", {idle}")).unwrap_or_default();
    let fix = match part.fixes.first() {
        Some(fix) => format!(" Fix ({}): {}.", fix.fix.owner, fix.fix.summary),
        None => String::new(),
    };
    format!("{cause} Affected: {}{idle}.{fix}", affected(part))
}

/// One paragraph. The first `in_full` causes are explained in sentences, the others are counted.
pub fn summary(report: &Report, in_full: usize) -> String {
    let mut sentences = Vec::new();
    let on = match report.hosts.as_slice() {
        [] => String::new(),
        hosts => format!(" on {}", names(hosts.iter().map(super::text::Text::as_str), 3)),
    };
    match extent(report) {
        Some(Extent { first, last }) => {
            let when = match first.format("%F") == last.format("%F") {
                true if first.full() == last.full() => format!("At {} UTC", first.full()),
                true => format!("Between {} and {} UTC", first.full(), last.format("%T")),
                false => format!("Between {} and {} UTC", first.full(), last.full()),
            };
            let broke = plural(report.connections, "connection");
            sentences.push(format!("{when}, {broke} broke{on}."));
        }
        None => {
            let window = report.window().map(|it| format!(" ({it})")).unwrap_or_default();
            let by = by_selected(report);
            sentences.push(format!("No connection broke{by}{on}{window}."));
            if !by.is_empty() {
                sentences.push(
                    "Run the report without --cause to see whether connections broke for other causes."
                        .into(),
                );
            }
        }
    }
    let causes = report.causes.iter().take(in_full);
    sentences.extend(causes.map(|part| cause_sentences(part, report.connections)));
    let others: Vec<String> = report
        .causes
        .iter()
        .skip(in_full)
        .map(|part| format!("{} {}", part.connections, part.cause))
        .collect();
    if !others.is_empty() {
        let list = names(others.iter().map(String::as_str), 12);
        sentences.push(format!("Other causes: {list}."));
    }
    let benign: u64 = report.benign.iter().map(|it| it.count).sum();
    if benign > 0 {
        let resets = plural(benign, "benign reset");
        sentences.push(format!(
            "{resets} (refused connects, scans, health checks) broke nothing and {} only counted.",
            if benign == 1 { "is" } else { "are" }
        ));
    }
    sentences.join(" ")
}
