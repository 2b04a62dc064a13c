//! Whether the files that we see are the machine's. A container has an /etc of its own, which nobody
//! reads when the machine boots.

use std::{
    fs::{self, Metadata},
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use super::Host;

/// Inode number of the machine's own pid namespace (`PROC_PID_INIT_INO`, include/linux/proc_ns.h).
const INITIAL_PIDS: u64 = 0xEFFF_FFFC;

/// What there is to tell by.
#[derive(Clone, Copy, Debug)]
struct Signs {
    /// Of the pid namespace that we live in.
    pids: Option<u64>,
    /// Our /etc is that of pid 1; `None` where pid 1 may not be looked into.
    same_etc: Option<bool>,
}

impl Host {
    /// Why what is written into /etc here does not reach the machine's own, in a clause. `None` where it
    /// does.
    #[must_use]
    pub fn files_elsewhere(&self) -> Option<&'static str> {
        let metadata = |path: &str| fs::metadata(Path::new(path)).ok();
        let is = |file: &Metadata| (file.dev(), file.ino());
        // A service may have mounts of its own and the machine's /etc all the same, as may a container
        // that was given it.
        let same_etc = metadata("/proc/1/root/etc")
            .zip(metadata("/etc"))
            .map(|(theirs, ours)| is(&theirs) == is(&ours));
        let pids = metadata("/proc/self/ns/pid").map(|file| file.ino());
        judge(Signs { pids, same_etc })
    }
}

fn judge(signs: Signs) -> Option<&'static str> {
    match signs {
        // Whoever is pid 1 there, its /etc is not the machine's.
        Signs { pids: Some(pids), .. } if pids != INITIAL_PIDS => {
            Some("this is a container (its pids are not the machine's)")
        }
        Signs { same_etc: Some(true), .. } => None,
        Signs { same_etc: Some(false), .. } => {
            Some("this is a container (its /etc is not that of the machine's pid 1)")
        }
        Signs { same_etc: None, .. } => {
            Some("this may be a container (the /etc of pid 1 cannot be looked at)")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_etc_of_the_machines_own_pid_1_is_the_machines() {
        let told = |pids, same_etc| judge(Signs { pids, same_etc });
        assert_eq!(told(Some(INITIAL_PIDS), Some(true)), None);
        assert_eq!(told(None, Some(true)), None, "nothing speaks against it");
        let private = told(Some(4_026_532_500), Some(true)).expect("docker run");
        assert!(private.contains("pids"), "{private}");
        let shared = told(Some(INITIAL_PIDS), Some(false)).expect("docker run --pid=host");
        assert!(shared.contains("/etc"), "{shared}");
        assert!(told(Some(INITIAL_PIDS), None).is_some_and(|why| why.contains("may be")));
    }
}
