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
    event::{Body, EndedSocket, EndedSockets, Event, PeerSocket},
    query::Query,
};
use rsttrace_host::{
    Host,
    clock::{self, nanos},
    firewall,
};
use rsttrace_model::{
    firewall::{RejectingRule, RejectingRules},
    flow::{Flow, Nanos},
    socket::SocketState,
};
use rustix::time::ClockId;
use tokio::sync::mpsc::UnboundedSender;

use crate::socket_ends::SocketEnds;

/// Longest pause between two walks in a storm, well below the time that a verdict waits for an owner.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// A task of an answering thread.
#[derive(Clone, Debug)]
pub(super) enum Task {
    /// A query of the core, unchanged.
    Query(Query),
    /// The initial state of all namespaces.
    Survey,
    /// [`Query::IpvsOrphan`], and the namespaces to read first, each with the time of the last removal
    /// of a real server there.
    IpvsOrphan { flow: Flow, likely: Vec<(u32, Nanos)> },
    /// [`Query::IpvsService`], and the namespaces to read first.
    IpvsService { address: SocketAddr, likely: Vec<u32> },
    /// [`Query::IpvsDropped`], and the time since which packets of the client have been dropped.
    IpvsDropped { netns: u32, flow: Flow, since: Nanos },
}

/// What the answering threads read.
#[derive(Clone)]
pub(super) struct Reader {
    pub(super) host: Host,
    /// `None` only in tests.
    pub(super) ends: Option<SocketEnds>,
}

/// A task's id, the time of the record that caused the task, and the task. The answer has the same time.
pub(super) type Job = (u64, Nanos, Task);

/// A part of an answer. The last part closes its task.
pub(super) struct Answer {
    pub(super) events: Vec<Event>,
    pub(super) closes: Option<u64>,
}

/// Starts an answering thread, which ends when the returned sender is dropped.
pub(super) fn answerer(
    name: &str,
    reader: Reader,
    answer: UnboundedSender<Answer>,
) -> Result<mpsc::Sender<Job>> {
    let (send, tasks) = mpsc::channel::<Job>();
    thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            while let Ok(first) = tasks.recv() {
                if answer_all(&reader, &answer, iter::once(first).chain(tasks.try_iter())).is_none()
                {
                    return;
                }
            }
        })
        .context("cannot start a helper thread")?;
    Ok(send)
}

/// Answers all waiting tasks. `None` once the receiver of the answers was dropped.
fn answer_all(
    reader: &Reader,
    answer: &UnboundedSender<Answer>,
    waiting: impl Iterator<Item = Job>,
) -> Option<()> {
    let reply = |events, closes| answer.send(Answer { events, closes }).ok();
    let Reader { host, ends } = reader;
    let mut owned = Vec::new();
    for (id, ts, task) in waiting {
        let events = match task {
            Task::Query(Query::Owner(socket)) => {
                owned.push((id, ts, socket));
                continue;
            }
            Task::Survey => survey(host, ts, &mut |events| reply(events, None).is_some()),
            Task::Query(Query::State { netns, packet }) => {
                let mut bodies = vec![Body::StateLookup(Box::new(host.inquire(netns, packet)))];
                let found = ends.iter().flat_map(|ends| ends.of(netns, packet));
                let ended: Vec<_> = found
                    .map(|(netns, flow, end)| {
                        let is_it = |it: SocketState| it.flow == flow && it.inode != 0;
                        let held = host.socket(netns, flow).map(|found| found.is_some_and(is_it));
                        EndedSocket { netns, flow, end, held }
                    })
                    .collect();
                if !ended.is_empty() {
                    bodies.push(Body::EndedSockets(Box::new(EndedSockets { packet, ended })));
                }
                bodies.into_iter().map(|body| Event { ts, netns, body }).collect()
            }
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
        // In a storm more queries arrive meanwhile, and the CPU is free for other work between the walks.
        thread::sleep((started.elapsed() * 3).min(LONGEST_PAUSE));
    }
    Some(())
}

/// Converts CLOCK_BOOTTIME to CLOCK_MONOTONIC, which stops while the machine is suspended.
fn monotonic(boottime: Nanos) -> Nanos {
    boottime.saturating_sub(nanos(ClockId::Boottime).saturating_sub(clock::monotonic()))
}

/// Reads all namespaces once, as of `ts`, and passes the events to `report`. The returned list is empty.
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
        Task::Query(Query::AcceptQueue { netns, address }) => {
            let (netns, queue) = host.accept_queue(netns, address)?;
            (netns, Body::AcceptQueue(Box::new(queue)))
        }
        Task::Query(Query::FilterRules { netns }) => {
            (netns, Body::FilterRules(Box::new(host.filter_rules(netns))))
        }
        Task::Query(Query::RejectingRules { netns, dst }) => {
            let rules = firewall::rejecting(host, netns, dst)?;
            let rules = rules.into_iter().map(RejectingRule::from).collect();
            (netns, Body::RejectingRules(Box::new(RejectingRules { dst, rules })))
        }
        Task::Query(Query::Peer { netns, flow }) => {
            let (netns, read, socket) = host.connection(netns, flow)?;
            (netns, Body::PeerSocket(Box::new(PeerSocket { read, socket })))
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
        // Answered together with others or in parts, or replaced by the sending side before they get here.
        Task::Survey
        | Task::Query(
            Query::Owner(_)
            | Query::State { .. }
            | Query::IdlePeriods { .. }
            | Query::Filtered { .. }
            | Query::IpvsOrphan { .. }
            | Query::IpvsService { .. }
            | Query::IpvsDropped { .. },
        ) => return None,
    };
    Some(Event { ts, netns, body })
}
