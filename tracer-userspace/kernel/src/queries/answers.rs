//! The answering side: threads that read the host.

use std::{
    iter,
    net::SocketAddr,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rsttrace_core::{
    event::{Body, Event},
    query::Query,
};
use rsttrace_host::{
    Host,
    clock::{self, nanos},
};
use rsttrace_model::flow::{Flow, Nanos};
use rustix::time::ClockId;
use tokio::sync::mpsc::UnboundedSender;

/// Between two walks in a storm; well below what a verdict waits for an owner.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// What a thread is to find out.
#[derive(Clone, Debug)]
pub(super) enum Task {
    /// As the core wants it.
    Query(Query),
    /// What exists, in all namespaces.
    Survey,
    /// [`Query::IpvsOrphan`], and the namespaces to read first, each with the time of the newest removal
    /// of a server there.
    IpvsOrphan { flow: Flow, likely: Vec<(u32, Nanos)> },
    /// [`Query::IpvsService`], and the namespaces to read first.
    IpvsService { address: SocketAddr, likely: Vec<u32> },
    /// [`Query::IpvsDropped`], and since when its packets have been dropped.
    IpvsDropped { netns: u32, flow: Flow, since: Nanos },
}

/// A task's number, and the time of the record that raised it, which the answer carries too.
pub(super) type Job = (u64, Nanos, Task);

/// A part of an answer; the last one closes its task.
pub(super) struct Answer {
    pub(super) events: Vec<Event>,
    pub(super) closes: Option<u64>,
}

/// Starts a thread, which ends with the value that is returned.
pub(super) fn answerer(
    name: &str,
    host: Host,
    answer: UnboundedSender<Answer>,
) -> Result<mpsc::Sender<Job>> {
    let (send, tasks) = mpsc::channel::<Job>();
    thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            while let Ok(first) = tasks.recv() {
                if answer_all(&host, &answer, iter::once(first).chain(tasks.try_iter())).is_none() {
                    return;
                }
            }
        })
        .context("cannot start a helper thread")?;
    Ok(send)
}

/// Answers what is waiting; `None` once the sending side is gone.
fn answer_all(
    host: &Host,
    answer: &UnboundedSender<Answer>,
    waiting: impl Iterator<Item = Job>,
) -> Option<()> {
    let reply = |events, closes| answer.send(Answer { events, closes }).ok();
    let mut owned = Vec::new();
    for (id, ts, task) in waiting {
        let events = match task {
            Task::Query(Query::Owner(socket)) => {
                owned.push((id, ts, socket));
                continue;
            }
            Task::Survey => survey(host, ts, &mut |events| reply(events, None).is_some()),
            task => answer_one(host, ts, task).into_iter().collect(),
        };
        reply(events, Some(id))?;
    }
    // One walk through all processes serves all queries.
    let started = Instant::now();
    let sockets: Vec<_> = owned.iter().map(|(_, _, socket)| socket.clone()).collect();
    for ((id, ts, socket), owner) in owned.iter().zip(host.owners(&sockets)) {
        let body = owner.map(|owner| Body::Owner { inode: socket.inode, owner: Box::new(owner) });
        let event = body.map(|body| Event { ts: *ts, netns: socket.netns, body });
        reply(event.into_iter().collect(), Some(*id))?;
    }
    if owned.len() > 1 {
        // In a storm more queries collect meanwhile, and the walks leave the processor to other work.
        thread::sleep((started.elapsed() * 3).min(LONGEST_PAUSE));
    }
    Some(())
}

/// CLOCK_BOOTTIME as CLOCK_MONOTONIC, which stands still while the machine sleeps.
fn monotonic(boottime: Nanos) -> Nanos {
    boottime.saturating_sub(nanos(ClockId::Boottime).saturating_sub(clock::monotonic()))
}

/// Reads all namespaces once, as of `ts`; nothing is left to report at the end.
fn survey(host: &Host, ts: Nanos, report: &mut dyn FnMut(Vec<Event>) -> bool) -> Vec<Event> {
    host.survey(|state, initial| {
        let netns = state.inum;
        let mut events = vec![Event { ts, netns, body: Body::Netns(Box::new(state)) }];
        if !initial.is_empty() {
            events.push(Event { ts, netns, body: Body::InitialState(Box::new(initial)) });
        }
        report(events)
    });
    Vec::new()
}

fn answer_one(host: &Host, ts: Nanos, task: Task) -> Option<Event> {
    let (netns, body) = match task {
        Task::Query(Query::Netns { netns, max_age }) => {
            (netns, Body::Netns(Box::new(host.netns(netns, max_age)?)))
        }
        Task::Query(Query::Process { pid }) => {
            let owner = Box::new(host.process(pid)?);
            (0, Body::Process { started: monotonic(owner.start_boottime_ns?), owner })
        }
        Task::Query(Query::State { netns, packet }) => {
            (netns, Body::StateLookup(Box::new(host.inquire(netns, packet))))
        }
        Task::Query(Query::AcceptQueue { netns, address }) => {
            let (netns, queue) = host.accept_queue(netns, address)?;
            (netns, Body::AcceptQueue(Box::new(queue)))
        }
        Task::IpvsOrphan { flow, likely } => {
            let (netns, entry) = host.ipvs_orphan(flow, &likely)?;
            (netns, Body::IpvsOrphan(Box::new(entry)))
        }
        Task::IpvsService { address, likely } => {
            let state = host.ipvs_service(address, &likely)?;
            (state.inum, Body::Netns(Box::new(state)))
        }
        Task::IpvsDropped { netns, flow, since } => {
            let entry = host.ipvs_dropped(netns, flow, since)?;
            (netns, Body::IpvsOrphan(Box::new(entry)))
        }
        // Answered with others, in parts, or completed by the sending side before they come here.
        Task::Survey
        | Task::Query(
            Query::Owner(_)
            | Query::IdlePeriods { .. }
            | Query::IpvsOrphan { .. }
            | Query::IpvsService { .. }
            | Query::IpvsDropped { .. },
        ) => return None,
    };
    Some(Event { ts, netns, body })
}
