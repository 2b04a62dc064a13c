//! `rsttrace report`: every golden capture and stream, hostile names, damaged files, and what the program
//! prints where.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use proptest::prelude::*;
use pulldown_cmark::{Event, Options, Parser, Tag};
use rsttrace::report::{self, Selection, Window, html, json, markdown, model::Report};
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

/// What both kinds of input must agree on.
fn counts(report: &Report) -> Vec<(String, u64)> {
    let broken = report.causes.iter().map(|part| (part.cause.to_string(), part.connections));
    let benign = report.benign.iter().map(|it| (format!("benign {}", it.cause), it.count));
    broken.chain(benign).chain([("other ends".into(), report.other_ends)]).collect()
}

#[test]
fn a_capture_and_its_stream_tell_the_same_on_every_golden() {
    let captures = goldens("cap");
    assert!(captures.len() > 500, "{} captures", captures.len());
    for capture in captures {
        let stream = fs::read(capture.with_extension("ndjson")).expect("its stream");
        let capture_told = of(&fs::read(&capture).expect("the capture"));
        let name = capture.display();
        // Some near misses end without an incident, and a stream without an event is none.
        match read(&stream, Selection::default()) {
            Some(stream_told) => {
                assert_eq!(counts(&capture_told), counts(&stream_told), "{name}");
                assert_eq!(capture_told.headline, stream_told.headline, "{name}");
                assert_eq!(capture_told.summary, stream_told.summary, "{name}");
                render(&stream_told);
            }
            None => assert_eq!(counts(&capture_told), [("other ends".into(), 0)], "{name}"),
        }
        for text in render(&capture_told) {
            assert!(text.contains(&capture_told.headline) || text.starts_with('#'), "{name}");
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
        let told: BTreeMap<String, u64> =
            report.causes.iter().map(|it| (it.cause.to_string(), it.connections)).collect();
        assert_eq!(told, expected, "{}", stream.display());
    }
}

/// A line of a golden, with every name in it replaced.
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

/// Two connections, so that the charts are drawn.
fn report_of(name: &str) -> Report {
    let first = renamed(name);
    let mut second: Value = serde_json::from_str(&first).expect("JSON");
    second["event_id"] = format!("{name}2").into();
    second["@timestamp"] = "2026-11-21T07:40:00Z".into();
    second["rsttrace"]["idle_s"] = 17.0.into();
    of(format!("{first}{second}\n").as_bytes())
}

const HOSTILE: [&str; 16] = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>",
    "' onload='alert(1)",
    "</title></style><svg onload=alert(1)>",
    "<!-- ",
    "]]>",
    "`backticks` ``` and ````",
    "a | b || c",
    "[link](javascript:alert(1)) ![img](http://example.org/x.png)",
    "http://example.org www.example.org mail@example.org",
    "# heading\n## heading\r\n- item\n\n    code\n---\n",
    "**bold** __bold__ ~~gone~~ *it* _it_",
    "> quote",
    "1. list",
    "&lt;b&gt; &#60;b&#62;",
    "trailing backslash \\",
];

/// No id, so that no query is made of it; nothing else is special about it.
const HARMLESS: &str = "Some name";

fn assert_same(plain: &[String], hostile: &[String], name: &str) {
    let same = plain.iter().zip(hostile).take_while(|(a, b)| a == b).count();
    assert_eq!(plain.get(same), hostile.get(same), "{name:?}");
}

/// The tags of a page, without what is in their attributes.
fn tags(html: &str) -> Vec<String> {
    html.split('<')
        .skip(1)
        .map(|piece| {
            let (tag, _) = piece.split_once('>').expect("a whole tag");
            tag.split('"').step_by(2).collect::<Vec<_>>().join("\"")
        })
        .collect()
}

#[test]
fn no_name_gets_a_tag_or_an_attribute_into_the_page() {
    let plain = tags(&html::render(&report_of(HARMLESS)));
    for name in HOSTILE {
        assert_same(&plain, &tags(&html::render(&report_of(name))), name);
    }
}

/// What a Markdown parser makes of it, without the words.
fn blocks(markdown: &str) -> Vec<String> {
    let parser = Parser::new_ext(markdown, Options::all() - Options::ENABLE_SMART_PUNCTUATION);
    let mut blocks = Vec::new();
    for event in parser {
        let block = match event {
            Event::Text(_) | Event::SoftBreak => continue,
            Event::Code(_) => "code".into(),
            Event::Start(Tag::Table(columns)) => format!("table of {}", columns.len()),
            other => format!("{other:?}"),
        };
        blocks.push(block);
    }
    blocks
}

#[test]
fn no_name_marks_up_the_markdown() {
    let plain = blocks(&markdown::render(&report_of(HARMLESS)));
    assert!(plain.iter().any(|block| block == "table of 5"), "tables are parsed");
    for name in HOSTILE {
        assert_same(&plain, &blocks(&markdown::render(&report_of(name))), name);
    }
}

#[test]
fn no_name_moves_a_cursor() {
    let hostile = "\u{1b}]0;title\u{7}\u{1b}[2J\u{9b}31m\u{202e}\u{0}\u{7f}";
    for text in render(&report_of(hostile)) {
        let moves =
            |c: &char| c.is_control() && *c != '\n' || ('\u{202a}'..='\u{202e}').contains(c);
        assert_eq!(text.chars().find(moves), None);
        assert!(text.contains("u{1b}"), "it is spelled out");
    }
}

#[test]
fn the_page_loads_nothing_and_runs_nothing() {
    let page = html::render(&report_of("plain"));
    for word in ["<script", "<link", "<iframe", "<img", "url(", "@import", "src=", "http://"] {
        assert!(!page.contains(word), "{word}");
    }
    assert!(page.contains("default-src 'none'"));
    assert_eq!(page.matches("<svg").count(), 2, "its charts are inside");
    assert!(page.contains("IPVS plain 4 s"), "the limit is drawn in");
}

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
fn damaged_lines_are_named_by_place_and_the_others_are_told() {
    for extension in ["cap", "ndjson"] {
        let golden = data().join("6.1/ipvs_idle_expired").with_extension(extension);
        let text = fs::read_to_string(golden).expect("the golden");
        let (first, rest) = text.split_once('\n').expect("lines");
        let damaged = format!("{first}\n{{\"event\":{{}}, garbage\n{rest}{first}\n{{\"@times");
        let file = Scratch::new(&format!("damaged.{extension}"), &damaged);
        let (code, stdout, stderr) = run(&file.0, &[]);
        assert_eq!(code, Some(1), "{stderr}");
        for text in [&stdout, &stderr] {
            assert!(text.contains("line 2, column 14"), "{text}");
            assert!(text.contains("is cut off"), "{text}");
        }
        assert!(stdout.starts_with("# 1 connection broke because the IPVS entry"), "{stdout}");
    }
}

#[test]
fn a_file_that_is_neither_is_refused_and_named() {
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
    let (code, _, stderr) = run(&file, &["--since", "yesterday"]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("`yesterday` is no time"), "{stderr}");
}

/// A window shows what `since` and `until` leave.
#[test]
fn what_broke_before_the_window_is_not_counted_with_its_other_end() {
    let path = data().join("6.1/conntrack_table_full.ndjson");
    let text = fs::read_to_string(path).expect("the golden");
    let report = of(text.as_bytes());
    assert_eq!((report.connections, report.other_ends), (1, 1), "the drop and its timeout");
    let last = report.extent.expect("events").1;
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
fn lines_that_are_missing_are_told_and_lines_that_come_twice_count_once() {
    let whole = [event("a", 1, 0, "1"), event("a", 2, 1, "2"), summary("a", 2, 2, 0)].concat();
    let report = of(whole.as_bytes());
    assert_eq!((report.connections, report.unseen.notes.len()), (2, 1), "it has no counters");
    let without = [event("a", 1, 0, "1"), summary("a", 2, 2, 0)].concat();
    let notes = of(without.as_bytes()).unseen.notes.join("\n");
    assert!(notes.contains("count 1 broken connection more than it holds"), "{notes}");
    let twice = of((whole.clone() + &whole).as_bytes());
    assert_eq!(twice.connections, 2);
    assert!(
        twice.unseen.notes.concat().contains("2 events of the file came twice"),
        "{:?}",
        twice.unseen.notes
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), capture: bool) {
        let mut file = Vec::new();
        if capture {
            file.extend(b"{\"rsttrace_capture\":1,\"writer\":\"0.1.0\"}\n");
        }
        file.extend(bytes);
        if let Some(report) = read(&file, Selection::default()) {
            render(&report);
        }
    }

    #[test]
    fn no_change_of_a_line_makes_it_panic(
        at in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        extension in prop::sample::select(vec!["cap", "ndjson"]),
    ) {
        let golden = data().join("6.1/near_miss_conntrack_tuple_reused").with_extension(extension);
        let mut file = fs::read(golden).expect("the golden");
        for (index, byte) in at {
            let index = index.index(file.len());
            file[index] = byte;
        }
        if let Some(report) = read(&file, Selection::default()) {
            render(&report);
        }
    }

    #[test]
    fn no_number_makes_it_panic(
        idle_s in prop_oneof![any::<f64>().prop_filter("JSON has no others", |it| it.is_finite()), Just(0.0)],
        limit_s in any::<f64>().prop_filter("JSON has no others", |it| it.is_finite()),
        age_s in any::<f64>().prop_filter("JSON has no others", |it| it.is_finite()),
        second in 0_i64..7_258_118_400,
        count: u32,
        max: u32,
        sequence: u64,
    ) {
        let mut first: Value = serde_json::from_str(&renamed("plain")).expect("JSON");
        first["rsttrace"]["conntrack"] = serde_json::json!({"count": count, "max": max, "limit_s": limit_s});
        let mut second_event = first.clone();
        second_event["event_id"] = "2".into();
        second_event["event"]["sequence"] = sequence.into();
        let verdict = &mut second_event["rsttrace"];
        verdict["idle_s"] = idle_s.into();
        verdict["ipvs"]["timeout_s"] = limit_s.into();
        verdict["evidence"][0]["age_s"] = age_s.into();
        let time = jiff::Timestamp::from_second(second).expect("a time");
        second_event["@timestamp"] = time.to_string().into();
        let report = of(format!("{first}\n{second_event}\n").as_bytes());
        prop_assert_eq!(report.connections, 2);
        for text in render(&report) {
            prop_assert!(text.len() < 200_000, "{} bytes", text.len());
            prop_assert!(!text.contains("NaN"));
        }
    }
}

/// Recorded on 6.1: a pool that is idle for longer than IPVS allows, a full conntrack table for a minute,
/// and a server that closes with data unread.
fn storm() -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/storm.cap");
    fs::read(path).expect("the storm")
}

#[test]
fn a_storm_is_told_by_its_causes_by_what_was_counted_and_by_where_it_met_the_limit() {
    let report = of(&storm());
    let why = "22 of them because the application closed with data still unread";
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
        "All 8 connections that broke by ipvs_idle_expired had been silent for the limit of 20 s or longer",
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
