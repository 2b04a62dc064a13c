//! Tracepoints with a second program, a backup behind the first.
//!
//! The kernel skips a program that is interrupted or preempted in mid-run when another task reaches the hook
//! on that processor (`bpf_prog.active`; raw tracepoints since 6.1, and since 7.x they can be preempted, which
//! lasts on a busy processor). The backup then does its work, and otherwise sees that it is done. Both are
//! skipped only where two tasks were stopped, one in each. Where the task moved to another processor between
//! the two, both do the work; user space takes the two records for one.

use aya_ebpf::{macros::map, maps::PerCpuArray};

use crate::kread::facts;

facts! { OFFSET_OF_bpf_prog_DOT_active }

/// The tracepoints with a backup.
#[derive(Clone, Copy)]
pub enum Pair {
    SetState,
    SendReset,
}

/// What the first program of each pair has done last on this processor.
#[map]
static DONE: PerCpuArray<u64> = PerCpuArray::with_max_entries(2, 0);

/// In the first program: `what` is done.
#[inline(always)]
pub fn done(pair: Pair, what: u64) {
    if let Some(last) = DONE.get_ptr_mut(pair as u32) {
        // SAFETY: this CPU's own slot.
        unsafe { *last = what };
    }
}

/// In the backup: whether the first did `what` just now, or this kernel needs no backup.
#[inline(always)]
pub fn is_done(pair: Pair, what: u64) -> bool {
    if OFFSET_OF_bpf_prog_DOT_active.load() == tracer_common::wire::ABSENT {
        return true;
    }
    let Some(last) = DONE.get_ptr_mut(pair as u32) else {
        return true;
    };
    // SAFETY: this CPU's own slot. Cleared, as the address will be another's.
    unsafe {
        let is = *last == what;
        *last = 0;
        is
    }
}
