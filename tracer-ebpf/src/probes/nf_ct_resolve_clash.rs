//! `nf_ct_resolve_clash`: a new entry's tuple is taken when it is about to be inserted, because NAT ran
//! out of ports or two packets raced. 0 (NF_DROP) from it means that the packet is lost; no reset and
//! no tracepoint with a telling reason follows.
//!
//! proto 5.10 on: int(struct sk_buff *skb, struct nf_conntrack_tuple_hash *h, u32 reply_hash)
//!
//! It runs with bottom halves off and bucket locks held, so one slot for each CPU carries the packet
//! from the entry to the return.

use aya_ebpf::{
    macros::{kprobe, kretprobe, map},
    maps::PerCpuArray,
    programs::{ProbeContext, RetProbeContext},
};
use tracer_common::wire::KIND_CONNTRACK_CLASH;

use crate::conntrack;

/// The `struct sk_buff *` that clashes.
#[map]
static CLASHING: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// `NF_DROP` (include/uapi/linux/netfilter.h).
const NF_DROP: u32 = 0;

#[kprobe(function = "nf_ct_resolve_clash")]
pub fn nf_ct_resolve_clash__kprobe(ctx: ProbeContext) -> u32 {
    if let (Some(skb), Some(slot)) = (ctx.arg(0), CLASHING.get_ptr_mut(0)) {
        // SAFETY: this CPU's own slot.
        unsafe { *slot = skb };
    }
    0
}

#[kretprobe(function = "nf_ct_resolve_clash")]
pub fn nf_ct_resolve_clash_return__kretprobe(ctx: RetProbeContext) -> u32 {
    if ctx.ret::<u32>() == NF_DROP
        && let Some(slot) = CLASHING.get_ptr_mut(0)
    {
        // SAFETY: this CPU's own slot; the caller still owns the packet.
        let skb = unsafe { core::mem::take(&mut *slot) };
        if skb != 0 {
            conntrack::report(KIND_CONNTRACK_CLASH, skb, conntrack::of_packet(skb));
        }
    }
    0
}
