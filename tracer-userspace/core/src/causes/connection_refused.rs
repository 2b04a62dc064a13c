//! A connect to a port nobody listens on.

use rsttrace_model::{errno::ECONNREFUSED, tcp_flag, tcp_state};

use super::{
    cause::Cause,
    doc::{Doc, Need, Sign},
};
use crate::{
    evidence::Evidence,
    verdict::{Confidence, Family, Finding, Verdict},
};

pub const CAUSE: Cause = Cause {
    id: "connection_refused",
    family: Family::Benign,
    title: "a connect to a port nobody listens on",
    doc: Doc {
        about: "A SYN came to a port on which nobody listens, and the stack answered with RST|ACK; \
                the connect fails with ECONNREFUSED. An ICMP port unreachable does the same. No \
                connection existed, so none broke.",
        signs: &[
            Sign::observed(
                "the stack of this host reset a SYN for which it has no socket",
                &[Need::Full("reset_sent")],
            ),
            Sign::inferred(
                "a connecting socket of this host received a reset or ECONNREFUSED, and nobody here was seen \
                 to answer: a rule or a balancer on the way refuses in the same way",
                &[Need::Any("reset_received")],
            ),
        ],
        mistaken_for: &[
            ("firewall_reject", "a rule can refuse in the same way"),
            ("a reset in mid-stream", "it never answers a SYN"),
        ],
        fixes: &[],
        not_fixes: &[],
    },
    judge,
    ..Cause::BASE
};

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    let refused = evidence.case.sent.iter().find(|at| {
        at.value.socket.is_none()
            && at.value.trigger.is_some_and(|t| t.has(tcp_flag::SYN) && !t.has(tcp_flag::ACK))
    });
    if let Some(at) = refused {
        let port = at.value.trigger.map_or(0, |trigger| trigger.flow.dst.port());
        return Some(
            Verdict::new(Confidence::Observed, format!("nobody listens on port {port}")).finding(
                Finding {
                    kind: "no_listener",
                    ts: at.ts,
                    summary: format!("a SYN to port {port} found no listener"),
                },
            ),
        );
    }
    // A firewall's module that has just come may have come with the rule that answered.
    if evidence.sent().is_some() || !evidence.sees_every_rule() {
        return None;
    }
    // The peer is elsewhere; a reset to a SYN, or an ICMP error in its place, is all there is.
    let by_reset = evidence.received().filter(|at| at.value.socket.state == tcp_state::SYN_SENT);
    let ts = match (by_reset, evidence.error()) {
        (Some(at), _) => at.ts,
        (None, Some(at)) if at.value.socket.err == ECONNREFUSED => at.ts,
        _ => return None,
    };
    Some(
        Verdict::new(Confidence::Inferred, "the peer refused the connection")
            .finding(Finding {
                kind: "refused",
                ts,
                summary: "the connect was answered with a refusal".into(),
            })
            .prove("does anything listen on the peer's port? if so, a rule or a balancer on the way refused"),
    )
}
