//! Connection tracking limits, timeouts and drop counters (`net/netfilter/nf_conntrack_standalone.c`).

use std::fs;

use rsttrace_model::conntrack::{ConntrackStat, ConntrackState, ConntrackTcpTimeouts};

use super::sysctl::{flag, value};

/// Reads the calling thread's network namespace; `None` while nf_conntrack is not loaded.
pub(super) fn read() -> Option<ConntrackState> {
    let max = value("netfilter/nf_conntrack_max");
    let count = value("netfilter/nf_conntrack_count");
    if max.is_none() && count.is_none() {
        return None;
    }
    Some(ConntrackState {
        max,
        count,
        buckets: value("netfilter/nf_conntrack_buckets"),
        tcp_timeout: tcp_timeouts(),
        be_liberal: flag("netfilter/nf_conntrack_tcp_be_liberal"),
        loose: flag("netfilter/nf_conntrack_tcp_loose"),
        ignore_invalid_rst: flag("netfilter/nf_conntrack_tcp_ignore_invalid_rst"),
        max_retrans: value("netfilter/nf_conntrack_tcp_max_retrans"),
        stat: fs::read_to_string("/proc/thread-self/net/stat/nf_conntrack")
            .map(|text| parse_stat(&text))
            .unwrap_or_default(),
    })
}

fn tcp_timeouts() -> ConntrackTcpTimeouts {
    let seconds = |state| value(&format!("netfilter/nf_conntrack_tcp_timeout_{state}"));
    ConntrackTcpTimeouts {
        syn_sent_s: seconds("syn_sent"),
        syn_recv_s: seconds("syn_recv"),
        established_s: seconds("established"),
        fin_wait_s: seconds("fin_wait"),
        close_wait_s: seconds("close_wait"),
        last_ack_s: seconds("last_ack"),
        time_wait_s: seconds("time_wait"),
        close_s: seconds("close"),
        max_retrans_s: seconds("max_retrans"),
        unacknowledged_s: seconds("unacknowledged"),
    }
}

/// A header line, then one line of hexadecimal numbers per CPU. Columns changed their meaning between
/// releases (`delete_list` became `chainlength`), so columns are found by name.
pub(super) fn parse_stat(text: &str) -> ConntrackStat {
    let mut lines = text.lines();
    let names = lines.next().unwrap_or_default();
    let cpus: Vec<&str> = lines.collect();
    let total = |name| {
        let column = names.split_whitespace().position(|n| n == name)?;
        let of_cpu = |line: &&str| {
            let number = line.split_whitespace().nth(column)?;
            u64::from_str_radix(number, 16).ok()
        };
        // A sum without an unreadable line would be wrong.
        let counts: Option<Vec<u64>> = cpus.iter().map(of_cpu).collect();
        let counts = counts.filter(|counts| !counts.is_empty())?;
        Some(counts.into_iter().fold(0, u64::saturating_add))
    };
    ConntrackStat {
        drop: total("drop"),
        early_drop: total("early_drop"),
        insert_failed: total("insert_failed"),
        invalid: total("invalid"),
        chain_too_long: total("chainlength"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINUX_6_1: &str = "\
entries  clashres found new invalid ignore delete chainlength insert insert_failed drop early_drop icmp_error  expect_new expect_create expect_delete search_restart
000000ff  00000000 00000000 00000000 00000010 00000000 00000000 00000001 00000000 00000002 00000003 00000004 00000000  00000000 00000000 00000000 00000000
000000ff  00000000 00000000 00000000 0000000a 00000000 00000000 00000000 00000000 00000000 ffffffff 00000000 00000000  00000000 00000000 00000000 00000000
";

    #[test]
    fn counts_are_hexadecimal_and_summed_over_cpus() {
        assert_eq!(
            parse_stat(LINUX_6_1),
            ConntrackStat {
                drop: Some(0x1_0000_0002),
                early_drop: Some(4),
                insert_failed: Some(2),
                invalid: Some(0x1a),
                chain_too_long: Some(1),
            }
        );
    }

    #[test]
    fn the_older_delete_list_column_is_not_read_as_chain_lengths() {
        let linux_5_10 = LINUX_6_1.replace("chainlength", "delete_list");
        let stat = parse_stat(&linux_5_10);
        assert_eq!(stat.chain_too_long, None);
        assert_eq!(stat.invalid, Some(0x1a));
    }

    #[test]
    fn a_truncated_line_is_unknown_not_a_smaller_sum() {
        let cut = &LINUX_6_1[..LINUX_6_1.len() - 100];
        let stat = parse_stat(cut);
        assert_eq!(stat.drop, None);
        assert_eq!(stat.invalid, Some(0x1a));
    }

    #[test]
    fn no_cpu_lines_is_unknown_not_zero() {
        assert_eq!(parse_stat("entries drop\n"), ConntrackStat::default());
        assert_eq!(parse_stat(""), ConntrackStat::default());
    }
}
