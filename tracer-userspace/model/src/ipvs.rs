//! IP virtual server: settings, services and entries.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::flow::Flow;

pub use tracer_common::net::{IPPROTO_TCP, IPPROTO_UDP};

/// IP virtual server.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct IpvsState {
    /// Idle limit of an established connection (`ipvsadm --set`, first value), seconds.
    pub timeout_tcp_s: Option<u32>,
    /// Idle limit after a FIN (second value), seconds.
    pub timeout_tcpfin_s: Option<u32>,
    /// Idle limit of UDP (third value), seconds.
    pub timeout_udp_s: Option<u32>,
    /// `net.ipv4.vs.expire_nodest_conn`: a packet of a connection whose server was removed is answered at
    /// once.
    pub expire_nodest_conn: Option<bool>,
    /// `net.ipv4.vs.conntrack`: IPVS connections are tracked by netfilter too.
    pub conntrack: Option<bool>,
    /// `net.ipv4.vs.sloppy_tcp`: a connection may be made from any packet, not only a SYN.
    pub sloppy_tcp: Option<bool>,
    /// `net.ipv4.vs.conn_reuse_mode`: what a SYN to an old entry does (bit mask).
    pub conn_reuse_mode: Option<u32>,
    /// `net.ipv4.vs.drop_entry`: random eviction (0 off, 1 automatic, 2 now active, 3 always).
    pub drop_entry: Option<u32>,
    /// `net.ipv4.vs.secure_tcp`: shorter state timeouts (same scale as `drop_entry`).
    pub secure_tcp: Option<u32>,
    /// `net.ipv4.vs.conn_max` (7.2 on): the number of connections at which further SYNs are dropped.
    pub conn_max: Option<u32>,
    /// Current number of connections, of all protocols, templates included (7.2 on).
    pub conns: Option<u32>,
    /// Virtual services; `None` when netlink refused or failed, which is not the same as an empty list.
    pub services: Option<Vec<IpvsService>>,
}

/// One virtual service: an address and port, or a firewall mark.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpvsService {
    /// Unspecified (`0.0.0.0`, `::`) for a firewall mark.
    pub ip: IpAddr,
    pub port: u16,
    /// 0 unless the service is a firewall mark.
    pub fwmark: u32,
    /// IP protocol number: 6 TCP, 17 UDP, 132 SCTP; 0 for a firewall mark.
    pub protocol: u8,
    /// `rr`, `wlc`, … or `none`.
    pub scheduler: String,
    pub destinations: Vec<IpvsDestination>,
}

impl IpvsService {
    /// Whether this is the service for TCP connections to the address.
    #[must_use]
    pub fn is_tcp_at(&self, address: SocketAddr) -> bool {
        self.protocol == IPPROTO_TCP && (self.ip, self.port) == (address.ip(), address.port())
    }
}

/// A real server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpvsDestination {
    pub ip: IpAddr,
    pub port: u16,
    /// Share of new connections; a server with 0 gets none and keeps the old ones.
    pub weight: u32,
    /// `IP_VS_CONN_F_*`: 0 masquerading, which alone translates addresses, 2 tunnel, 3 direct routing.
    #[serde(default)]
    pub forward: u32,
}

/// One entry of the IPVS connection table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpvsEntry {
    /// Client to virtual service.
    pub virtual_flow: Flow,
    /// The real server of the connection.
    pub server: SocketAddr,
    /// The kernel's name, `ESTABLISHED`.
    pub state: String,
    /// Whole seconds until the entry expires unless another packet comes.
    pub left_s: u32,
}

impl IpvsEntry {
    /// Client to real server.
    pub fn real_flow(&self) -> Flow {
        Flow { src: self.virtual_flow.src, dst: self.server }
    }
}

/// The IPVS connection table of a namespace, or the requested part of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpvsTable {
    pub entries: Vec<IpvsEntry>,
    /// There are more entries.
    #[serde(default)]
    pub truncated: bool,
}

/// Whether IPVS translates addresses: `IP_VS_CONN_F_FWD_MASK` (7) is `IP_VS_CONN_F_MASQ` (0), as opposed
/// to tunnels and direct routing (include/uapi/linux/ip_vs.h).
pub fn masquerades(flags: u32) -> bool {
    flags & 7 == 0
}

/// The kernel's name for the state of an entry (net/netfilter/ipvs/ip_vs_proto_tcp.c).
pub fn state_name(state: u32) -> &'static str {
    const NAMES: [&str; 11] = [
        "NONE",
        "ESTABLISHED",
        "SYN_SENT",
        "SYN_RECV",
        "FIN_WAIT",
        "TIME_WAIT",
        "CLOSE",
        "CLOSE_WAIT",
        "LAST_ACK",
        "LISTEN",
        "SYNACK",
    ];
    usize::try_from(state).ok().and_then(|i| NAMES.get(i)).copied().unwrap_or("UNKNOWN")
}

/// Whether an entry in this state waits for the handshake: SYN_SENT, SYN_RECV or SYNACK
/// (net/netfilter/ipvs/ip_vs_proto_tcp.c). NONE is the state of a new entry.
pub fn is_half_open(state: u32) -> bool {
    matches!(state, 0 | 2 | 3 | 10)
}

/// The state of an IPVS entry with this kernel name.
pub fn state_by_name(name: &str) -> Option<u32> {
    (1..=10).find(|state| state_name(*state) == name)
}
