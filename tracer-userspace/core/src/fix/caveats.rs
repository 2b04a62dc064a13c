//! What a change does not do: the part that is left out when one reads of a setting somewhere.

use super::change::{Change, Fix};

/// Key, or the beginning of several, and the sentence.
const CAVEATS: &[(&str, &str)] = &[
    (
        "ipvs.",
        "entries already idle keep their old timer until their next packet: those connections are \
         lost all the same (ip_vs_conn_put arms it, \
         net/netfilter/ipvs/ip_vs_conn.c)",
    ),
    (
        "net.netfilter.nf_conntrack_tcp_timeout_",
        "an entry keeps its deadline until its next packet (nf_ct_refresh_acct)",
    ),
    (
        "net.core.somaxconn",
        "a queue's size is fixed when listen() is called: restart the listener, with a backlog as large",
    ),
    (
        "net.ipv4.tcp_keepalive_",
        "it reaches only sockets that have SO_KEEPALIVE on and no time of their own, and a timer that \
         runs already keeps its deadline",
    ),
    (
        "net.ipv4.vs.expire_nodest_conn",
        "it does not keep the connections of a removed server: they are reset instead of hanging",
    ),
    (
        "net.netfilter.nf_conntrack_max",
        "it does not shrink what fills the table; each namespace may have as many entries",
    ),
    (
        "net.netfilter.nf_conntrack_buckets",
        "resizing moves every entry with all locks held: best off-peak on a full table",
    ),
    (
        "net.netfilter.nf_conntrack_tcp_be_liberal",
        "it does not cover a segment without an entry, nor an invalid state; only the window",
    ),
    (
        "net.ipv4.tcp_retries2",
        "it counts for data of established connections; SYNs have tcp_syn_retries",
    ),
    (
        "net.ipv4.tcp_max_orphans",
        "it does not end what makes the orphans; each may hold 64 KiB of memory",
    ),
];

impl Fix {
    /// What the changes do not do, in clauses.
    pub fn caveats(&self) -> Vec<&'static str> {
        let keys: Vec<_> =
            self.changes.iter().filter_map(Change::setting).map(|(it, _)| it.key).collect();
        let about =
            |(beginning, _): &&(&str, &str)| keys.iter().any(|key| key.starts_with(beginning));
        CAVEATS.iter().filter(about).map(|(_, sentence)| *sentence).collect()
    }
}
