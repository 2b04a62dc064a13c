//! Finds the cases and incidents that a record may belong to without a scan of all: a reset storm opens
//! thousands of cases a second.

use std::{collections::HashMap, hash::Hash};

use rsttrace_model::flow::Flow;

use crate::case::{Identity, Record};

/// Ids by everything that makes an [`Identity`] match a record: a tuple, the number of a reset, or the
/// sequence numbers of both directions.
#[derive(Default)]
pub struct Index {
    flows: HashMap<Flow, Vec<u64>>,
    resets: HashMap<u32, Vec<u64>>,
    blocks: HashMap<u32, Vec<u64>>,
}

impl Index {
    /// Adds an identity. Call it again when the identity of an id has grown.
    pub fn insert(&mut self, id: u64, identity: &Identity) {
        identity.flows().iter().for_each(|flow| put(&mut self.flows, *flow, id));
        identity.reset_numbers().for_each(|number| put(&mut self.resets, number, id));
        identity.blocks().for_each(|block| put(&mut self.blocks, block, id));
    }

    pub fn remove(&mut self, id: u64, identity: &Identity) {
        identity.flows().iter().for_each(|flow| take(&mut self.flows, flow, id));
        identity.reset_numbers().for_each(|number| take(&mut self.resets, &number, id));
        identity.blocks().for_each(|block| take(&mut self.blocks, &block, id));
    }

    /// All ids that match and few others, in ascending order.
    pub fn candidates(&self, record: &Record) -> Vec<u64> {
        let by_flow = record.flow().and_then(|flow| self.flows.get(&flow.key()));
        let by_reset = record.reset_number().and_then(|number| self.resets.get(&number));
        let by_block = record.blocks().filter_map(|block| self.blocks.get(&block));
        let all = by_flow.into_iter().chain(by_reset).chain(by_block).flatten();
        let mut all: Vec<_> = all.copied().collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

fn put<K: Eq + Hash>(index: &mut HashMap<K, Vec<u64>>, key: K, id: u64) {
    let ids = index.entry(key).or_default();
    if !ids.contains(&id) {
        ids.push(id);
    }
}

fn take<K: Eq + Hash>(index: &mut HashMap<K, Vec<u64>>, key: &K, id: u64) {
    if let Some(ids) = index.get_mut(key) {
        ids.retain(|other| *other != id);
        if ids.is_empty() {
            index.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::case::Case;
    use crate::testing::{data, no_socket, received, sent, socket};

    const ENDS: [&str; 4] = ["10.0.0.1:40001", "10.0.0.1:40002", "10.0.0.9:3306", "10.0.0.8:3306"];

    /// Where sequence numbers wrap, and at the border of a block.
    const NUMBERS: [u32; 2] = [0, 7 << 20];

    /// A record of one of a few similar connections.
    fn record() -> impl Strategy<Value = Record> {
        let number = |middle: u32| {
            (0..60_000_u32).prop_map(move |by| middle.wrapping_sub(30_000).wrapping_add(by))
        };
        let width = prop_oneof![4 => Just(0_u32), 1 => 0..100_000_u32, 1 => Just(3_000_000_000)];
        let ends = (0..ENDS.len(), 0..ENDS.len());
        let numbers = (number(NUMBERS[0]), number(NUMBERS[1]));
        (ends, numbers, width, any::<bool>()).prop_map(|(ends, (seq, ack), width, hit)| {
            let (local, remote) = (ENDS[ends.0], ENDS[ends.1]);
            let event = if hit {
                let mut socket = socket(1, local, remote, 0);
                (socket.snd_una, socket.snd_nxt) = (seq, seq.wrapping_add(width));
                socket.rcv_nxt = ack;
                received(1, 1, socket)
            } else {
                let mut packet = data(local, remote);
                (packet.seq, packet.ack) = (seq, ack);
                sent(1, 1, no_socket(packet))
            };
            Record::from_event(event).expect("a record")
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn every_match_is_a_candidate(one in record(), more in record(), later in record()) {
            let mut case = Case::open(one);
            case.add(more);
            let mut index = Index::default();
            index.insert(7, &case.identity);
            let found = index.candidates(&later);
            prop_assert!(!case.identity.matches(&later) || found == [7], "{found:?}");
            index.remove(7, &case.identity);
            prop_assert!(index.candidates(&later).is_empty());
        }
    }
}
