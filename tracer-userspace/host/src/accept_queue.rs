//! The listener at an address, in whichever namespace of this machine has the address.

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    os::unix::fs::MetadataExt,
};

use rsttrace_model::lookup::AcceptQueue;

use super::{
    Host, clock,
    inside::first_inside,
    places,
    sock_diag::{self, SocketFilter},
};

/// Listeners of one port: one for each address, or a group of workers.
const MOST_LISTENERS: usize = 256;

impl Host {
    /// The fullest accept queue of the listeners that take connections to `address`, and its namespace.
    /// A loopback address is looked for in `netns` only, as every namespace has it.
    #[must_use]
    pub fn accept_queue(&self, netns: u32, address: SocketAddr) -> Option<(u32, AcceptQueue)> {
        if address.ip().is_loopback() {
            return Some((netns, self.enter(netns, || queue_here(address)).flatten()?));
        }
        let nsfs = fs::metadata("/proc/self/ns/net").ok()?.dev();
        let all = places::scan(nsfs).into_iter().take(places::MOST);
        let (own, others): (Vec<_>, Vec<_>) = all.partition(|(inum, _)| *inum == self.own);
        // Our own needs no right to enter it.
        let here = own.first().and_then(|(inum, _)| Some((*inum, queue_here(address)?)));
        here.or_else(|| first_inside(others, || queue_here(address)))
    }
}

/// The same in the calling thread's namespace.
fn queue_here(address: SocketAddr) -> Option<AcceptQueue> {
    // Only the namespace that has an address lets a socket have it.
    UdpSocket::bind((address.ip(), 0)).ok()?;
    let filter = SocketFilter { local_port: Some(address.port()), ..SocketFilter::LISTENERS };
    let listeners = sock_diag::list(filter, MOST_LISTENERS).ok()?.sockets;
    let takes = |on: SocketAddr| on.ip() == address.ip() || on.ip().is_unspecified();
    // For a listener the kernel tells these two where a connection has its queues
    // (net/ipv4/tcp_diag.c, tcp_diag_get_info).
    listeners
        .iter()
        .filter(|listener| takes(listener.flow.src))
        .map(|listener| AcceptQueue {
            address,
            waiting: listener.receive_queue,
            allowed: listener.send_queue,
            read: clock::monotonic(),
        })
        .max_by_key(|queue| queue.waiting.saturating_sub(queue.allowed))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_waiting_connection_is_counted_at_its_listeners_address() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a local port");
        let address = listener.local_addr().expect("bound");
        let _waiting = TcpStream::connect(address).expect("connect");
        let host = Host::new().expect("proc is mounted");
        // Where the kernel lists no sockets, nobody can tell.
        if let Some((netns, queue)) = host.accept_queue(host.own, address) {
            assert_eq!((netns, queue.waiting), (host.own, 1));
            assert!(queue.allowed >= 1);
        }
    }

    #[test]
    fn an_address_that_nobody_here_has_has_no_queue() {
        let host = Host::new().expect("proc is mounted");
        let elsewhere = SocketAddr::from(([192, 0, 2, 1], 3306));
        assert_eq!(host.accept_queue(host.own, elsewhere), None);
    }
}
