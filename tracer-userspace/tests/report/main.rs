//! `rsttrace report` on every golden capture and stream, and on a storm of resets.

mod files;
mod hostile;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use rsttrace_report::{self as report, Selection, Window, html, json, markdown, model::Report};
use serde_json::Value;

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data")
}

fn goldens(extension: &str) -> Vec<PathBuf> {
    let kernels = fs::read_dir(data()).expect("the goldens");
    let mut files: Vec<PathBuf> = kernels
        .flat_map(|kernel| fs::read_dir(kernel.expect("a folder").path()).into_iter().flatten())
        .map(|file| file.expect("a file").path())
        .filter(|file| file.extension().is_some_and(|it| it == extension))
        .collect();
    files.sort();
    files
}

fn read(bytes: &[u8], selection: Selection) -> Option<Report> {
    report::report("a file", bytes, selection, &mut |_| {}).ok()
}

fn of(bytes: &[u8]) -> Report {
    read(bytes, Selection::default()).expect("a report")
}

fn render(report: &Report) -> [String; 3] {
    [markdown::render(report), html::render(report), json::render(report).expect("JSON")]
}

/// The counts that a capture and its stream must agree on.
fn counts(report: &Report) -> Vec<(String, u64)> {
    let broken = report.causes.iter().map(|part| (part.cause.to_string(), part.connections));
    let benign = report.benign.iter().map(|it| (format!("benign {}", it.cause), it.count));
    broken.chain(benign).chain([("other ends".into(), report.other_ends)]).collect()
}

#[test]
fn a_capture_and_its_stream_give_the_same_report_on_every_golden() {
    let captures = goldens("cap");
    assert!(captures.len() > 500, "{} captures", captures.len());
    for capture in captures {
        let stream = fs::read(capture.with_extension("ndjson")).expect("its stream");
        let from_capture = of(&fs::read(&capture).expect("the capture"));
        let name = capture.display();
        // Some near misses end without an incident, and a stream without events is refused.
        match read(&stream, Selection::default()) {
            Some(from_stream) => {
                assert_eq!(counts(&from_capture), counts(&from_stream), "{name}");
                assert_eq!(from_capture.headline, from_stream.headline, "{name}");
                assert_eq!(from_capture.summary, from_stream.summary, "{name}");
                render(&from_stream);
            }
            None => assert_eq!(counts(&from_capture), [("other ends".into(), 0)], "{name}"),
        }
        for text in render(&from_capture) {
            assert!(text.contains(&from_capture.headline) || text.starts_with('#'), "{name}");
        }
    }
}

#[test]
fn a_report_counts_what_the_stream_holds() {
    for stream in goldens("ndjson") {
        let text = fs::read_to_string(&stream).expect("the stream");
        let mut expected: BTreeMap<String, u64> = BTreeMap::new();
        for line in text.lines() {
            let event: Value = serde_json::from_str(line).expect("JSON");
            let verdict = &event["rsttrace"];
            if verdict["follows"].is_null() && verdict["family"] != "benign" {
                let cause = verdict["cause"].as_str().expect("a cause");
                *expected.entry(cause.into()).or_default() += 1;
            }
        }
        let Some(report) = read(text.as_bytes(), Selection::default()) else {
            continue;
        };
        let reported: BTreeMap<String, u64> =
            report.causes.iter().map(|it| (it.cause.to_string(), it.connections)).collect();
        assert_eq!(reported, expected, "{}", stream.display());
    }
}

/// A line of a golden stream with all its names replaced by `name`.
fn renamed(name: &str) -> String {
    let path = data().join("6.1/ipvs_idle_expired.ndjson");
    let mut line: Value =
        serde_json::from_str(fs::read_to_string(path).expect("the golden").trim()).expect("JSON");
    line["process"]["name"] = name.into();
    line["container"] = serde_json::json!({ "id": name });
    line["k8s"] = serde_json::json!({"pod": {"name": name}, "namespace": {"name": name}});
    line["host"]["name"] = name.into();
    line["message"] = name.into();
    line["event_id"] = name.into();
    let verdict = &mut line["rsttrace"];
    for key in ["confidence", "prove"] {
        verdict[key] = name.into();
    }
    verdict["cause"] = format!("x{name}").into();
    verdict["family"] = "state_lost".into();
    verdict["ipvs"]["state"] = name.into();
    verdict["blind_spots"] = serde_json::json!([name]);
    verdict["evidence"][0]["summary"] = name.into();
    verdict["ruled_out"][0] = serde_json::json!({"cause": name, "because": name});
    verdict["not_fixes"][0] = serde_json::json!({"what": name, "because": name});
    let fix = &mut verdict["fixes"][0];
    for key in ["id", "owner", "risk", "summary", "reason", "current", "wanted"] {
        fix[key] = name.into();
    }
    for key in ["commands", "advice", "verify", "undo"] {
        fix[key] = serde_json::json!([name, "second"]);
    }
    fix["persist"] = serde_json::json!({"path": name, "text": name});
    line.to_string() + "\n"
}

/// Recorded on 6.1: a pool that is idle for longer than IPVS allows, a full conntrack table for a minute,
/// and a server that closes with data unread.
fn storm() -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/storm.cap");
    fs::read(path).expect("the storm")
}

#[test]
fn a_storm_is_reported_with_its_causes_its_counters_and_the_limit_it_reached() {
    let report = of(&storm());
    let why = "; 22 because the application closed with data still unread";
    assert!(report.headline.ends_with(why), "{}", report.headline);
    let causes: Vec<(&str, u64)> =
        report.causes.iter().map(|it| (it.cause.as_str(), it.connections)).collect();
    assert_eq!(
        causes[..3],
        [("close_unread_data", 22), ("conntrack_table_full", 16), ("ipvs_idle_expired", 8)]
    );
    let page = html::render(&report);
    for part in [
        "Broken connections over time",
        "IPVS ESTABLISHED 20 s",
        "All 8 connections with cause ipvs_idle_expired had been idle for the limit of 20 s or longer",
        "The conntrack table in netns node held at most 48 of 48 entries (100 %)",
        "rsttrace live --cause ipvs_idle_expired --dst 10.96.12.8:3306 --duration 10m",
    ] {
        assert!(page.contains(part), "{part}");
    }
    let text = markdown::render(&report);
    for part in [
        "| in netns node | nf_conntrack drop | 0 | ",
        "| in netns mysql | TcpExt TCPAbortOnClose | ",
        "ip netns exec node ipvsadm --set 20 0 0",
        "| 2026-11-21 10:12 | 10.96.12.8:3306 | 4 ipvs_idle_expired, 2 conntrack_table_full |",
    ] {
        assert!(text.contains(part), "{part} is missing in:\n{text}");
    }
}

#[test]
fn a_window_of_a_storm_has_its_own_counters() {
    let at = |time: &str| time.parse().ok();
    let window = Window { since: at("10:12:10"), until: at("10:12:30") };
    let report = read(&storm(), Selection { window, causes: Vec::new() }).expect("a report");
    assert!(report.causes.iter().all(|it| it.cause.as_str() != "conntrack_table_full"));
    let counters = report.counters.expect("a capture has them");
    let drops = counters.iter().flat_map(|it| &it.changed).find(|it| it.name.ends_with(" drop"));
    assert!(drops.is_none(), "the table was full before: {drops:?}");
}
