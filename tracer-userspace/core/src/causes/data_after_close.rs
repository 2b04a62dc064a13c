//! Data arrived for a connection the application had already closed.

use rsttrace_model::{tcp_state, units::human_s};

use super::{
    cause::Cause,
    doc::{Doc, Need, Sign},
    remedy,
};
use crate::{
    case::Stamped,
    event::ResetSent,
    evidence::Evidence,
    fix::{Fix, FixOwner, Remedy, Risk},
    verdict::{Confidence, Family, Finding, NotFix, Verdict},
};

pub const CAUSE: Cause = Cause {
    id: "data_after_close",
    family: Family::Application,
    title: "data arrived for a connection the application had already closed",
    doc: Doc {
        about: "Data came for a connection that this host's application had already closed: its \
                socket was an orphan, in TIME_WAIT, or shut for reading, so nobody can read the data and \
                the kernel resets the sender. The connection was in use, its process ended, or the sender \
                had been told of the end and wrote all the same.",
        signs: &[
            Sign::observed(
                "the packet was answered for a socket in TIME_WAIT, without owner, or shut for \
                 reading, and its close is on record",
                &[Need::Full("reset_sent"), Need::Any("socket_end")],
            ),
            Sign::correlated(
                "the same before its close could be recorded: it may have been a race",
                &[Need::Any("reset_sent")],
            ),
        ],
        mistaken_for: &[
            (
                "idle_close_race",
                "there the connection had been idle, and the sender could not know of the close",
            ),
            ("close_unread_data", "there the data had come before the close"),
            ("socket_gone", "there not even TIME_WAIT was left"),
        ],
        fixes: &[remedy::STOP_GRACEFULLY, GIVE_UP_FIRST, remedy::RETRY],
        not_fixes: NOT_FIXES,
    },
    judge,
    rule_out,
    fixes,
    not_fixes,
    ..Cause::BASE
};

const GIVE_UP_FIRST: Remedy = Remedy {
    id: "reuser_gives_up_first",
    owner: FixOwner::Application,
    risk: Risk::Low,
    summary: "let the side that reuses the connection give it up first",
    reason: "with the client's idle timeout 10 to 15 s below the server's, no request meets a \
             closed connection",
    how: "client idle timeout < server keep-alive timeout; retry only requests that are safe to \
          repeat",
};

/// What the kernel's knobs for closed connections do not change.
pub const NOT_FIXES: &[(&str, &str)] = &[(
    "net.ipv4.tcp_tw_reuse, net.ipv4.tcp_fin_timeout",
    "the socket is closed either way; these only decide how long the kernel remembers it",
)];

/// The answer of a socket that is only waiting for its own end.
pub fn answer<'a>(evidence: &Evidence<'a>) -> Option<(&'a Stamped<ResetSent>, &'static str)> {
    evidence.case.sent.iter().find_map(|at| {
        at.value.trigger?;
        let socket = at.value.socket.as_ref()?;
        let where_ = if socket.state == tcp_state::TIME_WAIT {
            "in TIME_WAIT"
        } else if socket.is_connection() && socket.dead {
            "closed and orphaned"
        } else if socket.is_connection() && shut_for_reading(&at.value) {
            "shut for reading"
        } else {
            return None;
        };
        Some((at, where_))
    })
}

/// `shutdown(SHUT_RDWR)`, with the socket still held: data is answered like after a close
/// (net/ipv4/tcp_input.c, tcp_rcv_state_process).
fn shut_for_reading(sent: &ResetSent) -> bool {
    match sent.reason.as_deref() {
        Some(reason) => reason == "TCP_ABORT_ON_DATA",
        None => sent.end.as_ref().is_some_and(|end| end.err == 0),
    }
}

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    let (at, where_) = answer(evidence)?;
    let closer = at.value.end.as_ref().filter(|end| end.err == 0).map(|end| {
        let how = end.task.ending().unwrap_or("closed it".into());
        (format!("{} {how}", end.task), end.ts)
    });
    let payload = at.value.trigger.map_or(0, |trigger| trigger.payload);
    let (who, ts) = closer.unwrap_or(("the application closed it".into(), at.ts));
    let before = evidence.age_s(ts);
    let when = if before > 0.0 { format!(" {} before", human_s(before)) } else { String::new() };
    // Who closed, and when, is what tells it from a race.
    let known = at.value.end.is_some();
    let confidence = if known { Confidence::Observed } else { Confidence::Correlated };
    Some(
        Verdict::new(confidence, format!("{who}{when}, then {payload} B more arrived"))
            .finding(Finding { kind: "closed_before", ts, summary: format!("{who}{when}") })
            .finding(Finding {
                kind: "data_after_close",
                ts: at.ts,
                summary: format!("{payload} B arrived for a socket that was {where_}"),
            }),
    )
}

fn rule_out(evidence: &Evidence<'_>) -> Option<String> {
    // A reset that answers data was made by whoever got it; an active one answers nothing.
    evidence.active().map(|_| "the reset answers no packet".into())
}

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    let end = answer(evidence).and_then(|(at, _)| at.value.end.as_ref());
    // Whose process has ended did not close for idleness: no idle timeout would have helped.
    match end.filter(|end| end.err == 0 && end.task.exiting) {
        Some(end) => vec![remedy::stop_gracefully(&end.task), remedy::RETRY.fix()],
        None => vec![GIVE_UP_FIRST.fix()],
    }
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    remedy::told(NOT_FIXES)
}
