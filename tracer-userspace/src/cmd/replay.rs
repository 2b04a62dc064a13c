//! `rsttrace replay FILE`: the verdicts of a capture, on any machine, without root.

use std::{fs::File, io::BufReader};

use anyhow::Context as _;

use super::{Exit, Failure, show::Show};
use crate::{capture::Reader, cli::ReplayArgs, correlator::Correlator, event::Body};

/// Replays a whole capture.
///
/// # Errors
/// [`Failure`] when the file is no capture, or with the place at which it is damaged; what came before
/// that place is printed.
pub fn run(args: &ReplayArgs) -> Result<Exit, Failure> {
    let name = args.file.display();
    let file = File::open(&args.file).with_context(|| format!("cannot open {name}"))?;
    let reader =
        Reader::new(BufReader::new(file)).with_context(|| format!("cannot read {name}"))?;
    let mut show = Show::new(&args.show);
    let mut correlator = Correlator::new();
    let mut wall_ns = 0;
    let mut damage = None;
    for event in reader {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                damage = Some(error);
                break;
            }
        };
        let now = event.ts;
        if let Body::Session(session) = &event.body {
            wall_ns = session.wall_offset_ns.saturating_add_unsigned(now);
        }
        show.incidents(&correlator.feed(event), now);
        if show.is_full() {
            break;
        }
    }
    // A recorder that was killed left cases open.
    show.incidents(&correlator.finish(), u64::MAX);
    show.count(&correlator.counters(), 0);
    let exit = show.close(wall_ns);
    match damage {
        Some(error) => {
            Err(anyhow::Error::new(error).context(format!("cannot read on in {name}")).into())
        }
        None => Ok(exit),
    }
}
