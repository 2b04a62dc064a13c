//! The packet that was refused because the conntrack table is full, between `early_drop` and `kfree_skb`.

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, generated::bpf_ktime_get_ns},
    macros::map,
    maps::PerCpuArray,
};
use tracer_common::wire::{COUNTER_LOST, KIND_NETFILTER_DROP};

use crate::emit::count;

/// Set between `early_drop` and `kfree_skb` of a packet for which the table was full.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Pending {
    /// 0 when no drop is pending.
    pub ts_ns: u64,
    /// LOCAL_OUT runs in process context and may migrate, so the CPU alone does not identify the packet.
    pub pid_tgid: u64,
}

#[map]
static TABLE_FULL: PerCpuArray<Pending> = PerCpuArray::with_max_entries(1, 0);

/// Marks that the current packet will be dropped by the next `kfree_skb` of this task on this CPU.
#[inline(always)]
pub fn expect_drop() {
    if let Some(pending) = TABLE_FULL.get_ptr_mut(0) {
        // SAFETY: this CPU's own slot.
        unsafe {
            if (*pending).ts_ns != 0 {
                missed();
            }
            (*pending).pid_tgid = bpf_get_current_pid_tgid();
            (*pending).ts_ns = bpf_ktime_get_ns();
        }
    }
}

/// Counts a pending drop that did not reach `kfree_skb` as a lost record.
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
