//! Resets and errors: how connections break.

use rsttrace_model::{
    errno::{ECONNREFUSED, ECONNRESET, EPIPE},
    flow::Flow,
    tcp_flag, tcp_state,
};
use serde::{Deserialize, Serialize};

use super::{Packet, Socket, SocketEnd, Stack, Task};

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
    pub fn has_no_matching_socket(&self) -> bool {
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
