//! Scans, invalid or stale handshakes, and health checks that close with a reset and no payload.

use rsttrace_model::{tcp_flag, tcp_state};

use super::{
    cause::Cause,
    doc::{Detection, Doc, RequiredSignal},
};
use crate::{
    event::{Socket, Via},
    evidence::Evidence,
    verdict::{Confidence, Family, Finding, Verdict},
};

pub const CAUSE: Cause = Cause {
    id: "handshake_rejected",
    family: Family::Benign,
    title: "a scan, a stale handshake, or a health check that closes with a reset",
    doc: Doc {
        about: "A packet that belongs to no finished handshake was answered with a reset, or a \
                connection was opened and aborted before it carried payload. Examples are port \
                scans, SYN-ACKs for connections that no socket opens, acknowledgements that do not \
                fit, and health checks of load balancers that close with a reset to save a round \
                trip.",
        detections: &[
            Detection::observed(
                "the reset answered a packet outside a finished handshake, or the counters of the \
                 aborted socket show no payload",
                &[RequiredSignal::Any("reset_sent")],
            ),
            Detection::observed(
                "a firewall rule answered an IPv4 SYN that no socket of this host sent",
                &[RequiredSignal::Full("firewall_reset")],
            ),
            Detection::observed("the same for IPv6", &[RequiredSignal::Full("firewall_reset6")]),
            Detection::correlated(
                "the initiator of a connection that never carried payload sent a reset with ACK",
                &[RequiredSignal::Full("reset_received")],
            ),
        ],
        mistaken_for: &[
            ("linger_zero", "payload had been exchanged"),
            ("listen_overflow", "a complete handshake found the accept queue full"),
        ],
        fixes: &[],
        not_fixes: &[],
    },
    judge,
    ..Cause::BASE
};

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    let (ts, why, confidence) = unused_abort(evidence).or_else(|| {
        let (ts, why) = handshake(evidence)?;
        Some((ts, why, Confidence::Observed))
    })?;
    Some(Verdict::new(confidence, why).finding(Finding {
        kind: "handshake",
        ts,
        summary: why.into(),
    }))
}

/// A connection that never carried payload was aborted by the socket that opened it.
fn unused_abort(evidence: &Evidence<'_>) -> Option<(u64, &'static str, Confidence)> {
    if evidence.was_used()
        || evidence.timed_out().is_some()
        || evidence.listener_stopped().is_some()
    {
        return None;
    }
    let why = "it was opened and aborted without payload";
    if let Some(at) = evidence.active() {
        let socket = at.value.socket.as_ref()?;
        let on_purpose = socket.linger_zero && socket.never_used();
        // A server that aborts what it accepted has refused a client.
        let by_initiator = evidence.client_view()?.src == socket.flow.src;
        return (on_purpose && by_initiator).then_some((at.ts, why, Confidence::Observed));
    }
    let at = evidence.received()?;
    let abort = at.value.packet?.has(tcp_flag::ACK);
    let opened = at.value.socket.state != tcp_state::SYN_SENT;
    // A responder that aborts (a listener that closes, an overloaded proxy) breaks a wanted connection.
    let by_initiator = evidence.client_view()?.dst == at.value.socket.flow.src;
    (evidence.sent().is_none() && abort && opened && by_initiator).then_some((
        at.ts,
        why,
        Confidence::Correlated,
    ))
}

/// Whether a connect of this host failed because its SYN met a socket that still had the same addresses and ports.
fn failed_a_connect(evidence: &Evidence<'_>) -> bool {
    let met_a_socket = evidence.sent().is_some_and(|at| {
        let syn = at.value.trigger.is_some_and(|trigger| trigger.has(tcp_flag::SYN));
        syn && at.value.socket.as_ref().is_some_and(|socket| socket.state != tcp_state::LISTEN)
    });
    let connecting = |socket: &Socket| socket.state == tcp_state::SYN_SENT;
    met_a_socket && evidence.victims().any(|(_, _, socket)| connecting(socket))
}

/// The packet that was answered belongs to no finished handshake.
fn handshake(evidence: &Evidence<'_>) -> Option<(u64, &'static str)> {
    let at = evidence.sent()?;
    let trigger = at.value.trigger?;
    if failed_a_connect(evidence) {
        return None;
    }
    if at.value.via == Via::Netfilter {
        let why = "a firewall rule answered its SYN with a reset, and no socket here sent that SYN";
        return (trigger.has(tcp_flag::SYN) && !trigger.has(tcp_flag::ACK)).then_some((at.ts, why));
    }
    if trigger.has(tcp_flag::SYN) && trigger.has(tcp_flag::ACK) {
        // Its socket here failed before: a server that never accepted the last ACK sends its SYN-ACK again.
        if at.value.end.as_ref().is_some_and(|end| end.err != 0) {
            return None;
        }
        return Some((at.ts, "a SYN-ACK arrived for a connection that no socket here was opening"));
    }
    if !trigger.has(tcp_flag::ACK) {
        return Some((
            at.ts,
            "a packet without ACK arrived that belongs to no connection (a scan)",
        ));
    }
    let socket = at.value.socket.as_ref()?;
    if evidence.listen_overflowed() {
        return None;
    }
    matches!(socket.state, tcp_state::SYN_SENT | tcp_state::SYN_RECV | tcp_state::NEW_SYN_RECV)
        .then_some((at.ts, "an acknowledgement did not fit the handshake in progress"))
}
