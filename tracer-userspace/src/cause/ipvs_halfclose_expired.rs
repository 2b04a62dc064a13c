//! The IPVS entry expired in any state but ESTABLISHED: half-closed, or never fully opened.

use super::{
    Cause, Family, NotFix, Verdict, human_s,
    ipvs_idle_expired::{ESTABLISHED, finding, is_natural, state_name},
    nothing_ruled_out,
};
use crate::{
    evidence::Evidence,
    fix::{Change, Fix, FixOwner, Risk},
};

pub const CAUSE: Cause = Cause {
    id: "ipvs_halfclose_expired",
    family: Family::TimeoutMismatch,
    title: "the IPVS entry expired while half-closed or never fully opened",
    judge,
    rule_out: nothing_ruled_out,
    fixes,
    not_fixes,
};

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    if !evidence.looks_like_lost_state() {
        return None;
    }
    let (loss, end) = evidence.ipvs()?;
    if end.state == ESTABLISHED || !is_natural(end) {
        return None;
    }
    let confidence = evidence.lost_entry_confidence();
    Some(
        Verdict::new(
            confidence,
            format!(
                "its IPVS entry had expired in {} (limit {})",
                state_name(end.state),
                human_s(end.timeout_s)
            ),
        )
        .finding(finding(evidence, loss.ts, end)),
    )
}

fn fixes(_: &Evidence<'_>) -> Vec<Fix> {
    vec![Fix {
        id: "no_half_close",
        owner: FixOwner::Application,
        risk: Risk::Low,
        summary: "do not keep a half-closed connection waiting longer than this limit".into(),
        reason: "IPVS gives a connection that has seen a FIN far less time than an open one".into(),
        current: None,
        wanted: None,
        changes: vec![Change::Advice {
            text: "send the end of the request in the protocol instead of shutdown(SHUT_WR), or answer \
                   sooner"
                .into(),
        }],
    }]
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    vec![(
        "ipvsadm --set".into(),
        "its values cover ESTABLISHED and FIN_WAIT only; CLOSE_WAIT has a fixed 60 s \
         (net/netfilter/ipvs/ip_vs_proto_tcp.c)"
            .into(),
    )]
}
