//! The socket had been closed, or its process or host restarted.

use super::{Cause, Family, NotFix, Verdict, human_s, nothing_ruled_out};
use crate::{
    event::SocketEnd,
    evidence::Evidence,
    fix::{Change, Fix, FixOwner, Risk},
    incident::{Confidence, Finding, errno_text},
};

pub const CAUSE: Cause = Cause {
    id: "socket_gone",
    family: Family::StateLost,
    title: "the socket had been closed, or its process or host restarted",
    judge,
    rule_out: nothing_ruled_out,
    fixes,
    not_fixes,
};

/// The recorded end of this very connection: not older than the victim's last received segment.
fn end<'a>(evidence: &Evidence<'a>) -> Option<&'a SocketEnd> {
    let at = evidence.stateless()?;
    let end = at.it.end.as_ref()?;
    // An end that came with this very incident (its reset was the socket's death) is no cause of it.
    if end.ts >= evidence.case.opened {
        return None;
    }
    // The FIN of that close is itself a received segment, at most a second on its way.
    let alive = evidence.last_received().unwrap_or(0);
    (end.ts.saturating_add(1_000_000_000) >= alive).then_some(end)
}

/// "nginx (pid 7) had closed its socket", "its socket had failed with ETIMEDOUT".
fn ended(end: &SocketEnd) -> String {
    if end.err != 0 {
        let name = errno_text(end.err);
        return format!("its socket had failed with {name}");
    }
    let how = if end.task.exiting { "had exited" } else { "had closed its socket" };
    format!("{} {how}", end.task)
}

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    if evidence.is_handshake() {
        return None;
    }
    let at = evidence.stateless()?;
    let here = at.it.trigger?.flow.dst;
    if let Some(end) = end(evidence) {
        let before = human_s(evidence.age_s(end.ts));
        let how = ended(end);
        return Some(
            Verdict::new(Confidence::Correlated, format!("{how} {before} before")).finding(
                Finding {
                    kind: "socket_ended",
                    ts: end.ts,
                    summary: format!("the socket of this connection at {here}: {how}"),
                },
            ),
        );
    }
    if at.it.socket.is_some() || !evidence.was_used() || evidence.has_loss() {
        return None;
    }
    // A stray segment that reaches the initiator's host was not translated on its way: that is not the
    // story of a server that restarted.
    if evidence.client_view().is_some_and(|flow| flow.src == here) {
        return None;
    }
    Some(
        Verdict::new(
            Confidence::Inferred,
            format!("{here} has no socket for it, and no end of it is on record"),
        )
        .finding(Finding {
            kind: "no_socket",
            ts: at.ts,
            summary: format!("a mid-stream packet found neither a connection nor a listener at {here}"),
        })
        .prove(
            "was the server's process, pod or host restarted, or its address moved, after the connection \
             was made?",
        ),
    )
}

fn fixes(_: &Evidence<'_>) -> Vec<Fix> {
    vec![Fix {
        id: "detect_restarts",
        owner: FixOwner::Application,
        risk: Risk::Low,
        summary: "reconnect when the server restarts, and close connections before stopping it"
            .into(),
        reason: "a restarted server knows nothing of its old connections".into(),
        current: None,
        wanted: None,
        changes: vec![Change::Advice {
            text: "validate pooled connections on borrow, or keep keepalive short enough to notice"
                .into(),
        }],
    }]
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    vec![(
        "conntrack and IPVS timeouts".into(),
        "the packet reached a host that has no such socket".into(),
    )]
}
