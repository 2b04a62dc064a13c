//! Sockets, packets and tasks as a record shows them.

use rsttrace_model::{
    errno::ETIMEDOUT,
    flow::{Flow, Nanos},
    owner::Opener,
    socket::{Keepalive, SocketState},
};
use serde::{Deserialize, Serialize};

/// A socket at the moment of a record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Socket {
    /// Identity within one run: the kernel address.
    pub id: u64,
    /// The inode in `/proc/PID/fd` of the owner; 0 without an owner.
    pub inode: u64,
    pub flow: Flow,
    pub state: u8,
    /// For TIME_WAIT: the state that the mini-socket stands for.
    pub tw_substate: u8,
    /// Its application has closed it (SOCK_DEAD).
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
    /// The application has read up to the peer's FIN, so it knows that the peer sends no more data.
    #[serde(default)]
    pub read_end: bool,
    /// When the newest segment was received (data or ACK).
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
    /// Of a listener: when it last answered SYNs with cookies, to the second.
    #[serde(default)]
    pub cookies_sent: Option<Nanos>,
}

impl Socket {
    /// Whether it has the sequence numbers of a connection: neither a listener nor a mini-socket.
    pub fn is_connection(&self) -> bool {
        use rsttrace_model::tcp_state::{LISTEN, NEW_SYN_RECV, TIME_WAIT};
        !matches!(self.state, LISTEN | NEW_SYN_RECV | TIME_WAIT)
    }

    /// Whether it timed out and the peer's application never sent data. The peer may not even have accepted
    /// the connection.
    pub fn was_never_answered(&self) -> bool {
        self.err == ETIMEDOUT && self.bytes_received == 0
    }

    /// Whether neither side ever sent payload.
    pub fn never_used(&self) -> bool {
        self.bytes_received == 0 && self.bytes_sent == 0
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
    /// The signal that killed the task, if any.
    pub fn killed_by(&self) -> Option<u32> {
        let signal = self.exit_code & 0x7f;
        (self.exiting && signal != 0).then_some(signal)
    }

    /// How the task ended: "exited", "exited with status 1", "was killed by signal 9". `None` while the task
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

    /// Whether the task died by a signal or exited with a failure status.
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
    /// The task that closed the socket. Where `err` is set it is an unrelated task, because errors come in
    /// softirq.
    pub task: Task,
    /// The positive errno of the socket, 0 for a close.
    pub err: u32,
    pub old_state: u8,
    pub new_state: u8,
    /// How long neither side had sent payload before, seconds.
    #[serde(default)]
    pub idle_s: Option<f64>,
}

/// The recorded ends of sockets at both ends of a packet that was answered with a reset: of those that had the address
/// to which it was sent, in the same namespace, and of those whose peer had the address from which it came. NAT hides
/// the other address that such a socket knew.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EndedSockets {
    /// The packet that was answered with a reset.
    pub packet: Flow,
    pub ended: Vec<EndedSocket>,
}

/// See [`EndedSockets`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EndedSocket {
    pub netns: u32,
    pub flow: Flow,
    pub end: SocketEnd,
    /// A process still holds the socket: it was only shut for writing. `None` where the kernel does not list its
    /// sockets.
    pub held: Option<bool>,
}

/// The peer of a socket that received a reset, found on this host after the reset. The event has its namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerSocket {
    /// When it was found.
    pub read: Nanos,
    pub socket: SocketState,
}
