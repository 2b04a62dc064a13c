//! Whoever answered had no state for the connection, and nothing here explains why.

use super::{
    Cause, Family, Verdict, human_s, nothing_ruled_out,
    peer_aborted::{from_elsewhere, not_fixes},
    remedy,
};
use crate::{
    event::tcp_flag,
    evidence::Evidence,
    fix::Fix,
    incident::{Confidence, Finding},
};

pub const CAUSE: Cause = Cause {
    id: "peer_state_lost",
    family: Family::Remote,
    title: "whoever answered had no state for the connection (bare RST)",
    judge,
    rule_out: nothing_ruled_out,
    fixes,
    not_fixes,
};

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    let (ts, packet) = from_elsewhere(evidence)?;
    if packet.has(tcp_flag::ACK) {
        return None;
    }
    let idle = evidence
        .idle_s()
        .map_or(String::new(), |idle| format!(" after {} of silence", human_s(idle)));
    Some(
        Verdict::new(
            Confidence::Inferred,
            format!("whoever answered for {} had no state for it{idle}", packet.flow.src),
        )
        .finding(Finding {
            kind: "bare_rst",
            ts,
            summary: format!(
                "RST without ACK from {}, TTL {}: an answer by somebody without the connection",
                packet.flow.src, packet.ttl
            ),
        })
        .prove(format!(
            "run rsttrace where {} is balanced or lives; if breaks cluster at one idle time, a device on \
             the path has that limit",
            packet.flow.src
        )),
    )
}

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    // The silence that broke it is all that this one sample says about the limit.
    match evidence.idle_s() {
        Some(idle_s) if idle_s >= 30.0 => {
            vec![remedy::keepalive_below(evidence, idle_s, "whatever forgot the connection")]
        }
        _ => Vec::new(),
    }
}
