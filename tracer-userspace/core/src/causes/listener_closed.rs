//! The listener closed with connections in its queue.

use super::{
    cause::Cause,
    doc::{Detection, Doc, RequiredSignal},
    remedy,
};
use crate::{
    evidence::Evidence,
    fix::{Fix, FixOwner, Remedy, Risk},
    verdict::{Confidence, Family, Finding, NotFix, Verdict},
};

pub const CAUSE: Cause = Cause {
    id: "listener_closed",
    family: Family::Application,
    title: "the listener closed with connections in its queue",
    doc: Doc {
        about: "A listening socket was closed while finished handshakes waited in its accept \
                queue. Their clients believe they are connected; the kernel resets each of them \
                (net/ipv4/inet_connection_sock.c, inet_csk_listen_stop). A server that stops or \
                reloads does this.",
        detections: &[Detection::observed(
            "the reset was sent from inet_csk_listen_stop, in the context of the process that \
             closed the listener",
            &[RequiredSignal::Any("reset_sent"), RequiredSignal::Any("kernel_symbols")],
        )],
        mistaken_for: &[
            ("connection_refused", "connects after the close are refused"),
            ("process_killed", "an accepted connection ended with its owner"),
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
    id: "accept_before_close",
    owner: FixOwner::Application,
    risk: Risk::Low,
    summary: "stop new connections first, accept what is queued, then close the listener",
    reason: "the peers of queued connections believe they are connected",
    how: "take the server out of the load balancer before stopping it; with SO_REUSEPORT, \
          net.ipv4.tcp_migrate_req=1 hands the queue to another listener",
};

const NOT_FIXES: &[(&str, &str)] =
    &[("a larger backlog", "more connections would wait in the queue that is closed")];

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    let at = evidence.listener_stopped()?;
    let task = &at.value.task;
    let who = task.to_string();
    let how = if task.exiting { "exited with its listener" } else { "closed its listener" };
    Some(
        Verdict::new(Confidence::Observed, format!("{who} {how} before accepting the connection"))
            .finding(Finding {
                kind: "listener_closed",
                ts: at.ts,
                summary: format!("{who} {how}; this connection was still in the queue"),
            }),
    )
}

fn fixes(_: &Evidence<'_>) -> Vec<Fix> {
    vec![DRAIN.fix()]
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    remedy::to_not_fixes(NOT_FIXES)
}
