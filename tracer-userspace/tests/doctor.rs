//! `rsttrace doctor` as a program, on any kernel and with any privileges.

use std::process::{Command, Stdio};

use serde_json::Value;

fn doctor(args: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_rsttrace"))
        .arg("doctor")
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("the program runs");
    (output.status.code(), String::from_utf8(output.stdout).expect("UTF-8"))
}

#[test]
fn doctor_ends_with_the_exit_code_that_it_reports() {
    let (code, text) = doctor(&["-o", "json"]);
    let report: Value = serde_json::from_str(&text).expect("one JSON object");
    assert_eq!(report["tracing"]["exit_code"].as_i64(), code.map(i64::from));
    assert_eq!(report["tracing"]["starts"].as_bool(), Some(code == Some(0)));
}

#[test]
fn what_no_kernel_can_trace_is_always_listed() {
    let (_, text) = doctor(&[]);
    assert!(text.contains("resets that are only forwarded between two other hosts"), "{text}");
    let wide = text.lines().find(|line| line.chars().count() > 80);
    assert_eq!(wide, None, "a pipe gets 80 columns");
}
