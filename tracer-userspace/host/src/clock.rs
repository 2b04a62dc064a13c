//! The clocks of event and incident timestamps.

use rsttrace_model::flow::Nanos;
use rustix::time::{ClockId, clock_gettime};

/// CLOCK_MONOTONIC in nanoseconds, the clock of `bpf_ktime_get_ns`.
pub fn monotonic() -> Nanos {
    nanos(ClockId::Monotonic)
}

/// CLOCK_REALTIME in nanoseconds.
pub fn wall() -> i64 {
    i64::try_from(nanos(ClockId::Realtime)).unwrap_or(i64::MAX)
}

/// Any clock, in nanoseconds.
pub fn nanos(clock: ClockId) -> Nanos {
    let time = clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}
