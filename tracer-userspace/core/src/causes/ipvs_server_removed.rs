//! The real server was taken out of IPVS under a live connection.

use std::net::SocketAddr;

use rsttrace_model::{
    flow::Nanos,
    host_state::Netns,
    ipvs::{IpvsEntry, state_name},
    units::human_s,
};

use super::{
    cause::Cause,
    doc::{Doc, Need, Sign},
    ipvs_entry::lost_to,
    ipvs_idle_expired::had_time,
    remedy,
    scene::Scene,
    unanswered,
};
use crate::{
    case::Stamped,
    causes::cause::{DropReport, Facts},
    event::{DropReason, IpvsEnd, IpvsRemoval, IpvsServerRemoved, has},
    evidence::{Evidence, seconds},
    fix::{Change, Fix, FixOwner, Remedy, Risk},
    verdict::{Confidence, Family, Finding, NotFix, Verdict},
};

pub const CAUSE: Cause = Cause {
    id: "ipvs_server_removed",
    family: Family::StateLost,
    title: "the real server was taken out of IPVS under a live connection",
    doc: Doc {
        about: "A real server was deleted from its IPVS service, or went with the service, while \
                connections to it were open. \
                With net.ipv4.vs.expire_nodest_conn=1 the entries are ended at once, or by the next \
                packet, and that packet is answered by the local stack: a reset. With 0 every packet of \
                them is dropped in silence until the retransmissions run out, about 15 minutes later. \
                kube-proxy sets 1.",
        signs: &[
            Sign::observed(
                "IPVS ended the entry in the flush that follows a removal, or for a packet that found \
                 the entry without its server",
                &[Need::Full("ipvs_end"), Need::Any("kernel_symbols")],
            ),
            Sign::observed(
                "the removal was seen, and the entry was found without its server when the connection \
                 timed out",
                &[Need::Any("ipvs_server_removed"), Need::Any("socket_error")],
            ),
            Sign::observed(
                "the removal was seen, packets of two ends that are elsewhere are dropped here for a second \
                 and more, and the entry was found without its server",
                &[Need::Full("ipvs_server_removed")],
            ),
            Sign::observed(
                "the removal was seen, the entry ran out without its server, and the stack then reset a \
                 packet of it",
                &[Need::Any("ipvs_server_removed"), Need::Any("ipvs_end"), Need::Any("reset_sent")],
            ),
            Sign::correlated(
                "the removal of its whole service was seen, and the stack then reset a packet for that \
                 address: without services IPVS does not look at packets",
                &[
                    Need::Any("ipvs_server_removed"),
                    Need::Any("reset_sent"),
                    Need::Any("kernel_symbols"),
                ],
            ),
            Sign::correlated(
                "the entry ran out after its server had been taken out",
                &[Need::Any("ipvs_end")],
            ),
            Sign::inferred(
                "the entry was found without its server when the connection timed out",
                &[Need::Any("socket_error")],
            ),
        ],
        mistaken_for: &[
            (
                "ipvs_entry_dropped",
                "there the whole table was cleared (ipvsadm -C), or the entry alone was lost",
            ),
            ("ipvs_idle_expired", "there the entry had been silent for all of its limit"),
            (
                "retransmission_timeout",
                "there nobody answered already before the server was removed, which is what a health \
                 check does with a dead one",
            ),
            (
                "a crashed server",
                "its address stays in the service until somebody or a health check removes it; \
                 until then its own host, or nobody, answers",
            ),
        ],
        fixes: &[DRAIN, RESET],
        not_fixes: NOT_FIXES,
    },
    judge,
    fixes,
    not_fixes,
    on_host: Some(on_host),
    opens_on_drop: Some(DropReport { what: "lost a packet", unless_timed_out: true }),
    facts: Facts::Ipvs,
    ..Cause::BASE
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

const RESET: Remedy = Remedy {
    id: "reset_instead_of_hang",
    owner: FixOwner::Node,
    risk: Risk::Low,
    summary: "let IPVS end the connections of a removed server at once",
    reason: "their clients are then reset and reconnect, instead of waiting for their retransmissions to \
             run out",
    how: "net.ipv4.vs.expire_nodest_conn=1 in the namespace that owns the table",
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
    let loss = lost(evidence)?;
    (!loss.with_all()).then(|| loss.verdict(evidence))
}

/// A connection that lost its real server, and how.
pub struct ServerLoss<'a> {
    confidence: Confidence,
    server: SocketAddr,
    /// What became of its entry.
    entry: Finding,
    /// Who took the server away, if that was seen.
    pub removal: Option<&'a Stamped<IpvsServerRemoved>>,
}

/// Also of a server that went with the whole table, which is `ipvs_entry_dropped`.
pub fn lost<'a>(evidence: &Evidence<'a>) -> Option<ServerLoss<'a>> {
    if only_dropped(evidence) {
        return dropped(evidence);
    }
    if !evidence.looks_like_lost_state() {
        return None;
    }
    ended(evidence).or_else(|| hung(evidence)).or_else(|| unhooked(evidence))
}

/// Its entry ended, for want of the server or long after.
fn ended<'a>(evidence: &Evidence<'a>) -> Option<ServerLoss<'a>> {
    let (loss, end) = evidence.ipvs()?;
    let by_flush = removed(end);
    // Asked for by a packet that found its server gone; port reuse asks the same way, but only for
    // entries that are closing.
    let by_packet = end.forced && (end.server_gone || is_gone(evidence, loss.netns, end));
    let ran_out =
        !end.forced && end.server_gone && lost_to(end).is_none() && had_time(end, loss.ts);
    if !by_flush && !by_packet && !ran_out {
        return None;
    }
    let removal = evidence.ipvs_server_removed(loss.netns, end.virtual_flow, end.real_flow);
    let confidence = match (by_flush || (by_packet && end.server_gone), removal) {
        (true, _) => Confidence::Observed,
        (false, Some(_)) if ran_out => evidence.lost_entry_confidence(),
        _ => Confidence::Correlated,
    };
    let how = if ran_out { "ran out" } else { "was ended" };
    let finding = Finding {
        kind: "ipvs_server_removed",
        ts: loss.ts,
        summary: format!(
            "the IPVS entry {} ({}) {how} without its server {}, {} before",
            end.virtual_flow,
            state_name(end.state),
            end.real_flow.dst,
            human_s(evidence.age_s(loss.ts)),
        ),
    };
    Some(ServerLoss { confidence, server: end.real_flow.dst, entry: finding, removal })
}

/// Its entry is still there, without the server: every packet that arrives for it is dropped.
fn hung<'a>(evidence: &Evidence<'a>) -> Option<ServerLoss<'a>> {
    let socket = &evidence.timed_out()?.value.socket;
    let Stamped { ts, netns, value: entry } = evidence.ipvs_orphan()?;
    let removal = evidence.ipvs_server_removed(*netns, entry.virtual_flow, entry.real_flow());
    // Nobody answered before the server was removed: it was removed because it is dead.
    if removal.is_some_and(|at| seconds(ts.saturating_sub(at.ts)) < unanswered::at_least_s(socket))
    {
        return None;
    }
    // Without the removal nobody knows which came first: it, or the silence of a dead server.
    let confidence = if removal.is_some() { Confidence::Observed } else { Confidence::Inferred };
    Some(ServerLoss {
        confidence,
        server: entry.server,
        entry: orphaned(evidence, *ts, *netns, entry),
        removal,
    })
}

/// Its entry is still there, but nobody looks: with its last service IPVS leaves netfilter's hooks
/// (net/netfilter/ipvs/ip_vs_ctl.c), and the local stack gets the packet.
fn unhooked<'a>(evidence: &Evidence<'a>) -> Option<ServerLoss<'a>> {
    let at =
        evidence.stateless().filter(|at| at.value.socket.is_none() && at.value.end.is_none())?;
    let service = at.value.trigger?.flow.dst;
    let removal = evidence.ipvs_service_removed(at.netns, service)?;
    if evidence.has_loss()
        || evidence.ipvs_service(at.netns, service).is_some()
        || !evidence.was_used()
    {
        return None;
    }
    let entry = Finding {
        kind: "ipvs_no_service",
        ts: at.ts,
        summary: format!(
            "a packet of it was answered by the local stack {}: {service} is no IPVS service any more",
            evidence.place(at.netns).describe()
        ),
    };
    Some(ServerLoss {
        confidence: Confidence::Correlated,
        server: removal.value.server,
        entry,
        removal: Some(removal),
    })
}

/// Nobody of this host is hurt, but its packets are dropped here.
fn dropped<'a>(evidence: &Evidence<'a>) -> Option<ServerLoss<'a>> {
    let Stamped { ts, netns, value: entry } = evidence.ipvs_orphan()?;
    let removal = evidence.ipvs_server_removed(*netns, entry.virtual_flow, entry.real_flow());
    Some(ServerLoss {
        confidence: if removal.is_some() { Confidence::Observed } else { Confidence::Inferred },
        server: entry.server,
        entry: orphaned(evidence, *ts, *netns, entry),
        removal,
    })
}

fn only_dropped(evidence: &Evidence<'_>) -> bool {
    let case = evidence.case;
    case.drops.iter().any(|at| at.value.why == DropReason::NoDestination)
        && case.sent.is_empty()
        && case.received.is_empty()
        && case.errors.is_empty()
}

fn orphaned(evidence: &Evidence<'_>, ts: Nanos, netns: u32, entry: &IpvsEntry) -> Finding {
    Finding {
        kind: "ipvs_orphan",
        ts,
        summary: format!(
            "the IPVS entry {} ({}, {} s left) {} has no server any more: packets for {} are dropped",
            entry.virtual_flow,
            entry.state,
            entry.left_s,
            evidence.place(netns).describe(),
            entry.server,
        ),
    }
}

impl ServerLoss<'_> {
    /// Every service was taken away at once.
    pub fn with_all(&self) -> bool {
        self.removal.is_some_and(|at| at.value.removal() == IpvsRemoval::Table)
    }

    pub fn verdict(self, evidence: &Evidence<'_>) -> Verdict {
        let Self { confidence, server, entry, removal } = self;
        let Some(at) = removal else {
            let why = format!("its real server {server} had been taken out of IPVS");
            return Verdict::new(confidence, why).finding(entry).prove(
                "keep rsttrace running: a removal is then seen, and whether the server had answered until \
                 then",
            );
        };
        let IpvsServerRemoved { service, task, .. } = &at.value;
        let place = evidence.place(at.netns).describe();
        let before = human_s(evidence.age_s(at.ts));
        let (why, summary) = match at.value.removal() {
            IpvsRemoval::Server => (
                format!("{task} had taken its real server {server} out of IPVS"),
                format!("{task} took {server} out of the IPVS service {service} {place}"),
            ),
            IpvsRemoval::Service => (
                format!("{task} had deleted its IPVS service {service}"),
                format!("{task} deleted the IPVS service {service}, {server} with it, {place}"),
            ),
            IpvsRemoval::Table => (
                format!("{task} had cleared the IPVS table"),
                format!(
                    "{task} deleted every IPVS service, {service} and {server} with it, {place}"
                ),
            ),
        };
        Verdict::new(confidence, format!("{why} {before} before"))
            .finding(Finding {
                kind: "ipvs_server_removal",
                ts: at.ts,
                summary: format!("{summary}, {before} before"),
            })
            .finding(entry)
    }
}

/// The service is known here and no longer lists this server.
fn is_gone(evidence: &Evidence<'_>, netns: u32, end: &IpvsEnd) -> bool {
    let server = end.real_flow.dst;
    evidence.ipvs_service(netns, end.virtual_flow.dst).is_some_and(|service| {
        !service.destinations.iter().any(|d| d.ip == server.ip() && d.port == server.port())
    })
}

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    let entry = evidence.ipvs_orphan();
    let server = match (evidence.ipvs(), entry) {
        (Some((_, end)), _) => end.real_flow.dst.to_string(),
        (None, Some(at)) => at.value.server.to_string(),
        (None, None) => "the server".into(),
    };
    let mut fixes = vec![Fix {
        summary: format!("drain {server} before removing it: weight 0, wait, then delete"),
        ..DRAIN.fix()
    }];
    let netns = evidence.ipvs().map(|(loss, _)| loss.netns).or(entry.map(|at| at.netns));
    let ipvs = |netns| evidence.host(netns).and_then(|host| host.ipvs.as_ref());
    if let Some(netns) = netns
        && ipvs(netns).is_none_or(|ipvs| ipvs.expire_nodest_conn != Some(true))
    {
        let from = ipvs(netns).and_then(|ipvs| ipvs.expire_nodest_conn).map(u64::from);
        let place = evidence.place(netns);
        fixes.push(Fix {
            current: from.map(|from| from.to_string()),
            wanted: Some("1".into()),
            changes: vec![Change::Sysctl {
                place,
                key: "net.ipv4.vs.expire_nodest_conn",
                from,
                to: 1,
            }],
            ..RESET.fix()
        });
    }
    fixes
}

fn on_host(scene: &Scene<'_>) -> Vec<Fix> {
    let reset = |netns: &Netns| {
        Some(Fix {
            summary: format!("{} {}", RESET.summary, netns.place.describe()),
            current: scene
                .value(netns, "net.ipv4.vs.expire_nodest_conn")
                .map(|now| now.to_string()),
            wanted: Some("1".into()),
            changes: vec![scene.sysctl(netns, "net.ipv4.vs.expire_nodest_conn", 1)?],
            ..RESET.fix()
        })
    };
    let mut fixes = vec![DRAIN.fix()];
    fixes.extend(scene.balancers().into_iter().filter_map(reset));
    fixes
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    remedy::told(NOT_FIXES)
}
