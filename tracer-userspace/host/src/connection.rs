//! One connection's socket, in the network namespace that has it.

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    os::unix::fs::MetadataExt,
};

use rsttrace_model::{
    flow::{Flow, Nanos},
    socket::SocketState,
};

use super::{Host, clock, inside::first_inside, netns_paths, sock_diag};

impl Host {
    /// Whether a process holds the socket of this connection, local side first. `None` where the kernel does not list
    /// its sockets, or the namespace cannot be entered.
    #[must_use]
    pub fn is_held(&self, netns: u32, flow: Flow) -> Option<bool> {
        let found = self.enter(netns, || sock_diag::find(flow))?.ok()?;
        Some(found.is_some_and(|socket| socket.flow == flow && socket.inode != 0))
    }

    /// The socket of this connection, local side first, with its namespace and the time of the reading. A loopback
    /// address is searched in `netns` only, because every namespace has that address.
    #[must_use]
    pub fn connection(&self, netns: u32, flow: Flow) -> Option<(u32, Nanos, SocketState)> {
        if flow.src.ip().is_loopback() {
            let (read, socket) = self.enter(netns, || connection_here(flow)).flatten()?;
            return Some((netns, read, socket));
        }
        let nsfs = fs::metadata("/proc/self/ns/net").ok()?.dev();
        let all = netns_paths::scan(nsfs).into_iter().take(netns_paths::MOST_NAMESPACES);
        let (own, others): (Vec<_>, Vec<_>) = all.partition(|(inum, _)| *inum == self.own);
        // Our own namespace can be read without CAP_SYS_ADMIN.
        let here = own.first().and_then(|(inum, _)| Some((*inum, connection_here(flow)?)));
        let (netns, (read, socket)) =
            here.or_else(|| first_inside(others, || connection_here(flow)))?;
        Some((netns, read, socket))
    }
}

/// The same in the calling thread's namespace.
fn connection_here(flow: Flow) -> Option<(Nanos, SocketState)> {
    // A connection is only in a namespace that has its address.
    let any_port = SocketAddr::new(flow.src.ip(), 0);
    UdpSocket::bind(any_port).ok()?;
    let read = clock::monotonic();
    let socket = sock_diag::find(flow).ok()??;
    (socket.flow == flow).then_some((read, socket))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_held_connection_is_found_and_a_closed_one_is_not_held() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a local port");
        let address = listener.local_addr().expect("bound");
        let client = TcpStream::connect(address).expect("connect");
        let flow = Flow { src: client.local_addr().expect("connected"), dst: address };
        let host = Host::new().expect("proc is mounted");
        // Without tcp_diag nothing is known.
        let Some(held) = host.is_held(host.own, flow) else { return };
        assert!(held);
        let found = host.connection(host.own, flow).expect("a connection");
        assert_eq!((found.0, found.2.flow), (host.own, flow));
        drop(client);
        assert_eq!(host.is_held(host.own, flow), Some(false));
        let other = Flow { dst: SocketAddr::from(([127, 0, 0, 1], 1)), ..flow };
        assert_eq!(host.connection(host.own, other), None);
    }
}
