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
    fn a_connection_is_found_with_its_namespace_and_another_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a local port");
        let address = listener.local_addr().expect("bound");
        let client = TcpStream::connect(address).expect("connect");
        let flow = Flow { src: client.local_addr().expect("connected"), dst: address };
        let host = Host::new().expect("proc is mounted");
        // Without tcp_diag nothing is known.
        if let Some((netns, _, socket)) = host.connection(host.own, flow) {
            assert_eq!((netns, socket.flow), (host.own, flow));
            assert_ne!(socket.inode, 0);
        }
        let other = Flow { dst: SocketAddr::from(([127, 0, 0, 1], 1)), ..flow };
        assert_eq!(host.connection(host.own, other), None);
    }
}
