//! The accept queue was full and the kernel answered with a reset.

use super::{Cause, Family, NotFix, Verdict, nothing_ruled_out};
use crate::{
    evidence::Evidence,
    fix::{Change, Fix, FixOwner, Risk},
    incident::{Confidence, Finding},
};

pub const CAUSE: Cause = Cause {
    id: "listen_overflow",
    family: Family::Capacity,
    title: "the accept queue was full and the kernel answered with a reset",
    judge,
    rule_out: nothing_ruled_out,
    fixes,
    not_fixes,
};

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    if !evidence.listen_overflowed() {
        return None;
    }
    let at = evidence.sent()?;
    let queue = at
        .it
        .socket
        .as_ref()
        .filter(|socket| socket.max_ack_backlog > 0)
        .map(|s| format!(" ({} waiting, {} allowed)", s.ack_backlog, s.max_ack_backlog))
        .unwrap_or_default();
    Some(
        Verdict::new(
            Confidence::Observed,
            format!("the listener's accept queue was full{queue} and tcp_abort_on_overflow is on"),
        )
        .finding(Finding {
            kind: "listen_overflow",
            ts: at.ts,
            summary: format!("a finished handshake found no place in the accept queue{queue}"),
        }),
    )
}

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    let netns = evidence.sent().map_or(evidence.case.netns, |at| at.netns);
    let place = evidence.place(netns);
    let now = evidence.host(netns).and_then(|host| host.tcp.somaxconn).map(u64::from);
    let backlog = evidence
        .sent()
        .and_then(|at| at.it.socket.as_ref())
        .map_or(128, |socket| u64::from(socket.max_ack_backlog).max(64));
    let wanted = (backlog * 4).max(now.unwrap_or(0));
    vec![Fix {
        id: "larger_backlog",
        owner: FixOwner::Application,
        risk: Risk::Low,
        summary: format!("listen with a backlog of {wanted} and accept faster"),
        reason:
            "the queue is the smaller of the listen() argument and net.core.somaxconn, fixed when \
                 listen() is called: restart the listener"
                .into(),
        current: now.map(|value| value.to_string()),
        wanted: Some(wanted.to_string()),
        changes: vec![
            Change::SocketOption { code: format!("listen(fd, {wanted})") },
            Change::Sysctl { place, key: "net.core.somaxconn", from: now, to: wanted },
        ],
    }]
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    vec![(
        "net.core.somaxconn without a restart".into(),
        "the queue's size is fixed when listen() is called".into(),
    )]
}
