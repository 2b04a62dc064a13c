//! Connection tracking: settings, counters and entries.

use serde::{Deserialize, Serialize};

use crate::flow::Flow;

/// Connection tracking: `/proc/sys/net/netfilter/nf_conntrack_*`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ConntrackState {
    /// The limit of entries for *each* namespace; one value for the whole machine. Before 7.2, 0 means no
    /// limit.
    pub max: Option<u32>,
    /// Entries in this namespace.
    pub count: Option<u32>,
    /// Hash table size; one table for the whole machine.
    pub buckets: Option<u32>,
    pub tcp_timeout: ConntrackTcpTimeouts,
    /// `tcp_be_liberal`: only a reset outside the window is INVALID.
    pub be_liberal: Option<bool>,
    /// `tcp_loose`: a connection may be picked up in mid-stream.
    pub loose: Option<bool>,
    /// `tcp_ignore_invalid_rst` (not in 5.10): a reset outside the window is not INVALID.
    pub ignore_invalid_rst: Option<bool>,
    /// `tcp_max_retrans`: retransmissions before `tcp_timeout.max_retrans_s` takes over.
    pub max_retrans: Option<u32>,
    pub stat: ConntrackStat,
}

/// `nf_conntrack_tcp_timeout_*`, seconds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ConntrackTcpTimeouts {
    pub syn_sent_s: Option<u32>,
    pub syn_recv_s: Option<u32>,
    pub established_s: Option<u32>,
    pub fin_wait_s: Option<u32>,
    pub close_wait_s: Option<u32>,
    pub last_ack_s: Option<u32>,
    pub time_wait_s: Option<u32>,
    pub close_s: Option<u32>,
    /// Replaces a longer timeout after `max_retrans` retransmissions.
    pub max_retrans_s: Option<u32>,
    /// Replaces a longer timeout while data waits for its acknowledgement.
    pub unacknowledged_s: Option<u32>,
}

/// Packets since the namespace was made, summed over CPUs: `/proc/net/stat/nf_conntrack`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ConntrackStat {
    /// Dropped because no entry could be made (table full, or a protocol error).
    pub drop: Option<u64>,
    /// Entries evicted to make room.
    pub early_drop: Option<u64>,
    /// Entries that clashed with another one on insertion.
    pub insert_failed: Option<u64>,
    /// Packets judged INVALID.
    pub invalid: Option<u64>,
    /// Dropped because a hash chain was too long (column `chainlength`, not in 5.10).
    pub chain_too_long: Option<u64>,
}

/// One conntrack entry of a TCP connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConntrackEntry {
    /// The tuple of the first packet.
    pub original: Flow,
    /// The tuple of the answers: `original` reversed, unless there is NAT.
    pub reply: Flow,
    /// `TCP_CONNTRACK_*`.
    #[serde(default)]
    pub state: Option<u8>,
    /// Whole seconds until it expires unless another packet comes.
    #[serde(default)]
    pub left_s: Option<u32>,
}

impl ConntrackEntry {
    /// Whether the entry translates addresses or ports.
    pub fn translates(&self) -> bool {
        self.reply != self.original.reversed()
    }
}

/// Whether an entry in this state waits for the handshake: NONE, SYN_SENT, SYN_RECV or SYN_SENT2
/// (include/uapi/linux/netfilter/nf_conntrack_tcp.h).
pub fn is_half_open(state: u32) -> bool {
    matches!(state, 0 | 1 | 2 | 9)
}

/// The kernel's name for a conntrack TCP state (nf_conntrack_proto_tcp.c).
pub fn state_name(state: u32) -> &'static str {
    const NAMES: [&str; 10] = [
        "NONE",
        "SYN_SENT",
        "SYN_RECV",
        "ESTABLISHED",
        "FIN_WAIT",
        "CLOSE_WAIT",
        "LAST_ACK",
        "TIME_WAIT",
        "CLOSE",
        "SYN_SENT2",
    ];
    usize::try_from(state).ok().and_then(|i| NAMES.get(i)).copied().unwrap_or("UNKNOWN")
}
