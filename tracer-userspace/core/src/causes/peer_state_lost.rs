//! Whoever answered had no state for the connection, and nothing here explains why.

use rsttrace_model::{tcp_flag, units::human_s};

use super::{
    cause::Cause,
    doc::{Doc, Need, Sign},
    peer_aborted::{NOT_FIXES, from_elsewhere, not_fixes},
    remedy,
};
use crate::{
    evidence::Evidence,
    fix::Fix,
    verdict::{Confidence, Family, Finding, Verdict},
};

pub const CAUSE: Cause = Cause {
    id: "peer_state_lost",
    family: Family::Remote,
    title: "whoever answered had no state for the connection (bare RST)",
    doc: Doc {
        about: "A socket of this host accepted a bare RST (no ACK bit), and nobody on this host \
                sent it. That is how a stack, a firewall or a load balancer answers a packet of a \
                connection it does not know (tcp_v4_send_reset, nf_send_reset): an entry expired or was \
                lost elsewhere, a server restarted, an address moved.",
        signs: &[Sign::inferred(
            "the header of the reset was read, and every reset that this host sends would have \
                 been seen",
            &[Need::Full("reset_received"), Need::Full("reset_sent")],
        )],
        mistaken_for: &[
            ("peer_aborted", "RST with ACK"),
            (
                "ipvs_idle_expired",
                "IPVS on another node looks like this from the client's: a bare RST from the \
                 virtual address after 900 s or more",
            ),
        ],
        fixes: &[remedy::KEEPALIVE],
        not_fixes: NOT_FIXES,
    },
    judge,
    fixes,
    not_fixes,
    ceiling: Confidence::Inferred,
    ..Cause::BASE
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
