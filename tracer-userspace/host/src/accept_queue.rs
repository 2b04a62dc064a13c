//! The listener at an address, in the network namespace of this host that has the address.

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    os::unix::fs::MetadataExt,
};

use rsttrace_model::lookup::AcceptQueue;

use super::{
    Host, clock,
    inside::first_inside,
    netns_paths,
    sock_diag::{self, SocketFilter},
};

/// Limit of listeners on one port: one for each address, or a group of workers (SO_REUSEPORT).
const MOST_LISTENERS: usize = 256;

impl Host {
    /// The fullest accept queue of the listeners that accept connections to `address`, with its namespace.
    /// A loopback address is searched in `netns` only, because every namespace has that address.
    #[must_use]
    pub fn accept_queue(&self, netns: u32, address: SocketAddr) -> Option<(u32, AcceptQueue)> {
        if address.ip().is_loopback() {
            return Some((netns, self.enter(netns, || queue_here(address)).flatten()?));
        }
        let nsfs = fs::metadata("/proc/self/ns/net").ok()?.dev();
        let all = netns_paths::scan(nsfs).into_iter().take(netns_paths::MOST_NAMESPACES);
        let (own, others): (Vec<_>, Vec<_>) = all.partition(|(inum, _)| *inum == self.own);
        // Our own namespace can be read without CAP_SYS_ADMIN.
        let here = own.first().and_then(|(inum, _)| Some((*inum, queue_here(address)?)));
        here.or_else(|| first_inside(others, || queue_here(address)))
    }
}

/// The same as [`Host::accept_queue`], in the calling thread's namespace.
fn queue_here(address: SocketAddr) -> Option<AcceptQueue> {
    // A socket can bind to an address only in a namespace that has the address.
    UdpSocket::bind((address.ip(), 0)).ok()?;
    let filter = SocketFilter { local_port: Some(address.port()), ..SocketFilter::LISTENERS };
    let listeners = sock_diag::list(filter, MOST_LISTENERS).ok()?.sockets;
    let accepts = |on: SocketAddr| on.ip() == address.ip() || on.ip().is_unspecified();
    // For a listener the kernel reports the accept queue's length and limit in the two fields that hold a
    // connection's queues (net/ipv4/tcp_diag.c, tcp_diag_get_info).
    listeners
        .iter()
        .filter(|listener| accepts(listener.flow.src))
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
    fn a_waiting_connection_is_counted_at_the_address_of_its_listener() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a local port");
        let address = listener.local_addr().expect("bound");
        let _waiting = TcpStream::connect(address).expect("connect");
        let host = Host::new().expect("proc is mounted");
        // Without tcp_diag the queue is unknown.
        if let Some((netns, queue)) = host.accept_queue(host.own, address) {
            assert_eq!((netns, queue.waiting), (host.own, 1));
            assert!(queue.allowed >= 1);
        }
    }

    #[test]
    fn an_address_that_no_namespace_has_has_no_queue() {
        let host = Host::new().expect("proc is mounted");
        let elsewhere = SocketAddr::from(([192, 0, 2, 1], 3306));
        assert_eq!(host.accept_queue(host.own, elsewhere), None);
    }
}
