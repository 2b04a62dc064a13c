//! The application closed with data still unread.

use super::{
    cause::Cause,
    doc::{Doc, Need, Sign},
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
                then sends RST|ACK in place of a FIN, so that the peer learns that its data was lost (RFC \
                2525 2.17; net/ipv4/tcp.c, __tcp_close). The peer may lose an answer it had not read yet: \
                an HTTP server that refuses an upload with 413 and closes is the classic.",
        signs: &[Sign::observed(
            "a reset sent by __tcp_close with reason TCP_ABORT_ON_CLOSE, or before 6.10 with \
                 unread bytes in the queue",
            &[Need::Any("reset_sent"), Need::Any("kernel_symbols")],
        )],
        mistaken_for: &[
            ("linger_zero", "there SO_LINGER asked for the reset"),
            ("data_after_close", "there the data came after the close"),
            ("process_killed", "there the owner did not close, it died"),
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
    summary: "read to the end before closing",
    reason: "closing with unread data tells the peer by a reset that the data was lost (RFC 2525)",
    how: "shutdown(SHUT_WR), then read until end of file, then close; an HTTP server reads the \
          request body even when it answers with an error",
};

const NOT_FIXES: &[(&str, &str)] = &[
    ("any sysctl", "the kernel only reports what the application did"),
    ("SO_LINGER", "it decides about unsent data, not about unread data"),
];

/// The reset of a close with unread data (RFC 2525 2.17), and the unread amount in words.
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
        // Kernels before 6.10 do not say; of __tcp_close's resets only this one has unread data.
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
    remedy::told(NOT_FIXES)
}
