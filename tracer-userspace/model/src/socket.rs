//! Sockets as the kernel lists them, and their options.

use serde::{Deserialize, Serialize};

use crate::{
    flow::{Flow, Nanos},
    owner::Owner,
    tcp_state,
};

/// The keepalive values in force for one socket.
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

/// A list of sockets.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SocketList {
    pub sockets: Vec<SocketState>,
    /// There are more sockets than requested.
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
    /// The running timer, if any.
    #[serde(default)]
    pub timer: Option<SocketTimer>,
    /// Retransmissions, keepalive probes or window probes without an answer, depending on the timer.
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
    /// How long before the reading the socket last received from its peer, nanoseconds.
    pub fn heard_ns_before(&self) -> Option<Nanos> {
        let ages = self.ages?;
        Some(u64::from(ages.data_received_ms.min(ages.ack_received_ms)) * 1_000_000)
    }

    /// Whether the socket may still carry data.
    pub fn lives(&self) -> bool {
        !matches!(self.state, tcp_state::TIME_WAIT | tcp_state::CLOSE | tcp_state::LISTEN)
    }

    /// Milliseconds until the next keepalive probe. In other states the keepalive timer ends the state.
    pub fn next_keepalive_ms(&self) -> Option<u64> {
        let open = matches!(self.state, tcp_state::ESTABLISHED | tcp_state::CLOSE_WAIT);
        let timer = self.timer.filter(|timer| open && timer.kind == TimerKind::Keepalive)?;
        Some(timer.left_ms.into())
    }
}

/// How long ago a socket last sent or received, milliseconds. For a socket that never did the kernel counts
/// from boot.
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

/// The event that a socket waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimerKind {
    Retransmit,
    /// The next keepalive probe, or the answer to the last one; in SYN_RECV and FIN_WAIT2 the end of the
    /// state.
    Keepalive,
    TimeWait,
    ZeroWindow,
}

/// A socket that a process holds.
#[derive(Debug, Clone, PartialEq)]
pub struct HeldSocket {
    pub owner: Owner,
    /// `None` where reading is not permitted, or enough other sockets were read.
    pub options: Option<SocketOptions>,
}

/// The options that apply when the peer does not answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SocketOptions {
    /// The times in force, whether set on the socket or taken from its namespace.
    pub keepalive: Keepalive,
    /// TCP_USER_TIMEOUT, milliseconds; 0 is off.
    pub user_timeout_ms: u32,
}
