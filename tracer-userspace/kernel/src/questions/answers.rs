//! The answering side: threads that ask the host.

use std::{
    iter,
    net::SocketAddr,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rsttrace_core::event::{Body, Event};
use rsttrace_host::{
    Host, OwnedSocket,
    clock::{self, nanos},
};
use rsttrace_model::flow::{Flow, Nanos};
use rustix::time::ClockId;
use tokio::sync::mpsc::UnboundedSender;

/// Between two walks in a storm; well below what a verdict waits for an owner.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

#[derive(Clone, Debug)]
pub(super) enum Question {
    Netns {
        netns: u32,
        max_age: Duration,
    },
    Owner(OwnedSocket),
    Process {
        pid: u32,
    },
    /// What exists, in all namespaces?
    Survey,
    /// How full is the accept queue at an address that somebody could not reach?
    AcceptQueue {
        netns: u32,
        address: SocketAddr,
    },
    /// What is there about a packet that met no connection?
    Inquiry {
        netns: u32,
        packet: Flow,
    },
    /// Has the IPVS entry of this connection lost its real server?
    IpvsOrphan {
        flow: Flow,
        /// With the time of the newest removal of a server there.
        likely: Vec<(u32, Nanos)>,
    },
    /// Does IPVS take new connections to this address?
    IpvsService {
        address: SocketAddr,
        likely: Vec<u32>,
    },
    /// The same of a client whose packets this namespace has been dropping for a while.
    IpvsDropped {
        netns: u32,
        flow: Flow,
        since: Nanos,
    },
}

/// One question with the time of the record that raised it, which the answer carries too.
pub(super) type Asked = (u64, Nanos, Question);

/// A part of an answer; the last one closes its question.
pub(super) struct Answer {
    pub(super) events: Vec<Event>,
    pub(super) closes: Option<u64>,
}

/// Starts a thread, which ends with the value that is returned.
pub(super) fn answerer(
    name: &str,
    host: Host,
    answer: UnboundedSender<Answer>,
) -> Result<mpsc::Sender<Asked>> {
    let (ask, questions) = mpsc::channel::<Asked>();
    thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            while let Ok(first) = questions.recv() {
                if answer_all(&host, &answer, iter::once(first).chain(questions.try_iter()))
                    .is_none()
                {
                    return;
                }
            }
        })
        .context("cannot start a helper thread")?;
    Ok(ask)
}

/// Answers what is waiting; `None` when nobody wants to know any more.
fn answer_all(
    host: &Host,
    answer: &UnboundedSender<Answer>,
    waiting: impl Iterator<Item = Asked>,
) -> Option<()> {
    let tell = |events, closes| answer.send(Answer { events, closes }).ok();
    let mut owned = Vec::new();
    for (id, ts, question) in waiting {
        let events = match question {
            Question::Owner(socket) => {
                owned.push((id, ts, socket));
                continue;
            }
            Question::Survey => survey(host, ts, &mut |events| tell(events, None).is_some()),
            question => reply(host, ts, question).into_iter().collect(),
        };
        tell(events, Some(id))?;
    }
    // One walk through all processes serves all who ask.
    let started = Instant::now();
    let sockets: Vec<_> = owned.iter().map(|(_, _, socket)| socket.clone()).collect();
    for ((id, ts, socket), owner) in owned.iter().zip(host.owners(&sockets)) {
        let body = owner.map(|owner| Body::Owner { inode: socket.inode, owner: Box::new(owner) });
        let event = body.map(|body| Event { ts: *ts, netns: socket.netns, body });
        tell(event.into_iter().collect(), Some(*id))?;
    }
    if owned.len() > 1 {
        // In a storm others collect meanwhile, and the walks leave the processor to who is stormed.
        thread::sleep((started.elapsed() * 3).min(LONGEST_PAUSE));
    }
    Some(())
}

/// CLOCK_BOOTTIME as CLOCK_MONOTONIC, which stands still while the machine sleeps.
fn monotonic(boottime: Nanos) -> Nanos {
    boottime.saturating_sub(nanos(ClockId::Boottime).saturating_sub(clock::monotonic()))
}

/// Reads all namespaces once, as of `ts`; nothing is left to tell at the end.
fn survey(host: &Host, ts: Nanos, tell: &mut dyn FnMut(Vec<Event>) -> bool) -> Vec<Event> {
    host.survey(|state, stock| {
        let netns = state.inum;
        let mut events = vec![Event { ts, netns, body: Body::Netns(Box::new(state)) }];
        if !stock.is_empty() {
            events.push(Event { ts, netns, body: Body::Stock(Box::new(stock)) });
        }
        tell(events)
    });
    Vec::new()
}

fn reply(host: &Host, ts: Nanos, question: Question) -> Option<Event> {
    let (netns, body) = match question {
        Question::Netns { netns, max_age } => {
            (netns, Body::Netns(Box::new(host.netns(netns, max_age)?)))
        }
        Question::Process { pid } => {
            let owner = Box::new(host.process(pid)?);
            (0, Body::Process { started: monotonic(owner.start_boottime_ns?), owner })
        }
        Question::IpvsOrphan { flow, likely } => {
            let (netns, entry) = host.ipvs_orphan(flow, &likely)?;
            (netns, Body::IpvsOrphan(Box::new(entry)))
        }
        Question::IpvsService { address, likely } => {
            let state = host.ipvs_service(address, &likely)?;
            (state.inum, Body::Netns(Box::new(state)))
        }
        Question::IpvsDropped { netns, flow, since } => {
            let entry = host.ipvs_dropped(netns, flow, since)?;
            (netns, Body::IpvsOrphan(Box::new(entry)))
        }
        Question::Inquiry { netns, packet } => {
            (netns, Body::Inquiry(Box::new(host.inquire(netns, packet))))
        }
        Question::AcceptQueue { netns, address } => {
            let (netns, queue) = host.accept_queue(netns, address)?;
            (netns, Body::AcceptQueue(Box::new(queue)))
        }
        // Answered with others, or in parts.
        Question::Owner(_) | Question::Survey => return None,
    };
    Some(Event { ts, netns, body })
}
