//! Output of incidents, for every command that prints them: filters, formats, limits, summary.

use std::io;

use rsttrace_core::{
    correlator::RunCounters, event::Session, incident::Incident, summary::Summary, verdict::Family,
};
use rsttrace_model::flow::Nanos;
use rsttrace_schema::json;

use super::{Exit, say, stdout};
use crate::{
    cli::{OutputFormat, ShowArgs},
    filter::Filter,
    render::table::{Table, TableOptions},
};

/// Prints incidents.
pub struct Show<'a> {
    args: &'a ShowArgs,
    filter: Filter,
    table: Table,
    summary: Summary,
    /// Set by `--all`, or by a filter that names benign causes.
    shows_benign: bool,
    shown: u64,
    found: bool,
    /// The reader of standard output has exited.
    closed: bool,
    /// Why standard output could not be written, if for another reason.
    failure: Option<anyhow::Error>,
}

impl<'a> Show<'a> {
    pub fn new(args: &'a ShowArgs) -> Self {
        let options = TableOptions {
            color: args.color.on_stdout(),
            width: args.width(),
            wide: args.output == OutputFormat::Wide,
        };
        let filter = args.filter();
        Self {
            args,
            shows_benign: args.all || filter.asks_for_benign(),
            filter,
            table: Table::new(options),
            summary: Summary::default(),
            shown: 0,
            found: false,
            closed: false,
            failure: None,
        }
    }

    fn is_text(&self) -> bool {
        matches!(self.args.output, OutputFormat::Table | OutputFormat::Wide)
    }

    /// Sets the host and boot id of the summary events.
    pub fn session(&mut self, session: &Session) {
        self.summary.hostname.clone_from(&session.hostname);
        self.summary.boot_id.clone_from(&session.boot_id);
    }

    /// Whether `--count` is reached, or nothing can be printed any more.
    pub fn is_full(&self) -> bool {
        self.closed || self.args.count.is_some_and(|count| self.shown >= count)
    }

    /// Checks whether the reader of standard output has exited. With nothing to print, no write would fail.
    pub fn look_for_reader(&mut self) {
        self.closed |= reader_is_gone();
    }

    /// Takes over the counters of the correlator.
    pub fn count(&mut self, counters: &RunCounters, unreadable: u64) {
        self.summary.update(counters, unreadable);
    }

    /// Prints the incidents that match the filters; `now` is for folding.
    pub fn incidents(&mut self, incidents: &[Incident], now: Nanos) {
        for incident in incidents {
            if !self.filter.matches(incident) {
                continue;
            }
            self.summary.count(incident);
            self.found |= self.args.fail_on.as_ref().is_some_and(|wanted| wanted.matches(incident));
            let benign = incident.cause.family == Family::Benign;
            if (benign && !self.shows_benign) || self.is_full() {
                continue;
            }
            if incident.follows.is_none() {
                self.shown += 1;
            }
            let text = match self.args.output {
                OutputFormat::Json | OutputFormat::JsonPretty => {
                    Some(self.json(json::incident(incident)))
                }
                OutputFormat::Table | OutputFormat::Wide => self.table.incident(incident, now),
            };
            self.print(text);
        }
        if self.is_text() {
            let text = self.table.tick(now);
            self.print(text);
        }
    }

    /// Prints a summary event. The text formats have a summary at the end only.
    pub fn periodic_summary(&mut self, wall_ns: i64) {
        if !self.is_text() {
            self.print(Some(self.json(json::summary(&self.summary, wall_ns))));
        }
    }

    /// Prints the folded counts and the closing summary, and returns the exit code.
    ///
    /// # Errors
    /// When standard output could not be written, now or before.
    pub fn close(mut self, wall_ns: i64) -> anyhow::Result<Exit> {
        let text = match self.is_text() {
            true => self.table.flush(),
            false => Some(self.json(json::summary(&self.summary, wall_ns))),
        };
        self.print(text);
        say(&rsttrace_core::summary::summary_text(&self.summary));
        match (self.failure, self.found) {
            (Some(error), _) => Err(error),
            (None, true) => Ok(Exit::Found),
            (None, false) => Ok(Exit::Fine),
        }
    }

    /// A line of JSON in the requested format.
    fn json(&self, line: String) -> String {
        match self.args.output {
            OutputFormat::JsonPretty => json::pretty(&line),
            _ => line,
        }
    }

    /// Prints a text. A closed pipe ends the run without an error; any other failure is an error.
    fn print(&mut self, text: Option<String>) {
        let Some(mut text) = text.filter(|_| !self.closed) else {
            return;
        };
        if !text.ends_with('\n') {
            text.push('\n');
        }
        match stdout::write(&text) {
            Ok(reads) => self.closed = !reads,
            Err(error) => {
                self.closed = true;
                self.failure = Some(error);
            }
        }
    }
}

/// Whether standard output is a pipe whose reader has exited.
fn reader_is_gone() -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let stdout = io::stdout();
    // No event is requested, because poll always reports error conditions.
    let mut fds = [PollFd::new(&stdout, PollFlags::empty())];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&at_once)).is_ok() && fds[0].revents().contains(PollFlags::ERR)
}
