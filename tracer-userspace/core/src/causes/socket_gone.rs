//! The socket had been closed, or its process or host restarted.

use rsttrace_model::{errno::errno_text, tcp_flag, tcp_state, units::human_s};

use super::{
    cause::Cause,
    doc::{Detection, Doc, RequiredSignal},
    remedy,
};
use crate::{
    event::{Socket, SocketEnd},
    evidence::Evidence,
    fix::{Fix, FixOwner, Remedy, Risk},
    verdict::{Confidence, Family, Finding, NotFix, Verdict},
};

pub const CAUSE: Cause = Cause {
    id: "socket_gone",
    family: Family::StateLost,
    title: "the socket had been closed, or its process or host restarted",
    doc: Doc {
        about: "A mid-stream packet reached the host that once had the connection, but no socket \
                was left. The socket had been closed long enough ago, had failed, or its process, \
                container or host was restarted. The TCP stack answers with a bare RST \
                (NO_SOCKET). The peer did not notice because it was idle all the time.",
        detections: &[
            Detection::correlated(
                "the end of this connection's socket was recorded, and a later packet was reset \
                 because the socket was gone",
                &[RequiredSignal::Full("reset_sent"), RequiredSignal::Any("socket_end")],
            ),
            Detection::inferred(
                "a packet of a connection that was in use found no socket and no listener, and no \
                 IPVS or conntrack entry of the connection had ended",
                &[RequiredSignal::Full("reset_sent")],
            ),
            Detection::inferred(
                "the same for a packet without payload; the other end of the connection shows that \
                 it was in use",
                &[RequiredSignal::Full("reset_sent"), RequiredSignal::Any("reset_received")],
            ),
        ],
        mistaken_for: &[
            (
                "ipvs_idle_expired",
                "the packet should have been forwarded, but an IPVS or NAT entry had ended",
            ),
            ("wrong_backend", "a listener received the packet"),
            ("data_after_close", "the kernel still had state of the closed socket"),
        ],
        fixes: &[DETECT_RESTARTS, remedy::CALLER_WAITS_LONGER, remedy::STOP_GRACEFULLY],
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
    reason: "a restarted server has no state for its old connections",
    how: "validate pooled connections on borrow, or set a keepalive short enough to notice the \
          restart",
};

const NOT_FIXES: &[(&str, &str)] =
    &[("conntrack and IPVS timeouts", "the packet reached a host that has no such socket")];

/// The recorded end of this connection's socket, not older than the victim's last received segment.
fn end<'a>(evidence: &Evidence<'a>) -> Option<&'a SocketEnd> {
    let at = evidence.stateless()?;
    let end = at.value.end.as_ref()?;
    // An end that came with this incident (the reset ended the socket) is not its cause.
    if end.ts >= evidence.case.opened {
        return None;
    }
    // The FIN of that close is itself a received segment, at most a second in flight.
    let last_received = evidence.last_received().unwrap_or(0);
    (end.ts.saturating_add(1_000_000_000) >= last_received).then_some(end)
}

/// A tuple is not used again for as long as its last socket stays in TIME_WAIT or FIN_WAIT2 (TCP_TIMEWAIT_LEN, 60 s),
/// so that a newer end belongs to this connection. Without the victim, an older one may belong to an earlier
/// connection of the tuple.
const REUSED_AFTER_S: f64 = 60.0;

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
    if let Some(verdict) = came_back(evidence) {
        return Some(verdict);
    }
    // Segments that arrive after an abort are answered like this too.
    if evidence.active().is_some() {
        return None;
    }
    let at = evidence.stateless()?;
    let here = at.value.trigger?.flow.dst;
    if let Some(end) = end(evidence) {
        let before = human_s(evidence.age_s(end.ts));
        let how = ended(end);
        let is_dated =
            evidence.last_received().is_some() || evidence.age_s(end.ts) < REUSED_AFTER_S;
        let found = Finding {
            kind: "socket_ended",
            ts: end.ts,
            summary: format!("the socket of this connection at {here}: {how}"),
        };
        if is_dated {
            let why = format!("{how} {before} earlier");
            return Some(Verdict::new(Confidence::Correlated, why).finding(found));
        }
        let why = format!("{how} {before} earlier, if it was this connection and not an older one");
        return Some(Verdict::new(Confidence::Inferred, why).finding(found).prove(
            "the newest recorded end of these addresses and ports is assumed: compare its time with \
             when the sender opened the connection",
        ));
    }
    // A peer that received a FIN was closed on, even if a process listens there; otherwise a listener is
    // another server. A virtual address has no sockets.
    let closed = evidence.peer_closed();
    if (at.value.socket.is_some() && !closed)
        || !evidence.was_used()
        || !evidence.lost_nothing()
        || evidence.balanced().is_some()
    {
        return None;
    }
    // A virtual service has no sockets: an entry was lost there, and its end was not recorded.
    if evidence.ipvs_service(at.netns, here).is_some() {
        return None;
    }
    // A segment without a connection at the initiator's host was not translated on the path: no server
    // restart explains it.
    if evidence.client_view().is_some_and(|flow| flow.src == here) {
        return None;
    }
    if closed {
        return Some(
            Verdict::new(
                Confidence::Inferred,
                format!("{here} had closed its socket, and the close was not recorded"),
            )
            .finding(Finding {
                kind: "fin_received",
                ts: at.ts,
                summary: format!(
                    "the peer had received a FIN, and a later packet found no connection at {here}"
                ),
            })
            .prove("keep rsttrace running; it then records which process closes a connection"),
        );
    }
    Some(
        Verdict::new(
            Confidence::Inferred,
            format!(
                "{here} has no socket for the connection, and no end of its socket was recorded"
            ),
        )
        .finding(Finding {
            kind: "no_socket",
            ts: at.ts,
            summary: format!(
                "a mid-stream packet found neither a connection nor a listener at {here}"
            ),
        })
        .prove(
            "check whether the server's process, pod or host was restarted, or its address moved, \
             after the connection was made",
        ),
    )
}

/// The host of one end had lost its socket without a FIN, and connects again from the same port. The other end answers
/// its SYN with an ACK (a challenge ACK, RFC 5961 section 4), which the new socket resets.
fn came_back(evidence: &Evidence<'_>) -> Option<Verdict> {
    let at = evidence.sent()?;
    let (trigger, new) = (at.value.trigger?, at.value.socket.as_ref()?);
    if new.state != tcp_state::SYN_SENT || !trigger.has(tcp_flag::ACK) || trigger.has(tcp_flag::SYN)
    {
        return None;
    }
    let is_old = |socket: &Socket| socket.flow.dst == trigger.flow.dst && !socket.never_used();
    evidence.victims().find(|(_, _, socket)| is_old(socket))?;
    let here = trigger.flow.dst;
    Some(
        Verdict::new(
            Confidence::Inferred,
            format!("{here} had lost the connection's socket, and connected again from the same port"),
        )
        .finding(Finding {
            kind: "connects_again",
            ts: at.ts,
            summary: format!(
                "a new socket at {here} in SYN_SENT received an ACK of the old connection and reset it"
            ),
        })
        .prove(format!("check whether the host or process of {} was restarted", here.ip())),
    )
}

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    let here = evidence.stateless().and_then(|at| at.value.trigger).map(|packet| packet.flow.dst);
    if here.is_none() || evidence.client_view().map(|flow| flow.src) != here {
        return vec![DETECT_RESTARTS.fix()];
    }
    // The lost socket was the client's, so no server restart has to be detected.
    match end(evidence).filter(|end| end.err == 0 && end.task.exiting) {
        Some(end) => vec![remedy::stop_gracefully(&end.task)],
        None => vec![remedy::CALLER_WAITS_LONGER.fix()],
    }
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    remedy::to_not_fixes(NOT_FIXES)
}
