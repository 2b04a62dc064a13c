//! The ring buffer and the counters.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    helpers::{
        bpf_get_smp_processor_id,
        generated::{bpf_jiffies64, bpf_ktime_get_ns},
    },
    macros::map,
    maps::{Array, RingBuf},
};
use aya_log_ebpf::warn;
use tracer_common::wire::{COUNTER_LOST, COUNTERS as SLOTS, Header, WIRE_VERSION};

/// 4 MiB hold about 7000 of the largest records.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(4 << 20, 0);

/// One row per possible CPU. User space raises the size and maps the memory, because the kernel runs no
/// kprobe program on a CPU while a system call reads a map there (`kernel/counters.rs`).
#[map]
static COUNTERS: Array<u64> = Array::with_max_entries(SLOTS, BPF_F_MMAPABLE);

/// Adds one to a counter, which user space reads and prints.
#[inline(always)]
pub fn count(slot: u32) {
    // SAFETY: a helper without arguments.
    let row = unsafe { bpf_get_smp_processor_id() };
    if let Some(counter) = COUNTERS.get_ptr_mut(row * SLOTS + slot) {
        // SAFETY: this CPU's own row. A nested run may lose an increment, which is acceptable for a counter.
        unsafe { *counter += 1 };
    }
}

#[repr(C)]
struct Record<T> {
    header: Header,
    payload: T,
}

/// Reserves a record, zeroes it (ring memory holds old bytes), calls `fill` to write the payload and
/// submits the record. A record lost to a full ring is counted by kind.
#[inline(always)]
pub fn emit<T: 'static>(kind: u16, netns: u32, fill: impl FnOnce(*mut T)) {
    let Some(mut entry) = EVENTS.reserve::<Record<T>>(0) else {
        count(COUNTER_LOST + u32::from(kind));
        // Only compiled into the running program with `rsttrace live -v`.
        warn!((), "the ring is full: a record of kind {} is lost", kind);
        return;
    };
    let record = entry.as_mut_ptr();
    // SAFETY: the reservation is writable, 8-aligned and as large as `Record<T>`.
    unsafe {
        zero(record.cast::<u64>(), size_of::<Record<T>>() / 8);
        (*record).header = Header {
            version: WIRE_VERSION,
            header_len: size_of::<Header>() as u8,
            kind,
            len: size_of::<T>() as u32,
            ts_ns: bpf_ktime_get_ns(),
            jiffies: bpf_jiffies64(),
            netns,
            cpu: bpf_get_smp_processor_id(),
        };
        fill(&raw mut (*record).payload);
    }
    entry.submit(0);
}

/// Zeroes word by word, because the verifier checks every iteration of the loop.
///
/// # Safety
/// `words` must be writable at `start`.
#[inline(always)]
pub unsafe fn zero(start: *mut u64, words: usize) {
    for word in 0..words {
        // SAFETY: per contract.
        unsafe { start.add(word).write_volatile(0) };
    }
}
