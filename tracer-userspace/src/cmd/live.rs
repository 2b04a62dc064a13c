//! `rsttrace live`: attaches the hooks and prints one incident per broken connection.

use rsttrace_core::event::{Body, Event};
use rsttrace_kernel::live::wall;
use rsttrace_model::flow::Nanos;

use super::{
    Exit, Failure,
    show::Show,
    stream::{Observer, Turn, trace},
};
use crate::cli::LiveArgs;

/// Interval of the summary events.
const SUMMARY_EVERY: Nanos = 60_000_000_000;

/// Runs until a signal, a limit or a closed pipe.
///
/// # Errors
/// [`Failure`] with its exit code when tracing cannot start.
pub fn run(args: &LiveArgs) -> Result<Exit, Failure> {
    let mut printer = Printer { show: Show::new(&args.show), next_summary: None };
    trace(&args.trace, &mut printer)?;
    Ok(printer.show.close(wall())?)
}

struct Printer<'a> {
    show: Show<'a>,
    next_summary: Option<Nanos>,
}

impl Observer for Printer<'_> {
    fn event(&mut self, event: &Event) -> anyhow::Result<()> {
        if let Body::Session(session) = &event.body {
            self.show.session(session);
        }
        Ok(())
    }

    fn turn(&mut self, turn: &Turn<'_>) -> anyhow::Result<bool> {
        self.show.count(&turn.counters, turn.unreadable);
        self.show.incidents(turn.incidents, turn.now);
        let due = *self.next_summary.get_or_insert(turn.now + SUMMARY_EVERY);
        if turn.now >= due {
            self.next_summary = Some(due + SUMMARY_EVERY);
            self.show.periodic_summary(wall());
        }
        self.show.look_for_reader();
        Ok(!self.show.is_full())
    }
}
