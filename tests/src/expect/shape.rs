//! The contract for every incident, independent of its cause.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::family_of;
use crate::tracer::Record;

const LINE_LIMIT: usize = 12 * 1024;
/// An incident must be printed within this time after it opened, also on a busy guest.
const PRINTED_WITHIN: Duration = Duration::from_secs(10);

pub fn text<'a>(value: &'a Value, path: &str) -> Result<&'a str> {
    let found = value.pointer(path).with_context(|| format!("no {}", dotted(path)))?;
    found.as_str().with_context(|| format!("{} is {found}, not text", dotted(path)))
}

/// A JSON pointer with dots: `/rsttrace/cause` as `rsttrace.cause`.
pub fn dotted(path: &str) -> String {
    path.trim_start_matches('/').replace('/', ".")
}

/// The time from the opening of an incident until it was printed.
pub fn delay(record: &Record) -> Result<Duration> {
    let opened = text(&record.value, "/@timestamp")?;
    let opened = parse_timestamp(opened).with_context(|| format!("@timestamp is {opened:?}"))?;
    Ok(record.arrived.duration_since(opened).unwrap_or_default())
}

pub fn check(record: &Record) -> Result<()> {
    let incident = &record.value;
    ensure!(record.line.len() < LINE_LIMIT, "a line of {} bytes", record.line.len());
    let first_key = incident.as_object().and_then(|object| object.keys().next());
    ensure!(first_key.is_some_and(|key| key == "@timestamp"), "@timestamp is not the first key");
    if let Some(path) = null_in(incident) {
        bail!("{path} is null, not absent");
    }

    let delay = delay(record)?;
    ensure!(delay <= PRINTED_WITHIN, "printed {delay:.1?} after it opened");

    let cause = text(incident, "/rsttrace/cause")?;
    let family = family_of(cause).with_context(|| format!("{cause} is not a known cause"))?;
    same(incident, "/rsttrace/family", family)?;
    same(incident, "/event/reason", cause)?;
    same(incident, "/event/module", "rsttrace")?;
    same(incident, "/event/id", text(incident, "/event_id")?)?;
    same(incident, "/level", level_of(family))?;
    same(incident, "/network/transport", "tcp")?;
    let v6 = text(incident, "/source/ip")?.contains(':');
    same(incident, "/network/type", if v6 { "ipv6" } else { "ipv4" })?;
    ensure!(text(incident, "/rsttrace/schema")?.starts_with("1."), "the schema is not 1.x");
    ensure!(!text(incident, "/message")?.is_empty(), "an empty message");

    check_confidence(incident, cause, family)?;
    ensure!(!list(incident, "evidence").is_empty(), "no evidence");
    if !matches!(family, "benign" | "unknown" | "remote") {
        ensure!(!list(incident, "fixes").is_empty(), "no fixes");
    }
    let lost = incident.pointer("/rsttrace/lost_events").and_then(Value::as_u64);
    ensure!(
        lost == Some(0),
        "lost_events is {}",
        lost.map_or_else(|| "absent".into(), |n| n.to_string())
    );
    Ok(())
}

fn check_confidence(incident: &Value, cause: &str, family: &str) -> Result<()> {
    let confidence = incident.pointer("/rsttrace/confidence").and_then(Value::as_str);
    match (cause, confidence) {
        ("unknown", None) => {}
        ("unknown", Some(confidence)) => bail!("unknown with the confidence {confidence}"),
        (_, None) => bail!("{cause} without a confidence"),
        ("middlebox_idle_timeout" | "peer_state_lost", Some(confidence)) => {
            ensure!(confidence == "inferred", "{cause} can only be inferred, not {confidence}");
        }
        ("nat_port_exhausted" | "syncookie_failed", Some("observed")) => {
            bail!("{cause} can at most be correlated");
        }
        (_, Some("observed" | "correlated" | "inferred")) => {}
        (_, Some(confidence)) => bail!("the confidence {confidence:?} does not exist"),
    }
    if confidence == Some("inferred") || matches!(family, "remote" | "unknown") {
        let prove = incident.pointer("/rsttrace/prove");
        ensure!(prove.is_some(), "{cause} without rsttrace.prove");
    }
    Ok(())
}

pub fn same(incident: &Value, path: &str, wanted: &str) -> Result<()> {
    let found = text(incident, path)?;
    ensure!(found == wanted, "{} is {found}, not {wanted}", dotted(path));
    Ok(())
}

pub fn list<'a>(incident: &'a Value, key: &str) -> &'a [Value] {
    incident["rsttrace"][key].as_array().map_or(&[], Vec::as_slice)
}

fn level_of(family: &str) -> &'static str {
    match family {
        "benign" => "info",
        "application" | "remote" | "unknown" => "warn",
        "capacity" => "critical",
        _ => "error",
    }
}

fn null_in(value: &Value) -> Option<String> {
    let below = |key: String, inner: &Value| {
        null_in(inner).map(
            |path| {
                if path.is_empty() { key.clone() } else { format!("{key}.{path}") }
            },
        )
    };
    match value {
        Value::Null => Some(String::new()),
        Value::Object(object) => object.iter().find_map(|(key, inner)| below(key.clone(), inner)),
        Value::Array(array) => {
            array.iter().enumerate().find_map(|(index, inner)| below(index.to_string(), inner))
        }
        _ => None,
    }
}

/// RFC 3339 in UTC with nine digits: `2026-11-21T03:21:44.102345678Z`.
fn parse_timestamp(text: &str) -> Option<SystemTime> {
    let bytes = text.as_bytes();
    let punctuation =
        [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':'), (19, b'.'), (29, b'Z')];
    if bytes.len() != 30 || punctuation.iter().any(|&(at, wanted)| bytes[at] != wanted) {
        return None;
    }
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<u64>().ok();
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let nanoseconds = u32::try_from(number(20, 29)?).ok()?;
    if !(1970..).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Days since 1970, counting years from March so that the leap day comes last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days =
        365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    let seconds = days * 86_400 + hour * 3_600 + minute * 60 + second;
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_read_to_the_nanosecond() {
        for (text, seconds, nanoseconds) in [
            ("1970-01-01T00:00:00.000000001Z", 0, 1),
            ("2000-02-29T12:00:00.000000000Z", 951_825_600, 0),
            ("2026-11-21T03:21:44.102345678Z", 1_795_231_304, 102_345_678),
        ] {
            let wanted = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds);
            assert_eq!(parse_timestamp(text), Some(wanted), "{text}");
        }
    }

    #[test]
    fn other_formats_of_timestamps_are_rejected() {
        for text in [
            "2026-11-21T03:21:44Z",
            "2026-11-21T03:21:44.102Z",
            "2026-11-21T03:21:44.102345678+00:00",
            "2026-13-21T03:21:44.102345678Z",
            "2026-11-21 03:21:44.102345678Z",
        ] {
            assert_eq!(parse_timestamp(text), None, "{text}");
        }
    }
}
