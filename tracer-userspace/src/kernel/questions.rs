//! Questions to the host, asked off the event loop: reading a namespace or walking `/proc` for a
//! socket's owner takes milliseconds, and the ring buffer must not wait for it.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustix::time::ClockId;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::live::nanos;
use crate::{
    event::{Body, Event, Nanos},
    host::{Host, OwnedSocket},
};

/// More open questions than this mean a storm: further ones are not asked, and verdicts say less.
const OPEN: usize = 512;

/// Owners are asked for once; so many sockets and processes are remembered as asked.
const ASKED: usize = 4096;

#[derive(Clone, Debug)]
enum Question {
    Netns { netns: u32, max_age: Duration },
    Owner(OwnedSocket),
    Process { pid: u32 },
}

/// A socket's inode, or a pid in one second: pids are not given twice in so short a time.
type Topic = (u64, Option<u64>);

/// One question with the time of the record that raised it, which the answer carries too.
type Asked = (u64, Nanos, Question);

/// The asking side.
pub struct Questions {
    /// Owners are short-lived and asked on a thread of their own, ahead of everything else.
    owners: mpsc::Sender<Asked>,
    namespaces: mpsc::Sender<Asked>,
    answers: UnboundedReceiver<(u64, Option<Event>)>,
    open: BTreeMap<u64, Nanos>,
    next: u64,
    seen: HashSet<Topic>,
    order: VecDeque<Topic>,
    /// Namespaces with an open question: one answer serves all who ask meanwhile.
    busy: BTreeMap<u32, u64>,
}

impl Questions {
    /// Starts the answering threads; they end with this value.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn ask(host: Host) -> Result<Self> {
        let (answer, answers) = unbounded_channel();
        Ok(Self {
            owners: answerer("rsttrace-owner", host.clone(), answer.clone())?,
            namespaces: answerer("rsttrace-netns", host, answer)?,
            answers,
            open: BTreeMap::new(),
            next: 0,
            seen: HashSet::new(),
            order: VecDeque::new(),
            busy: BTreeMap::new(),
        })
    }

    /// Who owns this socket? Asked once per socket.
    pub fn owner(&mut self, ts: Nanos, socket: OwnedSocket) {
        if self.is_new((socket.inode, None)) {
            self.send(ts, Question::Owner(socket));
        }
    }

    /// Which process is this? Asked once a second.
    pub fn process(&mut self, ts: Nanos, pid: u32) {
        if self.is_new((pid.into(), Some(ts / 1_000_000_000))) {
            self.send(ts, Question::Process { pid });
        }
    }

    fn is_new(&mut self, topic: Topic) -> bool {
        if !self.seen.insert(topic) {
            return false;
        }
        self.order.push_back(topic);
        if self.order.len() > ASKED
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        true
    }

    /// What is the state of this namespace, at most `max_age` old?
    pub fn netns(&mut self, ts: Nanos, netns: u32, max_age: Duration) {
        if self.busy.contains_key(&netns) {
            return;
        }
        if let Some(id) = self.send(ts, Question::Netns { netns, max_age }) {
            self.busy.insert(netns, id);
        }
    }

    fn send(&mut self, ts: Nanos, question: Question) -> Option<u64> {
        if self.open.len() >= OPEN {
            return None;
        }
        let id = self.next;
        self.next += 1;
        let thread = match question {
            Question::Netns { .. } => &self.namespaces,
            Question::Owner(_) | Question::Process { .. } => &self.owners,
        };
        thread.send((id, ts, question)).ok()?;
        self.open.insert(id, ts);
        Some(id)
    }

    /// Time of the oldest record whose question is open.
    pub fn oldest(&self) -> Option<Nanos> {
        self.open.values().min().copied()
    }

    /// Waits for an answer that says something.
    pub async fn answered(&mut self) -> Event {
        loop {
            match self.answers.recv().await {
                Some(answer) => {
                    if let Some(event) = self.close(answer) {
                        return event;
                    }
                }
                // The threads are gone; there is nothing to wait for any more.
                None => std::future::pending::<()>().await,
            }
        }
    }

    /// Answers that are here already.
    pub fn answers(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Ok(answer) = self.answers.try_recv() {
            events.extend(self.close(answer));
        }
        events
    }

    fn close(&mut self, (id, event): (u64, Option<Event>)) -> Option<Event> {
        self.open.remove(&id);
        self.busy.retain(|_, open| *open != id);
        event
    }
}

fn answerer(
    name: &str,
    host: Host,
    answer: UnboundedSender<(u64, Option<Event>)>,
) -> Result<mpsc::Sender<Asked>> {
    let (ask, questions) = mpsc::channel::<Asked>();
    thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            for (id, ts, question) in questions {
                let event = reply(&host, ts, question);
                if answer.send((id, event)).is_err() {
                    return;
                }
            }
        })
        .context("cannot start a helper thread")?;
    Ok(ask)
}

/// CLOCK_BOOTTIME as CLOCK_MONOTONIC, which stands still while the machine sleeps.
fn monotonic(boottime: Nanos) -> Nanos {
    let asleep = nanos(ClockId::Boottime).saturating_sub(nanos(ClockId::Monotonic));
    boottime.saturating_sub(asleep)
}

fn reply(host: &Host, ts: Nanos, question: Question) -> Option<Event> {
    let (netns, body) = match question {
        Question::Netns { netns, max_age } => {
            (netns, Body::Netns(Box::new(host.netns(netns, max_age)?)))
        }
        Question::Owner(socket) => {
            let owner = Box::new(host.owner(&socket)?);
            (socket.netns, Body::Owner { inode: socket.inode, owner })
        }
        Question::Process { pid } => {
            let owner = Box::new(host.process(pid)?);
            (0, Body::Process { started: monotonic(owner.start_boottime_ns?), owner })
        }
    };
    Some(Event { ts, netns, body })
}
