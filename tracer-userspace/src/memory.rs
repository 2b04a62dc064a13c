//! What died or was dropped, kept until something breaks.
//!
//! Bounded by count, never by age: an application may come back to a dead connection hours later.
//! Keyed by every tuple of the flow, so a packet finds its entry from either side of NAT.

use std::collections::{BTreeMap, HashMap};

use crate::event::{ConntrackEnd, Flow, IpvsEnd, Nanos, NetfilterDrop};

/// State that ended, or a packet that was dropped.
#[derive(Clone, Debug)]
pub enum Loss {
    Ipvs(Box<IpvsEnd>),
    Conntrack(Box<ConntrackEnd>),
    Drop(Box<NetfilterDrop>),
}

impl Loss {
    /// Every tuple by which a later packet can meet this loss: both sides of NAT.
    pub fn keys(&self) -> Vec<Flow> {
        let mut keys = match self {
            Self::Ipvs(end) => vec![end.virtual_flow.key(), end.real_flow.key()],
            Self::Conntrack(end) => vec![end.original.key(), end.reply.key()],
            Self::Drop(drop) => vec![drop.packet.flow.key()],
        };
        keys.sort_unstable();
        keys.dedup();
        keys
    }
}

/// A [`Loss`] with its time and place.
#[derive(Clone, Debug)]
pub struct Remembered {
    pub ts: Nanos,
    pub netns: u32,
    pub loss: Loss,
}

/// The bounded store.
#[derive(Debug)]
pub struct Memory {
    capacity: usize,
    next: u64,
    losses: BTreeMap<u64, Remembered>,
    by_flow: HashMap<Flow, Vec<u64>>,
    evicted: u64,
}

impl Memory {
    /// Holds at most `capacity` losses (a few hundred bytes each); the oldest goes first.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.max(1),
            next: 0,
            losses: BTreeMap::new(),
            by_flow: HashMap::new(),
            evicted: 0,
        }
    }

    /// Losses forgotten for want of room.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    pub fn remember(&mut self, loss: Remembered) {
        if self.renew(&loss) {
            return;
        }
        if self.losses.len() >= self.capacity
            && let Some((id, old)) = self.losses.pop_first()
        {
            self.evicted += 1;
            for key in old.loss.keys() {
                if let Some(ids) = self.by_flow.get_mut(&key) {
                    ids.retain(|&other| other != id);
                    if ids.is_empty() {
                        self.by_flow.remove(&key);
                    }
                }
            }
        }
        let id = self.next;
        self.next += 1;
        for key in loss.loss.keys() {
            self.by_flow.entry(key).or_default().push(id);
        }
        self.losses.insert(id, loss);
    }

    /// A packet that is dropped again and again is one loss, the newest.
    fn renew(&mut self, loss: &Remembered) -> bool {
        let Loss::Drop(drop) = &loss.loss else {
            return false;
        };
        let known = self.by_flow.get(&drop.packet.flow.key()).into_iter().flatten();
        for id in known {
            if let Some(known) = self.losses.get_mut(id)
                && known.netns == loss.netns
                && matches!(&known.loss, Loss::Drop(old)
                    if (old.table_full, old.no_server) == (drop.table_full, drop.no_server))
            {
                *known = loss.clone();
                return true;
            }
        }
        false
    }

    /// Losses of any of these flows, oldest first.
    pub fn of<'a>(&'a self, flows: &[Flow]) -> Vec<&'a Remembered> {
        let mut ids: Vec<u64> = flows
            .iter()
            .filter_map(|flow| self.by_flow.get(&flow.key()))
            .flatten()
            .copied()
            .collect();
        ids.sort_unstable();
        ids.dedup();
        ids.iter().filter_map(|id| self.losses.get(id)).collect()
    }
}
