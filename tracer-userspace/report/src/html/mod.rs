//! The report as one HTML file. It has no scripts and loads nothing, and its Content-Security-Policy forbids
//! both.

use maud::{DOCTYPE, Markup, PreEscaped, Render, html};
use tables::{broken, counters, impact};

use super::{
    chart::{self, Chart},
    format::{capital, joined, joined_of, percent, plural, span},
    model::{CausePart, FixPart, Report},
    summary::{cause_title, summary},
    text::Text,
};

mod tables;

const STYLE: &str = include_str!("style.css");

/// What a browser may load and run for the page, in case anything gets past the escaping.
const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

impl Render for Text {
    fn render_to(&self, buffer: &mut String) {
        self.as_str().render_to(buffer);
    }
}

/// Renders the whole page.
pub fn render(report: &Report) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="color-scheme" content="light dark";
                title { "rsttrace: " (report.headline) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { (report.headline) "." }
                    // The table below lists the other causes.
                    p.lead { (summary(report, 1)) }
                    (facts(report))
                }
                (first_answers(report))
                (charts(report))
                @for (place, part) in report.causes.iter().enumerate() {
                    (cause(place, part, report.connections))
                }
                (timeline(report))
                (impact(report))
                (counters(report))
                section {
                    h2 { "What could not be seen" }
                    ul { @for line in report.unseen_lines() { li { (line) } } }
                }
                (broken(report))
                footer { "rsttrace " (report.rsttrace) " · all times are UTC" }
            }
        }
    };
    page.into_string()
}

fn facts(report: &Report) -> Markup {
    html! {
        p.facts {
            span { "from " code { (report.file) } " (" (report.input) ")" }
            @if !report.hosts.is_empty() {
                span {
                    "host "
                    @for (place, host) in report.hosts.iter().take(5).enumerate() {
                        @if place > 0 { ", " }
                        code { (host) }
                    }
                    @for kernel in report.kernels.iter().take(3) { ", kernel " (kernel) }
                }
            }
            @if let Some(extent) = report.extent {
                span {
                    (extent.first.full()) " to " (extent.last.full()) " UTC (" (span(extent.long())) ")"
                }
            }
            @if let Some(selected) = report.selected() { span { b { (selected) } } }
            span { (report.counted()) }
        }
    }
}

/// Count, cause, clients and first fix of the causes that broke the most connections.
fn first_answers(report: &Report) -> Markup {
    html! {
        @if !report.causes.is_empty() {
            table.answers {
                thead { tr { th { "broken" } th { "why" } th { "who" } th { "what to do" } } }
                tbody {
                    @for (place, part) in report.causes.iter().enumerate().take(5) {
                        tr {
                            td data-name="broken" {
                                span.count { (part.connections) }
                                " " small { (percent(part.connections, report.connections)) }
                            }
                            td data-name="why" {
                                a href=(format!("#cause-{place}")) class=(colour(place)) { (part.cause) }
                                br; (cause_title(part))
                            }
                            td data-name="who" {
                                @if !part.clients.is_empty() { b { (joined_of(&part.clients, part.connections, 3)) } br; }
                                "→ " (to(part))
                            }
                            td data-name="what to do" {
                                @if let Some(fix) = part.fixes.first() {
                                    span.owner { (fix.fix.owner) } " " (fix.fix.summary)
                                } @else { "no fix listed" }
                            }
                        }
                    }
                }
            }
            @if let Some(more) = report.causes.len().checked_sub(5).filter(|more| *more > 0) {
                p { (plural(more as u64, "further cause")) " below." }
            }
        }
    }
}

/// The CSS classes of a cause's colour.
fn colour(place: usize) -> &'static str {
    ["key c0", "key c1", "key c2", "key c3", "key c4"].get(place).copied().unwrap_or("key cx")
}

fn to(part: &CausePart) -> Markup {
    html! {
        @for (place, it) in part.services.iter().take(2).enumerate() {
            @if place > 0 { ", " }
            (it.address)
        }
        @if let Some(more) = part.services.len().checked_sub(2).filter(|more| *more > 0) {
            " and " (plural(more as u64, "other"))
        }
        @if !part.servers.is_empty() { " (" (joined(&part.servers, 2)) ")" }
    }
}

fn charts(report: &Report) -> Markup {
    let all: Vec<Chart> = [chart::over_time(report), chart::idle(report), chart::fill(report)]
        .into_iter()
        .flatten()
        .collect();
    html! {
        @if !all.is_empty() {
            section.charts {
                @for chart in &all {
                    figure {
                        h3 { (chart.title) }
                        ul.legend {
                            @for (class, name) in &chart.legend { li class=(format!("key {class}")) { (name) } }
                        }
                        (chart.drawing)
                        figcaption { (capital(&chart.caption)) }
                    }
                }
            }
        }
    }
}

fn cause(place: usize, part: &CausePart, total: u64) -> Markup {
    html! {
        section.cause id=(format!("cause-{place}")) {
            h2 class=(colour(place)) {
                (part.cause) ": " (plural(part.connections, "connection"))
                @if part.connections < total { ", " (percent(part.connections, total)) }
            }
            p { (capital(&cause_title(part))) "." @for sentence in part.sentences() { " " (sentence) } }
            h3 { "Evidence" }
            p { "For example: " (part.message) " " small { "event " code { (part.event_id) } } }
            ol.chain {
                @for line in &part.evidence {
                    li.root[line.root] {
                        time { (line.at.format("%H:%M:%S.%3f")) } " "
                        span { (line.text) @if line.root { " " b { "← root cause" } } }
                    }
                }
            }
            @for (index, it) in part.fixes.iter().enumerate() { (fix(index + 1, it, part.connections)) }
            @if let Some(command) = part.plan() {
                p {
                    "On the host, " code { (command) } " computes this plan from the current values, and \
                     can apply and undo node-level fixes."
                }
            }
            @if !part.not_fixes.is_empty() {
                h3 { "What does not help" }
                ul { @for it in &part.not_fixes { li { b { (it.what) } ": " (it.because) } } }
            }
            @if !part.ruled_out.is_empty() {
                h3 { "Ruled out" }
                ul {
                    @for it in &part.ruled_out {
                        li { b { (it.cause) } ": " (it.reason(part.connections)) }
                    }
                }
            }
            @if !part.proves.is_empty() {
                h3 { "What would confirm it" }
                ul { @for it in part.proves.iter().take(3) { li { (it.text) } } }
            }
            @if !part.verify.is_empty() {
                h3 { "Verify the fix" }
                dl.lines {
                    @for query in &part.verify {
                        dt { (query.with) }
                        dd { pre { (query.query) } "Expected: " (query.expected) }
                    }
                }
            }
        }
    }
}

fn fix(place: usize, part: &FixPart, total: u64) -> Markup {
    let fix = &part.fix;
    let lines = |name: Markup, lines: &[Text]| {
        html! {
            @if !lines.is_empty() {
                dt { (name) }
                dd {
                    pre { @for (place, line) in lines.iter().enumerate() { @if place > 0 { "\n" } (line) } }
                }
            }
        }
    };
    html! {
        div.fix {
            h3 { "Fix " (place) " " span.owner { (fix.owner) } " " (capital(fix.summary.as_str())) }
            p { (capital(&part.about(total))) }
            @for advice in &fix.advice { p { (advice.as_str()) "." } }
            dl.lines {
                (lines(html! { "Do" }, &fix.commands))
                @if let Some(file) = &fix.persist {
                    (lines(html! { "Persist across reboots, in " code { (file.path) } }, &file.text))
                }
                (lines(html! { "Check that it took effect" }, &fix.verify))
                (lines(html! { "Roll back" }, &fix.undo))
            }
            @if fix.undo.is_empty() { p { small { (part.without_undo()) } } }
        }
    }
}

fn timeline(report: &Report) -> Markup {
    let Some(first) = report.timeline.first().map(|moment| moment.at.format("%F")) else {
        return html! {};
    };
    html! {
        section {
            h2 { "Timeline " small { (first) } }
            ol.chain {
                @for moment in &report.timeline {
                    li.root[moment.root] {
                        time {
                            @if moment.at.format("%F") != first { (moment.at.format("%F ")) }
                            (moment.at.format("%H:%M:%S.%3f"))
                        }
                        " " span { (moment.text) }
                    }
                }
            }
        }
    }
}
