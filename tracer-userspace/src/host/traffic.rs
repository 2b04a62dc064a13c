//! What every namespace holds, and counters of what it did, from which a capacity plan starts: two
//! readings make a rate.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;

use super::state::NetnsReach;
use super::{Host, ipvs, sysctl};

/// One namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Traffic {
    pub netns: u32,
    pub reach: NetnsReach,
    /// `nf_conntrack_count`
    pub conntrack: Option<u64>,
    /// Its TCP sockets in ESTABLISHED or CLOSE_WAIT (`CurrEstab`).
    pub established: Option<u64>,
    /// Where they were asked for.
    pub counters: Counters,
}

/// Counters since the namespace was made. Packets that are only forwarded are in none of them but IPVS's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counters {
    /// TCP connections made and accepted by sockets (`ActiveOpens` and `PassiveOpens`).
    pub tcp_opens: Option<u64>,
    /// UDP datagrams that sockets sent and that came for one, delivered or not, of IPv4 and IPv6.
    pub udp_datagrams: Option<u64>,
    /// Connections that IPVS has scheduled, of all protocols; it counts in 32 bits.
    pub ipvs_conns: Option<u64>,
    /// The same by service, where we may ask.
    pub ipvs_services: Option<BTreeMap<ServiceKey, u32>>,
    /// Ports of `ip_local_port_range`.
    pub local_ports: Option<u64>,
}

/// Which IPVS service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceKey {
    /// 0 where a firewall mark selects it: it takes any.
    pub protocol: u8,
    pub ip: IpAddr,
    pub port: u16,
    pub fwmark: u32,
}

impl Host {
    /// What every namespace that we may enter holds, with its counters or without: these cost more.
    #[must_use]
    pub fn traffic(&self, with_counters: bool) -> Vec<Traffic> {
        let read = self.everywhere(|| traffic_here(with_counters)).into_iter();
        read.filter_map(|(netns, reach, traffic)| Some(Traffic { netns, reach, ..traffic.ok()? }))
            .collect()
    }
}

fn net(file: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/thread-self/net/{file}")).ok()
}

fn traffic_here(with_counters: bool) -> Traffic {
    let snmp = net("snmp").unwrap_or_default();
    Traffic {
        conntrack: sysctl::value("netfilter/nf_conntrack_count"),
        established: sum(&snmp, "Tcp:", &["CurrEstab"]),
        counters: if with_counters { counters_here(&snmp) } else { Counters::default() },
        ..Traffic::default()
    }
}

fn counters_here(snmp: &str) -> Counters {
    let udp4 = sum(snmp, "Udp:", &["InDatagrams", "NoPorts", "InErrors", "OutDatagrams"]);
    // A kernel without IPv6 has no such file.
    let udp6 = net("snmp6").as_deref().map_or(0, udp6);
    Counters {
        tcp_opens: sum(snmp, "Tcp:", &["ActiveOpens", "PassiveOpens"]),
        udp_datagrams: udp4.and_then(|udp4| udp4.checked_add(udp6)),
        ipvs_conns: net("ip_vs_stats").as_deref().and_then(ipvs_conns),
        ipvs_services: ipvs::scheduled(),
        local_ports: sysctl::tcp()
            .local_port_range
            .map(|(low, high)| u64::from(high.saturating_sub(low)) + 1),
    }
}

/// `net/ipv4/proc.c`: a line of names, a line of values.
fn sum(snmp: &str, protocol: &str, of: &[&str]) -> Option<u64> {
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix(protocol));
    let (names, values) = (lines.next()?, lines.next()?);
    let value = |name: &&str| -> Option<u64> {
        let column = names.split_whitespace().position(|it| it == *name)?;
        values.split_whitespace().nth(column)?.parse().ok()
    };
    of.iter().map(value).try_fold(0_u64, |sum, value| sum.checked_add(value?))
}

/// `net/ipv6/proc.c`: a name and a value in each line.
fn udp6(snmp6: &str) -> u64 {
    const NAMES: [&str; 4] = ["Udp6InDatagrams", "Udp6NoPorts", "Udp6InErrors", "Udp6OutDatagrams"];
    let value = |line: &str| -> Option<u64> {
        let mut words = line.split_whitespace();
        let name = words.next()?;
        NAMES.contains(&name).then(|| words.next()?.parse().ok())?
    };
    snmp6.lines().filter_map(value).fold(0, u64::saturating_add)
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
        let opens = |text| sum(text, "Tcp:", &["ActiveOpens", "PassiveOpens"]);
        assert_eq!(opens(text), Some(12));
        for cut in ["", "Tcp: ActiveOpens PassiveOpens\n", "Tcp: ActiveOpens\nTcp: 7\n"] {
            assert_eq!(opens(cut), None, "{cut}");
        }
    }

    #[test]
    fn datagrams_of_both_versions_count_and_those_of_udp_lite_do_not() {
        assert_eq!(udp6("Udp6InDatagrams\t7\nUdpLite6InDatagrams\t9\nUdp6OutDatagrams x\n"), 7);
        let text = "UdpLite: InDatagrams\nUdpLite: 9\nUdp: InDatagrams\nUdp: 3\n";
        assert_eq!(sum(text, "Udp:", &["InDatagrams"]), Some(3));
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
        let own = |counters| {
            host.traffic(counters).into_iter().find(|it| it.netns == host.own).expect("our own")
        };
        let all = own(true);
        assert!(all.established.is_some() && all.counters.local_ports.is_some());
        assert!(all.counters.tcp_opens.is_some() && all.counters.udp_datagrams.is_some());
        assert_eq!(own(false).counters, Counters::default());
    }
}
