//! The application closed with data still unread.

use super::{Cause, Family, NotFix, Verdict, nothing_ruled_out};
use crate::{
    case::At,
    event::ResetSent,
    evidence::{Evidence, has},
    fix::{Change, Fix, FixOwner, Risk},
    incident::{Confidence, Finding},
};

pub const CAUSE: Cause = Cause {
    id: "close_unread_data",
    family: Family::Application,
    title: "the application closed with data still unread",
    judge,
    rule_out: nothing_ruled_out,
    fixes,
    not_fixes,
};

/// The reset of a close with unread data (RFC 2525 2.17), and the unread amount in words.
pub fn abort<'a>(evidence: &Evidence<'a>) -> Option<(&'a At<ResetSent>, String)> {
    let at = evidence.active()?;
    let sent = &at.it;
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
    let task = &at.it.task;
    let who = task.to_string();
    let how = if task.exiting { "exited" } else { "closed the socket" };
    Some(Verdict::new(Confidence::Observed, format!("{who} {how} with {unread}")).finding(
        Finding { kind: "closed_unread", ts: at.ts, summary: format!("{who} {how} with {unread}") },
    ))
}

fn fixes(_: &Evidence<'_>) -> Vec<Fix> {
    vec![Fix {
        id: "drain_before_close",
        owner: FixOwner::Application,
        risk: Risk::Low,
        summary: "read to the end before closing".into(),
        reason: "closing with unread data tells the peer by a reset that the data was lost (RFC 2525)"
            .into(),
        current: None,
        wanted: None,
        changes: vec![Change::Advice {
            text: "shutdown(SHUT_WR), then read until end of file, then close; an HTTP server reads the \
                   request body even when it answers with an error"
                .into(),
        }],
    }]
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    vec![
        ("any sysctl".into(), "the kernel only reports what the application did".into()),
        ("SO_LINGER".into(), "it decides about unsent data, not about unread data".into()),
    ]
}
