//! The real server was removed from IPVS under a live connection.

use std::net::SocketAddr;

use rsttrace_model::{
    flow::Nanos,
    host_state::Netns,
    ipvs::{IpvsEntry, state_name},
    units::human_s,
};

use super::{
    cause::Cause,
    doc::{Detection, Doc, RequiredSignal},
    fix_context::FixContext,
    ipvs_entry::lost_to,
    ipvs_idle_expired::had_time,
    remedy, unanswered,
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
    title: "the real server was removed from IPVS under a live connection",
    doc: Doc {
        about: "A real server was deleted from its IPVS service, alone or together with the \
                service, while connections to it were open. With net.ipv4.vs.expire_nodest_conn=1 \
                the entries end at once, or at the next packet, and the local TCP stack answers \
                that packet with a reset. With 0 every packet of these connections is dropped \
                without an answer until the retransmissions run out, about 15 minutes later. \
                kube-proxy sets 1.",
        detections: &[
            Detection::observed(
                "IPVS ended the entry in the flush that follows a removal, or for a packet that \
                 found the entry without its server",
                &[RequiredSignal::Full("ipvs_end"), RequiredSignal::Any("kernel_symbols")],
            ),
            Detection::observed(
                "the removal was seen, and the entry was found without its server when the \
                 connection timed out",
                &[RequiredSignal::Any("ipvs_server_removed"), RequiredSignal::Any("socket_error")],
            ),
            Detection::observed(
                "the removal was seen, packets between two ends on other hosts are dropped here \
                 for a second or more, and the entry was found without its server",
                &[RequiredSignal::Full("ipvs_server_removed")],
            ),
            Detection::observed(
                "the removal was seen, the entry expired without its server, and the TCP stack \
                 then reset a packet of the connection",
                &[
                    RequiredSignal::Any("ipvs_server_removed"),
                    RequiredSignal::Any("ipvs_end"),
                    RequiredSignal::Any("reset_sent"),
                ],
            ),
            Detection::correlated(
                "the removal of the whole service was seen, and the TCP stack then reset a packet \
                 for that address; without services IPVS does not process packets",
                &[
                    RequiredSignal::Any("ipvs_server_removed"),
                    RequiredSignal::Any("reset_sent"),
                    RequiredSignal::Any("kernel_symbols"),
                ],
            ),
            Detection::correlated(
                "the entry expired after its server had been removed",
                &[RequiredSignal::Any("ipvs_end")],
            ),
            Detection::inferred(
                "the entry was found without its server when the connection timed out",
                &[RequiredSignal::Any("socket_error")],
            ),
        ],
        mistaken_for: &[
            (
                "ipvs_entry_dropped",
                "the whole table was cleared (ipvsadm -C), or the entry alone was lost",
            ),
            ("ipvs_idle_expired", "the entry had been idle for its full limit"),
            (
                "retransmission_timeout",
                "the server had stopped answering before it was removed; a health check removes a \
                 dead server",
            ),
            (
                "a crashed server",
                "its address stays in the service until an operator or a health check removes it; \
                 until then its own host answers, or no host does",
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
    how: "run ipvsadm -e … -w 0, wait until ActiveConn is 0, then run ipvsadm -d; in Kubernetes \
          use a preStop hook that lasts longer than the longest request",
};

const RESET: Remedy = Remedy {
    id: "reset_instead_of_hang",
    owner: FixOwner::Node,
    risk: Risk::Low,
    summary: "let IPVS end the connections of a removed server at once",
    reason: "their clients are then reset and reconnect, instead of waiting until their \
             retransmissions run out",
    how: "set net.ipv4.vs.expire_nodest_conn=1 in the namespace that owns the table",
};

const NOT_FIXES: &[(&str, &str)] = &[
    (
        "net.ipv4.vs.expire_nodest_conn=0",
        "the connection then hangs until its retransmissions run out instead of being reset",
    ),
    ("net.ipv4.vs.conn_reuse_mode", "it affects only new connections on old ports"),
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
    /// What happened to its entry.
    entry: Finding,
    /// The removal of the server, if it was seen.
    pub removal: Option<&'a Stamped<IpvsServerRemoved>>,
}

/// Includes a server that was removed with the whole table, which is `ipvs_entry_dropped`.
pub fn lost<'a>(evidence: &Evidence<'a>) -> Option<ServerLoss<'a>> {
    if only_dropped(evidence) {
        return dropped(evidence);
    }
    if !evidence.looks_like_lost_state() {
        return None;
    }
    ended(evidence).or_else(|| hung(evidence)).or_else(|| unhooked(evidence))
}

/// Its entry ended because the server was missing, or expired long after.
fn ended<'a>(evidence: &Evidence<'a>) -> Option<ServerLoss<'a>> {
    let (loss, end) = evidence.ipvs()?;
    let by_flush = removed(end);
    // Requested by a packet that found its server gone. Port reuse ends entries in the same way, but only
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
    let how = if ran_out { "expired" } else { "was ended" };
    let finding = Finding {
        kind: "ipvs_server_removed",
        ts: loss.ts,
        summary: format!(
            "the IPVS entry {} ({}) {how} without its server {}, {} earlier",
            end.virtual_flow,
            state_name(end.state),
            end.real_flow.dst,
            human_s(evidence.age_s(loss.ts)),
        ),
    };
    Some(ServerLoss { confidence, server: end.real_flow.dst, entry: finding, removal })
}

/// Its entry still exists without the server, and every packet that arrives for it is dropped.
fn hung<'a>(evidence: &Evidence<'a>) -> Option<ServerLoss<'a>> {
    let socket = &evidence.timed_out()?.value.socket;
    let Stamped { ts, netns, value: entry } = evidence.ipvs_orphan()?;
    let removal = evidence.ipvs_server_removed(*netns, entry.virtual_flow, entry.real_flow());
    // The server had stopped answering before it was removed: it was removed because it is dead.
    if removal.is_some_and(|at| seconds(ts.saturating_sub(at.ts)) < unanswered::at_least_s(socket))
    {
        return None;
    }
    // Without a recorded removal it is unknown which came first, the removal or the death of the server.
    let confidence = if removal.is_some() { Confidence::Observed } else { Confidence::Inferred };
    Some(ServerLoss {
        confidence,
        server: entry.server,
        entry: orphaned(evidence, *ts, *netns, entry),
        removal,
    })
}

/// Its entry still exists but is not used: with its last service IPVS leaves netfilter's hooks
/// (net/netfilter/ipvs/ip_vs_ctl.c), and the local TCP stack receives the packet.
fn unhooked<'a>(evidence: &Evidence<'a>) -> Option<ServerLoss<'a>> {
    let at =
        evidence.stateless().filter(|at| at.value.socket.is_none() && at.value.end.is_none())?;
    let service = at.value.trigger?.flow.dst;
    let removal = evidence.ipvs_service_removed(at.netns, service)?;
    if !evidence.lost_nothing()
        || evidence.ipvs_service(at.netns, service).is_some()
        || !evidence.was_used()
    {
        return None;
    }
    let entry = Finding {
        kind: "ipvs_no_service",
        ts: at.ts,
        summary: format!(
            "the local TCP stack {} answered a packet of the connection: {service} is no longer an \
             IPVS service",
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

/// No socket of this host is affected, but the connection's packets are dropped here.
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
            "the IPVS entry {} ({}, {} s left) {} no longer has a server: packets for {} are \
             dropped",
            entry.virtual_flow,
            entry.state,
            entry.left_s,
            evidence.place(netns).describe(),
            entry.server,
        ),
    }
}

impl ServerLoss<'_> {
    /// Every service was deleted at once.
    pub fn with_all(&self) -> bool {
        self.removal.is_some_and(|at| at.value.removal() == IpvsRemoval::Table)
    }

    pub fn verdict(self, evidence: &Evidence<'_>) -> Verdict {
        let Self { confidence, server, entry, removal } = self;
        let Some(at) = removal else {
            let why = format!("its real server {server} had been removed from IPVS");
            return Verdict::new(confidence, why).finding(entry).prove(
                "keep rsttrace running; it then observes a removal, and whether the server \
                 answered until then",
            );
        };
        let IpvsServerRemoved { service, task, .. } = &at.value;
        let place = evidence.place(at.netns).describe();
        let before = human_s(evidence.age_s(at.ts));
        let (why, summary) = match at.value.removal() {
            IpvsRemoval::Server => (
                format!("{task} had removed its real server {server} from IPVS"),
                format!("{task} removed {server} from the IPVS service {service} {place}"),
            ),
            IpvsRemoval::Service => (
                format!("{task} had deleted its IPVS service {service}"),
                format!(
                    "{task} deleted the IPVS service {service} with its server {server} {place}"
                ),
            ),
            IpvsRemoval::Table => (
                format!("{task} had cleared the IPVS table"),
                format!(
                    "{task} deleted every IPVS service {place}, among them {service} with its \
                     server {server}"
                ),
            ),
        };
        Verdict::new(confidence, format!("{why} {before} earlier"))
            .finding(Finding {
                kind: "ipvs_server_removal",
                ts: at.ts,
                summary: format!("{summary}, {before} earlier"),
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

fn on_host(context: &FixContext<'_>) -> Vec<Fix> {
    let reset = |netns: &Netns| {
        Some(Fix {
            summary: format!("{} {}", RESET.summary, netns.place.describe()),
            current: context
                .value(netns, "net.ipv4.vs.expire_nodest_conn")
                .map(|now| now.to_string()),
            wanted: Some("1".into()),
            changes: vec![context.sysctl(netns, "net.ipv4.vs.expire_nodest_conn", 1)?],
            ..RESET.fix()
        })
    };
    let mut fixes = vec![DRAIN.fix()];
    fixes.extend(context.ipvs_namespaces().into_iter().filter_map(reset));
    fixes
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    remedy::to_not_fixes(NOT_FIXES)
}
