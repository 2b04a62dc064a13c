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

/// Damaged lines that are named one by one; a file that is no capture any more has thousands.
const NAMED: u64 = 10;

/// Replays a whole capture.
///
/// # Errors
/// [`Failure`] when the file is no capture, or when lines of it were damaged: those are named on
/// standard error, and the others are replayed all the same.
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
                // A recorder that was killed does not make what it wrote wrong.
                damaged += u64::from(!matches!(error, CaptureError::Cut { .. }));
                if damaged <= NAMED {
                    say(&format!("rsttrace: {name}: {error}"));
                }
                continue;
            }
        };
        let now = event.ts;
        match &event.body {
            // It ends a run at the end of time.
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
        // A recorder that was killed left cases open.
        show.incidents(&correlator.finish(), u64::MAX);
    }
    show.count(&correlator.counters(), damaged);
    let exit = show.close(clock.wall())?;
    match (damaged, correlator.counters().unknown_records) {
        (0, 0) => {}
        (0, unknown) => say(&format!(
            "rsttrace: events skipped, because a newer rsttrace wrote them and this build does not know \
             their kind: {unknown}"
        )),
        (damaged, _) => {
            return Err(anyhow!("lines of {name} that cannot be read: {damaged}").into());
        }
    }
    Ok(exit)
}

/// The recording machine's clock.
#[derive(Default)]
struct Clock {
    /// Its CLOCK_REALTIME minus its CLOCK_MONOTONIC, nanoseconds.
    offset: i64,
    /// The newest event, CLOCK_MONOTONIC nanoseconds.
    last: u64,
}

impl Clock {
    fn wall(&self) -> i64 {
        self.offset.saturating_add_unsigned(self.last)
    }
}
