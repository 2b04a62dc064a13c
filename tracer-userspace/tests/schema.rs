//! `rsttrace schema`: every document that the program prints is as its schema says.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use jsonschema::Validator;
use serde_json::Value;

fn rsttrace(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_rsttrace"))
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("the program runs");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn schema(document: &str) -> Value {
    serde_json::from_str(&rsttrace(&["schema", document])).expect("one JSON object")
}

fn validator(document: &str) -> Validator {
    jsonschema::draft202012::new(&schema(document)).expect("a JSON Schema 2020-12")
}

fn assert_valid(validator: &Validator, text: &str, name: &str) {
    let document: Value = serde_json::from_str(text).expect("JSON");
    let errors: Vec<_> = validator
        .iter_errors(&document)
        .map(|error| format!("{error} at {}", error.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{name}: {errors:#?}\n{text}");
}

fn goldens(extension: &str) -> Vec<PathBuf> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data");
    let kernels = fs::read_dir(data).expect("the goldens");
    let mut files: Vec<PathBuf> = kernels
        .flat_map(|kernel| fs::read_dir(kernel.expect("a folder").path()).into_iter().flatten())
        .map(|file| file.expect("a file").path())
        .filter(|file| file.extension().is_some_and(|it| it == extension))
        .collect();
    files.sort();
    files
}

const DOCUMENTS: [&str; 5] = ["incident", "summary", "check", "plan", "report"];

#[test]
fn every_schema_holds_an_example_that_it_accepts() {
    for document in DOCUMENTS {
        let schema = schema(document);
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        let example = schema["examples"][0].to_string();
        assert!(example.len() > 100, "{document}: {example}");
        assert_valid(&validator(document), &example, document);
    }
}

#[test]
fn a_document_without_a_required_field_or_with_an_unknown_word_is_rejected() {
    for (field, value) in [("level", Value::Null), ("level", "loud".into())] {
        let mut example = schema("incident")["examples"][0].clone();
        example[field] = value;
        assert!(!validator("incident").is_valid(&example), "{example}");
    }
    let mut example = schema("incident")["examples"][0].clone();
    example.as_object_mut().expect("an object").shift_remove("host");
    assert!(!validator("incident").is_valid(&example));
}

#[test]
fn every_incident_of_every_golden_capture_is_valid() {
    let validator = validator("incident");
    let mut lines = 0;
    for golden in goldens("ndjson") {
        for line in fs::read_to_string(&golden).expect("readable").lines() {
            assert_valid(&validator, line, &golden.display().to_string());
            lines += 1;
        }
    }
    assert!(lines > 500, "{lines} lines");
}

#[test]
fn the_summary_of_a_replay_is_valid() {
    let capture = goldens("cap").swap_remove(0);
    let capture = capture.to_str().expect("UTF-8");
    let printed = rsttrace(&["replay", "--all", "-o", "json", capture]);
    let summary = printed.lines().last().expect("a summary");
    assert!(summary.contains("rsttrace.summary"), "{summary}");
    assert_valid(&validator("summary"), summary, capture);
}

#[test]
fn every_line_of_check_on_this_machine_is_valid() {
    let validator = validator("check");
    for arguments in
        [&["check", "-o", "json"][..], &["check", "-o", "json", "--path", "127.0.0.1→127.0.0.1:80"]]
    {
        let printed = rsttrace(arguments);
        assert!(printed.lines().count() > 0, "{arguments:?}");
        printed.lines().for_each(|line| assert_valid(&validator, line, "check"));
    }
}

#[test]
fn a_plan_is_valid_whether_its_load_is_given_or_measured() {
    let validator = validator("plan");
    for arguments in [
        &["plan", "--connections", "20000", "--cps", "500", "--quiet", "1h", "-o", "json"][..],
        &["plan", "--from-host", "-o", "json"],
    ] {
        assert_valid(&validator, &rsttrace(arguments), "plan");
    }
}

#[test]
fn the_report_of_every_golden_capture_of_one_kernel_is_valid() {
    let validator = validator("report");
    for capture in
        goldens("cap").iter().filter(|it| it.parent().is_some_and(|it| it.ends_with("6.1")))
    {
        let report = rsttrace(&["report", "-o", "json", capture.to_str().expect("UTF-8")]);
        assert_valid(&validator, &report, &capture.display().to_string());
    }
}
