//! The report as GitHub Markdown, which is also readable as plain text in a terminal.

use std::fmt::Write as _;

use escape::{bold, code, fenced, text};

use super::{
    format::{capital, joined_of, percent, plural, seconds, span},
    model::{CausePart, FixPart, NameCount, Report},
    summary::cause_title,
};

mod escape;

/// Rows per table; `-o json` has all rows.
const ROWS: usize = 40;

/// Broken connections that are listed.
const LISTED: usize = 20;

/// Renders the whole report.
pub fn render(report: &Report) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail, here and below.
    let _ = write!(out, "# {}\n\n{}\n\n", text(&report.headline), text(&report.summary));
    facts(&mut out, report);
    what_to_do(&mut out, report);
    timeline(&mut out, report);
    impact(&mut out, report);
    for (place, part) in report.causes.iter().enumerate() {
        cause(&mut out, place + 1, part, report.connections);
    }
    counters(&mut out, report);
    unseen(&mut out, report);
    broken(&mut out, report);
    out
}

fn facts(out: &mut String, report: &Report) {
    let mut row = |name: &str, value: &str| {
        let _ = writeln!(out, "- **{name}:** {value}");
    };
    row("File", &format!("{} ({})", code(report.file.as_str()), report.input));
    if !report.hosts.is_empty() {
        let hosts = report.hosts.iter().map(|it| code(it.as_str())).collect::<Vec<_>>().join(", ");
        let kernels = report.kernels.iter().map(|it| code(it.as_str())).collect::<Vec<_>>();
        let kernels = match kernels.is_empty() {
            true => String::new(),
            false => format!(", kernel {}", kernels.join(", ")),
        };
        row("Host", &(hosts + &kernels));
    }
    if let Some(extent) = report.extent {
        let long = span(extent.long());
        let (first, last) = (extent.first.full(), extent.last.full());
        row("Covered", &format!("{first} to {last} UTC ({long})"));
    }
    if let Some(selected) = report.selected() {
        row("Selected", &text(&selected));
    }
    row("Counted", &text(&report.counted()));
    out.push('\n');
}

/// The first fix of each cause, near the top of the report.
fn what_to_do(out: &mut String, report: &Report) {
    let first = report.causes.iter().filter_map(|part| Some((part, part.fixes.first()?)));
    let lines: Vec<String> = first
        .map(|(part, fix)| {
            format!(
                "- {}: {} (for {})\n",
                bold(fix.fix.owner.as_str()),
                text(fix.fix.summary.as_str()),
                text(part.cause.as_str())
            )
        })
        .collect();
    if !lines.is_empty() {
        let _ = writeln!(out, "## What to do\n\n{}", lines.concat());
    }
}

fn timeline(out: &mut String, report: &Report) {
    let day = |at: &super::model::Time| at.format("%F");
    let first = report.timeline.first().map(|moment| day(&moment.at));
    let Some(first) = first else {
        return;
    };
    let _ = write!(out, "## Timeline ({first}, UTC)\n\n");
    for moment in &report.timeline {
        let at = match day(&moment.at) == first {
            true => moment.at.format("%H:%M:%S.%3f"),
            false => moment.at.format("%F %H:%M:%S.%3f"),
        };
        let _ = match moment.root {
            true => writeln!(out, "- {at}  {}", bold(&moment.text)),
            false => writeln!(out, "- {at}  {}", text(&moment.text)),
        };
    }
    out.push('\n');
}

fn cell(list: &[NameCount], connections: u64, most: usize) -> String {
    match list {
        [] => "-".into(),
        list => text(&joined_of(list, connections, most)),
    }
}

fn impact(out: &mut String, report: &Report) {
    if report.services.is_empty() {
        return;
    }
    out.push_str("## Impact\n\n");
    out.push_str("| service | connections | clients | server | busiest minute |\n");
    out.push_str("|---|--:|---|---|---|\n");
    for it in report.services.iter().take(ROWS) {
        let backends = it.backends_text();
        let _ = writeln!(
            out,
            "| {}{} | {} | {} | {} | {} ({}) |",
            it.address,
            backends.map(|it| format!(" → {it}")).unwrap_or_default(),
            it.connections,
            cell(&it.clients, it.connections, 3),
            cell(&it.servers, it.connections, 2),
            it.peak.minute.format("%H:%M"),
            it.peak.connections,
        );
    }
    left_out(out, report.services.len());
    out.push_str("\n| minute | service | broken connections |\n|---|---|---|\n");
    let mut minutes: Vec<_> = report
        .services
        .iter()
        .flat_map(|service| service.minutes.iter().map(|minute| (service.address, minute)))
        .collect();
    minutes.sort_by_key(|(_, minute)| minute.minute);
    for (service, minute) in minutes.iter().take(ROWS) {
        let causes: Vec<String> = minute
            .causes
            .iter()
            .map(|it| format!("{} {}", it.count, text(it.cause.as_str())))
            .collect();
        let at = minute.minute.format("%F %H:%M");
        let _ = writeln!(out, "| {at} | {service} | {} |", causes.join(", "));
    }
    left_out(out, minutes.len());
    out.push('\n');
}

fn left_out(out: &mut String, rows: usize) {
    if let Some(more) = rows.checked_sub(ROWS).filter(|more| *more > 0) {
        let _ = writeln!(out, "\n{} more: see `-o json`.", plural(more as u64, "row"));
    }
}

fn cause(out: &mut String, place: usize, part: &CausePart, total: u64) {
    let share = match part.connections {
        all if all == total => String::new(),
        some => format!(", {}", percent(some, total)),
    };
    let _ = write!(
        out,
        "## Cause {place}: {} ({}{share})\n\n{}.",
        text(part.cause.as_str()),
        plural(part.connections, "connection"),
        text(&capital(&cause_title(part))),
    );
    for sentence in part.sentences() {
        let _ = write!(out, " {}", text(&sentence));
    }
    let _ = write!(
        out,
        "\n\nFor example: {} (event {})\n\n",
        text(part.message.as_str()),
        code(part.event_id.as_str())
    );
    for line in &part.evidence {
        let mark = if line.root { "  **← root cause**" } else { "" };
        let at = line.at.format("%H:%M:%S.%3f");
        let _ = writeln!(out, "- {at}  {}{mark}", text(line.text.as_str()));
    }
    for (index, it) in part.fixes.iter().enumerate() {
        fix(out, index + 1, it, part.connections);
    }
    if let Some(command) = part.plan() {
        let command = code(&command);
        let _ = writeln!(
            out,
            "\nOn the host, {command} computes this plan from the current values, and can apply and undo \
             node-level fixes."
        );
    }
    if !part.not_fixes.is_empty() {
        out.push_str("\n### What does not help\n\n");
        for it in &part.not_fixes {
            let (what, because) = (text(it.what.as_str()), text(it.because.as_str()));
            let _ = writeln!(out, "- {what}: {because}");
        }
    }
    if !part.ruled_out.is_empty() {
        out.push_str("\n### Ruled out\n\n");
        for it in &part.ruled_out {
            let _ = writeln!(
                out,
                "- {}: {}",
                bold(it.cause.as_str()),
                text(&it.reason(part.connections))
            );
        }
    }
    if !part.proves.is_empty() {
        out.push_str("\n### What would confirm it\n\n");
        for it in part.proves.iter().take(3) {
            let _ = writeln!(out, "- {}", text(it.text.as_str()));
        }
    }
    if !part.verify.is_empty() {
        out.push_str("\n### Verify the fix\n\n");
        for query in &part.verify {
            let _ = writeln!(out, "{}, expected: {}\n", query.with, query.expected);
            out.push_str(&fenced([query.query.as_str()]));
            out.push('\n');
        }
    } else {
        out.push('\n');
    }
}

fn fix(out: &mut String, place: usize, part: &FixPart, total: u64) {
    let fix = &part.fix;
    let _ = write!(
        out,
        "\n### Fix {place}, by {}: {}\n\n",
        text(fix.owner.as_str()),
        text(fix.summary.as_str())
    );
    let _ = writeln!(out, "{}", text(&capital(&part.about(total))));
    for advice in &fix.advice {
        let _ = writeln!(out, "\n- {}", text(advice.as_str()));
    }
    let mut lines = |title: &str, lines: &[super::text::Text]| {
        if !lines.is_empty() {
            let _ = write!(out, "\n{title}:\n\n");
            out.push_str(&fenced(lines.iter().map(super::text::Text::as_str)));
        }
    };
    lines("Do", &fix.commands);
    if let Some(file) = &fix.persist {
        lines(&format!("Persist across reboots, in {}", code(file.path.as_str())), &file.text);
    }
    lines("Check that it took effect", &fix.verify);
    lines("Roll back", &fix.undo);
    if fix.undo.is_empty() {
        let _ = writeln!(out, "\n{}", part.without_undo());
    }
}

fn counters(out: &mut String, report: &Report) {
    let Some(counters) = &report.counters else {
        return;
    };
    out.push_str("## Counters before and after\n\n");
    let changed: Vec<_> = counters.iter().filter(|it| !it.changed.is_empty()).collect();
    if changed.is_empty() {
        out.push_str("No counter that rsttrace reads changed between two readings.\n\n");
    } else {
        out.push_str("| where | counter | before | after | change | read at |\n");
        out.push_str("|---|---|--:|--:|--:|---|\n");
        let rows = changed.iter().flat_map(|it| it.changed.iter().map(move |row| (it, row)));
        for (it, row) in rows.clone().take(ROWS) {
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} | {} | {} and {} |",
                text(it.place.as_str()),
                text(row.name),
                row.before,
                row.after,
                row.change(),
                it.before.format("%H:%M:%S"),
                it.after.format("%H:%M:%S"),
            );
        }
        left_out(out, rows.count());
        out.push('\n');
    }
    for line in report.fill_lines() {
        let _ = writeln!(out, "- {}", text(&line));
    }
    if !report.conntrack_fill.is_empty() {
        out.push('\n');
    }
}

fn unseen(out: &mut String, report: &Report) {
    out.push_str("## What could not be seen\n\n");
    for line in report.unseen_lines() {
        let _ = writeln!(out, "- {}", text(&line));
    }
    out.push('\n');
}

fn broken(out: &mut String, report: &Report) {
    if report.broken.is_empty() {
        return;
    }
    out.push_str("## Broken connections\n\n");
    out.push_str("| time (UTC) | cause | connection | client | idle | event |\n");
    out.push_str("|---|---|---|---|--:|---|\n");
    for it in report.broken.iter().take(LISTED) {
        let _ = writeln!(
            out,
            "| {} | {} | {} → {} | {} | {} | {} |",
            it.at.format("%F %H:%M:%S.%3f"),
            text(it.cause.as_str()),
            it.source,
            it.destination,
            it.client.as_ref().map_or_else(|| "-".into(), |it| text(it.as_str())),
            it.idle_s.map_or_else(|| "-".into(), seconds),
            text(it.event_id.as_str()),
        );
    }
    let more = report.connections.saturating_sub(LISTED as u64);
    if more > 0 {
        let _ = writeln!(out, "\n{} more: see `-o html` or `-o json`.", plural(more, "connection"));
    }
}
