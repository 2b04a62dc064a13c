//! Events: what the correlator eats.
//!
//! An event is a decoded kernel record, or a piece of host state that the live loop read when a
//! record arrived. Verdicts are made from this stream and nothing else, so a recorded stream
//! replays to the same verdicts.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

mod stock;

pub use stock::{AcceptQueue, ConntrackFound, Inquiry, IpvsFound, Stock};

use crate::evidence::{ECONNREFUSED, ECONNRESET, EPIPE, ETIMEDOUT, has};
use crate::host::{IpvsEntry, NetnsState, Owner};

/// CLOCK_MONOTONIC nanoseconds.
pub type Nanos = u64;

/// One direction of a connection; for a socket `src` is the local side. IPv4-mapped IPv6 addresses
/// are IPv4 here, so that a mapped socket and the packets of its connection have the same key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Flow {
    pub src: SocketAddr,
    pub dst: SocketAddr,
}

impl Flow {
    pub fn reversed(self) -> Self {
        Self { src: self.dst, dst: self.src }
    }

    /// The same value for both directions.
    pub fn key(self) -> Self {
        if self.src <= self.dst { self } else { self.reversed() }
    }
}

impl std::fmt::Display for Flow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} -> {}", self.src, self.dst)
    }
}

/// TCP states as `include/net/tcp_states.h` numbers them.
pub mod tcp_state {
    pub const ESTABLISHED: u8 = 1;
    pub const SYN_SENT: u8 = 2;
    pub const SYN_RECV: u8 = 3;
    pub const FIN_WAIT1: u8 = 4;
    pub const FIN_WAIT2: u8 = 5;
    pub const TIME_WAIT: u8 = 6;
    pub const CLOSE: u8 = 7;
    pub const CLOSE_WAIT: u8 = 8;
    pub const LAST_ACK: u8 = 9;
    pub const LISTEN: u8 = 10;
    pub const CLOSING: u8 = 11;
    pub const NEW_SYN_RECV: u8 = 12;

    /// The kernel's name.
    pub fn name(state: u8) -> &'static str {
        const NAMES: [&str; 13] = [
            "NONE",
            "ESTABLISHED",
            "SYN_SENT",
            "SYN_RECV",
            "FIN_WAIT1",
            "FIN_WAIT2",
            "TIME_WAIT",
            "CLOSE",
            "CLOSE_WAIT",
            "LAST_ACK",
            "LISTEN",
            "CLOSING",
            "NEW_SYN_RECV",
        ];
        NAMES.get(usize::from(state)).copied().unwrap_or("UNKNOWN")
    }
}

/// TCP header flags.
pub mod tcp_flag {
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const ACK: u8 = 16;
}

/// Keepalive as it is in force for one socket.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Keepalive {
    /// SO_KEEPALIVE.
    pub enabled: bool,
    pub time_s: f64,
    pub intvl_s: f64,
    pub probes: u8,
    /// The time was set on the socket (TCP_KEEPIDLE), not taken from the namespace's sysctl.
    pub time_is_own: bool,
}

/// The process that connected a socket, as the kernel remembered it: it may have ended since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opener {
    pub pid: u32,
    /// Name of its main thread: untrusted text.
    pub comm: String,
    /// Start of the process, nanoseconds of CLOCK_BOOTTIME: another process of this pid has another.
    pub start_boottime_ns: u64,
    /// Inode of its directory in the version 2 control group hierarchy.
    pub cgroup: u64,
}

/// A socket at the moment of a record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Socket {
    /// Identity within one run; the kernel address.
    pub id: u64,
    /// Inode that its owner's `/proc/PID/fd` shows; 0 without an owner.
    pub inode: u64,
    pub flow: Flow,
    pub state: u8,
    /// For TIME_WAIT: the state it stands for.
    pub tw_substate: u8,
    /// Closed by its application.
    pub dead: bool,
    /// SO_LINGER with a timeout of 0.
    pub linger_zero: bool,
    /// TCP_LINGER2 below 0.
    pub linger2_negative: bool,
    pub err: u32,
    pub err_soft: u32,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    /// Received but not read by the application.
    pub unread: u32,
    /// The application has read up to the peer's FIN: it knows that no more will come.
    #[serde(default)]
    pub read_end: bool,
    /// Newest segment received (data or ACK).
    pub last_received: Option<Nanos>,
    pub last_sent: Option<Nanos>,
    pub keepalive: Keepalive,
    pub user_timeout_ms: u32,
    pub packets_out: u32,
    pub snd_una: u32,
    pub snd_nxt: u32,
    pub snd_wnd: u32,
    pub rcv_nxt: u32,
    pub retransmits: u8,
    pub probes_out: u8,
    pub retries2: u8,
    pub ack_backlog: u32,
    pub max_ack_backlog: u32,
    /// `None` for a socket that was accepted, or connected before tracing began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opener: Option<Opener>,
    /// A listener's: when it last answered SYNs with cookies, to the second.
    #[serde(default)]
    pub cookies_sent: Option<Nanos>,
}

impl Socket {
    /// Carries per-connection numbers: neither a listener nor a mini-socket.
    pub fn is_connection(&self) -> bool {
        use tcp_state::{LISTEN, NEW_SYN_RECV, TIME_WAIT};
        !matches!(self.state, LISTEN | NEW_SYN_RECV | TIME_WAIT)
    }

    /// It gave up, and its peer's application had never said anything: that may not even have accepted it.
    pub fn was_never_answered(&self) -> bool {
        self.err == ETIMEDOUT && self.bytes_received == 0
    }

    /// Neither side ever sent payload.
    pub fn never_used(&self) -> bool {
        self.bytes_received == 0 && self.bytes_sent == 0
    }
}

/// A TCP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packet {
    pub flow: Flow,
    pub seq: u32,
    pub ack: u32,
    pub payload: u32,
    pub flags: u8,
    pub ttl: u8,
}

impl Packet {
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Opens a connection.
    pub fn is_syn(&self) -> bool {
        self.has(tcp_flag::SYN) && !self.has(tcp_flag::ACK)
    }

    /// The sequence number after this segment: what an answer to it acknowledges.
    pub fn end(&self) -> u32 {
        let control = u32::from(self.has(tcp_flag::SYN)) + u32::from(self.has(tcp_flag::FIN));
        self.seq.wrapping_add(self.payload).wrapping_add(control)
    }
}

/// The task that was running.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    pub pid: u32,
    pub comm: String,
    /// PF_EXITING.
    pub exiting: bool,
    /// `exit_code`: signal in the low 7 bits, status from bit 8.
    pub exit_code: u32,
}

impl Task {
    /// The signal that killed it, if one did.
    pub fn killed_by(&self) -> Option<u32> {
        let signal = self.exit_code & 0x7f;
        (self.exiting && signal != 0).then_some(signal)
    }

    /// What became of it: "exited", "exited with status 1", "was killed by signal 9". `None` while it
    /// lives.
    pub fn ending(&self) -> Option<String> {
        let status = self.exit_code >> 8;
        match self.killed_by() {
            Some(signal) => Some(format!("was killed by signal {signal}")),
            None if !self.exiting => None,
            None if status == 0 => Some("exited".into()),
            None => Some(format!("exited with status {status}")),
        }
    }

    /// It died by a signal or ended with a failure status.
    pub fn died(&self) -> bool {
        self.exiting && self.exit_code != 0
    }
}

/// "nginx (pid 7)".
impl std::fmt::Display for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (pid {})", self.comm, self.pid)
    }
}

/// How the last socket with this tuple left ESTABLISHED.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SocketEnd {
    pub ts: Nanos,
    /// Who closed it; a bystander when `err` is set, because errors come in softirq.
    pub task: Task,
    /// The positive errno it ended with, 0 for a close.
    pub err: u32,
    pub old_state: u8,
    pub new_state: u8,
    /// How long no payload had gone either way by then.
    #[serde(default)]
    pub idle_s: Option<f64>,
}

/// Kernel function names, innermost first.
pub type Stack = Vec<Box<str>>;

/// Which hook saw a reset leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Via {
    Tracepoint,
    Function,
    Netfilter,
}

/// This host sends a reset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResetSent {
    pub socket: Option<Socket>,
    /// The packet it answers; `None` for an active reset.
    pub trigger: Option<Packet>,
    pub end: Option<SocketEnd>,
    pub task: Task,
    pub stack: Stack,
    /// The kernel's own name, `NO_SOCKET` for `SK_RST_REASON_NO_SOCKET`.
    pub reason: Option<Box<str>>,
    pub via: Via,
}

impl ResetSent {
    /// From the resetting side to the one that is reset.
    pub fn flow(&self) -> Option<Flow> {
        match (&self.trigger, &self.socket) {
            (Some(trigger), _) => Some(trigger.flow.reversed()),
            (None, Some(socket)) => Some(socket.flow),
            (None, None) => None,
        }
    }

    /// A stack that has no connection for a mid-stream packet answers it: no socket, or a listener that
    /// never had it.
    pub fn met_no_connection(&self) -> bool {
        let nobody = match &self.socket {
            None => true,
            Some(socket) => socket.state == tcp_state::LISTEN,
        };
        nobody
            && self.via != Via::Netfilter
            && self
                .trigger
                .is_some_and(|packet| packet.has(tcp_flag::ACK) && !packet.has(tcp_flag::SYN))
    }

    /// Sequence number of the reset, which NAT leaves alone. `None` where it is 0 by rule (an answer
    /// to a segment without ACK, RFC 9293 3.10.7.1).
    pub fn seq(&self) -> Option<u32> {
        match (&self.trigger, &self.socket) {
            (Some(trigger), _) => trigger.has(tcp_flag::ACK).then_some(trigger.ack),
            (None, Some(socket)) => Some(socket.snd_nxt),
            (None, None) => None,
        }
    }
}

/// A socket of this host accepts a reset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResetReceived {
    pub socket: Socket,
    pub packet: Option<Packet>,
}

impl ResetReceived {
    /// A reset is only accepted at `rcv_nxt` (RFC 5961 3.2), so that is its number where the packet
    /// itself was not readable.
    pub fn seq(&self) -> u32 {
        self.packet.map_or(self.socket.rcv_nxt, |packet| packet.seq)
    }

    /// The error that it gives the socket's application, if there is one (net/ipv4/tcp_input.c,
    /// `tcp_reset`). Said before that happens: on a busy host by a good while.
    pub fn errno(&self) -> Option<u32> {
        match self.socket.state {
            tcp_state::CLOSE => None,
            _ if self.socket.dead => None,
            tcp_state::SYN_SENT => Some(ECONNREFUSED),
            tcp_state::CLOSE_WAIT => Some(EPIPE),
            _ => Some(ECONNRESET),
        }
    }
}

/// A socket is given an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SocketError {
    pub socket: Socket,
    pub task: Task,
    pub stack: Stack,
}

/// An IPVS entry ended without having been closed.
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
    /// The last packet that re-armed the timer.
    pub last_packet: Option<Nanos>,
    pub forced: bool,
    /// Its real server was no longer part of the service.
    #[serde(default)]
    pub server_gone: bool,
    pub task: Task,
    pub stack: Stack,
}

/// A real server was taken out of an IPVS service, or went with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpvsServerRemoved {
    /// The virtual service; unspecified for a firewall mark.
    pub service: SocketAddr,
    pub server: SocketAddr,
    /// `IP_VS_CONN_F_*`
    #[serde(default)]
    pub flags: u32,
    /// Who removed it.
    pub task: Task,
    #[serde(default)]
    pub stack: Stack,
}

/// What was taken away with a real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpvsRemoval {
    Server,
    Service,
    /// Every service of the namespace.
    Table,
}

impl IpvsServerRemoved {
    /// Without the names of functions nothing but the server is known to be gone.
    pub fn removal(&self) -> IpvsRemoval {
        let by = |function: &str| has(&self.stack, function);
        if by("ip_vs_flush") {
            IpvsRemoval::Table
        } else if !by("ip_vs_del_dest")
            // The former up to 6.18, the latter in 7.2.
            && (by("ip_vs_unlink_service") || by("__ip_vs_del_service"))
        {
            IpvsRemoval::Service
        } else {
            IpvsRemoval::Server
        }
    }
}

/// Whether IPVS translates addresses: `IP_VS_CONN_F_FWD_MASK` (7) is `IP_VS_CONN_F_MASQ` (0), as opposed
/// to tunnels and direct routing (include/uapi/linux/ip_vs.h).
pub fn ipvs_masquerades(flags: u32) -> bool {
    flags & 7 == 0
}

/// A conntrack entry of a living connection ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConntrackEnd {
    pub original: Flow,
    pub reply: Flow,
    pub status: u64,
    /// `TCP_CONNTRACK_*`.
    pub state: u32,
    /// When its timeout ran out, or would have.
    pub deadline: Nanos,
    /// Netlink port of the deleter.
    pub portid: u32,
    pub zone: u32,
    pub task: Task,
    pub stack: Stack,
}

impl ConntrackEnd {
    /// `IPS_SRC_NAT | IPS_DST_NAT`: without NAT a lost entry is picked up again and breaks nothing.
    pub fn is_nat(&self) -> bool {
        self.status & (1 << 4 | 1 << 5) != 0
    }
}

/// netfilter, or IPVS on its hooks, dropped a TCP packet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetfilterDrop {
    pub packet: Packet,
    /// Seen right after `early_drop` found nothing to evict; otherwise any netfilter drop.
    pub table_full: bool,
    /// A SYN for which its IPVS service had no usable server.
    #[serde(default)]
    pub no_server: bool,
    /// For a service that has lost a real server: IPVS may have dropped it for want of that.
    #[serde(default)]
    pub no_destination: bool,
    /// The packet had a conntrack entry.
    pub tracked: bool,
    /// Its entry could not be inserted: the tuple that NAT chose, from its source to its destination,
    /// is another entry's. `packet` is then as its sender addressed it.
    #[serde(default)]
    pub clash: Option<Flow>,
    /// A rule answered it with an ICMP error, in these functions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejected: Option<Stack>,
    /// Its connection is translated, and a rule met it after that. `packet` is then as its sender
    /// addressed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat: Option<NatTuples>,
}

/// Both directions of a translated connection, each as its sender addresses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatTuples {
    pub original: Flow,
    pub reply: Flow,
}

impl NatTuples {
    /// How the sender of a packet that NAT has begun to change addressed it. `None` for a packet of
    /// another connection.
    pub fn as_sent(self, halfway: Flow) -> Option<Flow> {
        let Self { original, reply } = self;
        let goes = |from: Flow, to: Flow| {
            halfway.src == from.src && (halfway.dst == from.dst || halfway.dst == to.src)
        };
        if goes(original, reply) {
            Some(original)
        } else if goes(reply, original) {
            Some(reply)
        } else {
            None
        }
    }
}

/// conntrack judged a packet of a translated connection INVALID, so it went on untranslated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConntrackInvalid {
    /// Before NAT: as it then met a host.
    pub packet: Packet,
    pub original: Flow,
    pub reply: Flow,
    /// `TCP_CONNTRACK_*`.
    pub state: u32,
}

impl NetfilterDrop {
    /// Breaks its connection whatever comes after; a rule's drop may be meant, and shows in what it
    /// leads to.
    pub fn is_failure(&self) -> bool {
        self.table_full || self.no_server
    }
}

/// One signal's coverage, as the notices and `blind_spots` tell it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalCoverage {
    pub id: String,
    /// How it is seen; `None` when it is not.
    pub way: Option<String>,
    /// What stays invisible, in a sentence.
    pub blind: Option<String>,
    /// Its module was loaded a moment ago and its hooks are on their way.
    pub attaching: bool,
}

/// What is true for the whole run; the first event of every stream.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Session {
    pub boot_id: String,
    pub hostname: String,
    pub kernel: String,
    /// Inode of the initial network namespace.
    pub initial_netns: u32,
    /// The tracer's own process: what it looks up, the kernel may reap in its name. 0 when unknown.
    #[serde(default)]
    pub pid: u32,
    /// CLOCK_REALTIME minus CLOCK_MONOTONIC, nanoseconds.
    pub wall_offset_ns: i64,
    pub coverage: Vec<SignalCoverage>,
}

impl Session {
    /// Whether a signal is known not to be seen.
    pub fn lacks(&self, signal: &str) -> bool {
        self.coverage.iter().any(|s| s.id == signal && s.way.is_none())
    }

    /// What stays invisible; two signals with the same blind spot have one.
    pub fn blind_spots(&self) -> Vec<String> {
        let mut spots: Vec<String> = Vec::new();
        for spot in self.coverage.iter().filter_map(|signal| signal.blind.as_ref()) {
            if !spots.contains(spot) {
                spots.push(spot.clone());
            }
        }
        spots
    }

    /// What a timeout may be due to and this kernel's hooks do not show. Only where there are no kprobes is
    /// every dropped packet looked at.
    pub fn silent_drops(&self) -> Option<&'static str> {
        let looks_at_all = |signal: &SignalCoverage| {
            signal.way.as_ref().is_some_and(|way| way.contains("kfree_skb_netfilter"))
        };
        (!self.coverage.iter().any(looks_at_all)).then_some(
            "packets that a firewall rule of this host drops without an answer are not seen: a timeout does \
             not name the rule",
        )
    }

    /// Whether a signal's module is there and its hooks are not yet.
    pub fn is_attaching(&self, signal: &str) -> bool {
        self.coverage.iter().any(|s| s.id == signal && s.way.is_none() && s.attaching)
    }

    /// Whether a signal is covered without a gap.
    pub fn shows_all(&self, signal: &str) -> bool {
        self.coverage.iter().any(|s| s.id == signal && s.way.is_some() && s.blind.is_none())
    }

    /// Whether a signal is covered at all.
    pub fn covers(&self, signal: &str) -> bool {
        self.coverage.iter().any(|s| s.id == signal && s.way.is_some())
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Body {
    Session(Box<Session>),
    ResetSent(Box<ResetSent>),
    ResetReceived(Box<ResetReceived>),
    SocketError(Box<SocketError>),
    IpvsEnd(Box<IpvsEnd>),
    IpvsServerRemoved(Box<IpvsServerRemoved>),
    /// The IPVS entry of a connection that timed out: its real server is no longer part of its service.
    /// The time is the timeout's, the namespace the entry's.
    IpvsOrphan(Box<IpvsEntry>),
    ConntrackEnd(Box<ConntrackEnd>),
    NetfilterDrop(Box<NetfilterDrop>),
    ConntrackInvalid(Box<ConntrackInvalid>),
    /// State of a namespace, read because of a record.
    Netns(Box<NetnsState>),
    /// Who owns the socket with this inode.
    Owner {
        inode: u64,
        owner: Box<Owner>,
    },
    /// The process that has a pid which a record names.
    Process {
        /// When it started.
        started: Nanos,
        owner: Box<Owner>,
    },
    /// A connection to (or of) this service went on after a silence of at least so many seconds.
    Survived {
        service: SocketAddr,
        idle_s: f64,
    },
    /// What a namespace held when tracing began.
    Stock(Box<Stock>),
    /// What was there when a packet met a stack without its connection.
    Inquiry(Box<Inquiry>),
    /// The queue of a listener that did not answer.
    AcceptQueue(Box<AcceptQueue>),
    /// Records lost since the start, all kinds.
    Lost(u64),
    /// Everything up to the event's time is here, so cases that have settled by then are judged.
    Tick,
    /// A record of a newer writer.
    Unknown {
        kind: u16,
        len: u32,
    },
}

/// Something that happened at a time, in a namespace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    pub ts: Nanos,
    /// `net.ns.inum`; 0 when unknown.
    pub netns: u32,
    pub body: Body,
}
