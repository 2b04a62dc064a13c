//! An administrator or agent destroyed the socket.

use super::{Cause, Family, NotFix, Verdict, nothing_ruled_out};
use crate::{
    evidence::{ECONNABORTED, Evidence, has},
    fix::{Change, Fix, FixOwner, Risk},
    incident::{Confidence, Finding},
};

pub const CAUSE: Cause = Cause {
    id: "socket_destroyed",
    family: Family::Policy,
    title: "an administrator or agent destroyed the socket (ss -K, SOCK_DESTROY)",
    judge,
    rule_out: nothing_ruled_out,
    fixes,
    not_fixes,
};

/// Time and destroyer. Destroying runs in the destroyer's own context.
fn destroyed(evidence: &Evidence<'_>) -> Option<(u64, String)> {
    let who = |task: &crate::event::Task| task.to_string();
    if let Some(at) = evidence.active().filter(|at| has(&at.it.stack, "tcp_abort")) {
        return Some((at.ts, who(&at.it.task)));
    }
    let at = evidence
        .case
        .errors
        .iter()
        .find(|at| at.it.socket.err == ECONNABORTED && has(&at.it.stack, "tcp_abort"))?;
    Some((at.ts, who(&at.it.task)))
}

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    let (ts, who) = destroyed(evidence)?;
    Some(Verdict::new(Confidence::Observed, format!("{who} destroyed its socket")).finding(
        Finding {
            kind: "socket_destroyed",
            ts,
            summary: format!("{who} called tcp_abort on the socket"),
        },
    ))
}

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    let who = destroyed(evidence).map_or("the tool".into(), |(_, who)| who);
    vec![Fix {
        id: "stop_destroying_sockets",
        owner: FixOwner::Node,
        risk: Risk::Low,
        summary: format!("find out why {who} destroys sockets"),
        reason: "nothing else ended this connection".into(),
        current: None,
        wanted: None,
        changes: vec![Change::Advice {
            text: "`ss -K`, CNI agents after an endpoint's removal, and BPF programs do this"
                .into(),
        }],
    }]
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    vec![(
        "any timeout or keepalive sysctl".into(),
        "the socket was not idle, it was killed".into(),
    )]
}
