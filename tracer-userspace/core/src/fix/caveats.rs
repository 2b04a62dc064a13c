//! Caveats of changes: what a setting does not do, which advice about it often leaves out.

use super::change::{Change, Fix};

/// A key, or the common prefix of several, and the caveat.
const CAVEATS: &[(&str, &str)] = &[
    (
        "ipvs.",
        "entries already idle keep their old timer until their next packet, so those connections \
         are still lost (ip_vs_conn_put arms the timer, net/netfilter/ipvs/ip_vs_conn.c)",
    ),
    (
        "net.netfilter.nf_conntrack_tcp_timeout_",
        "an entry keeps its deadline until its next packet (nf_ct_refresh_acct)",
    ),
    (
        "net.core.somaxconn",
        "a queue's size is fixed when listen() is called; restart the listener with a backlog as \
         large",
    ),
    (
        "net.ipv4.tcp_keepalive_",
        "this affects only sockets that have SO_KEEPALIVE on and no time of their own, and a timer \
         that is already running keeps its deadline",
    ),
    (
        "net.ipv4.vs.expire_nodest_conn",
        "this does not keep the connections of a removed server; they are reset instead of hanging",
    ),
    (
        "net.netfilter.nf_conntrack_max",
        "this does not reduce the number of entries; each namespace may have that many",
    ),
    (
        "net.netfilter.nf_conntrack_buckets",
        "resizing moves every entry with all locks held; resize a full table off-peak",
    ),
    (
        "net.netfilter.nf_conntrack_tcp_be_liberal",
        "this covers only the window, not a segment without an entry or an invalid state",
    ),
    (
        "net.ipv4.tcp_retries2",
        "this applies to data of established connections; SYNs have tcp_syn_retries",
    ),
    (
        "net.ipv4.tcp_max_orphans",
        "this does not stop what creates the orphans; each may hold 64 KiB of memory",
    ),
];

impl Fix {
    /// The caveats of the changes, as clauses.
    pub fn caveats(&self) -> Vec<&'static str> {
        let keys: Vec<_> = self
            .changes
            .iter()
            .filter_map(Change::setting)
            .map(|(setting, _)| setting.key)
            .collect();
        let about = |(prefix, _): &&(&str, &str)| keys.iter().any(|key| key.starts_with(prefix));
        CAVEATS.iter().filter(about).map(|(_, caveat)| *caveat).collect()
    }
}
