//! Ends of IPVS and conntrack entries, removed real servers, and packets that conntrack judged INVALID.

use std::net::SocketAddr;

use rsttrace_model::{
    flow::{Flow, Nanos},
    ipvs,
};
use serde::{Deserialize, Serialize};

use super::{Packet, RuleDrop, Stack, Task, has};

/// An IPVS entry ended although its connection was not closed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IpvsEnd {
    /// Client to virtual service.
    pub virtual_flow: Flow,
    /// Client to real server.
    pub real_flow: Flow,
    /// `IP_VS_TCP_S_*`.
    pub state: u32,
    pub flags: u32,
    pub timeout_s: f64,
    /// When the last packet re-armed the timer.
    pub last_packet: Option<Nanos>,
    pub forced: bool,
    /// The real server was no longer part of the service.
    #[serde(default)]
    pub server_gone: bool,
    /// `in_pkts`: packets of the client that this director forwarded; of a copy, at least the number that its
    /// synchronisation sets. `None` where unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets: Option<u32>,
    pub task: Task,
    pub stack: Stack,
}

impl IpvsEnd {
    /// Whether the client had sent its FIN. With direct routing and tunnels IPVS sees only the client's packets, so
    /// FIN_WAIT is the client's too (`tcp_states`, net/netfilter/ipvs/ip_vs_proto_tcp.c).
    pub fn client_had_closed(&self) -> bool {
        match ipvs::state_name(self.state) {
            "CLOSE_WAIT" | "LAST_ACK" => true,
            "FIN_WAIT" => !ipvs::masquerades(self.flags),
            _ => false,
        }
    }

    /// Whether the server had sent its FIN, as far as IPVS saw it.
    pub fn server_had_closed(&self) -> bool {
        ipvs::state_name(self.state) == "FIN_WAIT" && ipvs::masquerades(self.flags)
    }

    /// Whether the entry was a copy of another director's, and no packet of the connection came through this
    /// director since the last synchronisation.
    pub fn is_unused_copy(&self) -> bool {
        /// include/uapi/linux/ip_vs.h
        const IP_VS_CONN_F_SYNC: u32 = 0x20;
        /// net.ipv4.vs.sync_threshold (`ip_vs_proc_conn`, net/netfilter/ipvs/ip_vs_sync.c).
        const SYNC_THRESHOLD: u32 = 3;
        let used = self.packets.is_some_and(|packets| packets > SYNC_THRESHOLD);
        self.flags & IP_VS_CONN_F_SYNC != 0 && !used
    }
}

/// A real server was removed from an IPVS service, or the service was removed with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpvsServerRemoved {
    /// The virtual service; unspecified for a firewall mark.
    pub service: SocketAddr,
    pub server: SocketAddr,
    /// `IP_VS_CONN_F_*`
    #[serde(default)]
    pub flags: u32,
    /// The task that removed it.
    pub task: Task,
    #[serde(default)]
    pub stack: Stack,
}

/// What was removed together with a real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpvsRemoval {
    Server,
    Service,
    /// Every service of the namespace.
    Table,
}

impl IpvsServerRemoved {
    /// What was removed. Without function names only the server is known to be removed.
    pub fn removal(&self) -> IpvsRemoval {
        let by = |function: &str| has(&self.stack, function);
        if by("ip_vs_flush") {
            IpvsRemoval::Table
        } else if !by("ip_vs_del_dest")
            // The first function up to 6.18, the second in 7.2.
            && (by("ip_vs_unlink_service") || by("__ip_vs_del_service"))
        {
            IpvsRemoval::Service
        } else {
            IpvsRemoval::Server
        }
    }
}

/// A conntrack entry ended although its connection was open.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConntrackEnd {
    pub original: Flow,
    pub reply: Flow,
    pub status: u64,
    /// `TCP_CONNTRACK_*`.
    pub state: u32,
    /// When its timeout ran out, or would have run out.
    pub deadline: Nanos,
    /// Netlink port of the process that deleted the entry.
    pub portid: u32,
    pub zone: u32,
    pub task: Task,
    pub stack: Stack,
}

impl ConntrackEnd {
    /// `IPS_SRC_NAT | IPS_DST_NAT`: without NAT conntrack picks the connection up again, and the lost entry
    /// breaks nothing.
    pub fn is_nat(&self) -> bool {
        self.status & (1 << 4 | 1 << 5) != 0
    }
}

/// What the kernel keeps of a connection whose packet a rule answered, or which timed out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FilteredFlow {
    pub flow: Flow,
    /// Ends of its conntrack entries that translated nothing.
    pub ends: Vec<PlainEnd>,
    /// Every such end since this time is kept, of any connection; `None` where they are not traced.
    pub ends_since: Option<Nanos>,
    /// Its packets that netfilter dropped.
    pub drops: Vec<RuleDrop>,
}

/// The end of a conntrack entry that translated nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlainEnd {
    pub ts: Nanos,
    pub netns: u32,
    pub end: ConntrackEnd,
}

/// conntrack judged a packet of a translated connection INVALID, so the packet was forwarded untranslated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConntrackInvalid {
    /// Without translation, as a host then received it.
    pub packet: Packet,
    pub original: Flow,
    pub reply: Flow,
    /// `TCP_CONNTRACK_*`.
    pub state: u32,
}

/// A NAT chain, or the nat table of iptables, was removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatChainRemoved {
    /// `NFPROTO_IPV4` 2, `NFPROTO_IPV6` 10, `NFPROTO_INET` 1 (include/uapi/linux/netfilter.h).
    pub family: u32,
    /// The task that removed it.
    pub task: Task,
    #[serde(default)]
    pub stack: Stack,
}

impl NatChainRemoved {
    pub fn is_v6(&self) -> bool {
        self.family == 10
    }

    /// "IPv4" or "IPv6".
    pub fn family_name(&self) -> &'static str {
        if self.is_v6() { "IPv6" } else { "IPv4" }
    }
}
