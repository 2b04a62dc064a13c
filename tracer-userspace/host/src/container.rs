//! Whether the files that we see are the host's. A container has its own /etc, which is not read when the
//! host boots.

use std::{
    fs::{self, Metadata},
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use super::Host;

/// Inode number of the host's initial PID namespace (`PROC_PID_INIT_INO`, include/linux/proc_ns.h).
const INITIAL_PID_NS: u64 = 0xEFFF_FFFC;

/// The facts that show whether we run in a container.
#[derive(Clone, Copy, Debug)]
struct Signs {
    /// Inode number of our PID namespace.
    pid_ns: Option<u64>,
    /// Our /etc is that of pid 1; `None` where we may not read the root directory of pid 1.
    same_etc: Option<bool>,
}

impl Host {
    /// Why a file written to /etc here is not in the host's /etc, as a clause. `None` where it is.
    #[must_use]
    pub fn files_elsewhere(&self) -> Option<&'static str> {
        let metadata = |path: &str| fs::metadata(Path::new(path)).ok();
        let is = |file: &Metadata| (file.dev(), file.ino());
        // A service with its own mounts, or a container with a bind mount, may still have the host's /etc.
        let same_etc = metadata("/proc/1/root/etc")
            .zip(metadata("/etc"))
            .map(|(theirs, ours)| is(&theirs) == is(&ours));
        let pid_ns = metadata("/proc/self/ns/pid").map(|file| file.ino());
        judge(Signs { pid_ns, same_etc })
    }
}

fn judge(signs: Signs) -> Option<&'static str> {
    match signs {
        // Pid 1 of another PID namespace does not have the host's /etc.
        Signs { pid_ns: Some(pid_ns), .. } if pid_ns != INITIAL_PID_NS => {
            Some("this is a container (its PID namespace is not the host's)")
        }
        Signs { same_etc: Some(true), .. } => None,
        Signs { same_etc: Some(false), .. } => {
            Some("this is a container (its /etc is not the /etc of the host's pid 1)")
        }
        Signs { same_etc: None, .. } => {
            Some("this may be a container (cannot access the /etc of pid 1)")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_etc_of_the_hosts_pid_1_is_the_hosts() {
        let reason = |pid_ns, same_etc| judge(Signs { pid_ns, same_etc });
        assert_eq!(reason(Some(INITIAL_PID_NS), Some(true)), None);
        assert_eq!(reason(None, Some(true)), None, "no sign of a container");
        let private = reason(Some(4_026_532_500), Some(true)).expect("docker run");
        assert!(private.contains("PID namespace"), "{private}");
        let shared = reason(Some(INITIAL_PID_NS), Some(false)).expect("docker run --pid=host");
        assert!(shared.contains("/etc"), "{shared}");
        assert!(reason(Some(INITIAL_PID_NS), None).is_some_and(|why| why.contains("may be")));
    }
}
