//! The report in one sentence, and in one paragraph.

use super::{
    model::{CausePart, Extent, Report},
    say::{is_id, names, percent, plural, seconds, span, who, who_of},
};

/// What the cause is, in words; its id where this build has none for it.
pub fn because(part: &CausePart) -> String {
    if part.family.as_str() == "unknown" {
        return "no cause could be told".into();
    }
    match part.title {
        "" if is_id(&part.cause) => {
            format!("{} (a cause that this build does not know)", part.cause)
        }
        "" => "a cause that this build does not know".into(),
        title => title.into(),
    }
}

/// From the first to the last broken connection.
fn extent(report: &Report) -> Option<Extent> {
    let first = report.causes.iter().map(|part| part.first).min()?;
    Some(Extent { first, last: report.causes.iter().map(|part| part.last).max()? })
}

/// " by A or B" where `--cause` left only these; others may have broken by another.
fn by_selected(report: &Report) -> String {
    match report.only.as_slice() {
        [] => String::new(),
        only => format!(" by {}", only.join(" or ")),
    }
}

/// One sentence.
pub fn headline(report: &Report) -> String {
    let Some(first) = report.causes.first() else {
        return format!("No connection broke{}", by_selected(report));
    };
    let total = report.connections;
    let took = extent(report).map(Extent::long);
    let within = match took.filter(|took| total > 1 && *took >= 1_000_000_000) {
        Some(took) => format!(" within {}", span(took)),
        None => String::new(),
    };
    let subject = plural(total, "connection");
    let why = match (because(first), first.family.as_str()) {
        (why, "unknown") => format!(": {why}"),
        // A title may have a "because" of its own.
        (why, _) if why.contains(" because ") => format!(": {why}"),
        (why, _) => format!(" because {why}"),
    };
    match report.causes.len() {
        1 => format!("{subject} broke{within}{why}"),
        _ => format!("{subject} broke{within}, {} of them{why}", first.connections),
    }
}

/// Who met it: "orders-api to 10.96.12.8:3306 (mysqld)".
fn whose(part: &CausePart) -> String {
    let services: Vec<String> = part.services.iter().map(|it| it.address.to_string()).collect();
    let to = names(services.iter().map(String::as_str), 2);
    let servers = match part.servers.as_slice() {
        [] => String::new(),
        servers => format!(" ({})", who(servers, 2)),
    };
    let from = match part.clients.as_slice() {
        [] => String::new(),
        clients => format!("{} ", who_of(clients, part.connections, 3)),
    };
    format!("{from}to {to}{servers}")
}

/// "idle for 21 s to 70 s, against a limit of 20 s".
fn silence(part: &CausePart) -> Option<String> {
    let limits: Vec<String> = part
        .limits
        .iter()
        .take(3)
        .map(|limit| format!("{} ({})", seconds(limit.limit_s), limit.name))
        .collect();
    if limits.is_empty() {
        return None;
    }
    let against = format!("limit {}", names(limits.iter().map(String::as_str), 3));
    let Some(idle) = part.idle else {
        return Some(against);
    };
    let (shortest, longest) = (seconds(idle.shortest_s), seconds(idle.longest_s));
    Some(match shortest == longest {
        true => format!("idle for {longest}, {against}"),
        false => format!("idle for {shortest} to {longest}, {against}"),
    })
}

fn told(part: &CausePart, total: u64) -> String {
    let share = match part.connections {
        1 if total == 1 => "It broke".to_owned(),
        all if all == total => "All broke".to_owned(),
        some => format!("{some} ({}) broke", percent(some, total)),
    };
    let sure = who(&part.confidences, 3);
    let silence = silence(part).map(|silence| format!(", {silence}")).unwrap_or_default();
    let by = match part.family.as_str() {
        "unknown" => String::new(),
        _ => format!(" by {} ({sure})", part.cause),
    };
    let fix = match part.fixes.first() {
        Some(fix) => format!(" Fix ({}): {}.", fix.fix.owner, fix.fix.summary),
        None => String::new(),
    };
    format!("{share}{by}: {}; {}{silence}.{fix}", because(part), whose(part))
}

/// One paragraph: so many causes in full, and the names of the others.
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
                sentences.push("Whether others broke is in the report without --cause.".into());
            }
        }
    }
    sentences.extend(report.causes.iter().take(in_full).map(|part| told(part, report.connections)));
    let others: Vec<String> = report
        .causes
        .iter()
        .skip(in_full)
        .map(|part| format!("{} {}", part.connections, part.cause))
        .collect();
    if !others.is_empty() {
        let list = names(others.iter().map(String::as_str), 12);
        sentences.push(format!("The others: {list}."));
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
