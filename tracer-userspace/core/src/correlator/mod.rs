//! Events in, incidents out. The correlator uses no clock and no I/O: events and ticks carry the time.
//!
//! A record opens a case or joins one. A case settles for [`SETTLE`], because on one host the effect is often
//! recorded before its cause (an active reset is traced after it was delivered). Then the case becomes an
//! incident. Reported incidents are kept, so that a later error at the connection's other end repeats the
//! verdict instead of making a second one.

use std::collections::BTreeMap;

use open::OpenCases;
use owners::Owners;
use reported::{ReportedIncident, ReportedIncidents};
use rsttrace_model::flow::Nanos;

use self::{stored_verdict::StoredVerdict, unmatched::UnmatchedSources};
use crate::{
    case::{Case, Record, Stamped},
    causes::{self, cause::Cause},
    event::{Body, Event, PlainEnd, has},
    evidence::{self, Evidence, Hosts, TraceCoverage},
    history::{
        baseline::Baseline,
        idle_periods::IdlePeriods,
        ipvs_servers::IpvsServers,
        losses::{Loss, LossEntry},
        memory::Memory,
    },
    incident::Incident,
    verdict::{Family, Verdict},
};

mod describe;
pub mod event_id;
mod index;
mod open;
mod owners;
mod reported;
mod stored_verdict;
mod unmatched;

pub use owners::closing_task;

/// How long a case waits for its other records. Effects precede causes by microseconds, and the end of an
/// entry that RCU frees follows within 100 ms. An incident must be printed within 1 s.
pub const SETTLE: Nanos = 250_000_000;

/// Cases that may settle at once; beyond this limit the oldest case gets its verdict early.
const MAX_OPEN_CASES: usize = 4096;

/// Namespaces whose state is kept.
const MAX_NAMESPACES: usize = 4096;

/// Counts that the closing summary shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunCounters {
    /// Resets and repeats that belong to an incident that is already reported, and unmatched segments of a source
    /// whose last one was just reported, or late FINs.
    pub absorbed: u64,
    /// Losses evicted because their store was full.
    pub evicted: u64,
    /// Records lost in the kernel.
    pub lost: u64,
    /// Records of a kind this build does not know.
    pub unknown_records: u64,
}

/// The correlator.
pub struct Correlator {
    coverage: TraceCoverage,
    memory: Memory,
    ipvs_servers: IpvsServers,
    hosts: Hosts,
    baseline: Baseline,
    idle_periods: IdlePeriods,
    owners: Owners,
    open: OpenCases,
    reported: ReportedIncidents,
    unmatched: UnmatchedSources,
    sequence: u64,
    counters: RunCounters,
}

impl Default for Correlator {
    fn default() -> Self {
        Self::new()
    }
}

impl Correlator {
    pub fn new() -> Self {
        Self::with_memory(Memory::default())
    }

    /// With another memory of losses, for tests of what it forgets.
    pub fn with_memory(memory: Memory) -> Self {
        Self {
            coverage: TraceCoverage::default(),
            memory,
            ipvs_servers: IpvsServers::default(),
            hosts: BTreeMap::new(),
            baseline: Baseline::default(),
            idle_periods: IdlePeriods::default(),
            owners: Owners::default(),
            open: OpenCases::default(),
            reported: ReportedIncidents::default(),
            unmatched: UnmatchedSources::default(),
            sequence: 0,
            counters: RunCounters::default(),
        }
    }

    pub fn counters(&self) -> RunCounters {
        RunCounters { evicted: self.memory.evicted(), ..self.counters }
    }

    /// Takes in one event. A [`Body::Tick`] gives a verdict on the cases that have settled.
    pub fn feed(&mut self, event: Event) -> Vec<Incident> {
        match event.body {
            Body::Tick => self.tick(event.ts),
            _ => {
                self.push(event);
                Vec::new()
            }
        }
    }

    /// Takes in one event. Events come in time order, up to the merge window of their source.
    pub fn push(&mut self, event: Event) {
        let Event { ts, netns, body } = event;
        let loss = match body {
            Body::Session(session) => {
                self.coverage.update(ts, *session);
                return;
            }
            Body::Netns(mut state) => {
                self.baseline.note_limits(&state);
                if let Some(earlier) = self.hosts.get(&state.inum) {
                    state.remember_listeners(earlier);
                }
                if self.hosts.len() >= MAX_NAMESPACES && !self.hosts.contains_key(&state.inum) {
                    // Inode numbers increase: the lowest is the initial namespace, the next is the
                    // oldest.
                    if let Some(oldest) = self.hosts.keys().nth(1).copied() {
                        self.hosts.remove(&oldest);
                    }
                }
                self.hosts.insert(state.inum, *state);
                return;
            }
            Body::Owner { inode, owner } => {
                self.owners.socket_is(inode, *owner);
                return;
            }
            Body::Process { started, owner } => {
                self.owners.process_is(ts, started, *owner);
                return;
            }
            Body::InitialState(state) => {
                self.baseline.set_initial_state(netns, *state);
                return;
            }
            Body::AcceptQueue(queue) => {
                self.baseline.add_queue(netns, *queue);
                return;
            }
            Body::EndedSockets(ended) => {
                self.baseline.add_ended(netns, *ended);
                return;
            }
            Body::FilteredFlow(mut flow) => {
                for PlainEnd { ts, netns, end } in std::mem::take(&mut flow.ends) {
                    let entry = LossEntry::new(ts, netns, Loss::Conntrack(Box::new(end)));
                    self.memory.remember_once(entry);
                }
                self.baseline.add_filtered(*flow);
                return;
            }
            Body::FilterRules(rules) => {
                self.baseline.add_filter_rules(netns, *rules);
                return;
            }
            Body::RejectingRules(rules) => {
                self.baseline.add_rejecting_rules(netns, *rules);
                return;
            }
            Body::PeerSocket(peer) => {
                self.baseline.add_peer(netns, *peer);
                return;
            }
            Body::StateLookup(lookup) => {
                self.baseline.add_lookup(netns, *lookup);
                return;
            }
            Body::Lost(lost) => {
                self.counters.lost = lost;
                self.coverage.lost(ts);
                return;
            }
            Body::SkippedRuns(skipped) => {
                self.coverage.skipped(ts, skipped);
                return;
            }
            Body::Survived { service, idle_s } => {
                self.idle_periods.record_survival(service, ts, idle_s);
                return;
            }
            Body::Tick => return,
            Body::Unknown { .. } => {
                self.counters.unknown_records += 1;
                return;
            }
            // A transaction that failed has removed what it had added.
            Body::NatChainRemoved(it) if has(&it.stack, "nf_tables_abort") => return,
            Body::NatChainRemoved(it) => {
                self.baseline.add_nat_removal(Stamped { ts, netns, value: *it });
                return;
            }
            Body::IpvsServerRemoved(it) => {
                self.ipvs_servers.remember(Stamped { ts, netns, value: *it });
                return;
            }
            Body::IpvsOrphan(it) => {
                self.ipvs_servers.remember_orphan(Stamped { ts, netns, value: *it });
                return;
            }
            Body::IpvsEnd(end) => {
                self.baseline.forget(netns, &end);
                Loss::Ipvs(end)
            }
            Body::ConntrackEnd(end) => Loss::Conntrack(end),
            Body::ConntrackInvalid(invalid) => Loss::Invalid(invalid),
            Body::PacketDrop(drop) => {
                self.memory.remember(LossEntry::new(ts, netns, Loss::Drop(drop.clone())));
                self.take(Record::Drop(Stamped { ts, netns, value: *drop }));
                return;
            }
            body => {
                if let Some(record) = Record::from_event(Event { ts, netns, body }) {
                    self.take(record);
                }
                return;
            }
        };
        self.memory.remember(LossEntry::new(ts, netns, loss));
    }

    /// Adds a record to the case or the reported incident that it belongs to, or opens a case.
    fn take(&mut self, record: Record) {
        let Some(record) = self.open.join(record, &self.memory) else {
            return;
        };
        let follows = self.reported.followed_by(&record);
        let known = follows.and_then(|number| self.reported.get(number));
        if known.is_some_and(|reported| reported.identity.knows_socket_of(&record)) {
            self.counters.absorbed += 1;
            return;
        }
        let mut case = Case::open(record);
        open::add_aliases(&self.memory, &mut case);
        self.open.insert((case, follows));
    }

    /// Whether a [`Self::tick`] at `now` would give a verdict.
    pub fn has_settled(&self, now: Nanos) -> bool {
        self.open.len() > MAX_OPEN_CASES
            || self.open.oldest().is_some_and(|opened| opened.saturating_add(SETTLE) <= now)
    }

    /// Gives a verdict on the cases that have settled by `now`.
    pub fn tick(&mut self, now: Nanos) -> Vec<Incident> {
        let mut incidents = Vec::new();
        while self.has_settled(now) {
            let Some((case, follows)) = self.open.pop() else {
                break;
            };
            incidents.extend(self.conclude(&case, follows));
        }
        incidents
    }

    /// Whether no case is settling.
    pub fn is_idle(&self) -> bool {
        self.open.is_empty()
    }

    /// Gives a verdict on all open cases.
    pub fn finish(&mut self) -> Vec<Incident> {
        self.tick(Nanos::MAX)
    }

    fn conclude(&mut self, case: &Case, follows: Option<u64>) -> Option<Incident> {
        let first = follows.and_then(|number| self.reported.get(number));
        let servers = &self.ipvs_servers;
        let evidence = evidence::gather(
            case,
            &self.memory,
            servers,
            &self.hosts,
            &self.baseline,
            &self.coverage,
        );
        if let (Some(sample), Some(view)) =
            (causes::middlebox_idle_timeout::sample(&evidence), evidence.client_view())
        {
            self.idle_periods.record_break(view.dst, sample);
        }
        let evidence = evidence.with_idle_periods(&self.idle_periods);
        if first.is_some() && !evidence.victims().any(|(_, _, socket)| !socket.dead) {
            // An answer to a retry, or to a socket that no process holds any more: no new victim.
            self.counters.absorbed += 1;
            return None;
        }
        if evidence.is_late_fin() {
            self.counters.absorbed += 1;
            return None;
        }
        let (cause, verdict) = judge(&evidence);
        if let Some(packet) = evidence.unmatched().filter(|_| cause.family == Family::Unknown)
            && !self.unmatched.is_first(packet.flow.src.ip(), case.opened)
        {
            self.counters.absorbed += 1;
            return None;
        }
        let no_reset = case.sent.is_empty() && case.received.is_empty();
        if no_reset && case.errors.is_empty() && cause.opens_on_drop.is_none() {
            return None;
        }
        // A socket whose own connect was abandoned reports its error after it has lost its
        // addresses.
        if no_reset && case.identity.flows().is_empty() {
            self.counters.absorbed += 1;
            return None;
        }
        let first = first.map(|reported| (reported.event_id.clone(), reported.verdict.clone()));
        let mut incident = describe::incident(&evidence, cause, verdict, &self.owners);
        if let Some((event_id, stored)) = first {
            incident.repeat(event_id, stored);
        }
        self.sequence += 1;
        incident.sequence = self.sequence;
        incident.lost_events = self.counters.lost;
        let mut identity = case.identity.clone();
        for view in [evidence.client_view(), evidence.server_view()].into_iter().flatten() {
            identity.add_flow(view);
        }
        if incident.cause.family == Family::Benign {
            return Some(incident);
        }
        self.reported.push(ReportedIncident {
            event_id: incident.follows.clone().unwrap_or_else(|| incident.event_id.clone()),
            opened: incident.opened,
            action: incident.action,
            verdict: StoredVerdict::of(&incident),
            identity,
        });
        Some(incident)
    }
}

/// The first cause that gives a verdict; `unknown` always gives one.
fn judge(evidence: &Evidence<'_>) -> (&'static Cause, Verdict) {
    causes::ALL
        .iter()
        .find_map(|cause| Some((cause, cause.verdict(evidence)?)))
        .unwrap_or_else(|| unreachable!("the last cause accepts everything"))
}

#[cfg(test)]
mod tests {
    use rsttrace_model::netns::NetnsState;

    use super::*;
    use crate::testing::{at, session};

    #[test]
    fn the_initial_namespace_is_not_evicted_first() {
        let mut c = Correlator::new();
        c.push(session(0));
        for inum in 0..=4096u32 {
            c.push(at(
                1,
                4026531840 + inum,
                Body::Netns(Box::new(NetnsState { inum: 4026531840 + inum, ..Default::default() })),
            ));
        }
        assert!(c.hosts.contains_key(&4026531840));
    }
}
