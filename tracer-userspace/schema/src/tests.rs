use rsttrace_core::{
    incident::Side,
    testing::{article, replay},
};
use rsttrace_model::owner::OwnerBy;

use rsttrace_core::{summary::Summary, verdict::Finding};
use rsttrace_model::owner::{Owner, Pod};
use serde_json::{Value, json};

use crate::{
    incident::{MAX_LINE, age_s},
    json::{incident, summary},
    text::{Seconds, measured, timestamp},
};

fn line() -> Value {
    let incidents = replay(article());
    serde_json::from_str(&incident(&incidents[0])).expect("JSON")
}

#[test]
fn the_first_keys_are_those_that_log_agents_need() {
    let incidents = replay(article());
    let text = incident(&incidents[0]);
    let keys = ["{\"@timestamp\":", "\"level\":", "\"message\":", "\"event_id\":", "\"ecs\":"];
    let places: Vec<_> = keys.map(|key| text.find(key)).to_vec();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{text}");
}

#[test]
fn the_incident_of_the_article_has_the_documented_fields() {
    let line = line();
    assert_eq!(line["event"]["dataset"], "rsttrace.incident");
    assert_eq!(line["event"]["reason"], "ipvs_idle_expired");
    assert_eq!(line["error"]["code"], "ECONNRESET");
    assert_eq!(line["destination"]["nat"]["ip"], "10.0.1.2");
    assert_eq!(line["rsttrace"]["ipvs"]["timeout_s"], 900);
    assert_eq!(line["rsttrace"]["keepalive"]["enabled"], false);
    assert_eq!(line["rsttrace"]["fixes"][0]["wanted"], "300/30/3");
    assert_eq!(line["event_id"], line["event"]["id"]);
}

#[test]
fn nothing_is_null() {
    fn has_null(value: &Value) -> bool {
        match value {
            Value::Null => true,
            Value::Array(items) => items.iter().any(has_null),
            Value::Object(fields) => fields.values().any(has_null),
            _ => false,
        }
    }
    assert!(!has_null(&line()));
}

#[test]
fn a_line_stays_below_12_kib_and_has_truncated_set() {
    let mut long = replay(article()).remove(0);
    let finding = Finding { kind: "test", ts: 0, summary: "x".repeat(500) };
    long.evidence = vec![finding; 1000];
    let text = incident(&long);
    assert!(text.len() < MAX_LINE);
    let value: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(value["rsttrace"]["truncated"], true);
    let left = value["rsttrace"]["evidence"].as_array().map_or(0, Vec::len);
    assert!((10..1000).contains(&left), "only the excess is removed: {left} left");
    assert!(value["rsttrace"]["fixes"].as_array().is_some_and(|fixes| fixes.len() > 1));
}

#[test]
fn keys_come_in_the_documented_order() {
    let line = line();
    let keys = |value: &Value| -> Vec<String> {
        value.as_object().expect("an object").keys().cloned().collect()
    };
    assert_eq!(
        keys(&line),
        [
            "@timestamp",
            "level",
            "message",
            "event_id",
            "ecs",
            "event",
            "error",
            "source",
            "destination",
            "network",
            "host",
            "rsttrace",
        ]
    );
    assert_eq!(
        keys(&line["event"]),
        [
            "id", "kind", "category", "type", "module", "dataset", "action", "outcome", "reason",
            "sequence",
        ]
    );
    let order = [
        "schema",
        "cause",
        "family",
        "confidence",
        "victim",
        "netns",
        "rst",
        "idle_s",
        "keepalive",
        "ipvs",
        "evidence",
        "ruled_out",
        "fixes",
        "not_fixes",
        "lost_events",
    ];
    let rsttrace = keys(&line["rsttrace"]);
    let places: Vec<_> =
        order.iter().map(|key| rsttrace.iter().position(|there| there == key)).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{rsttrace:?}");
}

#[test]
fn an_earlier_event_has_a_positive_age_to_the_millisecond() {
    let opened = 40_000_000_123_456_789;
    assert_eq!(age_s(opened, opened - 70_300_000_000), 70.3);
    assert_eq!(age_s(opened, opened + 1_000_000), -0.001);
}

#[test]
fn measured_times_are_never_integers_and_configured_ones_are() {
    assert_eq!(json!(measured(973.0)).to_string(), "973.0");
    assert_eq!(json!(Seconds(900.0)).to_string(), "900");
}

#[test]
fn a_hostile_process_name_stays_inside_its_string() {
    let mut hostile = replay(article()).remove(0);
    let comm = "a\"}\n\u{1b}";
    hostile.owner = Some(Owner { pid: 7, comm: comm.into(), ..Owner::default() });
    let text = incident(&hostile);
    assert!(!text.contains(['\n', '\u{1b}']), "one line without control characters");
    let value: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(value["process"]["name"], comm);
}

#[test]
fn both_ends_are_shown_with_container_and_pod() {
    let mut both = replay(article()).remove(0);
    let pod = Pod {
        uid: Some("81e09ae0-12ec-4ec5-94b8-51cda7906370".into()),
        name: Some("orders-api-7c9".into()),
        namespace: Some("shop".into()),
    };
    both.owner = Some(Owner {
        pid: 7,
        comm: "node".into(),
        container_id: Some("3f9c".repeat(16)),
        pod: Some(pod),
        ..Owner::default()
    });
    both.owner_side = Some(Side::Source);
    both.peer =
        Some(Owner { pid: 8, comm: "mysqld".into(), by: OwnerBy::Listener, ..Owner::default() });
    let line: Value = serde_json::from_str(&incident(&both)).expect("JSON");
    assert_eq!(line["container"], json!({"id": "3f9c".repeat(16)}));
    assert_eq!(
        line["k8s"],
        json!({
            "pod": {"name": "orders-api-7c9", "uid": "81e09ae0-12ec-4ec5-94b8-51cda7906370"},
            "namespace": {"name": "shop"},
        })
    );
    assert_eq!(
        [&line["rsttrace"]["process_of"], &line["rsttrace"]["process_by"]],
        ["source", "descriptor"]
    );
    assert_eq!(
        line["rsttrace"]["peer"],
        json!({"process": {"pid": 8, "name": "mysqld"}, "process_by": "listener"})
    );
}

#[test]
fn timestamps_have_nine_digits_and_z() {
    assert_eq!(timestamp(1_763_695_304_102_345_678), "2025-11-21T03:21:44.102345678Z");
    assert_eq!(timestamp(1_763_695_304_000_000_000), "2025-11-21T03:21:44.000000000Z");
}

#[test]
fn an_escape_sequence_in_a_process_name_is_escaped_in_sentences() {
    let mut hostile = replay(article()).remove(0);
    hostile.why = "\u{1b}[2Jroot had closed it".into();
    hostile.evidence[0].summary = "\u{1b}]0;title\u{7}".into();
    hostile.prove = Some("ask \u{202e}him".into());
    let line: Value = serde_json::from_str(&incident(&hostile)).expect("JSON");
    for pointer in ["/message", "/rsttrace/evidence/0/summary", "/rsttrace/prove"] {
        let text = line.pointer(pointer).and_then(Value::as_str).expect("a sentence");
        assert!(!text.contains(|c: char| c.is_control() || c == '\u{202e}'), "{pointer}: {text:?}");
    }
}

#[test]
fn an_empty_list_is_absent() {
    let mut benign = replay(article()).remove(0);
    benign.fixes.clear();
    let line: Value = serde_json::from_str(&incident(&benign)).expect("JSON");
    assert!(line["rsttrace"].get("fixes").is_none(), "{line}");
}

#[test]
fn a_rounded_negative_age_is_not_negative_zero() {
    assert_eq!(json!(measured(-0.0001)).to_string(), "0.0");
}

#[test]
fn a_summary_event_names_its_host_and_has_its_own_id() {
    let of = |boot_id: &str, wall_ns| -> Value {
        let counted =
            Summary { hostname: "node-1".into(), boot_id: boot_id.into(), ..Summary::default() };
        serde_json::from_str(&summary(&counted, wall_ns)).expect("JSON")
    };
    let first = of("a", 1_000_000_000);
    assert_eq!(first["host"]["name"], "node-1");
    assert_eq!(first["event_id"], first["event"]["id"]);
    assert_eq!(first["event_id"], of("a", 1_000_000_000)["event_id"]);
    assert_ne!(first["event_id"], of("a", 2_000_000_000)["event_id"]);
    assert_ne!(first["event_id"], of("b", 1_000_000_000)["event_id"]);
}
