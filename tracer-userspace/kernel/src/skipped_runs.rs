//! Runs of our programs that the kernel left out, which no program can count: one that was interrupted
//! in mid-run is not entered again on the same processor (`prog->active`, kernel/trace/bpf_trace.c). Where
//! tracepoints are preemptible (seen on 7.2) that takes no more than two busy tasks.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::{AsRawFd as _, BorrowedFd},
};

/// How many runs of a program were left out so far. Kernels before 5.12 do not tell.
pub fn runs(program: BorrowedFd<'_>) -> u64 {
    let path = format!("/proc/self/fdinfo/{}", program.as_raw_fd());
    fs::read_to_string(path).ok().and_then(|text| parse(&text)).unwrap_or(0)
}

/// How often each hook was missed, from the runs that each program was left out of. Where a hook has two
/// programs (`tracer-ebpf/src/backup_program.rs`), that is how often both were. Most runs make no record, so a run that
/// was left out is no record lost, but it may have been one.
pub fn by_hook<'a>(programs: impl Iterator<Item = (&'a str, u64)>) -> BTreeMap<String, u64> {
    let mut hooks = BTreeMap::<String, u64>::new();
    // It looks for the one drop that `early_drop` has announced, and that one is counted when it does not come.
    for (name, runs) in programs.filter(|(name, _)| !name.starts_with("kfree_skb__")) {
        let (hook, _) = name.split_once("__").unwrap_or((name, ""));
        let hook = hook.strip_suffix("_backup").unwrap_or(hook).to_owned();
        hooks.entry(hook).and_modify(|least| *least = runs.min(*least)).or_insert(runs);
    }
    hooks.retain(|_, runs| *runs > 0);
    hooks
}

/// bpf_prog_show_fdinfo, kernel/bpf/syscall.c.
fn parse(fdinfo: &str) -> Option<u64> {
    fdinfo.lines().find_map(|line| line.strip_prefix("recursion_misses:")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_is_missed_when_all_its_programs_were_left_out() {
        let missed =
            |runs: &[(&str, u64)]| by_hook(runs.iter().copied()).into_values().sum::<u64>();
        assert_eq!(missed(&[("tcp_reset__kprobe", 2), ("nf_ct_delete__kprobe", 1)]), 3);
        assert_eq!(missed(&[("tcp_send_reset__rawtp", 5), ("tcp_send_reset_backup__rawtp", 0)]), 0);
        assert_eq!(missed(&[("tcp_send_reset_backup__rawtp", 1), ("tcp_send_reset__rawtp", 5)]), 1);
        assert_eq!(missed(&[("tcp_send_reset__rawtp", 5)]), 5, "the other is not attached");
        assert_eq!(missed(&[("kfree_skb__rawtp", 7), ("kfree_skb_netfilter__rawtp", 1)]), 1);
    }

    #[test]
    fn the_kernels_count_is_read_where_there_is_one() {
        let text =
            "pos:\t0\nprog_id:\t47\nrun_cnt:\t0\nrecursion_misses:\t29\nverified_insns:\t7\n";
        assert_eq!(parse(text), Some(29));
        assert_eq!(parse("pos:\t0\nprog_id:\t47\n"), None);
    }
}
