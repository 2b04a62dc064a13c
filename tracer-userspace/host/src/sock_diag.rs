//! Lists TCP sockets by netlink `sock_diag` (`linux/inet_diag.h`, `net/ipv4/inet_diag.c`), which `ss` uses
//! too. A request loads the modules `inet_diag` and `tcp_diag`; where loading them is forbidden, the request
//! fails.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use rsttrace_model::{
    flow::Flow,
    netns::MOST_LISTENERS,
    socket::{SocketAges, SocketList, SocketState, SocketTimer, TimerKind},
    tcp_state,
};
use rustix::net::netlink::SOCK_DIAG;
use tracer_common::net::{AF_INET, AF_INET6, IPPROTO_TCP};

use super::{
    netlink::Link,
    nlmsg::{attributes, leading, malformed, u32_of},
};

const SOCK_DIAG_BY_FAMILY: u16 = 20;

const INET_DIAG_INFO: u16 = 2;
const INET_DIAG_SKV6ONLY: u16 = 11;

/// Sizes of `struct inet_diag_sockid` and `struct inet_diag_msg`, bytes.
const SOCKID_LEN: usize = 48;
const MSG_LEN: usize = 72;

/// Time for one request. A host has up to some million sockets, and a request selects few of them.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Which sockets to list. The kernel compares the ports, so a reply contains only matching sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SocketFilter {
    /// Bits `1 << state` (`tcp_state`); 0 means all.
    pub states: u32,
    pub local_port: Option<u16>,
    pub remote_port: Option<u16>,
}

impl SocketFilter {
    /// Every listening socket.
    pub const LISTENERS: Self =
        Self { states: 1 << tcp_state::LISTEN, local_port: None, remote_port: None };
    /// Every connection that was established and has not ended.
    pub const CONNECTIONS: Self = Self {
        states: 1 << tcp_state::ESTABLISHED
            | 1 << tcp_state::FIN_WAIT1
            | 1 << tcp_state::FIN_WAIT2
            | 1 << tcp_state::CLOSE_WAIT
            | 1 << tcp_state::LAST_ACK
            | 1 << tcp_state::CLOSING,
        local_port: None,
        remote_port: None,
    };
}

/// The sockets of the calling thread's namespace, both families, at most `most`.
pub(super) fn list(filter: SocketFilter, most: usize) -> io::Result<SocketList> {
    let mut link = Link::open(SOCK_DIAG, Instant::now() + TIMEOUT)?;
    let mut list = SocketList::default();
    for family in [AF_INET, AF_INET6] {
        let request = request(family, filter, None);
        let result = link.dump(SOCK_DIAG_BY_FAMILY, &[&request], &mut |body| {
            if list.sockets.len() == most {
                list.truncated = true;
                return Err(ErrorKind::QuotaExceeded.into());
            }
            list.sockets.push(socket(body)?);
            Ok(())
        });
        if list.truncated {
            break;
        }
        result?;
    }
    Ok(list)
}

/// The addresses of the listeners of the calling thread's namespace, sorted; `None` when they cannot be read.
pub(super) fn listeners() -> Option<Vec<SocketAddr>> {
    let list = list(SocketFilter::LISTENERS, MOST_LISTENERS).ok()?;
    let mut addresses = Vec::new();
    for socket in list.sockets {
        let on = socket.flow.src;
        addresses.push(on);
        if on.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && !socket.v6_only {
            addresses.push(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), on.port()));
        }
    }
    addresses.sort_unstable();
    addresses.dedup();
    Some(addresses)
}

/// The socket that a packet to `flow.src` from `flow.dst` would find in the calling thread's
/// namespace: the connection, else the listener. `None` when there is neither.
pub(super) fn find(flow: Flow) -> io::Result<Option<SocketState>> {
    // A mapped socket is found by its IPv4 addresses: the kernel's look-up compares nothing else.
    let family = if flow.src.is_ipv4() { AF_INET } else { AF_INET6 };
    let request = request(family, SocketFilter::default(), Some(flow));
    let mut link = Link::open(SOCK_DIAG, Instant::now() + TIMEOUT)?;
    let mut found = None;
    let result = link.request(SOCK_DIAG_BY_FAMILY, &[&request], &mut |body| {
        found = Some(socket(body)?);
        Ok(())
    });
    match result {
        // ENOENT is "no such socket" or "no such module". A list request fails only without the module.
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let port = SocketFilter { local_port: Some(1), ..SocketFilter::LISTENERS };
            list(port, 1).map(|_| None)
        }
        other => other.map(|()| found),
    }
}

/// Encodes `struct inet_diag_req_v2`.
fn request(family: u8, filter: SocketFilter, flow: Option<Flow>) -> Vec<u8> {
    let states = if filter.states == 0 { u32::MAX } else { filter.states };
    let extensions = 1 << (INET_DIAG_INFO - 1);
    let mut bytes = vec![family, IPPROTO_TCP, extensions, 0];
    bytes.extend(states.to_ne_bytes());
    let ports = match flow {
        Some(flow) => [flow.src.port(), flow.dst.port()],
        None => [filter.local_port, filter.remote_port].map(Option::unwrap_or_default),
    };
    bytes.extend(ports.iter().flat_map(|port| port.to_be_bytes()));
    match flow {
        Some(flow) => bytes.extend([flow.src, flow.dst].map(address_bytes).as_flattened()),
        None => bytes.extend([0; 32]),
    }
    bytes.extend([0; 4]); // any interface
    bytes.extend([0xff; 8]); // INET_DIAG_NOCOOKIE, twice
    bytes
}

/// Parses `struct inet_diag_msg` and the attributes that follow it.
fn socket(body: &[u8]) -> io::Result<SocketState> {
    let (fixed, rest) =
        body.split_at_checked(MSG_LEN).ok_or_else(|| malformed("missing inet_diag_msg"))?;
    let family = fixed[0];
    let id = &fixed[4..4 + SOCKID_LEN];
    let flow = Flow { src: address(family, id, 0)?, dst: address(family, id, 1)? };
    let tail = &fixed[4 + SOCKID_LEN..];
    let number = |index: usize| leading(&tail[4 * index..]).map(u32::from_ne_bytes);
    let mut socket = SocketState {
        flow,
        state: fixed[1],
        inode: u64::from(number(4)?),
        uid: number(3)?,
        timer: timer(fixed[2], number(0)?),
        retransmits: fixed[3],
        receive_queue: number(1)?,
        send_queue: number(2)?,
        ages: None,
        bytes_received: None,
        bytes_acked: None,
        v6_only: false,
    };
    for attribute in attributes(rest) {
        let (kind, payload) = attribute?;
        match kind {
            INET_DIAG_INFO => read_info(&mut socket, payload)?,
            INET_DIAG_SKV6ONLY => socket.v6_only = payload.first().is_some_and(|flag| *flag != 0),
            _ => {}
        }
    }
    Ok(socket)
}

/// `idiag_timer` and `idiag_expires`, milliseconds (`net/ipv4/inet_diag.c`, `inet_sk_diag_fill`).
fn timer(kind: u8, left_ms: u32) -> Option<SocketTimer> {
    let kind = match kind {
        1 => TimerKind::Retransmit,
        2 => TimerKind::Keepalive,
        3 => TimerKind::TimeWait,
        4 => TimerKind::ZeroWindow,
        _ => return None,
    };
    Some(SocketTimer { kind, left_ms })
}

/// Reads `struct tcp_info` (`linux/tcp.h`), to which later kernels only append fields.
fn read_info(socket: &mut SocketState, info: &[u8]) -> io::Result<()> {
    const LAST_DATA_SENT: usize = 44;
    const LAST_DATA_RECEIVED: usize = 52;
    const LAST_ACK_RECEIVED: usize = 56;
    const BYTES_ACKED: usize = 120;
    const BYTES_RECEIVED: usize = 128;
    if matches!(socket.state, tcp_state::LISTEN | tcp_state::NEW_SYN_RECV | tcp_state::TIME_WAIT) {
        return Ok(());
    }
    let ms =
        |at: usize| u32_of(info.get(at..at + 4).ok_or_else(|| malformed("tcp_info too short"))?);
    socket.ages = Some(SocketAges {
        data_sent_ms: ms(LAST_DATA_SENT)?,
        data_received_ms: ms(LAST_DATA_RECEIVED)?,
        ack_received_ms: ms(LAST_ACK_RECEIVED)?,
    });
    let count = |at: usize| info.get(at..)?.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes));
    (socket.bytes_acked, socket.bytes_received) = (count(BYTES_ACKED), count(BYTES_RECEIVED));
    Ok(())
}

/// The local (0) or remote (1) address of a `struct inet_diag_sockid`.
fn address(family: u8, id: &[u8], side: usize) -> io::Result<SocketAddr> {
    let port = u16::from_be_bytes(leading(&id[2 * side..])?);
    let bytes: [u8; 16] = leading(&id[4 + 16 * side..])?;
    let ip = match family {
        AF_INET => IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3])),
        AF_INET6 => IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical(),
        _ => return Err(malformed("address family")),
    };
    Ok(SocketAddr::new(ip, port))
}

fn address_bytes(address: SocketAddr) -> [u8; 16] {
    match address.ip() {
        IpAddr::V4(ip) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&ip.octets());
            bytes
        }
        IpAddr::V6(ip) => ip.octets(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn own_pair(on: &str) -> (TcpListener, TcpStream, TcpStream) {
        let listener = TcpListener::bind(on).expect("a local port");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connect");
        let (server, _) = listener.accept().expect("accept");
        (listener, client, server)
    }

    /// The tuple of a connected socket, with IPv4-mapped addresses as IPv4.
    fn flow_of(stream: &TcpStream) -> Flow {
        let canonical =
            |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        Flow {
            src: canonical(stream.local_addr().expect("bound")),
            dst: canonical(stream.peer_addr().expect("connected")),
        }
    }

    /// Where the kernel has no `tcp_diag`, there is nothing to test.
    fn unless_absent<T>(result: io::Result<T>) -> Option<T> {
        match result {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            other => Some(other.expect("sock_diag answers")),
        }
    }

    #[test]
    fn a_connection_is_found_by_its_addresses_in_every_family() {
        for on in ["127.0.0.1:0", "[::1]:0", "[::ffff:127.0.0.1]:0"] {
            let (_listener, client, _server) = own_pair(on);
            let Some(found) = unless_absent(find(flow_of(&client))) else {
                return;
            };
            let found = found.expect("it exists");
            assert_eq!(
                (found.flow, found.state),
                (flow_of(&client), tcp_state::ESTABLISHED),
                "{on}"
            );
            assert!(found.ages.is_some_and(|ages| ages.data_sent_ms < 60_000), "{on}");
            assert_ne!(found.inode, 0);
        }
    }

    #[test]
    fn another_peer_finds_the_listener_and_an_unused_port_nothing() {
        let (listener, client, _server) = own_pair("127.0.0.1:0");
        let at = |ip: [u8; 4], port| SocketAddr::from((ip, port));
        let port = listener.local_addr().expect("bound").port();
        let unmatched = Flow { src: at([127, 0, 0, 1], port), dst: at([192, 0, 2, 1], 9) };
        let Some(found) = unless_absent(find(unmatched)) else {
            return;
        };
        assert_eq!(found.map(|it| it.state), Some(tcp_state::LISTEN));
        let unmatched = Flow { src: flow_of(&client).src, dst: at([192, 0, 2, 1], 9) };
        assert_eq!(find(unmatched).expect("sock_diag answers"), None);
    }

    #[test]
    fn a_list_is_limited_by_states_ports_and_length() {
        let (_listener, client, _server) = own_pair("127.0.0.1:0");
        let filter = SocketFilter {
            states: 1 << tcp_state::ESTABLISHED,
            local_port: Some(flow_of(&client).src.port()),
            remote_port: None,
        };
        let Some(listed) = unless_absent(list(filter, 10)) else {
            return;
        };
        let flows: Vec<_> = listed.sockets.iter().map(|socket| socket.flow).collect();
        assert_eq!((flows, listed.truncated), (vec![flow_of(&client)], false));
        let listeners = list(SocketFilter::LISTENERS, 0).expect("sock_diag answers");
        assert!(listeners.sockets.is_empty() && listeners.truncated);
    }

    #[test]
    fn a_listener_has_its_accept_queue_and_the_limit() {
        let (listener, _client, _server) = own_pair("127.0.0.1:0");
        let _waiting = TcpStream::connect(listener.local_addr().expect("bound")).expect("connect");
        let port = listener.local_addr().expect("bound").port();
        let filter = SocketFilter { local_port: Some(port), ..SocketFilter::LISTENERS };
        let Some(listed) = unless_absent(list(filter, 10)) else {
            return;
        };
        let queue = listed.sockets.first().map(|it| (it.receive_queue, it.send_queue));
        // The standard library requests a backlog of 128 or more; the namespace's somaxconn may be less.
        assert!(queue.is_some_and(|(length, limit)| length == 1 && limit > 1), "{queue:?}");
    }

    #[test]
    fn a_wildcard_listener_of_both_families_is_listed_under_both() {
        let listener = TcpListener::bind("[::]:0").expect("a local port");
        let port = listener.local_addr().expect("bound").port();
        let Some(listeners) = listeners() else {
            return;
        };
        let state =
            rsttrace_model::netns::NetnsState { listeners: Some(listeners), ..Default::default() };
        for ip in ["192.0.2.1", "2001:db8::1"] {
            let address = SocketAddr::new(ip.parse().expect("an address"), port);
            assert_eq!(state.listens(address), Some(true), "{ip}");
        }
    }

    #[test]
    fn a_keepalive_timer_has_its_remaining_time() {
        let (_listener, client, _server) = own_pair("127.0.0.1:0");
        rustix::net::sockopt::set_socket_keepalive(&client, true).expect("SO_KEEPALIVE");
        let Some(found) = unless_absent(find(flow_of(&client))) else {
            return;
        };
        let timer = found.and_then(|socket| socket.timer).expect("a timer runs");
        assert_eq!(timer.kind, TimerKind::Keepalive);
        assert!(timer.left_ms > 0);
    }

    #[test]
    fn a_truncated_reply_is_an_error_and_an_older_tcp_info_is_not() {
        let mut body = [0; MSG_LEN];
        (body[0], body[1]) = (AF_INET, tcp_state::ESTABLISHED);
        for cut in 0..MSG_LEN {
            assert!(socket(&body[..cut]).is_err(), "{cut}");
        }
        let mut info = super::super::nlmsg::Attributes::default();
        info.put(INET_DIAG_INFO, &[1; 104]);
        let old = socket(&[&body[..], info.bytes()].concat()).expect("valid");
        assert!(old.ages.is_some() && old.bytes_received.is_none());
        let mut short = super::super::nlmsg::Attributes::default();
        short.put(INET_DIAG_INFO, &[1; 40]);
        assert!(socket(&[&body[..], short.bytes()].concat()).is_err());
    }
}
