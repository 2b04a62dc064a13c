//! Which process owns a socket: one that holds it (its link `/proc/PID/fd/N -> socket:[INODE]`), else
//! the one that connected it, else one that listens where it was accepted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Dir, readlinkat};

use super::process::{describe, describe_started};
use super::state::{Owner, OwnerBy};
use super::{cgroup, places};
use crate::event::{Flow, Opener};

/// A socket whose owner is wanted.
#[derive(Clone, Debug)]
pub struct OwnedSocket {
    /// 0 once no process holds it.
    pub inode: u64,
    pub netns: u32,
    /// Local side first.
    pub flow: Flow,
    /// Who connected it, if that is on record.
    pub opener: Option<Opener>,
}

/// The owner. `listener` gives the inode of the socket that listens for it; `roots` are `/`, as pid 1
/// sees it, but in tests.
pub(super) fn find(
    socket: &OwnedSocket,
    roots: &[impl AsRef<Path>],
    listener: impl FnOnce() -> Option<u64>,
) -> Option<Owner> {
    let opener = socket.opener.as_ref();
    // By far the most likely holder: everybody else is looked at only when it is not.
    let living = opener.filter(|opener| holds(opener.pid, socket.inode));
    let holder = living.and_then(|opener| describe_started(opener.pid, opener.start_boottime_ns));
    holder.or_else(|| describe(holder_of(socket.inode, socket.netns)?)).or_else(|| match opener {
        Some(opener) => Some(connected(opener, roots)),
        None => {
            let owner = describe(holder_of(listener()?, socket.netns)?)?;
            Some(Owner { by: OwnerBy::Listener, ..owner })
        }
    })
}

/// The process that connected a socket, which has closed it or has ended since.
fn connected(opener: &Opener, roots: &[impl AsRef<Path>]) -> Owner {
    let living = describe_started(opener.pid, opener.start_boottime_ns);
    let owner = living.unwrap_or_else(|| {
        let cgroup =
            roots.iter().find_map(|root| cgroup::path_by_inode(root.as_ref(), opener.cgroup));
        Owner {
            container_id: cgroup.as_deref().and_then(cgroup::container_id),
            cgroup,
            ..opener.into()
        }
    });
    Owner { by: OwnerBy::Connect, ..owner }
}

impl From<&Opener> for Owner {
    /// What is known without looking.
    fn from(opener: &Opener) -> Self {
        Self {
            pid: opener.pid,
            comm: opener.comm.clone(),
            start_boottime_ns: Some(opener.start_boottime_ns),
            by: OwnerBy::Connect,
            ..Self::default()
        }
    }
}

/// The inodes of the sockets that a process holds. `None` when it does not exist, or does not let us look.
pub(super) fn sockets_of(pid: u32) -> Option<BTreeSet<u64>> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let inode = |entry: fs::DirEntry| {
        let target = fs::read_link(entry.path()).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    };
    Some(entries.flatten().filter_map(inode).collect())
}

/// Who holds each of these sockets: the lowest pid, and pid 1, which opens sockets for others, only alone.
pub(super) fn holders_of(inodes: &BTreeSet<u64>) -> BTreeMap<u64, Owner> {
    let mut found = BTreeMap::new();
    let (init, rest): (Vec<u32>, Vec<u32>) = others().into_iter().partition(|&pid| pid == 1);
    for pid in rest.into_iter().chain(init) {
        let held = sockets_of(pid).unwrap_or_default();
        let new: Vec<u64> =
            held.intersection(inodes).copied().filter(|inode| !found.contains_key(inode)).collect();
        if let Some(owner) = (!new.is_empty()).then(|| describe(pid)).flatten() {
            found.extend(new.into_iter().map(|inode| (inode, owner.clone())));
        }
    }
    found
}

/// Among several holders the lowest pid of those in network namespace `netns`, else of all: a
/// descriptor can be passed to, or inherited by, a process elsewhere. Pid 1 opens sockets for others.
fn holder_of(inode: u64, netns: u32) -> Option<u32> {
    if inode == 0 {
        return None;
    }
    let (near, far): (Vec<u32>, Vec<u32>) =
        others().into_iter().partition(|&pid| lives_in(pid, netns));
    let mut holders = near.into_iter().chain(far).filter(|&pid| holds(pid, inode));
    match holders.next() {
        Some(1) => holders.next().or(Some(1)),
        holder => holder,
    }
}

/// All processes but ours, in ascending order.
fn others() -> Vec<u32> {
    let mut pids = places::processes();
    pids.retain(|&pid| pid != std::process::id());
    pids.sort_unstable();
    pids
}

fn lives_in(pid: u32, netns: u32) -> bool {
    fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|ns| ns.ino() == u64::from(netns))
}

/// Links are read relative to the open directory: a busy server has tens of thousands of them.
fn holds(pid: u32, inode: u64) -> bool {
    let link = format!("socket:[{inode}]");
    let Ok(fds) = File::open(format!("/proc/{pid}/fd")) else {
        return false;
    };
    let Ok(entries) = Dir::read_from(&fds) else {
        return false;
    };
    let mut buffer = Vec::new();
    entries.flatten().any(|entry| {
        let Ok(target) = readlinkat(&fds, entry.file_name(), std::mem::take(&mut buffer)) else {
            return false;
        };
        let found = target.as_bytes() == link.as_bytes();
        buffer = target.into_bytes();
        found
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::OwnedFd;
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::testing::{TempRoot, flow};

    /// A process of its own, with a socket as its standard input or without; ended on drop.
    struct Process(Child);

    impl Process {
        fn new(stdin: impl Into<Stdio>) -> Self {
            let child = Command::new("sleep").arg("60").stdin(stdin).spawn();
            Self(child.expect("coreutils"))
        }

        fn opener(&self) -> Opener {
            let owner = describe(self.0.id()).expect("it runs");
            Opener {
                pid: owner.pid,
                comm: "connected".into(),
                start_boottime_ns: owner.start_boottime_ns.expect("procfs"),
                cgroup: 0,
            }
        }
    }

    impl Drop for Process {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn listener() -> (OwnedFd, u64) {
        let socket = OwnedFd::from(TcpListener::bind("127.0.0.1:0").expect("a port"));
        let inode = rustix::fs::fstat(&socket).expect("ours").st_ino;
        (socket, inode)
    }

    fn socket(inode: u64, opener: Option<Opener>) -> OwnedSocket {
        OwnedSocket { inode, netns: 0, flow: flow("10.0.0.1:1", "10.0.0.2:2"), opener }
    }

    fn found(socket: &OwnedSocket, listener: Option<u64>) -> Option<(u32, OwnerBy)> {
        find(socket, &[Path::new("/nowhere")], || listener).map(|owner| (owner.pid, owner.by))
    }

    #[test]
    fn whoever_holds_the_socket_owns_it_even_if_another_connected_it() {
        let (fd, inode) = listener();
        let (holder, other) = (Process::new(fd), Process::new(Stdio::null()));
        let held = Some((holder.0.id(), OwnerBy::Descriptor));
        assert_eq!(found(&socket(inode, None), None), held);
        assert_eq!(found(&socket(inode, Some(holder.opener())), None), held);
        assert_eq!(found(&socket(inode, Some(other.opener())), None), held);
    }

    #[test]
    fn one_walk_finds_the_holders_of_all_sockets_that_have_one() {
        let (fd, inode) = listener();
        let holder = Process::new(fd);
        let found = holders_of(&BTreeSet::from([inode, u64::MAX]));
        let pids: Vec<_> = found.iter().map(|(inode, owner)| (*inode, owner.pid)).collect();
        assert_eq!(pids, [(inode, holder.0.id())]);
    }

    #[test]
    fn a_socket_that_nobody_holds_any_more_belongs_to_who_connected_it() {
        let process = Process::new(Stdio::null());
        let owner = find(&socket(u64::MAX, Some(process.opener())), &["/nowhere"], || None)
            .expect("it is on record");
        assert_eq!((owner.pid, owner.by), (process.0.id(), OwnerBy::Connect));
        assert_eq!((owner.comm.as_str(), owner.exe.is_some()), ("sleep", true));
    }

    #[test]
    fn a_later_process_of_the_same_pid_is_not_looked_at() {
        use std::os::unix::fs::MetadataExt as _;
        let container = "3f9c".repeat(16);
        let root = TempRoot::new();
        root.file("sys/fs/cgroup/cgroup.procs", "");
        root.directory(&format!("sys/fs/cgroup/docker/{container}"));
        let group = root.path().join("sys/fs/cgroup/docker").join(&container);
        let cgroup = fs::metadata(group).expect("just made").ino();

        let process = Process::new(Stdio::null());
        let before = Opener { start_boottime_ns: 0, cgroup, ..process.opener() };
        let owner =
            find(&socket(u64::MAX, Some(before)), &[root.path()], || None).expect("on record");
        assert_eq!((owner.comm.as_str(), owner.exe), ("connected", None));
        assert_eq!(owner.container_id, Some(container));
    }

    #[test]
    fn an_accepted_socket_that_nobody_holds_any_more_leads_to_its_listener() {
        let (fd, inode) = listener();
        let server = Process::new(fd);
        let accepted = socket(u64::MAX, None);
        let by_listener = Some((server.0.id(), OwnerBy::Listener));
        assert_eq!(found(&accepted, Some(inode)), by_listener);
        assert_eq!(found(&accepted, None), None);
    }

    #[test]
    fn our_own_process_never_counts() {
        let (_fd, inode) = listener();
        assert_eq!(found(&socket(inode, None), None), None);
    }
}
