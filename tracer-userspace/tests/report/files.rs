//! Standard output, standard error and exit codes, and files with damaged, duplicate or cut-off lines.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use rsttrace_report::{Selection, Window};
use serde_json::Value;

use crate::{counts, data, of, read, renamed};

fn run(file: &Path, options: &[&str]) -> (Option<i32>, String, String) {
    let mut report = Command::new(env!("CARGO_BIN_EXE_rsttrace"));
    let output = report.arg("report").arg(file).args(options).output();
    let Output { status, stdout, stderr } = output.expect("rsttrace runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (status.code(), text(stdout), text(stderr))
}

/// A file of this test's own, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("rsttrace-{name}-{}", std::process::id()));
        fs::write(&path, text).expect("a file");
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn damaged_lines_are_named_by_place_and_the_other_lines_are_reported() {
    for extension in ["cap", "ndjson"] {
        let golden = data().join("6.1/ipvs_idle_expired").with_extension(extension);
        let text = fs::read_to_string(golden).expect("the golden");
        let (first, rest) = text.split_once('\n').expect("lines");
        let damaged = format!("{first}\n{{\"event\":{{}}, garbage\n{rest}{first}\n{{\"@times");
        let file = Scratch::new(&format!("damaged.{extension}"), &damaged);
        let (code, stdout, stderr) = run(&file.0, &[]);
        assert_eq!(code, Some(1), "{stderr}");
        for text in [&stdout, &stderr] {
            assert!(text.contains("line 2: not a valid event ("), "{text}");
            assert!(text.contains(" at column 14)"), "{text}");
            assert!(text.contains("is cut off"), "{text}");
        }
        assert!(stdout.starts_with("# 1 connection broke because the IPVS entry"), "{stdout}");
    }
}

#[test]
fn a_file_that_is_neither_capture_nor_stream_is_refused_and_named() {
    for (name, text) in [("empty", ""), ("text", "hello\n"), ("foreign", "{\"a\":1}\n[]\n7\n")] {
        let file = Scratch::new(name, text);
        let (code, stdout, stderr) = run(&file.0, &[]);
        assert_eq!((code, stdout.as_str()), (Some(1), ""), "{name}: {stderr}");
        assert!(stderr.contains("neither a capture of rsttrace"), "{stderr}");
    }
}

#[test]
fn a_cause_or_a_time_leaves_the_others_out() {
    let file = data().join("6.1/near_miss_conntrack_tuple_reused.ndjson");
    let causes = |options: &[&str]| {
        let mut all = vec!["-o", "json"];
        all.extend(options);
        let (code, stdout, stderr) = run(&file, &all);
        assert_eq!(code, Some(0), "{stderr}");
        let report: Value = serde_json::from_str(&stdout).expect("JSON");
        report["connections"].as_u64().expect("a number")
    };
    assert_eq!(causes(&[]), 2);
    assert_eq!(causes(&["--cause", "linger_zero"]), 1);
    assert_eq!(causes(&["--cause", "listen_overflow"]), 0);
    assert_eq!(causes(&["--since", "2026-01-01T00:00:00Z"]), 2);
    assert_eq!(causes(&["--since", "2100-01-01T00:00:00Z"]), 0);
    assert_eq!(causes(&["--until", "2026-01-01T00:00:00Z"]), 0);
    // Two connections broke for other causes.
    let (_, stdout, _) = run(&file, &["--cause", "listen_overflow"]);
    assert!(stdout.starts_with("# No connection broke because of listen_overflow\n"), "{stdout}");
    assert!(stdout.contains("\nNo connection broke because of listen_overflow on "), "{stdout}");
    let (code, _, stderr) = run(&file, &["--since", "yesterday"]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("invalid time `yesterday`"), "{stderr}");
}

#[test]
fn a_connection_that_broke_before_the_window_is_not_counted_by_its_other_end() {
    let path = data().join("6.1/conntrack_table_full.ndjson");
    let text = fs::read_to_string(path).expect("the golden");
    let report = of(text.as_bytes());
    assert_eq!((report.connections, report.other_ends), (1, 1), "the drop and its timeout");
    let last = report.extent.expect("events").last;
    let since = last.format("%FT%H:%M:%S.%9fZ").parse().ok();
    let window = Window { since, until: None };
    let later = read(text.as_bytes(), Selection { window, causes: Vec::new() }).expect("a report");
    assert_eq!((later.connections, later.other_ends), (0, 1));
}

fn event(host: &str, sequence: u64, second: u64, id: &str) -> String {
    let mut line: Value = serde_json::from_str(&renamed("plain")).expect("JSON");
    line["host"]["name"] = host.into();
    line["event"]["sequence"] = sequence.into();
    line["event_id"] = id.into();
    line["@timestamp"] = format!("2026-11-21T07:00:{second:02}Z").into();
    line.to_string() + "\n"
}

fn summary(host: &str, second: u64, incidents: u64, benign: u64) -> String {
    serde_json::json!({
        "@timestamp": format!("2026-11-21T07:00:{second:02}Z"),
        "event": {"dataset": "rsttrace.summary"},
        "host": {"name": host},
        "rsttrace": {"summary": {
            "incidents": [{"cause": "xplain", "count": incidents}],
            "benign": [{"cause": "connection_refused", "count": benign}],
            "absorbed": 0, "forgotten": 0, "unreadable": 0
        }, "lost_events": 2},
    })
    .to_string()
        + "\n"
}

#[test]
fn summaries_of_one_run_do_not_add_up_and_those_of_two_do() {
    let one = [event("a", 1, 0, "1"), summary("a", 1, 1, 3), summary("a", 2, 1, 5)].concat();
    let report = of(one.as_bytes());
    assert_eq!(counts(&report)[1], ("benign connection_refused".into(), 5));
    assert_eq!(report.unseen.lost_events, 2);
    let again = one.clone() + &event("a", 1, 3, "2") + &summary("a", 4, 1, 4);
    assert_eq!(counts(&of(again.as_bytes()))[1].1, 9);
    let beside = one + &summary("b", 2, 0, 7);
    assert_eq!(counts(&of(beside.as_bytes()))[1].1, 12);
}

#[test]
fn missing_lines_are_reported_and_duplicate_lines_count_once() {
    let whole = [event("a", 1, 0, "1"), event("a", 2, 1, "2"), summary("a", 2, 2, 0)].concat();
    let report = of(whole.as_bytes());
    let notes = report.unseen.notes.join("\n");
    assert_eq!((report.connections, notes.contains("lines are missing")), (2, false), "{notes}");
    let without = [event("a", 1, 0, "1"), summary("a", 2, 2, 0)].concat();
    let notes = of(without.as_bytes()).unseen.notes.join("\n");
    assert!(notes.contains("count 1 broken connection more than the stream holds"), "{notes}");
    let twice = of((whole.clone() + &whole).as_bytes());
    assert_eq!(twice.connections, 2);
    assert!(
        twice.unseen.notes.concat().contains("2 events appear twice in the file"),
        "{:?}",
        twice.unseen.notes
    );
}
