//! `ip_vs_conn_expire_now`: IPVS itself wants an entry gone (server removed, port reuse, sync). It only
//! re-arms the timer, so the mark left here is what tells a forced end from an idle one.
//!
//! proto 5.10 on: void(struct ip_vs_conn *cp)

use aya_ebpf::{
    helpers::generated::bpf_ktime_get_ns,
    macros::{kprobe, map},
    maps::LruHashMap,
    programs::ProbeContext,
};

/// Entry address to the time of the request. The timer fires within a jiffy or two, long before the
/// address can belong to another entry.
#[map]
static EXPIRE_NOW: LruHashMap<u64, u64> = LruHashMap::with_max_entries(1024, 0);

/// A timer that was moved to "now" fires at the next tick; one second covers a stalled CPU.
const FRESH_NS: u64 = 1_000_000_000;

#[kprobe(function = "ip_vs_conn_expire_now")]
pub fn ip_vs_conn_expire_now__kprobe(ctx: ProbeContext) -> u32 {
    if let Some(cp) = ctx.arg::<u64>(0) {
        let now = unsafe { bpf_ktime_get_ns() };
        // An eviction of the oldest mark is the only failure, and harmless.
        let _ = EXPIRE_NOW.insert(&cp, &now, 0);
    }
    0
}

/// 1 when the entry was asked to end within the last second.
#[inline(always)]
pub fn was_asked_for(cp: u64) -> u32 {
    // SAFETY: a stale value is another number, not another type.
    match unsafe { EXPIRE_NOW.get(&cp) } {
        Some(asked) => u32::from(unsafe { bpf_ktime_get_ns() } - *asked < FRESH_NS),
        None => 0,
    }
}
