//! A live remote socket aborted the connection.

use super::{Cause, Family, NotFix, Verdict, nothing_ruled_out};
use crate::{
    event::{Packet, tcp_flag},
    evidence::Evidence,
    fix::{Change, Fix, FixOwner, Risk},
    incident::{Confidence, Finding},
};

pub const CAUSE: Cause = Cause {
    id: "peer_aborted",
    family: Family::Remote,
    title: "a live remote socket aborted the connection (RST with ACK)",
    judge,
    rule_out: nothing_ruled_out,
    fixes,
    not_fixes,
};

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
        id: "look_at_the_peer",
        owner: FixOwner::Application,
        risk: Risk::Low,
        summary: format!("look at {peer}: its application or kernel aborted on purpose"),
        reason: "unread data at close, SO_LINGER 0, a killed process and an idle policy all look like this \
                 from here"
            .into(),
        current: None,
        wanted: None,
        changes: vec![Change::Advice { text: "read the server's log for this time and client".into() }],
    }]
}

/// Shared with `peer_state_lost`.
pub fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    vec![("sysctls on this host".into(), "the reset was made elsewhere".into())]
}
