//! Queries to the host, off the event loop: reading a namespace or walking `/proc` for a socket's owner
//! takes milliseconds, and the ring buffer must not wait for it.
//!
//! What is wanted is the core's to say (`rsttrace_core::query`); here it is decided what was asked
//! already, what would cost too much, on which thread it runs and how long verdicts wait for it.

mod answers;
mod dedup;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::SocketAddr,
    sync::mpsc,
};

use anyhow::{Context as _, Result};
use rsttrace_core::{
    event::{Body, Event},
    query::Query,
};
use rsttrace_host::Host;
use rsttrace_model::flow::{Flow, Nanos};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use self::{
    answers::{Answer, Job, Task, answerer},
    dedup::{DropsOfClient, KEPT, Recent},
};

/// More open queries than this mean a storm: further ones are not sent, and verdicts say less.
const OPEN: usize = 512;

/// Expensive queries a second. State for a packet without a connection costs a walk through all the
/// machine's sockets, and a scan with ACKs sends thousands of those packets; an accept queue or an IPVS
/// service costs a walk through all namespaces.
const EXPENSIVE: usize = 10;

/// Namespaces with IPVS that are read before all others.
const IPVS: usize = 64;

const SECOND: Nanos = 1_000_000_000;

/// How long verdicts wait for an answer that only adds to them, such as the owner's name; together with
/// the correlator's own wait it stays below the second in which an incident must be printed.
const PATIENCE: Nanos = 600_000_000;

/// The same for an answer that decides: it takes milliseconds, and where the host has no time for it, late
/// is better than wrong.
const PATIENCE_TO_DECIDE: Nanos = 5 * SECOND;

/// A socket's inode, or a pid in one second: pids are not given twice in so short a time.
type Topic = (u64, Option<u64>);

/// A query without an answer so far.
struct OpenQuery {
    /// Time of the record that raised it.
    asked: Nanos,
    patience: Nanos,
}

/// The sending side.
pub struct Queries {
    /// Owners are short-lived and read on a thread of their own, ahead of everything else.
    owners: mpsc::Sender<Job>,
    // The others have threads of their own because one kind of answer must not wait for another.
    namespaces: mpsc::Sender<Job>,
    timeouts: mpsc::Sender<Job>,
    states: mpsc::Sender<Job>,
    /// IPVS tables may be long, and nothing else waits for them.
    tables: mpsc::Sender<Job>,
    answers: UnboundedReceiver<Answer>,
    open: BTreeMap<u64, OpenQuery>,
    next: u64,
    owned: Recent<Topic>,
    unmatched: Recent<(u32, Flow)>,
    unreached: Recent<(SocketAddr, u64)>,
    unserved: Recent<(SocketAddr, u64)>,
    /// Times of the newest expensive queries.
    expensive: VecDeque<Nanos>,
    dropping: HashMap<(u32, Flow), DropsOfClient>,
    /// Namespaces that were read before.
    met: Recent<u32>,
    /// Namespaces that are being read: one answer serves all queries meanwhile.
    busy: BTreeMap<u32, u64>,
    /// Namespaces in which IPVS was seen at work, and when a server was removed from it last; 0 for never.
    ipvs: BTreeMap<u32, Nanos>,
}

impl Queries {
    /// Starts the answering threads; they end with this value. What exists is read at once, as of `ts`.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(host: Host, ts: Nanos) -> Result<Self> {
        let (answer, answers) = unbounded_channel();
        // State look-ups build on the survey, so they wait for it.
        let first = 0;
        let states = answerer("rsttrace-state", host.clone(), answer.clone())?;
        states.send((first, ts, Task::Survey)).context("a helper thread has ended")?;
        Ok(Self {
            owners: answerer("rsttrace-owner", host.clone(), answer.clone())?,
            timeouts: answerer("rsttrace-timeo", host.clone(), answer.clone())?,
            namespaces: answerer("rsttrace-netns", host.clone(), answer.clone())?,
            tables: answerer("rsttrace-ipvs", host, answer)?,
            states,
            answers,
            open: BTreeMap::from([(first, OpenQuery { asked: ts, patience: PATIENCE_TO_DECIDE })]),
            next: first + 1,
            owned: Recent::default(),
            unmatched: Recent::default(),
            unreached: Recent::default(),
            unserved: Recent::default(),
            expensive: VecDeque::new(),
            dropping: HashMap::new(),
            met: Recent::default(),
            busy: BTreeMap::new(),
            ipvs: BTreeMap::new(),
        })
    }

    /// Remembers where IPVS is at work: those namespaces are read first.
    pub fn note(&mut self, event: &Event) {
        let removed = match event.body {
            Body::IpvsEnd(_) => 0,
            Body::IpvsServerRemoved(_) => event.ts,
            _ => return,
        };
        if self.ipvs.len() < IPVS || self.ipvs.contains_key(&event.netns) {
            let newest = self.ipvs.entry(event.netns).or_default();
            *newest = removed.max(*newest);
        }
    }

    /// Sends a query of a record with time `ts`, unless its answer is on its way or would cost too much.
    pub fn send(&mut self, ts: Nanos, query: Query) {
        match query {
            Query::Owner(ref socket) => {
                if self.owned.is_new((socket.inode, None)) {
                    self.run(ts, Task::Query(query));
                }
            }
            Query::Process { pid } => {
                if self.owned.is_new((pid.into(), Some(ts / SECOND))) {
                    self.run(ts, Task::Query(query));
                }
            }
            Query::State { netns, packet } => {
                if self.has_budget(ts) && self.unmatched.is_new((netns, packet)) {
                    self.spend(ts, Task::Query(query));
                }
            }
            Query::AcceptQueue { address, .. } => {
                if self.has_budget(ts) && self.unreached.is_new((address, ts / SECOND)) {
                    self.spend(ts, Task::Query(query));
                }
            }
            Query::IpvsService { address } => {
                if self.has_budget(ts) && self.unserved.is_new((address, ts / SECOND)) {
                    let likely = self.ipvs.keys().copied().collect();
                    self.spend(ts, Task::IpvsService { address, likely });
                }
            }
            Query::IpvsOrphan { flow } => {
                let likely = self.ipvs.iter().map(|(netns, removed)| (*netns, *removed)).collect();
                self.run(ts, Task::IpvsOrphan { flow, likely });
            }
            Query::IpvsDropped { netns, flow } => self.dropped(ts, netns, flow),
            Query::Netns { netns, .. } => {
                if !self.busy.contains_key(&netns)
                    && let Some(id) = self.run(ts, Task::Query(query))
                {
                    self.busy.insert(netns, id);
                }
            }
            // The sampler answers these.
            Query::IdlePeriods { .. } => {}
        }
    }

    /// Once for each client, when its packets have been dropped for a second.
    fn dropped(&mut self, ts: Nanos, netns: u32, flow: Flow) {
        if self.dropping.len() >= KEPT {
            self.dropping.clear();
        }
        let dropping = self.dropping.entry((netns, flow)).or_insert_with(|| DropsOfClient::new(ts));
        let (due, since) = (dropping.again(ts), dropping.since);
        if due && self.has_budget(ts) {
            let asked = self.spend(ts, Task::IpvsDropped { netns, flow, since }).is_some();
            if let Some(dropping) = self.dropping.get_mut(&(netns, flow)) {
                dropping.asked = asked;
            }
        }
    }

    fn has_budget(&mut self, ts: Nanos) -> bool {
        self.expensive.retain(|at| at.saturating_add(SECOND) > ts);
        self.expensive.len() < EXPENSIVE
    }

    fn spend(&mut self, ts: Nanos, task: Task) -> Option<u64> {
        self.expensive.push_back(ts);
        self.run(ts, task)
    }

    fn run(&mut self, ts: Nanos, task: Task) -> Option<u64> {
        if self.open.len() >= OPEN {
            return None;
        }
        let id = self.next;
        self.next += 1;
        let (thread, patience) = match task {
            // Its listeners decide who called whom; a second reading only has newer counts.
            Task::Query(Query::Netns { netns, .. }) if self.met.is_new(netns) => {
                (&self.namespaces, PATIENCE_TO_DECIDE)
            }
            Task::Query(Query::Netns { .. }) => (&self.namespaces, PATIENCE),
            Task::Query(Query::Owner(_) | Query::Process { .. }) => (&self.owners, PATIENCE),
            Task::Query(Query::AcceptQueue { .. }) => (&self.timeouts, PATIENCE_TO_DECIDE),
            Task::IpvsOrphan { .. } | Task::IpvsDropped { .. } | Task::IpvsService { .. } => {
                (&self.tables, PATIENCE_TO_DECIDE)
            }
            Task::Query(_) | Task::Survey => (&self.states, PATIENCE_TO_DECIDE),
        };
        thread.send((id, ts, task)).ok()?;
        self.open.insert(id, OpenQuery { asked: ts, patience });
        Some(id)
    }

    /// No query is open.
    pub fn is_idle(&self) -> bool {
        self.open.is_empty()
    }

    /// The time, `now` at most, up to which nothing waits for an answer.
    pub fn answered_until(&self, now: Nanos) -> Nanos {
        let waits = |open: &OpenQuery| open.asked.max(now.saturating_sub(open.patience));
        self.open.values().map(waits).min().unwrap_or(now).min(now)
    }

    /// Waits for an answer that says something.
    pub async fn answered(&mut self) -> Vec<Event> {
        loop {
            match self.answers.recv().await {
                Some(answer) => {
                    let events = self.close(answer);
                    if !events.is_empty() {
                        return events;
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

    fn close(&mut self, Answer { events, closes }: Answer) -> Vec<Event> {
        if let Some(id) = closes {
            self.open.remove(&id);
            self.busy.retain(|_, open| *open != id);
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_waits_long_for_what_decides_and_little_for_what_adds() {
        let (host, start) = (Host::new().expect("proc is mounted"), 100 * SECOND);
        let mut queries = Queries::start(host, start).expect("threads");
        let mut is_answered = |asked, patience, now| {
            queries.open = BTreeMap::from([(1, OpenQuery { asked, patience })]);
            queries.answered_until(now) > asked
        };
        for (patience, waits) in [(PATIENCE, SECOND), (PATIENCE_TO_DECIDE, 6 * SECOND)] {
            assert!(!is_answered(start, patience, start + patience), "{patience}");
            assert!(is_answered(start, patience, start + waits), "{patience}");
        }
        queries.open.clear();
        assert_eq!(queries.answered_until(start), start);
    }
}
