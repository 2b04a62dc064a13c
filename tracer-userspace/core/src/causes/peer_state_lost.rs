//! The responder had no state for the connection, and nothing on this host explains why.

use rsttrace_model::{tcp_flag, units::human_s};

use super::{
    cause::Cause,
    doc::{Detection, Doc, RequiredSignal},
    foreign_reset::from_elsewhere,
    peer_aborted::{NOT_FIXES, not_fixes},
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
    title: "the responder had no state for the connection (bare RST)",
    doc: Doc {
        about: "A socket of this host accepted a bare RST (no ACK bit), and this host did not send \
                it. That is how a TCP stack, a firewall or a load balancer answers a packet of a \
                connection it does not know (tcp_v4_send_reset, nf_send_reset): an entry expired \
                or was lost on another host, a server restarted, or an address moved.",
        detections: &[Detection::inferred(
            "the header of the reset was read, and every reset that this host sends would have \
             been seen",
            &[RequiredSignal::Full("reset_received"), RequiredSignal::Full("reset_sent")],
        )],
        mistaken_for: &[
            ("peer_aborted", "its RST has ACK"),
            (
                "ipvs_idle_expired",
                "IPVS on another node looks like this from the client's host: a bare RST from the \
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
    if packet.has(tcp_flag::ACK) || evidence.may_have_forgotten() {
        return None;
    }
    let idle =
        evidence.idle_s().map_or(String::new(), |idle| format!(" after {} idle", human_s(idle)));
    Some(
        Verdict::new(
            Confidence::Inferred,
            format!("the responder at {} had no state for the connection{idle}", packet.flow.src),
        )
        .finding(Finding {
            kind: "bare_rst",
            ts,
            summary: format!(
                "RST without ACK from {}, TTL {}: the responder did not have the connection",
                packet.flow.src, packet.ttl
            ),
        })
        .prove(format!(
            "run rsttrace on the load balancer or the host of {}; if breaks cluster at one idle \
             time, a device on the path has that limit",
            packet.flow.src
        )),
    )
}

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    // The idle time before the break is all that is known about the limit.
    match evidence.idle_s() {
        Some(idle_s) if idle_s >= 30.0 => {
            vec![remedy::keepalive_below(evidence, idle_s, "the timer that dropped the connection")]
        }
        _ => Vec::new(),
    }
}
