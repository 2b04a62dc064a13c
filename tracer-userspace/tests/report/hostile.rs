//! Hostile names, bytes and numbers.

use std::fs;

use proptest::prelude::*;
use pulldown_cmark::{Event, Options, Parser, Tag};
use rsttrace_report::{Selection, html, markdown, model::Report};
use serde_json::Value;

use crate::{data, of, read, renamed, render};

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

/// A plain name that is not an id, so that no query is made of it.
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

/// The structure that a Markdown parser sees, without the text.
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
fn no_name_moves_the_cursor() {
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
