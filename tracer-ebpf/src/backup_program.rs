//! Tracepoints with a backup program, which runs after the first program.
//!
//! While a run of a program is interrupted or preempted, the kernel skips that program when another task
//! reaches the hook on the same CPU (`bpf_prog.active`; raw tracepoints since 6.1). Since 7.x raw
//! tracepoints can be preempted, which takes long on a busy CPU. The backup program then does the work of
//! the skipped one, and otherwise finds the work done. Both are skipped only if two tasks were stopped, one
//! in each program. If the task moved to another CPU between the two programs, both do the work; user space
//! merges the two records.

use aya_ebpf::{macros::map, maps::PerCpuArray};

use crate::kread::facts;

facts! { OFFSET_OF_bpf_prog_DOT_active }

/// The tracepoints with a backup.
#[derive(Clone, Copy)]
pub enum Pair {
    SetState,
    SendReset,
}

/// The last `what` that the first program of each pair has done on this CPU.
#[map]
static DONE: PerCpuArray<u64> = PerCpuArray::with_max_entries(2, 0);

/// Called by the first program after it has done `what`.
#[inline(always)]
pub fn done(pair: Pair, what: u64) {
    if let Some(last) = DONE.get_ptr_mut(pair as u32) {
        // SAFETY: this CPU's own slot.
        unsafe { *last = what };
    }
}

/// Called by the backup: whether the first program has just done `what`, or this kernel needs no backup.
#[inline(always)]
pub fn is_done(pair: Pair, what: u64) -> bool {
    if OFFSET_OF_bpf_prog_DOT_active.load() == tracer_common::wire::ABSENT {
        return true;
    }
    let Some(last) = DONE.get_ptr_mut(pair as u32) else {
        return true;
    };
    // SAFETY: this CPU's own slot. It is cleared, because the kernel will reuse the address.
    unsafe {
        let is = *last == what;
        *last = 0;
        is
    }
}
