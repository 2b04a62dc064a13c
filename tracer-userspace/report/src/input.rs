//! A capture or a stream of events comes in. Lines that are damaged are told and passed over.

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
    text::Text,
    told::{Counts, Host, SummaryFields, SummaryTold, Told, sane},
};

/// Damaged lines that are named one by one; a file that is something else has thousands.
const NAMED: usize = 10;

/// What was wrong with the file.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Lines that cannot be read.
    pub damaged: u64,
    /// The first of them, and a cut end, by place.
    pub named: Vec<String>,
    /// Lines that are JSON, but no events of rsttrace.
    pub foreign: u64,
    /// Events that only a newer build knows.
    pub newer: u64,
}

impl Faults {
    fn note(&mut self, error: &CaptureError, say: &mut dyn FnMut(&str)) {
        // A recorder that was killed does not make what it wrote wrong.
        self.damaged += u64::from(!matches!(error, CaptureError::Cut { .. }));
        if self.named.len() < NAMED {
            let text = error.to_string();
            say(&text);
            self.named.push(text);
        }
    }
}

/// Where the events came from.
#[derive(Clone, Debug)]
pub struct Input {
    pub file: Text,
    /// `capture` or `ndjson`.
    pub kind: &'static str,
    pub faults: Faults,
}

/// Reads all of it; `say` is told of each fault.
///
/// # Errors
/// When the file holds neither a capture nor a single event.
pub fn read(
    file: Text,
    mut input: impl BufRead,
    gather: &mut Gather,
    say: &mut dyn FnMut(&str),
) -> Result<Input, CaptureError> {
    let io = |error| CaptureError::Io { line: 1, error };
    let mut first = Vec::new();
    (&mut input).take(MAX_LINE).read_until(b'\n', &mut first).map_err(io)?;
    let is_capture = first.starts_with(b"{\"rsttrace_capture\"");
    let all = io::Cursor::new(first).chain(input);
    let (kind, faults) = match is_capture {
        true => ("capture", capture(Reader::new(all)?, gather, say)),
        false => ("ndjson", stream(Lines::new(all, MAX_LINE), gather, say)?),
    };
    Ok(Input { file, kind, faults })
}

/// The recording machine's clock: CLOCK_REALTIME minus CLOCK_MONOTONIC, and the newest event.
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

/// Replays a capture, and takes its incidents as a stream would tell them.
fn capture<R: BufRead>(
    reader: Reader<R>,
    gather: &mut Gather,
    say: &mut dyn FnMut(&str),
) -> Faults {
    let mut faults = Faults::default();
    let mut correlator = Correlator::new();
    let (mut clock, mut host, mut began) = (Clock::default(), Text::default(), false);
    for event in reader {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                faults.note(&error, say);
                continue;
            }
        };
        match &event.body {
            // It ends a run at the end of time.
            Body::Tick => {}
            Body::Session(session) => {
                // The same one comes again when a module is loaded.
                clock = Clock { offset: session.wall_offset_ns, last: event.ts };
                host = Text::new(&session.hostname);
                began = true;
                gather.saw(clock.wall(event.ts));
                gather.session(Session::clone(session));
            }
            // What a namespace held, not when something happened.
            Body::Netns(state) => {
                let wall_ns = clock.wall(event.ts);
                gather.namespaces.state(wall_ns, (**state).clone(), &gather.selection.window);
            }
            _ => clock.last = clock.last.max(event.ts),
        }
        let incidents = correlator.feed(event);
        incidents.iter().for_each(|incident| tell(&json::incident(incident), gather));
    }
    // A recorder that was killed left cases open.
    correlator.finish().iter().for_each(|incident| tell(&json::incident(incident), gather));
    let counters = correlator.counters();
    faults.newer = counters.unknown_records;
    if began {
        gather.saw(clock.wall(clock.last));
        gather.runs.summary(
            SummaryTold {
                wall_ns: clock.wall(clock.last),
                host: Host { name: host },
                rsttrace: SummaryFields {
                    summary: Counts {
                        absorbed: counters.absorbed,
                        forgotten: counters.evicted,
                        ..Counts::default()
                    },
                    lost_events: counters.lost,
                },
            },
            false,
        );
    }
    faults
}

fn tell(line: &str, gather: &mut Gather) {
    // Our own line: it is an incident.
    if let Ok(told) = serde_json::from_str::<Told>(line) {
        gather.incident(told);
    }
}

/// What an event says it is.
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

/// Reads NDJSON.
fn stream<R: BufRead>(
    mut lines: Lines<R>,
    gather: &mut Gather,
    say: &mut dyn FnMut(&str),
) -> Result<Faults, CaptureError> {
    let mut faults = Faults::default();
    let mut events = 0_u64;
    loop {
        let line = lines.number + 1;
        let ending = lines.read().map_err(|error| CaptureError::Io { line, error })?;
        let cut = match ending {
            Line::None => break,
            Line::TooLong => {
                faults.note(&CaptureError::TooLong { line }, say);
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
            Err(_) if cut => faults.note(&CaptureError::Cut { line }, say),
            Err(error) => faults.note(&CaptureError::Event { line, error }, say),
        }
    }
    match events {
        0 => Err(CaptureError::NotAStream),
        _ => Ok(faults),
    }
}

/// Whether a line is an event of ours.
fn event(line: &[u8], gather: &mut Gather) -> serde_json::Result<bool> {
    let envelope = match serde_json::from_slice::<Envelope>(line) {
        Ok(envelope) => envelope,
        Err(_) => {
            // Something else's JSON, or none.
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
