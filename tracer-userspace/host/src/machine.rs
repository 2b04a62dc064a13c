//! Facts about the whole host.

use std::fs;

use rustix::time::{ClockId, Timespec, clock_getres};

pub(super) fn boot_id() -> Option<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned())
}

pub(super) fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// `uname -r`
pub(super) fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// The number of online CPUs, by which kube-proxy sizes the conntrack table. 1 where it cannot be read.
pub(super) fn cpus() -> u32 {
    let online = fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    cpus_in(&online).unwrap_or(1)
}

/// The number of CPUs in a list such as `0-3,6`.
pub(super) fn cpus_in(list: &str) -> Option<u32> {
    let mut count: u32 = 0;
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        count = count.checked_add(last.checked_sub(first)?)?.checked_add(1)?;
    }
    Some(count)
}

/// `MemTotal` in bytes. The kernel prints KiB.
pub(super) fn ram_bytes() -> Option<u64> {
    mem_total(&fs::read_to_string("/proc/meminfo").ok()?)
}

pub(super) fn mem_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The coarse clock advances once per jiffy, so its resolution (`KTIME_LOW_RES`, which is
/// `TICK_NSEC`) gives `CONFIG_HZ` without the kernel configuration.
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
    fn processors_are_counted_in_ranges() {
        for (list, cpus) in [("0\n", Some(1)), ("0-3\n", Some(4)), ("0-1,4,6-7\n", Some(5))] {
            assert_eq!(cpus_in(list), cpus, "{list}");
        }
        for list in ["", "3-1", "0-", "x", "0-4294967295"] {
            assert_eq!(cpus_in(list), None, "{list}");
        }
    }

    #[test]
    fn memory_is_printed_in_kibibytes() {
        assert_eq!(mem_total("MemTotal:        2048 kB\nMemFree: 1 kB\n"), Some(2 << 20));
        for text in ["", "MemTotal: 2048\n", "MemTotal: 99999999999999999999 kB\n"] {
            assert_eq!(mem_total(text), None, "{text}");
        }
    }

    #[test]
    fn an_invalid_resolution_is_unknown() {
        assert_eq!(hz_from(Timespec { tv_sec: 0, tv_nsec: 0 }), None);
        assert_eq!(hz_from(Timespec { tv_sec: 1, tv_nsec: 0 }), None);
    }

    #[test]
    fn this_host_has_a_name_and_a_boot_id() {
        assert!(!hostname().is_empty());
        assert_eq!(boot_id().map(|id| id.len()), Some(36));
    }
}
