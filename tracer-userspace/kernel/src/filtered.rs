//! What the kernel keeps of connections that a rule may have stopped: the ends of conntrack entries without NAT
//! (`PLAIN_ENDS`), and the packets that netfilter dropped (`RULE_DROPS`).

use std::{
    mem::offset_of,
    os::fd::BorrowedFd,
    sync::atomic::{AtomicU64, Ordering, fence},
};

use anyhow::{Context as _, Result};
use aya::maps::{HashMap, Map, MapData};
use rsttrace_core::{
    decode::{self, Kernel},
    event::{FilteredFlow, PlainEnd, RuleDrop},
};
use rsttrace_model::flow::{Flow, Nanos};
use tracer_common::{record, wire::Header};

use super::{flow_key::FlowKey, mapping::Mapping};

/// Slots of all CPUs together where there are few: 6 MiB of kernel memory.
const SLOTS: u32 = 16_384;
/// Slots of each CPU at least, as far as all CPUs have [`MOST`] at most.
const LEAST_PER_CPU: u32 = 1024;
/// 46 MiB, of a machine with 128 CPUs or more.
const MOST: u32 = 131_072;

const WORD: usize = size_of::<u64>();
/// Words of a slot, and where its parts begin.
const WORDS: usize = size_of::<record::PlainEnd>() / WORD;
const TS: usize = (offset_of!(record::PlainEnd, header) + offset_of!(Header, ts_ns)) / WORD;
const FLOW: usize =
    (offset_of!(record::PlainEnd, end) + offset_of!(record::ConntrackEnd, original)) / WORD;

/// Slots of each CPU on a machine with this many possible CPUs.
pub fn slots_per_cpu(cpus: usize) -> u32 {
    let cpus = u32::try_from(cpus).unwrap_or(u32::MAX).max(1);
    (SLOTS / cpus).max(LEAST_PER_CPU).min(MOST / cpus).max(1)
}

/// The ends of conntrack entries without NAT: a ring of slots for each possible CPU.
pub struct PlainEnds {
    slots: Mapping,
    per_cpu: usize,
}

/// What was found of one flow.
#[derive(Debug, Default)]
pub struct FoundEnds {
    pub ends: Vec<PlainEnd>,
    /// Every end since this time is kept.
    pub since: Nanos,
}

impl PlainEnds {
    /// # Errors
    /// The kernel's error, if it does not allow the mapping.
    pub fn map(map: BorrowedFd<'_>, cpus: usize, per_cpu: u32) -> std::io::Result<Self> {
        let per_cpu = per_cpu as usize;
        Ok(Self { slots: Mapping::new(map, cpus * per_cpu * WORDS)?, per_cpu })
    }

    /// The ends of a flow, in either direction. Reads one cache line of each slot.
    pub fn of(&self, flow: Flow, kernel: &dyn Kernel) -> FoundEnds {
        search(self.slots.words(), self.per_cpu, flow, kernel)
    }
}

fn search(words: &[AtomicU64], per_cpu: usize, flow: Flow, kernel: &dyn Kernel) -> FoundEnds {
    let wanted = [flow, flow.reversed()].map(|flow| FlowKey::new(flow).words());
    let mut found = FoundEnds::default();
    for ring in words.chunks_exact((per_cpu * WORDS).max(1)) {
        let (mut newest, mut oldest) = (0, Nanos::MAX);
        for slot in ring.chunks_exact(WORDS) {
            let word = |at: usize| slot.get(at).map_or(0, |word| word.load(Ordering::Acquire));
            let number = word(0);
            if number == 0 {
                continue;
            }
            newest = number.max(newest);
            oldest = word(TS).min(oldest);
            if !wanted.iter().any(|key| (FLOW..).zip(key).all(|(at, part)| word(at) == *part)) {
                continue;
            }
            let bytes: Vec<u8> = (0..WORDS).flat_map(|at| word(at).to_ne_bytes()).collect();
            fence(Ordering::Acquire);
            // An end that is overwritten meanwhile is forgotten; a slot that cannot be decoded holds no end.
            if word(0) == number
                && let Ok(Some(end)) = decode::plain_end(&bytes, flow, kernel)
            {
                found.ends.push(end);
            }
        }
        // Its first ends are overwritten.
        if newest > per_cpu as u64 {
            found.since = oldest.max(found.since);
        }
    }
    found.ends.sort_by_key(|end| end.ts);
    found
}

/// A value of `RULE_DROPS`.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct DropValue([u8; size_of::<record::RuleDrop>()]);
// SAFETY: an array of bytes.
unsafe impl aya::Pod for DropValue {}

/// The packets that netfilter dropped, by flow.
pub struct RuleDrops(HashMap<MapData, FlowKey, DropValue>);

impl RuleDrops {
    /// # Errors
    /// When the map has another type.
    pub fn new(map: Map) -> Result<Self> {
        HashMap::try_from(map).map(Self).context("RULE_DROPS is not a hash map")
    }

    /// The drops of a flow, in both directions.
    pub fn of(&self, flow: Flow) -> impl Iterator<Item = RuleDrop> {
        [flow, flow.reversed()].into_iter().filter_map(|flow| {
            let value = self.0.get(&FlowKey::new(flow), 0).ok()?;
            decode::rule_drop(flow, &value.0).ok()
        })
    }
}

/// Puts together what several loads of the object keep of a flow. `traced` is when the ends of entries were hooked.
pub fn filtered(
    flow: Flow,
    ends: impl Iterator<Item = (Nanos, FoundEnds)>,
    drops: Vec<RuleDrop>,
) -> FilteredFlow {
    let mut all = FilteredFlow { flow, ends: Vec::new(), ends_since: None, drops };
    for (traced, found) in ends {
        all.ends.extend(found.ends);
        all.ends_since = Some(found.since.max(traced)).max(all.ends_since);
    }
    all
}

#[cfg(test)]
mod tests {
    use rsttrace_model::testing::flow;
    use tracer_common::wire::{KIND_CONNTRACK_END, WIRE_VERSION};

    use super::*;

    struct NoKernel;
    impl Kernel for NoKernel {
        fn hz(&self) -> u64 {
            250
        }
        fn symbol(&self, _: u64) -> Option<&str> {
            None
        }
        fn reset_reason(&self, _: u32) -> Option<&str> {
            None
        }
    }

    /// A slot as the program writes it.
    fn slot(number: u64, ts: Nanos, flow: Flow) -> Vec<AtomicU64> {
        let mut words = vec![0; WORDS];
        words[0] = number;
        let header = offset_of!(record::PlainEnd, header) / WORD;
        words[header] = u64::from_ne_bytes([
            WIRE_VERSION,
            size_of::<Header>() as u8,
            KIND_CONNTRACK_END.to_ne_bytes()[0],
            KIND_CONNTRACK_END.to_ne_bytes()[1],
            0,
            0,
            0,
            0,
        ]);
        words[TS] = ts;
        words[FLOW..FLOW + 5].copy_from_slice(&FlowKey::new(flow).words());
        words.into_iter().map(AtomicU64::new).collect()
    }

    fn empty() -> Vec<AtomicU64> {
        (0..WORDS).map(|_| AtomicU64::new(0)).collect()
    }

    fn ring<const N: usize>(slots: [Vec<AtomicU64>; N]) -> Vec<AtomicU64> {
        slots.into_iter().flatten().collect()
    }

    #[test]
    fn an_end_is_found_from_both_directions_and_other_flows_are_not() {
        let one = flow("10.0.0.1:40000", "10.0.0.2:80");
        let words = ring([slot(1, 7, one), empty()]);
        for asked in [one, one.reversed()] {
            let found = search(&words, 2, asked, &NoKernel);
            assert_eq!(found.ends.iter().map(|end| end.ts).collect::<Vec<_>>(), [7]);
            assert_eq!(found.since, 0);
        }
        assert!(
            search(&words, 2, flow("10.0.0.1:40001", "10.0.0.2:80"), &NoKernel).ends.is_empty()
        );
    }

    #[test]
    fn a_ring_that_was_overwritten_begins_with_its_oldest_end_and_an_unfinished_slot_is_skipped() {
        let one = flow("10.0.0.1:40000", "10.0.0.2:80");
        // CPU 0 has overwritten its first end; CPU 1 has room left, and is writing its slot.
        let words = ring([slot(2, 20, one), slot(3, 30, one), slot(0, 5, one), empty()]);
        let found = search(&words, 2, one, &NoKernel);
        assert_eq!(found.since, 20);
        assert_eq!(found.ends.iter().map(|end| end.ts).collect::<Vec<_>>(), [20, 30]);
    }

    #[test]
    fn the_slots_of_all_cpus_are_bounded() {
        for (cpus, each) in [(1, 16_384), (2, 8192), (64, 1024), (128, 1024), (256, 512)] {
            assert_eq!(slots_per_cpu(cpus), each, "{cpus}");
        }
        assert_eq!(slots_per_cpu(0), 16_384);
    }
}
