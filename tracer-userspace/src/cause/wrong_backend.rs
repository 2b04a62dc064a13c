//! A mid-stream packet reached a listener that never had the connection.

use super::{Cause, Family, NotFix, Verdict, nothing_ruled_out};
use crate::{
    event::tcp_state,
    evidence::Evidence,
    fix::{Change, Fix, FixOwner, Risk},
    incident::{Confidence, Finding},
};

pub const CAUSE: Cause = Cause {
    id: "wrong_backend",
    family: Family::StateLost,
    title: "a mid-stream packet reached a listener that never had the connection",
    judge,
    rule_out: nothing_ruled_out,
    fixes,
    not_fixes,
};

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    if evidence.is_handshake() || !evidence.was_used() {
        return None;
    }
    let at = evidence.stateless()?;
    let socket = at.it.socket.as_ref()?;
    if socket.state != tcp_state::LISTEN || evidence.has_loss() {
        return None;
    }
    let here = at.it.trigger?.flow.dst;
    Some(
        Verdict::new(
            Confidence::Inferred,
            format!("its packet reached the listener at {here}, which never had the connection"),
        )
        .finding(Finding {
            kind: "stray_packet_at_listener",
            ts: at.ts,
            summary: format!("a mid-stream packet reached the listening socket at {here}"),
        })
        .prove(
            "did a load balancer pick another server in mid-stream (sloppy_tcp, a remap, a failover), or \
             was this server restarted? compare the packet's destination with the server that accepted",
        ),
    )
}

fn fixes(_: &Evidence<'_>) -> Vec<Fix> {
    vec![Fix {
        id: "keep_flows_on_one_server",
        owner: FixOwner::Node,
        risk: Risk::Medium,
        summary: "keep a connection on the server that accepted it".into(),
        reason: "only that server has its socket".into(),
        current: None,
        wanted: None,
        changes: vec![Change::Advice {
            text: "schedule by source hash (sh, mh), synchronise connection tables between balancers, do \
                   not use sloppy_tcp with several servers"
                .into(),
        }],
    }]
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    vec![(
        "net.ipv4.vs.sloppy_tcp=1".into(),
        "it lets a balancer pick a new server in mid-stream, which is this very failure".into(),
    )]
}
