//! Resets and socket errors: how connections break.

use rsttrace_model::{
    errno::{ECONNREFUSED, ECONNRESET, EPIPE},
    flow::Flow,
    tcp_flag, tcp_state,
};
use serde::{Deserialize, Serialize};

use super::{Packet, PacketEntry, Socket, SocketEnd, Stack, Task};

/// The hook that recorded a sent reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Via {
    Tracepoint,
    Function,
    Netfilter,
}

/// This host sent a reset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResetSent {
    pub socket: Option<Socket>,
    /// The packet that the reset answers; `None` for an active reset.
    pub trigger: Option<Packet>,
    pub end: Option<SocketEnd>,
    pub task: Task,
    pub stack: Stack,
    /// The kernel's name for the reason, such as `NO_SOCKET` for `SK_RST_REASON_NO_SOCKET`.
    pub reason: Option<Box<str>>,
    pub via: Via,
    /// Of a rule's reset: the conntrack entry of the packet that is answered.
    #[serde(default, skip_serializing_if = "PacketEntry::is_unknown")]
    pub entry: PacketEntry,
}

impl ResetSent {
    /// From the side that sent the reset to the side that receives it.
    pub fn flow(&self) -> Option<Flow> {
        match (&self.trigger, &self.socket) {
            (Some(trigger), _) => Some(trigger.flow.reversed()),
            (None, Some(socket)) => Some(socket.flow),
            (None, None) => None,
        }
    }

    /// Whether a reset left at all. A reject rule that meets a reset answers nothing (`nf_send_reset`,
    /// net/ipv4/netfilter/nf_reject_ipv4.c); the hook on that function sees the packet nevertheless.
    pub fn was_sent(&self) -> bool {
        let answers_reset = self.trigger.is_some_and(|packet| packet.has(tcp_flag::RST));
        !(self.via == Via::Netfilter && answers_reset)
    }

    /// Whether the reset answers a mid-stream packet for which the TCP stack has no connection: it has no
    /// socket, or a listener that never had the connection.
    pub fn has_no_matching_socket(&self) -> bool {
        let has_no_connection = match &self.socket {
            None => true,
            Some(socket) => socket.state == tcp_state::LISTEN,
        };
        has_no_connection
            && self.via != Via::Netfilter
            && self
                .trigger
                .is_some_and(|packet| packet.has(tcp_flag::ACK) && !packet.has(tcp_flag::SYN))
    }

    /// Sequence number of the reset, which NAT does not change. `None` where the RFC requires 0 (an answer to
    /// a segment without ACK, RFC 9293 3.10.7.1).
    pub fn seq(&self) -> Option<u32> {
        match (&self.trigger, &self.socket) {
            (Some(trigger), _) => trigger.has(tcp_flag::ACK).then_some(trigger.ack),
            (None, Some(socket)) => Some(socket.snd_nxt),
            (None, None) => None,
        }
    }
}

/// A socket of this host accepted a reset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResetReceived {
    pub socket: Socket,
    pub packet: Option<Packet>,
}

impl ResetReceived {
    /// Sequence number of the reset. Where the packet is not readable this is `rcv_nxt`, because a socket
    /// accepts a reset only at `rcv_nxt` (RFC 5961 3.2).
    pub fn seq(&self) -> u32 {
        self.packet.map_or(self.socket.rcv_nxt, |packet| packet.seq)
    }

    /// The error that the reset gives to the socket's application, if the socket has one
    /// (net/ipv4/tcp_input.c, `tcp_reset`). The record precedes the error, on a busy host by a noticeable
    /// time.
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

/// A socket got an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SocketError {
    pub socket: Socket,
    pub task: Task,
    pub stack: Stack,
}
