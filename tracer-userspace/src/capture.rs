//! A capture: the stream that the correlator eats, as text, one event a line.
//!
//! It holds decoded events (functions and reasons by name, times converted), host state, owner
//! look-ups, coverage and the moments at which cases were judged, so that a replay needs neither the
//! kernel nor root and prints the same bytes. Kernel addresses are replaced by small numbers.

use std::{
    collections::HashMap,
    io::{self, BufRead, Read as _, Write},
};

use serde::{Deserialize, Serialize};

use crate::event::{Body, Event, Socket};

/// Raised when an old capture can no longer be read.
const VERSION: u32 = 1;

/// The longest line that is read: a namespace with some thousand IPVS services fits, and nothing
/// that a damaged file claims is ever allocated.
const MAX_LINE: u64 = 16 << 20;

#[derive(Serialize, Deserialize)]
struct Header {
    rsttrace_capture: u32,
    /// The version of rsttrace that wrote it.
    writer: String,
}

/// Why a capture cannot be read, with the line.
#[derive(Debug)]
pub enum CaptureError {
    Io {
        line: u64,
        error: io::Error,
    },
    /// The first line is not a capture's.
    NotACapture,
    Version {
        found: u32,
    },
    TooLong {
        line: u64,
    },
    Event {
        line: u64,
        error: serde_json::Error,
    },
}

impl std::fmt::Display for CaptureError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io { line, error } => write!(f, "line {line} cannot be read: {error}"),
            Self::NotACapture => write!(f, "this is not a capture of rsttrace (line 1)"),
            Self::Version { found } => write!(
                f,
                "the capture has format {found}; this build reads {VERSION}: replay it with the \
                 rsttrace that recorded it"
            ),
            Self::TooLong { line } => write!(f, "line {line} is longer than any event"),
            Self::Event { line, error } => {
                write!(f, "line {line}, column {}, is no event: {error}", error.column())
            }
        }
    }
}

impl std::error::Error for CaptureError {}

/// Writes events as they come.
pub struct Writer<W> {
    out: W,
    ids: HashMap<u64, u64>,
}

impl<W: Write> Writer<W> {
    /// Begins a capture.
    ///
    /// # Errors
    /// Those of the output.
    pub fn new(mut out: W) -> io::Result<Self> {
        let header =
            Header { rsttrace_capture: VERSION, writer: env!("CARGO_PKG_VERSION").to_owned() };
        write_line(&mut out, &header)?;
        Ok(Self { out, ids: HashMap::new() })
    }

    /// Adds one event.
    ///
    /// # Errors
    /// Those of the output.
    pub fn event(&mut self, event: &Event) -> io::Result<()> {
        let mut event = event.clone();
        if let Some(socket) = socket_of(&mut event.body) {
            let next = self.ids.len() as u64 + 1;
            socket.id = *self.ids.entry(socket.id).or_insert(next);
        }
        write_line(&mut self.out, &event)
    }

    /// Makes everything written so far readable.
    ///
    /// # Errors
    /// Those of the output.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn socket_of(body: &mut Body) -> Option<&mut Socket> {
    match body {
        Body::ResetSent(it) => it.socket.as_mut(),
        Body::ResetReceived(it) => Some(&mut it.socket),
        Body::SocketError(it) => Some(&mut it.socket),
        _ => None,
    }
}

fn write_line(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    out.write_all(b"\n")
}

/// Reads a capture event by event.
pub struct Reader<R> {
    input: R,
    line: u64,
    buffer: Vec<u8>,
}

impl<R: BufRead> Reader<R> {
    /// Checks that this is a capture.
    ///
    /// # Errors
    /// [`CaptureError`] when it is none, or of another version.
    pub fn new(input: R) -> Result<Self, CaptureError> {
        let mut reader = Self { input, line: 0, buffer: Vec::new() };
        if !reader.next_line()? {
            return Err(CaptureError::NotACapture);
        }
        let header: Header =
            serde_json::from_slice(&reader.buffer).map_err(|_| CaptureError::NotACapture)?;
        match header.rsttrace_capture {
            VERSION => Ok(reader),
            found => Err(CaptureError::Version { found }),
        }
    }

    /// Reads a line into the buffer; whether there was one. A last line without its end is one that
    /// was being written when the recorder died: it is not an event.
    fn next_line(&mut self) -> Result<bool, CaptureError> {
        self.line += 1;
        self.buffer.clear();
        let line = self.line;
        let read = (&mut self.input)
            .take(MAX_LINE)
            .read_until(b'\n', &mut self.buffer)
            .map_err(|error| CaptureError::Io { line, error })?;
        if self.buffer.last() == Some(&b'\n') {
            return Ok(true);
        }
        if read as u64 == MAX_LINE {
            return Err(CaptureError::TooLong { line });
        }
        Ok(false)
    }
}

impl<R: BufRead> Iterator for Reader<R> {
    type Item = Result<Event, CaptureError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.next_line() {
            Ok(false) => None,
            Ok(true) => Some(
                serde_json::from_slice(&self.buffer)
                    .map_err(|error| CaptureError::Event { line: self.line, error }),
            ),
            Err(error) => Some(Err(error)),
        }
    }
}

#[cfg(test)]
mod tests {
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
    fn another_file_and_another_version_are_refused_with_a_sentence() {
        assert!(matches!(read(b"hello\n"), Err(CaptureError::NotACapture)));
        assert!(matches!(read(b""), Err(CaptureError::NotACapture)));
        let newer = b"{\"rsttrace_capture\":9,\"writer\":\"x\"}\n";
        assert!(matches!(read(newer), Err(CaptureError::Version { found: 9 })));
    }

    #[test]
    fn a_damaged_line_is_named_by_number_and_column() {
        let mut bytes = written(&article());
        bytes.extend(b"{\"ts\":1,\"netns\":}\n");
        let error = read(&bytes).expect_err("damaged").to_string();
        assert!(error.contains("line 6, column 17"), "{error}");
    }

    #[test]
    fn a_recorder_that_died_in_mid_line_loses_that_line_only() {
        let bytes = written(&article());
        let all = read(&bytes).expect("a capture").len();
        assert_eq!(read(&bytes[..bytes.len() - 10]).expect("a capture").len(), all - 1);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut capture = written(&[]);
            capture.extend(bytes);
            let _ = read(&capture);
        }
    }
}
