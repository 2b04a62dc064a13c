//! Runs of our programs that the kernel left out, which no program can count: one that was interrupted
//! in mid-run is not entered again on the same processor (`prog->active`, kernel/trace/bpf_trace.c). With
//! preemptible tracepoints (seen on 7.2) that takes no more than two busy tasks.

use std::{
    fs,
    os::fd::{AsRawFd as _, BorrowedFd},
};

/// How many runs of a program were left out so far. Kernels before 5.12 do not tell.
pub fn runs(program: BorrowedFd<'_>) -> u64 {
    let path = format!("/proc/self/fdinfo/{}", program.as_raw_fd());
    fs::read_to_string(path).ok().and_then(|text| parse(&text)).unwrap_or(0)
}

/// bpf_prog_show_fdinfo, kernel/bpf/syscall.c.
fn parse(fdinfo: &str) -> Option<u64> {
    fdinfo.lines().find_map(|line| line.strip_prefix("recursion_misses:")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_count_is_read_where_there_is_one() {
        let text =
            "pos:\t0\nprog_id:\t47\nrun_cnt:\t0\nrecursion_misses:\t29\nverified_insns:\t7\n";
        assert_eq!(parse(text), Some(29));
        assert_eq!(parse("pos:\t0\nprog_id:\t47\n"), None);
    }
}
