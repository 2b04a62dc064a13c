//! Reads inside a network namespace: `/proc/sys/net`, `/proc/thread-self/net` and new sockets belong to the
//! namespace of the thread that opens them.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, BorrowedFd},
    thread,
};

use rsttrace_model::netns::NetnsState;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{conntrack, counters, ipvs, nat, netns_paths::NetnsPath, sock_diag, sysctl};

/// Runs `read` in a new thread that has moved into the namespace `ns`. The thread ends after `read`, so no
/// thread has to move back, and none can stay in a foreign namespace.
pub(super) fn inside<T: Send>(ns: BorrowedFd, read: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        thread::Builder::new()
            .name("rsttrace-netns".into())
            .spawn_scoped(scope, || {
                move_into_link_name_space(ns, Some(LinkNameSpaceType::Network))?;
                Ok(read())
            })?
            .join()
            .map_err(|_| io::Error::other("the thread in the network namespace panicked"))?
    })
}

/// Enters the namespaces one after the other, on one thread, until `read` returns a value in one of them.
pub(super) fn first_inside<T: Send>(
    namespaces: impl IntoIterator<Item = (u32, NetnsPath)> + Send,
    read: impl Fn() -> Option<T> + Sync,
) -> Option<(u32, T)> {
    let enter = |(inum, at): (u32, NetnsPath)| {
        let ns = File::open(&at.path).ok()?;
        move_into_link_name_space(ns.as_fd(), Some(LinkNameSpaceType::Network)).ok()?;
        Some((inum, read()?))
    };
    thread::scope(|scope| {
        thread::Builder::new()
            .name("rsttrace-netns".into())
            .spawn_scoped(scope, || namespaces.into_iter().find_map(enter))
            .ok()?
            .join()
            .ok()?
    })
}

/// The state of the calling thread's namespace, without its inode number and reach.
pub(super) fn read_here() -> NetnsState {
    let nat_families = nat::read();
    NetnsState {
        conntrack: conntrack::read(),
        ipvs: ipvs::read(),
        tcp: sysctl::tcp(),
        counters: fs::read_to_string("/proc/thread-self/net/netstat")
            .map(|text| counters::parse(&text))
            .unwrap_or_default(),
        listeners: sock_diag::listeners(),
        translates: nat_families.map(|nat| nat.v4 || nat.v6),
        nat_families,
        ..NetnsState::default()
    }
}
