//! `rsttrace explain` as a program: streams and exit codes.

use std::{
    fs::File,
    io::Read as _,
    process::{Command, Output, Stdio},
};

fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rsttrace"));
    command.args(args).stdin(Stdio::null());
    command
}

fn run(command: &mut Command) -> Output {
    command.output().expect("the program runs")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn an_unknown_cause_is_a_usage_error_on_standard_error_only() {
    let output = run(&mut program(&["explain", "gremlins"]));
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    assert!(stderr(&output).contains("ipvs_idle_expired"), "{}", stderr(&output));
}

#[test]
fn a_full_disk_is_an_error_that_is_reported() {
    let full = File::options().write(true).open("/dev/full").expect("the device");
    let output = run(program(&["explain"]).stdout(full));
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("No space left on device"), "{}", stderr(&output));
}

#[test]
fn a_reader_that_has_exited_ends_explain_without_an_error() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = run(program(&["explain", "-o", "json"]).stdout(writer));
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(stderr(&output), "");
}

#[test]
fn json_is_one_object_per_line_and_nothing_else() {
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let mut child = program(&["explain", "-o", "json"]).stdout(writer).spawn().expect("it runs");
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("text");
    assert!(child.wait().expect("it ends").success());
    let causes: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(causes.len(), rsttrace_core::causes::ALL.len());
    assert!(causes.iter().all(|cause| cause["cause"].is_string() && cause["fixes"].is_array()));
}
