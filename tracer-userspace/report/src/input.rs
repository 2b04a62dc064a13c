//! Reads a capture or a stream of events. Damaged lines are reported and skipped.

use std::io::{self, BufRead, Read as _};

use rsttrace_core::{
    capture::{
        CaptureError, MAX_LINE, Reader,
        lines::{Line, Lines},
    },
    correlator::Correlator,
    event::{Body, Session},
};
use rsttrace_schema::json;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;

use super::{
    gather::Gather,
    parsed::{Counts, ParsedIncident, ParsedSummary, sane},
    text::Text,
};

/// Damaged lines that are listed individually; a file of another kind has thousands.
const NAMED: usize = 10;

/// The faults of the file.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// The number of lines that cannot be read.
    pub damaged: u64,
    /// Messages for the first of them and for a cut-off end, with their place.
    pub named: Vec<String>,
    /// Lines that are JSON but not rsttrace events.
    pub foreign: u64,
    /// Events of a kind that only a newer build knows.
    pub newer: u64,
}

impl Faults {
    fn note(&mut self, error: &CaptureError, warn: &mut dyn FnMut(&str)) {
        // A killed recorder cuts the last line off; the lines before it are not damaged.
        self.damaged += u64::from(!matches!(error, CaptureError::Cut { .. }));
        if self.named.len() < NAMED {
            let text = error.to_string();
            warn(&text);
            self.named.push(text);
        }
    }
}

/// The file that the events came from.
#[derive(Clone, Debug)]
pub struct Input {
    pub file: Text,
    /// `capture` or `ndjson`.
    pub kind: &'static str,
    pub faults: Faults,
}

/// Reads the whole file. Calls `warn` for each of the first faults.
///
/// # Errors
/// When the file holds neither a capture nor a single event.
pub fn read(
    file: Text,
    mut input: impl BufRead,
    gather: &mut Gather,
    warn: &mut dyn FnMut(&str),
) -> Result<Input, CaptureError> {
    let io = |error| CaptureError::Io { line: 1, error };
    let mut first = Vec::new();
    (&mut input).take(MAX_LINE).read_until(b'\n', &mut first).map_err(io)?;
    let is_capture = first.starts_with(b"{\"rsttrace_capture\"");
    let all = io::Cursor::new(first).chain(input);
    let (kind, faults) = match is_capture {
        true => ("capture", capture(Reader::new(all)?, gather, warn)),
        false => ("ndjson", stream(Lines::new(all, MAX_LINE), gather, warn)?),
    };
    Ok(Input { file, kind, faults })
}

/// The recording machine's clock: `offset` is CLOCK_REALTIME minus CLOCK_MONOTONIC, `last` the CLOCK_MONOTONIC
/// time of the newest event, both in nanoseconds.
#[derive(Default)]
struct Clock {
    offset: i64,
    last: u64,
}

impl Clock {
    fn wall(&self, ts: u64) -> i64 {
        sane(self.offset.saturating_add_unsigned(ts))
    }
}

/// Replays a capture, and takes its incidents in the form that a stream has.
fn capture<R: BufRead>(
    reader: Reader<R>,
    gather: &mut Gather,
    warn: &mut dyn FnMut(&str),
) -> Faults {
    let mut faults = Faults::default();
    let mut correlator = Correlator::new();
    let (mut clock, mut host, mut has_session) = (Clock::default(), Text::default(), false);
    for event in reader {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                faults.note(&error, warn);
                continue;
            }
        };
        match &event.body {
            // The tick at the end of a run has the largest possible time.
            Body::Tick => {}
            Body::Session(session) => {
                // A session record is repeated when a module is loaded.
                clock = Clock { offset: session.wall_offset_ns, last: event.ts };
                host = Text::new(&session.hostname);
                has_session = true;
                gather.event_at(clock.wall(event.ts));
                gather.session(Session::clone(session));
            }
            // A namespace state is not an event: its time does not extend the range.
            Body::Netns(state) => {
                let wall_ns = clock.wall(event.ts);
                gather.namespaces.state(wall_ns, (**state).clone(), &gather.selection.window);
            }
            _ => clock.last = clock.last.max(event.ts),
        }
        let incidents = correlator.feed(event);
        incidents.iter().for_each(|incident| add(&json::incident(incident), gather));
    }
    // A killed recorder leaves cases open.
    correlator.finish().iter().for_each(|incident| add(&json::incident(incident), gather));
    let counters = correlator.counters();
    faults.newer = counters.unknown_records;
    if has_session {
        gather.event_at(clock.wall(clock.last));
        gather.runs.summary(
            ParsedSummary {
                wall_ns: clock.wall(clock.last),
                host,
                counts: Counts {
                    absorbed: counters.absorbed,
                    forgotten: counters.evicted,
                    ..Counts::default()
                },
                lost_events: counters.lost,
            },
            false,
        );
    }
    faults
}

fn add(line: &str, gather: &mut Gather) {
    // This build wrote the line, so it always parses.
    if let Ok(incident) = serde_json::from_str::<ParsedIncident>(line) {
        gather.incident(incident);
    }
}

/// The part of an event that names its kind.
#[derive(Deserialize)]
struct Envelope {
    #[serde(default)]
    event: Value,
}

impl Envelope {
    fn dataset(&self) -> Option<&str> {
        self.event.get("dataset")?.as_str()
    }
}

/// Reads a stream in NDJSON.
fn stream<R: BufRead>(
    mut lines: Lines<R>,
    gather: &mut Gather,
    warn: &mut dyn FnMut(&str),
) -> Result<Faults, CaptureError> {
    let mut faults = Faults::default();
    let mut events = 0_u64;
    loop {
        let line = lines.number + 1;
        let ending = lines.read().map_err(|error| CaptureError::Io { line, error })?;
        let cut = match ending {
            Line::None => break,
            Line::TooLong => {
                faults.note(&CaptureError::TooLong { line }, warn);
                continue;
            }
            Line::Whole => false,
            Line::Cut => true,
        };
        if lines.bytes.trim_ascii().is_empty() {
            continue;
        }
        match event(&lines.bytes, gather) {
            Ok(true) => events += 1,
            Ok(false) => faults.foreign += 1,
            Err(_) if cut => faults.note(&CaptureError::Cut { line }, warn),
            Err(error) => faults.note(&CaptureError::Event { line, error }, warn),
        }
    }
    match events {
        0 => Err(CaptureError::NotAStream),
        _ => Ok(faults),
    }
}

/// Adds the event of a line; `false` when the line is not an rsttrace event.
fn event(line: &[u8], gather: &mut Gather) -> serde_json::Result<bool> {
    let envelope = match serde_json::from_slice::<Envelope>(line) {
        Ok(envelope) => envelope,
        Err(_) => {
            // JSON of another program is skipped; anything else is an error.
            serde_json::from_slice::<IgnoredAny>(line)?;
            return Ok(false);
        }
    };
    match envelope.dataset() {
        Some("rsttrace.incident") => gather.incident(serde_json::from_slice(line)?),
        Some("rsttrace.summary") => gather.summary(serde_json::from_slice(line)?),
        _ => return Ok(false),
    }
    Ok(true)
}
