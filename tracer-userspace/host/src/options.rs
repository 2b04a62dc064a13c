//! The owner of a socket, and the options that only `getsockopt` shows: SO_KEEPALIVE and its times,
//! TCP_USER_TIMEOUT. They are read from a copy of the descriptor (`pidfd_getfd`), which is closed at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
};

use rsttrace_model::socket::{HeldSocket, Keepalive, SocketOptions};
use rustix::{
    fd::OwnedFd,
    fs::{Dir, readlinkat},
    net::sockopt,
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};

use super::{netns_paths, process};

/// Limit of sockets whose options are read; each costs a few system calls.
const MAX_OPTIONS_READ: usize = 2048;

/// Those of the sockets with these inode numbers that a process of this host holds. The owner of each is the
/// holder with the lowest pid, and pid 1 only if no other process holds the socket.
pub(super) fn read(wanted: &BTreeSet<u64>) -> BTreeMap<u64, HeldSocket> {
    let mut held = BTreeMap::new();
    let mut pids = netns_paths::processes();
    pids.sort_unstable();
    // Pid 1 opens sockets for other processes.
    pids.sort_by_key(|pid| *pid == 1);
    let mut count = 0;
    for pid in pids {
        let mut owner = None;
        for (fd, inode) in sockets_of(pid, wanted) {
            if held.contains_key(&inode) {
                continue;
            }
            if owner.is_none() {
                owner = process::describe(pid);
            }
            let Some(owner) = &owner else {
                break;
            };
            count += 1;
            let options =
                (count <= MAX_OPTIONS_READ).then(|| options_of(pid, fd, inode).ok()).flatten();
            held.insert(inode, HeldSocket { owner: owner.clone(), options });
        }
    }
    held
}

/// The descriptors of a process that are wanted sockets, with their inode numbers.
fn sockets_of(pid: u32, wanted: &BTreeSet<u64>) -> Vec<(i32, u64)> {
    let Ok(fds) = File::open(format!("/proc/{pid}/fd")) else {
        return Vec::new();
    };
    let Ok(entries) = Dir::read_from(&fds) else {
        return Vec::new();
    };
    let socket = |name: &std::ffi::CStr| {
        let target = readlinkat(&fds, name, Vec::new()).ok()?;
        let inode = target.to_str().ok()?.strip_prefix("socket:[")?.strip_suffix(']')?;
        let inode = inode.parse().ok().filter(|inode| wanted.contains(inode))?;
        Some((name.to_str().ok()?.parse().ok()?, inode))
    };
    entries.flatten().filter_map(|entry| socket(entry.file_name())).collect()
}

fn options_of(pid: u32, fd: i32, inode: u64) -> io::Result<SocketOptions> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    let socket = pidfd_getfd(&process, fd, PidfdGetfdFlags::empty())?;
    // The descriptor number may refer to another file by now.
    if rustix::fs::fstat(&socket)?.st_ino != inode {
        return Err(io::ErrorKind::NotFound.into());
    }
    options(&socket)
}

fn options(socket: &OwnedFd) -> io::Result<SocketOptions> {
    let probes = sockopt::tcp_keepcnt(socket)?;
    Ok(SocketOptions {
        keepalive: Keepalive {
            enabled: sockopt::socket_keepalive(socket)?,
            time_s: sockopt::tcp_keepidle(socket)?.as_secs_f64(),
            intvl_s: sockopt::tcp_keepintvl(socket)?.as_secs_f64(),
            probes: u8::try_from(probes).unwrap_or(u8::MAX),
            // The kernel does not show whether the value is the socket's own or the sysctl's.
            time_is_own: false,
        },
        user_timeout_ms: sockopt::tcp_user_timeout(socket)?,
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_times_that_a_socket_has_set_are_read() {
        let socket = OwnedFd::from(TcpListener::bind("127.0.0.1:0").expect("a port"));
        let off = options(&socket).expect("ours");
        assert!(!off.keepalive.enabled);
        sockopt::set_socket_keepalive(&socket, true).expect("SO_KEEPALIVE");
        sockopt::set_tcp_keepidle(&socket, Duration::from_secs(300)).expect("TCP_KEEPIDLE");
        sockopt::set_tcp_user_timeout(&socket, 5000).expect("TCP_USER_TIMEOUT");
        let on = options(&socket).expect("ours");
        assert!(on.keepalive.enabled);
        assert_eq!((on.keepalive.time_s, on.user_timeout_ms), (300.0, 5000));
    }

    #[test]
    fn a_wanted_socket_is_found_with_its_process() {
        let socket = OwnedFd::from(TcpListener::bind("127.0.0.1:0").expect("a port"));
        let inode = rustix::fs::fstat(&socket).expect("ours").st_ino;
        let held = read(&BTreeSet::from([inode]));
        let found = held.get(&inode).expect("we hold it");
        assert_eq!(found.owner.pid, std::process::id());
        assert_eq!(read(&BTreeSet::from([u64::MAX])).len(), 0);
    }
}
