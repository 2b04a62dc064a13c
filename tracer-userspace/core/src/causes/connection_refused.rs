//! A connect to a port without a listener.

use rsttrace_model::{errno::ECONNREFUSED, tcp_flag, tcp_state};

use super::{
    cause::Cause,
    doc::{Detection, Doc, RequiredSignal},
};
use crate::{
    event::Via,
    evidence::Evidence,
    verdict::{Confidence, Family, Finding, Verdict},
};

pub const CAUSE: Cause = Cause {
    id: "connection_refused",
    family: Family::Benign,
    title: "a connect to a port without a listener",
    doc: Doc {
        about: "A SYN arrived at a port without a listener, and the TCP stack answered with \
                RST|ACK. The connect fails with ECONNREFUSED. An ICMP port unreachable has the \
                same effect. No connection existed, so none broke.",
        detections: &[
            Detection::observed(
                "this host's TCP stack reset a SYN for which it has no socket",
                &[RequiredSignal::Full("reset_sent")],
            ),
            Detection::inferred(
                "a connecting socket of this host received a reset or ECONNREFUSED, and no answer \
                 from this host was seen; a rule or a load balancer on the path refuses in the \
                 same way",
                &[RequiredSignal::Any("reset_received")],
            ),
        ],
        mistaken_for: &[
            ("firewall_reject", "a rule can refuse a connect in the same way"),
            ("a reset in mid-stream", "a mid-stream reset never answers a SYN"),
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
            && at.value.via != Via::Netfilter
            && at.value.trigger.is_some_and(|t| t.has(tcp_flag::SYN) && !t.has(tcp_flag::ACK))
    });
    if let Some(at) = refused {
        let port = at.value.trigger.map_or(0, |trigger| trigger.flow.dst.port());
        return Some(
            Verdict::new(Confidence::Observed, format!("no process listens on port {port}"))
                .finding(Finding {
                    kind: "no_listener",
                    ts: at.ts,
                    summary: format!("a SYN to port {port} found no listener"),
                }),
        );
    }
    // A firewall module loaded just before may have brought the rule that answered, or its record was lost.
    if evidence.sent().is_some() || !evidence.sees_every_refusal() {
        return None;
    }
    // The peer is on another host: the only evidence is a reset of the SYN, or an ICMP error instead.
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
            .prove(
                "check whether a process listens on the peer's port; if one does, a rule or a load \
                 balancer on the path refused the connect",
            ),
    )
}
