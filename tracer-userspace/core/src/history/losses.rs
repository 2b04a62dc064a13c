//! Entries that ended and packets that were dropped, kept until a connection breaks.
//!
//! Limited by count, not by age: an application may send on a dead connection hours later. Keyed by every
//! tuple of the flow, so a packet finds its entry from either side of NAT.

use std::{
    collections::{BTreeMap, HashMap},
    mem::discriminant,
};

use rsttrace_model::flow::{Flow, Nanos};

use crate::event::{ConntrackEnd, ConntrackInvalid, IpvsEnd, PacketDrop};

/// State that ended, or a packet that was dropped.
#[derive(Clone, Debug)]
pub enum Loss {
    Ipvs(Box<IpvsEnd>),
    Conntrack(Box<ConntrackEnd>),
    Drop(Box<PacketDrop>),
    Invalid(Box<ConntrackInvalid>),
}

impl Loss {
    /// Every tuple that a packet affected by this loss can have: both sides of NAT.
    pub fn keys(&self) -> Vec<Flow> {
        let mut keys = match self {
            Self::Ipvs(end) => vec![end.virtual_flow.key(), end.real_flow.key()],
            Self::Conntrack(end) => vec![end.original.key(), end.reply.key()],
            Self::Drop(drop) => {
                let nat = drop.nat().into_iter().flat_map(|nat| [nat.original, nat.reply]);
                nat.chain([drop.packet.flow]).map(Flow::key).collect()
            }
            Self::Invalid(it) => {
                vec![it.packet.flow.key(), it.original.key(), it.reply.key()]
            }
        };
        keys.sort_unstable();
        keys.dedup();
        keys
    }
}

/// A [`Loss`] with its time and network namespace.
#[derive(Clone, Debug)]
pub struct LossEntry {
    pub ts: Nanos,
    /// When the same loss was recorded first: for a dropped packet its first transmission, where `ts` is the
    /// newest.
    pub since: Nanos,
    pub netns: u32,
    pub loss: Loss,
}

impl LossEntry {
    pub fn new(ts: Nanos, netns: u32, loss: Loss) -> Self {
        Self { ts, since: ts, netns, loss }
    }

    /// The newest known time of the loss that is not later than `opened`.
    pub fn seen_by(&self, opened: Nanos) -> Nanos {
        if self.ts <= opened { self.ts } else { self.since }
    }
}

/// The store, limited by count.
#[derive(Debug)]
pub struct LossHistory {
    capacity: usize,
    next: u64,
    losses: BTreeMap<u64, LossEntry>,
    by_flow: HashMap<Flow, Vec<u64>>,
    evicted: u64,
    /// The time of the newest loss that was evicted, by namespace.
    begins: BTreeMap<u32, Nanos>,
}

impl LossHistory {
    /// Keeps at most `capacity` losses (a few hundred bytes each); the oldest is evicted first.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.max(1),
            next: 0,
            losses: BTreeMap::new(),
            by_flow: HashMap::new(),
            evicted: 0,
            begins: BTreeMap::new(),
        }
    }

    /// Every loss since this time is remembered; in `netns` or, without one, in any namespace.
    pub fn begins(&self, netns: Option<u32>) -> Nanos {
        match netns {
            Some(netns) => self.begins.get(&netns).copied().unwrap_or(0),
            None => self.begins.values().copied().max().unwrap_or(0),
        }
    }

    /// Losses evicted because the store was full.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    pub fn remember(&mut self, loss: LossEntry) {
        if self.renew(&loss) {
            return;
        }
        if self.losses.len() >= self.capacity
            && let Some((id, old)) = self.losses.pop_first()
        {
            self.evicted += 1;
            let begins = self.begins.entry(old.netns).or_insert(0);
            *begins = old.ts.max(*begins);
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

    /// Updates the known loss. A packet that is dropped repeatedly is one loss with the newest time, and so
    /// are the INVALID packets of one connection.
    fn renew(&mut self, loss: &LossEntry) -> bool {
        let same = |known: &Loss| match (known, &loss.loss) {
            (Loss::Drop(known), Loss::Drop(new)) => {
                known.packet.flow == new.packet.flow
                    && discriminant(&known.why) == discriminant(&new.why)
            }
            (Loss::Invalid(known), Loss::Invalid(new)) => known.packet.flow == new.packet.flow,
            _ => false,
        };
        let Some(key) = loss.loss.keys().into_iter().next() else {
            return false;
        };
        for id in self.by_flow.get(&key).into_iter().flatten() {
            if let Some(known) = self.losses.get_mut(id)
                && known.netns == loss.netns
                && same(&known.loss)
            {
                // Another segment, or a segment of another connection with this tuple, is dropped
                // for the first time.
                let since = if is_retry(&known.loss, &loss.loss) { known.since } else { loss.ts };
                *known = LossEntry { since, ..loss.clone() };
                return true;
            }
        }
        false
    }

    /// Losses of any of these flows, oldest first.
    pub fn of<'a>(&'a self, flows: &[Flow]) -> Vec<&'a LossEntry> {
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

fn is_retry(known: &Loss, new: &Loss) -> bool {
    match (known, new) {
        (Loss::Drop(known), Loss::Drop(new)) => known.packet.seq == new.packet.seq,
        _ => true,
    }
}
