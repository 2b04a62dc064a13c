//! Payloads, one per `KIND_*`. Addresses are 16 bytes, IPv4 as `::ffff:a.b.c.d`; ports are in host
//! order; times called `*_j` are jiffies, truncated to `u32` where the kernel truncates them.

use crate::wire::Header;

/// One direction of a connection. For a socket, `src` is the local side.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Flow {
    pub src_addr: [u8; 16],
    pub dst_addr: [u8; 16],
    pub src_port: u16,
    pub dst_port: u16,
    pub pad: u32,
}

/// The task that was current when the hook ran. It is the closing task only if the stack shows that.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Task {
    pub tgid: u32,
    pub tid: u32,
    pub comm: [u8; 16],
    /// `task_struct.flags`; `PF_EXITING` is 0x4 (include/linux/sched.h).
    pub flags: u32,
    /// `task_struct.exit_code`: the signal in the low 7 bits, the exit status above 8.
    pub exit_code: u32,
}

/// Kernel return addresses, innermost first, 0 after the last.
pub const STACK_DEPTH: usize = 24;

/// See [`STACK_DEPTH`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Stack {
    pub frames: [u64; STACK_DEPTH],
}

/// The fields of a `struct sock` that can be read in its state.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Sock {
    /// Kernel address; 0 when there was no socket.
    pub id: u64,
    /// Inode of the `socket:[…]` a process holds; 0 for a socket without an owner.
    pub inode: u64,
    /// `skc_flags`: SOCK_DEAD is bit 0, SOCK_KEEPOPEN 3, SOCK_LINGER 4.
    pub flags: u64,
    pub bytes_received: u64,
    pub bytes_acked: u64,
    pub bytes_sent: u64,
    /// `sk_lingertime`, jiffies.
    pub lingertime_j: u64,
    pub flow: Flow,
    pub uid: u32,
    /// `sk_err` and `sk_err_soft`, positive errno.
    pub err: u32,
    pub err_soft: u32,
    /// Last ACK received, last data received, last data sent.
    pub rcv_tstamp_j: u32,
    pub lrcvtime_j: u32,
    pub lsndtime_j: u32,
    /// `icsk_user_timeout`, milliseconds.
    pub user_timeout_ms: u32,
    /// The socket's own keepalive times; 0 means the namespace's sysctl.
    pub keepalive_time_j: u32,
    pub keepalive_intvl_j: u32,
    /// The namespace's sysctls.
    pub sysctl_keepalive_time_j: u32,
    pub sysctl_keepalive_intvl_j: u32,
    pub packets_out: u32,
    pub snd_una: u32,
    pub snd_nxt: u32,
    pub rcv_nxt: u32,
    pub copied_seq: u32,
    pub snd_wnd: u32,
    pub total_retrans: u32,
    pub ack_backlog: u32,
    pub max_ack_backlog: u32,
    pub linger2: i32,
    /// `include/net/tcp_states.h`: ESTABLISHED 1 … NEW_SYN_RECV 12.
    pub state: u8,
    pub shutdown: u8,
    pub retransmits: u8,
    pub probes_out: u8,
    pub keepalive_probes: u8,
    pub sysctl_keepalive_probes: u8,
    pub sysctl_retries2: u8,
    /// The state a TIME_WAIT mini-socket stands for (FIN_WAIT2 5 or TIME_WAIT 6).
    pub tw_substate: u8,
    /// A listener's: when it last needed a SYN cookie, 0 for never.
    pub synq_overflow_j: u32,
}

/// A TCP packet, read from its headers.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Packet {
    pub flow: Flow,
    pub seq: u32,
    pub ack: u32,
    /// Payload bytes.
    pub payload: u32,
    /// TCP flags byte: FIN 1, SYN 2, RST 4, PSH 8, ACK 16.
    pub flags: u8,
    pub ttl: u8,
    /// 1 when the headers could be read.
    pub present: u8,
    pub pad: u8,
}

/// How the last socket with this tuple in this namespace left ESTABLISHED, from an LRU map in the kernel.
/// An orderly end is only stored there and emits no record.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SocketEnd {
    /// 0 when no end is stored.
    pub ts_ns: u64,
    pub task: Task,
    /// The stored transition, for example ESTABLISHED -> FIN_WAIT1.
    pub old_state: u8,
    pub new_state: u8,
    /// 1 when the socket was orphaned: no process held it (SOCK_DEAD).
    pub dead: u8,
    pub pad: u8,
    /// `sk_err`: the error it ended with, 0 for a close.
    pub err: u32,
    /// How long no payload had been sent or received when the socket left its state, jiffies.
    pub idle_j: u32,
    pub pad2: u32,
}

/// A process, with the data that distinguishes it from a later process with the same pid.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Opener {
    /// 0 when no process is stored.
    pub tgid: u32,
    /// The socket's remote port, host order.
    pub remote_port: u16,
    pub pad: u16,
    /// `start_boottime` of the thread group's leader, nanoseconds of CLOCK_BOOTTIME.
    pub start_ns: u64,
    /// `bpf_get_current_cgroup_id`: inode of its directory in the version 2 hierarchy.
    pub cgroup: u64,
    /// Name of the thread group's leader.
    pub comm: [u8; 16],
}

/// `via` of a [`ResetSent`]: the `tcp_send_reset` tracepoint.
pub const VIA_TRACEPOINT: u32 = 0;
/// `via`: `tcp_v4_send_reset` or `tcp_v6_send_reset`, for resets that the tracepoint omits.
pub const VIA_FUNCTION: u32 = 1;
/// `via`: `nf_send_reset` or `nf_send_reset6`, a firewall rule.
pub const VIA_NETFILTER: u32 = 2;

/// `KIND_RESET_SENT`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ResetSent {
    pub sock: Sock,
    /// The packet that is answered; absent when the reset is an active one.
    pub trigger: Packet,
    pub end: SocketEnd,
    pub task: Task,
    pub stack: Stack,
    /// `enum sk_rst_reason` of the running kernel, or ABSENT.
    pub reason: u32,
    pub via: u32,
    /// The process that connected `sock`.
    pub opener: Opener,
    /// With [`VIA_NETFILTER`], the conntrack entry of the packet that is answered: `ENTRY_*`.
    pub entry: u32,
    pub pad: u32,
}

/// `entry` of a packet: its conntrack entry could not be read.
pub const ENTRY_UNREADABLE: u32 = 0;
/// `entry`: the packet has none. It is not tracked, or INVALID.
pub const ENTRY_NONE: u32 = 1;
/// `entry`: the packet made it, so no entry of its connection existed. A rule sees `ct state new`.
pub const ENTRY_NEW: u32 = 2;
/// `entry`: it existed before the packet.
pub const ENTRY_EXISTED: u32 = 3;

/// `KIND_RESET_RECEIVED`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ResetReceived {
    pub sock: Sock,
    /// The reset itself; absent where `tcp_reset` has no packet or cannot be hooked.
    pub packet: Packet,
    /// The process that connected `sock`.
    pub opener: Opener,
}

/// `KIND_SOCKET_ERROR`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SocketError {
    pub sock: Sock,
    pub task: Task,
    pub stack: Stack,
    /// The process that connected `sock`.
    pub opener: Opener,
}

/// `KIND_IPVS_END`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct IpvsEnd {
    /// Client to virtual service.
    pub virtual_flow: Flow,
    /// Client to real server (the source is the client's: IPVS keeps it).
    pub real_flow: Flow,
    /// `ip_vs_conn.timeout`, a duration.
    pub timeout_j: u64,
    /// `ip_vs_conn.timer.expires`, the moment it was due.
    pub expires_j: u64,
    pub task: Task,
    pub stack: Stack,
    /// `IP_VS_CONN_F_*` (include/uapi/linux/ip_vs.h).
    pub flags: u32,
    /// `IP_VS_TCP_S_*`: ESTABLISHED 1 … SYNACK 10.
    pub state: u32,
    /// 1 when `ip_vs_conn_expire_now` had requested the end.
    pub forced: u32,
    /// 1 when its real server had been removed from the service (`IP_VS_DEST_F_AVAILABLE` is not set).
    pub server_gone: u32,
    /// `ip_vs_conn.in_pkts`, or ABSENT.
    pub packets: u32,
    pub pad: u32,
}

/// `KIND_IPVS_NO_SERVER`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct IpvsNoServer {
    /// The SYN.
    pub packet: Packet,
}

/// `KIND_IPVS_SERVER_REMOVED`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct IpvsServerRemoved {
    /// Virtual service (unspecified for a firewall mark) to real server.
    pub forward: Flow,
    /// The task that removed the server.
    pub task: Task,
    /// `ip_vs_dest.conn_flags`: `IP_VS_CONN_F_*`, the forwarding method in the low three bits.
    pub flags: u32,
    pub pad: u32,
    /// Shows whether one server was removed, or its service, or all services.
    pub stack: Stack,
}

/// `KIND_CONNTRACK_END`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ConntrackEnd {
    pub original: Flow,
    pub reply: Flow,
    /// `IPS_*` bits.
    pub status: u64,
    pub task: Task,
    pub stack: Stack,
    /// Deadline, jiffies truncated to 32 bits.
    pub timeout_j: u32,
    /// Netlink port of the process that deleted the entry; 0 for the kernel itself.
    pub portid: u32,
    /// `TCP_CONNTRACK_*`: ESTABLISHED 3.
    pub state: u32,
    /// Conntrack zone.
    pub zone: u32,
}

/// `KIND_CONNTRACK_INVALID` and `KIND_CONNTRACK_CLASH`: a packet and the entry it belongs to.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct TrackedPacket {
    /// As it was when conntrack checked it: before NAT for INVALID, after NAT for a clash.
    pub packet: Packet,
    pub original: Flow,
    pub reply: Flow,
    /// `IPS_*` bits.
    pub status: u64,
    /// `TCP_CONNTRACK_*`: ESTABLISHED 3.
    pub state: u32,
    /// Conntrack zone.
    pub zone: u32,
}

/// `via` of a [`NetfilterDrop`]: right after a failed `early_drop` on the same CPU.
pub const VIA_EARLY_DROP: u32 = 0;
/// `via`: any TCP packet dropped by netfilter, on kernels without kprobes.
pub const VIA_KFREE_SKB: u32 = 1;
/// `via`: a mid-stream packet for an IPVS service that has lost a real server.
pub const VIA_NO_DESTINATION: u32 = 2;

/// `KIND_NETFILTER_DROP`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct NetfilterDrop {
    pub packet: Packet,
    pub task: Task,
    pub via: u32,
    /// 1 when the packet had a conntrack entry.
    pub tracked: u32,
}

/// `KIND_RULE_REJECT`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RuleReject {
    /// As it was when it reached the rule: NAT may have changed it already.
    pub packet: Packet,
    pub stack: Stack,
    /// Both tuples of its conntrack entry, if that entry translates; zeros otherwise.
    pub original: Flow,
    pub reply: Flow,
    /// Its conntrack entry: `ENTRY_*`.
    pub entry: u32,
    pub pad: u32,
}

/// A slot of the `PLAIN_ENDS` map: the end of a conntrack entry that translated nothing, as the record that the ring
/// would carry.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PlainEnd {
    /// 0 while the slot is empty or being written; otherwise it grows with each end of this CPU.
    pub number: u64,
    pub header: Header,
    pub end: ConntrackEnd,
}

/// A value of the `RULE_DROPS` map, whose key is the flow of the packets.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RuleDrop {
    /// When netfilter dropped the first and the newest packet.
    pub first_ns: u64,
    pub last_ns: u64,
    pub count: u32,
    /// Namespace of the newest packet, like the rest.
    pub netns: u32,
    /// Its conntrack entry: `ENTRY_*`.
    pub entry: u32,
    pub pad: u32,
}

/// `KIND_NAT_CHAIN_REMOVED`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct NatChainRemoved {
    /// The task that removed it.
    pub task: Task,
    pub stack: Stack,
    /// `NFPROTO_IPV4` 2, `NFPROTO_IPV6` 10 (include/uapi/linux/netfilter.h).
    pub family: u32,
    pub pad: u32,
}

/// The reader and the writer must use the same sizes; a change is a new field at the end.
const _: () = {
    assert!(size_of::<Flow>() == 40);
    assert!(size_of::<Task>() == 32);
    assert!(size_of::<Stack>() == 192);
    assert!(size_of::<Sock>() == 192);
    assert!(size_of::<Packet>() == 56);
    assert!(size_of::<SocketEnd>() == 56);
    assert!(size_of::<Opener>() == 40);
    assert!(size_of::<ResetSent>() == 192 + 56 + 56 + 32 + 192 + 8 + 40 + 8);
    assert!(size_of::<ResetReceived>() == 192 + 56 + 40);
    assert!(size_of::<SocketError>() == 192 + 32 + 192 + 40);
    assert!(size_of::<IpvsEnd>() == 40 * 2 + 16 + 32 + 192 + 24);
    assert!(size_of::<IpvsNoServer>() == 56);
    assert!(size_of::<IpvsServerRemoved>() == 40 + 32 + 8 + 192);
    assert!(size_of::<ConntrackEnd>() == 40 * 2 + 8 + 32 + 192 + 16);
    assert!(size_of::<RuleReject>() == 56 + 192 + 40 * 2 + 8);
    assert!(size_of::<NetfilterDrop>() == 56 + 32 + 8);
    assert!(size_of::<TrackedPacket>() == 56 + 40 * 2 + 16);
    assert!(size_of::<PlainEnd>() == 8 + 32 + 328);
    assert!(size_of::<RuleDrop>() == 32);
    assert!(size_of::<NatChainRemoved>() == 32 + 192 + 8);
};
