//! `rsttrace replay FILE`: the verdicts of a capture, on any machine, without root.

use std::{fs::File, io::BufReader};

use anyhow::{Context as _, anyhow};
use rsttrace_core::{
    capture::{CaptureError, Reader},
    correlator::Correlator,
    event::Body,
};

use super::{Exit, Failure, say, show::Show};
use crate::cli::ReplayArgs;

/// Damaged lines that are reported one by one; a badly damaged capture has thousands.
const NAMED: u64 = 10;

/// Replays a whole capture.
///
/// # Errors
/// [`Failure`] when the file is not a capture, or has damaged lines. Damaged lines are reported on standard
/// error, and the other lines are replayed.
pub fn run(args: &ReplayArgs) -> Result<Exit, Failure> {
    let name = args.file.display();
    let file = File::open(&args.file).with_context(|| format!("cannot open {name}"))?;
    let reader =
        Reader::new(BufReader::new(file)).with_context(|| format!("cannot read {name}"))?;
    let mut show = Show::new(&args.show);
    let mut correlator = Correlator::new();
    let mut clock = Clock::default();
    let mut damaged = 0;
    for event in reader {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                // A killed recorder leaves a truncated last line; the lines before it are valid.
                damaged += u64::from(!matches!(error, CaptureError::Cut { .. }));
                if damaged <= NAMED {
                    say(&format!("rsttrace: {name}: {error}"));
                }
                continue;
            }
        };
        let now = event.ts;
        match &event.body {
            // The last tick of a run has the maximum timestamp, which is not a time.
            Body::Tick => {}
            Body::Session(session) => {
                show.session(session);
                clock = Clock { offset: session.wall_offset_ns, last: now };
            }
            _ => clock.last = now,
        }
        show.incidents(&correlator.feed(event), now);
        if show.is_full() {
            break;
        }
    }
    if !show.is_full() {
        // The capture of a killed recorder ends with open cases.
        show.incidents(&correlator.finish(), u64::MAX);
    }
    show.count(&correlator.counters(), damaged);
    let exit = show.close(clock.wall())?;
    match (damaged, correlator.counters().unknown_records) {
        (0, 0) => {}
        (0, unknown) => say(&format!(
            "rsttrace: skipped events of an unknown kind, written by a newer rsttrace: {unknown}"
        )),
        (damaged, _) => {
            return Err(anyhow!("damaged lines in {name}: {damaged}").into());
        }
    }
    Ok(exit)
}

/// The clock of the recording machine.
#[derive(Default)]
struct Clock {
    /// CLOCK_REALTIME minus CLOCK_MONOTONIC, nanoseconds.
    offset: i64,
    /// Time of the newest event, CLOCK_MONOTONIC nanoseconds.
    last: u64,
}

impl Clock {
    fn wall(&self) -> i64 {
        self.offset.saturating_add_unsigned(self.last)
    }
}
