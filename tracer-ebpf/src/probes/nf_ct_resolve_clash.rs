//! `nf_ct_resolve_clash`: the tuple of a new entry is already in use when the entry is to be inserted,
//! because NAT ran out of ports or two packets raced. A return value of 0 (NF_DROP) means that the packet
//! is dropped. No reset follows, and no tracepoint with a specific reason.
//!
//! proto 5.10 on: int(struct sk_buff *skb, struct nf_conntrack_tuple_hash *h, u32 reply_hash)
//!
//! The function runs with bottom halves disabled and bucket locks held, so one slot per CPU is enough to
//! pass the packet from the entry to the return.

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
