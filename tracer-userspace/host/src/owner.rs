//! Which process owns a socket: a process that holds the socket (link `/proc/PID/fd/N -> socket:[INODE]`),
//! else the process that connected the socket, else a process that holds the listener of an accepted socket.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::Path,
};

use rsttrace_model::owner::{Opener, OwnedSocket, Owner, OwnerBy};
use rustix::fs::{Dir, DirEntry, readlinkat};

use super::{
    cgroup, netns_paths,
    process::{describe, describe_started},
};

/// The owners of the sockets. `listener` returns the inode of the listener of a socket. `roots` are `/` as
/// pid 1 sees it, except in tests. For any number of sockets, all descriptors of all processes are read
/// once, and once more for the listeners.
pub(super) fn find(
    sockets: &[OwnedSocket],
    roots: &[impl AsRef<Path>],
    listener: impl Fn(&OwnedSocket) -> Option<u64>,
) -> Vec<Option<Owner>> {
    let openers: BTreeSet<_> =
        sockets.iter().filter_map(|it| Some(it.opener.as_ref()?.pid)).collect();
    let held = openers.into_iter().filter_map(|pid| Some((pid, sockets_of(pid)?))).collect();
    let mut owners: Vec<_> = sockets.iter().map(|socket| held_by_opener(socket, &held)).collect();
    fill(&mut owners, sockets, |socket| Some(socket.inode));
    for (owner, socket) in owners.iter_mut().zip(sockets) {
        let opener = socket.opener.as_ref().filter(|_| owner.is_none());
        *owner = opener.map(|opener| connected(opener, roots)).or(owner.take());
    }
    let by_listener = fill(&mut owners, sockets, listener);
    for index in by_listener {
        if let Some(Some(owner)) = owners.get_mut(index) {
            owner.by = OwnerBy::Listener;
        }
    }
    owners
}

/// The opener, if it holds the socket. The opener is by far the most likely holder, so other processes are
/// searched only when the opener does not hold the socket. `held` has the sockets of each opener.
fn held_by_opener(socket: &OwnedSocket, held: &BTreeMap<u32, BTreeSet<u64>>) -> Option<Owner> {
    let opener = socket.opener.as_ref()?;
    let holds = held.get(&opener.pid)?.contains(&socket.inode);
    holds.then(|| describe_started(opener.pid, opener.start_boottime_ns)).flatten()
}

/// Searches the holders of the sockets whose owner is unknown so far. Returns the indexes of these sockets.
fn fill(
    owners: &mut [Option<Owner>],
    sockets: &[OwnedSocket],
    inode: impl Fn(&OwnedSocket) -> Option<u64>,
) -> Vec<usize> {
    let unknown = sockets.iter().enumerate().filter(|(index, _)| owners[*index].is_none());
    let wanted: Vec<_> = unknown
        .filter_map(|(index, socket)| Some((index, inode(socket).filter(|it| *it != 0)?)))
        .collect();
    let holders =
        holders_of(&wanted.iter().map(|(index, inode)| (*inode, sockets[*index].netns)).collect());
    for (index, inode) in &wanted {
        owners[*index] = holders.get(inode).cloned();
    }
    wanted.into_iter().map(|(index, _)| index).collect()
}

/// The process that connected a socket, and has closed the socket or has ended since.
fn connected(opener: &Opener, roots: &[impl AsRef<Path>]) -> Owner {
    let running = describe_started(opener.pid, opener.start_boottime_ns);
    let owner = running.unwrap_or_else(|| {
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

/// The inodes of the sockets that a process holds. `None` when the process does not exist, or when we may
/// not read its descriptors.
pub(super) fn sockets_of(pid: u32) -> Option<BTreeSet<u64>> {
    // Links are read relative to the open directory: a busy server has tens of thousands of them.
    let fds = File::open(format!("/proc/{pid}/fd")).ok()?;
    let mut buffer = Vec::new();
    let inode = |entry: DirEntry| {
        let target = readlinkat(&fds, entry.file_name(), std::mem::take(&mut buffer)).ok()?;
        let inode = target
            .to_str()
            .ok()
            .and_then(|target| target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
        buffer = target.into_bytes();
        inode
    };
    Some(Dir::read_from(&fds).ok()?.flatten().filter_map(inode).collect())
}

/// The holder of each of these sockets; `wanted` maps the inode to the network namespace. Among several
/// holders, those in the socket's namespace come first, then the lowest pid: a descriptor can be passed to,
/// or inherited by, a process in another namespace. Pid 1, which opens sockets for other processes, is taken
/// only if it is the sole holder.
pub(super) fn holders_of(wanted: &BTreeMap<u64, u32>) -> BTreeMap<u64, Owner> {
    if wanted.is_empty() {
        return BTreeMap::new();
    }
    let running = others().into_iter().map(|pid| (pid, netns_of(pid)));
    let is_wanted =
        |netns: Option<u32>| netns.is_some_and(|it| wanted.values().any(|wanted| *wanted == it));
    let (near, far): (Vec<_>, Vec<_>) = running.partition(|(_, netns)| is_wanted(*netns));
    let mut best = BTreeMap::<u64, (bool, bool, u32)>::new();
    for (pid, netns) in near.into_iter().chain(far) {
        // The pids ascend, so the first holder in the socket's namespace has the lowest.
        let is_final = |inode: &u64| matches!(best.get(inode), Some((false, false, _)));
        if wanted.keys().all(is_final) {
            break;
        }
        for inode in sockets_of(pid).unwrap_or_default() {
            if let Some(socket_netns) = wanted.get(&inode) {
                let rank = (pid == 1, netns != Some(*socket_netns), pid);
                best.entry(inode).and_modify(|best| *best = rank.min(*best)).or_insert(rank);
            }
        }
    }
    let mut owners = BTreeMap::<u32, Option<Owner>>::new();
    best.into_iter()
        .filter_map(|(inode, (_, _, pid))| {
            let owner = owners.entry(pid).or_insert_with(|| describe(pid)).clone()?;
            Some((inode, owner))
        })
        .collect()
}

/// The pids of all processes except ours, in ascending order.
fn others() -> Vec<u32> {
    let mut pids = netns_paths::processes();
    pids.retain(|&pid| pid != std::process::id());
    pids.sort_unstable();
    pids
}

fn netns_of(pid: u32) -> Option<u32> {
    u32::try_from(fs::metadata(format!("/proc/{pid}/ns/net")).ok()?.ino()).ok()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::OwnedFd;
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::testing::TempRoot;
    use rsttrace_model::testing::flow;

    /// A child process, with or without a socket as its standard input; killed on drop.
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

    fn one(
        socket: &OwnedSocket,
        roots: &[impl AsRef<Path>],
        listener: Option<u64>,
    ) -> Option<Owner> {
        find(std::slice::from_ref(socket), roots, |_| listener).remove(0)
    }

    fn found(socket: &OwnedSocket, listener: Option<u64>) -> Option<(u32, OwnerBy)> {
        one(socket, &[Path::new("/nowhere")], listener).map(|owner| (owner.pid, owner.by))
    }

    #[test]
    fn the_holder_of_a_socket_owns_it_even_if_another_process_connected_it() {
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
        let found = holders_of(&BTreeMap::from([(inode, 0), (u64::MAX, 0)]));
        let pids: Vec<_> = found.iter().map(|(inode, owner)| (*inode, owner.pid)).collect();
        assert_eq!(pids, [(inode, holder.0.id())]);
    }

    #[test]
    fn a_socket_without_a_holder_belongs_to_the_process_that_connected_it() {
        let process = Process::new(Stdio::null());
        let owner = one(&socket(u64::MAX, Some(process.opener())), &["/nowhere"], None)
            .expect("the record names it");
        assert_eq!((owner.pid, owner.by), (process.0.id(), OwnerBy::Connect));
        assert_eq!((owner.comm.as_str(), owner.exe.is_some()), ("sleep", true));
    }

    #[test]
    fn a_later_process_with_the_same_pid_is_not_the_owner() {
        use std::os::unix::fs::MetadataExt as _;
        let container = "3f9c".repeat(16);
        let root = TempRoot::new();
        root.file("sys/fs/cgroup/cgroup.procs", "");
        root.directory(&format!("sys/fs/cgroup/docker/{container}"));
        let group = root.path().join("sys/fs/cgroup/docker").join(&container);
        let cgroup = fs::metadata(group).expect("just made").ino();

        let process = Process::new(Stdio::null());
        let before = Opener { start_boottime_ns: 0, cgroup, ..process.opener() };
        let owner = one(&socket(u64::MAX, Some(before)), &[root.path()], None)
            .expect("the record names it");
        assert_eq!((owner.comm.as_str(), owner.exe), ("connected", None));
        assert_eq!(owner.container_id, Some(container));
    }

    #[test]
    fn an_accepted_socket_without_a_holder_belongs_to_the_listening_process() {
        let (fd, inode) = listener();
        let server = Process::new(fd);
        let accepted = socket(u64::MAX, None);
        let by_listener = Some((server.0.id(), OwnerBy::Listener));
        assert_eq!(found(&accepted, Some(inode)), by_listener);
        assert_eq!(found(&accepted, None), None);
    }

    #[test]
    fn owners_have_the_order_of_the_sockets() {
        let ((fd, inode), (listening, listener)) = (listener(), listener());
        let (holder, server) = (Process::new(fd), Process::new(listening));
        let sockets = [socket(u64::MAX, None), socket(inode, None), socket(0, None)];
        let roots = [Path::new("/nowhere")];
        let by_listener = |it: &OwnedSocket| (it.inode != 0).then_some(listener);
        let owners: Vec<_> = find(&sockets, &roots, by_listener)
            .into_iter()
            .map(|owner| owner.map(|owner| (owner.pid, owner.by)))
            .collect();
        let (listens, holds) = (OwnerBy::Listener, OwnerBy::Descriptor);
        assert_eq!(owners, [Some((server.0.id(), listens)), Some((holder.0.id(), holds)), None]);
    }

    #[test]
    fn our_own_process_is_never_an_owner() {
        let (_fd, inode) = listener();
        assert_eq!(found(&socket(inode, None), None), None);
    }
}
