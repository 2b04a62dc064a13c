//! Captures, whole and damaged.

use proptest::prelude::*;

use super::*;
use crate::testing::{article, session};

fn written(events: &[Event]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes).expect("memory");
    for event in events {
        writer.event(event).expect("memory");
    }
    bytes
}

fn read(bytes: &[u8]) -> Result<Vec<Event>, CaptureError> {
    Reader::new(bytes)?.collect()
}

#[test]
fn what_was_written_is_read_back() {
    let mut events = vec![session(5)];
    events.extend(article());
    assert_eq!(read(&written(&events)).expect("a capture"), events);
}

#[test]
fn kernel_addresses_do_not_reach_the_file() {
    let mut events = article();
    if let Some(socket) = events.iter_mut().find_map(|event| socket_of(&mut event.body)) {
        socket.id = 0xffff_8880_1234_5678;
    }
    let text = String::from_utf8(written(&events)).expect("text");
    assert!(!text.contains("18446612682375845496"), "{text}");
}

#[test]
fn another_file_and_another_version_are_rejected() {
    assert!(matches!(read(b"hello\n"), Err(CaptureError::NotACapture)));
    assert!(matches!(read(b""), Err(CaptureError::NotACapture)));
    let newer = b"{\"rsttrace_capture\":9,\"writer\":\"x\"}\n";
    assert!(matches!(read(newer), Err(CaptureError::Version { found: 9 })));
}

/// The events that could be read, and the error messages for the other lines.
fn read_all(bytes: &[u8]) -> (Vec<Event>, Vec<String>) {
    let (mut events, mut messages) = (Vec::new(), Vec::new());
    for event in Reader::new(bytes).expect("a capture") {
        match event {
            Ok(event) => events.push(event),
            Err(error) => messages.push(error.to_string()),
        }
    }
    (events, messages)
}

/// The capture with a line inserted before its third line.
fn with_third_line(line: &[u8]) -> Vec<u8> {
    let mut lines: Vec<&[u8]> = Vec::new();
    let bytes = written(&article());
    lines.extend(bytes.split_inclusive(|byte| *byte == b'\n'));
    lines.insert(2, line);
    lines.concat()
}

#[test]
fn a_damaged_line_is_reported_by_number_and_column_and_the_rest_is_read() {
    let (events, messages) = read_all(&with_third_line(b"{\"ts\":1,\"netns\":}\n"));
    assert_eq!(events, article());
    assert_eq!(messages.len(), 1, "{messages:?}");
    let message = &messages[0];
    assert!(message.starts_with("line 3: not a valid event ("), "{message}");
    assert!(message.ends_with(" at column 17)"), "{message}");
}

#[test]
fn an_overlong_line_is_skipped_and_reported() {
    let longest = usize::try_from(MAX_LINE).expect("a size");
    for length in [longest, longest + 1, longest + 9000] {
        let mut line = vec![b'{'; length];
        line[length - 1] = b'\n';
        let (events, messages) = read_all(&with_third_line(&line));
        assert_eq!(events, article());
        let expected = if length == longest { "not a valid event (" } else { "longer than " };
        assert!(messages[0].starts_with(&format!("line 3: {expected}")), "{messages:?}");
    }
}

#[test]
fn a_file_with_one_endless_line_is_rejected_and_not_read_to_its_end() {
    let endless = io::BufReader::new(io::repeat(b'0'));
    assert!(matches!(Reader::new(endless), Err(CaptureError::NotACapture)));
}

#[test]
fn a_recorder_that_died_in_mid_line_loses_only_that_line_and_the_loss_is_reported() {
    let bytes = written(&article());
    let (events, messages) = read_all(&bytes[..bytes.len() - 10]);
    assert_eq!(events, article()[..article().len() - 1]);
    assert_eq!(messages, ["line 5: the last line is cut off (the recorder did not finish it)"]);
}

#[test]
fn an_event_of_a_newer_build_is_not_a_damaged_line() {
    for line in [
        r#"{"ts":7,"netns":3,"body":{"syn_flood":{"anything":[1,{"x":2}]}},"more":1}"#,
        r#"{"ts":7,"netns":3,"body":"tock"}"#,
    ] {
        let (events, messages) = read_all(&with_third_line(format!("{line}\n").as_bytes()));
        assert_eq!(messages, [""; 0]);
        assert!(
            matches!(events[1], Event { ts: 7, netns: 3, body: Body::Unknown { kind: 0, .. } }),
            "{:?}",
            events[1]
        );
    }
}

#[test]
fn a_known_event_with_wrong_content_is_a_damaged_line() {
    for line in [
        r#"{"ts":7,"netns":3,"body":{"lost":"many"}}"#,
        r#"{"ts":7,"netns":3,"body":{}}"#,
        r#"{"ts":7,"netns":3,"body":{"tick":1}}"#,
        r#"{"ts":7,"netns":3}"#,
    ] {
        let (_, messages) = read_all(&with_third_line(format!("{line}\n").as_bytes()));
        assert_eq!(messages.len(), 1, "{line}");
    }
}

#[test]
fn the_content_of_a_damaged_line_does_not_reach_the_terminal() {
    let line = "{\"ts\":7,\"netns\":3,\"body\":{\"lost\":\"\\u001b[2J\"},\"\\u001b]0;x\":1}\n";
    let (_, messages) = read_all(&with_third_line(line.as_bytes()));
    assert!(!messages[0].contains('\u{1b}'), "{messages:?}");
    let error = serde::de::Error::unknown_variant("\u{1b}[2J", &[]);
    assert!(!CaptureError::Event { line: 1, error }.to_string().contains('\u{1b}'));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut capture = written(&[]);
        capture.extend(bytes);
        let _ = read(&capture);
    }
}
