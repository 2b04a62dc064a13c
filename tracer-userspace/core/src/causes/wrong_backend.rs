//! A mid-stream packet reached a listener that never had the connection.

use rsttrace_model::{host_state::Netns, tcp_state};

use super::{
    cause::Cause,
    doc::{Detection, Doc, RequiredSignal},
    fix_context::FixContext,
    remedy,
};
use crate::{
    evidence::Evidence,
    fix::{Fix, FixOwner, Remedy, Risk},
    verdict::{Confidence, Family, Finding, NotFix, Verdict},
};

pub const CAUSE: Cause = Cause {
    id: "wrong_backend",
    family: Family::StateLost,
    title: "a mid-stream packet reached a listener that never had the connection",
    doc: Doc {
        about: "A mid-stream packet reached a listening socket whose server never had that \
                connection, and the TCP stack answered with a bare RST (TCP_FLAGS). A load \
                balancer chose another server in mid-stream (sloppy_tcp, a remap, a fail-over \
                without synchronised tables), or the server was restarted and listens again.",
        detections: &[Detection::inferred(
            "a mid-stream packet of a connection that was in use was reset at a listener, and no \
             entry of the connection had ended",
            &[RequiredSignal::Any("reset_sent")],
        )],
        mistaken_for: &[
            ("socket_gone", "no process listens on the port either"),
            (
                "ipvs_idle_expired",
                "after an entry ended, the next packet can go to another server; then the end of \
                 the entry is the cause",
            ),
        ],
        fixes: &[KEEP_FLOWS, STRICT],
        not_fixes: NOT_FIXES,
    },
    judge,
    fixes,
    not_fixes,
    on_host: Some(on_host),
    ceiling: Confidence::Inferred,
    ..Cause::BASE
};

const KEEP_FLOWS: Remedy = Remedy {
    id: "keep_flows_on_one_server",
    owner: FixOwner::Node,
    risk: Risk::Medium,
    summary: "keep a connection on the server that accepted it",
    reason: "only that server has its socket",
    how: "schedule by source hash (sh, mh), synchronise connection tables between load balancers, \
          and do not use sloppy_tcp with several servers",
};

const STRICT: Remedy = Remedy {
    id: "switch_sloppy_tcp_off",
    owner: FixOwner::Node,
    risk: Risk::Medium,
    summary: "let IPVS create entries from SYNs only",
    reason: "a mid-stream packet is then reset by the load balancer instead of being sent to \
             another server; where an entry was lost, the connection breaks anyway",
    how: "set net.ipv4.vs.sloppy_tcp=0 in the namespace that owns the table",
};

const NOT_FIXES: &[(&str, &str)] = &[(
    "net.ipv4.vs.sloppy_tcp=1",
    "it lets a load balancer choose a new server in mid-stream, which is this failure",
)];

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    if evidence.is_handshake() || !evidence.was_used() {
        return None;
    }
    let at = evidence.stateless()?;
    let socket = at.value.socket.as_ref()?;
    if socket.state != tcp_state::LISTEN
        || !evidence.lost_nothing()
        || evidence.balanced().is_some()
    {
        return None;
    }
    let here = at.value.trigger?.flow.dst;
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
            "check whether a load balancer chose another server in mid-stream (sloppy_tcp, a \
             remap, a fail-over), or this server was restarted; compare the packet's destination \
             with the server that accepted the connection",
        ),
    )
}

fn fixes(_: &Evidence<'_>) -> Vec<Fix> {
    vec![KEEP_FLOWS.fix()]
}

fn on_host(context: &FixContext<'_>) -> Vec<Fix> {
    let strict = |netns: &Netns| {
        Some(Fix {
            summary: format!("{} {}", STRICT.summary, netns.place.describe()),
            current: context.value(netns, "net.ipv4.vs.sloppy_tcp").map(|now| now.to_string()),
            wanted: Some("0".into()),
            changes: vec![context.sysctl(netns, "net.ipv4.vs.sloppy_tcp", 0)?],
            ..STRICT.fix()
        })
    };
    let several = |netns: &&Netns| {
        netns.services.iter().flatten().any(|service| service.destinations.len() > 1)
    };
    let balancers = context.ipvs_namespaces().into_iter().filter(several);
    let mut fixes: Vec<_> = balancers.filter_map(strict).collect();
    fixes.push(KEEP_FLOWS.fix());
    fixes
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    remedy::to_not_fixes(NOT_FIXES)
}
