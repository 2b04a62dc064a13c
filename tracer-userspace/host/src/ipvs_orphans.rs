//! IPVS entries whose real server is no longer part of their service. IPVS drops every packet of such an
//! entry, unless `vs/expire_nodest_conn` is set.

use std::{
    collections::HashMap,
    fs, io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rsttrace_model::{
    flow::{Flow, Nanos},
    ipvs::IpvsEntry,
    netns::NetnsState,
};
use tracer_common::net::IPPROTO_TCP;

use super::{
    Host, clock, ipvs_conn, ipvs_services,
    survey::{MOST_ENTRIES, TABLE_MAX_AGE},
};

/// Limit of namespaces that are searched for a service, and the maximum age of their list of services.
const MOST_IPVS_NAMESPACES: usize = 64;
const SERVICES_MAX_AGE: Duration = Duration::from_secs(30);

/// When a namespace was read, and its entries without a real server.
type Read = (Nanos, Vec<IpvsEntry>);

/// The latest reading of each namespace, kept because a removed server breaks many connections at once.
#[derive(Debug, Clone, Default)]
pub(super) struct Orphans(Arc<Mutex<HashMap<u32, Read>>>);

impl Orphans {
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Read>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Host {
    /// The IPVS entry of a connection, if the entry's real server is no longer part of its service, with the
    /// namespace of the entry. Searches the `likely` namespaces first, then those that had an IPVS table when
    /// tracing began. A table is read at most every five seconds, and again after the removal time that is
    /// given with a `likely` namespace.
    #[must_use]
    pub fn ipvs_orphan(&self, flow: Flow, likely: &[(u32, Nanos)]) -> Option<(u32, IpvsEntry)> {
        let others = self.tables.ipvs_namespaces();
        let others = others.iter().filter(|inum| likely.iter().all(|(known, _)| known != *inum));
        let likely = likely.iter().map(|(inum, removed)| (*inum, Some(*removed)));
        likely
            .chain(others.map(|inum| (*inum, None)))
            .find_map(|(inum, since)| Some((inum, self.orphan_in(inum, flow, since)?)))
    }

    /// The present state of the namespace that has a TCP service at an address, of those that
    /// [`Self::ipvs_orphan`] searches. The search itself uses states that are up to 30 seconds old.
    #[must_use]
    pub fn ipvs_service(&self, service: SocketAddr, likely: &[u32]) -> Option<NetnsState> {
        let others = self.tables.ipvs_namespaces();
        let has_service = |state: &NetnsState| {
            let services = state.ipvs.iter().flat_map(|ipvs| ipvs.services.iter().flatten());
            services.into_iter().any(|it| it.is_tcp_at(service))
        };
        let found = likely
            .iter()
            .chain(others.iter().filter(|inum| !likely.contains(inum)))
            .take(MOST_IPVS_NAMESPACES)
            .find(|inum| self.netns(**inum, SERVICES_MAX_AGE).as_ref().is_some_and(has_service))?;
        self.netns(*found, Duration::ZERO)
    }

    /// The entry without a real server of a client whose packets namespace `inum` has dropped since `since`.
    /// `None` also for a client on this host, whose own socket reports the failure.
    #[must_use]
    pub fn ipvs_dropped(&self, inum: u32, flow: Flow, since: Nanos) -> Option<IpvsEntry> {
        self.orphan_in(inum, flow, Some(since)).filter(|_| !self.has_connection(flow))
    }

    /// `busy_since` is a time at which IPVS was known to work in the namespace. The table that is used was read
    /// at or after that time.
    fn orphan_in(&self, inum: u32, flow: Flow, busy_since: Option<Nanos>) -> Option<IpvsEntry> {
        let now = clock::monotonic();
        let max_age = u64::try_from(TABLE_MAX_AGE.as_nanos()).unwrap_or(u64::MAX);
        let is_fresh = |(read, _): &Read| {
            now.saturating_sub(*read) < max_age && busy_since.is_none_or(|since| *read >= since)
        };
        if !self.orphans.lock().get(&inum).is_some_and(is_fresh) {
            let read =
                || if busy_since.is_some() || had_connections() { orphans() } else { Vec::new() };
            let found = self.enter(inum, read).unwrap_or_default();
            let mut orphans = self.orphans.lock();
            orphans.retain(|_, read| is_fresh(read));
            orphans.insert(inum, (now, found));
        }
        let is_of_flow = |entry: &&IpvsEntry| {
            [entry.virtual_flow, entry.real_flow()].iter().any(|it| it.key() == flow.key())
        };
        self.orphans.lock().get(&inum)?.1.iter().find(is_of_flow).cloned()
    }
}

fn file(name: &str) -> io::Result<String> {
    fs::read_to_string(format!("/proc/thread-self/net/{name}"))
}

/// Whether the calling thread's namespace ever had an IPVS connection, as of about 2 s ago: the counters are
/// those of the estimator (ip_vs_copy_stats, net/netfilter/ipvs/ip_vs_ctl.c). Up to 6.18 all namespaces share
/// one table, and a reading walks the whole table.
fn had_connections() -> bool {
    file("ip_vs_stats").is_ok_and(|stats| counts_connections(&stats))
}

/// The entries without a real server of the calling thread's namespace; none where ip_vs is not loaded.
fn orphans() -> Vec<IpvsEntry> {
    let Ok(services) = file("ip_vs").map(|text| Services::parse(&text)) else {
        return Vec::new();
    };
    let table = ipvs_conn::read(MOST_ENTRIES).map(|table| table.entries).unwrap_or_default();
    table.into_iter().filter(|entry| !services.has(entry)).collect()
}

/// Real servers by service, from `/proc/net/ip_vs`.
#[derive(Default)]
struct Services {
    by_address: HashMap<SocketAddr, Vec<SocketAddr>>,
    /// Real servers of all firewall-mark services, because the table does not show to which of these services
    /// an entry belongs.
    of_marks: Vec<SocketAddr>,
}

impl Services {
    fn parse(text: &str) -> Self {
        let mut services = Self::default();
        for service in ipvs_services::parse(text) {
            let servers = match service.fwmark {
                0 if service.protocol != IPPROTO_TCP => continue,
                0 => {
                    let at = SocketAddr::new(service.ip, service.port);
                    services.by_address.entry(at).or_default()
                }
                _ => &mut services.of_marks,
            };
            servers.extend(service.destinations.iter().map(|it| SocketAddr::new(it.ip, it.port)));
        }
        services
    }

    fn has(&self, entry: &IpvsEntry) -> bool {
        let of_service = self.by_address.get(&entry.virtual_flow.dst).into_iter().flatten();
        of_service.chain(&self.of_marks).any(|server| *server == entry.server)
    }
}

/// The first number of `ip_vs_stats`, after two lines of headings.
fn counts_connections(stats: &str) -> bool {
    let first = stats.lines().nth(2).and_then(|line| line.split_whitespace().next());
    first.is_some_and(|number| u64::from_str_radix(number, 16).is_ok_and(|count| count > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICES: &str = "\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
UDP  0A0C6401:0CEA rr \n  -> 0A0C0202:0CEA      Masq    1      0          0         
TCP  0A0C6401:0CEA rr \n  -> 0A0C0203:0CEA      Masq    1      0          0         
TCP  [fd00:000c:0064:0000:0000:0000:0000:0001]:0CEA rr 
  -> [fd00:000c:0002:0000:0000:0000:0000:0002]:0CEA      Masq    1      1          0         
";

    fn entry(service: &str, server: &str) -> IpvsEntry {
        let at = |text: &str| text.parse::<SocketAddr>().expect("an address");
        IpvsEntry {
            virtual_flow: Flow { src: at("10.12.1.2:40001"), dst: at(service) },
            server: at(server),
            state: "ESTABLISHED".into(),
            left_s: 897,
        }
    }

    fn v4() -> IpvsEntry {
        entry("10.12.100.1:3306", "10.12.2.2:3306")
    }

    fn v6() -> IpvsEntry {
        entry("[fd00:c:64::1]:3306", "[fd00:c:2::2]:3306")
    }

    #[test]
    fn a_server_is_gone_when_its_own_service_does_not_list_it() {
        let services = Services::parse(SERVICES);
        assert!(!services.has(&v4()), "only the UDP service of that address lists it");
        assert!(services.has(&v6()));
        assert!(!Services::parse("").has(&v6()));
    }

    #[test]
    fn an_entry_may_belong_to_any_firewall_mark_service() {
        let marked =
            format!("{SERVICES}FWM  00000001 rr \n  -> 0A0C0202:0CEA      Masq    1      0    0\n");
        assert!(Services::parse(&marked).has(&v4()));
    }

    #[test]
    fn a_table_that_never_had_a_connection_is_not_read() {
        let stats = |first: &str| {
            format!(
                "   Total Incoming Outgoing         Incoming         Outgoing\n   \
                 Conns  Packets  Packets            Bytes            Bytes\n       \
                 {first}        5        3              15C               FD\n"
            )
        };
        assert!(counts_connections(&stats("1F")));
        assert!(!counts_connections(&stats("0")) && !counts_connections(""));
    }
}
