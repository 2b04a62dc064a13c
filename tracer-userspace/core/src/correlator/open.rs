//! The cases that are settling.

use std::collections::BTreeMap;

use rsttrace_model::flow::Nanos;

use super::index::Index;
use crate::{
    case::{Case, Record},
    history::memory::Memory,
};

/// A case, and the number of the reported incident whose other end it may be.
pub type Entry = (Case, Option<u64>);

/// Open cases in the order in which they were opened.
#[derive(Default)]
pub struct OpenCases {
    cases: BTreeMap<u64, Entry>,
    next: u64,
    index: Index,
}

impl OpenCases {
    pub fn len(&self) -> usize {
        self.cases.len()
    }

    pub fn is_empty(&self) -> bool {
        self.cases.is_empty()
    }

    /// When the oldest case opened.
    pub fn oldest(&self) -> Option<Nanos> {
        self.cases.first_key_value().map(|(_, (case, _))| case.opened)
    }

    /// Removes and returns the oldest case.
    pub fn pop(&mut self) -> Option<Entry> {
        let id = *self.cases.first_key_value()?.0;
        self.remove(id)
    }

    /// Opens a case.
    pub fn insert(&mut self, entry: Entry) {
        let id = self.next;
        self.next += 1;
        self.cases.insert(id, entry);
        self.index(id);
    }

    /// Adds a record to the case it belongs to. When it belongs to several cases, they are merged. Returns
    /// the record when it belongs to none.
    pub fn join(&mut self, record: Record, memory: &Memory) -> Option<Record> {
        let mut found = self.matching(&record).into_iter();
        let Some(first) = found.next() else {
            return Some(record);
        };
        for other in found {
            let Some((case, follows)) = self.remove(other) else {
                continue;
            };
            if let Some((into, known)) = self.cases.get_mut(&first) {
                into.merge(case);
                *known = known.or(follows);
            }
        }
        if let Some((case, _)) = self.cases.get_mut(&first) {
            case.add(record);
            add_aliases(memory, case);
        }
        self.index(first);
        None
    }

    fn matching(&self, record: &Record) -> Vec<u64> {
        let mut found = self.index.candidates(record);
        found
            .retain(|id| self.cases.get(id).is_some_and(|(case, _)| case.identity.matches(record)));
        found
    }

    fn index(&mut self, id: u64) {
        if let Some((case, _)) = self.cases.get(&id) {
            self.index.insert(id, &case.identity);
        }
    }

    fn remove(&mut self, id: u64) -> Option<Entry> {
        let entry = self.cases.remove(&id)?;
        self.index.remove(id, &entry.0.identity);
        Some(entry)
    }
}

/// Adds the tuples of lost entries: the tuples of the connection on both sides of NAT, which the records of
/// the other end carry.
pub fn add_aliases(memory: &Memory, case: &mut Case) {
    let known = case.identity.flows().to_vec();
    memory.aliases(&known).for_each(|flow| case.identity.add_flow(flow));
}
