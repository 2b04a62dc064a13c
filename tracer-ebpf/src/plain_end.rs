//! Ends of conntrack entries that translated nothing. conntrack picks such a connection up again, and only a rule that
//! tests the conntrack state notices the loss. So the ends do not travel through the ring: they stay in a map, and user
//! space searches it when a rule answered a packet or a connection timed out.
//!
//! Each CPU has a ring of slots, so what is forgotten is always the oldest, and the oldest slot shows since when the
//! CPU's ends are complete. One ring for all CPUs would need an atomic counter that returns its value (5.12).

use aya_ebpf::{
    Global,
    bindings::BPF_F_MMAPABLE,
    helpers::{
        bpf_get_smp_processor_id,
        generated::{bpf_jiffies64, bpf_ktime_get_ns},
    },
    macros::map,
    maps::{Array, PerCpuArray},
};
use tracer_common::{
    record::{ConntrackEnd, PlainEnd},
    wire::{Header, KIND_CONNTRACK_END, WIRE_VERSION},
};

use crate::emit::zero;

/// Slots of each CPU.
#[unsafe(no_mangle)]
static PLAIN_ENDS_PER_CPU: Global<u32> = Global::new(1);

/// User space raises the size and maps the memory, as that of `COUNTERS`.
#[map]
static PLAIN_ENDS: Array<PlainEnd> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Ends that were stored on each CPU.
#[map]
static PLAIN_ENDS_STORED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Stores an end, in place of the CPU's oldest.
#[inline(always)]
pub fn keep(netns: u32, fill: impl FnOnce(*mut ConntrackEnd)) -> Option<()> {
    let stored = PLAIN_ENDS_STORED.get_ptr_mut(0)?;
    // SAFETY: this CPU's own slot; the kernel does not run a second kprobe program inside this one.
    let number = unsafe {
        *stored += 1;
        *stored
    };
    let slots = PLAIN_ENDS_PER_CPU.load().max(1);
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let slot = PLAIN_ENDS.get_ptr_mut(cpu * slots + number as u32 % slots)?;
    // SAFETY: this CPU's own slot of the map. User space reads the number before and after the rest.
    unsafe {
        (&raw mut (*slot).number).write_volatile(0);
        zero((&raw mut (*slot).end).cast::<u64>(), size_of::<ConntrackEnd>() / 8);
        (*slot).header = Header {
            version: WIRE_VERSION,
            header_len: size_of::<Header>() as u8,
            kind: KIND_CONNTRACK_END,
            len: size_of::<ConntrackEnd>() as u32,
            ts_ns: bpf_ktime_get_ns(),
            jiffies: bpf_jiffies64(),
            netns,
            cpu,
        };
        fill(&raw mut (*slot).end);
        (&raw mut (*slot).number).write_volatile(number);
    }
    Some(())
}
