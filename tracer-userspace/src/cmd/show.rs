//! Where incidents go, for every command that prints them: filters, formats, limits, summary.

use std::io::{self, Write as _};

use super::Exit;
use crate::{
    cause::Family,
    cli::{OutputFormat, ShowArgs},
    correlator::Counters,
    event::Nanos,
    filter::Filter,
    incident::Incident,
    out::{
        Summary, json,
        table::{Table, TableOptions},
    },
};

/// The printing end.
pub struct Show<'a> {
    args: &'a ShowArgs,
    filter: Filter,
    table: Table,
    summary: Summary,
    shown: u64,
    found: bool,
    /// The reader of standard output is gone.
    closed: bool,
}

impl<'a> Show<'a> {
    pub fn new(args: &'a ShowArgs) -> Self {
        let options = TableOptions {
            color: args.color.on_stdout(),
            width: args.width(),
            wide: args.output == OutputFormat::Wide,
        };
        Self {
            args,
            filter: args.filter(),
            table: Table::new(options),
            summary: Summary::default(),
            shown: 0,
            found: false,
            closed: false,
        }
    }

    fn is_text(&self) -> bool {
        matches!(self.args.output, OutputFormat::Table | OutputFormat::Wide)
    }

    /// `--count` is reached, or nobody reads any more.
    pub fn is_full(&self) -> bool {
        self.closed || self.args.count.is_some_and(|count| self.shown >= count)
    }

    /// Looks whether anybody still reads: with nothing to print, no write would ever tell.
    pub fn look_for_reader(&mut self) {
        self.closed |= reader_is_gone();
    }

    /// Takes over what the correlator counted.
    pub fn count(&mut self, counters: &Counters, unreadable: u64) {
        self.summary.update(counters, unreadable);
    }

    /// Prints what the filters let through; `now` is for folding.
    pub fn incidents(&mut self, incidents: &[Incident], now: Nanos) {
        for incident in incidents {
            if !self.filter.matches(incident) {
                continue;
            }
            self.summary.count(incident);
            self.found |= self.args.fail_on.as_ref().is_some_and(|wanted| wanted.matches(incident));
            let benign = incident.cause.family == Family::Benign;
            if (benign && !self.args.all) || self.is_full() {
                continue;
            }
            if incident.follows.is_none() {
                self.shown += 1;
            }
            let text = match self.args.output {
                OutputFormat::Json => Some(json::incident(incident)),
                OutputFormat::JsonPretty => Some(json::pretty(&json::incident(incident))),
                OutputFormat::Table | OutputFormat::Wide => self.table.incident(incident, now),
            };
            self.print(text);
        }
        if self.is_text() {
            let text = self.table.tick(now);
            self.print(text);
        }
    }

    /// A summary event; people get theirs at the end only.
    pub fn periodic_summary(&mut self, wall_ns: i64) {
        if !self.is_text() {
            self.print(Some(json::summary(&self.summary, wall_ns)));
        }
    }

    /// Folded counts, the closing summary, and the exit code.
    pub fn close(mut self, wall_ns: i64) -> Exit {
        let text = match self.is_text() {
            true => self.table.flush(),
            false => Some(json::summary(&self.summary, wall_ns)),
        };
        self.print(text);
        eprintln!("{}", crate::out::summary_text(&self.summary));
        if self.found { Exit::Found } else { Exit::Fine }
    }

    /// One piece of output, at once: a reader of the pipe must not wait for a buffer to fill. A closed
    /// pipe ends everything quietly.
    fn print(&mut self, text: Option<String>) {
        let Some(mut text) = text.filter(|_| !self.closed) else {
            return;
        };
        if !text.ends_with('\n') {
            text.push('\n');
        }
        let mut out = io::stdout().lock();
        self.closed = out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err();
    }
}

/// Whether standard output is a pipe that nobody reads any more.
fn reader_is_gone() -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let stdout = io::stdout();
    // No event is asked for: an error condition is always reported.
    let mut fds = [PollFd::new(&stdout, PollFlags::empty())];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&at_once)).is_ok() && fds[0].revents().contains(PollFlags::ERR)
}
