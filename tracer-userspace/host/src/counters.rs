//! TCP event counters of a network namespace (`net/ipv4/proc.c`, `snmp4_net_list`).

use rsttrace_model::netns::TcpCounters;

/// Parses the text of `/proc/net/netstat`. Columns are found by name, because every release adds some.
pub(super) fn parse(netstat: &str) -> TcpCounters {
    let mut lines = netstat.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
    let names = lines.next().unwrap_or_default();
    let values = lines.next().unwrap_or_default();
    let counter = |name| {
        let column = names.split_whitespace().position(|n| n == name)?;
        values.split_whitespace().nth(column)?.parse().ok()
    };
    TcpCounters {
        listen_overflows: counter("ListenOverflows"),
        listen_drops: counter("ListenDrops"),
        abort_on_close: counter("TCPAbortOnClose"),
        abort_on_data: counter("TCPAbortOnData"),
        abort_on_linger: counter("TCPAbortOnLinger"),
        abort_on_memory: counter("TCPAbortOnMemory"),
        abort_on_timeout: counter("TCPAbortOnTimeout"),
        syncookies_failed: counter("SyncookiesFailed"),
        embryonic_rsts: counter("EmbryonicRsts"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_name_in_the_tcpext_pair() {
        let text = "\
TcpExt: SyncookiesSent SyncookiesFailed EmbryonicRsts ListenOverflows TCPAbortOnData
TcpExt: 1 2 3 18446744073709551615 5
IpExt: InNoRoutes ListenOverflows
IpExt: 7 8
";
        assert_eq!(
            parse(text),
            TcpCounters {
                syncookies_failed: Some(2),
                embryonic_rsts: Some(3),
                listen_overflows: Some(u64::MAX),
                abort_on_data: Some(5),
                ..TcpCounters::default()
            }
        );
    }

    #[test]
    fn truncated_text_is_unknown_not_wrong() {
        let nothing = TcpCounters::default();
        assert_eq!(parse(""), nothing);
        assert_eq!(parse("TcpExt: ListenOverflows\n"), nothing);
        assert_eq!(parse("TcpExt: A ListenOverflows\nTcpExt: 1\n"), nothing);
        assert_eq!(parse("TcpExt: ListenOverflows\nTcpExt: -1\n"), nothing);
    }
}
