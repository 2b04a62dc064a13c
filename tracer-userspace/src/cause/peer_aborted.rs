//! A live remote socket aborted the connection.

use super::{Cause, Doc, Family, Need, NotFix, Sign, Verdict, nothing_ruled_out, remedy};
use crate::{
    event::{Packet, tcp_flag},
    evidence::Evidence,
    fix::{Fix, FixOwner, Remedy, Risk},
    incident::{Confidence, Finding},
};

pub const CAUSE: Cause = Cause {
    id: "peer_aborted",
    family: Family::Remote,
    title: "a live remote socket aborted the connection (RST with ACK)",
    doc: Doc {
        about: "A socket of this host accepted a reset with the ACK bit, and nobody on this host \
                sent it. RST|ACK in mid-stream is what a live socket sends when it is aborted \
                (tcp_send_active_reset): unread data at close, SO_LINGER 0, a killed process, a destroyed \
                socket. An answer by somebody without the connection has no ACK.",
        signs: &[Sign::correlated(
            "the header of the reset was read, and every reset that this host sends would have \
                 been seen",
            &[Need::Full("reset_received"), Need::Full("reset_sent")],
        )],
        mistaken_for: &[
            ("peer_state_lost", "a bare RST"),
            ("a reset without a readable header", "without the ACK bit it stays `unknown`"),
        ],
        fixes: &[LOOK_AT_PEER],
        not_fixes: NOT_FIXES,
    },
    judge,
    rule_out: nothing_ruled_out,
    fixes,
    not_fixes,
};

const LOOK_AT_PEER: Remedy = Remedy {
    id: "look_at_the_peer",
    owner: FixOwner::Application,
    risk: Risk::Low,
    summary: "look at the peer: its application or kernel aborted on purpose",
    reason: "unread data at close, SO_LINGER 0, a killed process and an idle policy all look like \
             this from here",
    how: "read the server's log for this time and client",
};

pub const NOT_FIXES: &[(&str, &str)] = &[("sysctls on this host", "the reset was made elsewhere")];

/// The reset, when nobody on this host sent it and its header was readable.
pub fn from_elsewhere(evidence: &Evidence<'_>) -> Option<(u64, Packet)> {
    if evidence.sent().is_some() || evidence.is_handshake() || !evidence.sees_every_reset() {
        return None;
    }
    let at = evidence.received()?;
    Some((at.ts, at.it.packet?))
}

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    let (ts, packet) = from_elsewhere(evidence)?;
    if !packet.has(tcp_flag::ACK) {
        return None;
    }
    Some(
        Verdict::new(
            Confidence::Correlated,
            "the peer's own socket aborted it (a reset with ACK, sent by nobody on this host)",
        )
        .finding(Finding {
            kind: "rst_with_ack",
            ts,
            summary: format!("RST|ACK from {}, TTL {}", packet.flow.src, packet.ttl),
        })
        .prove(format!(
            "run rsttrace on the host of {}: it sees the abort itself",
            packet.flow.src.ip()
        )),
    )
}

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    let peer =
        evidence.received().map_or("the peer".into(), |at| at.it.socket.flow.dst.ip().to_string());
    vec![Fix {
        summary: format!("look at {peer}: its application or kernel aborted on purpose"),
        ..LOOK_AT_PEER.fix()
    }]
}

/// Shared with `peer_state_lost`.
pub fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    remedy::told(NOT_FIXES)
}
