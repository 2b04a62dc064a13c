//! The programs' counters, read from memory that the kernel shares ([`Mapping`]).

use std::{io, os::fd::BorrowedFd, sync::atomic::Ordering};

use tracer_common::wire::COUNTERS as SLOTS;

use super::mapping::Mapping;

/// Rows of [`SLOTS`] counters, one for each possible CPU.
pub struct MapCounters(Mapping);

/// Number of map entries for this many rows.
pub fn entries(rows: usize) -> u32 {
    u32::try_from(rows).unwrap_or(u32::MAX).saturating_mul(SLOTS)
}

impl MapCounters {
    /// Maps the BPF map of [`entries`] counters into memory.
    ///
    /// # Errors
    /// The kernel's error, if it does not allow the mapping.
    pub fn map(map: BorrowedFd<'_>, rows: usize) -> io::Result<Self> {
        Mapping::new(map, rows * SLOTS as usize).map(Self)
    }

    /// The sum of a slot over all CPUs.
    pub fn sum(&self, slot: u32) -> u64 {
        let rows = self.0.words().chunks_exact(SLOTS as usize);
        rows.filter_map(|row| Some(row.get(slot as usize)?.load(Ordering::Relaxed))).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write as _, os::fd::AsFd as _};

    use rustix::param::page_size;

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
