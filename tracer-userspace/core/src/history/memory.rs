//! Everything that was lost, by kind, and how far back each kind is remembered.
//!
//! Each kind has its own store, so that many losses of one kind, which may be useless (a flood of half-open
//! connections, a noisy DROP rule), do not displace those of another. A store that is full forgets its oldest
//! loss and knows from then on that its memory begins later.

use rsttrace_model::{
    conntrack,
    flow::{Flow, Nanos},
    ipvs,
};

use super::losses::{Loss, LossEntry, LossHistory};

/// A kind of loss with its own store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossKind {
    /// Ends of IPVS entries whose handshake was complete.
    Ipvs,
    /// Ends of other IPVS entries. A SYN flood makes millions of them.
    HalfOpenIpvs,
    /// Ends of conntrack entries that translated a connection whose handshake was complete.
    Nat,
    /// Ends of other conntrack entries that translated a connection.
    HalfOpenNat,
    /// Ends of conntrack entries without translation, as far as they were asked for.
    Plain,
    /// Packets that were dropped or judged INVALID.
    Packet,
}

const KINDS: [LossKind; 6] = [
    LossKind::Ipvs,
    LossKind::HalfOpenIpvs,
    LossKind::Nat,
    LossKind::HalfOpenNat,
    LossKind::Plain,
    LossKind::Packet,
];

impl LossKind {
    pub fn of(loss: &Loss) -> Self {
        match loss {
            Loss::Ipvs(end) if ipvs::is_half_open(end.state) => Self::HalfOpenIpvs,
            Loss::Ipvs(_) => Self::Ipvs,
            Loss::Conntrack(end) if !end.is_nat() => Self::Plain,
            Loss::Conntrack(end) if conntrack::is_half_open(end.state) => Self::HalfOpenNat,
            Loss::Conntrack(_) => Self::Nat,
            Loss::Drop(_) | Loss::Invalid(_) => Self::Packet,
        }
    }

    /// Losses of this kind that are kept, at most about 1 KiB each.
    fn capacity(self) -> usize {
        match self {
            Self::Ipvs | Self::Nat => 65_536,
            Self::HalfOpenIpvs | Self::HalfOpenNat | Self::Plain | Self::Packet => 8192,
        }
    }
}

/// All stores.
#[derive(Debug)]
pub struct Memory {
    stores: [LossHistory; KINDS.len()],
}

impl Default for Memory {
    fn default() -> Self {
        Self { stores: KINDS.map(|kind| LossHistory::new(kind.capacity())) }
    }
}

impl Memory {
    /// A memory that keeps at most `capacity` losses of each kind, for tests of what it forgets.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { stores: KINDS.map(|_| LossHistory::new(capacity)) }
    }

    pub fn remember(&mut self, entry: LossEntry) {
        self.stores[LossKind::of(&entry.loss) as usize].remember(entry);
    }

    /// The same for a loss that may be known already, because it was asked for before.
    pub fn remember_once(&mut self, entry: LossEntry) {
        let known =
            self.of(&entry.loss.keys()).any(|it| (it.ts, it.netns) == (entry.ts, entry.netns));
        if !known {
            self.remember(entry);
        }
    }

    /// Losses of any of these flows.
    pub fn of<'a>(&'a self, flows: &[Flow]) -> impl Iterator<Item = &'a LossEntry> {
        self.stores.iter().flat_map(|store| store.of(flows))
    }

    /// The tuples on both sides of NAT of entries of any of these flows that ended.
    pub fn aliases(&self, flows: &[Flow]) -> impl Iterator<Item = Flow> {
        let ends = self.of(flows).map(|entry| &entry.loss);
        let ends = ends.filter(|loss| matches!(loss, Loss::Ipvs(_) | Loss::Conntrack(_)));
        ends.flat_map(Loss::keys)
    }

    /// Losses of this kind that are not remembered any more came before this time, in `netns` or, without
    /// one, in any namespace.
    pub fn begins(&self, kind: LossKind, netns: Option<u32>) -> Nanos {
        self.stores[kind as usize].begins(netns)
    }

    /// Losses that were forgotten because their store was full.
    pub fn evicted(&self) -> u64 {
        self.stores.iter().map(LossHistory::evicted).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::IpvsEnd,
        testing::{CLIENT, VIP, flow, ipvs_end},
    };

    fn end(n: u32, state: u32) -> Loss {
        let virtual_flow = flow(&format!("10.1.0.1:{n}"), VIP);
        Loss::Ipvs(Box::new(IpvsEnd { virtual_flow, state, ..ipvs_end(900.0) }))
    }

    #[test]
    fn half_open_entries_do_not_displace_others_and_a_full_store_begins_later() {
        let mut memory = Memory::with_capacity(2);
        memory.remember(LossEntry::new(1, 7, Loss::Ipvs(Box::new(ipvs_end(900.0)))));
        for n in 0..100 {
            memory.remember(LossEntry::new(10 + u64::from(n), 7, end(n, 3)));
        }
        assert_eq!(memory.of(&[flow(CLIENT, VIP)]).count(), 1);
        assert_eq!(memory.begins(LossKind::Ipvs, None), 0);
        assert_eq!(memory.begins(LossKind::HalfOpenIpvs, None), 107);
        assert_eq!(memory.begins(LossKind::HalfOpenIpvs, Some(8)), 0, "of another namespace");
        assert_eq!(memory.evicted(), 98);
    }

    #[test]
    fn every_kind_has_its_own_store() {
        for (place, kind) in KINDS.into_iter().enumerate() {
            assert_eq!(kind as usize, place);
        }
    }
}
