//! `rsttrace watch FLOW`: the timers of one connection, live.

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

/// Connections offered to pick from.
const MOST_LISTED: usize = 50;
/// What has ended that is shown on the screen.
const MOST_EVENTS: usize = 8;

/// Watches until a signal, a limit, a closed pipe or the end of the connection.
///
/// # Errors
/// [`Failure`] when there is no such connection, or standard output cannot be written.
pub fn run(args: &WatchArgs) -> Result<Exit, Failure> {
    let target = args.target().map_err(|why| usage(anyhow!("{why}")))?;
    let host = Host::new().context("this machine cannot be looked at")?;
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

/// The connection that is meant; `None` when the user picked none.
fn choose(host: &Host, target: Target) -> Result<Option<Flow>, Failure> {
    let (mut sockets, whose) = match target {
        Target::Flow(flow) => return Ok(Some(flow)),
        Target::Process(pid) => {
            let of_process = host.connections_of(pid);
            let missing =
                || usage(anyhow!("there is no process {pid}, or only root may look at it"));
            (of_process.ok_or_else(missing)?, format!("process {pid}"))
        }
        Target::Pick => (host.connections(), "this host".to_owned()),
    };
    // Both ends may be here, and are one connection.
    let mut keys = BTreeSet::new();
    sockets.retain(|socket| keys.insert(socket.flow.key()));
    match (sockets.as_slice(), target) {
        ([], _) => Err(usage(anyhow!("{whose} has no open TCP connection that we may see"))),
        ([one], Target::Process(_)) => Ok(Some(one.flow)),
        (several, _) => pick(host, several, &whose),
    }
}

/// Asks on a terminal; elsewhere the list is the answer, and a usage error.
fn pick(host: &Host, sockets: &[SocketState], whose: &str) -> Result<Option<Flow>, Failure> {
    let (listed, more) = sockets.split_at(sockets.len().min(MOST_LISTED));
    stdout::write(&watch::list(listed, &host.holders(listed), more.len()))?;
    if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
        let s = if sockets.len() == 1 { "" } else { "s" };
        let count = sockets.len();
        return Err(usage(anyhow!("{whose} has {count} connection{s}: name the one to watch")));
    }
    loop {
        stdout::write("watch which one? ")?;
        let mut line = String::new();
        let read = io::stdin().lock().read_line(&mut line).context("cannot read the answer")?;
        match line.trim() {
            "" if read == 0 => return Ok(None),
            "" | "q" => return Ok(None),
            answer => {
                let index = answer.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
                match index.and_then(|index| sockets.get(index)) {
                    Some(socket) => return Ok(Some(socket.flow)),
                    None => say(&format!("rsttrace: no number from 1 to {}", sockets.len())),
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
        let hidden = before.unseen.iter().map(|what| format!("; not seen: {what}"));
        let hidden: String = hidden.collect();
        return Err(usage(anyhow!("nothing on this host knows {flow}{hidden}")));
    }
    let mut show = Show::new(args, flow);
    let (mut next, mut looks) = (start, 1);
    if !show.frame(&before, Vec::new())? {
        return Ok(Exit::Fine);
    }
    loop {
        if args.count.is_some_and(|count| looks >= count) {
            return Ok(Exit::Fine);
        }
        next += args.interval;
        // A look that took longer than the interval is not made up for.
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
        let mut sight = watcher.scan();
        sight.after(&before);
        looks += 1;
        let ended = changes(&before, &sight);
        if !show.frame(&sight, ended)? {
            return Ok(Exit::Fine);
        }
        if sight.is_empty() {
            say("rsttrace: the connection is gone everywhere");
            return Ok(Exit::Fine);
        }
        before = sight;
    }
}

struct Show<'a> {
    args: &'a WatchArgs,
    flow: Flow,
    events: Vec<(i64, String)>,
    /// Redraw over the lines of the frame before.
    screen: bool,
    drawn: usize,
}

impl<'a> Show<'a> {
    fn new(args: &'a WatchArgs, flow: Flow) -> Self {
        let screen = args.page.output == PageFormat::Text && io::stdout().is_terminal();
        Self { args, flow, events: Vec::new(), screen, drawn: 0 }
    }

    /// Whether anybody reads on.
    fn frame(&mut self, sight: &Snapshot, ended: Vec<String>) -> anyhow::Result<bool> {
        let wall_ns = clock::wall();
        let new = ended.len();
        self.events.extend(ended.into_iter().map(|text| (wall_ns, text)));
        let surplus = self.events.len().saturating_sub(MOST_EVENTS.max(new));
        self.events.drain(..surplus);
        let outlook = outlook(sight);
        let frame =
            Frame { flow: self.flow, sight, outlook: &outlook, events: &self.events, wall_ns };
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

    /// Over what was drawn before: up, and clear to the end of the screen.
    fn redrawn(&mut self, screen: &str) -> String {
        let up = match std::mem::replace(&mut self.drawn, screen.lines().count()) {
            0 => String::new(),
            lines => format!("\u{1b}[{lines}A\u{1b}[J"),
        };
        up + screen
    }
}
