//! The event loop of the tracer, for every command that traces.

use std::time::Duration;

use anyhow::Context as _;
use rsttrace_core::{
    correlator::{Correlator, RunCounters},
    event::{Body, Event, SkippedRuns},
    incident::Incident,
};
use rsttrace_kernel::{
    attach::{AttachOptions, Kprobes},
    live::{Live, now},
    prepare::StartError,
};
use rsttrace_model::flow::Nanos;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep_until},
};

use super::{Exit, Failure, say};
use crate::{
    cli::{Owners, TraceArgs},
    render::notice,
};

/// Interval for checking open cases, well below the second within which an incident must be printed.
const TICK: Duration = Duration::from_millis(20);

/// Interval when no case is open: only folded counts, summaries and closed pipes need a timer then.
const IDLE_TICK: Duration = Duration::from_secs(1);

/// What a command does with the event stream.
pub trait Observer {
    /// Called for every event, in the order in which events are judged.
    ///
    /// # Errors
    /// When the event cannot be saved; that ends the run.
    fn event(&mut self, _event: &Event) -> anyhow::Result<()> {
        Ok(())
    }

    /// Called with the incidents since the last turn, often none. Returning `false` ends the run.
    ///
    /// # Errors
    /// When an incident cannot be saved; that ends the run.
    fn turn(&mut self, turn: &Turn<'_>) -> anyhow::Result<bool>;
}

/// The result of one turn of the loop.
pub struct Turn<'a> {
    pub incidents: &'a [Incident],
    pub counters: RunCounters,
    pub unreadable: u64,
    pub now: Nanos,
}

/// Traces until a signal, the end of the duration, or the observer stops the run.
///
/// # Errors
/// [`Failure`] with its exit code when tracing cannot start or continue.
pub fn trace(args: &TraceArgs, observer: &mut dyn Observer) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    runtime.block_on(run(args, observer))
}

fn start(args: &TraceArgs) -> Result<Live, Failure> {
    let options = AttachOptions {
        kprobes: Kprobes::here(args.no_kprobes),
        verbose: args.verbose,
        keep_openers: args.owners == Owners::Connect,
        only: None,
    };
    Live::start(options).map_err(|error| match error {
        StartError::NotPermitted(error) => Failure { exit: Exit::NotPermitted, error },
        StartError::Unsupported(error) => Failure { exit: Exit::Unsupported, error },
        StartError::Internal(error) => Failure { exit: Exit::Internal, error },
    })
}

async fn run(args: &TraceArgs, observer: &mut dyn Observer) -> Result<(), Failure> {
    // Before attaching, so that a signal while the hooks attach is not lost.
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut live = start(args)?;
    let mut feed = Feed { correlator: Correlator::new(), observer, incidents: Vec::new() };
    feed.event(live.session_event())?;
    announce(&live, args);

    let deadline = args.duration.map(|duration| Instant::now() + duration);
    let (mut lost, mut skips_reported) = (0, false);
    loop {
        let tick = if live.is_idle() && feed.correlator.is_idle() { IDLE_TICK } else { TICK };
        let wake = Instant::now() + tick;
        let until = deadline.map_or(wake, |deadline| wake.min(deadline));
        let stop = tokio::select! {
            result = live.readable() => { result?; false }
            () = sleep_until(until) => deadline.is_some_and(|deadline| deadline <= Instant::now()),
            _ = interrupt.recv() => true,
            _ = terminate.recv() => true,
        };
        if let Some(changed) = live.take_changes()? {
            feed.event(live.session_event())?;
            say(&notice::changed(&changed, args.notice_width()));
        }
        for event in if stop { live.drain_remaining() } else { live.drain() } {
            feed.event(event)?;
        }
        let lost_now = live.lost();
        if lost_now != lost {
            lost = lost_now;
            feed.event(Event { ts: now(), netns: 0, body: Body::Lost(lost) })?;
        }
        if let Some(skipped) = live.newly_skipped_runs() {
            if args.verbose || !skips_reported {
                say(&notice::skipped(skipped, args.notice_width()));
                skips_reported = true;
            }
            let body = Body::SkippedRuns(SkippedRuns::ByHook(skipped.clone()));
            feed.event(Event { ts: now(), netns: 0, body })?;
        }
        let until = if stop { Nanos::MAX } else { live.settle_deadline() };
        if feed.correlator.has_settled(until) {
            feed.event(Event { ts: until, netns: 0, body: Body::Tick })?;
        }
        if !feed.turn(live.unreadable())? || stop {
            return Ok(());
        }
    }
}

/// Passes each event to the observer and to the correlator.
struct Feed<'a> {
    correlator: Correlator,
    observer: &'a mut dyn Observer,
    incidents: Vec<Incident>,
}

impl Feed<'_> {
    fn event(&mut self, event: Event) -> anyhow::Result<()> {
        self.observer.event(&event)?;
        self.incidents.extend(self.correlator.feed(event));
        Ok(())
    }

    fn turn(&mut self, unreadable: u64) -> anyhow::Result<bool> {
        let incidents = std::mem::take(&mut self.incidents);
        let counters = self.correlator.counters();
        self.observer.turn(&Turn { incidents: &incidents, counters, unreadable, now: now() })
    }
}

/// Prints the ready line and what stays invisible.
fn announce(live: &Live, args: &TraceArgs) {
    say(&notice::ready(&live.session.coverage, args.notice_width()));
    if args.verbose {
        for signal in &live.session.coverage {
            if let Some(way) = &signal.way {
                say(&format!("rsttrace: attached: {} via {way}", signal.id));
            }
        }
        for refused in &live.refused {
            say(&format!("rsttrace: not attached: {}: {}", refused.program, refused.why));
        }
    }
}
