//! Paths that refer to network namespaces: names in `/run`, and the processes in the namespaces.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rsttrace_model::netns::NetnsReach;

/// Limit of namespaces that a reading of all namespaces enters.
pub(super) const MOST_NAMESPACES: usize = 512;

/// A path that referred to a network namespace at the last check.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct NetnsPath {
    pub path: PathBuf,
    pub reach: NetnsReach,
}

/// The inode number of `path` if it refers to a namespace. `nsfs` is the device number of the namespace
/// file system, of which a kernel has only one. A name whose namespace was unmounted is a plain file with
/// another device number.
pub(super) fn inum(path: &Path, nsfs: u64) -> Option<u32> {
    let file = fs::metadata(path).ok()?;
    u32::try_from(file.ino()).ok().filter(|_| file.dev() == nsfs)
}

/// Every network namespace with a name or a process, by inode number. The path of each is the first of
/// these: initial namespace, name in /run/netns, Docker's name, lowest pid.
pub(super) fn scan(nsfs: u64) -> HashMap<u32, NetnsPath> {
    // Where we may not read the namespace of pid 1, ours is taken for the initial one.
    let initial = ["/proc/1/ns/net", "/proc/self/ns/net"]
        .map(|path| NetnsPath { path: path.into(), reach: NetnsReach::Initial })
        .into_iter()
        .find(|at| inum(&at.path, nsfs).is_some());
    let by_name = directory("/run/netns", NetnsReach::Named)
        .into_iter()
        .chain(directory("/run/docker/netns", NetnsReach::Docker));
    let mut pids = processes();
    pids.sort_unstable();
    let by_process = pids.into_iter().map(|pid| NetnsPath {
        path: format!("/proc/{pid}/ns/net").into(),
        reach: NetnsReach::Process(pid),
    });

    let mut found = HashMap::new();
    for at in initial.into_iter().chain(by_name).chain(by_process) {
        if let Some(inum) = inum(&at.path, nsfs) {
            found.entry(inum).or_insert(at);
        }
    }
    found
}

/// The pids of all processes (the numeric names in `/proc`), in no order.
pub(super) fn processes() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn directory(run: &str, reach: fn(String) -> NetnsReach) -> Vec<NetnsPath> {
    // A service or container with its own mounts does not see names that were created after it
    // started; pid 1 does.
    let seen_by_init = format!("/proc/1/root{run}");
    let Ok(entries) = fs::read_dir(seen_by_init).or_else(|_| fs::read_dir(run)) else {
        return Vec::new();
    };
    let named = |entry: fs::DirEntry| NetnsPath {
        path: entry.path(),
        reach: reach(format!("{run}/{}", entry.file_name().to_string_lossy())),
    };
    let mut paths: Vec<NetnsPath> = entries.flatten().map(named).collect();
    paths.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_the_namespace_file_system_are_namespaces() {
        let own = fs::metadata("/proc/self/ns/net").expect("proc is mounted");
        assert_eq!(inum(Path::new("/proc/self/ns/net"), own.dev()).map(u64::from), Some(own.ino()));
        assert_eq!(inum(Path::new("/proc/self/stat"), own.dev()), None);
        assert_eq!(inum(Path::new("/nowhere"), own.dev()), None);
    }

    #[test]
    fn our_own_namespace_is_always_found() {
        let own = fs::metadata("/proc/self/ns/net").expect("proc is mounted");
        let inum = u32::try_from(own.ino()).expect("namespace numbers are 32 bits");
        assert!(scan(own.dev()).contains_key(&inum));
    }
}
