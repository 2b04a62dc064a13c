//! The current task and the kernel stack.

use aya_ebpf::{
    EbpfContext,
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{
            bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_task, bpf_get_stack,
        },
    },
};
use tracer_common::record::{Opener, Stack, Task};

use crate::kread::{copy, facts, read_or_zero};

facts! {
    OFFSET_OF_task_struct_DOT_flags,
    OFFSET_OF_task_struct_DOT_exit_code,
    OFFSET_OF_task_struct_DOT_group_leader,
    OFFSET_OF_task_struct_DOT_start_boottime,
    OFFSET_OF_task_struct_DOT_comm,
}

/// include/linux/sched.h
const PF_KTHREAD: u32 = 0x0020_0000;

/// Fills in the current task. In softirq this is an unrelated task; the stack shows whether that is the case.
///
/// # Safety
/// `task` must be writable.
#[inline(always)]
pub unsafe fn fill(task: *mut Task) {
    let id = bpf_get_current_pid_tgid();
    // SAFETY: per contract; the helpers check the kernel pointers.
    unsafe {
        (*task).tgid = (id >> 32) as u32;
        (*task).tid = id as u32;
        bpf_get_current_comm((&raw mut (*task).comm).cast(), 16);
        let current = bpf_get_current_task();
        copy!(task.flags, current, OFFSET_OF_task_struct_DOT_flags);
        copy!(task.exit_code, current, OFFSET_OF_task_struct_DOT_exit_code);
    }
}

/// Fills in the current process, unless it is a kernel thread.
///
/// # Safety
/// `out` must be writable.
#[inline(always)]
pub unsafe fn fill_opener(out: *mut Opener) {
    // SAFETY: per contract; the helpers check the kernel pointers.
    unsafe {
        let current = bpf_get_current_task();
        let flags: u32 = read_or_zero(current, OFFSET_OF_task_struct_DOT_flags.load());
        if flags & PF_KTHREAD != 0 {
            return;
        }
        (*out).tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
        (*out).cgroup = bpf_get_current_cgroup_id();
        let leader: u64 = read_or_zero(current, OFFSET_OF_task_struct_DOT_group_leader.load());
        copy!(out.start_ns, leader, OFFSET_OF_task_struct_DOT_start_boottime);
        copy!(out.comm, leader, OFFSET_OF_task_struct_DOT_comm);
    }
}

/// Fills in the kernel stack, innermost first.
///
/// # Safety
/// `stack` must be writable.
#[inline(always)]
pub unsafe fn fill_stack(ctx: &impl EbpfContext, stack: *mut Stack) {
    // SAFETY: per contract; a failure leaves the zeroes, which mean "no stack".
    unsafe {
        bpf_get_stack(ctx.as_ptr(), stack.cast(), size_of::<Stack>() as u32, 0);
    }
}
