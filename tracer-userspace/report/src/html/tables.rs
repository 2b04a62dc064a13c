//! The tables of the HTML page.

use maud::{Markup, html};

use crate::{
    format::{capital, joined_of, plural, seconds},
    model::{NameCount, Report},
};

/// Rows per table.
const ROWS: usize = 60;

fn cell(list: &[NameCount], connections: u64, most: usize) -> String {
    if list.is_empty() { "–".into() } else { joined_of(list, connections, most) }
}

pub fn impact(report: &Report) -> Markup {
    if report.services.is_empty() {
        return html! {};
    }
    let mut minutes: Vec<_> = report
        .services
        .iter()
        .flat_map(|service| service.minutes.iter().map(|minute| (service.address, minute)))
        .collect();
    minutes.sort_by_key(|(_, minute)| minute.minute);
    html! {
        section {
            h2 { "Impact" }
            div.wide { table {
                thead { tr {
                    th { "service" } th.number { "connections" } th { "clients" } th { "server" }
                    th { "busiest minute" }
                } }
                tbody {
                    @for it in report.services.iter().take(ROWS) {
                        tr {
                            td { (it.address) @if let Some(nat) = it.backends_text() { br; small { "→ " (nat) } } }
                            td.number { (it.connections) }
                            td { (cell(&it.clients, it.connections, 4)) }
                            td { (cell(&it.servers, it.connections, 2)) }
                            td { (it.peak.minute.format("%H:%M")) " (" (it.peak.connections) ")" }
                        }
                    }
                }
            } }
            (left_out(report.services.len()))
            h3 { "By minute" }
            div.wide { table {
                thead { tr { th { "minute" } th { "service" } th { "broken connections" } } }
                tbody {
                    @for (service, minute) in minutes.iter().take(ROWS) {
                        tr {
                            td { (minute.minute.format("%F %H:%M")) }
                            td { (service) }
                            td {
                                @for (place, it) in minute.causes.iter().enumerate() {
                                    @if place > 0 { ", " }
                                    b { (it.count) } " " (it.cause)
                                }
                            }
                        }
                    }
                }
            } }
            (left_out(minutes.len()))
        }
    }
}

fn left_out(rows: usize) -> Markup {
    html! {
        @if let Some(more) = rows.checked_sub(ROWS).filter(|more| *more > 0) {
            p { (plural(more as u64, "row")) " more: see " code { "-o json" } "." }
        }
    }
}

pub fn counters(report: &Report) -> Markup {
    let Some(counters) = &report.counters else {
        return html! {};
    };
    let rows = counters.iter().flat_map(|it| it.changed.iter().map(move |row| (it, row)));
    html! {
        section {
            h2 { "Counters before and after" }
            @if rows.clone().next().is_none() {
                p { "No counter that rsttrace reads changed between two readings." }
            } @else {
                div.wide { table {
                    thead { tr {
                        th { "where" } th { "counter" } th.number { "before" } th.number { "after" }
                        th.number { "change" } th { "read at" }
                    } }
                    tbody {
                        @for (it, row) in rows.clone().take(ROWS) {
                            tr {
                                td { (it.place) }
                                td { code { (row.name) } }
                                td.number { (row.before) }
                                td.number { (row.after) }
                                td.number { b { (row.change()) } }
                                td { (it.before.format("%T")) " and " (it.after.format("%T")) }
                            }
                        }
                    }
                } }
                (left_out(rows.count()))
            }
            ul { @for line in report.fill_lines() { li { (capital(&line)) } } }
        }
    }
}

pub fn broken(report: &Report) -> Markup {
    html! {
        @if !report.broken.is_empty() {
            section {
                details {
                    summary { h2 { "Every broken connection" } }
                    div.wide { table {
                        thead { tr {
                            th { "time" } th { "cause" } th { "connection" } th { "client" }
                            th.number { "idle" } th { "event" }
                        } }
                        tbody {
                            @for it in &report.broken {
                                tr {
                                    td { (it.at.format("%F %H:%M:%S.%3f")) }
                                    td { (it.cause) @if let Some(confidence) = &it.confidence { br; small { (confidence) } } }
                                    td { (it.source) " → " (it.destination) }
                                    td { @if let Some(client) = &it.client { (client) } }
                                    td.number { @if let Some(idle) = it.idle_s { (seconds(idle)) } }
                                    td { code.id { (it.event_id) } }
                                }
                            }
                        }
                    } }
                    @if report.not_listed > 0 {
                        p { (plural(report.not_listed, "connection")) " more: see " code { "rsttrace replay" } "." }
                    }
                }
            }
        }
    }
}
