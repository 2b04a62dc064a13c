//! The answers: plain data, no handles. `None` means "this kernel or our rights do not show it".

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::event::{Flow, Nanos};

/// How a person (or a printed command) enters a network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetnsReach {
    /// The namespace of pid 1: a root shell is already there.
    Initial,
    /// A name such as `/run/netns/blue`: `ip netns exec blue`.
    Named(String),
    /// Docker's own name, such as `/run/docker/netns/1f2e…`: `nsenter --net=PATH`.
    Docker(String),
    /// No name; the lowest pid that lives there: `nsenter --net --target PID`.
    Process(u32),
    /// It has neither name nor process (any more).
    #[default]
    Unknown,
}

/// One network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NetnsState {
    /// Inode number, as `readlink /proc/PID/ns/net` shows it.
    pub inum: u32,
    pub reach: NetnsReach,
    /// `None` while nf_conntrack is not loaded.
    pub conntrack: Option<ConntrackState>,
    /// `None` while ip_vs is not loaded.
    pub ipvs: Option<IpvsState>,
    pub tcp: TcpSysctls,
    pub counters: TcpCounters,
    /// Addresses on which TCP sockets listen; one that takes both families is there twice. `None`
    /// where the kernel does not list its sockets.
    pub listeners: Option<Vec<SocketAddr>>,
    /// It has rules for NAT. `None` where that cannot be told.
    pub translates: Option<bool>,
}

impl NetnsState {
    /// Whether a socket listens for connections to `address`. `None` where nobody can tell.
    pub fn listens(&self, address: SocketAddr) -> Option<bool> {
        let takes = |on: &SocketAddr| {
            on.port() == address.port()
                && on.is_ipv4() == address.is_ipv4()
                && (on.ip() == address.ip() || on.ip().is_unspecified())
        };
        Some(self.listeners.as_ref()?.iter().any(takes))
    }

    /// Takes over the listeners of an earlier reading: what broke a connection may have closed its
    /// listener, too.
    pub fn remember_listeners(&mut self, earlier: &Self) {
        let (Some(now), Some(then)) = (&mut self.listeners, &earlier.listeners) else {
            return;
        };
        for address in then {
            if now.len() < MOST_LISTENERS && !now.contains(address) {
                now.push(*address);
            }
        }
    }
}

/// Listening addresses kept of one namespace.
pub(super) const MOST_LISTENERS: usize = 1024;

/// Connection tracking: `/proc/sys/net/netfilter/nf_conntrack_*`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ConntrackState {
    /// Most entries *each* namespace may have; one value for the whole machine. Before 7.2,
    /// 0 means no limit.
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
    /// `net.ipv4.vs.expire_nodest_conn`: a connection whose server is gone is answered at once.
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
    /// `net.ipv4.vs.conn_max` (7.2 on): at so many connections further SYNs are dropped.
    pub conn_max: Option<u32>,
    /// Connections there are, of all protocols, templates included (7.2 on).
    pub conns: Option<u32>,
    /// Virtual services; `None` when netlink refused or failed, which is not the same as none.
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
    /// Whether TCP connections to this address are its own.
    #[must_use]
    pub fn is_tcp_at(&self, address: SocketAddr) -> bool {
        const TCP: u8 = 6;
        self.protocol == TCP && (self.ip, self.port) == (address.ip(), address.port())
    }
}

/// A real server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpvsDestination {
    pub ip: IpAddr,
    pub port: u16,
    /// Share of new connections; 0 takes none and keeps the old ones.
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
    /// The real server that it was given to.
    pub server: SocketAddr,
    /// The kernel's name, `ESTABLISHED`.
    pub state: String,
    /// Whole seconds until it ends unless another packet comes.
    pub left_s: u32,
}

impl IpvsEntry {
    /// Client to real server.
    pub fn real_flow(&self) -> Flow {
        Flow { src: self.virtual_flow.src, dst: self.server }
    }
}

/// The IPVS connection table of a namespace, or as much of it as was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpvsTable {
    pub entries: Vec<IpvsEntry>,
    /// There are more.
    #[serde(default)]
    pub truncated: bool,
}

/// One conntrack entry of a TCP connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConntrackEntry {
    /// As the first packet went.
    pub original: Flow,
    /// As the answers come: `original` reversed, unless there is NAT.
    pub reply: Flow,
    /// `TCP_CONNTRACK_*`.
    #[serde(default)]
    pub state: Option<u8>,
    /// Whole seconds until it expires unless another packet comes.
    #[serde(default)]
    pub left_s: Option<u32>,
}

/// TCP settings of a namespace: `/proc/sys/net/ipv4/tcp_*` (IPv6 uses them too).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TcpSysctls {
    pub keepalive_time_s: Option<u32>,
    pub keepalive_intvl_s: Option<u32>,
    pub keepalive_probes: Option<u32>,
    /// Retransmissions of data before the connection is given up.
    pub retries2: Option<u32>,
    pub syn_retries: Option<u32>,
    pub synack_retries: Option<u32>,
    /// Retries of a connection no process holds any more; 0 means 8.
    pub orphan_retries: Option<u32>,
    pub fin_timeout_s: Option<u32>,
    /// A full accept queue is answered with a reset instead of silence.
    pub abort_on_overflow: Option<bool>,
    /// 0 off, 1 when the SYN queue is full, 2 always.
    pub syncookies: Option<u32>,
    pub max_syn_backlog: Option<u32>,
    /// 0 off, 1 on, 2 loopback only.
    pub tw_reuse: Option<u32>,
    /// Machine-wide, and shown in the initial namespace only.
    pub max_orphans: Option<u32>,
    /// `net.core.somaxconn`: the cap on every accept queue.
    pub somaxconn: Option<u32>,
    /// `net.ipv4.ip_local_port_range`, both ends included.
    pub local_port_range: Option<(u16, u16)>,
}

/// Part of `TcpExt` in `/proc/net/netstat`: events since the namespace was made.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TcpCounters {
    pub listen_overflows: Option<u64>,
    pub listen_drops: Option<u64>,
    pub abort_on_close: Option<u64>,
    pub abort_on_data: Option<u64>,
    pub abort_on_linger: Option<u64>,
    pub abort_on_memory: Option<u64>,
    pub abort_on_timeout: Option<u64>,
    pub syncookies_failed: Option<u64>,
    pub embryonic_rsts: Option<u64>,
}

/// A list of sockets.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SocketList {
    pub sockets: Vec<SocketState>,
    /// There are more than were asked for.
    #[serde(default)]
    pub truncated: bool,
}

/// One TCP socket as the kernel lists it (`struct inet_diag_msg` and `struct tcp_info`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketState {
    /// Local side first; a mapped IPv4 address is IPv4. A listener's remote side is unspecified.
    pub flow: Flow,
    /// `tcp_state`.
    pub state: u8,
    /// 0 where no process holds it any more.
    pub inode: u64,
    pub uid: u32,
    /// The timer that runs, if one does.
    #[serde(default)]
    pub timer: Option<SocketTimer>,
    /// Retransmissions, keepalive or window probes without an answer, whichever timer runs.
    #[serde(default)]
    pub retransmits: u8,
    /// Bytes not read by the application; of a listener, connections in the accept queue.
    #[serde(default)]
    pub receive_queue: u32,
    /// Bytes not acknowledged; of a listener, the accept queue's limit.
    #[serde(default)]
    pub send_queue: u32,
    /// Absent for listeners and mini-sockets.
    #[serde(default)]
    pub ages: Option<SocketAges>,
    /// Payload, in order.
    #[serde(default)]
    pub bytes_received: Option<u64>,
    /// Payload that the peer has acknowledged; its SYN and FIN count as a byte each.
    #[serde(default)]
    pub bytes_acked: Option<u64>,
    /// IPV6_V6ONLY: a wildcard listener that takes no IPv4.
    #[serde(default)]
    pub v6_only: bool,
}

impl SocketState {
    /// How long before it was read the socket last heard from its peer, nanoseconds.
    pub fn heard_ns_before(&self) -> Option<Nanos> {
        let ages = self.ages?;
        Some(u64::from(ages.data_received_ms.min(ages.ack_received_ms)) * 1_000_000)
    }
}

/// How long ago a socket last sent or received, milliseconds. A socket that never did counts from
/// boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketAges {
    pub data_sent_ms: u32,
    pub data_received_ms: u32,
    /// Any acceptable segment, keepalive answers included.
    pub ack_received_ms: u32,
}

/// A socket's running timer and the time until it fires, milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketTimer {
    pub kind: TimerKind,
    pub left_ms: u32,
}

/// What a socket waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimerKind {
    Retransmit,
    /// The next keepalive probe, or the answer to the last one; in SYN_RECV and FIN_WAIT2 their end.
    Keepalive,
    TimeWait,
    ZeroWindow,
}

/// How a process came to be taken for a socket's owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OwnerBy {
    /// It holds the socket.
    #[default]
    Descriptor,
    /// It connected the socket; nobody held it any more when we looked.
    Connect,
    /// It closed the socket.
    Close,
    /// It listens where the connection was accepted; another process may have accepted it.
    Listener,
}

impl OwnerBy {
    /// The word in the output.
    pub fn id(self) -> &'static str {
        match self {
            Self::Descriptor => "descriptor",
            Self::Connect => "connect",
            Self::Close => "close",
            Self::Listener => "listener",
        }
    }
}

/// A Kubernetes pod, as far as the node's files tell it. Names have only the characters that
/// Kubernetes allows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// A UUID, or 32 hexadecimal digits for a static pod.
    pub uid: Option<String>,
    pub name: Option<String>,
    pub namespace: Option<String>,
}

/// The process that owns a socket. Names are its own choice: untrusted text.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Owner {
    pub pid: u32,
    /// `/proc/PID/comm`, at most 15 bytes, bad UTF-8 replaced.
    pub comm: String,
    /// Path of the program file.
    pub exe: Option<String>,
    /// Effective user id.
    pub uid: Option<u32>,
    /// Start of the process, nanoseconds of CLOCK_BOOTTIME (the kernel tells it in 10 ms steps).
    pub start_boottime_ns: Option<u64>,
    /// Control group path: version 2, or the memory or pids hierarchy of version 1.
    pub cgroup: Option<String>,
    /// 64 hexadecimal digits, as Docker, containerd, CRI-O and Podman put them into the path.
    pub container_id: Option<String>,
    pub pod: Option<Pod>,
    pub by: OwnerBy,
}
