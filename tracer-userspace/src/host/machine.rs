//! What is true of the whole machine.

use std::fs;

use rustix::time::{ClockId, Timespec, clock_getres};

pub(super) fn boot_id() -> Option<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned())
}

pub(super) fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The coarse clock advances once per jiffy, so its resolution (`KTIME_LOW_RES`, which is
/// `TICK_NSEC`) gives away `CONFIG_HZ` without a kernel configuration to read.
pub(super) fn hz() -> Option<u32> {
    hz_from(clock_getres(ClockId::MonotonicCoarse))
}

fn hz_from(tick: Timespec) -> Option<u32> {
    let ns = u32::try_from(tick.tv_nsec).ok().filter(|_| tick.tv_sec == 0)?;
    // HZ=300 ticks every 3333333.3 ns.
    1_000_000_000_u32.checked_add(ns / 2)?.checked_div(ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_configurable_hz_is_recognised() {
        for (tv_nsec, hz) in
            [(10_000_000, 100), (4_000_000, 250), (3_333_333, 300), (1_000_000, 1000)]
        {
            assert_eq!(hz_from(Timespec { tv_sec: 0, tv_nsec }), Some(hz));
        }
    }

    #[test]
    fn a_nonsense_resolution_is_unknown() {
        assert_eq!(hz_from(Timespec { tv_sec: 0, tv_nsec: 0 }), None);
        assert_eq!(hz_from(Timespec { tv_sec: 1, tv_nsec: 0 }), None);
    }

    #[test]
    fn this_machine_has_a_name_and_a_boot() {
        assert!(!hostname().is_empty());
        assert_eq!(boot_id().map(|id| id.len()), Some(36));
    }
}
