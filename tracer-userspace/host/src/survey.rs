//! Taking stock: what all namespaces hold when tracing begins, and what they hold of one packet later.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    os::unix::fs::MetadataExt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rsttrace_model::{
    flow::{Flow, Nanos},
    ipvs::{IpvsEntry, IpvsTable},
    lookup::{ConntrackFound, InitialState, IpvsFound, StateLookup},
    netns::NetnsState,
    socket::SocketState,
    tcp_state,
};

use super::{
    Host, clock, ctnetlink,
    inside::read_here,
    ipvs_conn, places,
    sock_diag::{self, SocketFilter},
};

/// Connections of one namespace, and of all.
const MOST_SOCKETS: usize = 2048;
const MOST_SOCKETS_IN_ALL: usize = 16_384;
/// Entries of one IPVS table: the time to read them grows with the square of their number.
pub(super) const MOST_ENTRIES: usize = 16_384;
/// Connections from one address and port.
const MOST_KIN: usize = 16;
/// Namespaces that are asked for a conntrack entry.
const MOST_TRACKING: usize = 32;
/// A table is read anew after this long: reading it holds up nobody, but it is not free either.
pub(super) const TABLE_STAYS: Duration = Duration::from_secs(5);

/// A table and when it was read.
type Read = (Nanos, IpvsTable);

/// The namespaces that balanced or tracked connections when tracing began. Only for connections made
/// before that are entries looked up: the ends of others are seen.
#[derive(Debug, Clone, Default)]
pub(super) struct Holders(Arc<Mutex<Held>>);

#[derive(Debug, Default)]
struct Held {
    ipvs: BTreeMap<u32, Read>,
    /// Number of entries.
    conntrack: BTreeMap<u32, u32>,
}

impl Holders {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Namespaces with an IPVS table.
    pub(super) fn balancers(&self) -> Vec<u32> {
        self.lock().ipvs.keys().copied().collect()
    }
}

impl Host {
    /// Reads every namespace once and hands over its state and its stock, until `each` says no. Enters
    /// each namespace and leaves it: none is kept alive by having been looked at.
    pub fn survey(&self, mut each: impl FnMut(NetnsState, InitialState) -> bool) {
        let Ok(nsfs) = fs::metadata("/proc/self/ns/net").map(|own| own.dev()) else {
            return;
        };
        let found: BTreeMap<u32, _> = places::scan(nsfs).into_iter().collect();
        let mut room = MOST_SOCKETS_IN_ALL;
        for (inum, place) in found.into_iter().take(places::MOST) {
            let most = MOST_SOCKETS.min(room);
            let read = || (read_here(), set_initial_state(most));
            let Ok((mut state, stock)) = self.read_in(inum, &place.path, nsfs, read) else {
                continue;
            };
            (state.inum, state.reach) = (inum, place.reach);
            room -= stock.sockets.as_ref().map_or(0, |list| list.sockets.len()).min(room);
            let mut holders = self.holders.lock();
            if let Some(table) = &stock.ipvs {
                holders.ipvs.insert(inum, (stock.read, table.clone()));
            }
            if let Some(count) = state.conntrack.as_ref().and_then(|table| table.count) {
                holders.conntrack.insert(inum, count);
            }
            drop(holders);
            if !each(state, stock) {
                return;
            }
        }
    }

    /// Whether a connection of this host, in whatever namespace, has this tuple, its own end first.
    pub(super) fn has_connection(&self, flow: Flow) -> bool {
        let Ok(nsfs) = fs::metadata("/proc/self/ns/net").map(|own| own.dev()) else {
            return false;
        };
        places::scan(nsfs).into_iter().take(places::MOST).any(|(inum, place)| {
            let found = self.read_in(inum, &place.path, nsfs, || sock_diag::find(flow));
            let socket = found.ok().and_then(Result::ok).flatten();
            socket.is_some_and(|socket| socket.state != tcp_state::LISTEN)
        })
    }

    /// What there is about a packet that the stack of namespace `netns` reset for want of a connection.
    #[must_use]
    pub fn inquire(&self, netns: u32, packet: Flow) -> StateLookup {
        let read = clock::monotonic();
        let filter =
            SocketFilter { local_port: Some(packet.dst.port()), ..SocketFilter::CONNECTIONS };
        let sockets = self.enter(netns, || kin(filter, packet.dst)).flatten();
        let mut tuples = vec![packet, packet.reversed()];
        tuples.extend(sockets.iter().flatten().map(|socket| socket.flow));
        StateLookup {
            packet: Some(packet),
            read,
            sockets,
            ipvs: self.entries_of([packet.src, packet.dst]),
            conntrack: self.tracked(netns, &tuples),
        }
    }

    /// Who tracks these tuples.
    fn tracked(&self, netns: u32, tuples: &[Flow]) -> Vec<ConntrackFound> {
        let holders = self.holders.lock().conntrack.clone();
        // In a namespace without rules nothing is tracked, and most of a node's are pods without any.
        let few = holders.len() <= MOST_TRACKING;
        let asked = holders.into_iter().filter(|(inum, count)| few || *count > 0 || *inum == netns);
        let found = |(netns, _): (u32, u32)| {
            let entries = self.enter(netns, || ctnetlink::entries(tuples)).flatten()?;
            (!entries.is_empty()).then_some(ConntrackFound { netns, entries })
        };
        asked.take(MOST_TRACKING).filter_map(found).collect()
    }

    /// The entries of these clients in every table there is.
    fn entries_of(&self, clients: [SocketAddr; 2]) -> Vec<IpvsFound> {
        let now = clock::monotonic();
        let stays = u64::try_from(TABLE_STAYS.as_nanos()).unwrap_or(u64::MAX);
        let old = |(read, _): &Read| now.saturating_sub(*read) >= stays;
        let old: Vec<u32> = self
            .holders
            .lock()
            .ipvs
            .iter()
            .filter(|(_, table)| old(table))
            .map(|(inum, _)| *inum)
            .collect();
        for inum in old {
            let table = self.enter(inum, || ipvs_conn::read(MOST_ENTRIES)).flatten();
            let mut holders = self.holders.lock();
            match table {
                Some(table) => holders.ipvs.insert(inum, (now, table)),
                None => holders.ipvs.remove(&inum),
            };
        }
        let of_clients = |(netns, (read, table)): (&u32, &Read)| {
            let theirs = |entry: &&IpvsEntry| clients.contains(&entry.virtual_flow.src);
            let entries = table.entries.iter().filter(theirs).cloned().collect();
            let table = IpvsTable { entries, truncated: table.truncated };
            IpvsFound { netns: *netns, read: *read, table }
        };
        self.holders.lock().ipvs.iter().map(of_clients).collect()
    }
}

fn set_initial_state(most_sockets: usize) -> InitialState {
    InitialState {
        read: clock::monotonic(),
        sockets: sock_diag::list(SocketFilter::CONNECTIONS, most_sockets).ok(),
        ipvs: ipvs_conn::read(MOST_ENTRIES),
    }
}

/// The connections of a local address.
fn kin(filter: SocketFilter, local: SocketAddr) -> Option<Vec<SocketState>> {
    let mut list = sock_diag::list(filter, MOST_SOCKETS).ok()?;
    list.sockets.retain(|socket| socket.flow.src == local);
    list.sockets.truncate(MOST_KIN);
    Some(list.sockets)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn our_own_connections_are_in_stock_and_their_namespace_with_them() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a local port");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connect");
        let host = Host::new().expect("proc is mounted");
        let mut found = None;
        host.survey(|state, stock| {
            if state.inum == host.own {
                found = Some((state, stock));
            }
            found.is_none()
        });
        let (state, stock) = found.expect("our own namespace");
        assert!(state.tcp.keepalive_time_s.is_some());
        let local = client.local_addr().expect("bound");
        if let Some(list) = stock.sockets.filter(|list| !list.truncated) {
            assert!(list.sockets.iter().any(|socket| socket.flow.src == local));
        }
    }

    #[test]
    fn a_stray_packet_leads_to_the_connection_of_the_same_address_and_port() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a local port");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connect");
        let host = Host::new().expect("proc is mounted");
        let local = client.local_addr().expect("bound");
        let stray = Flow { src: SocketAddr::from(([192, 0, 2, 1], 3306)), dst: local };
        if host.socket(host.own, Flow { src: local, dst: local }).is_some() {
            let peer = listener.local_addr().expect("bound");
            assert!(host.has_connection(Flow { src: local, dst: peer }));
            assert!(!host.has_connection(stray.reversed()));
        }
        let inquiry = host.inquire(host.own, stray);
        assert_eq!(inquiry.packet, Some(stray));
        if let Some(sockets) = inquiry.sockets {
            let peers: Vec<_> = sockets.iter().map(|socket| socket.flow.dst).collect();
            assert_eq!(peers, [listener.local_addr().expect("bound")]);
        }
    }
}
