//! `early_drop`: the conntrack table is over its maximum and looks for an entry to evict. When it finds
//! none (returns 0) the packet in hand is dropped: the next `kfree_skb` on this CPU, by this task.
//!
//! proto 5.10 on: int(struct net *net, unsigned int hash)

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, generated::bpf_ktime_get_ns},
    macros::{kretprobe, map},
    maps::PerCpuArray,
    programs::RetProbeContext,
};

use tracer_common::wire::{COUNTER_LOST, KIND_NETFILTER_DROP};

use crate::emit::count;

/// Set while the packet that found the table full is on its way to `kfree_skb`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Pending {
    /// 0: nothing pending.
    pub ts_ns: u64,
    /// LOCAL_OUT runs in process context and may migrate, so the CPU alone does not identify it.
    pub pid_tgid: u64,
}

#[map]
static TABLE_FULL: PerCpuArray<Pending> = PerCpuArray::with_max_entries(1, 0);

#[kretprobe(function = "early_drop")]
pub fn early_drop__kretprobe(ctx: RetProbeContext) -> u32 {
    if ctx.ret::<u32>() == 0
        && let Some(pending) = TABLE_FULL.get_ptr_mut(0)
    {
        // SAFETY: this CPU's own slot.
        unsafe {
            if (*pending).ts_ns != 0 {
                missed();
            }
            (*pending).pid_tgid = bpf_get_current_pid_tgid();
            (*pending).ts_ns = bpf_ktime_get_ns();
        }
    }
    0
}

/// The drop that was pending never came to `kfree_skb.rs`.
#[inline(always)]
pub fn missed() {
    count(COUNTER_LOST + u32::from(KIND_NETFILTER_DROP));
}

/// This CPU's pending drop, if there is one.
#[inline(always)]
pub fn pending() -> Option<*mut Pending> {
    let pending = TABLE_FULL.get_ptr_mut(0)?;
    // SAFETY: this CPU's own slot.
    if unsafe { (*pending).ts_ns } == 0 { None } else { Some(pending) }
}
