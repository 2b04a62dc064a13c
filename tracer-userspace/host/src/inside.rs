//! Reading from inside a network namespace: `/proc/sys/net`, `/proc/thread-self/net` and new
//! sockets all belong to the namespace of the thread that opens them.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, BorrowedFd},
    thread,
};

use rsttrace_model::netns::NetnsState;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{conntrack, counters, ipvs, nat, places::Place, sock_diag, sysctl};

/// Runs `read` in a thread that has moved into the namespace `ns`. The thread ends with it, so
/// none is ever left behind in a foreign namespace because the way back failed.
pub(super) fn inside<T: Send>(ns: BorrowedFd, read: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        thread::Builder::new()
            .name("rsttrace-netns".into())
            .spawn_scoped(scope, || {
                move_into_link_name_space(ns, Some(LinkNameSpaceType::Network))?;
                Ok(read())
            })?
            .join()
            .map_err(|_| io::Error::other("the reader panicked"))?
    })
}

/// Goes through namespaces, on one thread, until `read` finds something in one.
pub(super) fn first_inside<T: Send>(
    places: impl IntoIterator<Item = (u32, Place)> + Send,
    read: impl Fn() -> Option<T> + Sync,
) -> Option<(u32, T)> {
    let look = |(inum, place): (u32, Place)| {
        let ns = File::open(&place.path).ok()?;
        move_into_link_name_space(ns.as_fd(), Some(LinkNameSpaceType::Network)).ok()?;
        Some((inum, read()?))
    };
    thread::scope(|scope| {
        thread::Builder::new()
            .name("rsttrace-netns".into())
            .spawn_scoped(scope, || places.into_iter().find_map(look))
            .ok()?
            .join()
            .ok()?
    })
}

/// Everything but the name of the calling thread's namespace.
pub(super) fn read_here() -> NetnsState {
    NetnsState {
        conntrack: conntrack::read(),
        ipvs: ipvs::read(),
        tcp: sysctl::tcp(),
        counters: fs::read_to_string("/proc/thread-self/net/netstat")
            .map(|text| counters::parse(&text))
            .unwrap_or_default(),
        listeners: sock_diag::listeners(),
        translates: nat::read(),
        ..NetnsState::default()
    }
}
