//! The cookie of a network namespace, which identifies the namespace for the whole boot. The kernel reuses
//! the inode number of a namespace that has ended.

use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// `SO_NETNS_COOKIE` of the calling thread's namespace: a counter that starts at boot and is never reused
/// (`net->net_cookie`, net/core/net_namespace.c). `None` before 5.14.
pub(super) fn read() -> Option<u64> {
    let socket: OwnedFd =
        socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None).ok()?;
    let mut cookie: u64 = 0;
    let mut length = libc::socklen_t::try_from(size_of_val(&cookie)).ok()?;
    // SAFETY: both pointers are to variables that outlive the call, and the length is the first one's.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    (result == 0 && usize::try_from(length) == Ok(size_of_val(&cookie))).then_some(cookie)
}
