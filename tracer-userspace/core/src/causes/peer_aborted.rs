//! A live remote socket aborted the connection.

use rsttrace_model::tcp_flag;

use super::{
    cause::Cause,
    doc::{Doc, Need, Sign},
    remedy,
};
use crate::{
    event::Packet,
    evidence::Evidence,
    fix::{Fix, FixOwner, Remedy, Risk},
    verdict::{Confidence, Family, Finding, NotFix, Verdict},
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
        signs: &[
            Sign::correlated(
                "the header of the reset was read, its TTL is that of a packet from far away, and every \
                 reset that this host sends would have been seen",
                &[Need::Full("reset_received"), Need::Full("reset_sent")],
            ),
            Sign::inferred(
                "the same, but the reset came from nearby: only that nobody here was seen to send it says \
                 that the peer did",
                &[Need::Full("reset_received"), Need::Full("reset_sent")],
            ),
        ],
        mistaken_for: &[
            ("peer_state_lost", "a bare RST"),
            ("a reset without a readable header", "without the ACK bit it stays `unknown`"),
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
    Some((at.ts, at.value.packet?))
}

/// Routers that a packet from one namespace of this host to another may pass on its way: a container in
/// a container, and the host's own.
const HOPS_WITHIN: u8 = 4;

/// How many routers a packet has passed at least. Stacks begin at 64, 128 or 255 (Linux:
/// `IPDEFTTL`, include/uapi/linux/ip.h).
fn hops(ttl: u8) -> u8 {
    let begin = [64, 128, 255].into_iter().find(|begin| *begin >= ttl).unwrap_or(255);
    begin - ttl
}

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    let (ts, packet) = from_elsewhere(evidence)?;
    if !packet.has(tcp_flag::ACK) {
        return None;
    }
    // That nobody here sent it is no evidence by itself: the record of it may be what is missing, and a
    // packet socket nearby (tcpkill, an intrusion prevention system) sends what nothing here sees.
    let far = hops(packet.ttl) > HOPS_WITHIN;
    let (confidence, why, prove) = match far {
        true => (
            Confidence::Correlated,
            "the peer's own socket aborted it (a reset with ACK, sent by nobody on this host)",
            format!(
                "run rsttrace on the host of {}: it sees the abort itself",
                packet.flow.src.ip()
            ),
        ),
        false => (
            Confidence::Inferred,
            "the peer's own socket aborted it, or somebody nearby did in its name (a reset with ACK, sent \
             by no socket or rule seen here)",
            format!(
                "is the socket of {} still there (ss -tn in its network namespace)? then the reset was forged \
                 on the way; rsttrace on its host sees an abort itself",
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

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    let peer = evidence
        .received()
        .map_or("the peer".into(), |at| at.value.socket.flow.dst.ip().to_string());
    vec![Fix {
        summary: format!("look at {peer}: its application or kernel aborted on purpose"),
        ..LOOK_AT_PEER.fix()
    }]
}

/// Shared with `peer_state_lost`.
pub fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    remedy::told(NOT_FIXES)
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
