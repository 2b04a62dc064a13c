//! What user space reads beside the hooks: names of kernel functions, other network namespaces, processes
//! of other users. Reported like the signals of the hooks.

use std::{fs::File, io::Read as _, os::linux::fs::MetadataExt as _, path::Path};

use rsttrace_core::event::SignalCoverage;

use super::permission::{CAP_SYS_ADMIN, CAP_SYS_PTRACE, Capabilities};

/// Something that user space looks up.
pub struct LookUp {
    pub id: &'static str,
    pub title: &'static str,
    /// Where it is read.
    pub from: &'static str,
    /// What is missing without it.
    pub blind: &'static str,
    can: fn(&Path, Capabilities) -> bool,
}

/// Every look-up that the kernel can refuse.
pub const ALL: &[LookUp] = &[
    LookUp {
        id: "kernel_symbols",
        title: "names of the kernel functions in a stack",
        from: "/proc/kallsyms",
        blind: "names of kernel functions cannot be read (kernel.kptr_restrict, or no CAP_SYSLOG), so \
                what aborted a socket and which timer expired are unknown",
        can: |root, _| shows_addresses(root),
    },
    LookUp {
        id: "namespaces",
        title: "limits, counters and IPVS services of other network namespaces",
        from: "setns(2)",
        blind: "other network namespaces cannot be entered (no CAP_SYS_ADMIN, or a PID namespace hides \
                their processes), so their limits, counters and IPVS services are missing from verdicts",
        can: |root, caps| caps.has(CAP_SYS_ADMIN) && sees_all_processes(root),
    },
    LookUp {
        id: "owners",
        title: "which process, container and pod holds a socket",
        from: "/proc/<pid>/fd",
        blind: "processes of other users cannot be inspected (no CAP_SYS_PTRACE, or a PID namespace \
                hides them), so the owner of a socket is unknown unless its own system call is traced",
        can: |root, caps| caps.has(CAP_SYS_PTRACE) && sees_all_processes(root),
    },
];

/// What can be looked up on this machine, as events carry it.
pub fn coverage() -> Vec<SignalCoverage> {
    let root = Path::new("/");
    let caps = Capabilities::of_this_process(root);
    ALL.iter()
        .map(|look_up| {
            let can = (look_up.can)(root, caps);
            SignalCoverage {
                id: look_up.id.into(),
                way: can.then(|| look_up.from.into()),
                blind: (!can).then(|| look_up.blind.into()),
                attaching: false,
            }
        })
        .collect()
}

/// Whether the first 64 KiB of `/proc/kallsyms` have an address other than 0. A kernel that hides addresses
/// shows all of them as 0; a real address of 0 belongs to an absolute symbol, and there are few of those.
fn shows_addresses(root: &Path) -> bool {
    let mut head = Vec::new();
    let read = File::open(root.join("proc/kallsyms"))
        .and_then(|file| file.take(1 << 16).read_to_end(&mut head));
    read.is_ok()
        && head
            .split(|byte| *byte == b'\n')
            .any(|line| line.iter().take_while(|byte| **byte != b' ').any(|digit| *digit != b'0'))
}

/// Inode of the first PID namespace (`PROC_PID_INIT_INO`, include/linux/proc_ns.h).
const INITIAL_PID_NAMESPACE: u64 = 0xeffffffc;

/// In a container's own PID namespace `/proc` shows the container only.
fn sees_all_processes(root: &Path) -> bool {
    std::fs::metadata(root.join("proc/self/ns/pid"))
        .map_or(true, |meta| meta.st_ino() == INITIAL_PID_NAMESPACE)
}
