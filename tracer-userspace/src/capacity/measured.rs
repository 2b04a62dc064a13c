//! What a host has and does now, in the terms of a plan.

use super::demand::InForce;
use crate::{
    audit::view::{Netns, View},
    host::Traffic,
};

/// What was measured, besides the settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// Connections that sockets here made and accepted, or IPVS scheduled, per second, rounded up.
    pub cps: u64,
    /// Most conntrack entries in one namespace.
    pub peak: Option<u64>,
    /// In all of them.
    pub entries: Option<u64>,
    pub local_ports: Option<u64>,
}

impl Measured {
    /// From readings of the same host, the oldest first, the first and the last `ms` apart.
    pub fn of(readings: &[Vec<Traffic>], ms: u64) -> Self {
        let counts = |reading: &Vec<Traffic>| -> Vec<u64> {
            reading.iter().filter_map(|netns| netns.conntrack).collect()
        };
        let (first, last) = (readings.first(), readings.last());
        let rate = |counter: fn(&Traffic) -> Option<u64>, wraps: u64| {
            // A namespace that came or went meanwhile has no rate.
            let grown = |now: &Traffic| {
                let then = first?.iter().find(|it| it.netns == now.netns)?;
                Some(counter(now)?.wrapping_sub(counter(then)?) & wraps)
            };
            let grown: u64 = last.into_iter().flatten().filter_map(grown).sum();
            grown.saturating_mul(1000).div_ceil(ms.max(1))
        };
        let (tcp, ipvs) =
            (rate(|it| it.tcp_opens, u64::MAX), rate(|it| it.ipvs_conns, u32::MAX.into()));
        let initial = last.into_iter().flatten().next();
        Self {
            // A connection through IPVS to a socket of this host is in both.
            cps: tcp.max(ipvs),
            peak: readings.iter().flat_map(counts).max(),
            entries: readings
                .iter()
                .map(counts)
                .filter(|it| !it.is_empty())
                .map(|it| it.iter().sum())
                .max(),
            local_ports: initial.and_then(|it| it.local_ports),
        }
    }
}

impl InForce {
    /// The settings of a host. Timeouts are those of the namespace that has the most conntrack entries,
    /// and of the one that has IPVS services; everything else is the initial namespace's.
    pub fn of(view: &View, measured: &Measured) -> Self {
        let default = Self::default();
        let count = |netns: &&Netns| netns.values.number("net.netfilter.nf_conntrack_count");
        let initial = view.namespaces.first();
        let tracks =
            view.namespaces.iter().rev().filter(|it| count(it).is_some()).max_by_key(count);
        let balances = balancer(view);
        let of = |netns: Option<&Netns>, key: &str, otherwise| {
            netns.and_then(|netns| netns.values.number(key)).unwrap_or(otherwise)
        };
        let machine = |key| view.machine.values.number(key);
        let timeout = |state: &str, otherwise| {
            of(tracks, &format!("net.netfilter.nf_conntrack_{state}"), otherwise)
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

/// The namespace that has IPVS services, the initial one first.
pub fn balancer(view: &View) -> Option<&Netns> {
    let has = |netns: &&Netns| netns.services.as_ref().is_some_and(|list| !list.is_empty());
    view.namespaces.iter().find(has)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traffic(netns: u32, conntrack: u64, opens: u64, ipvs: u64) -> Traffic {
        Traffic {
            netns,
            conntrack: Some(conntrack),
            tcp_opens: Some(opens),
            ipvs_conns: Some(ipvs),
            ..Traffic::default()
        }
    }

    #[test]
    fn rates_are_of_namespaces_seen_twice_and_counters_may_wrap() {
        let before = vec![traffic(1, 10, 1000, u64::from(u32::MAX)), traffic(2, 5, 0, 0)];
        let after = vec![traffic(1, 12, 1015, 19), traffic(3, 1, 9999, 9999)];
        let measured = Measured::of(&[before, after], 10_000);
        assert_eq!(measured.cps, 2, "1.5 by sockets, 2.0 by IPVS");
    }

    #[test]
    fn the_peak_is_of_one_namespace_and_of_any_reading() {
        let readings = [
            vec![traffic(1, 10, 0, 0), traffic(2, 70, 0, 0)],
            vec![traffic(1, 20, 0, 0), traffic(2, 30, 0, 0)],
        ];
        let measured = Measured::of(&readings, 1000);
        assert_eq!((measured.peak, measured.entries), (Some(70), Some(80)));
        assert_eq!(Measured::of(&[], 0), Measured::default());
    }
}
