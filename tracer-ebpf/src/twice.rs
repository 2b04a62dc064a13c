//! Programs that are attached twice to their tracepoint, one behind the other.
//!
//! The kernel leaves a program out when it is interrupted or preempted in mid-run and another task comes by
//! on that processor (`bpf_prog.active`; raw tracepoints since 6.1, and since 7.x they can be preempted, which
//! on a busy processor lasts). The second one then does its work, and otherwise sees that it is done. Both
//! are left out only where two tasks were stopped, one in each. What is done twice, because
//! the task came to another processor between the two, user space takes for one.

use aya_ebpf::{macros::map, maps::PerCpuArray};

use crate::kread::facts;

facts! { OFFSET_OF_bpf_prog_DOT_active }

/// The tracepoints with two programs.
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

/// In the second program: whether the first did `what` just now, or there is no need to ask.
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
