//! The application closed with data still unread.

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
    id: "close_unread_data",
    family: Family::Application,
    title: "the application closed with data still unread",
    doc: Doc {
        about: "An application closed a socket whose receive queue still held data. The kernel \
                then sends RST|ACK in place of a FIN, so that the peer learns that its data was \
                lost (RFC 2525 2.17; net/ipv4/tcp.c, __tcp_close). The peer may also lose an \
                answer that it has not read yet. The classic example is an HTTP server that \
                refuses an upload with 413 and closes.",
        detections: &[Detection::observed(
            "a reset sent by __tcp_close with reason TCP_ABORT_ON_CLOSE, or, before 6.10, with \
             unread bytes in the receive queue",
            &[RequiredSignal::Any("reset_sent"), RequiredSignal::Any("kernel_symbols")],
        )],
        mistaken_for: &[
            ("linger_zero", "the application requested the reset with SO_LINGER 0"),
            ("data_after_close", "the data arrived after the close"),
            ("process_killed", "the owner died instead of closing the socket"),
        ],
        fixes: &[DRAIN],
        not_fixes: NOT_FIXES,
    },
    judge,
    fixes,
    not_fixes,
    ..Cause::BASE
};

const DRAIN: Remedy = Remedy {
    id: "drain_before_close",
    owner: FixOwner::Application,
    risk: Risk::Low,
    summary: "read to end of file before closing the socket",
    reason: "a close with unread data makes the kernel reset the peer, because that data is lost \
             (RFC 2525)",
    how: "call shutdown(SHUT_WR), read until end of file, then close; an HTTP server must read the \
          request body even when it answers with an error",
};

const NOT_FIXES: &[(&str, &str)] = &[
    ("any sysctl", "the kernel only reports the application's close to the peer"),
    ("SO_LINGER", "it controls unsent data, not unread data"),
];

/// The reset of a close with unread data (RFC 2525 2.17), and the unread amount as text.
pub fn abort<'a>(evidence: &Evidence<'a>) -> Option<(&'a Stamped<ResetSent>, String)> {
    let at = evidence.active()?;
    let sent = &at.value;
    let closing = has(&sent.stack, "__tcp_close") || has(&sent.stack, "tcp_close");
    if has(&sent.stack, "tcp_disconnect") {
        return None;
    }
    let unread = sent.socket.as_ref()?.unread;
    let by_kernel = match sent.reason.as_deref() {
        Some(reason) => reason == "TCP_ABORT_ON_CLOSE",
        // Kernels before 6.10 give no reason; of __tcp_close's resets only this one has unread data.
        None => closing && unread > 0,
    };
    let amount = if unread > 0 { format!("{unread} B unread") } else { "unread data".into() };
    by_kernel.then_some((at, amount))
}

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    let (at, unread) = abort(evidence)?;
    let task = &at.value.task;
    let who = task.to_string();
    let how = if task.exiting { "exited" } else { "closed the socket" };
    Some(Verdict::new(Confidence::Observed, format!("{who} {how} with {unread}")).finding(
        Finding { kind: "closed_unread", ts: at.ts, summary: format!("{who} {how} with {unread}") },
    ))
}

fn fixes(_: &Evidence<'_>) -> Vec<Fix> {
    vec![DRAIN.fix()]
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    remedy::to_not_fixes(NOT_FIXES)
}
