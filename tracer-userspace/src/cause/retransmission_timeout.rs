//! Unanswered data, SYNs or window probes ran out of retries.

use super::{Cause, Family, NotFix, Verdict, human_s, nothing_ruled_out};
use crate::{
    event::{Socket, tcp_state},
    evidence::Evidence,
    fix::{Change, Fix, FixOwner, Risk},
    incident::{Confidence, Finding, errno_name},
};

pub const CAUSE: Cause = Cause {
    id: "retransmission_timeout",
    family: Family::Keepalive,
    title: "unanswered data, SYNs or window probes ran out of retries",
    judge,
    rule_out: nothing_ruled_out,
    fixes,
    not_fixes,
};

/// What it was that nobody answered.
fn unanswered(socket: &Socket, connecting: bool) -> &'static str {
    if connecting {
        "SYNs"
    } else if socket.probes_out > 0 && socket.retransmits == 0 {
        "zero-window probes"
    } else {
        "data"
    }
}

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    let at = evidence.timed_out()?;
    let socket = &at.it.socket;
    // The state is CLOSE by now; a socket that never received anything was still connecting.
    let connecting = socket.state == tcp_state::SYN_SENT || socket.rcv_nxt == 0;
    let what = unanswered(socket, connecting);
    let soft = errno_name(socket.err_soft)
        .map(|name| format!("; an ICMP error said {name}"))
        .unwrap_or_default();
    let mut verdict = Verdict::new(
        Confidence::Observed,
        format!("{what} went unanswered until the retries ran out{soft}"),
    )
    .finding(Finding {
        kind: "retransmission_gave_up",
        ts: at.ts,
        summary: format!(
            "{what}: {} retransmissions, {} probes, tcp_retries2 {}{soft}",
            socket.retransmits, socket.probes_out, socket.retries2
        ),
    });
    if let Some((loss, drop)) = evidence.drops().first() {
        verdict = verdict.finding(Finding {
            kind: "netfilter_drop",
            ts: loss.ts,
            summary: format!(
                "netfilter dropped {} {}, {} before",
                drop.packet.flow,
                evidence.place(loss.netns).describe(),
                human_s(evidence.age_s(loss.ts)),
            ),
        });
    }
    Some(verdict)
}

fn fixes(_: &Evidence<'_>) -> Vec<Fix> {
    vec![Fix {
        id: "restore_the_path",
        owner: FixOwner::Node,
        risk: Risk::Low,
        summary: "find out where the packets went".into(),
        reason: "nothing came back: loss on the path, a silent drop, an MTU black hole or a dead peer"
            .into(),
        current: None,
        wanted: None,
        changes: vec![Change::Advice {
            text: "look for silent drops (IPVS without a server, a full conntrack table, a DROP rule) and \
                   set TCP_USER_TIMEOUT to be told sooner"
                .into(),
        }],
    }]
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    vec![(
        "net.ipv4.tcp_keepalive_*".into(),
        "keepalive does not probe while data is outstanding (net/ipv4/tcp_timer.c)".into(),
    )]
}
