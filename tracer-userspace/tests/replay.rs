//! `rsttrace replay` as a program: output streams and exit codes.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
};

/// A capture with two broken connections, and changes to it.
struct Capture(PathBuf);

impl Capture {
    fn new(name: &str, change: impl FnOnce(&mut Vec<String>)) -> Self {
        let golden = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/data/6.1/near_miss_conntrack_tuple_reused.cap"
        );
        let whole = fs::read_to_string(golden).expect("the golden capture");
        let mut lines: Vec<String> = whole.split_inclusive('\n').map(str::to_owned).collect();
        change(&mut lines);
        let path = std::env::temp_dir().join(format!("rsttrace-{name}-{}", std::process::id()));
        fs::write(&path, lines.concat()).expect("a file");
        Self(path)
    }

    fn replay(&self, options: &[&str]) -> Run {
        let mut replay = Command::new(env!("CARGO_BIN_EXE_rsttrace"));
        let output = replay.args(["replay", "-o", "json"]).args(options).arg(&self.0).output();
        let Output { status, stdout, stderr } = output.expect("rsttrace runs");
        let text = |bytes| String::from_utf8(bytes).expect("text");
        let incidents = text(stdout).lines().filter(|it| it.contains("rsttrace.incident")).count();
        Run { code: status.code(), incidents, stderr: text(stderr) }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

struct Run {
    code: Option<i32>,
    incidents: usize,
    stderr: String,
}

#[test]
fn a_damaged_line_is_reported_the_rest_is_shown_and_the_exit_code_is_1() {
    let capture = Capture::new("damaged", |lines| lines.insert(3, "{\"ts\":1,\n".into()));
    let run = capture.replay(&[]);
    assert_eq!((run.code, run.incidents), (Some(1), 2), "{}", run.stderr);
    assert!(run.stderr.contains("line 4: not a valid event (EOF"), "{}", run.stderr);
    assert!(run.stderr.contains("0 events lost, 1 undecodable, 0 evicted"), "{}", run.stderr);
}

#[test]
fn thousands_of_damaged_lines_are_counted_and_some_are_reported() {
    let capture = Capture::new("garbage", |lines| lines.extend(vec!["garbage\n".into(); 5000]));
    let run = capture.replay(&[]);
    assert_eq!((run.code, run.incidents), (Some(1), 2), "{}", run.stderr);
    assert!(
        run.stderr.contains("damaged lines in ") && run.stderr.contains(": 5000"),
        "{}",
        run.stderr
    );
    assert!(run.stderr.lines().count() < 20, "{}", run.stderr);
}

#[test]
fn a_truncated_last_line_is_reported_and_is_not_an_error() {
    let capture = Capture::new("cut", |lines| {
        if let Some(last) = lines.last_mut() {
            last.truncate(10);
        }
    });
    let run = capture.replay(&[]);
    assert_eq!((run.code, run.incidents), (Some(0), 2), "{}", run.stderr);
    assert!(run.stderr.contains("is cut off"), "{}", run.stderr);
}

#[test]
fn events_of_a_newer_build_are_skipped_and_counted() {
    let event = "{\"ts\":1,\"netns\":1,\"body\":{\"of_the_future\":{}}}\n";
    let capture = Capture::new("newer", |lines| lines.insert(3, event.into()));
    let run = capture.replay(&[]);
    assert_eq!((run.code, run.incidents), (Some(0), 2), "{}", run.stderr);
    assert!(run.stderr.contains("written by a newer rsttrace: 1"), "{}", run.stderr);
}

#[test]
fn count_counts_the_incidents_that_match_the_filters() {
    let capture = Capture::new("filters", |_| {});
    for (options, incidents) in [
        (&["--count", "1"][..], 1),
        (&["--count", "2"], 2),
        (&["--cause", "linger_zero", "--count", "1"], 1),
        (&["--cause", "linger_zero", "--count", "2"], 1),
        (&["--family", "capacity"], 0),
        (&["--port", "3306"], 2),
        (&["--port", "3307"], 0),
    ] {
        let run = capture.replay(options);
        assert_eq!((run.code, run.incidents), (Some(0), incidents), "{options:?}: {}", run.stderr);
    }
}

#[test]
fn fail_on_applies_to_the_incidents_that_match_the_filters() {
    let capture = Capture::new("fail-on", |_| {});
    let code = |options: &[&str]| capture.replay(options).code;
    assert_eq!(code(&["--fail-on", "linger_zero"]), Some(5));
    assert_eq!(code(&["--fail-on", "capacity"]), Some(0));
    assert_eq!(code(&["--fail-on", "linger_zero", "--src", "192.0.2.1"]), Some(0));
    assert_eq!(code(&["--fail-on", "linger_zero", "--cause", "conntrack_deleted"]), Some(2));
}

#[test]
fn a_full_disk_ends_replay_with_an_error_and_exit_code_1() {
    let capture = Capture::new("full", |_| ());
    let full = || fs::File::options().write(true).open("/dev/full").expect("the device");
    let mut replay = Command::new(env!("CARGO_BIN_EXE_rsttrace"));
    let output = replay.arg("replay").arg(&capture.0).stdout(full()).output().expect("it runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("No space left on device"), "{stderr}");
}

#[test]
fn a_failing_standard_error_does_not_end_replay() {
    let capture = Capture::new("unread", |_| ());
    let full = fs::File::options().write(true).open("/dev/full").expect("the device");
    let mut replay = Command::new(env!("CARGO_BIN_EXE_rsttrace"));
    let output = replay.arg("replay").arg(&capture.0).stderr(full).output().expect("it runs");
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stdout).contains("VERDICT"));
}

#[test]
fn benign_resets_are_shown_when_a_filter_names_them() {
    let golden =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/6.1/near_miss_ipvs_refused_later.cap");
    let shown = |options: &[&str]| {
        let mut replay = Command::new(env!("CARGO_BIN_EXE_rsttrace"));
        let replay = replay.args(["replay", "-o", "json", golden]).args(options);
        let output = replay.output().expect("it runs");
        String::from_utf8_lossy(&output.stdout).matches("rsttrace.incident").count()
    };
    let benign = shown(&["--family", "benign"]);
    assert!(benign > 0);
    assert_eq!(shown(&[]) + benign, shown(&["--all"]));
}
