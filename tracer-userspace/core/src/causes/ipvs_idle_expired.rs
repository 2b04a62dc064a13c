//! The IPVS entry of an idle, established connection expired; the next packet met no state.

use rsttrace_model::{
    flow::Nanos,
    host_state::Netns,
    ipvs, tcp_state,
    units::{as_seconds, human_s},
};

use super::{
    cause::Cause,
    doc::{Doc, Need, Sign},
    remedy,
    scene::Scene,
};
use crate::{
    causes::cause::Facts,
    event::{IpvsEnd, has},
    evidence::{Evidence, seconds},
    fix::Fix,
    verdict::{Confidence, Family, Finding, NotFix, Verdict},
};

pub const CAUSE: Cause = Cause {
    id: "ipvs_idle_expired",
    family: Family::TimeoutMismatch,
    title: "the IPVS entry of an idle, established connection expired",
    doc: Doc {
        about: "IPVS gives an established connection 900 s of silence \
                (net/netfilter/ipvs/ip_vs_proto_tcp.c). A socket sends its first keepalive after 7200 s, \
                if it has SO_KEEPALIVE on at all; conntrack waits 432000 s, or 86400 s under kube-proxy. \
                By default IPVS is always the shortest. Every packet re-arms its timer; when it runs out nobody is \
                told, and the conntrack entry goes with it. The next packet of the client finds no entry, \
                is let through (sloppy_tcp=0), and the stack of the very node that owns the virtual \
                address answers with a bare RST (NO_SOCKET). If the server speaks first, its packet \
                leaves untranslated and the client's host resets the server.",
        signs: &[
            Sign::observed(
                "the entry ended by its own timer in ESTABLISHED, and a stack without state reset \
                 the next packet",
                &[Need::Any("ipvs_end"), Need::Full("reset_sent"), Need::Any("kernel_symbols")],
            ),
            Sign::correlated(
                "both were seen, but not which function ended the entry",
                &[Need::Any("ipvs_end"), Need::Full("reset_sent")],
            ),
            Sign::correlated(
                "the end of the entry was seen, the sender of the reset was not",
                &[Need::Any("ipvs_end"), Need::Any("reset_received")],
            ),
            Sign::inferred(
                "a packet to an IPVS service of this host was answered by its stack after more \
                 silence than the limit (or one of its server came back untranslated); the entry had \
                 ended before tracing began",
                &[Need::Full("reset_sent")],
            ),
        ],
        mistaken_for: &[
            (
                "conntrack_idle_expired",
                "IPVS deletes the conntrack entry together with its own: one that vanished after \
                 900 s of its 86400 s is IPVS's doing",
            ),
            (
                "retransmission_timeout",
                "15 minutes of retransmissions before ETIMEDOUT (tcp_retries2=15, about 924 s) are \
                 no 900 s of silence before a reset",
            ),
            (
                "a reset by the server",
                "a capture at the client shows the virtual address as its source; the server never \
                 saw it",
            ),
            ("ipvs_server_removed", "that entry ended before its time"),
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
        "the sysctls only reach sockets that have it on",
    ),
    (
        "net.ipv4.tcp_keepalive_* on the host, for pods",
        "they are per network namespace, and a new namespace starts with the kernel's defaults",
    ),
    (
        "a keepalive time equal to the limit",
        "timers fire up to 1/8 late, so it loses the race; a third of the limit survives a lost \
         probe",
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
        "the next packet makes a new entry, perhaps to a server that never had the connection",
    ),
    (
        "a longer session affinity (persistence)",
        "it binds a client to a server, not a connection to its entry",
    ),
];

/// `IP_VS_TCP_S_ESTABLISHED` (include/net/ip_vs.h).
pub const ESTABLISHED: u32 = 1;

/// The stamps of segments and of our own start are this coarse, seconds.
const SLACK_S: f64 = 1.0;

/// Ended by its own timer, not because somebody asked, and in a state in which packets re-armed it:
/// once its server is gone they are dropped.
pub fn is_natural(end: &IpvsEnd) -> bool {
    let asked = [
        "ip_vs_expire_nodest_conn_flush",
        "expire_nodest_conn_handler",
        "ip_vs_random_dropentry",
        "ip_vs_conn_flush",
        "ip_vs_conn_net_cleanup",
        "__ip_vs_cleanup_batch",
    ];
    !end.forced && !end.server_gone && !asked.iter().any(|function| has(&end.stack, function))
}

/// Whether its timer had the time to run out; an entry that ended sooner was ended, whoever did it.
pub fn had_time(end: &IpvsEnd, ended: Nanos) -> bool {
    let left_alone = |last| seconds(ended.saturating_sub(last)) >= end.timeout_s - SLACK_S;
    end.last_packet.is_none_or(left_alone)
}

/// The finding that an IPVS entry ended.
pub fn finding(evidence: &Evidence<'_>, ts: u64, end: &IpvsEnd) -> Finding {
    Finding {
        kind: "ipvs_expired",
        ts,
        summary: format!(
            "IPVS entry {} (to {}) ended in {}, limit {}, {} before",
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
    if end.state != ESTABLISHED || !is_natural(end) {
        return None;
    }
    // A timer never fires early: an entry that ended sooner was ended (a removed server moves it).
    let after_s = evidence.last_received().map(|last| seconds(loss.ts.saturating_sub(last)));
    if after_s.is_some_and(|after_s| after_s < end.timeout_s - SLACK_S) {
        return None;
    }
    // Without the kernel's symbols nothing says that it was the timer.
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
        verdict = verdict.prove("run rsttrace on the node that owns the virtual address as well");
    } else if let Some(test) = evidence.newest_assumed() {
        verdict = verdict.prove(test);
    }
    Some(verdict)
}

/// The entry ended before tracing began: only arithmetic is left.
fn inferred(evidence: &Evidence<'_>) -> Option<Verdict> {
    let balanced = evidence.balanced()?;
    let at = evidence.stateless()?;
    // Half closed it had another, shorter limit.
    let half_closed = evidence
        .victims()
        .any(|(_, _, socket)| !matches!(socket.state, tcp_state::ESTABLISHED | tcp_state::CLOSE));
    if balanced.has_entry != Some(false) || half_closed {
        return None;
    }
    let limit_s = balanced_limit_s(evidence)?;
    let idle_s = evidence.idle_s()?;
    let expired_for_s = idle_s - limit_s;
    // Still within its limit; or it ended while we watched, and we would have seen it.
    let watched_s = evidence.age_s(evidence.started());
    let would_be_seen = evidence.session.covers("ipvs_end") && expired_for_s < watched_s - SLACK_S;
    if expired_for_s < 0.0 || would_be_seen {
        return None;
    }
    let service = balanced.virtual_flow.dst;
    let met = match balanced.client {
        None => format!(
            "{service} is an IPVS service here, yet its packet was answered by the local stack"
        ),
        Some(_) => format!(
            "a packet of its server reached the client untranslated, and {service} has no entry for it"
        ),
    };
    Some(
        Verdict::new(
            Confidence::Inferred,
            format!(
                "no IPVS entry was left for it (limit {}), and tracing began after it ended",
                human_s(limit_s)
            ),
        )
        .finding(Finding {
            kind: "ipvs_no_entry",
            ts: at.ts,
            summary: format!("{met}; idle for {}, limit {}", human_s(idle_s), human_s(limit_s)),
        })
        .prove("keep rsttrace running: the next expiry is then seen, not computed"),
    )
}

/// The limit of established connections where the connection's service is.
fn balanced_limit_s(evidence: &Evidence<'_>) -> Option<f64> {
    let balanced = evidence.balanced()?;
    evidence.host(balanced.netns)?.ipvs.as_ref()?.timeout_tcp_s.map(f64::from)
}

fn rule_out(evidence: &Evidence<'_>) -> Option<String> {
    if !evidence.session.covers("ipvs_end") {
        return None;
    }
    match evidence.ipvs() {
        None => Some("no IPVS entry of this connection ended while tracing".into()),
        Some((_, end)) if end.state != ESTABLISHED => {
            Some(format!("its IPVS entry ended in {}", ipvs::state_name(end.state)))
        }
        Some(_) => Some("its IPVS entry did not end by its timer".into()),
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

fn on_host(scene: &Scene<'_>) -> Vec<Fix> {
    let balancers = scene.balancers();
    let limit = |netns: &&Netns| scene.value(netns, "ipvs.tcp").map(as_seconds);
    let shortest = balancers.iter().filter_map(limit).reduce(f64::min);
    let mut fixes = remedy::keepalive_on(scene, shortest, "the IPVS timer");
    fixes.extend(balancers.iter().filter_map(|netns| {
        Some(remedy::ipvs_timeout(netns.place.clone(), limit(netns)?, scene.idle_s))
    }));
    fixes.push(shortest.map_or_else(|| remedy::POOL.fix(), remedy::pool_below));
    fixes
}

fn not_fixes(evidence: &Evidence<'_>) -> Vec<NotFix> {
    let mut list = remedy::article(evidence, limit_s(evidence).unwrap_or(900.0));
    list.push((
        "net.netfilter.nf_conntrack_tcp_timeout_established".into(),
        "IPVS deletes the conntrack entry together with its own".into(),
    ));
    list
}
