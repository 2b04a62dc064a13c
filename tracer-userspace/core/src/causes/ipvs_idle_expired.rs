//! The IPVS entry of an idle, established connection expired; the next packet met no state.

use rsttrace_model::{
    flow::Nanos,
    host_state::Netns,
    ipvs::{self, masquerades},
    tcp_state,
    units::{as_seconds, human_s},
};

use super::{
    cause::Cause,
    doc::{Detection, Doc, RequiredSignal},
    fix_context::FixContext,
    remedy,
};
use crate::{
    causes::cause::Facts,
    event::{IpvsEnd, has},
    evidence::{Evidence, Watched, seconds},
    fix::Fix,
    verdict::{Confidence, Family, Finding, NotFix, Verdict},
};

pub const CAUSE: Cause = Cause {
    id: "ipvs_idle_expired",
    family: Family::TimeoutMismatch,
    title: "the IPVS entry of an idle, established connection expired",
    doc: Doc {
        about: "IPVS keeps the entry of an established connection for 900 s of idle time \
                (net/netfilter/ipvs/ip_vs_proto_tcp.c). A socket sends its first keepalive after \
                7200 s, and only if it has SO_KEEPALIVE on; conntrack waits 432000 s, or 86400 s \
                under kube-proxy. By default the IPVS limit is always the shortest. Every packet \
                re-arms the IPVS timer. When the timer runs out, neither end is notified, and the \
                conntrack entry is deleted together with the IPVS entry. The client's next packet \
                finds no entry and is let through (sloppy_tcp=0), and the TCP stack of the node \
                that owns the virtual address answers with a bare RST (NO_SOCKET). If the server \
                sends first, its packet leaves untranslated and the client's host resets the \
                server.",
        detections: &[
            Detection::observed(
                "the entry ended by its own timer in ESTABLISHED, and a TCP stack without this \
                 connection reset the next packet",
                &[
                    RequiredSignal::Any("ipvs_end"),
                    RequiredSignal::Full("reset_sent"),
                    RequiredSignal::Any("kernel_symbols"),
                ],
            ),
            Detection::correlated(
                "the end of the entry and the reset were seen, but not which function ended the \
                 entry",
                &[RequiredSignal::Any("ipvs_end"), RequiredSignal::Full("reset_sent")],
            ),
            Detection::correlated(
                "the end of the entry was seen, the sender of the reset was not",
                &[RequiredSignal::Any("ipvs_end"), RequiredSignal::Any("reset_received")],
            ),
            Detection::inferred(
                "this host's TCP stack answered a packet to an IPVS service after the connection \
                 had been idle for longer than the limit (or a packet of the server arrived \
                 untranslated); the entry had ended before tracing began",
                &[RequiredSignal::Full("reset_sent")],
            ),
        ],
        mistaken_for: &[
            (
                "conntrack_idle_expired",
                "IPVS deletes the conntrack entry together with its own; a conntrack entry that \
                 vanished after 900 s of its 86400 s was deleted by IPVS",
            ),
            (
                "retransmission_timeout",
                "15 minutes of retransmissions before ETIMEDOUT (tcp_retries2=15, about 924 s) are \
                 not 900 s of idle time before a reset",
            ),
            (
                "a reset by the server",
                "a capture at the client shows the virtual address as the source of the reset; the \
                 server never saw it",
            ),
            ("ipvs_server_removed", "that entry ended before its timeout"),
        ],
        fixes: &[remedy::KEEPALIVE, remedy::IPVS_TIMEOUT, remedy::POOL],
        not_fixes: NOT_FIXES,
    },
    judge,
    rule_out,
    fixes,
    not_fixes,
    on_host: Some(on_host),
    facts: Facts::Ipvs,
    ..Cause::BASE
};

const NOT_FIXES: &[(&str, &str)] = &[
    (
        "net.ipv4.tcp_keepalive_* with SO_KEEPALIVE off",
        "the sysctls affect only sockets that have it on",
    ),
    (
        "net.ipv4.tcp_keepalive_* on the host, for pods",
        "the sysctls are per network namespace, and a new namespace starts with the kernel's \
         defaults",
    ),
    (
        "a keepalive time equal to the limit",
        "timers fire up to 1/8 late, so the entry expires first; a third of the limit survives a \
         lost probe",
    ),
    (
        "net.netfilter.nf_conntrack_max",
        "a full table drops new connections; it does not reset idle ones",
    ),
    (
        "net.netfilter.nf_conntrack_tcp_timeout_established",
        "IPVS deletes the conntrack entry together with its own",
    ),
    (
        "ipvsadm --set in another namespace",
        "the timeouts belong to the namespace that owns the table; entries already idle keep the \
         old timer in any case",
    ),
    (
        "net.ipv4.vs.sloppy_tcp=1 with several servers",
        "the next packet creates a new entry, perhaps to a server that never had the connection",
    ),
    (
        "a longer session affinity (persistence)",
        "affinity binds a client to a server, not a connection to its entry",
    ),
];

/// `IP_VS_TCP_S_ESTABLISHED` (include/net/ip_vs.h).
pub const ESTABLISHED: u32 = 1;

/// Resolution of the timestamps of segments and of the start of tracing, seconds.
const SLACK_S: f64 = 1.0;

/// Whether the entry ended by its own timer, not on request, and in a state in which packets re-armed the
/// timer; without a server packets are dropped and do not re-arm it.
pub fn is_natural(end: &IpvsEnd) -> bool {
    let requested = [
        "ip_vs_expire_nodest_conn_flush",
        "expire_nodest_conn_handler",
        "ip_vs_random_dropentry",
        "ip_vs_conn_flush",
        "ip_vs_conn_net_cleanup",
        "__ip_vs_cleanup_batch",
    ];
    !end.forced && !end.server_gone && !requested.iter().any(|function| has(&end.stack, function))
}

/// Whether the entry had been idle long enough for its timer to run out. An entry that ended sooner was
/// removed by something else.
pub fn had_time(end: &IpvsEnd, ended: Nanos) -> bool {
    let idle_long_enough = |last| seconds(ended.saturating_sub(last)) >= end.timeout_s - SLACK_S;
    end.last_packet.is_none_or(idle_long_enough)
}

/// The finding that an IPVS entry ended.
pub fn finding(evidence: &Evidence<'_>, ts: u64, end: &IpvsEnd) -> Finding {
    Finding {
        kind: "ipvs_expired",
        ts,
        summary: format!(
            "IPVS entry {} (to {}) ended in {}, limit {}, {} earlier",
            end.virtual_flow,
            end.real_flow.dst,
            ipvs::state_name(end.state),
            human_s(end.timeout_s),
            human_s(evidence.age_s(ts)),
        ),
    }
}

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    if !evidence.looks_like_lost_state() {
        return None;
    }
    seen(evidence).or_else(|| inferred(evidence))
}

fn seen(evidence: &Evidence<'_>) -> Option<Verdict> {
    let (loss, end) = evidence.ipvs()?;
    if end.state != ESTABLISHED
        || !is_natural(end)
        || !had_time(end, loss.ts)
        || end.is_unused_copy()
    {
        return None;
    }
    // A timer never fires early: an entry that ended sooner was removed (removing a server does that).
    let alive = evidence.last_received().filter(|_| masquerades(end.flags));
    let after_s = alive.map(|last| seconds(loss.ts.saturating_sub(last)));
    if after_s.is_some_and(|after_s| after_s < end.timeout_s - SLACK_S) {
        return None;
    }
    // Without kernel symbols there is no evidence that it was the timer.
    let confidence = match end.stack.is_empty() {
        false => evidence.lost_entry_confidence(),
        true => Confidence::Correlated,
    };
    let mut verdict = Verdict::new(
        confidence,
        format!("its IPVS entry had expired (limit {})", human_s(end.timeout_s)),
    )
    .finding(finding(evidence, loss.ts, end));
    if confidence != Confidence::Observed {
        verdict = verdict.prove("also run rsttrace on the node that owns the virtual address");
    } else if let Some(test) = evidence.newest_assumed() {
        verdict = verdict.prove(test);
    }
    Some(verdict)
}

/// The entry ended before tracing began, so only arithmetic is left.
fn inferred(evidence: &Evidence<'_>) -> Option<Verdict> {
    let balanced = evidence.balanced()?;
    let at = evidence.stateless()?;
    // A half-closed connection has another, shorter limit.
    let half_closed = evidence
        .victims()
        .any(|(_, _, socket)| !matches!(socket.state, tcp_state::ESTABLISHED | tcp_state::CLOSE));
    if balanced.has_entry != Some(false) || half_closed {
        return None;
    }
    let limit_s = balanced_limit_s(evidence)?;
    let idle_s = evidence.idle_s()?;
    let expired_for_s = idle_s - limit_s;
    // Either the entry is still within its limit, or its end during tracing would have been recorded.
    let would_be_seen =
        evidence.would_know(Watched::IpvsEnd, balanced.netns, expired_for_s + SLACK_S);
    if expired_for_s < 0.0 || would_be_seen {
        return None;
    }
    let service = balanced.virtual_flow.dst;
    let met = match balanced.client {
        None => format!(
            "{service} is an IPVS service here, but the local TCP stack answered the connection's \
             packet"
        ),
        Some(_) => format!(
            "a packet from its server reached the client untranslated, and {service} has no entry \
             for the connection"
        ),
    };
    Some(
        Verdict::new(
            Confidence::Inferred,
            format!(
                "no IPVS entry was left for the connection (limit {}), and tracing began after the \
                 entry ended",
                human_s(limit_s)
            ),
        )
        .finding(Finding {
            kind: "ipvs_no_entry",
            ts: at.ts,
            summary: format!("{met}; idle for {}, limit {}", human_s(idle_s), human_s(limit_s)),
        })
        .prove("keep rsttrace running; it then observes the next expiry instead of computing it"),
    )
}

/// The limit of established connections in the namespace with the connection's service, seconds.
fn balanced_limit_s(evidence: &Evidence<'_>) -> Option<f64> {
    let balanced = evidence.balanced()?;
    evidence.host(balanced.netns)?.ipvs.as_ref()?.timeout_tcp_s.map(f64::from)
}

fn rule_out(evidence: &Evidence<'_>) -> Option<String> {
    match evidence.ipvs() {
        None => {
            let time = evidence.absence(Watched::IpvsEnd)?;
            Some(format!("no IPVS entry of this connection ended {time}"))
        }
        Some((_, end)) if end.state != ESTABLISHED => {
            Some(format!("its IPVS entry ended in {}", ipvs::state_name(end.state)))
        }
        Some((loss, end)) => (!is_natural(end) || !had_time(end, loss.ts))
            .then(|| "its IPVS entry did not end by its timer".into()),
    }
}

fn limit_s(evidence: &Evidence<'_>) -> Option<f64> {
    if let Some((_, end)) = evidence.ipvs() {
        return Some(end.timeout_s);
    }
    balanced_limit_s(evidence)
}

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    let Some(limit_s) = limit_s(evidence) else {
        return Vec::new();
    };
    let mut fixes = vec![remedy::keepalive_below(evidence, limit_s, "the IPVS timer")];
    let netns = evidence
        .ipvs()
        .map(|(loss, _)| loss.netns)
        .or_else(|| evidence.balanced().map(|balanced| balanced.netns));
    if let Some(netns) = netns {
        fixes.push(remedy::ipvs_timeout(evidence.place(netns), limit_s, evidence.idle_s()));
    }
    fixes.push(remedy::pool_below(limit_s));
    fixes
}

fn on_host(context: &FixContext<'_>) -> Vec<Fix> {
    let balancers = context.ipvs_namespaces();
    let limit = |netns: &&Netns| context.value(netns, "ipvs.tcp").map(as_seconds);
    let shortest = balancers.iter().filter_map(limit).reduce(f64::min);
    let mut fixes = remedy::keepalive_on(context, shortest, "the IPVS timer");
    fixes.extend(balancers.iter().filter_map(|netns| {
        Some(remedy::ipvs_timeout(netns.place.clone(), limit(netns)?, context.idle_s))
    }));
    fixes.push(shortest.map_or_else(|| remedy::POOL.fix(), remedy::pool_below));
    fixes
}

fn not_fixes(evidence: &Evidence<'_>) -> Vec<NotFix> {
    let mut list = remedy::article_not_fixes(evidence, limit_s(evidence).unwrap_or(900.0));
    list.push((
        "net.netfilter.nf_conntrack_tcp_timeout_established".into(),
        "IPVS deletes the conntrack entry together with its own".into(),
    ));
    list
}
