//! A TCP segment as a record shows it.

use rsttrace_model::{flow::Flow, tcp_flag};
use serde::{Deserialize, Serialize};

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

    /// Whether the packet opens a connection: SYN without ACK.
    pub fn is_syn(&self) -> bool {
        self.has(tcp_flag::SYN) && !self.has(tcp_flag::ACK)
    }

    /// The sequence number after this segment, which an answer to it acknowledges.
    pub fn end(&self) -> u32 {
        let control = u32::from(self.has(tcp_flag::SYN)) + u32::from(self.has(tcp_flag::FIN));
        self.seq.wrapping_add(self.payload).wrapping_add(control)
    }
}
