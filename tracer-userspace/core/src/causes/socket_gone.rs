//! The socket had been closed, or its process or host restarted.

use rsttrace_model::{errno::errno_text, units::human_s};

use super::{
    cause::Cause,
    doc::{Doc, Need, Sign},
    remedy,
};
use crate::{
    event::SocketEnd,
    evidence::Evidence,
    fix::{Fix, FixOwner, Remedy, Risk},
    verdict::{Confidence, Family, Finding, NotFix, Verdict},
};

pub const CAUSE: Cause = Cause {
    id: "socket_gone",
    family: Family::StateLost,
    title: "the socket had been closed, or its process or host restarted",
    doc: Doc {
        about: "A mid-stream packet reached the host that once had the connection, and no socket \
                was left: it had been closed long enough ago, had failed, or its process, container or \
                host was restarted. The stack answers with a bare RST (NO_SOCKET). The peer did not \
                notice because it was silent all the time.",
        signs: &[
            Sign::correlated(
                "the end of the very socket is on record, and a later packet was reset for want of \
                 it",
                &[Need::Full("reset_sent"), Need::Any("socket_end")],
            ),
            Sign::inferred(
                "a packet of a connection that was in use met no socket and no listener, and no \
                 IPVS or conntrack entry of it had ended",
                &[Need::Full("reset_sent")],
            ),
            Sign::inferred(
                "the same of a packet without payload: that the connection was in use is what its other \
                 end says",
                &[Need::Full("reset_sent"), Need::Any("reset_received")],
            ),
        ],
        mistaken_for: &[
            (
                "ipvs_idle_expired",
                "there the packet should have been passed on: an IPVS or NAT entry had ended",
            ),
            ("wrong_backend", "there a listener met the packet"),
            ("data_after_close", "there the closed socket was still remembered"),
        ],
        fixes: &[DETECT_RESTARTS, GIVE_UP_LAST, remedy::STOP_GRACEFULLY],
        not_fixes: NOT_FIXES,
    },
    judge,
    fixes,
    not_fixes,
    ..Cause::BASE
};

const DETECT_RESTARTS: Remedy = Remedy {
    id: "detect_restarts",
    owner: FixOwner::Application,
    risk: Risk::Low,
    summary: "reconnect when the server restarts, and close connections before stopping it",
    reason: "a restarted server knows nothing of its old connections",
    how: "validate pooled connections on borrow, or keep keepalive short enough to notice",
};

const GIVE_UP_LAST: Remedy = Remedy {
    id: "caller_waits_longer",
    owner: FixOwner::Application,
    risk: Risk::Low,
    summary: "let the client wait longer than the server takes to answer",
    reason: "the client had given the connection up when the server still sent on it",
    how: "client request timeout > the server's slowest answer and its keep-alive timeout, or limit what \
          the server may take; a server must expect the error and give the work up",
};

const NOT_FIXES: &[(&str, &str)] =
    &[("conntrack and IPVS timeouts", "the packet reached a host that has no such socket")];

/// The recorded end of this very connection: not older than the victim's last received segment.
fn end<'a>(evidence: &Evidence<'a>) -> Option<&'a SocketEnd> {
    let at = evidence.stateless()?;
    let end = at.value.end.as_ref()?;
    // An end that came with this very incident (its reset was the socket's death) is no cause of it.
    if end.ts >= evidence.case.opened {
        return None;
    }
    // The FIN of that close is itself a received segment, at most a second on its way.
    let alive = evidence.last_received().unwrap_or(0);
    (end.ts.saturating_add(1_000_000_000) >= alive).then_some(end)
}

/// "nginx (pid 7) closed its socket", "its socket had failed with ETIMEDOUT".
fn ended(end: &SocketEnd) -> String {
    if end.err != 0 {
        let name = errno_text(end.err);
        return format!("its socket had failed with {name}");
    }
    let how = end.task.ending().unwrap_or("closed its socket".into());
    format!("{} {how}", end.task)
}

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    if evidence.is_handshake() {
        return None;
    }
    let at = evidence.stateless()?;
    let here = at.value.trigger?.flow.dst;
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
    // Who has had the FIN was closed on, whoever listens there; otherwise a listener is another server. At
    // a virtual address nobody expects a socket.
    let closed = evidence.peer_closed();
    if (at.value.socket.is_some() && !closed)
        || !evidence.was_used()
        || evidence.has_loss()
        || evidence.balanced().is_some()
    {
        return None;
    }
    // A virtual service has no sockets: what was lost there is an entry, and nobody saw it end.
    if evidence.ipvs_service(at.netns, here).is_some() {
        return None;
    }
    // A stray segment that reaches the initiator's host was not translated on its way: that is not the
    // story of a server that restarted.
    if evidence.client_view().is_some_and(|flow| flow.src == here) {
        return None;
    }
    if closed {
        return Some(
            Verdict::new(Confidence::Inferred, format!("{here} had closed its socket, unseen"))
                .finding(Finding {
                    kind: "fin_received",
                    ts: at.ts,
                    summary: format!(
                        "its peer had received a FIN, and a packet after that found no connection at \
                         {here}"
                    ),
                })
                .prove("keep rsttrace running: who closes a connection is then on record"),
        );
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

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    let here = evidence.stateless().and_then(|at| at.value.trigger).map(|packet| packet.flow.dst);
    if here.is_none() || evidence.client_view().map(|flow| flow.src) != here {
        return vec![DETECT_RESTARTS.fix()];
    }
    // It was the client's: no server has to be waited for, or detected.
    match end(evidence).filter(|end| end.err == 0 && end.task.exiting) {
        Some(end) => vec![remedy::stop_gracefully(&end.task)],
        None => vec![GIVE_UP_LAST.fix()],
    }
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    remedy::told(NOT_FIXES)
}
