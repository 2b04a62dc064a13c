//! The settings and the measured load of a host, as input for a plan.

use rsttrace_model::{
    host_state::{HostState, Netns},
    ipvs::IPPROTO_UDP,
    traffic::{Counters, Traffic},
};

use super::demand::InForce;

/// What was measured besides the settings. Rates are rounded up, and `None` if no counter was read twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// Between the first reading and the last, milliseconds.
    pub ms: u64,
    pub readings: usize,
    /// Namespaces whose counters were read twice.
    pub namespaces: usize,
    /// Connections that sockets of this host opened and accepted, per second.
    pub tcp_sockets: Option<u64>,
    /// Datagrams that sockets sent and received, per second.
    pub udp_datagrams: Option<u64>,
    /// Connections that IPVS scheduled.
    pub ipvs: Option<IpvsRates>,
    /// Established sockets, in the reading that had the fewest.
    pub connections: Option<u64>,
    /// Most conntrack entries in one namespace.
    pub peak: Option<u64>,
    /// Most conntrack entries in all namespaces together.
    pub entries: Option<u64>,
    pub local_ports: Option<u64>,
}

/// Connections per second that IPVS scheduled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpvsRates {
    /// By the protocol of the service; a service with a firewall mark counts as TCP.
    Apart { tcp: u64, udp: u64 },
    /// All protocols together, because the services could not be read by netlink.
    Together(u64),
}

impl Measured {
    /// From readings of the same host, the oldest first, the first and the last `ms` apart and with
    /// counters.
    pub fn of(readings: &[Vec<Traffic>], ms: u64) -> Self {
        let conntrack = |reading: &Vec<Traffic>| numbers(reading, |netns| netns.conntrack);
        let sums = |of: fn(&Traffic) -> Option<u64>| {
            let all = readings.iter().map(move |reading| numbers(reading, of));
            all.filter(|it| !it.is_empty()).map(|it| it.iter().sum::<u64>())
        };
        let (first, last) = (readings.first(), readings.last());
        // A namespace that was created or deleted meanwhile has no rate.
        let twice: Vec<(&Counters, &Counters)> = last
            .into_iter()
            .flatten()
            .filter_map(|now| {
                let then = first?.iter().find(|then| then.netns == now.netns)?;
                Some((&then.counters, &now.counters))
            })
            .collect();
        let rate = |grown: &dyn Fn(&Counters, &Counters) -> Option<u64>| {
            let grown: Vec<u64> = twice.iter().filter_map(|(then, now)| grown(then, now)).collect();
            let sum: u64 = grown.iter().sum();
            (!grown.is_empty()).then(|| sum.saturating_mul(1000).div_ceil(ms.max(1)))
        };
        let counter =
            |of: fn(&Counters) -> Option<u64>| rate(&|then, now| of(now)?.checked_sub(of(then)?));
        let scheduled = |is_udp: bool| {
            rate(&|then, now| {
                let (then, now) = (then.ipvs_services.as_ref()?, now.ipvs_services.as_ref()?);
                let grown = now
                    .iter()
                    .filter(|(key, _)| (key.protocol == IPPROTO_UDP) == is_udp)
                    // A new service has scheduled all its connections meanwhile.
                    .map(|(key, now)| since(then.get(key).copied().unwrap_or(0), *now));
                Some(grown.sum())
            })
        };
        let together = rate(&|then, now| {
            let low = |of: &Counters| u32::try_from(of.ipvs_conns?).ok();
            Some(since(low(then)?, low(now)?))
        });
        let ipvs = match (scheduled(false), scheduled(true)) {
            (Some(tcp), Some(udp)) => Some(IpvsRates::Apart { tcp, udp }),
            _ => together.map(IpvsRates::Together),
        };
        let initial = last.into_iter().flatten().next();
        Self {
            ms,
            readings: readings.len(),
            namespaces: twice.len(),
            tcp_sockets: counter(|it| it.tcp_opens),
            udp_datagrams: counter(|it| it.udp_datagrams),
            ipvs,
            connections: sums(|netns| netns.established).min(),
            peak: readings.iter().flat_map(conntrack).max(),
            entries: sums(|netns| netns.conntrack).max(),
            local_ports: initial.and_then(|it| it.counters.local_ports),
        }
    }

    /// New TCP connections per second. One through IPVS to a socket of this host is in both counts.
    pub fn cps(&self) -> u64 {
        let ipvs = match self.ipvs {
            Some(IpvsRates::Apart { tcp, .. }) => tcp,
            Some(IpvsRates::Together(all)) => all,
            None => 0,
        };
        self.tcp_sockets.unwrap_or(0).max(ipvs)
    }

    /// Conntrack entries of all namespaces; `None` if nothing is tracked, as without a rule that needs conntrack.
    pub fn tracked(&self) -> Option<u64> {
        self.entries.filter(|entries| *entries > 0)
    }

    /// The time before the end of the measurement in which every tracked UDP flow that began still has an
    /// entry, milliseconds.
    pub fn udp_window_ms(&self, udp_s: u64) -> u64 {
        self.ms.min(udp_s.saturating_mul(1000)).max(1)
    }

    /// New UDP flows per second of sockets and IPVS, at most. Each flow of a socket has a datagram, and each
    /// one that began in the window still has an entry. A flow through IPVS need not have an entry.
    pub fn udp(&self, udp_s: u64) -> Option<u64> {
        let room = |entries: u64| entries.saturating_mul(1000).div_ceil(self.udp_window_ms(udp_s));
        let room = self.tracked().map_or(u64::MAX, room);
        let sockets = self.udp_datagrams.map(|datagrams| datagrams.min(room));
        let ipvs = match self.ipvs {
            Some(IpvsRates::Apart { udp, .. }) => Some(udp),
            _ => None,
        };
        match (sockets, ipvs) {
            (None, None) => None,
            (sockets, ipvs) => Some(sockets.unwrap_or(0).saturating_add(ipvs.unwrap_or(0))),
        }
    }
}

/// The growth of a 32-bit counter; a counter that was zeroed meanwhile counts from 0.
fn since(then: u32, now: u32) -> u64 {
    let grown = now.wrapping_sub(then);
    u64::from(if grown > i32::MAX.unsigned_abs() { now } else { grown })
}

fn numbers(reading: &[Traffic], of: fn(&Traffic) -> Option<u64>) -> Vec<u64> {
    reading.iter().filter_map(of).collect()
}

impl InForce {
    /// The settings of a host. The conntrack timeouts are those of the namespace with the most conntrack
    /// entries, the IPVS values those of the namespace with IPVS services; all others are those of the initial
    /// namespace.
    pub fn of(state: &HostState, measured: &Measured) -> Self {
        let default = Self::default();
        let count = |netns: &&Netns| netns.values.number("net.netfilter.nf_conntrack_count");
        let initial = state.namespaces.first();
        let tracks =
            state.namespaces.iter().rev().filter(|it| count(it).is_some()).max_by_key(count);
        let balances = balancer(state);
        let of = |netns: Option<&Netns>, key: &str, otherwise| {
            netns.and_then(|netns| netns.values.number(key)).unwrap_or(otherwise)
        };
        let machine = |key| state.machine.values.number(key);
        let timeout = |name: &str, otherwise| {
            of(tracks, &format!("net.netfilter.nf_conntrack_{name}"), otherwise)
        };
        Self {
            max: machine("net.netfilter.nf_conntrack_max"),
            buckets: machine("net.netfilter.nf_conntrack_buckets"),
            peak: measured.peak,
            entries: measured.entries,
            established_s: timeout("tcp_timeout_established", default.established_s),
            time_wait_s: timeout("tcp_timeout_time_wait", default.time_wait_s),
            udp_s: timeout("udp_timeout", default.udp_s),
            ipvs_tcp_s: of(balances, "ipvs.tcp", default.ipvs_tcp_s),
            ipvs_udp_s: of(balances, "ipvs.udp", default.ipvs_udp_s),
            ipvs_peak: balances
                .and_then(|netns| netns.ipvs_table.as_ref())
                .and_then(|table| u64::try_from(table.entries.len()).ok()),
            ipvs_bits: machine("ip_vs.conn_tab_bits"),
            ipvs_max: balances.and_then(|it| it.values.number("net.ipv4.vs.conn_max")),
            keepalive_time_s: of(initial, "net.ipv4.tcp_keepalive_time", default.keepalive_time_s),
            keepalive_intvl_s: of(
                initial,
                "net.ipv4.tcp_keepalive_intvl",
                default.keepalive_intvl_s,
            ),
            keepalive_probes: of(
                initial,
                "net.ipv4.tcp_keepalive_probes",
                default.keepalive_probes,
            ),
            somaxconn: of(initial, "net.core.somaxconn", default.somaxconn),
            local_ports: measured.local_ports.unwrap_or(default.local_ports),
        }
    }
}

/// The first namespace that has IPVS services; the initial one is checked first.
pub fn balancer(state: &HostState) -> Option<&Netns> {
    let has = |netns: &&Netns| netns.services.as_ref().is_some_and(|list| !list.is_empty());
    state.namespaces.iter().find(has)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rsttrace_model::traffic::ServiceKey;

    fn traffic(netns: u32, conntrack: u64, opens: u64, ipvs: u64) -> Traffic {
        let counters =
            Counters { tcp_opens: Some(opens), ipvs_conns: Some(ipvs), ..Counters::default() };
        Traffic { netns, conntrack: Some(conntrack), counters, ..Traffic::default() }
    }

    fn over_10_s(before: Traffic, after: Traffic) -> Measured {
        Measured::of(&[vec![before], vec![after]], 10_000)
    }

    fn scheduled(conns: &[(u8, u16, u32)]) -> Traffic {
        let key =
            |protocol, port| ServiceKey { protocol, ip: [10, 96, 0, 10].into(), port, fwmark: 0 };
        let services = conns.iter().map(|(protocol, port, conns)| (key(*protocol, *port), *conns));
        let counters = Counters { ipvs_services: Some(services.collect()), ..Counters::default() };
        Traffic { counters, ..Traffic::default() }
    }

    #[test]
    fn ipvs_rates_are_by_protocol_and_services_may_be_added_removed_and_zeroed() {
        let before = scheduled(&[(6, 80, 100), (17, 53, u32::MAX), (6, 81, 9000), (17, 54, 5000)]);
        let after = scheduled(&[(6, 80, 120), (17, 53, 29), (17, 54, 70), (6, 82, 10)]);
        let measured = over_10_s(before, after);
        assert_eq!(measured.ipvs, Some(IpvsRates::Apart { tcp: 3, udp: 10 }));
        assert_eq!(measured.cps(), 3);
        assert_eq!(measured.udp(30), Some(10), "only IPVS has counted");
    }

    #[test]
    fn udp_flows_are_limited_by_datagrams_and_by_entries() {
        let with = |conntrack, datagrams| Traffic {
            conntrack,
            counters: Counters { udp_datagrams: Some(datagrams), ..Counters::default() },
            ..Traffic::default()
        };
        let udp = |entries| over_10_s(with(entries, 0), with(entries, 5000)).udp(8);
        assert_eq!([udp(None), udp(Some(0))], [Some(500); 2], "nothing is tracked");
        assert_eq!(udp(Some(60_000)), Some(500));
        assert_eq!(udp(Some(160)), Some(20), "a tunnel is one flow of many datagrams");
        let long = over_10_s(with(Some(160), 0), with(Some(160), 5000));
        assert_eq!(long.udp(30), Some(16), "flows that began before the sample are in no rate");
        assert_eq!(Measured::default().udp(30), None);
    }

    #[test]
    fn connections_that_stay_are_at_most_those_of_the_lowest_reading() {
        let with =
            |established| vec![Traffic { established: Some(established), ..Traffic::default() }; 2];
        let measured = Measured::of(&[with(20), with(15), with(30)], 1000);
        assert_eq!((measured.connections, measured.readings), (Some(30), 3));
    }

    #[test]
    fn rates_are_of_namespaces_read_twice_and_counters_may_wrap() {
        let before = vec![traffic(1, 10, 1000, u64::from(u32::MAX)), traffic(2, 5, 0, 0)];
        let after = vec![traffic(1, 12, 1015, 19), traffic(3, 1, 9999, 9999)];
        let measured = Measured::of(&[before, after], 10_000);
        assert_eq!(measured.cps(), 2, "1.5 by sockets, 2.0 by IPVS");
    }

    #[test]
    fn the_peak_is_that_of_one_namespace_in_any_reading() {
        let readings = [
            vec![traffic(1, 10, 0, 0), traffic(2, 70, 0, 0)],
            vec![traffic(1, 20, 0, 0), traffic(2, 30, 0, 0)],
        ];
        let measured = Measured::of(&readings, 1000);
        assert_eq!((measured.peak, measured.entries), (Some(70), Some(80)));
        assert_eq!(Measured::of(&[], 0), Measured::default());
    }
}
