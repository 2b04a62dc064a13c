//! The programs' counters, read from memory that the kernel shares.
//!
//! They are not read by system calls. While a system call reads a map, the kernel runs no kprobe program on
//! that CPU (`bpf_disable_instrumentation`). Where the system call can be preempted meanwhile (7.2), kprobe
//! programs run only after it has continued. Frequent reads of the loss counters would thus lose records.

use std::{
    io,
    os::fd::BorrowedFd,
    ptr::{self, NonNull},
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::{
    mm::{MapFlags, ProtFlags, mmap, munmap},
    param::page_size,
};
use tracer_common::wire::COUNTERS as SLOTS;

/// Rows of [`SLOTS`] counters, one for each possible CPU.
pub struct MapCounters {
    start: NonNull<AtomicU64>,
    cells: usize,
    bytes: usize,
}

/// Number of map entries for this many rows.
pub fn entries(rows: usize) -> u32 {
    u32::try_from(rows).unwrap_or(u32::MAX).saturating_mul(SLOTS)
}

// SAFETY: the kernel owns the memory, and any thread may read it.
unsafe impl Send for MapCounters {}

impl MapCounters {
    /// Maps the BPF map of [`entries`] counters into memory.
    ///
    /// # Errors
    /// The kernel's error, if it does not allow the mapping.
    pub fn map(map: BorrowedFd<'_>, rows: usize) -> io::Result<Self> {
        let cells = rows * SLOTS as usize;
        let bytes = (cells * size_of::<u64>()).next_multiple_of(page_size());
        let (read, shared) = (ProtFlags::READ, MapFlags::SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { mmap(ptr::null_mut(), bytes, read, shared, map, 0) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, cells, bytes })
    }

    /// The sum of a slot over all CPUs.
    pub fn sum(&self, slot: u32) -> u64 {
        // SAFETY: page-aligned, mapped until this value is dropped, and each counter is written in one store.
        let cells = unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.cells) };
        let rows = cells.chunks_exact(SLOTS as usize);
        rows.filter_map(|row| Some(row.get(slot as usize)?.load(Ordering::Relaxed))).sum()
    }
}

impl Drop for MapCounters {
    fn drop(&mut self) {
        // SAFETY: only this value uses the mapping, and nothing borrows from it. Unmapping it cannot fail.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write as _, os::fd::AsFd as _};

    use super::*;

    #[test]
    fn a_slot_is_summed_over_the_rows() {
        let flags = rustix::fs::MemfdFlags::empty();
        let mut file = File::from(rustix::fs::memfd_create("counters", flags).expect("memory"));
        file.set_len(page_size() as u64).expect("room");
        for row in [1_u64, 20, 300] {
            for slot in 0..u64::from(SLOTS) {
                file.write_all(&(row * (slot + 1)).to_ne_bytes()).expect("written");
            }
        }
        let counters = MapCounters::map(file.as_fd(), 3).expect("mapped");
        assert_eq!([0, 1, SLOTS - 1].map(|slot| counters.sum(slot)), [321, 642, 321 * 17]);
        assert_eq!(counters.sum(SLOTS), 0, "no such slot");
    }
}
