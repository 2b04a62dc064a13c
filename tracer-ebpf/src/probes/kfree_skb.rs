//! `skb:kfree_skb`: a packet is dropped. Never used alone where kprobes exist: the program first checks a
//! per-CPU flag (`full_table.rs`) and a time (`ipvs.rs`), and returns unless one of them applies.
//!
//! TP_PROTO 5.10: (struct sk_buff *skb, void *location)
//! 6.1: + enum skb_drop_reason reason; 6.12 on: + struct sock *rx_sk

use core::mem::MaybeUninit;

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, generated::bpf_ktime_get_ns},
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use tracer_common::{
    record::{NetfilterDrop, Packet, VIA_EARLY_DROP, VIA_KFREE_SKB, VIA_NO_DESTINATION},
    wire::{ABSENT, KIND_NETFILTER_DROP},
};

use crate::{
    conntrack,
    emit::emit,
    full_table, ipvs,
    kread::{addresses, facts, read_or_zero},
    packet, rule_drop, task,
};

addresses! { ADDRESS_OF_nf_hook_slow }

facts! {
    ARG_OF_btf_trace_kfree_skb_DOT_skb_drop_reason,
    VALUE_OF_skb_drop_reason_DOT_SKB_DROP_REASON_NETFILTER_DROP,
}

const SYN: u8 = 2;

/// From `early_drop` to `kfree_skb` it takes a few microseconds, and longer with a log line to a slow
/// console.
const PENDING_NS: u64 = 50_000_000;

/// Reports the packet for which the conntrack table was full, or for which IPVS no longer has a real server.
#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn kfree_skb__rawtp(ctx: RawTracePointContext) -> i32 {
    let Some(pending) = full_table::pending() else {
        // The reason is checked first, where there is one: the kernel skips runs that interrupt a long run.
        if by_netfilter(&ctx) && ipvs::may_drop() {
            report_without_server(ctx.arg(0));
        }
        return 0;
    };
    // SAFETY: this CPU's own slot.
    unsafe {
        if (*pending).pid_tgid != bpf_get_current_pid_tgid() {
            return 0;
        }
        if bpf_ktime_get_ns() - (*pending).ts_ns > PENDING_NS {
            (*pending).ts_ns = 0;
            full_table::missed();
            return 0;
        }
        // A packet with an entry was not refused by a full table: a rule dropped it, while the refused packet was
        // dropped elsewhere (by OVS or tc act_ct, with a reason of their own).
        if !by_netfilter(&ctx) || conntrack::of_packet(ctx.arg(0)) != 0 {
            return 0;
        }
        (*pending).ts_ns = 0;
    }
    report(ctx.arg(0), VIA_EARLY_DROP);
    0
}

/// Reports a mid-stream packet for a service that has lost a real server. User space reads from the IPVS
/// entries whether the packet's own server is the lost one.
#[inline(always)]
fn report_without_server(skb: u64) -> Option<()> {
    let mut dropped = MaybeUninit::<Packet>::zeroed();
    // SAFETY: all fields are integers, for which zero is a valid value.
    let dropped = unsafe {
        packet::fill(dropped.as_mut_ptr(), skb)?;
        dropped.assume_init()
    };
    if dropped.flags & SYN == 0 && ipvs::lost_a_server(&dropped.flow, packet::netns(skb)) {
        report(skb, VIA_NO_DESTINATION);
    }
    Some(())
}

/// Reports any TCP packet that netfilter drops, because of a rule or a full table. Attached only where
/// there are no kprobes, because it checks every dropped packet of the host.
#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn kfree_skb_netfilter__rawtp(ctx: RawTracePointContext) -> i32 {
    if ARG_OF_btf_trace_kfree_skb_DOT_skb_drop_reason.load() != ABSENT && by_netfilter(&ctx) {
        report(ctx.arg(0), VIA_KFREE_SKB);
    }
    0
}

/// Counts any TCP packet that netfilter drops, by flow. Nothing is reported.
#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn kfree_skb_rule__rawtp(ctx: RawTracePointContext) -> i32 {
    if is_rule(&ctx) {
        count_drop(ctx.arg(0));
    }
    0
}

/// Without a drop reason (before 6.1): whether the caller is the function that drops packets for netfilter.
#[inline(always)]
fn is_rule(ctx: &RawTracePointContext) -> bool {
    /// More than the size of `nf_hook_slow` (174 bytes on 5.10), less than that of its neighbours together.
    const SIZE: u64 = 256;
    if ARG_OF_btf_trace_kfree_skb_DOT_skb_drop_reason.load() != ABSENT {
        return by_netfilter(ctx);
    }
    let start = ADDRESS_OF_nf_hook_slow.load();
    let caller: u64 = ctx.arg(1);
    start != 0 && caller.wrapping_sub(start) < SIZE
}

#[inline(always)]
fn count_drop(skb: u64) -> Option<()> {
    let mut dropped = MaybeUninit::<Packet>::zeroed();
    // SAFETY: all fields are integers, for which zero is a valid value.
    let dropped = unsafe {
        packet::fill(dropped.as_mut_ptr(), skb)?;
        dropped.assume_init()
    };
    rule_drop::note(&dropped, netns(skb), conntrack::entry_state(conntrack::of_packet(skb)));
    Some(())
}

/// The namespace of a dropped packet; that of its socket where it has no route yet.
#[inline(always)]
fn netns(skb: u64) -> u32 {
    match packet::netns(skb) {
        0 => crate::sock::netns(read_or_zero(skb, packet::OFFSET_OF_sk_buff_DOT_sk.load())),
        netns => netns,
    }
}

/// Before 6.1 there is no drop reason, so only the flag decides.
#[inline(always)]
fn by_netfilter(ctx: &RawTracePointContext) -> bool {
    if ARG_OF_btf_trace_kfree_skb_DOT_skb_drop_reason.load() == ABSENT {
        return true;
    }
    let reason: u64 = ctx.arg(2);
    reason as u32 == VALUE_OF_skb_drop_reason_DOT_SKB_DROP_REASON_NETFILTER_DROP.load()
}

#[inline(always)]
fn report(skb: u64, via: u32) {
    emit::<NetfilterDrop>(KIND_NETFILTER_DROP, netns(skb), |out| {
        // SAFETY: `out` is the record's payload.
        unsafe {
            (*out).via = via;
            (*out).tracked = u32::from(conntrack::of_packet(skb) != 0);
            packet::fill(&raw mut (*out).packet, skb);
            task::fill(&raw mut (*out).task);
        }
    });
}
