//! The cause and the connection of an incident. Nothing else is taken from the input, which is untrusted.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read as _, stdin},
    net::{IpAddr, SocketAddr},
    path::Path,
};

use anyhow::{Context as _, anyhow};
use rsttrace_core::causes::{self, cause::Cause, fix_context::FailedConnection};
use rsttrace_model::ipvs;
use serde_json::Value;

use crate::cmd::{Failure, say};

/// Bytes of a line at most; an event is below 12 KiB.
const LONGEST: u64 = 64 * 1024;
/// Damaged lines that are reported one by one.
const NAMED: u64 = 10;

/// What an incident selects.
#[derive(Debug, Default)]
pub struct Selected {
    pub cause: Option<&'static Cause>,
    pub connection: FailedConnection,
    /// The host on which the incident was seen.
    pub host: Option<String>,
}

/// Reads incidents and selects the one with this event_id, or the newest one.
///
/// # Errors
/// [`Failure`] when the file cannot be read, or has no such incident.
pub fn select(file: &Path, event: Option<&str>) -> Result<Selected, Failure> {
    let name = file.display();
    let input: Box<dyn BufRead> = match file.to_str() {
        Some("-") => Box::new(BufReader::new(stdin())),
        _ => Box::new(BufReader::new(
            File::open(file).with_context(|| format!("cannot open {name}"))?,
        )),
    };
    let (found, damaged) = read(input, event).with_context(|| format!("cannot read {name}"))?;
    for fault in &damaged.named {
        say(&format!("rsttrace: {name}: {fault}"));
    }
    if damaged.more > 0 {
        say(&format!("rsttrace: {name}: {} more lines are not valid events", damaged.more));
    }
    found.ok_or_else(|| {
        match event {
            Some(id) => anyhow!("{name} has no incident with event_id `{}`", id.escape_debug()),
            None => anyhow!("{name} has no incident with a known cause"),
        }
        .into()
    })
}

#[derive(Default)]
struct Damaged {
    named: Vec<String>,
    more: u64,
}

fn read(
    mut input: Box<dyn BufRead>,
    event: Option<&str>,
) -> std::io::Result<(Option<Selected>, Damaged)> {
    let (mut newest, mut damaged) = (None::<(String, Selected)>, Damaged::default());
    let mut number = 0_u64;
    loop {
        number += 1;
        let mut line = Vec::new();
        if input.by_ref().take(LONGEST).read_until(b'\n', &mut line)? == 0 {
            return Ok((newest.map(|(_, selected)| selected), damaged));
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let value: Value = match serde_json::from_slice(line.trim_ascii_end()) {
            Ok(value) => value,
            Err(error) => {
                let what = format!("line {number}, column {}: {}", error.column(), reason(&error));
                match (damaged.named.len() as u64) < NAMED {
                    true => damaged.named.push(what),
                    false => damaged.more += 1,
                }
                if !line.ends_with(b"\n") {
                    input.skip_until(b'\n')?;
                }
                continue;
            }
        };
        let Some(selected) = selected(&value) else {
            continue;
        };
        let id = text(&value, "/event_id").unwrap_or_default();
        if event.is_some_and(|wanted| wanted != id) {
            continue;
        }
        // RFC 3339 in UTC with nine digits: text order is time order.
        let at = text(&value, "/@timestamp").unwrap_or_default().to_owned();
        if newest.as_ref().is_none_or(|(newest, _)| *newest <= at) {
            newest = Some((at, selected));
        }
    }
}

/// The error without the position, which serde_json counts within this one line.
fn reason(error: &serde_json::Error) -> String {
    let message = error.to_string();
    message.split(" at line ").next().unwrap_or_default().to_owned()
}

fn text<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer)?.as_str()
}

/// The selection of an incident event; `None` for summaries and for events of other programs.
fn selected(value: &Value) -> Option<Selected> {
    let cause = causes::by_id(text(value, "/rsttrace/cause")?)?;
    let ip = |pointer| text(value, pointer).and_then(|ip| ip.parse::<IpAddr>().ok());
    let port = value.pointer("/destination/port").and_then(Value::as_u64);
    let port = port.and_then(|port| u16::try_from(port).ok());
    let netns = value.pointer("/rsttrace/netns").and_then(Value::as_u64);
    let connection = FailedConnection {
        client: ip("/source/ip"),
        service: ip("/destination/ip").zip(port).map(SocketAddr::from),
        server: ip("/destination/nat/ip"),
        application: netns.and_then(|inum| u32::try_from(inum).ok()),
        keepalive: value.pointer("/rsttrace/keepalive/enabled").and_then(Value::as_bool),
        ipvs_state: text(value, "/rsttrace/ipvs/state").and_then(ipvs::state_by_name),
    };
    let host = text(value, "/host/name").map(str::to_owned);
    Some(Selected { cause: Some(cause), connection, host })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn select(text: &str, event: Option<&str>) -> (Option<Selected>, Damaged) {
        read(Box::new(std::io::Cursor::new(text.to_owned())), event).expect("in memory")
    }

    fn event(id: &str, at: &str, cause: &str) -> String {
        format!(
            "{{\"@timestamp\":\"{at}\",\"event_id\":\"{id}\",\"destination\":{{\"ip\":\"10.96.12.8\",\
             \"port\":3306}},\"host\":{{\"name\":\"node\"}},\"rsttrace\":{{\"cause\":\"{cause}\",\
             \"netns\":4026532541}}}}\n"
        )
    }

    #[test]
    fn the_newest_incident_is_selected_unless_an_id_is_given() {
        let text = event("a", "2026-11-21T03:00:00.000000002Z", "ipvs_idle_expired")
            + &event("b", "2026-11-21T03:00:00.000000001Z", "conntrack_invalid");
        let (newest, _) = select(&text, None);
        let newest = newest.expect("two incidents");
        assert_eq!(newest.cause.map(|cause| cause.id), Some("ipvs_idle_expired"));
        assert_eq!(newest.connection.service, Some("10.96.12.8:3306".parse().expect("an address")));
        assert_eq!(newest.connection.application, Some(4_026_532_541));
        let (by_id, _) = select(&text, Some("b"));
        assert_eq!(by_id.and_then(|it| it.cause).map(|it| it.id), Some("conntrack_invalid"));
        assert!(select(&text, Some("c")).0.is_none());
    }

    #[test]
    fn damaged_lines_are_reported_by_line_and_column_and_the_others_are_read() {
        let text = format!("{}{{\"a\":\n\nnonsense\n", event("a", "2026", "ipvs_idle_expired"));
        let (found, damaged) = select(&text, None);
        assert!(found.is_some());
        assert_eq!(damaged.named.len(), 2);
        assert!(damaged.named[0].starts_with("line 2, column 5: EOF"), "{:?}", damaged.named);
        assert!(damaged.named[1].starts_with("line 4, column 2: "), "{:?}", damaged.named);
    }

    #[test]
    fn a_line_that_is_too_long_is_skipped_without_reading_it_into_memory() {
        let text = "x".repeat(200_000) + "\n" + &event("a", "2026", "ipvs_idle_expired");
        let (found, damaged) = select(&text, None);
        assert!(found.is_some());
        assert_eq!(damaged.named.len(), 1);
    }

    #[test]
    fn unknown_causes_and_summaries_select_nothing() {
        let text =
            event("a", "2026", "$(reboot)") + "{\"event\":{\"dataset\":\"rsttrace.summary\"}}\n";
        let (found, damaged) = select(&text, None);
        assert!(found.is_none());
        assert!(damaged.named.is_empty());
    }
}
