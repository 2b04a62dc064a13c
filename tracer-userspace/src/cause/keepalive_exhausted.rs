//! Keepalive probes ran out: the peer or the path is gone.

use super::{Cause, Family, NotFix, Verdict, human_s, nothing_ruled_out};
use crate::{
    evidence::{Evidence, has},
    fix::{Change, Fix, FixOwner, Risk},
    incident::{Confidence, Finding},
};

pub const CAUSE: Cause = Cause {
    id: "keepalive_exhausted",
    family: Family::Keepalive,
    title: "keepalive probes ran out: the peer or the path is gone",
    judge,
    rule_out: nothing_ruled_out,
    fixes,
    not_fixes,
};

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    let at = evidence.timed_out()?;
    let socket = &at.it.socket;
    if !has(&at.it.stack, "tcp_keepalive_timer") || socket.user_timeout_ms != 0 {
        return None;
    }
    let keepalive = socket.keepalive;
    let idle = evidence.idle_s().map_or(String::new(), |s| format!(", silent for {}", human_s(s)));
    Some(
        Verdict::new(
            Confidence::Observed,
            format!(
                "{} keepalive probes {} apart went unanswered{idle}",
                keepalive.probes,
                human_s(keepalive.intvl_s)
            ),
        )
        .finding(Finding {
            kind: "keepalive_gave_up",
            ts: at.ts,
            summary: format!(
                "tcp_keepalive_timer gave up after {} probes (time {}, interval {})",
                socket.probes_out,
                human_s(keepalive.time_s),
                human_s(keepalive.intvl_s)
            ),
        }),
    )
}

fn fixes(_: &Evidence<'_>) -> Vec<Fix> {
    vec![Fix {
        id: "restore_the_path",
        owner: FixOwner::Node,
        risk: Risk::Low,
        summary: "find out where the path or the peer went".into(),
        reason: "keepalive did its job: nobody answered".into(),
        current: None,
        wanted: None,
        changes: vec![Change::Advice {
            text: "was the peer restarted, its node lost, a route or policy changed? look for drops on \
                   the way (ipvs, conntrack, firewall) in the minutes before"
                .into(),
        }],
    }]
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    vec![(
        "a longer net.ipv4.tcp_keepalive_time".into(),
        "it only makes a dead connection look alive for longer".into(),
    )]
}
