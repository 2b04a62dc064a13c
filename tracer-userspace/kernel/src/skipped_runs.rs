//! Runs of our BPF programs that the kernel skipped, which no program can count itself. While a run of a
//! program is interrupted, the kernel does not start another run of that program on the same CPU
//! (`prog->active`, kernel/trace/bpf_trace.c). Where tracepoints are preemptible (seen on 7.2), two busy
//! tasks are enough for that.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::{AsRawFd as _, BorrowedFd},
};

/// Number of runs of a program that the kernel has skipped so far; 0 on kernels before 5.12, which do not
/// report it.
pub fn runs(program: BorrowedFd<'_>) -> u64 {
    let path = format!("/proc/self/fdinfo/{}", program.as_raw_fd());
    fs::read_to_string(path).ok().and_then(|text| parse(&text)).unwrap_or(0)
}

/// Number of runs skipped per hook, from the runs skipped per program. Where a hook has a backup program
/// (`tracer-ebpf/src/backup_program.rs`), the smaller of the two numbers counts. Most runs emit no record,
/// so a skipped run may be a lost record but usually is not.
pub fn by_hook<'a>(programs: impl Iterator<Item = (&'a str, u64)>) -> BTreeMap<String, u64> {
    let mut hooks = BTreeMap::<String, u64>::new();
    // `kfree_skb` waits for the drop that `early_drop` announced, which is counted as lost if it is missed.
    for (name, runs) in programs.filter(|(name, _)| !name.starts_with("kfree_skb__")) {
        let (hook, _) = name.rsplit_once("__").unwrap_or((name, ""));
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
    fn a_run_of_a_hook_is_skipped_when_all_its_programs_were_skipped() {
        let skipped =
            |runs: &[(&str, u64)]| by_hook(runs.iter().copied()).into_values().sum::<u64>();
        assert_eq!(skipped(&[("tcp_reset__kprobe", 2), ("nf_ct_delete__kprobe", 1)]), 3);
        assert_eq!(
            skipped(&[("tcp_send_reset__rawtp", 5), ("tcp_send_reset_backup__rawtp", 0)]),
            0
        );
        assert_eq!(
            skipped(&[("tcp_send_reset_backup__rawtp", 1), ("tcp_send_reset__rawtp", 5)]),
            1
        );
        assert_eq!(skipped(&[("tcp_send_reset__rawtp", 5)]), 5, "the other is not attached");
        let inner = by_hook([("__ip_vs_del_dest__kprobe", 1)].into_iter());
        assert!(inner.contains_key("__ip_vs_del_dest"), "{inner:?}");
        assert_eq!(skipped(&[("kfree_skb__rawtp", 7), ("kfree_skb_netfilter__rawtp", 1)]), 1);
    }

    #[test]
    fn the_count_of_the_kernel_is_read_if_there_is_one() {
        let text =
            "pos:\t0\nprog_id:\t47\nrun_cnt:\t0\nrecursion_misses:\t29\nverified_insns:\t7\n";
        assert_eq!(parse(text), Some(29));
        assert_eq!(parse("pos:\t0\nprog_id:\t47\n"), None);
    }
}
