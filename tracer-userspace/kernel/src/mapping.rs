//! Memory of a BPF map that the kernel shares (`BPF_F_MMAPABLE`).
//!
//! Such maps are not read by system calls. While a system call reads a map, the kernel runs no kprobe program on
//! that CPU (`bpf_disable_instrumentation`). Where the system call can be preempted meanwhile (7.2), kprobe
//! programs run only after it has continued. Frequent reads would thus lose records.

use std::{
    io,
    os::fd::BorrowedFd,
    ptr::{self, NonNull},
    sync::atomic::AtomicU64,
};

use rustix::{
    mm::{MapFlags, ProtFlags, mmap, munmap},
    param::page_size,
};

/// The mapped memory, as words.
pub struct Mapping {
    start: NonNull<AtomicU64>,
    words: usize,
    bytes: usize,
}

// SAFETY: the kernel owns the memory, and any thread may read it.
unsafe impl Send for Mapping {}
// SAFETY: as above; every read is atomic.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps an array of `words` words into memory.
    ///
    /// # Errors
    /// The kernel's error, if it does not allow the mapping.
    pub fn new(map: BorrowedFd<'_>, words: usize) -> io::Result<Self> {
        let bytes = (words * size_of::<u64>()).next_multiple_of(page_size());
        let (read, shared) = (ProtFlags::READ, MapFlags::SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { mmap(ptr::null_mut(), bytes, read, shared, map, 0) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, words, bytes })
    }

    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: page-aligned, mapped until this value is dropped, and only read atomically.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: only this value uses the mapping, and nothing borrows from it. Unmapping it cannot fail.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}
