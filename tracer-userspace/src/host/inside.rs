//! Reading from inside a network namespace: `/proc/sys/net`, `/proc/thread-self/net` and new
//! sockets all belong to the namespace of the thread that opens them.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::state::NetnsState;
use super::{conntrack, counters, ipvs, nat, sock_diag, sysctl};

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
