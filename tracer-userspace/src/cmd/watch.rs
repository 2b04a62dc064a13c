//! `rsttrace watch FLOW`: the timers of one connection as they count down.

use std::{
    collections::BTreeSet,
    io::{self, BufRead as _, IsTerminal as _},
};

use anyhow::{Context as _, anyhow};
use rsttrace_host::{Host, clock};
use rsttrace_model::{connection::Snapshot, flow::Flow, socket::SocketState};
use rsttrace_schema::json;
use rsttrace_watch::{changes, outlook};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep_until},
};

use super::{Exit, Failure, say, stdout};
use crate::{
    cli::{PageFormat, Target, WatchArgs, page_width},
    render::watch::{self, Frame},
};

/// Connections listed to choose from, at most.
const MOST_LISTED: usize = 50;
/// Ended timers and entries shown on the screen, at most.
const MOST_EVENTS: usize = 8;

/// Runs until a signal, a limit, a closed pipe or the end of the connection.
///
/// # Errors
/// [`Failure`] when there is no such connection, or standard output cannot be written.
pub fn run(args: &WatchArgs) -> Result<Exit, Failure> {
    let target = args.target().map_err(|why| usage(anyhow!("{why}")))?;
    let host = Host::new().context("cannot inspect this host")?;
    let Some(flow) = choose(&host, target)? else {
        return Ok(Exit::Fine);
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    runtime.block_on(watch(args, &host, flow))
}

fn usage(error: anyhow::Error) -> Failure {
    Failure { exit: Exit::Usage, error }
}

/// The connection to watch; `None` when the user picked none.
fn choose(host: &Host, target: Target) -> Result<Option<Flow>, Failure> {
    let (mut sockets, owner) = match target {
        Target::Flow(flow) => return Ok(Some(flow)),
        Target::Process(pid) => {
            let of_process = host.connections_of(pid);
            let missing =
                || usage(anyhow!("process {pid} not found, or not permitted to inspect it"));
            (of_process.ok_or_else(missing)?, format!("process {pid}"))
        }
        Target::Pick => (host.connections(), "this host".to_owned()),
    };
    // Both ends of a connection may be on this host.
    let mut keys = BTreeSet::new();
    sockets.retain(|socket| keys.insert(socket.flow.key()));
    match (sockets.as_slice(), target) {
        ([], _) => Err(usage(anyhow!("{owner} has no open TCP connection that this user may see"))),
        ([one], Target::Process(_)) => Ok(Some(one.flow)),
        (several, _) => pick(host, several, &owner),
    }
}

/// Lists the connections and, on a terminal, prompts for one. Elsewhere a missing choice is a usage error.
fn pick(host: &Host, sockets: &[SocketState], owner: &str) -> Result<Option<Flow>, Failure> {
    let (listed, more) = sockets.split_at(sockets.len().min(MOST_LISTED));
    stdout::write(&watch::list(listed, &host.holders(listed), more.len()))?;
    if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
        let s = if sockets.len() == 1 { "" } else { "s" };
        let count = sockets.len();
        return Err(usage(anyhow!(
            "{owner} has {count} connection{s}: pass the one to watch as FLOW"
        )));
    }
    loop {
        stdout::write("connection number: ")?;
        let mut line = String::new();
        let read = io::stdin().lock().read_line(&mut line).context("cannot read the answer")?;
        match line.trim() {
            "" if read == 0 => return Ok(None),
            "" | "q" => return Ok(None),
            answer => {
                let index = answer.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
                match index.and_then(|index| sockets.get(index)) {
                    Some(socket) => return Ok(Some(socket.flow)),
                    None => {
                        say(&format!("rsttrace: invalid number (expected 1 to {})", sockets.len()))
                    }
                }
            }
        }
    }
}

async fn watch(args: &WatchArgs, host: &Host, flow: Flow) -> Result<Exit, Failure> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let start = Instant::now();
    let deadline = args.duration.map(|duration| start + duration);
    let mut watcher = host.watch_connection(flow);
    let mut before = watcher.scan();
    if before.is_empty() {
        let hidden = before.unseen.iter().map(|what| format!("; not visible: {what}"));
        let hidden: String = hidden.collect();
        return Err(usage(anyhow!("no socket or entry of {flow} on this host{hidden}")));
    }
    let mut show = Show::new(args, flow);
    let (mut next, mut readings) = (start, 1);
    if !show.frame(&before, Vec::new())? {
        return Ok(Exit::Fine);
    }
    loop {
        if args.count.is_some_and(|count| readings >= count) {
            return Ok(Exit::Fine);
        }
        next += args.interval;
        // A reading that took longer than the interval is not caught up on.
        next = next.max(Instant::now());
        let wake = deadline.map_or(next, |deadline| next.min(deadline));
        let stop = tokio::select! {
            () = sleep_until(wake) => deadline.is_some_and(|deadline| deadline <= Instant::now()),
            _ = interrupt.recv() => true,
            _ = terminate.recv() => true,
        };
        if stop {
            return Ok(Exit::Fine);
        }
        let mut snapshot = watcher.scan();
        snapshot.after(&before);
        readings += 1;
        let ended = changes(&before, &snapshot);
        if !show.frame(&snapshot, ended)? {
            return Ok(Exit::Fine);
        }
        if snapshot.is_empty() {
            say("rsttrace: the connection has ended: no socket or entry is left");
            return Ok(Exit::Fine);
        }
        before = snapshot;
    }
}

struct Show<'a> {
    args: &'a WatchArgs,
    flow: Flow,
    events: Vec<(i64, String)>,
    /// Redraw over the lines of the previous frame.
    screen: bool,
    drawn: usize,
}

impl<'a> Show<'a> {
    fn new(args: &'a WatchArgs, flow: Flow) -> Self {
        let screen = args.page.output == PageFormat::Text && io::stdout().is_terminal();
        Self { args, flow, events: Vec::new(), screen, drawn: 0 }
    }

    /// Prints a frame; `false` when the reader of standard output has exited.
    fn frame(&mut self, snapshot: &Snapshot, ended: Vec<String>) -> anyhow::Result<bool> {
        let wall_ns = clock::wall();
        let new = ended.len();
        self.events.extend(ended.into_iter().map(|text| (wall_ns, text)));
        let surplus = self.events.len().saturating_sub(MOST_EVENTS.max(new));
        self.events.drain(..surplus);
        let outlook = outlook(snapshot);
        let frame = Frame {
            flow: self.flow,
            sight: snapshot,
            outlook: &outlook,
            events: &self.events,
            wall_ns,
        };
        let text = match self.args.page.output {
            PageFormat::Text if self.screen => {
                let screen = watch::screen(&frame, self.args.page.color.on_stdout(), page_width());
                self.redrawn(&screen)
            }
            PageFormat::Text => watch::line(&frame, new),
            PageFormat::Json => watch::json(&frame, new).to_string() + "\n",
            PageFormat::JsonPretty => json::pretty(&watch::json(&frame, new).to_string()) + "\n",
        };
        stdout::write(&text)
    }

    /// The frame, drawn over the previous one: cursor up, then clear to the end of the screen.
    fn redrawn(&mut self, screen: &str) -> String {
        let up = match std::mem::replace(&mut self.drawn, screen.lines().count()) {
            0 => String::new(),
            lines => format!("\u{1b}[{lines}A\u{1b}[J"),
        };
        up + screen
    }
}
