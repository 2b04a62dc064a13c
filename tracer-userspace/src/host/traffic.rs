//! Counters of every namespace that a capacity plan starts from: two readings make a rate.

use std::fs;

use super::state::NetnsReach;
use super::{Host, sysctl};

/// The counters of one namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Traffic {
    pub netns: u32,
    pub reach: NetnsReach,
    /// `nf_conntrack_count`
    pub conntrack: Option<u64>,
    /// TCP connections made and accepted by sockets since the namespace was made (`ActiveOpens` and
    /// `PassiveOpens`); those that are only forwarded are in no counter.
    pub tcp_opens: Option<u64>,
    /// Connections that IPVS has scheduled; it counts in 32 bits.
    pub ipvs_conns: Option<u64>,
    /// Ports of `ip_local_port_range`.
    pub local_ports: Option<u64>,
}

impl Host {
    /// The counters of every namespace that we may enter.
    #[must_use]
    pub fn traffic(&self) -> Vec<Traffic> {
        let read = self.everywhere(traffic_here).into_iter();
        read.filter_map(|(netns, reach, traffic)| Some(Traffic { netns, reach, ..traffic.ok()? }))
            .collect()
    }
}

fn traffic_here() -> Traffic {
    let net = |file: &str| fs::read_to_string(format!("/proc/thread-self/net/{file}")).ok();
    Traffic {
        conntrack: sysctl::value("netfilter/nf_conntrack_count"),
        tcp_opens: net("snmp").as_deref().and_then(tcp_opens),
        ipvs_conns: net("ip_vs_stats").as_deref().and_then(ipvs_conns),
        local_ports: sysctl::tcp()
            .local_port_range
            .map(|(low, high)| u64::from(high.saturating_sub(low)) + 1),
        ..Traffic::default()
    }
}

/// `net/ipv4/proc.c`: a line of names, a line of values.
fn tcp_opens(snmp: &str) -> Option<u64> {
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Tcp:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let value = |name| -> Option<u64> {
        let column = names.split_whitespace().position(|it| it == name)?;
        values.split_whitespace().nth(column)?.parse().ok()
    };
    value("ActiveOpens")?.checked_add(value("PassiveOpens")?)
}

/// `ip_vs_stats_show`: two lines of headings, then totals in hexadecimal.
fn ipvs_conns(stats: &str) -> Option<u64> {
    let total = stats.lines().nth(2)?.split_whitespace().next()?;
    u64::from_str_radix(total, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_are_found_by_name_whatever_stands_between() {
        let text = "Tcp: RtoMin ActiveOpens X PassiveOpens\nTcp: 200 7 -1 5\n";
        assert_eq!(tcp_opens(text), Some(12));
        for cut in ["", "Tcp: ActiveOpens PassiveOpens\n", "Tcp: ActiveOpens\nTcp: 7\n"] {
            assert_eq!(tcp_opens(cut), None, "{cut}");
        }
    }

    #[test]
    fn ipvs_counts_in_hexadecimal() {
        let text = "   Total Incoming\n   Conns  Packets\n      1F        0        0\n\n Conns/s\n";
        assert_eq!(ipvs_conns(text), Some(31));
        assert_eq!(ipvs_conns("   Total\n   Conns\n"), None);
    }

    #[test]
    fn our_own_namespace_has_counters() {
        let host = Host::new().expect("proc is mounted");
        let traffic = host.traffic();
        let own = traffic.iter().find(|it| it.netns == host.own).expect("our own");
        assert!(own.tcp_opens.is_some() && own.local_ports.is_some());
    }
}
