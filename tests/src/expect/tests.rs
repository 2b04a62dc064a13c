//! Every check of the judge can fail: each test changes one field of an incident that passes.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use serde_json::{Value, json};

use super::{Expect, Facts, Incident, Verdict, belongs, judge};
use crate::{
    lab::{Net, Role},
    scenarios::Observed,
    tracer::Record,
};

const NET_NUMBER: u8 = 12;

fn net() -> Net {
    Net::new(NET_NUMBER)
}

fn wanted() -> Incident {
    Incident::new("ipvs_idle_expired", net().client(40_001), net().vip(3306))
        .observed()
        .nat(net().server(3306))
        .victim("source", "ECONNRESET")
        .action("reset")
        .origin("local_stack")
        .idle()
        .keepalive(false)
        .ipvs_timeout(4)
        .netns(&[Role::Node, Role::Client])
        .first_fix("keepalive_below_limit", "application")
        .evidence("expired")
}

fn printed() -> Value {
    json!({
        "@timestamp": "2026-11-21T03:21:44.102345678Z", "level": "error",
        "message": "10.12.1.2:40001 -> 10.12.100.1:3306 reset after 7 s idle",
        "event_id": "0001",
        "event": {"id": "0001", "module": "rsttrace", "dataset": "rsttrace.incident",
            "action": "reset", "reason": "ipvs_idle_expired"},
        "error": {"code": "ECONNRESET"},
        "source": {"ip": "10.12.1.2", "port": 40_001},
        "destination": {"ip": "10.12.100.1", "port": 3306,
            "nat": {"ip": "10.12.2.2", "port": 3306}},
        "network": {"transport": "tcp", "type": "ipv4"},
        "rsttrace": {
            "schema": "1.1", "cause": "ipvs_idle_expired", "family": "timeout_mismatch",
            "confidence": "observed", "victim": "source", "netns": 42,
            "rst": {"origin": "local_stack"}, "idle_s": 7.4, "keepalive": {"enabled": false},
            "ipvs": {"timeout_s": 4},
            "evidence": [{"kind": "ipvs_expired", "summary": "its IPVS entry expired"}],
            "fixes": [{"id": "keepalive_below_limit", "owner": "application"}],
            "lost_events": 0
        }
    })
}

/// The printed incident with one place changed; `null` removes it.
fn changed(path: &str, value: Value) -> Value {
    let mut incident = printed();
    if value.is_null() {
        let (parent, key) = path.rsplit_once('/').unwrap_or_default();
        if let Some(Value::Object(object)) = incident.pointer_mut(parent) {
            object.shift_remove(key);
        }
    } else if let Some(place) = incident.pointer_mut(path) {
        *place = value;
    } else if let Some((parent, key)) = path.rsplit_once('/') {
        incident.pointer_mut(parent).unwrap_or(&mut Value::Null)[key] = value;
    }
    incident
}

fn record(value: Value) -> Record {
    let opened = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_231_304);
    Record { arrived: opened + Duration::from_millis(500), line: value.to_string(), value }
}

fn judged(expect: &Expect, printed: impl IntoIterator<Item = Value>) -> Result<Verdict> {
    judged_on("6.1", expect, printed)
}

fn judged_on(
    series: &str,
    expect: &Expect,
    printed: impl IntoIterator<Item = Value>,
) -> Result<Verdict> {
    let observed = Observed { idle: Some(Duration::from_secs(7)), ..Observed::default() };
    let facts = Facts {
        series,
        observed: &observed,
        namespaces: &[(Role::Client, 41), (Role::Node, 42), (Role::Server, 43)],
    };
    let records: Vec<_> = printed.into_iter().map(record).collect();
    judge(expect, &records, &facts)
}

/// The reason for the failure, or `passed: …`.
fn reason(expect: &Expect, printed: impl IntoIterator<Item = Value>) -> String {
    judged(expect, printed)
        .map_or_else(|error| format!("{error:#}"), |verdict| format!("passed: {verdict:?}"))
}

#[test]
fn an_incident_that_is_as_expected_passes() -> Result<()> {
    let verdict = judged(&Expect::one(wanted()), [printed()])?;
    assert_eq!(verdict.first(), ("ipvs_idle_expired", "observed"));
    Ok(())
}

#[test]
fn every_changed_field_fails_and_is_named() {
    for (path, value, named) in [
        ("/level", json!("warn"), "level is warn, not error"),
        ("/message", json!(""), "an empty message"),
        ("/@timestamp", json!("yesterday"), "@timestamp"),
        ("/@timestamp", json!("2026-11-21T03:21:34.102345678Z"), "printed 10.4s after"),
        ("/event/id", json!("0002"), "event.id is 0002"),
        ("/event/reason", json!("unknown"), "event.reason is unknown"),
        ("/event/action", json!("drop"), "event.action is drop"),
        ("/error/code", json!("ETIMEDOUT"), "error.code is ETIMEDOUT, not ECONNRESET"),
        ("/error", Value::Null, "no error.code"),
        ("/source/ip", json!("10.12.1.3"), "source is 10.12.1.3"),
        ("/source/port", json!(40_002), "source is 10.12.1.2 port 40002"),
        ("/destination/ip", json!("10.12.2.2"), "destination is 10.12.2.2"),
        ("/destination/nat", Value::Null, "no destination.nat.ip"),
        ("/destination/nat/ip", json!("10.12.3.2"), "destination.nat is 10.12.3.2"),
        ("/network/type", json!("ipv6"), "network.type is ipv6"),
        ("/rsttrace/schema", json!("2.0"), "schema"),
        ("/rsttrace/cause", json!("middle_age"), "not a known cause"),
        ("/rsttrace/family", json!("capacity"), "rsttrace.family is capacity"),
        ("/rsttrace/confidence", json!("correlated"), "not observed"),
        ("/rsttrace/confidence", json!("certain"), "does not exist"),
        ("/rsttrace/confidence", Value::Null, "without a confidence"),
        ("/rsttrace/victim", json!("both"), "rsttrace.victim is both"),
        ("/rsttrace/netns", json!(43), "that of the Server"),
        ("/rsttrace/netns", json!(44), "not a namespace of the scenario"),
        ("/rsttrace/rst/origin", json!("remote"), "rsttrace.rst.origin is remote"),
        ("/rsttrace/idle_s", json!(8.1), "rsttrace.idle_s is 8.10, not 7.00"),
        ("/rsttrace/idle_s", Value::Null, "no rsttrace.idle_s"),
        ("/rsttrace/keepalive/enabled", json!(true), "keepalive.enabled is true"),
        ("/rsttrace/ipvs/timeout_s", json!(900), "ipvs.timeout_s is 900, not 4"),
        ("/rsttrace/evidence", json!([]), "no evidence"),
        ("/rsttrace/evidence/0/summary", json!("gone"), "no evidence mentions"),
        ("/rsttrace/fixes", json!([]), "no fixes"),
        ("/rsttrace/fixes/0/id", json!("ipvs_timeout"), "the first fix: id is ipvs_timeout"),
        ("/rsttrace/fixes/0/owner", json!("node"), "owner is node"),
        ("/rsttrace/lost_events", json!(3), "lost_events is 3"),
        ("/rsttrace/lost_events", Value::Null, "lost_events is absent"),
        ("/rsttrace/ipvs/state", json!({"was": Value::Null}), "rsttrace.ipvs.state.was is null"),
    ] {
        let reason = reason(&Expect::one(wanted()), [changed(path, value)]);
        assert!(reason.contains(named), "{path}: {reason}");
    }
}

#[test]
fn the_timestamp_comes_first_and_lines_are_short() {
    let mut moved = printed();
    if let Value::Object(object) = &mut moved {
        object.sort_keys();
        object.shift_insert(0, "a".to_owned(), json!(1));
    }
    let long = changed("/message", json!("x".repeat(12 * 1024)));
    let expect = Expect::one(wanted());
    assert!(reason(&expect, [moved]).contains("@timestamp is not the first key"));
    assert!(reason(&expect, [long]).contains("a line of"));
}

#[test]
fn the_number_of_incidents_is_exact() {
    let expect = Expect::one(wanted());
    assert!(reason(&expect, []).contains("0 incidents, not 1: nothing was printed"));
    assert!(reason(&expect, [printed(), printed()]).contains("2 incidents, not 1"));
    assert!(reason(&Expect::nothing(), [printed()]).contains("1 incidents, not 0"));
    assert!(reason(&Expect::nothing(), []).starts_with("passed"));
    let two = Expect::one(wanted()).then(wanted());
    assert!(reason(&two, [printed(), printed()]).starts_with("passed"));
}

#[test]
fn a_follow_up_repeats_the_verdict_and_names_the_first_incident() {
    let expect = Expect::one(wanted());
    let follow = |first: &str| changed("/rsttrace/follows", json!(first));
    assert!(reason(&expect, [printed(), follow("0001")]).starts_with("passed"));
    assert!(reason(&expect, [printed(), follow("0009")]).contains("which was not printed"));

    let mut other_cause = follow("0001");
    for (path, value) in
        [("/rsttrace/cause", "conntrack_idle_expired"), ("/event/reason", "conntrack_idle_expired")]
    {
        if let Some(place) = other_cause.pointer_mut(path) {
            *place = json!(value);
        }
    }
    assert!(reason(&expect, [printed(), other_cause]).contains("not ipvs_idle_expired"));
}

#[test]
fn an_inferred_remote_or_unknown_verdict_has_steps_to_prove_it() {
    let inferred = || changed("/rsttrace/confidence", json!("inferred"));
    let expect = Expect::one(wanted().inferred());
    assert!(reason(&expect, [inferred()]).contains("without rsttrace.prove"));
    let mut proved = inferred();
    proved["rsttrace"]["prove"] = json!("start rsttrace before the connection goes idle");
    assert!(reason(&expect, [proved]).starts_with("passed"));
}

#[test]
fn a_kernel_that_cannot_show_a_cause_may_give_less_and_the_fact_is_reported() -> Result<()> {
    let mut unknown = printed();
    for (path, value) in [
        ("/rsttrace/cause", "unknown"),
        ("/event/reason", "unknown"),
        ("/rsttrace/family", "unknown"),
        ("/level", "warn"),
    ] {
        if let Some(place) = unknown.pointer_mut(path) {
            *place = json!(value);
        }
    }
    if let Some(rsttrace) = unknown["rsttrace"].as_object_mut() {
        rsttrace.shift_remove("confidence");
        rsttrace.insert("prove".to_owned(), json!("trace the sender's host"));
    }
    let expect = Expect::one(wanted().on(&["5.10"], "blind", Incident::unknown));
    let verdict = judged_on("5.10", &expect, [unknown.clone()])?;
    assert_eq!(verdict.first(), ("unknown", "none"));
    assert_eq!(verdict.facts, [("ipvs_idle_expired", "blind")]);
    assert!(reason(&expect, [unknown]).contains("rsttrace.cause is unknown"));
    Ok(())
}

#[test]
fn incidents_belong_to_a_scenario_by_any_of_their_addresses() {
    let elsewhere = json!({
        "event": {"dataset": "rsttrace.incident"},
        "source": {"ip": "10.13.1.2"}, "destination": {"ip": "fd00:d:64::1"}
    });
    let mut by_nat = elsewhere.clone();
    by_nat["destination"]["nat"] = json!({"ip": "10.12.2.2"});
    let mut summary = printed();
    summary["event"]["dataset"] = json!("rsttrace.summary");
    assert!(belongs(&record(printed()), &net()) && belongs(&record(by_nat), &net()));
    assert!(!belongs(&record(elsewhere), &net()) && !belongs(&record(summary), &net()));
}
