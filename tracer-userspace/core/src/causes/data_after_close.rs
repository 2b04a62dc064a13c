//! Data arrived for a connection the application had already closed.

use rsttrace_model::{tcp_flag, tcp_state, units::human_s};

use super::{
    cause::Cause,
    doc::{Detection, Doc, RequiredSignal},
    remedy,
};
use crate::{
    case::Stamped,
    event::{ResetSent, SocketEnd},
    evidence::{Evidence, ResettingEnd},
    fix::{Fix, FixOwner, Remedy, Risk},
    verdict::{Confidence, Family, Finding, NotFix, Verdict},
};

pub const CAUSE: Cause = Cause {
    id: "data_after_close",
    family: Family::Application,
    title: "data arrived for a connection the application had already closed",
    doc: Doc {
        about: "Data arrived for a connection that this host's application had already closed. The \
                socket was an orphan, in TIME_WAIT, or shut for reading, so no process can read \
                the data and the kernel resets the sender. Either the connection was in use, or \
                its process had ended, or the sender had read the end of the connection and wrote \
                anyway.",
        detections: &[
            Detection::observed(
                "the kernel reset a packet for a socket in TIME_WAIT, without an owner, or shut \
                 for reading, and the close of the socket was recorded",
                &[RequiredSignal::Full("reset_sent"), RequiredSignal::Any("socket_end")],
            ),
            Detection::correlated(
                "the same, but the close was not recorded, so it may have been a race",
                &[RequiredSignal::Any("reset_sent")],
            ),
        ],
        mistaken_for: &[
            (
                "idle_close_race",
                "the connection had been idle, and the sender could not know of the close",
            ),
            ("close_unread_data", "the data had arrived before the close"),
            ("socket_gone", "no socket was left, not even in TIME_WAIT"),
        ],
        fixes: &[
            remedy::STOP_GRACEFULLY,
            GIVE_UP_FIRST,
            remedy::CALLER_WAITS_LONGER,
            OTHER_PORT,
            remedy::RETRY,
        ],
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
    summary: "let the side that reuses the connection close it first",
    reason: "with the client's idle timeout 10 to 15 s below the server's, no request reaches a \
             closed connection",
    how: "set the client's idle timeout below the server's keep-alive timeout; retry only requests \
          that are safe to repeat",
};

const OTHER_PORT: Remedy = Remedy {
    id: "connect_from_another_port",
    owner: FixOwner::Application,
    risk: Risk::Low,
    summary: "let the client connect from another port",
    reason: "the server still has a socket for these addresses and ports, for up to 60 s after it \
             closed the connection",
    how: "do not bind() the client to a fixed port; where NAT chooses the port, give NAT more ports \
          or addresses",
};

/// Sysctls for closed connections that do not help.
pub const NOT_FIXES: &[(&str, &str)] = &[(
    "net.ipv4.tcp_tw_reuse, net.ipv4.tcp_fin_timeout",
    "the socket is closed either way; these only control how long the kernel keeps its state",
)];

/// The reset by a socket that was already closed or shut for reading, and the state of that socket.
pub fn answer<'a>(evidence: &Evidence<'a>) -> Option<(&'a Stamped<ResetSent>, &'static str)> {
    evidence.case.sent.iter().find_map(|at| {
        at.value.trigger?;
        let socket = at.value.socket.as_ref()?;
        let state = if socket.state == tcp_state::TIME_WAIT {
            "in TIME_WAIT"
        } else if socket.is_connection() && socket.dead {
            "closed and orphaned"
        } else if socket.is_connection() && shut_for_reading(&at.value) {
            "shut for reading"
        } else {
            return None;
        };
        Some((at, state))
    })
}

/// `shutdown(SHUT_RDWR)` with the socket still open: the kernel answers data as after a close
/// (net/ipv4/tcp_input.c, tcp_rcv_state_process).
fn shut_for_reading(sent: &ResetSent) -> bool {
    match sent.reason.as_deref() {
        Some(reason) => reason == "TCP_ABORT_ON_DATA",
        None => sent.end.as_ref().is_some_and(|end| end.err == 0),
    }
}

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    long_gone(evidence).or_else(|| answered(evidence))
}

/// The close of the end that reset the connection, where the end of an entry is on record too.
fn closed_meanwhile<'a>(evidence: &Evidence<'a>) -> Option<&'a SocketEnd> {
    match evidence.resetting_end() {
        ResettingEnd::Closed(end) if evidence.has_loss() => Some(end),
        _ => None,
    }
}

/// The end of an entry of this connection is on record too. The closed socket would have reset the packet also with
/// that entry alive.
fn long_gone(evidence: &Evidence<'_>) -> Option<Verdict> {
    let end = closed_meanwhile(evidence)?;
    let at = evidence.stateless()?;
    let how = end.task.ending().unwrap_or("closed the connection".into());
    let who = format!("{} {how} {} earlier", end.task, human_s(evidence.age_s(end.ts)));
    let payload = at.value.trigger.map_or(0, |trigger| trigger.payload);
    Some(
        Verdict::new(Confidence::Observed, format!("{who}, then {payload} B more arrived"))
            .finding(Finding { kind: "closed_before", ts: end.ts, summary: who })
            .finding(Finding {
                kind: "entry_ended_too",
                ts: at.ts,
                summary:
                    "an IPVS or conntrack entry of the connection ended after the close; with \
                          the entry the packet would have met the closed socket"
                        .into(),
            }),
    )
}

fn answered(evidence: &Evidence<'_>) -> Option<Verdict> {
    let (at, state) = answer(evidence)?;
    let closer = at.value.end.as_ref().filter(|end| end.err == 0).map(|end| {
        let how = end.task.ending().unwrap_or("closed the connection".into());
        (format!("{} {how}", end.task), end.ts)
    });
    let trigger = at.value.trigger?;
    let payload = trigger.payload;
    let arrived = match trigger.has(tcp_flag::SYN) {
        true => "a SYN of the same addresses and ports arrived".to_owned(),
        false => format!("{payload} B more arrived"),
    };
    let (who, ts) = closer.unwrap_or(("the application closed the connection".into(), at.ts));
    let before = evidence.age_s(ts);
    let when = if before > 0.0 { format!(" {} earlier", human_s(before)) } else { String::new() };
    // A race can be excluded only when it is known what closed the socket, and when.
    let known = at.value.end.is_some();
    let confidence = if known { Confidence::Observed } else { Confidence::Correlated };
    Some(
        Verdict::new(confidence, format!("{who}{when}, then {arrived}"))
            .finding(Finding { kind: "closed_before", ts, summary: format!("{who}{when}") })
            .finding(Finding {
                kind: "data_after_close",
                ts: at.ts,
                summary: format!("{arrived} for a socket that was {state}"),
            }),
    )
}

fn rule_out(evidence: &Evidence<'_>) -> Option<String> {
    // A reset that answers data was sent by the receiver of the data; an active one answers no packet.
    evidence.active().map(|_| "the reset did not answer a packet".into())
}

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    if let Some(end) = closed_meanwhile(evidence) {
        let here = evidence.stateless().and_then(|at| at.value.trigger).map(|it| it.flow.dst);
        let by_client = evidence.client_view().map(|view| view.src) == here;
        return match (end.task.exiting, by_client) {
            (true, _) => vec![remedy::stop_gracefully(&end.task), remedy::RETRY.fix()],
            (false, true) => vec![remedy::CALLER_WAITS_LONGER.fix()],
            (false, false) => vec![GIVE_UP_FIRST.fix()],
        };
    }
    let answered = answer(evidence);
    let trigger = answered.and_then(|(at, _)| at.value.trigger);
    if trigger.is_some_and(|trigger| trigger.has(tcp_flag::SYN)) {
        return vec![OTHER_PORT.fix()];
    }
    let end = answered.and_then(|(at, _)| at.value.end.as_ref());
    // A process that ended did not close because of idleness, so no idle timeout would have helped.
    match end.filter(|end| end.err == 0 && end.task.exiting) {
        Some(end) => vec![remedy::stop_gracefully(&end.task), remedy::RETRY.fix()],
        None => vec![GIVE_UP_FIRST.fix()],
    }
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    remedy::to_not_fixes(NOT_FIXES)
}
