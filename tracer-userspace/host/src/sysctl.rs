//! Reads `/proc/sys/net`, which shows the network namespace of the reading thread.

use std::{fs, str::FromStr};

use rsttrace_model::netns::TcpSysctls;

/// The single value in `/proc/sys/net/<name>`.
pub(super) fn value<T: FromStr>(name: &str) -> Option<T> {
    text(name)?.trim().parse().ok()
}

/// The value as a switch: the kernel takes every value except 0 as on.
pub(super) fn flag(name: &str) -> Option<bool> {
    value::<u32>(name).map(|v| v != 0)
}

fn text(name: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/sys/net/{name}")).ok()
}

/// The TCP sysctls. The units are in `Documentation/networking/ip-sysctl.rst` and in the field names.
pub(super) fn tcp() -> TcpSysctls {
    TcpSysctls {
        keepalive_time_s: value("ipv4/tcp_keepalive_time"),
        keepalive_intvl_s: value("ipv4/tcp_keepalive_intvl"),
        keepalive_probes: value("ipv4/tcp_keepalive_probes"),
        retries2: value("ipv4/tcp_retries2"),
        syn_retries: value("ipv4/tcp_syn_retries"),
        synack_retries: value("ipv4/tcp_synack_retries"),
        orphan_retries: value("ipv4/tcp_orphan_retries"),
        fin_timeout_s: value("ipv4/tcp_fin_timeout"),
        abort_on_overflow: flag("ipv4/tcp_abort_on_overflow"),
        syncookies: value("ipv4/tcp_syncookies"),
        max_syn_backlog: value("ipv4/tcp_max_syn_backlog"),
        tw_reuse: value("ipv4/tcp_tw_reuse"),
        max_orphans: value("ipv4/tcp_max_orphans"),
        somaxconn: value("core/somaxconn"),
        local_port_range: text("ipv4/ip_local_port_range").as_deref().and_then(port_range),
    }
}

fn port_range(text: &str) -> Option<(u16, u16)> {
    let mut ends = text.split_whitespace().map(str::parse);
    match (ends.next()?, ends.next()?, ends.next()) {
        (Ok(low), Ok(high), None) => Some((low, high)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_range_has_two_ends() {
        assert_eq!(port_range("32768\t60999\n"), Some((32768, 60999)));
    }

    #[test]
    fn a_malformed_port_range_is_unknown() {
        for text in ["", "32768", "32768 x", "1 2 3", "0 65536"] {
            assert_eq!(port_range(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_missing_sysctl_is_unknown() {
        assert_eq!(value::<u32>("ipv4/no_such_thing"), None);
        assert_eq!(flag("ipv4/no_such_thing"), None);
    }
}
