//! Resets that a socket of this host received and that this host did not send.

use rsttrace_model::{flow::Nanos, tcp_state};

use crate::{
    case::Stamped,
    event::{Packet, ResetReceived, Socket},
    evidence::{Evidence, seconds},
};

/// The reset that a socket received, if neither a socket nor a rule of this host sent it.
pub fn without_sender<'a>(evidence: &Evidence<'a>) -> Option<&'a Stamped<ResetReceived>> {
    if evidence.sent().is_some() || evidence.is_handshake() || !evidence.sees_every_reset() {
        return None;
    }
    evidence.received()
}

/// The time and packet of that reset, if its header was readable.
pub fn from_elsewhere(evidence: &Evidence<'_>) -> Option<(u64, Packet)> {
    let at = without_sender(evidence)?;
    Some((at.ts, at.value.packet?))
}

/// A reset that answers a segment arrives within a round trip; a segment that a TCP stack sent this long ago was
/// answered before. Nanoseconds.
const ANSWERED_BY_NOW: Nanos = 10_000_000_000;

/// How long the socket had sent nothing that a reset could answer: neither data, nor the acknowledgement of a received
/// segment, nor a probe. `None` where it may have sent something.
pub fn idle_before(socket: &Socket, ts: Nanos) -> Option<Nanos> {
    let idle = ts.saturating_sub(socket.last_sent?.max(socket.last_received?));
    let probes = socket.keepalive.enabled && seconds(idle) >= socket.keepalive.time_s;
    let waits = socket.packets_out != 0 || socket.probes_out != 0 || socket.retransmits != 0;
    let is_open = socket.state == tcp_state::ESTABLISHED;
    (is_open && !probes && !waits && idle >= ANSWERED_BY_NOW).then_some(idle)
}
