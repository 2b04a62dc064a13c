//! A capture: the events of the correlator as text, one event per line.
//!
//! A capture holds decoded events (functions and reasons by name, times converted), host state, owners of
//! sockets, coverage and the times at which cases got their verdicts. A replay needs neither the kernel nor
//! root and prints the same bytes. Kernel addresses are replaced by small numbers.

use std::{
    collections::HashMap,
    io::{self, BufRead, Write},
};

use lines::{Line, Lines};
use rsttrace_model::escape;
use serde::{Deserialize, Serialize};

use crate::event::{Body, Event, Socket};

pub mod lines;
mod newer;
#[cfg(test)]
mod tests;

/// The format version. It is increased when this build can no longer read older captures.
const VERSION: u32 = 1;

/// The longest line that is read, bytes: a namespace with some thousand IPVS services fits.
pub const MAX_LINE: u64 = 16 << 20;

#[derive(Serialize, Deserialize)]
struct Header {
    rsttrace_capture: u32,
    /// The version of rsttrace that wrote it.
    writer: String,
}

/// What is wrong with a capture, and at which line. The lines after a damaged or overlong line are still read.
#[derive(Debug)]
pub enum CaptureError {
    Io {
        line: u64,
        error: io::Error,
    },
    /// The first line is not the header of a capture.
    NotACapture,
    /// The file is neither a capture nor a stream of events.
    NotAStream,
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
    /// The last line has no end: the recorder was killed, or is still writing.
    Cut {
        line: u64,
    },
}

impl std::fmt::Display for CaptureError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io { line, error } => write!(f, "cannot read line {line}: {error}"),
            Self::NotACapture => {
                write!(
                    f,
                    "line 1: not the header of a capture (expected a file of `rsttrace record`)"
                )
            }
            Self::NotAStream => write!(
                f,
                "neither a capture of rsttrace (`rsttrace record`) nor its events, one per line \
                 (`rsttrace live -o json`)"
            ),
            Self::Version { found } => write!(
                f,
                "unsupported capture format {found} (expected {VERSION}): replay the capture with the \
                 rsttrace that recorded it"
            ),
            Self::TooLong { line } => {
                write!(f, "line {line}: longer than {MAX_LINE} bytes, the limit of a line")
            }
            Self::Event { line, error } => {
                // The text of the error ends with a position in the line as if the line were the
                // file. It may quote the file, which may hold any bytes.
                let text = error.to_string();
                let what = text.rsplit_once(" at line ").map_or(&*text, |(what, _)| what);
                let (column, what) = (error.column(), escape::terminal(what));
                write!(f, "line {line}: not a valid event ({what} at column {column})")
            }
            Self::Cut { line } => {
                write!(f, "line {line}: the last line is cut off (the recorder did not finish it)")
            }
        }
    }
}

impl std::error::Error for CaptureError {}

/// Writes events to a capture.
pub struct Writer<W> {
    out: W,
    ids: HashMap<u64, u64>,
}

impl<W: Write> Writer<W> {
    /// Starts a capture.
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

    /// Flushes everything that was written.
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
        Body::PacketDrop(_)
        | Body::Session(_)
        | Body::IpvsEnd(_)
        | Body::IpvsServerRemoved(_)
        | Body::NatChainRemoved(_)
        | Body::IpvsOrphan(_)
        | Body::ConntrackEnd(_)
        | Body::ConntrackInvalid(_)
        | Body::Netns(_)
        | Body::Owner { .. }
        | Body::Process { .. }
        | Body::Survived { .. }
        | Body::InitialState(_)
        | Body::StateLookup(_)
        | Body::AcceptQueue(_)
        | Body::Lost(_)
        | Body::EndedSockets(_)
        | Body::FilteredFlow(_)
        | Body::FilterRules(_)
        | Body::RejectingRules(_)
        | Body::PeerSocket(_)
        | Body::SkippedRuns(_)
        | Body::Tick
        | Body::Unknown { .. } => None,
    }
}

fn write_line(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    out.write_all(b"\n")
}

/// Reads a capture event by event. A damaged line gives an error, and reading continues with the next line.
pub struct Reader<R> {
    lines: Lines<R>,
    ended: bool,
}

impl<R: BufRead> Reader<R> {
    /// Checks that this is a capture.
    ///
    /// # Errors
    /// [`CaptureError`] when the input is not a capture, or a capture of another version.
    pub fn new(input: R) -> Result<Self, CaptureError> {
        let mut lines = Lines::new(input, MAX_LINE);
        let line = lines.read().map_err(|error| CaptureError::Io { line: 1, error })?;
        if !matches!(line, Line::Whole) {
            return Err(CaptureError::NotACapture);
        }
        let header: Header =
            serde_json::from_slice(&lines.bytes).map_err(|_| CaptureError::NotACapture)?;
        match header.rsttrace_capture {
            VERSION => Ok(Self { lines, ended: false }),
            found => Err(CaptureError::Version { found }),
        }
    }

    fn next_event(&mut self) -> Result<Option<Event>, CaptureError> {
        let line = self.lines.read();
        let number = self.lines.number;
        match line {
            Ok(Line::Whole) => newer::event(&self.lines.bytes)
                .map(Some)
                .map_err(|error| CaptureError::Event { line: number, error }),
            Ok(Line::TooLong) => Err(CaptureError::TooLong { line: number }),
            Ok(Line::None) => {
                self.ended = true;
                Ok(None)
            }
            Ok(Line::Cut) => {
                self.ended = true;
                Err(CaptureError::Cut { line: number })
            }
            Err(error) => {
                self.ended = true;
                Err(CaptureError::Io { line: number, error })
            }
        }
    }
}

impl<R: BufRead> Iterator for Reader<R> {
    type Item = Result<Event, CaptureError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended { None } else { self.next_event().transpose() }
    }
}
