//! Entries and traffic counters of every network namespace, for a capacity plan. Two readings give a rate.

use std::fs;

use rsttrace_model::traffic::{Counters, Traffic};

use super::{Host, ipvs, sysctl};

impl Host {
    /// The entries of every namespace that we may enter, with or without its counters, which cost more to
    /// read.
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

/// Sums values of `/proc/net/snmp` (`net/ipv4/proc.c`): a line of names, then a line of values.
fn sum(snmp: &str, protocol: &str, of: &[&str]) -> Option<u64> {
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix(protocol));
    let (names, values) = (lines.next()?, lines.next()?);
    let value = |name: &&str| -> Option<u64> {
        let column = names.split_whitespace().position(|it| it == *name)?;
        values.split_whitespace().nth(column)?.parse().ok()
    };
    of.iter().map(value).try_fold(0_u64, |sum, value| sum.checked_add(value?))
}

/// Sums the UDP datagrams of `/proc/net/snmp6` (`net/ipv6/proc.c`): a name and a value in each line.
fn udp6(snmp6: &str) -> u64 {
    const NAMES: [&str; 4] = ["Udp6InDatagrams", "Udp6NoPorts", "Udp6InErrors", "Udp6OutDatagrams"];
    let value = |line: &str| -> Option<u64> {
        let mut words = line.split_whitespace();
        let name = words.next()?;
        NAMES.contains(&name).then(|| words.next()?.parse().ok())?
    };
    snmp6.lines().filter_map(value).fold(0, u64::saturating_add)
}

/// Connections in `/proc/net/ip_vs_stats` (`ip_vs_stats_show`): two lines of headings, then hexadecimal
/// totals.
fn ipvs_conns(stats: &str) -> Option<u64> {
    let total = stats.lines().nth(2)?.split_whitespace().next()?;
    u64::from_str_radix(total, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_are_found_by_name_in_any_column() {
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
    fn ipvs_counters_are_hexadecimal() {
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
