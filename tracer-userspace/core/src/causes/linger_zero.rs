//! Deliberate aborts: SO_LINGER with timeout 0, connect(AF_UNSPEC), TCP_LINGER2 below 0.

use super::{
    cause::Cause,
    doc::{Detection, Doc, RequiredSignal},
    remedy,
};
use crate::{
    case::Stamped,
    event::{ResetSent, has},
    evidence::Evidence,
    fix::{Fix, FixOwner, Remedy, Risk},
    verdict::{Confidence, Family, Finding, NotFix, Verdict},
};

pub const CAUSE: Cause = Cause {
    id: "linger_zero",
    family: Family::Application,
    title: "the application aborted on purpose (SO_LINGER 0, connect(AF_UNSPEC), TCP_LINGER2 below \
            0)",
    doc: Doc {
        about: "An application requested a reset instead of a close: SO_LINGER with timeout 0, \
                connect(AF_UNSPEC) on a connected socket, or TCP_LINGER2 below 0. Data in flight \
                in either direction is discarded.",
        detections: &[
            Detection::observed(
                "a reset sent from tcp_disconnect with SO_LINGER 0 set, or by connect(AF_UNSPEC), \
                 or at the close of a socket whose TCP_LINGER2 is below 0",
                &[RequiredSignal::Any("reset_sent"), RequiredSignal::Any("kernel_symbols")],
            ),
            Detection::observed(
                "an orphan whose TCP_LINGER2 is below 0 answered the acknowledgement of its FIN \
                 with a reset",
                &[RequiredSignal::Any("reset_sent")],
            ),
        ],
        mistaken_for: &[
            (
                "close_unread_data",
                "unread data in the queue, not a socket option, caused the reset",
            ),
            (
                "handshake_rejected",
                "a health check does the same without payload, and breaks nothing",
            ),
            ("socket_destroyed", "another process aborted the socket"),
        ],
        fixes: &[DROP_LINGER],
        not_fixes: NOT_FIXES,
    },
    judge,
    fixes,
    not_fixes,
    ..Cause::BASE
};

const DROP_LINGER: Remedy = Remedy {
    id: "drop_linger_zero",
    owner: FixOwner::Application,
    risk: Risk::Low,
    summary: "do not abort a connection that is in use (SO_LINGER 0, TCP_LINGER2, AF_UNSPEC)",
    reason: "such an abort discards data in flight and resets the peer by design",
    how: "remove the setting that does this, for example Go SetLinger(0), nginx \
          reset_timedout_connection or HAProxy option nolinger",
};

const NOT_FIXES: &[(&str, &str)] = &[("net.ipv4.tcp_fin_timeout", "this close sends no FIN")];

/// The kind of deliberate abort.
fn kind(sent: &ResetSent) -> Option<&'static str> {
    let socket = sent.socket.as_ref()?;
    let disconnected = has(&sent.stack, "tcp_disconnect");
    let closing = has(&sent.stack, "__tcp_close");
    if disconnected && closing && socket.linger_zero {
        return Some("closed the socket with SO_LINGER 0");
    }
    if disconnected && !closing {
        return Some("disconnected the socket with connect(AF_UNSPEC)");
    }
    let linger2 = socket.linger2_negative
        && (sent.reason.as_deref() == Some("TCP_ABORT_ON_LINGER")
            || closing
            || has(&sent.stack, "tcp_keepalive_timer"));
    linger2.then_some("closed the socket with TCP_LINGER2 below 0")
}

/// An orphan with TCP_LINGER2 below 0 is reset as soon as its FIN is acknowledged, in answer to that very
/// acknowledgement (net/ipv4/tcp_input.c, tcp_rcv_state_process).
fn timed_out_linger2<'a>(evidence: &Evidence<'a>) -> Option<&'a Stamped<ResetSent>> {
    let at = evidence.sent()?;
    let socket = at.value.socket.as_ref()?;
    let by_ack = at.value.trigger.is_some_and(|trigger| trigger.payload == 0);
    (socket.is_connection() && socket.dead && socket.linger2_negative && by_ack).then_some(at)
}

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    let (at, how) = match evidence.active() {
        Some(at) => (at, kind(&at.value)?),
        None => (timed_out_linger2(evidence)?, "closed the socket with TCP_LINGER2 below 0"),
    };
    let task = &at.value.task;
    // In the timer, `current` is an unrelated task.
    let who = match at.value.trigger.is_some() || has(&at.value.stack, "tcp_keepalive_timer") {
        true => "its application".to_owned(),
        false => task.to_string(),
    };
    Some(Verdict::new(Confidence::Observed, format!("{who} {how}")).finding(Finding {
        kind: "linger_zero",
        ts: at.ts,
        summary: format!("{who} {how}"),
    }))
}

fn fixes(_: &Evidence<'_>) -> Vec<Fix> {
    vec![DROP_LINGER.fix()]
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    remedy::to_not_fixes(NOT_FIXES)
}
