//! The listener closed with connections in its queue.

use super::{Cause, Family, NotFix, Verdict, nothing_ruled_out};
use crate::{
    evidence::Evidence,
    fix::{Change, Fix, FixOwner, Risk},
    incident::{Confidence, Finding},
};

pub const CAUSE: Cause = Cause {
    id: "listener_closed",
    family: Family::Application,
    title: "the listener closed with connections in its queue",
    judge,
    rule_out: nothing_ruled_out,
    fixes,
    not_fixes,
};

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    let at = evidence.listener_stopped()?;
    let task = &at.it.task;
    let who = task.to_string();
    let how = if task.exiting { "exited with its listener" } else { "closed its listener" };
    Some(Verdict::new(Confidence::Observed, format!("{who} {how} before accepting it")).finding(
        Finding {
            kind: "listener_closed",
            ts: at.ts,
            summary: format!("{who} {how}; this connection was still in the queue"),
        },
    ))
}

fn fixes(_: &Evidence<'_>) -> Vec<Fix> {
    vec![Fix {
        id: "drain_before_close",
        owner: FixOwner::Application,
        risk: Risk::Low,
        summary: "stop new connections first, accept what is queued, then close the listener"
            .into(),
        reason: "the peers of queued connections believe they are connected".into(),
        current: None,
        wanted: None,
        changes: vec![Change::Advice {
            text:
                "take the server out of the load balancer before stopping it; with SO_REUSEPORT, \
                   net.ipv4.tcp_migrate_req=1 hands the queue to another listener"
                    .into(),
        }],
    }]
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    vec![(
        "a larger backlog".into(),
        "more connections would wait in the queue that is closed".into(),
    )]
}
