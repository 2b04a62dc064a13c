//! The event as NDJSON: ECS names, schema 1.x, one line below 12 KiB.
//!
//! Beyond the fields that every schema 1.0 has, an event may carry these:
//!
//! * `rsttrace.process_of`: the end (`source`, `destination`) whose process `process`, `container` and
//!   `k8s` are.
//! * `rsttrace.process_by`: how that process was found: `descriptor` (it holds the socket), `connect` (it
//!   made the connection), `close` (it closed it), `listener` (it listens where it was accepted).
//! * `rsttrace.peer`: `process`, `process_by`, `container` and `k8s` of the other end, where that is on this
//!   host, too.
//! * `k8s.pod.uid`: the pod's UUID as in its control group, or 32 hexadecimal digits of a static pod. Without
//!   names where the node's files tell none.
//! * `rsttrace.community_id_nat`: the community id of the translated tuple.
//! * `truncated`: `true` when lists were cut to keep the line short.

use std::net::SocketAddr;

use jiff::Timestamp;
use rsttrace_core::{
    correlator::event_id::summary_id,
    fix::Fix,
    incident::Incident,
    summary::Summary,
    verdict::{Family, Finding},
};
use rsttrace_model::{
    errno::errno_name,
    escape::terminal,
    flow::Nanos,
    owner::{Owner, Pod},
};
use serde_json::{Map, Value, json};

/// Container runtimes cut lines at 16 KiB; the contract stays well below.
const MAX_LINE: usize = 12 * 1024;

/// What a shortened line has more than others.
const TRUNCATED: &str = ",\"truncated\":true";

/// RFC 3339 in UTC with nine digits.
pub fn timestamp(wall_ns: i64) -> String {
    Timestamp::from_nanosecond(i128::from(wall_ns))
        .map_or_else(|_| "1970-01-01T00:00:00.000000000Z".into(), |ts| format!("{ts:.9}"))
}

/// A configured time: a whole number where it is one, otherwise to the millisecond.
fn seconds(value: f64) -> Value {
    let rounded = (value * 1000.0).round() / 1000.0;
    if rounded.fract() == 0.0 && rounded.abs() < 1e15 {
        #[expect(clippy::cast_possible_truncation, reason = "checked to be whole and small")]
        Value::from(rounded as i64)
    } else {
        Value::from(rounded)
    }
}

/// What was measured, to the millisecond. Always with a decimal point: an index that derives its type
/// from the first value it sees must not take it for an integer.
fn measured(value: f64) -> Value {
    // Adding zero takes the sign from a zero.
    Value::from((value * 1000.0).round() / 1000.0 + 0.0)
}

/// Text for people, in which a process may have named itself: once out of its JSON string it must not
/// move a cursor. Fields that hold nothing but such a name keep it as it is.
pub fn sentence(text: &str) -> Value {
    terminal(text).into()
}

/// An object without the absent values.
pub fn object<const N: usize>(fields: [(&str, Option<Value>); N]) -> Value {
    fields
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?)))
        .collect::<Map<_, _>>()
        .into()
}

fn list(values: Vec<Value>) -> Option<Value> {
    (!values.is_empty()).then_some(Value::Array(values))
}

fn endpoint(address: SocketAddr, nat: Option<SocketAddr>) -> Value {
    object([
        ("ip", Some(address.ip().to_string().into())),
        ("port", Some(address.port().into())),
        ("nat", nat.map(|nat| json!({"ip": nat.ip().to_string(), "port": nat.port()}))),
    ])
}

/// Protocol number of TCP, for the Community ID.
const IPPROTO_TCP: u8 = 6;

/// The flow hash that other tools use too; `None` for a mixed pair of address families.
fn community_id(source: SocketAddr, destination: SocketAddr) -> Option<String> {
    if source.is_ipv4() != destination.is_ipv4() {
        return None;
    }
    community_id::calculate_community_id(
        0,
        source.ip(),
        destination.ip(),
        Some(source.port()),
        Some(destination.port()),
        IPPROTO_TCP,
        Default::default(),
    )
    .ok()
}

#[expect(clippy::cast_precision_loss, reason = "seconds for people")]
fn age_s(opened: Nanos, ts: Nanos) -> Value {
    measured((opened as f64 - ts as f64) / 1e9)
}

fn finding(opened: Nanos, finding: &Finding) -> Value {
    json!({"kind": finding.kind, "age_s": age_s(opened, finding.ts), "summary": sentence(&finding.summary)})
}

pub fn strings(values: Vec<String>) -> Option<Value> {
    list(values.into_iter().map(Value::from).collect())
}

/// A fix with its commands.
pub fn fix(fix: &Fix) -> Value {
    object([
        ("id", Some(fix.id.into())),
        ("owner", Some(fix.owner.id().into())),
        ("risk", Some(fix.risk.id().into())),
        ("summary", Some(sentence(&fix.summary))),
        ("reason", Some(fix.reason.clone().into())),
        ("current", fix.current.clone().map(Value::from)),
        ("wanted", fix.wanted.clone().map(Value::from)),
        ("commands", strings(fix.commands())),
        ("advice", strings(fix.advice())),
        ("persist", fix.persist().map(|file| json!({"path": file.path, "text": file.text}))),
        ("verify", strings(fix.verify())),
        ("undo", strings(fix.undo())),
    ])
}

fn process(owner: &Owner) -> Value {
    json!({"pid": owner.pid, "name": owner.comm})
}

fn container(owner: &Owner) -> Option<Value> {
    owner.container_id.as_ref().map(|id| json!({ "id": id }))
}

/// The pod by the names that Elastic's Kubernetes module uses.
fn k8s(owner: &Owner) -> Option<Value> {
    let Pod { uid, name, namespace } = owner.pod.as_ref()?;
    let text = |value: &Option<String>| value.clone().map(Value::from);
    Some(object([
        ("pod", Some(object([("name", text(name)), ("uid", text(uid))]))),
        ("namespace", namespace.as_ref().map(|name| json!({ "name": name }))),
    ]))
}

fn verdict(incident: &Incident) -> Value {
    let nat_source = incident.source_nat.unwrap_or(incident.source);
    let nat_destination = incident.destination_nat.unwrap_or(incident.destination);
    let behind_nat = incident.source_nat.is_some() || incident.destination_nat.is_some();
    object([
        ("schema", Some("1.0".into())),
        ("cause", Some(incident.cause.id.into())),
        ("family", Some(incident.cause.family.id().into())),
        ("confidence", incident.confidence.map(|confidence| confidence.id().into())),
        ("follows", incident.follows.clone().map(Value::from)),
        ("victim", Some(incident.victim.id().into())),
        ("process_of", incident.owner_side.map(|side| side.id().into())),
        ("process_by", incident.owner.as_ref().map(|owner| owner.by.id().into())),
        (
            "peer",
            incident.peer.as_ref().map(|peer| {
                object([
                    ("process", Some(process(peer))),
                    ("process_by", Some(peer.by.id().into())),
                    ("container", container(peer)),
                    ("k8s", k8s(peer)),
                ])
            }),
        ),
        ("netns", (incident.netns != 0).then(|| incident.netns.into())),
        (
            "community_id_nat",
            behind_nat
                .then(|| community_id(nat_source, nat_destination))
                .flatten()
                .map(Value::from),
        ),
        (
            "rst",
            Some(object([
                ("direction", Some(incident.rst.direction.into())),
                ("origin", incident.rst.origin.map(Value::from)),
                ("reason", incident.rst.reason.clone().map(Value::from)),
            ])),
        ),
        ("idle_s", incident.idle_s.map(measured)),
        (
            "keepalive",
            incident.keepalive.map(|keepalive| {
                json!({
                    "enabled": keepalive.enabled,
                    "time_s": seconds(keepalive.time_s),
                    "intvl_s": seconds(keepalive.intvl_s),
                    "probes": keepalive.probes,
                })
            }),
        ),
        (
            "ipvs",
            incident.ipvs.as_ref().map(|ipvs| {
                object([
                    ("state", ipvs.state.map(Value::from)),
                    ("timeout_s", ipvs.timeout_s.map(seconds)),
                ])
            }),
        ),
        (
            "conntrack",
            incident.conntrack.as_ref().map(|entry| {
                object([
                    ("state", entry.state.map(Value::from)),
                    ("limit", entry.limit.map(Value::from)),
                    ("limit_s", entry.limit_s.map(seconds)),
                    ("deleted_by", entry.deleted_by.clone().map(Value::from)),
                    ("count", entry.count.map(Value::from)),
                    ("max", entry.max.map(Value::from)),
                ])
            }),
        ),
        (
            "evidence",
            Some(incident.evidence.iter().map(|it| finding(incident.opened, it)).collect()),
        ),
        (
            "ruled_out",
            list(
                incident
                    .ruled_out
                    .iter()
                    .map(|it| json!({"cause": it.cause, "because": sentence(&it.because)}))
                    .collect(),
            ),
        ),
        ("fixes", list(incident.fixes.iter().map(fix).collect())),
        (
            "not_fixes",
            list(
                incident
                    .not_fixes
                    .iter()
                    .map(|(what, because)| json!({"what": what, "because": because}))
                    .collect(),
            ),
        ),
        ("blind_spots", strings(incident.blind_spots.clone())),
        ("prove", incident.prove.as_deref().map(sentence)),
        ("lost_events", Some(incident.lost_events.into())),
    ])
}

fn tree(incident: &Incident) -> Value {
    let owner = incident.owner.as_ref();
    let family = if incident.source.is_ipv4() { "ipv4" } else { "ipv6" };
    let outcome = match incident.cause.family {
        Family::Benign => "unknown",
        _ => "failure",
    };
    object([
        ("@timestamp", Some(timestamp(incident.wall_ns).into())),
        ("level", Some(incident.level().into())),
        ("message", Some(sentence(&incident.message()))),
        ("event_id", Some(incident.event_id.clone().into())),
        ("ecs", Some(json!({"version": "8.11.0"}))),
        (
            "event",
            Some(json!({
                "id": incident.event_id,
                "kind": "event",
                "category": ["network"],
                "type": ["connection", "end"],
                "module": "rsttrace",
                "dataset": "rsttrace.incident",
                "action": incident.action.id(),
                "outcome": outcome,
                "reason": incident.cause.id,
                "sequence": incident.sequence,
            })),
        ),
        ("error", incident.errno.and_then(errno_name).map(|code| json!({ "code": code }))),
        ("source", Some(endpoint(incident.source, incident.source_nat))),
        ("destination", Some(endpoint(incident.destination, incident.destination_nat))),
        (
            "network",
            Some(object([
                ("transport", Some("tcp".into())),
                ("type", Some(family.into())),
                (
                    "community_id",
                    community_id(incident.source, incident.destination).map(Value::from),
                ),
            ])),
        ),
        ("process", owner.map(process)),
        ("container", owner.and_then(container)),
        ("k8s", owner.and_then(k8s)),
        ("host", Some(json!({"name": incident.hostname}))),
        ("rsttrace", Some(verdict(incident))),
    ])
}

/// One line for one incident, without the line end.
pub fn incident(incident: &Incident) -> String {
    let mut tree = tree(incident);
    let mut line = tree.to_string();
    // What a reader misses least goes first; the best fix and what convinced the verdict stay.
    for (key, keep) in
        [("blind_spots", 0), ("ruled_out", 0), ("not_fixes", 0), ("evidence", 1), ("fixes", 1)]
    {
        if line.len() < MAX_LINE {
            break;
        }
        // The mark needs room as well.
        let excess = line.len() + TRUNCATED.len() + 1 - MAX_LINE;
        if let Some(verdict) = tree.get_mut("rsttrace").and_then(Value::as_object_mut) {
            shorten(verdict, key, keep, excess);
            verdict.insert("truncated".into(), true.into());
        }
        line = tree.to_string();
    }
    line
}

/// Drops trailing items of an array until `excess` bytes are saved or only `keep` are left.
fn shorten(verdict: &mut Map<String, Value>, key: &str, keep: usize, excess: usize) {
    let Some(items) = verdict.get_mut(key).and_then(Value::as_array_mut) else {
        return;
    };
    let mut saved = 0;
    while saved < excess && items.len() > keep {
        // One more for the comma.
        saved += items.pop().map_or(0, |item| item.to_string().len() + 1);
    }
    if items.is_empty() {
        verdict.shift_remove(key);
    }
}

/// The same, indented for reading.
pub fn pretty(line: &str) -> String {
    serde_json::from_str::<Value>(line)
        .and_then(|value| serde_json::to_string_pretty(&value))
        .unwrap_or_else(|_| line.to_owned())
}

/// One line with what was counted so far.
pub fn summary(summary: &Summary, wall_ns: i64) -> String {
    let counts = |list: &std::collections::BTreeMap<&'static str, u64>| {
        list.iter()
            .map(|(cause, count)| json!({"cause": cause, "count": count}))
            .collect::<Vec<_>>()
    };
    let id = summary_id(&summary.boot_id, wall_ns);
    json!({
        "@timestamp": timestamp(wall_ns),
        "level": "info",
        "message": rsttrace_core::summary::summary_text(summary),
        "event_id": id,
        "ecs": {"version": "8.11.0"},
        "event": {
            "id": id,
            "kind": "metric", "category": ["network"], "type": ["info"],
            "module": "rsttrace", "dataset": "rsttrace.summary",
        },
        "host": {"name": summary.hostname},
        "rsttrace": {
            "schema": "1.0",
            "summary": {
                "incidents": counts(&summary.incidents),
                "benign": counts(&summary.benign),
                "absorbed": summary.counters.absorbed,
                "forgotten": summary.counters.evicted,
                "unreadable": summary.unreadable,
            },
            "lost_events": summary.counters.lost,
        },
    })
    .to_string()
}

#[cfg(test)]
mod tests;
