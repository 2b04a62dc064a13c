//! The real server was taken out of IPVS under a live connection.

use super::{
    Cause, Doc, Family, Need, NotFix, Sign, Verdict, human_s, ipvs_idle_expired::state_name,
    nothing_ruled_out, remedy,
};
use crate::{
    event::IpvsEnd,
    evidence::{Evidence, has},
    fix::{Fix, FixOwner, Remedy, Risk},
    incident::{Confidence, Finding},
};

pub const CAUSE: Cause = Cause {
    id: "ipvs_server_removed",
    family: Family::StateLost,
    title: "the real server was taken out of IPVS under a live connection",
    doc: Doc {
        about: "A real server was deleted from its IPVS service while connections to it were open. \
                With net.ipv4.vs.expire_nodest_conn=1 the entries are ended at once, or by the next \
                packet, and that packet is answered by the local stack: a reset. With 0 every packet of \
                them is dropped in silence until the retransmissions run out, about 15 minutes later. \
                kube-proxy sets 1.",
        signs: &[
            Sign::observed(
                "IPVS ended the entry in the flush that follows a removal",
                &[Need::Full("ipvs_end")],
            ),
            Sign::correlated(
                "a packet had the entry ended, and the service no longer lists its server",
                &[Need::Full("ipvs_end")],
            ),
        ],
        mistaken_for: &[
            ("ipvs_idle_expired", "there the entry had been silent for all of its limit"),
            (
                "a crashed server",
                "its address stays in the service until somebody or a health check removes it; \
                 until then its own host, or nobody, answers",
            ),
        ],
        fixes: &[DRAIN],
        not_fixes: NOT_FIXES,
    },
    judge,
    rule_out: nothing_ruled_out,
    fixes,
    not_fixes,
};

const DRAIN: Remedy = Remedy {
    id: "drain_before_removal",
    owner: FixOwner::KubeProxy,
    risk: Risk::Low,
    summary: "drain a server before removing it: weight 0, wait, then delete",
    reason: "a server with weight 0 keeps its connections and takes no new ones",
    how: "ipvsadm -e … -w 0, wait until ActiveConn is 0, then ipvsadm -d; in Kubernetes a preStop \
          hook longer than the longest request",
};

const NOT_FIXES: &[(&str, &str)] = &[
    (
        "net.ipv4.vs.expire_nodest_conn=0",
        "the connection then hangs until its retransmissions run out instead of being reset",
    ),
    ("net.ipv4.vs.conn_reuse_mode", "it decides about new connections on old ports only"),
];

fn removed(end: &IpvsEnd) -> bool {
    has(&end.stack, "ip_vs_expire_nodest_conn_flush")
        || has(&end.stack, "expire_nodest_conn_handler")
}

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    if !evidence.looks_like_lost_state() {
        return None;
    }
    let (loss, end) = evidence.ipvs()?;
    let by_flush = removed(end);
    // Asked for by a packet that found its server gone; port reuse asks the same way, but only for
    // entries that are closing.
    let by_packet = end.forced && is_gone(evidence, loss.netns, end);
    if !by_flush && !by_packet {
        return None;
    }
    Some(
        Verdict::new(
            if by_flush { Confidence::Observed } else { Confidence::Correlated },
            format!("its real server {} had been taken out of IPVS", end.real_flow.dst),
        )
        .finding(Finding {
            kind: "ipvs_server_removed",
            ts: loss.ts,
            summary: format!(
                "IPVS ended the entry {} ({}) because its server {} is gone, {} before",
                end.virtual_flow,
                state_name(end.state),
                end.real_flow.dst,
                human_s(evidence.age_s(loss.ts)),
            ),
        }),
    )
}

/// The service is known here and no longer lists this server.
fn is_gone(evidence: &Evidence<'_>, netns: u32, end: &IpvsEnd) -> bool {
    let server = end.real_flow.dst;
    evidence.ipvs_service(netns, end.virtual_flow.dst).is_some_and(|service| {
        !service.destinations.iter().any(|d| d.ip == server.ip() && d.port == server.port())
    })
}

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    let server =
        evidence.ipvs().map_or("the server".into(), |(_, end)| end.real_flow.dst.to_string());
    vec![Fix {
        summary: format!("drain {server} before removing it: weight 0, wait, then delete"),
        ..DRAIN.fix()
    }]
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    remedy::told(NOT_FIXES)
}
