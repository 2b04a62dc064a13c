//! A live remote socket aborted the connection.

use rsttrace_model::{flow::Nanos, tcp_flag, units::human_s};

use super::{
    cause::Cause,
    doc::{Detection, Doc, RequiredSignal},
    foreign_reset::{from_elsewhere, idle_before},
    remedy,
};
use crate::{
    event::Packet,
    evidence::{Evidence, seconds},
    fix::{Fix, FixOwner, Remedy, Risk},
    verdict::{Confidence, Family, Finding, NotFix, Verdict},
};

pub const CAUSE: Cause = Cause {
    id: "peer_aborted",
    family: Family::Remote,
    title: "a live remote socket aborted the connection (RST with ACK)",
    doc: Doc {
        about: "A socket of this host accepted a reset with the ACK bit, and this host did not \
                send it. RST|ACK in mid-stream is what a live socket sends when it is aborted \
                (tcp_send_active_reset): unread data at close, SO_LINGER 0, a killed process, a \
                destroyed socket. A responder without the connection answers without ACK.",
        detections: &[
            Detection::correlated(
                "the header of the reset was read, its TTL is that of a packet from a distant \
                 host, and every reset that this host sends would have been seen",
                &[RequiredSignal::Full("reset_received"), RequiredSignal::Full("reset_sent")],
            ),
            Detection::inferred(
                "the same, but the reset came from nearby; the only evidence for the peer is that \
                 no sender was seen on this host",
                &[RequiredSignal::Full("reset_received"), RequiredSignal::Full("reset_sent")],
            ),
        ],
        mistaken_for: &[
            ("peer_state_lost", "its RST has no ACK"),
            (
                "a reset without a readable header",
                "if the ACK bit cannot be read, the verdict is `unknown`",
            ),
        ],
        fixes: &[LOOK_AT_PEER],
        not_fixes: NOT_FIXES,
    },
    judge,
    fixes,
    not_fixes,
    ..Cause::BASE
};

const LOOK_AT_PEER: Remedy = Remedy {
    id: "look_at_the_peer",
    owner: FixOwner::Application,
    risk: Risk::Low,
    summary: "check the peer, whose application or kernel aborted on purpose",
    reason: "unread data at close, SO_LINGER 0, a killed process and an idle policy all look the \
             same from this host",
    how: "read the server's log for this time and client",
};

pub const NOT_FIXES: &[(&str, &str)] = &[("sysctls on this host", "another host sent the reset")];

/// Most routers that a packet from one namespace of this host to another may pass: those of a container in
/// a container, and the host's own.
const HOPS_WITHIN: u8 = 4;

/// The least number of routers that a packet has passed. TCP stacks start with a TTL of 64, 128 or 255
/// (Linux: `IPDEFTTL`, include/uapi/linux/ip.h).
fn hops(ttl: u8) -> u8 {
    let begin = [64, 128, 255].into_iter().find(|begin| *begin >= ttl).unwrap_or(255);
    begin - ttl
}

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    let (ts, packet) = from_elsewhere(evidence)?;
    if !packet.has(tcp_flag::ACK) {
        return None;
    }
    // A missing sender on this host is not evidence by itself: its record may be lost, and a packet socket
    // nearby (tcpkill, an intrusion prevention system) sends packets that no hook here sees.
    let far = hops(packet.ttl) > HOPS_WITHIN;
    // A device whose idle timer runs out sends the same segment.
    let unasked = evidence.received().and_then(|at| idle_before(&at.value.socket, ts));
    if let Some(idle_s) = unasked.map(seconds).filter(|idle_s| *idle_s >= IDLE_S) {
        return Some(after_idle_time(packet, ts, idle_s));
    }
    let (confidence, why, prove) = match far {
        true => (
            Confidence::Correlated,
            "the peer's own socket aborted the connection (a reset with ACK, not sent by this host)",
            format!(
                "run rsttrace on the host of {}, where it observes the abort itself",
                packet.flow.src.ip()
            ),
        ),
        false => (
            Confidence::Inferred,
            "the peer's own socket aborted the connection, or a nearby sender did in the peer's \
             name (a reset with ACK, not sent by any socket or rule seen here)",
            format!(
                "check whether the socket of {} still exists (ss -tn in its network namespace); if \
                 it does, the reset was forged on the path; rsttrace on its host observes an abort \
                 itself",
                packet.flow.src
            ),
        ),
    };
    Some(
        Verdict::new(confidence, why)
            .finding(Finding {
                kind: "rst_with_ack",
                ts,
                summary: format!("RST|ACK from {}, TTL {}", packet.flow.src, packet.ttl),
            })
            .prove(prove),
    )
}

/// From this idle time on the limit of a device on the path is as likely as an abort by the peer. Seconds.
const IDLE_S: f64 = 30.0;

/// The connection had been idle when the reset came.
fn after_idle_time(packet: Packet, ts: Nanos, idle_s: f64) -> Verdict {
    let (idle, peer) = (human_s(idle_s), packet.flow.src);
    Verdict::new(
        Confidence::Inferred,
        format!(
            "the peer's own socket aborted the connection after {idle} without traffic, or a device \
             on the path did when its idle timer ran out (a reset with ACK that answers nothing)"
        ),
    )
    .finding(Finding {
        kind: "rst_with_ack",
        ts,
        summary: format!("RST|ACK from {peer}, TTL {}, {idle} after the last segment", packet.ttl),
    })
    .prove(format!(
        "run rsttrace on the host of {}, where it observes an abort itself; if breaks cluster at one \
         idle time, a device or the server has that limit",
        peer.ip()
    ))
}

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    let peer = evidence
        .received()
        .map_or("the peer".into(), |at| at.value.socket.flow.dst.ip().to_string());
    vec![Fix {
        summary: format!("check {peer}, whose application or kernel aborted on purpose"),
        ..LOOK_AT_PEER.fix()
    }]
}

/// Shared with `peer_state_lost`.
pub fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    remedy::to_not_fixes(NOT_FIXES)
}

#[cfg(test)]
mod tests {
    use super::hops;

    #[test]
    fn hops_are_counted_from_the_next_initial_ttl() {
        let counted = [64, 63, 57, 128, 118, 255, 243, 0].map(hops);
        assert_eq!(counted, [0, 1, 7, 0, 10, 0, 12, 64]);
    }
}
