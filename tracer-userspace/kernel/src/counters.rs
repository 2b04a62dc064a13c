//! The programs' counters, read from memory that the kernel shares.
//!
//! Not by system calls: while one looks into a map, the kernel lets no kprobe program run on that
//! processor (`bpf_disable_instrumentation`), and where it can be preempted in that (7.2) not before it
//! runs again. Asking often whether records were lost would lose them.

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

/// Rows of [`SLOTS`] counters, one for each processor that may ever be there.
pub struct MapCounters {
    start: NonNull<AtomicU64>,
    cells: usize,
    bytes: usize,
}

/// Entries of the map for that many rows.
pub fn entries(rows: usize) -> u32 {
    u32::try_from(rows).unwrap_or(u32::MAX).saturating_mul(SLOTS)
}

// SAFETY: the memory is the kernel's; any thread may read it.
unsafe impl Send for MapCounters {}

impl MapCounters {
    /// Maps the map of [`entries`] counters.
    ///
    /// # Errors
    /// The kernel's, when it does not share the map.
    pub fn map(map: BorrowedFd<'_>, rows: usize) -> io::Result<Self> {
        let cells = rows * SLOTS as usize;
        let bytes = (cells * size_of::<u64>()).next_multiple_of(page_size());
        let (read, shared) = (ProtFlags::READ, MapFlags::SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { mmap(ptr::null_mut(), bytes, read, shared, map, 0) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, cells, bytes })
    }

    /// A slot, summed over all processors.
    pub fn sum(&self, slot: u32) -> u64 {
        // SAFETY: page-aligned, mapped until this value is dropped, and only ever written whole.
        let cells = unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.cells) };
        let rows = cells.chunks_exact(SLOTS as usize);
        rows.filter_map(|row| Some(row.get(slot as usize)?.load(Ordering::Relaxed))).sum()
    }
}

impl Drop for MapCounters {
    fn drop(&mut self) {
        // SAFETY: ours alone, and nothing borrows from it. It cannot fail for what was mapped.
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
