//! Describes a process from `/proc/PID`.

use std::fs;

use rsttrace_model::owner::Owner;

use super::cgroup;

/// Field 22 of `/proc/PID/stat` counts USER_HZ ticks, 100 a second on every architecture that
/// runs this program.
const NS_PER_USER_TICK: u64 = 10_000_000;

/// The process that has this pid now.
pub(super) fn describe(pid: u32) -> Option<Owner> {
    let file = |name: &str| {
        let bytes = fs::read(format!("/proc/{pid}/{name}")).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    };
    let cgroup = file("cgroup").as_deref().and_then(cgroup::path);
    Some(Owner {
        pid,
        comm: file("comm")?.trim_end_matches('\n').to_owned(),
        exe: fs::read_link(format!("/proc/{pid}/exe"))
            .ok()
            .map(|path| path.to_string_lossy().into_owned()),
        uid: file("status").as_deref().and_then(effective_uid),
        start_boottime_ns: file("stat").as_deref().and_then(start_boottime_ns),
        container_id: cgroup.as_deref().and_then(cgroup::container_id),
        cgroup,
        ..Owner::default()
    })
}

/// The process that has this pid, if it started at this time (CLOCK_BOOTTIME) and is not a later process
/// with the same pid.
pub(super) fn describe_started(pid: u32, start_boottime_ns: u64) -> Option<Owner> {
    let tick = start_boottime_ns / NS_PER_USER_TICK * NS_PER_USER_TICK;
    // `describe` reads the start time last, so a match also confirms the values that were read before.
    describe(pid).filter(|owner| owner.start_boottime_ns == Some(tick))
}

/// Parses a `/proc/PID/stat` line. The name in field 2 may contain spaces and parentheses, so fields
/// are counted from the last parenthesis, which ends the name.
fn start_boottime_ns(stat: &str) -> Option<u64> {
    let (_, from_field_3) = stat.rsplit_once(')')?;
    let ticks: u64 = from_field_3.split_whitespace().nth(22 - 3)?.parse().ok()?;
    ticks.checked_mul(NS_PER_USER_TICK)
}

/// `Uid:` in `/proc/PID/status` lists the real, effective, saved and file system id.
fn effective_uid(status: &str) -> Option<u32> {
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    ids.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_after_any_name() {
        for comm in ["cat", "a b) R 1 (c", ") 9 9 9 (", "))"] {
            let stat = format!(
                "8412 ({comm}) R 8399 8399 6344 0 -1 4194304 100 0 0 0 0 0 0 0 20 0 1 0 92355 3133440 411"
            );
            assert_eq!(start_boottime_ns(&stat), Some(923_550_000_000), "{comm}");
        }
    }

    #[test]
    fn a_truncated_stat_line_is_unknown() {
        for stat in [
            "",
            "1 (x",
            "1 (x) R 1 2 3",
            "1 (x) 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 x y",
        ] {
            assert_eq!(start_boottime_ns(stat), None, "{stat}");
        }
    }

    #[test]
    fn the_uid_is_the_effective_uid() {
        assert_eq!(effective_uid("Name:\tx\nUid:\t1000\t0\t0\t0\nGid:\t1\t2\t3\t4\n"), Some(0));
        assert_eq!(effective_uid("Name:\tx\n"), None);
    }

    #[test]
    fn a_process_is_identified_by_pid_and_start_time() {
        let own = std::process::id();
        let started = describe(own).and_then(|owner| owner.start_boottime_ns).expect("procfs");
        // The kernel stores nanoseconds and shows ticks.
        assert!(describe_started(own, started + 9_999_999).is_some());
        assert_eq!(describe_started(own, started + 10_000_000), None);
        assert_eq!(describe_started(own, 0), None);
    }
}
