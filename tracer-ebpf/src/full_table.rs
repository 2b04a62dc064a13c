//! The packet that found the conntrack table full, on its way from `early_drop` to `kfree_skb`.

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, generated::bpf_ktime_get_ns},
    macros::map,
    maps::PerCpuArray,
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

/// The packet in hand will be dropped: the next `kfree_skb` on this CPU, by this task.
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

/// The drop that was pending never came to `kfree_skb`.
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
