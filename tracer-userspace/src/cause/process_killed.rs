//! The owner died with data unread.

use super::{Cause, Family, NotFix, Verdict, close_unread_data, nothing_ruled_out};
use crate::{
    event::Task,
    evidence::Evidence,
    fix::{Change, Fix, FixOwner, Risk},
    incident::{Confidence, Finding},
};

pub const CAUSE: Cause = Cause {
    id: "process_killed",
    family: Family::Application,
    title: "the owner died with data unread",
    judge,
    rule_out: nothing_ruled_out,
    fixes,
    not_fixes,
};

/// "was killed by signal 9", "ended with status 2".
fn death(task: &Task) -> String {
    match task.killed_by() {
        Some(signal) => format!("was killed by signal {signal}"),
        None => format!("ended with status {}", task.exit_code >> 8),
    }
}

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    let (at, unread) = close_unread_data::abort(evidence)?;
    let task = &at.it.task;
    if !task.died() {
        return None;
    }
    let who = task.to_string();
    let how = death(task);
    Some(Verdict::new(Confidence::Observed, format!("{who} {how} with data unread")).finding(
        Finding {
            kind: "process_died",
            ts: at.ts,
            summary: format!("{who} {how}; its socket still held {unread}"),
        },
    ))
}

fn fixes(_: &Evidence<'_>) -> Vec<Fix> {
    vec![Fix {
        id: "stop_gracefully",
        owner: FixOwner::Application,
        risk: Risk::Low,
        summary: "stop the process gracefully, and find out what killed it".into(),
        reason: "a killed process cannot read what is queued, so the kernel resets its peers".into(),
        current: None,
        wanted: None,
        changes: vec![Change::Advice {
            text: "signal 9 without an operator is often the OOM killer (dmesg) or a grace period that \
                   is too short (terminationGracePeriodSeconds, TimeoutStopSec)"
                .into(),
        }],
    }]
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    vec![("net.ipv4.tcp_keepalive_*".into(), "the connection was not idle, its owner died".into())]
}
