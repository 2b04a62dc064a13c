//! `rsttrace live`: attaches the hooks and prints one incident per broken connection.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep_until},
};

use super::{Exit, Failure};
use crate::{
    cause::Family,
    cli::{LiveArgs, OutputFormat},
    correlator::Correlator,
    event::{Body, Event},
    filter::Filter,
    incident::Incident,
    kernel::{
        live::{Live, now, wall},
        prepare::StartError,
    },
    out::{
        Summary, json, notice,
        table::{Table, TableOptions},
    },
};

/// How often settling cases are looked at: well below the second in which an incident must be told.
const TICK: Duration = Duration::from_millis(20);

/// With nothing pending, only folded counts and the summary need the time.
const IDLE_TICK: Duration = Duration::from_secs(1);

/// The contract's interval for summary events.
const SUMMARY_EVERY: Duration = Duration::from_secs(60);

/// Runs until a signal, a limit or a closed pipe ends it.
///
/// # Errors
/// [`Failure`] with the exit code of the contract when tracing cannot start.
pub fn run(args: &LiveArgs) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    runtime.block_on(trace(args))
}

fn start(args: &LiveArgs) -> Result<Live, Failure> {
    Live::start(args.no_kprobes, args.verbose).map_err(|error| match error {
        StartError::NotPermitted(error) => Failure { exit: Exit::NotPermitted, error },
        StartError::Unsupported(error) => Failure { exit: Exit::Unsupported, error },
        StartError::Internal(error) => Failure { exit: Exit::Internal, error },
    })
}

async fn trace(args: &LiveArgs) -> Result<Exit, Failure> {
    // Before attaching, so that a signal during it is not lost.
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut live = start(args)?;
    let mut correlator = Correlator::new();
    correlator.push(live.opening());
    announce(&live, args);

    let mut sink = Sink::new(args);
    let deadline = args.duration.map(|duration| Instant::now() + duration);
    let mut next_summary = Instant::now() + SUMMARY_EVERY;
    let mut lost = 0;
    loop {
        let tick = if live.is_idle() && correlator.is_idle() { IDLE_TICK } else { TICK };
        let wake = Instant::now() + tick;
        let until = deadline.map_or(wake, |deadline| wake.min(deadline));
        let stop = tokio::select! {
            result = live.readable() => { result?; false }
            () = sleep_until(until) => deadline.is_some_and(|deadline| deadline <= Instant::now()),
            _ = interrupt.recv() => true,
            _ = terminate.recv() => true,
        };
        if let Some(changed) = live.take_changes()? {
            correlator.push(live.opening());
            eprint!("{}", notice::changed(&changed, args.notice_width()));
        }
        let events = if stop { live.rest() } else { live.drain() };
        for event in events {
            correlator.push(event);
        }
        if live.lost() != lost {
            lost = live.lost();
            correlator.push(Event { ts: now(), netns: 0, body: Body::Lost(lost) });
        }
        let incidents =
            if stop { correlator.finish() } else { correlator.tick(live.judging_time()) };
        sink.summary.update(&correlator.counters(), live.unreadable());
        let mut open = sink.incidents(&incidents).is_ok();
        if Instant::now() >= next_summary {
            next_summary += SUMMARY_EVERY;
            open &= sink.periodic_summary().is_ok();
        }
        open &= !reader_is_gone();
        if stop || !open || sink.is_full() {
            return Ok(sink.close(open));
        }
    }
}

/// Says that everything is attached, and what stays invisible.
fn announce(live: &Live, args: &LiveArgs) {
    eprint!("{}", notice::ready(&live.session.coverage, args.notice_width()));
    if args.verbose {
        for refused in &live.refused {
            eprintln!("rsttrace: not attached: {}: {}", refused.program, refused.why);
        }
    }
}

/// Where incidents go, and when enough is enough.
struct Sink<'a> {
    args: &'a LiveArgs,
    filter: Filter,
    table: Table,
    summary: Summary,
    shown: u64,
    found: bool,
}

impl<'a> Sink<'a> {
    fn new(args: &'a LiveArgs) -> Self {
        let options = TableOptions {
            color: args.use_color(),
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
        }
    }

    fn is_text(&self) -> bool {
        matches!(self.args.output, OutputFormat::Table | OutputFormat::Wide)
    }

    /// `--count` is reached.
    fn is_full(&self) -> bool {
        self.args.count.is_some_and(|count| self.shown >= count)
    }

    /// Prints what the filters let through.
    ///
    /// # Errors
    /// When standard output is closed.
    fn incidents(&mut self, incidents: &[Incident]) -> io::Result<()> {
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
                OutputFormat::Table | OutputFormat::Wide => self.table.incident(incident, now()),
            };
            text.map_or(Ok(()), |text| print(&text))?;
        }
        if self.is_text()
            && let Some(text) = self.table.tick(now())
        {
            print(&text)?;
        }
        Ok(())
    }

    fn periodic_summary(&mut self) -> io::Result<()> {
        if self.is_text() { Ok(()) } else { print(&json::summary(&self.summary, wall())) }
    }

    /// Folded counts, the closing summary, and the exit code.
    fn close(mut self, open: bool) -> Exit {
        if open {
            // A pipe that closes now ends quietly, like one that closed before.
            let _ = match self.is_text() {
                true => self.table.flush().map_or(Ok(()), |text| print(&text)),
                false => print(&json::summary(&self.summary, wall())),
            };
        }
        eprintln!("{}", crate::out::summary_text(&self.summary));
        if self.found { Exit::Found } else { Exit::Fine }
    }
}

/// Whether standard output is a pipe that nobody reads any more: with nothing to print, no write would
/// ever tell.
fn reader_is_gone() -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let stdout = io::stdout();
    // No event is asked for: an error condition is always reported.
    let mut fds = [PollFd::new(&stdout, PollFlags::empty())];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&at_once)).is_ok() && fds[0].revents().contains(PollFlags::ERR)
}

/// One piece of output, at once: a reader of the pipe must not wait for a buffer to fill.
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    out.flush()
}
