//! Watches one connection in all network namespaces. Sockets and conntrack entries are looked up one by one.
//! An IPVS table can only be read as a whole, so IPVS tables are read every few seconds.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::ErrorKind,
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use rsttrace_model::{
    connection::{End, InNetns, IpvsReading, Snapshot, tuples},
    conntrack::ConntrackEntry,
    flow::Flow,
    ipvs::IpvsEntry,
    netns::{NetnsReach, Place},
    owner::Owner,
    socket::SocketState,
    tcp_state,
};

use super::{
    Host, OwnedSocket, clock, ctnetlink, ipvs, ipvs_conn, owner,
    sock_diag::{self, SocketFilter},
    sysctl,
};

/// Minimum interval of full scans, which read all IPVS tables and enter every namespace.
const FULL_SCAN_EVERY: Duration = Duration::from_secs(5);
/// Limit of entries that are read of a table. The time to read them grows with the square of their number.
const MOST_ENTRIES: usize = 65_536;
/// Limit of tuples of one connection: the client's, the server's, and those of a second translation.
const MOST_TUPLES: usize = 4;
/// Limit of listed connections of one namespace.
const MOST_SOCKETS: usize = 4096;

/// Watches one connection.
#[derive(Debug)]
pub struct ConnectionWatcher {
    host: Host,
    flows: Vec<Flow>,
    /// Namespaces that had a socket or an entry of the connection at the last full scan.
    known: BTreeMap<u32, NetnsReach>,
    ipvs: Vec<InNetns<IpvsReading>>,
    services: Vec<InNetns<SocketAddr>>,
    unseen: Vec<String>,
    last_full_scan: Option<Instant>,
    owners: BTreeMap<(u32, u64), Option<Owner>>,
}

/// What one namespace has of the connection.
#[derive(Default)]
struct Part {
    sockets: Vec<SocketState>,
    conntrack: Vec<ConntrackEntry>,
    ipvs: Vec<IpvsEntry>,
    limit_s: Option<u32>,
    services: Vec<SocketAddr>,
    unseen: Vec<&'static str>,
}

impl Host {
    /// Watches a connection that has this tuple, in either direction, in any namespace on its path.
    #[must_use]
    pub fn watch_connection(&self, flow: Flow) -> ConnectionWatcher {
        ConnectionWatcher {
            host: self.clone(),
            flows: vec![flow],
            known: BTreeMap::new(),
            ipvs: Vec::new(),
            services: Vec::new(),
            unseen: Vec::new(),
            last_full_scan: None,
            owners: BTreeMap::new(),
        }
    }

    /// The connections that a process holds. `None` when the process does not exist, or when we may not read
    /// its descriptors.
    #[must_use]
    pub fn connections_of(&self, pid: u32) -> Option<Vec<SocketState>> {
        let inodes = owner::sockets_of(pid)?;
        let mut list = self.connections();
        list.retain(|socket| inodes.contains(&socket.inode));
        Some(list)
    }

    /// Open connections of every namespace.
    #[must_use]
    pub fn connections(&self) -> Vec<SocketState> {
        let list = || sock_diag::list(SocketFilter::CONNECTIONS, MOST_SOCKETS);
        let found = self.everywhere(list).into_iter();
        let mut sockets: Vec<_> = found
            .filter_map(|(_, _, list)| list.ok()?.ok())
            .flat_map(|list| list.sockets)
            .collect();
        sockets.sort_by_key(|socket| socket.flow);
        sockets
    }

    /// The processes that hold these sockets, by inode. Walks all processes once.
    #[must_use]
    pub fn holders(&self, sockets: &[SocketState]) -> BTreeMap<u64, Owner> {
        // The namespaces of these sockets are unknown, so any holder is accepted.
        let held = sockets.iter().filter(|socket| socket.inode != 0);
        owner::holders_of(&held.map(|socket| (socket.inode, 0)).collect())
    }

    /// The process that owns a socket in network namespace `netns`.
    #[must_use]
    pub fn holder(&self, netns: u32, socket: &SocketState) -> Option<Owner> {
        let owned = OwnedSocket { inode: socket.inode, netns, flow: socket.flow, opener: None };
        (socket.inode != 0).then(|| self.owner(&owned)).flatten()
    }
}

impl ConnectionWatcher {
    /// Reads sockets and conntrack entries again, and all IPVS tables if the last full scan is old enough.
    pub fn scan(&mut self) -> Snapshot {
        let full = self.last_full_scan.is_none_or(|last| last.elapsed() >= FULL_SCAN_EVERY);
        if full {
            self.last_full_scan = Some(Instant::now());
        }
        let mut snapshot = self.pass(full);
        // A translated connection has other tuples, which are searched too.
        loop {
            let known = self.flows.len();
            for flow in tuples(&snapshot) {
                let new = !self.flows.iter().any(|it| it.key() == flow.key());
                if new && self.flows.len() < MOST_TUPLES {
                    self.flows.push(flow);
                }
            }
            if self.flows.len() == known {
                return snapshot;
            }
            snapshot = self.pass(true);
        }
    }

    /// Reads every namespace, or only those that had something at the last full scan.
    fn pass(&mut self, full: bool) -> Snapshot {
        let (flows, tables) = (&self.flows, full);
        let read = || part(flows, tables);
        let at = clock::monotonic();
        let parts: Vec<_> = if full {
            self.host.everywhere(read)
        } else {
            let known = self.known.iter();
            known
                .filter_map(|(inum, reach)| {
                    Some((*inum, reach.clone(), Ok(self.host.enter(*inum, read)?)))
                })
                .collect()
        };
        if full {
            (self.ipvs, self.services) = (Vec::new(), Vec::new());
            self.known.clear();
        }
        let mut snapshot = Snapshot { at, ..Snapshot::default() };
        let (mut unseen, mut closed) = (BTreeSet::new(), 0);
        for (netns, reach, part) in parts {
            let part = match part {
                Ok(part) => part,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(_) => {
                    closed += 1;
                    continue;
                }
            };
            let place = Place { netns, reach: reach.clone() };
            unseen.extend(part.unseen);
            if !(part.sockets.is_empty() && part.conntrack.is_empty() && part.ipvs.is_empty()) {
                self.known.insert(netns, reach);
            }
            let here = |value| InNetns { place: place.clone(), value };
            self.ipvs.extend(part.ipvs.into_iter().map(|entry| InNetns {
                place: place.clone(),
                value: IpvsReading { entry, read: at, limit_s: part.limit_s },
            }));
            let services = part.services.into_iter();
            self.services.extend(services.map(|value| InNetns { place: place.clone(), value }));
            let entries = part.conntrack.into_iter();
            snapshot.conntrack.extend(entries.map(|value| InNetns { place: place.clone(), value }));
            for socket in part.sockets {
                let owner = self.owner(netns, &socket);
                snapshot.ends.push(here(End { socket, owner }));
            }
        }
        if full {
            self.unseen = unseen.into_iter().map(str::to_owned).collect();
            let hidden = self.host.hidden_processes();
            if hidden > 0 {
                let (s, es) = if hidden == 1 { ("", "") } else { ("s", "es") };
                self.unseen.push(format!(
                    "the network namespace{s} of {hidden} process{es} (ptrace access denied)"
                ));
            }
            if closed > 0 {
                let s = if closed == 1 { "" } else { "s" };
                self.unseen.push(format!(
                    "{closed} network namespace{s} (entering one requires CAP_SYS_ADMIN)"
                ));
            }
        }
        snapshot.ipvs.clone_from(&self.ipvs);
        snapshot.services.clone_from(&self.services);
        snapshot.unseen.clone_from(&self.unseen);
        snapshot
    }

    /// The owner of a socket. Each socket is looked up once, because a look-up walks all processes.
    fn owner(&mut self, netns: u32, socket: &SocketState) -> Option<Owner> {
        let host = &self.host;
        let key = (netns, socket.inode);
        self.owners.entry(key).or_insert_with(|| host.holder(netns, socket)).clone()
    }
}

/// What the calling thread's namespace has of the connection.
fn part(flows: &[Flow], tables: bool) -> Part {
    let mut part = Part::default();
    for flow in flows.iter().flat_map(|flow| [*flow, flow.reversed()]) {
        match sock_diag::find(flow) {
            // The kernel returns the listener when there is no such connection.
            Ok(Some(socket)) if socket.state != tcp_state::LISTEN && socket.flow == flow => {
                part.sockets.push(socket);
            }
            Ok(_) => {}
            Err(_) => part.unseen.push("sockets (tcp_diag is missing or may not be loaded)"),
        }
    }
    // A namespace without entries needs no request.
    let tracked: Option<u64> = sysctl::value("netfilter/nf_conntrack_count");
    if tracked.is_some_and(|count| count > 0) {
        let both: Vec<Flow> = flows.iter().flat_map(|flow| [*flow, flow.reversed()]).collect();
        match ctnetlink::entries(&both) {
            Some(entries) => part.conntrack = entries,
            None if Path::new("/sys/module/nf_conntrack_netlink").exists() => {
                part.unseen.push("conntrack entries (reading one requires CAP_NET_ADMIN)");
            }
            None => part.unseen.push(
                "conntrack entries (nf_conntrack_netlink is not loaded; `modprobe nf_conntrack_netlink` \
                 loads it and makes new connections a little slower)",
            ),
        }
    }
    if tables {
        read_table(flows, &mut part);
    }
    part
}

fn read_table(flows: &[Flow], part: &mut Part) {
    match File::open("/proc/thread-self/net/ip_vs_conn") {
        Err(error) if error.kind() == ErrorKind::NotFound => return,
        Err(_) => {
            return part.unseen.push("IPVS entries (only root may read /proc/net/ip_vs_conn)");
        }
        Ok(_) => {}
    }
    let is_of_connection = |entry: &IpvsEntry| {
        let (client, real) = (entry.virtual_flow.key(), entry.real_flow().key());
        flows.iter().any(|flow| flow.key() == client || flow.key() == real)
    };
    let Some(table) = ipvs_conn::find(is_of_connection, MOST_ENTRIES) else {
        return;
    };
    if table.truncated {
        part.unseen.push("IPVS entries after the first 65536 of a table");
    }
    if table.entries.is_empty() && !table.truncated {
        part.services = ipvs::services_at(flows.iter().flat_map(|flow| [flow.src, flow.dst]));
    } else if !table.entries.is_empty() {
        part.limit_s = ipvs::timeouts().and_then(|ipvs| ipvs.timeout_tcp_s);
    }
    part.ipvs = table.entries;
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn both_ends_of_our_own_connection_are_found_from_either_until_it_closes() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a local port");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connect");
        let (server, _) = listener.accept().expect("accept");
        let flow = Flow {
            src: client.local_addr().expect("bound"),
            dst: client.peer_addr().expect("connected"),
        };
        let host = Host::new().expect("proc is mounted");
        for tuple in [flow, flow.reversed()] {
            let snapshot = host.watch_connection(tuple).scan();
            if snapshot.unseen.iter().any(|what| what.starts_with("sockets")) {
                return;
            }
            let ends = snapshot.ends.iter();
            let mut found: Vec<_> = ends.map(|end| end.value.socket.flow).collect();
            found.sort();
            let mut both = [flow, flow.reversed()];
            both.sort();
            assert_eq!(found, both);
        }
        let mut watcher = host.watch_connection(flow);
        assert_eq!(watcher.scan().ends.len(), 2);
        drop((client, server));
        let left = watcher.scan();
        assert!(left.ends.iter().all(|end| end.value.socket.state != tcp_state::ESTABLISHED));
    }

    #[test]
    fn the_connections_that_a_process_holds_are_listed() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a local port");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connect");
        let host = Host::new().expect("proc is mounted");
        let list = host.connections_of(std::process::id()).expect("our own descriptors");
        let local = client.local_addr().expect("bound");
        let readable = sock_diag::list(SocketFilter::LISTENERS, 1).is_ok();
        assert!(!readable || list.iter().any(|socket| socket.flow.src == local));
        assert_eq!(host.connections_of(u32::MAX), None);
    }
}
