//! Where network namespaces can be found: names in `/run`, and the processes that live in them.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rsttrace_model::netns::NetnsReach;

/// Namespaces that are looked into where all of them are.
pub(super) const MOST: usize = 512;

/// A file that led to a network namespace when we last looked.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Place {
    pub path: PathBuf,
    pub reach: NetnsReach,
}

/// The inode number behind `path` if it is a namespace. `nsfs` is the device number of the
/// namespace file system, of which a kernel has only one: a name whose namespace was unmounted is
/// a plain file with a number of some other device.
pub(super) fn inum(path: &Path, nsfs: u64) -> Option<u32> {
    let file = fs::metadata(path).ok()?;
    u32::try_from(file.ino()).ok().filter(|_| file.dev() == nsfs)
}

/// Every network namespace with a name or a process, by inode number, each with the way in that a
/// person would prefer: initial, named, Docker's, then the lowest pid.
pub(super) fn scan(nsfs: u64) -> HashMap<u32, Place> {
    // Where pid 1 may not be looked into, ours is the best candidate.
    let initial = ["/proc/1/ns/net", "/proc/self/ns/net"]
        .map(|path| Place { path: path.into(), reach: NetnsReach::Initial })
        .into_iter()
        .find(|place| inum(&place.path, nsfs).is_some());
    let by_name = directory("/run/netns", NetnsReach::Named)
        .into_iter()
        .chain(directory("/run/docker/netns", NetnsReach::Docker));
    let mut pids = processes();
    pids.sort_unstable();
    let by_process = pids.into_iter().map(|pid| Place {
        path: format!("/proc/{pid}/ns/net").into(),
        reach: NetnsReach::Process(pid),
    });

    let mut found = HashMap::new();
    for place in initial.into_iter().chain(by_name).chain(by_process) {
        if let Some(inum) = inum(&place.path, nsfs) {
            found.entry(inum).or_insert(place);
        }
    }
    found
}

/// The numeric names in `/proc`, in no order.
pub(super) fn processes() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn directory(run: &str, reach: fn(String) -> NetnsReach) -> Vec<Place> {
    // A service or container with mounts of its own does not see names that were made after it
    // started; pid 1 does.
    let seen_by_init = format!("/proc/1/root{run}");
    let Ok(entries) = fs::read_dir(seen_by_init).or_else(|_| fs::read_dir(run)) else {
        return Vec::new();
    };
    let place = |entry: fs::DirEntry| Place {
        path: entry.path(),
        reach: reach(format!("{run}/{}", entry.file_name().to_string_lossy())),
    };
    let mut places: Vec<Place> = entries.flatten().map(place).collect();
    places.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    places
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
