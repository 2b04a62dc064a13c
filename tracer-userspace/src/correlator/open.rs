//! The cases that are settling, found by tuple or by the number of a reset without looking at each: a
//! port scan opens thousands a second.

use std::collections::{BTreeMap, HashMap};

use crate::{
    case::{Case, Record},
    event::{Flow, Nanos},
    memory::Memory,
};

/// A case, and the index of the finished incident whose other end it may be.
pub type Entry = (Case, Option<usize>);

/// Cases by the order of their opening.
#[derive(Default)]
pub struct Open {
    cases: BTreeMap<u64, Entry>,
    next: u64,
    by_flow: HashMap<Flow, Vec<u64>>,
    by_reset: HashMap<u32, Vec<u64>>,
}

impl Open {
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

    /// Takes the oldest case out.
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

    /// Adds a record to the case it belongs to; when it ties several together, they become one. Gives
    /// the record back when it belongs to none.
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
            super::add_aliases(memory, case);
        }
        self.index(first);
        None
    }

    fn matching(&self, record: &Record) -> Vec<u64> {
        let by_flow = record.flow().and_then(|flow| self.by_flow.get(&flow.key()));
        let by_reset = record.reset_number().and_then(|number| self.by_reset.get(&number));
        let mut candidates: Vec<u64> =
            by_flow.into_iter().chain(by_reset).flatten().copied().collect();
        if !record.is_handshake() {
            // Behind NAT without a known entry only the sequence numbers tell.
            candidates.extend(self.cases.keys());
        }
        candidates.sort_unstable();
        candidates.dedup();
        candidates
            .retain(|id| self.cases.get(id).is_some_and(|(case, _)| case.identity.matches(record)));
        candidates
    }

    fn index(&mut self, id: u64) {
        let Some((case, _)) = self.cases.get(&id) else {
            return;
        };
        for flow in case.identity.flows() {
            let ids = self.by_flow.entry(*flow).or_default();
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        for number in case.identity.reset_numbers() {
            let ids = self.by_reset.entry(number).or_default();
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
    }

    fn remove(&mut self, id: u64) -> Option<Entry> {
        let entry = self.cases.remove(&id)?;
        for flow in entry.0.identity.flows() {
            forget(&mut self.by_flow, flow, id);
        }
        for number in entry.0.identity.reset_numbers() {
            forget(&mut self.by_reset, &number, id);
        }
        Some(entry)
    }
}

fn forget<K: Eq + std::hash::Hash>(index: &mut HashMap<K, Vec<u64>>, key: &K, id: u64) {
    if let Some(ids) = index.get_mut(key) {
        ids.retain(|other| *other != id);
        if ids.is_empty() {
            index.remove(key);
        }
    }
}
