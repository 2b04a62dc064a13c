//! Incidents that were reported and whose other end may still fail.

use std::collections::VecDeque;

use rsttrace_model::{errno::ECONNRESET, flow::Nanos};

use super::{index::Index, stored_verdict::StoredVerdict};
use crate::{
    case::{Identity, Record},
    incident::Action,
};

/// Reported incidents that are kept.
const MAX_REPORTED: usize = 4096;

/// An incident that was reported.
pub struct ReportedIncident {
    pub opened: Nanos,
    pub event_id: String,
    pub action: Action,
    pub verdict: StoredVerdict,
    pub identity: Identity,
}

/// The newest reported incidents, in the order of their reports.
#[derive(Default)]
pub struct ReportedIncidents {
    reported: VecDeque<ReportedIncident>,
    /// How many incidents were evicted, so that the number of an incident does not change by an eviction.
    evicted: u64,
    index: Index,
}

impl ReportedIncidents {
    /// The number of the newest incident whose other end made this record.
    pub fn followed_by(&self, record: &Record) -> Option<u64> {
        let candidates = self.index.candidates(record).into_iter().rev();
        let mut known = candidates.filter_map(|number| Some((number, self.get(number)?)));
        known.find(|(_, reported)| reported.follows_from(record)).map(|(number, _)| number)
    }

    /// An incident; `None` after its eviction.
    pub fn get(&self, number: u64) -> Option<&ReportedIncident> {
        self.reported.get(usize::try_from(number.checked_sub(self.evicted)?).ok()?)
    }

    pub fn push(&mut self, reported: ReportedIncident) {
        if self.reported.len() >= MAX_REPORTED
            && let Some(oldest) = self.reported.pop_front()
        {
            self.index.remove(self.evicted, &oldest.identity);
            self.evicted += 1;
        }
        let number = self.evicted + self.reported.len() as u64;
        self.index.insert(number, &reported.identity);
        self.reported.push_back(reported);
    }
}

impl ReportedIncident {
    /// Whether a later record comes from the other end of this incident. A packet that a full table dropped
    /// does not end the connection: a retry may get through, and the connection may break later for another
    /// reason.
    fn follows_from(&self, record: &Record) -> bool {
        if !self.identity.matches(record) {
            return false;
        }
        if self.action != Action::Drop {
            return true;
        }
        match record {
            Record::Drop(_) => true,
            // The retries of the dropped packet ran out: the socket has received nothing since.
            Record::Error(at) => {
                let socket = &at.value.socket;
                socket.err != ECONNRESET
                    && socket.last_received.is_none_or(|last| last <= self.opened)
            }
            Record::Sent(_) | Record::Received(_) => false,
        }
    }
}
