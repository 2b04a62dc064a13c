//! One connection, looked up wherever it may be known: sockets and conntrack by point questions, IPVS in
//! its table, which can only be read whole and is therefore read every few seconds.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::ErrorKind,
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use rsttrace_model::{
    connection::{Balanced, End, In, Sight, tuples},
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

/// A table is read, and every namespace entered, no more often.
const TABLE_EVERY: Duration = Duration::from_secs(5);
/// Entries of a table that are gone through: the time to read them grows with the square of their number.
const MOST_ENTRIES: usize = 65_536;
/// Tuples of one connection: the client's, the server's, and one behind a second translation.
const MOST_TUPLES: usize = 4;
/// Connections of one namespace that are listed.
const MOST_SOCKETS: usize = 4096;

/// Watches one connection.
#[derive(Debug)]
pub struct Lookout {
    host: Host,
    flows: Vec<Flow>,
    /// Where something was found at the last full look.
    known: BTreeMap<u32, NetnsReach>,
    ipvs: Vec<In<Balanced>>,
    services: Vec<In<SocketAddr>>,
    unseen: Vec<String>,
    looked: Option<Instant>,
    owners: BTreeMap<(u32, u64), Option<Owner>>,
}

/// What one namespace has of it.
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
    /// Watches a connection that has this tuple, in either direction, at some place of its way.
    #[must_use]
    pub fn lookout(&self, flow: Flow) -> Lookout {
        Lookout {
            host: self.clone(),
            flows: vec![flow],
            known: BTreeMap::new(),
            ipvs: Vec::new(),
            services: Vec::new(),
            unseen: Vec::new(),
            looked: None,
            owners: BTreeMap::new(),
        }
    }

    /// The connections that a process holds. `None` when it does not exist, or does not let us look.
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

    /// The processes of these sockets, by inode: one walk over all processes.
    #[must_use]
    pub fn holders(&self, sockets: &[SocketState]) -> BTreeMap<u64, Owner> {
        // Where they live is not told; anybody who holds them will do.
        let held = sockets.iter().filter(|socket| socket.inode != 0);
        owner::holders_of(&held.map(|socket| (socket.inode, 0)).collect())
    }

    /// The process of an end.
    #[must_use]
    pub fn holder(&self, netns: u32, socket: &SocketState) -> Option<Owner> {
        let owned = OwnedSocket { inode: socket.inode, netns, flow: socket.flow, opener: None };
        (socket.inode != 0).then(|| self.owner(&owned)).flatten()
    }
}

impl Lookout {
    /// Reads everything anew, IPVS tables if the last reading is old enough.
    pub fn look(&mut self) -> Sight {
        let full = self.looked.is_none_or(|looked| looked.elapsed() >= TABLE_EVERY);
        if full {
            self.looked = Some(Instant::now());
        }
        let mut sight = self.pass(full);
        // Where it is translated, its other end goes by another name.
        loop {
            let known = self.flows.len();
            for flow in tuples(&sight) {
                let new = !self.flows.iter().any(|it| it.key() == flow.key());
                if new && self.flows.len() < MOST_TUPLES {
                    self.flows.push(flow);
                }
            }
            if self.flows.len() == known {
                return sight;
            }
            sight = self.pass(true);
        }
    }

    /// Asks every namespace, or only those that knew something.
    fn pass(&mut self, full: bool) -> Sight {
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
        let mut sight = Sight { at, ..Sight::default() };
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
            let here = |it| In { place: place.clone(), it };
            self.ipvs.extend(part.ipvs.into_iter().map(|entry| In {
                place: place.clone(),
                it: Balanced { entry, read: at, limit_s: part.limit_s },
            }));
            let services = part.services.into_iter();
            self.services.extend(services.map(|it| In { place: place.clone(), it }));
            sight
                .conntrack
                .extend(part.conntrack.into_iter().map(|it| In { place: place.clone(), it }));
            for socket in part.sockets {
                let owner = self.owner(netns, &socket);
                sight.ends.push(here(End { socket, owner }));
            }
        }
        if full {
            self.unseen = unseen.into_iter().map(str::to_owned).collect();
            let hidden = self.host.hidden_processes();
            if hidden > 0 {
                let s = if hidden == 1 { "" } else { "es" };
                self.unseen.push(format!(
                    "the network namespaces of {hidden} process{s} (only root may look where they live)"
                ));
            }
            if closed > 0 {
                let s = if closed == 1 { "" } else { "s" };
                self.unseen.push(format!(
                    "{closed} network namespace{s} (entering one needs CAP_SYS_ADMIN)"
                ));
            }
        }
        sight.ipvs.clone_from(&self.ipvs);
        sight.services.clone_from(&self.services);
        sight.unseen.clone_from(&self.unseen);
        sight
    }

    /// Found once: it walks all processes.
    fn owner(&mut self, netns: u32, socket: &SocketState) -> Option<Owner> {
        let host = &self.host;
        let key = (netns, socket.inode);
        self.owners.entry(key).or_insert_with(|| host.holder(netns, socket)).clone()
    }
}

/// What the calling thread's namespace has.
fn part(flows: &[Flow], tables: bool) -> Part {
    let mut part = Part::default();
    for flow in flows.iter().flat_map(|flow| [*flow, flow.reversed()]) {
        match sock_diag::find(flow) {
            // A listener answers for what it does not have.
            Ok(Some(socket)) if socket.state != tcp_state::LISTEN && socket.flow == flow => {
                part.sockets.push(socket);
            }
            Ok(_) => {}
            Err(_) => part.unseen.push("sockets (the kernel has no tcp_diag, or may not load it)"),
        }
    }
    // Where nothing is tracked there is nothing to ask for.
    let tracked: Option<u64> = sysctl::value("netfilter/nf_conntrack_count");
    if tracked.is_some_and(|count| count > 0) {
        let both: Vec<Flow> = flows.iter().flat_map(|flow| [*flow, flow.reversed()]).collect();
        match ctnetlink::entries(&both) {
            Some(entries) => part.conntrack = entries,
            None if Path::new("/sys/module/nf_conntrack_netlink").exists() => {
                part.unseen.push("conntrack entries (asking for one needs CAP_NET_ADMIN)");
            }
            None => part.unseen.push(
                "conntrack entries (nf_conntrack_netlink is not loaded, and new connections are a \
                 little slower once it is: modprobe nf_conntrack_netlink)",
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
        Err(_) => return part.unseen.push("IPVS entries (their table is root's)"),
        Ok(_) => {}
    }
    let is_it = |entry: &IpvsEntry| {
        let (client, real) = (entry.virtual_flow.key(), entry.real_flow().key());
        flows.iter().any(|flow| flow.key() == client || flow.key() == real)
    };
    let Some(table) = ipvs_conn::find(is_it, MOST_ENTRIES) else {
        return;
    };
    if table.truncated {
        part.unseen.push("IPVS entries behind the first 65536 of a table");
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
    fn both_ends_of_a_connection_of_ours_are_found_from_either_and_vanish_when_it_closes() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a local port");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connect");
        let (server, _) = listener.accept().expect("accept");
        let flow = Flow {
            src: client.local_addr().expect("bound"),
            dst: client.peer_addr().expect("connected"),
        };
        let host = Host::new().expect("proc is mounted");
        for asked in [flow, flow.reversed()] {
            let sight = host.lookout(asked).look();
            if sight.unseen.iter().any(|what| what.starts_with("sockets")) {
                return;
            }
            let mut found: Vec<_> = sight.ends.iter().map(|end| end.it.socket.flow).collect();
            found.sort();
            let mut both = [flow, flow.reversed()];
            both.sort();
            assert_eq!(found, both);
        }
        let mut lookout = host.lookout(flow);
        assert_eq!(lookout.look().ends.len(), 2);
        drop((client, server));
        let left = lookout.look();
        assert!(left.ends.iter().all(|end| end.it.socket.state != tcp_state::ESTABLISHED));
    }

    #[test]
    fn a_process_is_known_by_the_connections_it_holds() {
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
