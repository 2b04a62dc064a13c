//! Reads the sockets and tables of all network namespaces when tracing begins, and later the sockets and
//! entries that belong to one packet.

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
    ipvs_conn, netns_paths,
    sock_diag::{self, SocketFilter},
};

/// Limits of connections of one namespace, and of all namespaces.
const MOST_SOCKETS: usize = 2048;
const MOST_SOCKETS_IN_ALL: usize = 16_384;
/// Limit of entries of one IPVS table. The time to read them grows with the square of their number.
pub(super) const MOST_ENTRIES: usize = 16_384;
/// Limit of connections from one address and port.
const MOST_OF_ADDRESS: usize = 16;
/// Limit of namespaces that are searched for a conntrack entry.
const MOST_TRACKING: usize = 32;
/// Maximum age of a table before it is read again. A reading blocks no packet, but costs CPU time.
pub(super) const TABLE_MAX_AGE: Duration = Duration::from_secs(5);

/// A table and when it was read.
type Read = (Nanos, IpvsTable);

/// The namespaces that have an IPVS table or conntrack entries, as far as they were read.
#[derive(Debug, Clone, Default)]
pub(super) struct StateTables(Arc<Mutex<Tables>>);

#[derive(Debug, Default)]
struct Tables {
    ipvs: BTreeMap<u32, Read>,
    /// Number of conntrack entries by namespace.
    conntrack: BTreeMap<u32, u32>,
}

impl StateTables {
    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the tables of a namespace that was read because of a record: it may be newer than the survey.
    pub(super) fn note(&self, state: &NetnsState) {
        /// Namespaces kept of each kind.
        const MOST_NAMESPACES: usize = 4096;
        let mut tables = self.lock();
        let has_services = state.ipvs.as_ref().and_then(|ipvs| ipvs.services.as_ref());
        if has_services.is_some_and(|services| !services.is_empty())
            && tables.ipvs.len() < MOST_NAMESPACES
        {
            // Read at its first use.
            tables.ipvs.entry(state.inum).or_default();
        }
        if let Some(count) = state.conntrack.as_ref().and_then(|table| table.count)
            && (tables.conntrack.len() < MOST_NAMESPACES
                || tables.conntrack.contains_key(&state.inum))
        {
            tables.conntrack.insert(state.inum, count);
        }
    }

    /// Namespaces with an IPVS table.
    pub(super) fn ipvs_namespaces(&self) -> Vec<u32> {
        self.lock().ipvs.keys().copied().collect()
    }
}

impl Host {
    /// Reads every network namespace once, and passes its state, sockets and IPVS table to `each`, until `each`
    /// returns `false`. Enters and leaves each namespace, and keeps none of them open.
    pub fn survey(&self, mut each: impl FnMut(NetnsState, InitialState) -> bool) {
        let Ok(nsfs) = fs::metadata("/proc/self/ns/net").map(|own| own.dev()) else {
            return;
        };
        let namespaces: BTreeMap<u32, _> = netns_paths::scan(nsfs).into_iter().collect();
        let mut room = MOST_SOCKETS_IN_ALL;
        for (inum, at) in namespaces.into_iter().take(netns_paths::MOST_NAMESPACES) {
            let most = MOST_SOCKETS.min(room);
            let read = || (read_here(), sockets_and_ipvs(most));
            let Ok((mut state, initial)) = self.read_in(inum, &at.path, nsfs, read) else {
                continue;
            };
            (state.inum, state.reach) = (inum, at.reach);
            room -= initial.sockets.as_ref().map_or(0, |list| list.sockets.len()).min(room);
            let mut tables = self.tables.lock();
            if let Some(table) = &initial.ipvs {
                tables.ipvs.insert(inum, (initial.read, table.clone()));
            }
            if let Some(count) = state.conntrack.as_ref().and_then(|table| table.count) {
                tables.conntrack.insert(inum, count);
            }
            drop(tables);
            if !each(state, initial) {
                return;
            }
        }
    }

    /// Whether a connection of this host, in any namespace, has this tuple (local end first).
    pub(super) fn has_connection(&self, flow: Flow) -> bool {
        let Ok(nsfs) = fs::metadata("/proc/self/ns/net").map(|own| own.dev()) else {
            return false;
        };
        let namespaces = netns_paths::scan(nsfs).into_iter().take(netns_paths::MOST_NAMESPACES);
        namespaces.into_iter().any(|(inum, at)| {
            let found = self.read_in(inum, &at.path, nsfs, || sock_diag::find(flow));
            let socket = found.ok().and_then(Result::ok).flatten();
            socket.is_some_and(|socket| socket.state != tcp_state::LISTEN)
        })
    }

    /// The sockets, IPVS entries and conntrack entries that belong to a packet to which the TCP stack of
    /// namespace `netns` replied with a RST because no socket matched.
    #[must_use]
    pub fn inquire(&self, netns: u32, packet: Flow) -> StateLookup {
        let read = clock::monotonic();
        let filter =
            SocketFilter { local_port: Some(packet.dst.port()), ..SocketFilter::CONNECTIONS };
        let sockets = self.enter(netns, || connections_of_address(filter, packet.dst)).flatten();
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

    /// The conntrack entries of these tuples, by namespace.
    fn tracked(&self, netns: u32, tuples: &[Flow]) -> Vec<ConntrackFound> {
        let counts = self.tables.lock().conntrack.clone();
        // A namespace without rules has no entries. Most namespaces of a node are pods without rules.
        let few = counts.len() <= MOST_TRACKING;
        let searched =
            counts.into_iter().filter(|(inum, count)| few || *count > 0 || *inum == netns);
        let found = |(netns, _): (u32, u32)| {
            let entries = self.enter(netns, || ctnetlink::entries(tuples)).flatten()?;
            (!entries.is_empty()).then_some(ConntrackFound { netns, entries })
        };
        searched.take(MOST_TRACKING).filter_map(found).collect()
    }

    /// The entries of these clients in every known IPVS table. Tables that are too old are read again.
    fn entries_of(&self, clients: [SocketAddr; 2]) -> Vec<IpvsFound> {
        let now = clock::monotonic();
        let max_age = u64::try_from(TABLE_MAX_AGE.as_nanos()).unwrap_or(u64::MAX);
        let old = |(read, _): &Read| now.saturating_sub(*read) >= max_age;
        let old: Vec<u32> = self
            .tables
            .lock()
            .ipvs
            .iter()
            .filter(|(_, table)| old(table))
            .map(|(inum, _)| *inum)
            .collect();
        for inum in old {
            let table = self.enter(inum, || ipvs_conn::read(MOST_ENTRIES)).flatten();
            let mut tables = self.tables.lock();
            match table {
                Some(table) => tables.ipvs.insert(inum, (now, table)),
                None => tables.ipvs.remove(&inum),
            };
        }
        let of_clients = |(netns, (read, table)): (&u32, &Read)| {
            let theirs = |entry: &&IpvsEntry| clients.contains(&entry.virtual_flow.src);
            let entries = table.entries.iter().filter(theirs).cloned().collect();
            let table = IpvsTable { entries, truncated: table.truncated };
            IpvsFound { netns: *netns, read: *read, table }
        };
        self.tables.lock().ipvs.iter().map(of_clients).collect()
    }
}

/// Sockets and IPVS table of the calling thread's namespace.
fn sockets_and_ipvs(most_sockets: usize) -> InitialState {
    InitialState {
        read: clock::monotonic(),
        sockets: sock_diag::list(SocketFilter::CONNECTIONS, most_sockets).ok(),
        ipvs: ipvs_conn::read(MOST_ENTRIES),
    }
}

/// The connections of a local address and port.
fn connections_of_address(filter: SocketFilter, local: SocketAddr) -> Option<Vec<SocketState>> {
    let mut list = sock_diag::list(filter, MOST_SOCKETS).ok()?;
    list.sockets.retain(|socket| socket.flow.src == local);
    list.sockets.truncate(MOST_OF_ADDRESS);
    Some(list.sockets)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_survey_contains_our_own_namespace_and_its_connections() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a local port");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connect");
        let host = Host::new().expect("proc is mounted");
        let mut found = None;
        host.survey(|state, initial| {
            if state.inum == host.own {
                found = Some((state, initial));
            }
            found.is_none()
        });
        let (state, initial) = found.expect("our own namespace");
        assert!(state.tcp.keepalive_time_s.is_some());
        let local = client.local_addr().expect("bound");
        if let Some(list) = initial.sockets.filter(|list| !list.truncated) {
            assert!(list.sockets.iter().any(|socket| socket.flow.src == local));
        }
    }

    #[test]
    fn an_unmatched_packet_leads_to_the_connection_of_the_same_address_and_port() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a local port");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connect");
        let host = Host::new().expect("proc is mounted");
        let local = client.local_addr().expect("bound");
        let unmatched = Flow { src: SocketAddr::from(([192, 0, 2, 1], 3306)), dst: local };
        if host.socket(host.own, Flow { src: local, dst: local }).is_some() {
            let peer = listener.local_addr().expect("bound");
            assert!(host.has_connection(Flow { src: local, dst: peer }));
            assert!(!host.has_connection(unmatched.reversed()));
        }
        let found = host.inquire(host.own, unmatched);
        assert_eq!(found.packet, Some(unmatched));
        if let Some(sockets) = found.sockets {
            let peers: Vec<_> = sockets.iter().map(|socket| socket.flow.dst).collect();
            assert_eq!(peers, [listener.local_addr().expect("bound")]);
        }
    }
}
