//! The IPVS entry expired in any state but ESTABLISHED: half-closed, or never fully opened.

use super::{
    Cause, Family, NotFix, Verdict, human_s,
    ipvs_idle_expired::{ESTABLISHED, finding, is_natural, state_name},
    remedy,
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
    rule_out,
    fixes,
    not_fixes,
};

/// `IP_VS_TCP_S_*` (include/net/ip_vs.h): the server, or the client, has sent its FIN.
const FIN_WAIT: u32 = 4;
/// See [`FIN_WAIT`].
const CLOSE_WAIT: u32 = 7;

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

fn rule_out(evidence: &Evidence<'_>) -> Option<String> {
    let (_, end) = evidence.ipvs()?;
    Some(format!("its IPVS entry ended in {}", state_name(end.state)))
}

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    let Some((loss, end)) = evidence.ipvs() else {
        return Vec::new();
    };
    let mut fixes = Vec::new();
    // Keepalive is sent in these two states as well, and re-arms the entry; nothing is sent before.
    if matches!(end.state, FIN_WAIT | CLOSE_WAIT) {
        fixes.push(remedy::keepalive_below(evidence, end.timeout_s, "the IPVS timer"));
        fixes.push(no_half_close());
    }
    if end.state == FIN_WAIT {
        let place = evidence.place(loss.netns).describe();
        let to_s = remedy::limit_above(evidence.idle_s().unwrap_or(end.timeout_s * 2.0));
        fixes.push(Fix {
            id: "raise_ipvs_fin_timeout",
            owner: FixOwner::Node,
            risk: Risk::Medium,
            summary: format!("raise the IPVS timeout after a FIN to {to_s} s {place}"),
            reason: "the server's FIN came first, which leaves the entry in FIN_WAIT; only that \
                     state's limit can be set"
                .into(),
            current: Some(human_s(end.timeout_s)),
            wanted: Some(format!("{to_s} s")),
            changes: vec![Change::Advice {
                text: format!("{place}: ipvsadm --set 0 {to_s} 0 (0 keeps a value)"),
            }],
        });
    }
    fixes
}

fn no_half_close() -> Fix {
    Fix {
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
    }
}

fn not_fixes(evidence: &Evidence<'_>) -> Vec<NotFix> {
    match evidence.ipvs() {
        Some((_, end)) if end.state == FIN_WAIT => vec![(
            "the first value of ipvsadm --set".into(),
            "it covers ESTABLISHED; after the server's FIN the second one counts".into(),
        )],
        _ => vec![(
            "ipvsadm --set".into(),
            "its values cover ESTABLISHED and FIN_WAIT only; every other state has a fixed limit \
             (CLOSE_WAIT and SYN_RECV 60 s, net/netfilter/ipvs/ip_vs_proto_tcp.c)"
                .into(),
        )],
    }
}
