//! TCP packets that netfilter dropped, by flow: a rule, a policy or IPVS. They are only counted here, and read when a
//! connection times out. A SYN flood against a DROP rule evicts flows that were dropped before; what is found is evidence,
//! what is missing is not.

use aya_ebpf::{helpers::generated::bpf_ktime_get_ns, macros::map, maps::LruHashMap};
use tracer_common::record::{Flow, Packet, RuleDrop};

/// 8192 flows, about 1 MiB of kernel memory.
#[map]
static RULE_DROPS: LruHashMap<Flow, RuleDrop> = LruHashMap::with_max_entries(8192, 0);

/// Counts a dropped packet.
#[inline(always)]
pub fn note(packet: &Packet, netns: u32, entry: u32) {
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    if let Some(known) = RULE_DROPS.get_ptr_mut(&packet.flow) {
        // SAFETY: a value of the map. Another CPU may count at the same time; one packet less changes nothing.
        unsafe {
            (*known).last_ns = now;
            (*known).count += 1;
            (*known).netns = netns;
            (*known).entry = entry;
        }
        return;
    }
    let first = RuleDrop { first_ns: now, last_ns: now, count: 1, netns, entry, pad: 0 };
    // What does not fit is missing from the evidence only.
    let _ = RULE_DROPS.insert(&packet.flow, &first, 0);
}
