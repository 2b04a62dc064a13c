//! Incidents that were told, whose other end may still fail.

use std::collections::VecDeque;

use rsttrace_model::{errno::ECONNRESET, flow::Nanos};

use super::{index::Index, stored_verdict::StoredVerdict};
use crate::{
    case::{Identity, Record},
    incident::Action,
};

/// So many are kept.
const FINISHED: usize = 4096;

/// An incident that was told.
pub struct Finished {
    pub opened: Nanos,
    pub event_id: String,
    pub action: Action,
    pub verdict: StoredVerdict,
    pub identity: Identity,
}

/// The newest of them, by the order in which they were told.
#[derive(Default)]
pub struct Archive {
    finished: VecDeque<Finished>,
    /// How many went before the first, so that an incident's number survives evictions.
    forgotten: u64,
    index: Index,
}

impl Archive {
    /// The number of the newest incident whose other end a record is.
    pub fn followed_by(&self, record: &Record) -> Option<u64> {
        let candidates = self.index.candidates(record).into_iter().rev();
        let mut known = candidates.filter_map(|number| Some((number, self.get(number)?)));
        known.find(|(_, finished)| finished.follows_from(record)).map(|(number, _)| number)
    }

    /// An incident, unless it is forgotten.
    pub fn get(&self, number: u64) -> Option<&Finished> {
        self.finished.get(usize::try_from(number.checked_sub(self.forgotten)?).ok()?)
    }

    pub fn push(&mut self, finished: Finished) {
        if self.finished.len() >= FINISHED
            && let Some(oldest) = self.finished.pop_front()
        {
            self.index.remove(self.forgotten, &oldest.identity);
            self.forgotten += 1;
        }
        let number = self.forgotten + self.finished.len() as u64;
        self.index.insert(number, &finished.identity);
        self.finished.push_back(finished);
    }
}

impl Finished {
    /// Whether a later record is this incident's other end. A packet that a full table dropped is no
    /// end yet: its sender may get through, live on, and break for another reason.
    fn follows_from(&self, record: &Record) -> bool {
        if !self.identity.matches(record) {
            return false;
        }
        if self.action != Action::Drop {
            return true;
        }
        match record {
            Record::Drop(_) => true,
            // The retries of what was dropped ran out: nothing has come in since.
            Record::Error(at) => {
                let socket = &at.value.socket;
                socket.err != ECONNRESET
                    && socket.last_received.is_none_or(|last| last <= self.opened)
            }
            Record::Sent(_) | Record::Received(_) => false,
        }
    }
}
