//! Scans every network namespace for an audit: settings, sockets, services and counters.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::Path,
};

use rsttrace_model::{
    address::Address,
    conntrack::ConntrackEntry,
    firewall::Firewall,
    flow::Flow,
    ipvs::{IpvsState, IpvsTable},
    netns::{NetnsReach, NetnsState},
    settings::{Scope, Setting, Unread, Values},
    socket::{HeldSocket, SocketList},
};

use super::{
    Host, addresses, ctnetlink, firewall,
    inside::{inside, read_here},
    ipvs_conn, machine,
    netns_paths::{self, NetnsPath},
    options,
    sock_diag::{self, SocketFilter},
};

/// Limit of connections of one namespace.
const MOST_SOCKETS: usize = 4096;
/// Limit of listeners of one namespace.
const MOST_LISTENERS: usize = 1024;
/// Limit of entries of one IPVS table.
const MOST_ENTRIES: usize = super::survey::MOST_ENTRIES;

/// Facts about the whole host.
#[derive(Debug)]
pub struct MachineFacts {
    /// `uname -r`
    pub release: String,
    pub cpus: u32,
    pub ram_bytes: Option<u64>,
}

/// The scan of one network namespace.
#[derive(Debug)]
pub struct NetnsScan {
    pub inum: u32,
    pub reach: NetnsReach,
    /// An error when the namespace could not be entered; `NotFound` when it has ended since.
    pub contents: io::Result<NetnsContents>,
}

/// The settings, sockets, tables and rules of a network namespace.
#[derive(Debug)]
pub struct NetnsContents {
    pub state: NetnsState,
    pub values: Values,
    /// Settings of the whole host, as this namespace shows them.
    pub machine: Values,
    /// Addresses of the namespace's interfaces.
    pub addresses: Option<Vec<Address>>,
    pub connections: Option<SocketList>,
    /// The queue fields hold the accept queue's length and limit.
    pub listeners: Option<SocketList>,
    pub ipvs: Option<IpvsTable>,
    /// `None` where the rules cannot be read.
    pub firewall: Option<Firewall>,
    /// Tables of iptables-legacy whose rules could not be read.
    pub legacy_tables: Vec<String>,
}

impl Host {
    /// Reads every network namespace once. Enters and leaves each of them.
    #[must_use]
    pub fn scan_all(&self) -> Vec<NetnsScan> {
        let scanned = self.everywhere(contents_here).into_iter();
        scanned
            .map(|(inum, reach, contents)| NetnsScan {
                inum,
                contents: contents.map(|mut contents| {
                    (contents.state.inum, contents.state.reach) = (inum, reach.clone());
                    contents
                }),
                reach,
            })
            .collect()
    }

    /// Runs `read` in every network namespace, the initial one first.
    pub(super) fn everywhere<T: Send>(
        &self,
        read: impl Fn() -> T + Sync,
    ) -> Vec<(u32, NetnsReach, io::Result<T>)> {
        let Ok(nsfs) = fs::metadata("/proc/self/ns/net").map(|own| own.dev()) else {
            return Vec::new();
        };
        let mut namespaces: Vec<_> = netns_paths::scan(nsfs).into_iter().collect();
        namespaces.sort_unstable_by_key(|(inum, at)| (at.reach != NetnsReach::Initial, *inum));
        namespaces.truncate(netns_paths::MOST_NAMESPACES);
        let enter = |(inum, at): (u32, NetnsPath)| {
            let result = self.read_in(inum, &at.path, nsfs, &read);
            (inum, at.reach, result)
        };
        namespaces.into_iter().map(enter).collect()
    }

    /// Runs `read` inside the namespace that `path` refers to, and does not keep the namespace open.
    pub(super) fn read_in<T: Send>(
        &self,
        inum: u32,
        path: &Path,
        nsfs: u64,
        read: impl FnOnce() -> T + Send,
    ) -> io::Result<T> {
        if inum == self.own {
            return Ok(read());
        }
        let ns = File::open(path)?;
        // The path may refer to another namespace by now.
        if netns_paths::inum(path, nsfs) != Some(inum) {
            return Err(io::ErrorKind::NotFound.into());
        }
        inside(ns.as_fd(), read)
    }

    /// The settings of one scope, as a network namespace shows them. `None` when the namespace cannot be
    /// entered.
    #[must_use]
    pub fn values(&self, netns: u32, scope: Scope) -> Option<Values> {
        self.enter(netns, || values_here(scope, super::ipvs::timeouts().as_ref()))
    }

    /// The conntrack entries of a namespace that have one of these tuples. `None` where the entries cannot be
    /// read.
    #[must_use]
    pub fn tracked_in(&self, netns: u32, tuples: &[Flow]) -> Option<Vec<ConntrackEntry>> {
        self.enter(netns, || ctnetlink::entries(tuples)).flatten()
    }

    /// The owners and the options of the sockets with these inode numbers.
    #[must_use]
    pub fn held(&self, inodes: &BTreeSet<u64>) -> BTreeMap<u64, HeldSocket> {
        let mut held = options::read(inodes);
        for socket in held.values_mut() {
            socket.owner = self.with_pod(std::mem::take(&mut socket.owner));
        }
        held
    }

    #[must_use]
    pub fn machine(&self) -> MachineFacts {
        MachineFacts {
            release: machine::release(),
            cpus: machine::cpus(),
            ram_bytes: machine::ram_bytes(),
        }
    }

    /// `/` as pid 1 sees it, else as we see it.
    #[must_use]
    pub fn root(&self) -> &Path {
        let seen = self.roots.iter().find(|root| root.join("etc").is_dir());
        seen.map_or(Path::new("/"), |root| root.as_path())
    }

    /// The number of processes whose network namespace we may not read.
    #[must_use]
    pub fn hidden_processes(&self) -> usize {
        let hides = |pid: &u32| {
            fs::metadata(format!("/proc/{pid}/ns/net"))
                .is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
        };
        netns_paths::processes().iter().filter(|pid| hides(pid)).count()
    }
}

fn contents_here() -> NetnsContents {
    let state = read_here();
    let (firewall, legacy_tables) = firewall::read();
    NetnsContents {
        values: values_here(Scope::Netns, state.ipvs.as_ref()),
        machine: values_here(Scope::Machine, None),
        addresses: addresses::read().ok(),
        connections: sock_diag::list(SocketFilter::CONNECTIONS, MOST_SOCKETS).ok(),
        listeners: sock_diag::list(SocketFilter::LISTENERS, MOST_LISTENERS).ok(),
        ipvs: ipvs_conn::read(MOST_ENTRIES),
        firewall,
        legacy_tables,
        state,
    }
}

fn values_here(scope: Scope, ipvs: Option<&IpvsState>) -> Values {
    values_in(Path::new("/"), scope, ipvs)
}

/// The settings below a root directory, and the IPVS timeouts of `ipvs`.
pub(super) fn values_in(root: &Path, scope: Scope, ipvs: Option<&IpvsState>) -> Values {
    let mut values = crate::settings::read_files(root, scope);
    if scope == Scope::Netns {
        let timeout = |read: fn(&IpvsState) -> Option<u32>| match ipvs {
            None => Err(Unread::Absent),
            Some(state) => read(state).map(|s| s.to_string()).ok_or(Unread::Denied),
        };
        for (key, value) in [
            ("ipvs.tcp", timeout(|ipvs| ipvs.timeout_tcp_s)),
            ("ipvs.tcpfin", timeout(|ipvs| ipvs.timeout_tcpfin_s)),
            ("ipvs.udp", timeout(|ipvs| ipvs.timeout_udp_s)),
        ] {
            if let Some(setting) = Setting::find(key) {
                values.insert(setting, value);
            }
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn our_own_namespace_is_scanned_with_its_settings_sockets_and_addresses() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a local port");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connect");
        let host = Host::new().expect("proc is mounted");
        let scans = host.scan_all();
        let own = scans.into_iter().find(|scan| scan.inum == host.own).expect("our own");
        let found = own.contents.expect("readable without privileges");
        assert!(found.values.number("net.ipv4.tcp_keepalive_time").is_some());
        assert_eq!(found.values.text("ipvs.tcp").is_ok(), found.state.ipvs.is_some());
        let local = client.local_addr().expect("bound");
        assert!(found.addresses.is_none_or(|them| them.iter().any(|it| it.ip == local.ip())));
        if let Some(list) = found.connections.filter(|list| !list.truncated) {
            assert!(list.sockets.iter().any(|socket| socket.flow.src == local));
        }
    }

    #[test]
    fn values_of_a_namespace_that_does_not_exist_are_none() {
        let host = Host::new().expect("proc is mounted");
        assert_eq!(host.values(1, Scope::Netns), None);
        let own = host.values(host.own, Scope::Netns).expect("our own");
        assert!(own.number("net.ipv4.tcp_retries2").is_some());
    }
}
