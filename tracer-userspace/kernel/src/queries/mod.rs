//! Queries to the host, off the event loop: reading a namespace or walking `/proc` for a socket's owner
//! takes milliseconds, and the ring buffer must not wait for it.
//!
//! The core decides what it wants (`rsttrace_core::query`). This module drops queries that were sent before
//! or cost too much, and decides on which thread a query runs and how long verdicts wait for it.

mod answers;
mod dedup;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::SocketAddr,
    sync::mpsc,
};

use crate::socket_ends::SocketEnds;
use anyhow::{Context as _, Result};
use rsttrace_core::{
    event::{Body, Event},
    query::Query,
};
use rsttrace_host::Host;
use rsttrace_model::flow::{Flow, Nanos};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use self::{
    answers::{Answer, Job, Reader, Task, answerer},
    dedup::{DropsOfClient, KEPT, Recent},
};

/// Most open queries. Further ones are not sent, so that verdicts have less detail during a storm of events.
const MAX_OPEN: usize = 512;

/// Most expensive queries per second. State for a packet without a connection costs a walk through all the
/// machine's sockets, and a scan with ACKs sends thousands of those packets; an accept queue or an IPVS
/// service costs a walk through all namespaces.
const EXPENSIVE: usize = 10;

/// Most searches of the kernel's stores per second, a millisecond each.
const SEARCHES: usize = 50;

/// How long the filter rules of a namespace are not read again.
const RULES_VALID_FOR: Nanos = 5 * SECOND;

/// How long the rules that can reject a packet to an address are not read again: that takes a second on a large node.
const REJECTING_VALID_FOR: Nanos = 10 * SECOND;

/// Most namespaces with IPVS that are read before all others.
const MAX_IPVS: usize = 64;

const SECOND: Nanos = 1_000_000_000;

/// How long verdicts wait for an answer that only adds details, such as the owner's name. Together with the
/// correlator's own wait this is less than the second in which an incident must be printed.
const PATIENCE: Nanos = 600_000_000;

/// How long verdicts wait for an answer that can change the cause. It takes milliseconds; on a busy host a
/// late verdict is better than a wrong one.
const PATIENCE_TO_DECIDE: Nanos = 5 * SECOND;

/// A socket's inode, or a pid and a second: the kernel does not reuse a pid in so short a time.
type Topic = (u64, Option<u64>);

/// A query without an answer so far.
struct OpenQuery {
    /// Time of the record that caused it.
    asked: Nanos,
    patience: Nanos,
}

/// The sending side of queries.
pub struct Queries {
    /// Processes may end soon, so they are read on a thread of their own, before everything else.
    owners: mpsc::Sender<Job>,
    // The other kinds have separate threads, so that one kind of answer does not wait for another.
    namespaces: mpsc::Sender<Job>,
    timeouts: mpsc::Sender<Job>,
    states: mpsc::Sender<Job>,
    /// IPVS tables may be long, so no other kind of query waits for them.
    tables: mpsc::Sender<Job>,
    answers: UnboundedReceiver<Answer>,
    open: BTreeMap<u64, OpenQuery>,
    next: u64,
    owned: Recent<Topic>,
    unmatched: Recent<(u32, Flow)>,
    unreached: Recent<(SocketAddr, u64)>,
    unserved: Recent<(SocketAddr, u64)>,
    unpaired: Recent<(Flow, u64)>,
    /// Times of the newest expensive queries.
    expensive: VecDeque<Nanos>,
    /// Times of the newest queries for the peer of a socket, which walk through all namespaces too. They have a budget of
    /// their own, because most resets of connections between two sockets of this host need no such answer.
    peers: VecDeque<Nanos>,
    searched: Recent<(Flow, u64)>,
    searches: VecDeque<Nanos>,
    filtering: Recent<(u32, u64)>,
    rejecting: Recent<(u32, SocketAddr, u64)>,
    dropping: HashMap<(u32, Flow), DropsOfClient>,
    /// Namespaces that were read before.
    read: Recent<u32>,
    /// Namespaces that are being read, each with the query's id: one answer serves all queries meanwhile.
    busy: BTreeMap<u32, u64>,
    /// Namespaces in which IPVS had events, and when a real server was last removed there; 0 for never.
    ipvs: BTreeMap<u32, Nanos>,
}

/// Keeps the times within a second before `ts`.
fn retain_second(times: &mut VecDeque<Nanos>, ts: Nanos) {
    times.retain(|at| at.saturating_add(SECOND) > ts);
}

impl Queries {
    /// Starts the answering threads, which end with this value. The initial state is read at once, as of
    /// `ts`.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(host: Host, ends: Option<SocketEnds>, ts: Nanos) -> Result<Self> {
        let (answer, answers) = unbounded_channel();
        // State look-ups build on the survey, so they wait for it.
        let first = 0;
        let reader = Reader { host, ends };
        let states = answerer("rsttrace-state", reader.clone(), answer.clone())?;
        states.send((first, ts, Task::Survey)).context("a helper thread has ended")?;
        Ok(Self {
            owners: answerer("rsttrace-owner", reader.clone(), answer.clone())?,
            timeouts: answerer("rsttrace-timeo", reader.clone(), answer.clone())?,
            namespaces: answerer("rsttrace-netns", reader.clone(), answer.clone())?,
            tables: answerer("rsttrace-ipvs", reader, answer)?,
            states,
            answers,
            open: BTreeMap::from([(first, OpenQuery { asked: ts, patience: PATIENCE_TO_DECIDE })]),
            next: first + 1,
            owned: Recent::default(),
            unmatched: Recent::default(),
            unreached: Recent::default(),
            unserved: Recent::default(),
            unpaired: Recent::default(),
            expensive: VecDeque::new(),
            peers: VecDeque::new(),
            searched: Recent::default(),
            searches: VecDeque::new(),
            filtering: Recent::default(),
            rejecting: Recent::default(),
            dropping: HashMap::new(),
            read: Recent::default(),
            busy: BTreeMap::new(),
            ipvs: BTreeMap::new(),
        })
    }

    /// Records the namespaces in which IPVS has events, which are read first.
    pub fn note(&mut self, event: &Event) {
        let removed = match event.body {
            Body::IpvsEnd(_) => 0,
            Body::IpvsServerRemoved(_) => event.ts,
            _ => return,
        };
        if self.ipvs.len() < MAX_IPVS || self.ipvs.contains_key(&event.netns) {
            let newest = self.ipvs.entry(event.netns).or_default();
            *newest = removed.max(*newest);
        }
    }

    /// Sends a query of a record with time `ts`, unless the same query was sent already or would cost too
    /// much.
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
            Query::Peer { flow, .. } => {
                retain_second(&mut self.peers, ts);
                if self.peers.len() < EXPENSIVE && self.unpaired.is_new((flow, ts / SECOND)) {
                    self.peers.push_back(ts);
                    self.run(ts, Task::Query(query));
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
            Query::FilterRules { netns } => {
                if self.filtering.is_new((netns, ts / RULES_VALID_FOR)) {
                    self.run(ts, Task::Query(query));
                }
            }
            Query::RejectingRules { netns, dst } => {
                let is_new = self.rejecting.is_new((netns, dst, ts / REJECTING_VALID_FOR));
                if is_new && self.has_budget(ts) {
                    self.spend(ts, Task::Query(query));
                }
            }
            // The sampler and the live stream answer these.
            Query::IdlePeriods { .. } | Query::Filtered { .. } => {}
        }
    }

    /// Whether the kernel's stores may be searched for a flow: not for the same flow twice in a second, and not for too
    /// many, since a search reads megabytes.
    pub fn may_search(&mut self, ts: Nanos, flow: Flow) -> bool {
        retain_second(&mut self.searches, ts);
        let may = self.searches.len() < SEARCHES && self.searched.is_new((flow.key(), ts / SECOND));
        if may {
            self.searches.push_back(ts);
        }
        may
    }

    /// Sends a query once for each client, when its packets have been dropped for a second.
    fn dropped(&mut self, ts: Nanos, netns: u32, flow: Flow) {
        if self.dropping.len() >= KEPT {
            self.dropping.clear();
        }
        let dropping = self.dropping.entry((netns, flow)).or_insert_with(|| DropsOfClient::new(ts));
        let (due, since) = (dropping.add(ts), dropping.since);
        if due && self.has_budget(ts) {
            let asked = self.spend(ts, Task::IpvsDropped { netns, flow, since }).is_some();
            if let Some(dropping) = self.dropping.get_mut(&(netns, flow)) {
                dropping.asked = asked;
            }
        }
    }

    fn has_budget(&mut self, ts: Nanos) -> bool {
        retain_second(&mut self.expensive, ts);
        self.expensive.len() < EXPENSIVE
    }

    fn spend(&mut self, ts: Nanos, task: Task) -> Option<u64> {
        self.expensive.push_back(ts);
        self.run(ts, task)
    }

    fn run(&mut self, ts: Nanos, task: Task) -> Option<u64> {
        if self.open.len() >= MAX_OPEN {
            return None;
        }
        let id = self.next;
        self.next += 1;
        let (thread, patience) = match task {
            // Its listeners decide which side is the client; a second read only has newer counts.
            Task::Query(Query::Netns { netns, .. }) if self.read.is_new(netns) => {
                (&self.namespaces, PATIENCE_TO_DECIDE)
            }
            Task::Query(Query::Netns { .. }) => (&self.namespaces, PATIENCE),
            Task::Query(Query::Owner(_) | Query::Process { .. }) => (&self.owners, PATIENCE),
            Task::Query(
                Query::AcceptQueue { .. }
                | Query::Peer { .. }
                | Query::FilterRules { .. }
                | Query::RejectingRules { .. },
            ) => (&self.timeouts, PATIENCE_TO_DECIDE),
            Task::IpvsOrphan { .. } | Task::IpvsDropped { .. } | Task::IpvsService { .. } => {
                (&self.tables, PATIENCE_TO_DECIDE)
            }
            Task::Query(_) | Task::Survey => (&self.states, PATIENCE_TO_DECIDE),
        };
        thread.send((id, ts, task)).ok()?;
        self.open.insert(id, OpenQuery { asked: ts, patience });
        Some(id)
    }

    /// Whether no query is open.
    pub fn is_idle(&self) -> bool {
        self.open.is_empty()
    }

    /// The time, `now` at most, up to which no record waits for an answer.
    pub fn answered_until(&self, now: Nanos) -> Nanos {
        let waits = |open: &OpenQuery| open.asked.max(now.saturating_sub(open.patience));
        self.open.values().map(waits).min().unwrap_or(now).min(now)
    }

    /// Waits for an answer with events.
    pub async fn answered(&mut self) -> Vec<Event> {
        loop {
            match self.answers.recv().await {
                Some(answer) => {
                    let events = self.close(answer);
                    if !events.is_empty() {
                        return events;
                    }
                }
                // All threads have ended, so there will be no answer.
                None => std::future::pending::<()>().await,
            }
        }
    }

    /// Events of the answers received so far.
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
    fn a_verdict_waits_longer_for_an_answer_that_decides_than_for_one_that_adds_details() {
        let (host, start) = (Host::new().expect("proc is mounted"), 100 * SECOND);
        let mut queries = Queries::start(host, None, start).expect("threads");
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
