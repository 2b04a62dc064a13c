//! The text and the JSON of `rsttrace check`.

use rsttrace_check::{
    Audit, CheckFinding, Rank,
    path::{Hop, Path},
};
use rsttrace_core::fix::Fix;
use rsttrace_model::host_state::NotRead;
use rsttrace_schema::{
    check::{self as schema, Line},
    text::sentence,
};

use super::page::{Page, Style};

/// Margin of the lines of a finding.
const HANG: &str = "             ";

/// Human-readable text, the most severe finding first.
pub fn text(audit: &Audit<'_>, wide: bool, color: bool, width: usize) -> String {
    let mut page = Page::new(color, width);
    heading(&mut page, audit);
    if let Some(path) = audit.path {
        hops(&mut page, path, width);
    }
    let mut before = None;
    for finding in audit.findings {
        // Info findings follow each other without a blank line.
        if wide || finding.rank > Rank::Info || before != Some(finding.rank) {
            page.blank();
        }
        finding_text(&mut page, finding, wide);
        before = Some(finding.rank);
    }
    not_read(&mut page, audit, wide);
    page.finish().unwrap_or_default()
}

fn heading(page: &mut Page, audit: &Audit<'_>) {
    let machine = &audit.state.machine;
    let ram = machine.ram_bytes.map_or(String::new(), |bytes| {
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let gib = bytes as f64 / f64::from(1 << 30);
        format!(", {gib:.1} GiB")
    });
    let count = audit.state.namespaces.len();
    let about = format!(
        "kernel {}, {} CPU{}{ram}, {count} network namespace{}:",
        machine.release,
        machine.cpus,
        if machine.cpus == 1 { "" } else { "s" },
        if count == 1 { "" } else { "s" },
    );
    let (style, result) = result(audit.findings, audit.state.not_read.is_empty());
    page.paragraph(
        &[(Style::Bold, "rsttrace check")],
        HANG,
        &[(Style::Dim, ""), (Style::Dim, &about), (style, &result)],
    );
}

/// Every idle limit on a path, the shortest marked.
fn hops(page: &mut Page, path: &Path, width: usize) {
    let widest = |of: &dyn Fn(&Hop) -> usize, title: &str| {
        path.hops.iter().map(of).max().unwrap_or(0).max(title.len())
    };
    let what = widest(&|hop| hop.what.chars().count().min(MOST_COLUMNS), "HOP");
    let limit = widest(&|hop| hop.limit.chars().count() + MARK.chars().count(), "IDLE LIMIT");
    let owner = widest(&|hop| hop.owner.len(), "OWNER");
    let hang = " ".repeat(2 + what + 2 + limit + 2 + owner + 2);
    let words = path.hops.iter().flat_map(|hop| hop.source.split_whitespace());
    let longest = words.map(|word| word.chars().count()).max().unwrap_or(0);
    // If the longest word of a source does not fit beside the columns, sources get lines of their own.
    let beside = hang.len() + longest <= width;
    page.blank();
    page.paragraph(&[(Style::Bold, "PATH "), (Style::Plain, &path.name)], "", &[]);
    let title = format!("  {:what$}  {:limit$}  {:owner$}  ", "HOP", "IDLE LIMIT", "OWNER");
    let source = if beside { "SOURCE" } else { "" };
    page.paragraph(&[(Style::Dim, &title)], &hang, &[(Style::Dim, source)]);
    for (at, hop) in path.hops.iter().enumerate() {
        let is_least = path.least == Some(at);
        let mark = if is_least { MARK } else { "" };
        let value = format!("{}{mark}", hop.limit);
        let style = if is_least { Style::Red } else { Style::Plain };
        page.paragraph(
            &[
                (Style::Plain, &format!("  {:what$}  ", hop.what)),
                (style, &format!("{value:limit$}  ")),
                (Style::Plain, &format!("{:owner$}  ", hop.owner)),
            ],
            &hang,
            &[(Style::Dim, if beside { &hop.source } else { "" })],
        );
        if !beside {
            page.paragraph(&[(Style::Plain, "    ")], "    ", &[(Style::Dim, &hop.source)]);
        }
    }
}

/// Behind the shortest limit.
const MARK: &str = "  ◄ min";

/// Most columns for the name of a hop; a longer name shifts the rest of its line.
const MOST_COLUMNS: usize = 44;

/// The result in a few words, for the first line.
fn result(findings: &[CheckFinding], is_complete: bool) -> (Style, String) {
    let count = |rank| findings.iter().filter(|finding| finding.rank == rank).count();
    let breaks = findings.iter().filter(|finding| finding.rank == Rank::Break);
    let first = breaks.filter_map(|finding| finding.after_s).min();
    match (first, count(Rank::Break), count(Rank::Warn)) {
        (Some(0), ..) => (Style::Red, "BREAKS NOW".into()),
        (Some(seconds), ..) => (Style::Red, format!("WILL BREAK after {seconds} s idle")),
        (None, 1.., _) => (Style::Red, "WILL BREAK".into()),
        (None, 0, 0) if is_complete => (Style::Green, "nothing will break".into()),
        (None, 0, 0) => (Style::Plain, "no problem found, but not everything could be read".into()),
        (None, 0, 1) => (Style::Yellow, "1 warning".into()),
        (None, 0, warnings) => (Style::Yellow, format!("{warnings} warnings")),
    }
}

fn finding_text(page: &mut Page, finding: &CheckFinding, wide: bool) {
    let (label, style) = match finding.rank {
        Rank::Break => ("BREAK", Style::Red),
        Rank::Warn => ("WARN", Style::Yellow),
        Rank::Info => ("INFO", Style::Dim),
    };
    let about = finding.cause.map_or(String::new(), |cause| format!(" ({cause})"));
    page.labelled(label, style, &format!("{}{about}", finding.reason));
    if finding.rank == Rank::Info && !wide {
        return;
    }
    for (index, connection) in finding.connections.iter().enumerate() {
        page.labelled(if index == 0 { "CONNECTION" } else { "" }, Style::Plain, connection);
    }
    if !finding.formula.is_empty() {
        page.labelled("RULE", Style::Dim, &finding.formula);
    }
    if !finding.source.is_empty() {
        page.labelled("SOURCE", Style::Dim, &finding.source);
    }
    let shown = if wide { finding.fixes.len() } else { 1 };
    for (index, it) in finding.fixes.iter().take(shown).enumerate() {
        fix_text(page, index + 1, it, wide);
    }
    if finding.fixes.len() > shown {
        let others: Vec<_> = finding.fixes[shown..]
            .iter()
            .map(|it| format!("[{}] {}", it.owner.id(), it.summary))
            .collect();
        page.labelled("or", Style::Dim, &others.join("; or "));
    }
}

fn fix_text(page: &mut Page, number: usize, fix: &Fix, wide: bool) {
    let text = format!("[{}] {}", fix.owner.id(), fix.summary);
    page.labelled(&format!("FIX {number}"), Style::Green, &text);
    for command in fix.commands() {
        page.verbatim(HANG, &command);
    }
    if wide {
        for advice in fix.advice() {
            page.labelled("  how", Style::Dim, &advice);
        }
        page.labelled("  why", Style::Dim, &fix.reason);
        if let Some(file) = fix.persist() {
            page.labelled("  persist", Style::Dim, &file.path);
            for line in file.text.lines() {
                page.verbatim(HANG, line);
            }
        }
        for line in fix.undo() {
            page.labelled("  undo", Style::Dim, &line);
        }
    }
}

fn not_read(page: &mut Page, audit: &Audit<'_>, wide: bool) {
    let list = &audit.state.not_read;
    if list.is_empty() {
        return;
    }
    page.blank();
    let shown = if wide { list.len() } else { list.len().min(6) };
    for it in &list[..shown] {
        page.labelled("NOT READ", Style::Dim, &format!("{}: {}", it.what, it.why));
    }
    if list.len() > shown {
        let more = format!("and {} more (-o wide)", list.len() - shown);
        page.labelled("", Style::Dim, &more);
    }
}

/// One object for each finding, and a summary last.
pub fn json(audit: &Audit<'_>) -> impl Iterator<Item = Line> {
    let findings = audit.findings.iter().map(|it| Line::Finding(Box::new(finding(it))));
    findings.chain([Line::Summary(Box::new(summary(audit)))])
}

fn finding(finding: &CheckFinding) -> schema::Finding {
    let unless_empty = |text: &str| (!text.is_empty()).then(|| sentence(text));
    schema::Finding {
        dataset: "rsttrace.finding",
        rank: finding.rank.id(),
        rule: finding.rule,
        cause: finding.cause,
        netns: finding.place.netns,
        place: sentence(&finding.place.describe()),
        reason: sentence(&finding.reason),
        after_s: finding.after_s,
        formula: unless_empty(&finding.formula),
        owner: finding.owner.id(),
        source: unless_empty(&finding.source),
        connections: finding.connections.iter().map(|text| sentence(text)).collect(),
        fixes: finding.fixes.iter().map(rsttrace_schema::fix::Fix::from).collect(),
    }
}

fn hop(hop: &Hop) -> schema::Hop {
    schema::Hop {
        what: sentence(&hop.what),
        limit: sentence(&hop.limit),
        idle_s: hop.idle_s,
        owner: hop.owner.clone(),
        source: sentence(&hop.source),
    }
}

fn summary(audit: &Audit<'_>) -> schema::Summary {
    let state = audit.state;
    let count = |rank| audit.findings.iter().filter(|finding| finding.rank == rank).count();
    let not_read =
        |it: &NotRead| schema::NotRead { what: sentence(&it.what), why: sentence(&it.why) };
    schema::Summary {
        dataset: "rsttrace.check",
        schema: "1.0",
        kernel: sentence(&state.machine.release),
        cpus: state.machine.cpus,
        ram_bytes: state.machine.ram_bytes,
        netns: state.namespaces.iter().map(|it| it.place.netns).collect(),
        breaks: count(Rank::Break),
        warn: count(Rank::Warn),
        info: count(Rank::Info),
        path: audit.path.map(|path| sentence(&path.name)),
        hops: audit.path.map(|path| path.hops.iter().map(hop).collect()),
        unseen: state.not_read.iter().map(not_read).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_was_not_read_completely_is_not_reported_as_safe() {
        assert_eq!(result(&[], true), (Style::Green, "nothing will break".into()));
        assert!(result(&[], false).1.contains("not everything could be read"));
    }

    #[test]
    fn no_line_of_a_path_is_wider_than_the_screen() {
        let hop = |what: &str, source: &str| Hop {
            what: what.into(),
            limit: "432000 s".into(),
            idle_s: None,
            owner: "kube-proxy".into(),
            source: source.into(),
            cause: None,
        };
        let path = Path {
            name: "shop/orders → 10.96.12.8:3306".into(),
            hops: vec![
                hop("client sockets", "options of 12 of 12 sockets read"),
                hop(
                    "conntrack in netns node (if on the path)",
                    "net.netfilter.nf_conntrack_tcp_timeout_established = 432000 s: kernel default",
                ),
            ],
            least: Some(1),
            verdict: None,
            netns: Vec::new(),
        };
        for width in [80, 100, 120] {
            let mut page = Page::new(false, width);
            hops(&mut page, &path, width);
            let text = page.finish().expect("something");
            let widest = text.lines().map(|line| line.trim_end().chars().count()).max();
            assert!(widest.is_some_and(|it| it <= width), "{width}:\n{text}");
            assert!(text.contains("nf_conntrack_tcp_timeout_established"), "{text}");
        }
    }
}
