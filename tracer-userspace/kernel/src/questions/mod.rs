//! Questions to the host, asked off the event loop: reading a namespace or walking `/proc` for a
//! socket's owner takes milliseconds, and the ring buffer must not wait for it.

mod answers;
mod asked;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::SocketAddr,
    sync::mpsc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use rsttrace_core::event::Event;
use rsttrace_host::{Host, OwnedSocket};
use rsttrace_model::flow::{Flow, Nanos};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use self::{
    answers::{Answer, Asked, Question, answerer},
    asked::{ASKED, Dropping, Recent},
};

/// More open questions than this mean a storm: further ones are not asked, and verdicts say less.
const OPEN: usize = 512;

/// Packets that met no connection and are asked about, a second: each costs a walk through all the
/// machine's sockets, and whoever scans with ACKs sends thousands. Full queues, a second: each costs a
/// walk through all namespaces.
const INQUIRIES: usize = 10;

/// Namespaces with IPVS that are looked into before all others.
const IPVS: usize = 64;

const SECOND: Nanos = 1_000_000_000;

/// How long verdicts wait for an answer that only adds to them, such as the owner's name; together with
/// the correlator's own wait it stays below the second in which an incident must be told.
const PATIENCE: Nanos = 600_000_000;

/// The same for an answer that decides: it takes milliseconds, and where the host has no time for it, late
/// is better than wrong.
const PATIENCE_TO_DECIDE: Nanos = 5 * SECOND;

/// A socket's inode, or a pid in one second: pids are not given twice in so short a time.
type Topic = (u64, Option<u64>);

/// A question without an answer so far.
struct Open {
    /// Time of the record that raised it.
    asked: Nanos,
    patience: Nanos,
}

/// The asking side.
pub struct Questions {
    /// Owners are short-lived and asked on a thread of their own, ahead of everything else.
    owners: mpsc::Sender<Asked>,
    // The others have threads of their own because one kind of answer must not wait for another.
    namespaces: mpsc::Sender<Asked>,
    timeouts: mpsc::Sender<Asked>,
    inquiries: mpsc::Sender<Asked>,
    /// IPVS tables may be long, and whoever waits for them waits for nothing else.
    tables: mpsc::Sender<Asked>,
    answers: UnboundedReceiver<Answer>,
    open: BTreeMap<u64, Open>,
    next: u64,
    owned: Recent<Topic>,
    strayed: Recent<(u32, Flow)>,
    unreached: Recent<(SocketAddr, u64)>,
    unserved: Recent<(SocketAddr, u64)>,
    /// Times of the newest inquiries.
    inquired: VecDeque<Nanos>,
    dropping: HashMap<(u32, Flow), Dropping>,
    /// Namespaces that were asked about before.
    met: Recent<u32>,
    /// Namespaces with an open question: one answer serves all who ask meanwhile.
    busy: BTreeMap<u32, u64>,
    /// Namespaces in which IPVS was seen at work, and when a server was taken out of it last; 0 for never.
    ipvs: BTreeMap<u32, Nanos>,
}

impl Questions {
    /// Starts the answering threads; they end with this value. What exists is read at once, as of `ts`.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn ask(host: Host, ts: Nanos) -> Result<Self> {
        let (answer, answers) = unbounded_channel();
        // Inquiries build on the survey, so they wait for it.
        let (first, survey) = (0, Question::Survey);
        let inquiries = answerer("rsttrace-stray", host.clone(), answer.clone())?;
        inquiries.send((first, ts, survey)).context("a helper thread has ended")?;
        Ok(Self {
            owners: answerer("rsttrace-owner", host.clone(), answer.clone())?,
            timeouts: answerer("rsttrace-timeo", host.clone(), answer.clone())?,
            namespaces: answerer("rsttrace-netns", host.clone(), answer.clone())?,
            tables: answerer("rsttrace-ipvs", host, answer)?,
            inquiries,
            answers,
            open: BTreeMap::from([(first, Open { asked: ts, patience: PATIENCE_TO_DECIDE })]),
            next: first + 1,
            owned: Recent::default(),
            strayed: Recent::default(),
            unreached: Recent::default(),
            unserved: Recent::default(),
            inquired: VecDeque::new(),
            dropping: HashMap::new(),
            met: Recent::default(),
            busy: BTreeMap::new(),
            ipvs: BTreeMap::new(),
        })
    }

    /// Who owns this socket? Asked once per socket.
    pub fn owner(&mut self, ts: Nanos, socket: OwnedSocket) {
        if self.owned.is_new((socket.inode, None)) {
            self.send(ts, Question::Owner(socket));
        }
    }

    /// Which process is this? Asked once a second.
    pub fn process(&mut self, ts: Nanos, pid: u32) {
        if self.owned.is_new((pid.into(), Some(ts / SECOND))) {
            self.send(ts, Question::Process { pid });
        }
    }

    /// What is there about a packet that the stack of this namespace had no connection for? Asked once
    /// per pair of addresses.
    pub fn inquiry(&mut self, ts: Nanos, netns: u32, packet: Flow) {
        if self.may_inquire(ts) && self.strayed.is_new((netns, packet)) {
            self.inquired.push_back(ts);
            self.send(ts, Question::Inquiry { netns, packet });
        }
    }

    /// How full is the accept queue at `address`, which somebody in this namespace could not reach? Asked
    /// once a second.
    pub fn accept_queue(&mut self, ts: Nanos, netns: u32, address: SocketAddr) {
        if self.may_inquire(ts) && self.unreached.is_new((address, ts / SECOND)) {
            self.inquired.push_back(ts);
            self.send(ts, Question::AcceptQueue { netns, address });
        }
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

    /// Has the IPVS entry of this connection lost its real server?
    pub fn ipvs_orphan(&mut self, ts: Nanos, flow: Flow) {
        let likely = self.ipvs.iter().map(|(netns, removed)| (*netns, *removed)).collect();
        self.send(ts, Question::IpvsOrphan { flow, likely });
    }

    /// Does IPVS take new connections to an address that somebody could not reach? Asked once a second.
    pub fn ipvs_service(&mut self, ts: Nanos, address: SocketAddr) {
        if self.may_inquire(ts) && self.unserved.is_new((address, ts / SECOND)) {
            self.inquired.push_back(ts);
            let likely = self.ipvs.keys().copied().collect();
            self.send(ts, Question::IpvsService { address, likely });
        }
    }

    /// A packet of this client was dropped in this namespace, and its service has lost a real server: does
    /// its entry want that one? Asked once, when that has been going on for a second.
    pub fn ipvs_dropped(&mut self, ts: Nanos, netns: u32, flow: Flow) {
        if self.dropping.len() >= ASKED {
            self.dropping.clear();
        }
        let dropping = self.dropping.entry((netns, flow)).or_insert_with(|| Dropping::new(ts));
        let (due, since) = (dropping.again(ts), dropping.since);
        if due && self.may_inquire(ts) {
            self.inquired.push_back(ts);
            let asked = self.send(ts, Question::IpvsDropped { netns, flow, since }).is_some();
            if let Some(dropping) = self.dropping.get_mut(&(netns, flow)) {
                dropping.asked = asked;
            }
        }
    }

    fn may_inquire(&mut self, ts: Nanos) -> bool {
        self.inquired.retain(|at| at.saturating_add(SECOND) > ts);
        self.inquired.len() < INQUIRIES
    }

    /// IPVS is at work in this namespace, and a server was taken out of it at that time, if one was.
    pub fn ipvs_in(&mut self, netns: u32, removed: Option<Nanos>) {
        if self.ipvs.len() < IPVS || self.ipvs.contains_key(&netns) {
            let newest = self.ipvs.entry(netns).or_default();
            *newest = removed.unwrap_or_default().max(*newest);
        }
    }

    fn send(&mut self, ts: Nanos, question: Question) -> Option<u64> {
        if self.open.len() >= OPEN {
            return None;
        }
        let id = self.next;
        self.next += 1;
        let (thread, patience) = match question {
            // Who listens there decides who called whom; a second reading only has newer counts.
            Question::Netns { netns, .. } if self.met.is_new(netns) => {
                (&self.namespaces, PATIENCE_TO_DECIDE)
            }
            Question::Netns { .. } => (&self.namespaces, PATIENCE),
            Question::Owner(_) | Question::Process { .. } => (&self.owners, PATIENCE),
            Question::AcceptQueue { .. } => (&self.timeouts, PATIENCE_TO_DECIDE),
            Question::IpvsOrphan { .. }
            | Question::IpvsDropped { .. }
            | Question::IpvsService { .. } => (&self.tables, PATIENCE_TO_DECIDE),
            Question::Inquiry { .. } | Question::Survey => (&self.inquiries, PATIENCE_TO_DECIDE),
        };
        thread.send((id, ts, question)).ok()?;
        self.open.insert(id, Open { asked: ts, patience });
        Some(id)
    }

    /// Nothing is asked.
    pub fn is_idle(&self) -> bool {
        self.open.is_empty()
    }

    /// The time, `now` at most, up to which nothing waits for an answer.
    pub fn answered_until(&self, now: Nanos) -> Nanos {
        let waits = |open: &Open| open.asked.max(now.saturating_sub(open.patience));
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
        let mut questions = Questions::ask(host, start).expect("threads");
        let mut is_answered = |asked, patience, now| {
            questions.open = BTreeMap::from([(1, Open { asked, patience })]);
            questions.answered_until(now) > asked
        };
        for (patience, waits) in [(PATIENCE, SECOND), (PATIENCE_TO_DECIDE, 6 * SECOND)] {
            assert!(!is_answered(start, patience, start + patience), "{patience}");
            assert!(is_answered(start, patience, start + waits), "{patience}");
        }
        questions.open.clear();
        assert_eq!(questions.answered_until(start), start);
    }
}
